"""Folders of ``surf export``, also on the Hugging Face Hub by the name of their repository."""

from __future__ import annotations

import json
import os
import re
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import KEY, PREFIX, check_finite, check_record, read_checkpoint

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"  # named as the Hugging Face Hub has them
METADATA = ("method", "needs_sources", "separator", "signal", "version")  # what an export says of a checkpoint's

MAX_CONFIG = 1_000_000  # bytes of a config.json: ours have a thousandth, and JSON takes far more memory than text

# user/name, at the newest revision or a given one, which becomes a path in the cache
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@(?!.*\.\.)\w[\w./-]*)?", re.ASCII)
SCHEME = "hf://"  # before a name: it is no path, whatever lies here
SHIPPED = Path(__file__).parents[1] / "models"  # folders of surf export that come with the package


def shipped() -> list[str]:
    """Names of the separators that come with the package."""
    return sorted(config.parent.name for config in SHIPPED.glob(f"*/{CONFIG}"))


def local_path(checkpoint: str | PathLike[str]) -> str:
    """``checkpoint`` itself if it is a file or folder, or reads as a path; else the folder that holds it.

    That is the one shipped under this name, as "digits" is, or the one downloaded from the Hub.
    Only the weights (safetensors) and the configuration (JSON) are downloaded, once; without network, the copy that
    an earlier download left in the Hub's cache is used.

    Raises:
        UserError: it is neither a file nor a repository that can be downloaded.
    """
    path = os.fspath(checkpoint)
    if path.startswith(SCHEME):
        return _downloaded(path.removeprefix(SCHEME))
    if os.path.exists(path):
        return path
    if path in shipped():
        return str(SHIPPED / path)
    is_path = path.endswith(".ckpt") or os.path.isdir(path.split("/")[0]) or not REPOSITORY.fullmatch(path)
    return path if is_path else _downloaded(path)


def check_name(name: str) -> None:
    """Raises UserError where ``name`` is not as the Hub's are."""
    if not REPOSITORY.fullmatch(name):
        raise UserError(f"{SCHEME}{name} names no separator: write {SCHEME}user/name, or {SCHEME}user/name@revision")


def _downloaded(name: str) -> str:
    """The folder of the repository ``user/name``, or of a revision of it, ``user/name@revision``."""
    from huggingface_hub import snapshot_download

    check_name(name)
    repository, _, revision = name.partition("@")
    try:
        folder = str(snapshot_download(repository, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG]))
    except Exception as error:  # of any type: a server may answer anything, or stop in the middle
        raise UserError(
            f"there is no file {name}, and no such separator on the Hugging Face Hub: {_reason(error)}"
        ) from error
    if not os.path.isdir(folder):
        raise UserError(f"{SCHEME}{name} holds no separator: it has neither {CONFIG} nor {WEIGHTS}")
    return folder


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def push(folder: str | PathLike[str], repository: str) -> str:
    """Upload a folder of ``surf export`` to ``user/name`` on the Hub, as the account of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        UserError: the Hub refuses, or is not reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=Path(folder), commit_message="surf export")
    except Exception as error:  # as above
        raise UserError(f"{repository} cannot be written on the Hugging Face Hub: {_reason(error)}") from error
    return str(commit.commit_url)


def read_trained(path: str | PathLike[str]) -> dict[str, Any]:
    """A checkpoint as of ``read_checkpoint``; of a folder written by ``surf export``, the separator's part of one.

    Raises:
        UserError: it is neither, or is damaged, or its weights are not finite.
    """
    return _read_export(path) if os.path.isdir(path) else read_checkpoint(path)


def _read_export(folder: str | PathLike[str]) -> dict[str, Any]:
    config, weights = Path(folder, CONFIG), Path(folder, WEIGHTS)
    for path in (config, weights):
        if not path.is_file():
            raise UserError(
                f"{folder} holds no {path.name}: give a checkpoint (of a run {folder}/checkpoints/best.ckpt), or a "
                "folder written by surf export"
            )
    try:
        if config.stat().st_size > MAX_CONFIG:
            raise ValueError(f"its {CONFIG} has more than {MAX_CONFIG:,} bytes")
        metadata = json.loads(config.read_text(encoding="utf-8"))
        state = load_file(weights)
    except (ValueError, OSError, MemoryError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read as an exported separator; it is damaged: {error}") from error
    check_record(metadata, config)
    check_finite(state, weights)
    return {KEY: metadata, "state_dict": {key: value for key, value in state.items() if key.startswith(PREFIX)}}
