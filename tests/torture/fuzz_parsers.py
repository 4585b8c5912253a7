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

SEEDS = (  # one for each parser, which its first byte names
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(16) + b"data\x10\0\0\0" + bytes(16),
    b'# head\n-abcdefghij, 30.000, 40.000, "/m/09x0r"\n',
    b"eval/a.wav\teval/a_sources/background0.wav\n",
    b"mixture_ID,mixture_path,source_1_path,source_2_path,length\n1,/x/a.wav,/x/s1/a.wav,/x/s2/a.wav,1\n",
    b"a: &a [1, {b: c}]\nd: *a\n",
    b"PK\5\6" + bytes(18),
    b'{"metrics": {"psnr": 1.0}, "label": "a", "data": "b", "steps": 3}',
    b"step,epoch,name,value\n1,0,loss,0.5\n",
)
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
    Path("seeds").mkdir()
    for number, content in enumerate(SEEDS):
        Path("seeds", str(number)).write_bytes(bytes([number]) + content)
    atheris.Setup([*sys.argv, "seeds"], try_one)
    atheris.Fuzz()
