"""The printed row of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surf_lightning.reporting.console import result_text

RECORD: dict[str, Any] = {
    "metrics": {"pesq": 2.5, "si_sdr": 12.3949, "dnsmos": None, "estoi": 0.75, "si_sdri": 12.0},
    "average": {"pesq": 1.25, "si_sdr": 0.0, "dnsmos": None, "estoi": 0.5, "si_sdri": 0.0},
    "unavailable": {"dnsmos": "not available, because: there is no network"},
    "protocol": "Three mixtures.",
    "published": "libri2mix",
    "label": "MixIT",
    "data": "Libri2Mix",
    "steps": 2000,
    "seconds": 90.0,
}


def test_the_row_has_the_papers_columns_digits_and_values() -> None:
    lines = [" ".join(line.split()) for line in result_text(Path("run"), "metrics", RECORD).splitlines()]
    assert lines[:6] == [
        "Three mixtures.",
        "",
        "method SI-SDR (dB) ↑ ESTOI ↑ PESQ ↑ DNSMOS ↑ steps minutes",
        "Average (m/K) 0.00 0.500 1.25 n/a",
        "MixIT 12.39 0.750 2.50 n/a 2,000 1.5",
        "in the paper 12.39 0.753 2.52 2.36",
    ]
    assert lines[7] == "SI-SDRi (dB): 12.00"
    assert "The paper's rows: Table 4." in lines
    assert "DNSMOS is not available, because: there is no network" in lines


def test_columns_line_up_and_empty_ones_are_left_out() -> None:
    bare = {key: value for key, value in RECORD.items() if key not in ("average", "steps", "seconds", "published")}
    lines = result_text(Path("run"), "metrics", bare).splitlines()
    heading, row = lines[2:4]
    assert not heading.endswith("minutes")
    assert heading.index("↑") == row.index("12.39") + len("12.39") - 1
    assert len(heading) == len(row)
