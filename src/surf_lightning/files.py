"""Files and folders that are whole at every moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surf_lightning.errors import UserError


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it is complete and moved to ``path``."""
    return path.with_name(f".{path.name}.partial")


def make_writable(folder: Path) -> None:
    """Make ``folder`` where there is none; raises UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``path``, which is not there or empty, when the block ends without error."""
    partial = partial_path(path.absolute())
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """An open file that takes the place of ``path`` when the block ends, in one step: a kill leaves the old or the new.

    An error in the block leaves the old one, and nothing else. ``options`` are those of ``open``.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    partial = partial_path(path)
    try:
        with open(partial, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)  # on a full disk its room is needed
        if isinstance(error, OSError) and error.errno and error.filename in (None, os.fspath(partial)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
