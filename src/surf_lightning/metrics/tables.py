"""Results in the form of the papers' tables: columns, ranks, and the paper's rows where the data are the paper's."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

Results = dict[str, Any]
"""What a test wrote: metrics.json of a run."""

BESIDE = {"si_sdri": "SI-SDRi (dB)", "MSi": "MSi (dB)"}
"""Metrics that are measured and are no columns of the papers."""
MEASURED = ("average", "unsupervised", "supervised")


@dataclass(frozen=True)
class Column:
    """A metric: its key in the results, its title, whether more is better (None: not ranked), the digits shown."""

    key: str
    title: str
    higher: bool | None
    digits: int

    def text(self, value: float) -> str:
        """``value`` as the table shows it; a small one that is not ranked, such as a loss, in its own digits."""
        if self.higher is None and 0 < abs(value) < 10.0 ** (1 - self.digits):
            return f"{value:.3g}"
        return f"{value:z.{self.digits}f}"  # without the sign of a negative zero

    @property
    def heading(self) -> str:
        """The title with an arrow to where the best values are."""
        return self.title if self.higher is None else f"{self.title} {'↑' if self.higher else '↓'}"


COLUMNS = (  # in the order of the papers' tables
    Column("psnr", "PSNR (dB)", True, 2),
    Column("lpips", "LPIPS", False, 3),
    Column("ssim", "SSIM", True, 3),
    Column("is", "Inception Score", True, 2),
    Column("fid", "FID", False, 2),
    *(Column(key, f"{key} (dB)", True, 2) for key in ("1S", "2Si", "3Si", "4Si")),
    Column("under", "Under", False, 3),
    Column("equal", "Equal", True, 3),
    Column("over", "Over", False, 3),
    Column("si_sdr", "SI-SDR (dB)", True, 2),
    Column("estoi", "ESTOI", True, 3),
    Column("pesq", "PESQ", True, 2),
    Column("dnsmos", "DNSMOS", True, 2),
    Column("momi", "MoMi (dB)", True, 2),
    Column("si_sdri", "SI-SDRi (dB)", True, 2),  # where a paper's table has it, else beside the table
)


@dataclass(frozen=True)
class Row:
    """A row: ``values`` by the columns' keys, and ``cells``, (text, "best", "second" or ""), which ``ranked`` fills.

    ``kind``: average, unsupervised, supervised; mean (of samples, not ranked); published (the paper's); group (a
    heading of the rows below it).
    """

    label: str
    values: dict[str, Any]
    kind: str
    steps: str = ""
    minutes: str = ""
    cells: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows that were measured alike: the same data and protocol. ``subject`` is the heading of the rows' labels."""

    subject: str
    protocol: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def headings(self) -> list[str]:
        """All headings, those of the cost included."""
        return [self.subject, *(column.heading for column in self.columns), "steps", "minutes"]


# -- the paper's tables --


@functools.cache
def paper_tables() -> list[dict[str, Any]]:
    """The contents of paper_tables.yaml, which says what they mean."""
    path = importlib.resources.files("surf_lightning.metrics") / "paper_tables.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def paper_table(results: Results) -> dict[str, Any] | None:
    """The paper's table of the same data, measured by the same protocol; None where there is none.

    No stand-in for a data set has the paper's numbers beside it.
    """

    def has(name: str, wanted: Any) -> bool:
        return results.get(name) in (wanted if isinstance(wanted, list) else [wanted])

    found = (table for table in paper_tables() if all(has(*fact) for fact in table["facts"].items()))
    return next(found, None) if results.get("genuine") else None


def paper_row(table: dict[str, Any], values: Sequence[float], deviation: float | None = None) -> Row:
    """A row of ``table`` to stand below the measured one; ``deviation`` is that of its first metric."""
    metrics = table["metrics"]
    return Row("in the paper", {**dict(zip(metrics, values, strict=True)), f"{metrics[0]}_std": deviation}, "published")


# -- rows and columns --


def columns_of(results: Sequence[Results], paper: dict[str, Any] | None = None) -> list[Column]:
    """The papers' columns that were measured or that ``paper`` expects, in their order, then other metrics."""
    keys = {key for each in results for key in each["metrics"]} - BESIDE.keys()
    keys |= set(paper.get("columns", paper["metrics"]) if paper else ())
    columns = [column for column in COLUMNS if column.key in keys]
    others = sorted(keys - {column.key for column in columns} - {"is_std", "momi_error"})
    return [*columns, *(Column(key, key, None, 3) for key in others)]


def cost(results: Results) -> tuple[str, str]:
    """The steps and minutes of a run's training, empty where they are not known."""
    steps, seconds = results.get("steps"), results.get("seconds")
    return f"{steps:,}" if steps else "", f"{seconds / 60:.1f}" if seconds else ""


def measured_row(label: str, kind: str, results: Results) -> Row:
    """The row of a run's results."""
    return Row(label, results["metrics"], kind, *cost(results))


def ranked(columns: Sequence[Column], rows: Sequence[Row], kinds: Sequence[str] = MEASURED) -> list[Row]:
    """``rows`` with their cells, the best and the second best of those of ``kinds`` marked.

    What reads alike is ranked alike. A measured row has n/a where there is no value.
    """
    podiums: list[list[float]] = []
    for column in columns:
        values = [row.values.get(column.key) for row in rows if row.kind in kinds]
        texts = {float(column.text(value)) for value in values if value is not None}
        podiums.append([] if column.higher is None else sorted(texts, reverse=column.higher)[:2])

    def cell(row: Row, column: Column, podium: list[float]) -> tuple[str, str]:
        value, deviation = row.values.get(column.key), row.values.get(f"{column.key}_std")
        deviation = row.values.get(f"{column.key}_error") if deviation is None else deviation
        if value is None:
            return "n/a" if row.kind in MEASURED else "", ""
        text = column.text(value)
        place = podium.index(float(text)) if row.kind in kinds and float(text) in podium else None
        shown = text if deviation is None else f"{text} ± {column.text(deviation)}"
        return shown, "" if place is None else ("best", "second")[place]

    pairs = list(zip(columns, podiums, strict=True))
    return [replace(row, cells=tuple(cell(row, *pair) for pair in pairs)) for row in rows]


def results_table(results: Sequence[Results], names: Sequence[str]) -> Table:
    """The table of ``results``, which are alike in data and protocol; ``names`` are what their rows are called."""
    paper = paper_table(results[0])
    columns = columns_of(results, paper)
    rows: list[tuple[str, Row]] = []
    below: list[tuple[str, Row]] = []  # the supervised ones stand below the others
    if average := next((each["average"] for each in results if each.get("average")), None):
        rows.append(("Average", Row("Average (m/K)", average, "average")))
    for name, each in zip(names, results, strict=True):
        kind = "supervised" if each.get("needs_sources") else "unsupervised"
        place = below if kind == "supervised" else rows
        place.append((each["label"], measured_row(name, kind, each)))
        if mean := each.get("mean_of_samples"):
            title = f"{name}, mean of {mean['num_samples']} samples"
            place.append(("", Row(title, mean["metrics"], "mean")))
    with_paper = []
    for label, row in rows + below:
        with_paper.append(row)
        if paper and label in paper["rows"]:
            with_paper.append(paper_row(paper, paper["rows"][label], paper.get("std", {}).get(label)))
    is_table_2 = results[0].get("evaluation") == "SampleMetrics"  # which ranks BASIS with the others
    shown = ranked(columns, with_paper, MEASURED if is_table_2 else MEASURED[:2])
    count, data = results[0].get("mixtures", "?"), results[0]["data"]
    protocol = results[0].get("protocol") or f"{count} held-out mixtures of {data}."
    notes = (f"The paper's rows: {paper['source']}. {paper.get('note', '')}".rstrip(),) if paper else ()
    return Table("method", protocol, tuple(columns), tuple(shown), notes)
