"""The tables: in the paper's columns, ranked, with the paper's rows where the data are the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from surf_lightning.reporting.published import SUPERVISED, TABLES
from surf_lightning.reporting.runs import Run, names_of

Mark = Literal["", "best", "second"]
Kind = Literal["average", "unsupervised", "supervised", "published", "group"]


@dataclass(frozen=True)
class Column:
    """A metric: its key in metrics.json, its title, whether more is better (None: not ranked), digits shown."""

    key: str
    title: str
    higher: bool | None
    digits: int

    def text(self, value: float) -> str:
        return f"{value:z.{self.digits}f}"  # without the sign of a negative zero

    @property
    def heading(self) -> str:
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
)
BESIDE = {"is_std", "si_sdri", "MSi"}  # measured, but no columns of the paper


@dataclass(frozen=True)
class Cell:
    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell, ...]
    kind: Kind
    steps: str = ""
    minutes: str = ""


@dataclass(frozen=True)
class Entry:
    """A row before it is ranked."""

    label: str
    shown: str
    kind: Kind
    values: dict[str, Any]
    steps: str = ""
    minutes: str = ""


@dataclass(frozen=True)
class Table:
    """Runs measured alike: the same data and protocol. ``subject`` is the heading of the rows' labels."""

    subject: str
    protocol: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def headings(self) -> list[str]:
        return [self.subject, *(column.heading for column in self.columns), "steps", "minutes"]


def columns_of(records: Sequence[dict[str, Any]]) -> list[Column]:
    """What was measured: the papers' columns in their order, then those unknown to them."""
    keys = {key for record in records for key in record["metrics"]}
    columns = [column for column in COLUMNS if column.key in keys]
    unknown = sorted(keys - {column.key for column in columns} - BESIDE)
    return [*columns, *(Column(key, key, None, 3) for key in unknown)]


def make_table(name: str, runs: Sequence[Run], repetitions: Sequence[Run]) -> Table:
    """The table of the records ``name`` of ``runs``, which are alike in data and protocol."""
    records = [run.records[name] for run in runs]
    columns = columns_of(records)

    entries = []
    if average := next((record["average"] for record in records if record.get("average")), None):
        entries.append(Entry("Average", "Average (m/K)", "average", average))
    for run, shown, record in zip(runs, names_of(runs), records, strict=True):
        label = str(record["label"])
        kind: Kind = "supervised" if label in SUPERVISED else "unsupervised"
        entries.append(Entry(label, shown, kind, record["metrics"], run.facts["steps"], run.facts["minutes"]))
    entries.sort(key=lambda entry: entry.kind == "supervised")

    ranked = ranks(columns, entries, everything=name == "metrics_samples")  # Table 2 ranks BASIS with the others
    published = TABLES.get(records[0].get("published") or "")
    rows = []
    for entry, marks in zip(entries, ranked, strict=True):
        rows.append(Row(entry.shown, cells(columns, entry.values, marks), entry.kind, entry.steps, entry.minutes))
        if published and entry.label in published.rows:
            paper = dict(zip(published.metrics, published.rows[entry.label], strict=True))
            if entry.label in published.deviations:
                paper["is_std"] = published.deviations[entry.label]
            rows.append(Row("in the paper", cells(columns, paper, absent=""), "published"))
    protocol = records[0].get("protocol") or f"{records[0].get('mixtures', '?')} held-out mixtures of {runs[0].data}."
    notes = [f"The paper's rows: {published.source}. {published.note}".rstrip()] if published else []
    notes += [
        *unavailable([run.label for run in runs], records),
        *_spread(name, runs, repetitions),
        *_below_teacher(runs, records),
    ]
    return Table("method", str(protocol), tuple(columns), tuple(rows), tuple(notes))


def cells(
    columns: Sequence[Column], values: dict[str, Any], marks: Sequence[Mark] | None = None, absent: str = "n/a"
) -> tuple[Cell, ...]:
    """``values``, by the columns' keys, as a row shows them; ``absent`` where there is none."""

    def text(column: Column) -> str:
        value = values.get(column.key)
        if value is None:
            return absent
        deviation = values.get(f"{column.key}_std")
        return column.text(value) + (f" ± {column.text(deviation)}" if deviation is not None else "")

    marks = marks or [""] * len(columns)
    return tuple(Cell(text(column), mark) for column, mark in zip(columns, marks, strict=True))


def ranks(columns: Sequence[Column], entries: Sequence[Entry], everything: bool) -> list[list[Mark]]:
    """Marks by row and column. What reads alike is ranked alike."""
    marks: list[list[Mark]] = [[""] * len(columns) for _ in entries]
    takes_part = [everything or entry.kind != "supervised" for entry in entries]
    for place, column in enumerate(columns):
        values = [entry.values.get(column.key) for entry in entries]
        texts = [None if value is None else column.text(value) for value in values]
        rivals = {float(text) for text, takes in zip(texts, takes_part, strict=True) if takes and text is not None}
        if column.higher is None:
            continue
        podium = sorted(rivals, reverse=column.higher)[:2]
        for row, (text, takes) in enumerate(zip(texts, takes_part, strict=True)):
            if takes and text is not None and float(text) in podium:
                marks[row][place] = "best" if float(text) == podium[0] else "second"
    return marks


# -- notes --


def unavailable(names: Sequence[str], records: Sequence[dict[str, Any]]) -> list[str]:
    """A note for each reason, naming the runs it holds for unless it does for all."""
    titles = {column.key: column.title for column in COLUMNS}
    reasons: dict[str, list[str]] = {}
    for name, record in zip(names, records, strict=True):
        for key, reason in record.get("unavailable", {}).items():
            if key not in BESIDE:
                reasons.setdefault(f"{titles.get(key, key)} is {reason}", []).append(name)
    everywhere = len(names)
    return [reason if len(who) == everywhere else f"{', '.join(who)}: {reason}" for reason, who in reasons.items()]


def _main_metric(record: dict[str, Any]) -> str | None:
    return next((key for key in ("psnr", "si_sdr") if record["metrics"].get(key) is not None), None)


def _spread(name: str, runs: Sequence[Run], repetitions: Sequence[Run]) -> list[str]:
    """Mean and deviation of the runs that were repeated with other seeds."""
    notes = []
    for run in runs:
        group = [run, *(other for other in repetitions if other.name == run.name and name in other.records)]
        records = [other.records[name] for other in group]
        key = _main_metric(records[0])
        if len(group) == 1 or key is None or any(record["metrics"].get(key) is None for record in records):
            continue
        values = [record["metrics"][key] for record in records]
        pairs = zip(group, values, strict=True)
        seeds = ", ".join(f"seed {other.facts['seed']}: {value:.2f}" for other, value in pairs)
        note = f"{run.label} over {len(group)} seeds: {mean(values):.2f} ± {stdev(values):.2f} dB ({seeds})."
        if records[0].get("method") == "MixIT":
            note += f" The other rows start from seed {run.facts['seed']}."
        notes.append(note)
    return notes


def _below_teacher(runs: Sequence[Run], records: Sequence[dict[str, Any]]) -> list[str]:
    """Whoever has trained a SURF that is no better than the MixIT it started from must be told."""
    key = _main_metric(records[0])
    if key is None:
        return []
    scores = [(record.get("method"), record["metrics"].get(key)) for record in records]
    teacher = max((score for method, score in scores if method == "MixIT" and score is not None), default=None)
    notes = []
    for run, (method, score) in zip(runs, scores, strict=True):
        if teacher is not None and method == "SURF" and score is not None and score <= teacher:
            longer = " `make digits` gives it that." if run.data == "Digits" else ""
            notes.append(
                f"{run.label} has not overtaken its MixIT teacher after {run.facts['steps']} steps. "
                f"It needs longer training.{longer}"
            )
    return notes


# -- Markdown --


def markdown(table: Table) -> str:
    """The best value of a column in bold, the second underlined, as in the paper."""
    wrap = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}

    def line(row: Row) -> str:
        label = {"supervised": f"*{row.label}*", "published": f"*{row.label}*", "group": f"**{row.label}**"}.get(
            row.kind, row.label
        )
        values = [wrap[cell.mark].format(cell.text) for cell in row.cells]
        return "| " + " | ".join([label, *values, row.steps, row.minutes]) + " |"

    header = "| " + " | ".join(table.headings) + " |"
    rule = "|---|" + "---:|" * (len(table.headings) - 1)
    return "\n".join([header, rule, *map(line, table.rows)]) + "\n"
