"""Separators on the Hugging Face Hub: folders of ``surf export``, by the name of their repository."""

from __future__ import annotations

import os
import re
from os import PathLike
from pathlib import Path

from surf_lightning.errors import UserError
from surf_lightning.inference.export import CONFIG, WEIGHTS

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # user/name
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
    if not os.path.exists(path) and path in shipped():
        return str(SHIPPED / path)
    is_path = os.path.exists(path) or path.endswith(".ckpt") or os.path.isdir(path.split("/")[0])
    if is_path or not REPOSITORY.fullmatch(path):
        return path

    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(path, allow_patterns=[WEIGHTS, CONFIG]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"there is no file {path}, and no such separator on the Hugging Face Hub: {reason}") from error
