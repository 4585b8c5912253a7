"""Atheris, guided by coverage, on our own parsers of strangers' bytes. ``pip install atheris``; then, for an hour:

``python -m tests.torture.fuzz_parsers -max_total_time=3600``
"""

from __future__ import annotations

import contextlib
import csv
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["surf_lightning"]):
    from surf_lightning.audio.files import is_cut_short
    from surf_lightning.data.audioset import listed_ids
    from surf_lightning.data.fuss import fuss_rows
    from surf_lightning.data.libri2mix import COLUMNS, _listed
    from surf_lightning.files import is_inside, read_yaml
    from surf_lightning.inference.untrusted import load_tensors
    from surf_lightning.reporting.parts import read_results
    from surf_lightning.reporting.runs import read_curves

FILE = Path("eval_example_list.txt")
PARSERS = (
    lambda: is_cut_short(FILE),
    lambda: listed_ids(FILE),
    lambda: all(is_inside(name) or 1 / 0 for row in fuss_rows(Path(), "test") for name in row),
    lambda: all(is_inside(name) or 1 / 0 for row in _listed(FILE, list(COLUMNS)) for name in row),
    lambda: read_yaml(FILE.read_bytes().decode(errors="replace")),
    lambda: load_tensors(FILE),
    lambda: read_results(FILE),
    lambda: read_curves(FILE),
)


def try_one(content: bytes) -> None:
    """The first byte chooses the parser."""
    FILE.write_bytes(content[1:])
    with contextlib.suppress(
        ValueError, RecursionError, TypeError, csv.Error
    ):  # which their callers turn into one line
        PARSERS[content[0] % len(PARSERS) if content else 0]()


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
