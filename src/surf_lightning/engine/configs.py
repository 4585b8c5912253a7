"""The shipped configurations, by name: in a wheel beside the code, in a checkout in ``configs/``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from surf_lightning.errors import UserError


def config_folder() -> Path:
    """Where the shipped configurations lie.

    Raises:
        UserError: this installation has none.
    """
    package = Path(str(files("surf_lightning")))
    for folder in (package / "configs", package.parents[1] / "configs"):
        if folder.is_dir():
            return folder
    raise UserError("this installation of surf-lightning has no configurations: give the path of one")


def shipped_config(name: str) -> Path:
    """The shipped configuration ``name``.

    Raises:
        UserError: there is none of that name.
    """
    path = config_folder() / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"there is no configuration {name}: neither a file nor one of those that `surf configs` lists")
    return path


def summaries() -> dict[str, str]:
    """The names of all shipped configurations, each with the first line of its head."""
    paths = sorted(config_folder().glob("*.yaml"))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in paths}


def with_config_paths(args: Sequence[str]) -> list[str]:
    """``args`` with each ``--config NAME`` that is no file replaced by the path of the shipped configuration.

    Raises:
        UserError: there is neither.
    """
    found = list(args)
    for index, argument in enumerate(found):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals and _is_name(value):
            found[index] = f"{option}={shipped_config(value)}"
        elif not equals and index + 1 < len(found) and _is_name(found[index + 1]):
            found[index + 1] = str(shipped_config(found[index + 1]))
    return found


def _is_name(value: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w-]*", value) is not None and not os.path.exists(value)
