"""One measured run in plain text: the row of the paper's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surf_lightning.reporting.runs import Run
from surf_lightning.reporting.tables import BESIDE, make_table

TITLES = {"si_sdri": "SI-SDRi (dB)", "MSi": "MSi (dB)"}


def result_text(folder: Path, name: str, record: dict[str, Any]) -> str:
    """What ``record``, of the run in ``folder``, measured: protocol, table, and what must be known of it.

    ``name`` is that of the record's file, without .json. Columns, their order and digits are those of the papers.
    """
    table = make_table(name, [Run(folder, {name: record})], [])
    rows = ([row.label, *(cell.text for cell in row.cells), row.steps, row.minutes] for row in table.rows)
    lines = [table.headings, *rows]
    kept = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    text = [table.protocol, ""]
    for label, *values in zip(*kept, strict=True):
        cells = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        text.append("  ".join([label.ljust(widths[0]), *cells]))
    beside = {TITLES[key]: record["metrics"][key] for key in TITLES.keys() & record["metrics"].keys() & BESIDE}
    notes = [f"{title}: {value:.2f}" for title, value in beside.items() if value is not None]
    return "\n".join([*text, "", *notes, *table.notes]).rstrip()
