"""Runs put in order: a section a data set, in it a table a protocol, and examples of the same mixtures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure

from surf_lightning.reporting.figures import curves, image_examples, sweep_curves
from surf_lightning.reporting.published import SUPERVISED
from surf_lightning.reporting.runs import RECORDS, Run
from surf_lightning.reporting.sounds import SoundExample, sound_examples
from surf_lightning.reporting.sweeps import Sweep, find_sweeps, sweep_table
from surf_lightning.reporting.tables import Table, make_table


@dataclass(frozen=True)
class SweepReport:
    """What a sweep shows: a table a protocol, and learning curves."""

    title: str
    tables: tuple[Table, ...]
    curves: Figure | None


@dataclass(frozen=True)
class Section:
    """All there is to say of the runs on one data set."""

    data: str
    runs: tuple[Run, ...]
    tables: tuple[Table, ...]
    curves: Figure | None
    images: Figure | None
    sounds: tuple[SoundExample, ...]
    sweeps: tuple[SweepReport, ...]
    missing: tuple[str, ...]


def make_sections(runs: Sequence[Run]) -> list[Section]:
    """A section for each data set, in the order of the first run on it."""
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data, []).append(run)
    return [_section(data, group) for data, group in by_data.items()]


def _section(data: str, everything: Sequence[Run]) -> Section:
    firsts = {run.name for run in everything if not run.is_repetition}
    runs = [run for run in everything if not (run.is_repetition and run.name in firsts)]
    repetitions = [run for run in everything if run not in runs]
    runs.sort(key=lambda run: run.label in SUPERVISED)  # apart, as in the table
    sweeps = find_sweeps(runs)
    runs = [run for run in runs if not any(run in sweep.changed for sweep in sweeps)]
    shown = _with_the_same_mixtures(runs)
    is_image = bool(shown) and shown[0].examples["mixtures"][0].ndim == 3
    missing = [f"{run.folder}: {'; '.join(run.missing)}." for run in everything if run.missing]
    other = [str(run.folder) for run in runs if run.examples and run not in shown]
    if other:
        missing.append(f"{', '.join(other)}: no examples, for its mixtures are not those of {shown[0].folder}.")
    tables = [make_table(name, group, repetitions) for name, group in _alike(runs)]
    return Section(
        data,
        tuple(everything),
        tuple(tables),
        curves(runs, repetitions),
        image_examples(shown) if is_image else None,
        tuple(sound_examples(shown)) if shown and not is_image else (),
        tuple(_sweep(sweep, {table.protocol for table in tables}) for sweep in sweeps),
        tuple(missing),
    )


def _sweep(sweep: Sweep, said: set[str]) -> SweepReport:
    """``said``: the protocols that need not be said again."""
    tables = [sweep_table(name, sweep, group) for name, group in _alike(sweep.runs)]
    tables = [replace(table, protocol="") if table.protocol in said else table for table in tables]
    return SweepReport(f"{sweep.label} with one setting changed", tuple(tables), sweep_curves(sweep.groups))


def _alike(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Numbers stand in one table only where they were measured alike: the records' name, and the runs with these."""
    alike: dict[tuple[str, str], list[Run]] = {}
    for name in RECORDS:
        for run in runs:
            if record := run.records.get(name):
                protocol = record.get("protocol") or record.get("mixtures")
                alike.setdefault((name, str(protocol)), []).append(run)
    return [(name, group) for (name, _), group in alike.items()]


def _with_the_same_mixtures(runs: Sequence[Run]) -> list[Run]:
    """Those of ``runs`` whose examples can stand side by side: of the same mixtures as the first's."""
    with_examples = [run for run in runs if run.examples]

    def is_like_the_first(run: Run) -> bool:
        mine, first = (list(each.examples["mixtures"]) for each in (run, with_examples[0]))
        return len(mine) == len(first) and all(torch.equal(x, y) for x, y in zip(mine, first, strict=True))

    return [run for run in with_examples if is_like_the_first(run)]
