"""`surf report`: runs side by side, as one self-contained page and as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def compare_runs(runs: Sequence[Path], output: Path = Path("report")) -> None:
    """Compare runs: write a page and a Markdown file, and print the tables.

    Args:
        runs: the runs' folders, e.g. runs/digits_mixit.
        output: folder for report.html, report.md and its pictures.

    Raises:
        UserError: a folder is no run.
    """
    from surf_lightning.reporting.report import write_report  # imports torch, which help can do without

    write_report(runs, output)


def run_report(args: Sequence[str]) -> None:
    """The command line of `surf report`."""
    parser = argparse.ArgumentParser(prog="surf report", description="Runs side by side: a page and a Markdown file.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, e.g. runs/digits_mixit")
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="folder for report.html, report.md and its pictures"
    )
    options = parser.parse_args(list(args))
    compare_runs(options.runs, options.output)
