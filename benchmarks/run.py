"""`make bench`: ratios measured side by side in one run; prints a table and writes benchmarks/results/<device>.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import assignment
import surf_step
import torch
from timing import hardware


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine, rows = hardware(device), []
    print(machine)
    print(f"{'case':58} {'ours':>10} {'plain':>10} {'ratio':>8} {'bound':>8}")
    for part in (surf_step, assignment):
        for row in part.run(device, small=device.type == "cpu"):
            rows.append(row)
            theirs, ratio, bound = (row.get(key) for key in ("theirs_ms", "ratio", "bound"))
            cells = [
                f"{row['ours_ms']:8.1f}ms",
                f"{theirs:8.1f}ms" if theirs else "",
                f"{ratio:7.2f}x" if ratio else "",
            ]
            print(f"{row['case']:58} {cells[0]:>10} {cells[1]:>10} {cells[2]:>8} {f'{bound:.2f}x' if bound else '':>8}")
    path = Path(__file__).parent / "results" / f"{re.sub(r'[^A-Za-z0-9]+', '-', machine['device'])}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"hardware": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
