"""Files that are whole at every moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """An open file that takes the place of ``path`` when the block ends, in one step: a kill leaves the old or the new.

    An error in the block leaves the old one, and nothing else. ``options`` are those of ``open``.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    partial = path.with_name(f".{path.name}.partial")
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
