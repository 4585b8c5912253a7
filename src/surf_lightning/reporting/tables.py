"""Tables of runs: which runs stand in one, the notes below it, and its Markdown."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from surf_lightning.engine.checkpoints import SMOOTHED
from surf_lightning.metrics.tables import Column, Results, Row, Table, ranked, results_table
from surf_lightning.reporting.runs import Run, names_of


def group_alike(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """The runs of each table, with the name of their results: only numbers measured alike stand in one table."""
    groups: dict[tuple[str, str, bool], list[Run]] = {}
    for name in sorted({name for run in runs for name in run.results}):
        for run in runs:
            if results := run.results.get(name):
                protocol = results.get("protocol") or results.get("mixtures")
                groups.setdefault((name, str(protocol), bool(results.get("genuine"))), []).append(run)
    return [(name, group) for (name, *_), group in groups.items()]


def make_table(name: str, runs: Sequence[Run], repetitions: Mapping[Path, Sequence[Run]] | None = None) -> Table:
    """The table of the results ``name`` of ``runs``.

    Their ``repetitions`` with other seeds, by the folders of the first, have no rows, but a note.
    """
    results = [run.results[name] for run in runs]
    table = results_table(results, names_of(runs))
    return replace(table, notes=(*table.notes, *_spread(name, runs, repetitions or {}), *_below_teacher(runs, results)))


def momi_table(runs: Sequence[Run]) -> list[Table]:
    """The table of what was validated without truth, if any of ``runs`` was."""
    rows = []
    for name, run in zip(names_of(runs), runs, strict=True):
        if run.results or not (values := list(run.curves.get("val/momi", {}).values())):
            continue
        means = [mean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]
        error = next(iter(reversed(run.curves.get("val/momi_error", {}).values())), None)
        numbers = {"best": max(means), "last": means[-1], "last_error": error}
        rows.append(Row(name, numbers, "unsupervised", run.facts["steps"]))
    columns = (Column("best", "MoMi of best.ckpt (dB)", True, 2), Column("last", "of last.ckpt (dB)", True, 2))
    protocol = (
        "MoMi, how well held-out mixtures are rebuilt from separated mixtures of two of them: the SI-SDR improvement, "
        f"a mean over {SMOOTHED} validations, ± the standard error of one. No true sources are known."
    )
    return [Table("method", protocol, columns, tuple(ranked(columns, rows)))] if rows else []


def _main_metric(results: Results) -> str | None:
    return next((key for key in ("psnr", "si_sdr") if results["metrics"].get(key) is not None), None)


def _spread(name: str, runs: Sequence[Run], repetitions: Mapping[Path, Sequence[Run]]) -> list[str]:
    """Mean and deviation of the runs that were repeated with other seeds."""
    notes = []
    for run in runs:
        group = [run, *(other for other in repetitions.get(run.folder, ()) if name in other.results)]
        key = _main_metric(run.results[name])
        values = [other.results[name]["metrics"].get(key) for other in group]
        if len(group) == 1 or key is None or None in values:
            continue
        pairs = zip(group, values, strict=True)
        seeds = ", ".join(f"seed {other.facts['seed']}: {value:.2f}" for other, value in pairs)
        note = f"{run.label} over {len(group)} seeds: {mean(values):.2f} ± {stdev(values):.2f} dB ({seeds})."
        if run.results[name].get("method") == "MixIT":
            note += f" The other rows start from seed {run.facts['seed']}."
        notes.append(note)
    return notes


def _below_teacher(runs: Sequence[Run], results: Sequence[Results]) -> list[str]:
    """Name the SURF runs that are no better than the MixIT they started from."""
    key = _main_metric(results[0])
    scores = [(each.get("method"), each["metrics"].get(key)) for each in results]
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


def plain(text: str) -> str:
    """``text`` in one line in which Markdown and HTML find no markup."""
    line = html.escape(" ".join(text.split()), quote=False)
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[")


def markdown(table: Table) -> str:
    """``table`` with the best value of a column in bold and the second underlined, as in the paper."""
    marked = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    labels = {"supervised": "*{}*", "published": "*{}*", "group": "**{}**"}

    def line(row: Row) -> str:
        cells = [marked[mark].format(plain(text)) for text, mark in row.cells]
        return " | ".join([labels.get(row.kind, "{}").format(plain(row.label)), *cells, row.steps, row.minutes])

    rule = "|---|" + "---:|" * (len(table.headings) - 1)
    lines = [f"| {line} |" for line in (" | ".join(map(plain, table.headings)), *map(line, table.rows))]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
