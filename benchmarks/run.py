"""`make bench`: ratios measured side by side in one run; prints tables and writes benchmarks/results/<device>.json.

python benchmarks/run.py --only loaders assignment      a part or more; the others' results stay as they were
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from machine import Machine
from rows import Row

PARTS = {
    "surf_step": "the SURF step against the paper's Code Listing 1",
    "assignment": "MixIT's search against an enumeration and asteroid, PIT against torchmetrics",
    "resampling": "FIR resampling and NCSN++ against upfirdn",
    "blocks": "a block of TF-Locoformer and of NCSN++ against plain ones",
    "audio": "MB-TFLocoformer and Conv-TasNet, and the separation of files",
    "loaders": "crops a second, and whether workers keep up",
    "shards": "crops from shards against loose files, and the index of many files",
    "growth": "how each grows with B, K, M, T, length and ranks",
    "memory": "what a step of the student holds in memory",
    "epoch": "what an epoch of AudioSet costs",
}
RESULTS = Path(__file__).parent / "results"


def measure(part: str, machine: Machine) -> list[Row]:
    """Run a part and print its rows as they come."""
    print(f"\n{part}: {PARTS[part]}", flush=True)
    rows: list[Row] = []
    for row in importlib.import_module(part).run(machine):
        if not rows or type(row) is not type(rows[-1]):
            print(row.HEADER)
        print(row.line(), flush=True)
        rows.append(row)
    return rows


def save(path: Path, part: str, rows: list[Row], hardware: dict[str, Any]) -> None:
    """Put a part's rows into the file, beside those of the other parts, each with the hardware of its own run."""
    parts = json.loads(path.read_text()) if path.is_file() else {}
    parts[part] = {"hardware": hardware, "rows": [dataclasses.asdict(row) for row in rows]}
    ordered = {name: parts[name] for name in PARTS if name in parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speed, beside plain implementations and the machine's own limits.")
    listed = "; ".join(f"{part}: {what}" for part, what in PARTS.items())
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=listed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files (default: %(default)s)")
    options = parser.parse_args(arguments)

    machine = Machine.measure(torch.device(options.device))
    hardware = machine.description()
    path = options.results / f"{re.sub(r'[^A-Za-z0-9]+', '-', hardware['device']).strip('-')}.json"
    print("\n".join(f"{key}: {value}" for key, value in hardware.items()))
    started = time.monotonic()
    for part in PARTS:
        if part in options.only:
            save(path, part, measure(part, machine), hardware)
    print(f"\n{time.monotonic() - started:.0f} s; written to {path}")


if __name__ == "__main__":
    main()
