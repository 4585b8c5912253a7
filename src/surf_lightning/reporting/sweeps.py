"""Sweeps: runs of one method that differ in one setting each, tabulated in the form of the paper's Table 9."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from surf_lightning.reporting.published import ABLATIONS, TABLE_9
from surf_lightning.reporting.runs import Run
from surf_lightning.reporting.tables import Entry, Row, Table, cells, columns_of, ranks, unavailable

UNSEEN = {"name", "ckpt_path", "weights_only", "seed_everything", "checkpoints", "data.init_args.root"}
UNSEEN |= {"trainer.logger", "trainer.default_root_dir", "model.init_args.micro_batch", "model.init_args.compile"}
UNSEEN |= {f"data.init_args.{name}" for name in ("num_workers", "weights", "evaluation", "num_test")}
"""Of a configuration: what does not change what is learnt. Nor do the switches ``trainer.enable_*``."""


@dataclass(frozen=True)
class Setting:
    """Arguments of a configuration, by their dotted names, that mean one thing together."""

    title: str
    keys: tuple[str, ...]
    text: Callable[..., str]

    def say(self, values: dict[str, Any]) -> str:
        """Its value in a configuration; as it stands there, if it is of another kind than expected."""
        mine = [values.get(key) for key in self.keys]
        try:
            return self.text(*mine)
        except (TypeError, ValueError):
            return ", ".join(map(str, mine))


def _number(value: float) -> str:
    return f"{value:g}"


def _schedule(start: float, end: float, steps: int) -> str:
    return f"{start:g}" if start == end else f"{start:g} to {end:g} in {steps:,} steps"


SETTINGS = (
    Setting("EMA decay α", ("model.init_args.ema_decay",), _number),
    Setting("batch size B", ("data.init_args.batch_size",), _number),
    Setting("teacher's β", tuple(f"model.init_args.beta_{part}" for part in ("start", "end", "steps")), _schedule),
)


@dataclass(frozen=True)
class Sweep:
    """Runs labelled ``label`` by the setting's title and its value; ``centre``, if run, has a place in every group."""

    label: str
    groups: dict[str, dict[str, Run]]
    centre: Run | None

    @property
    def changed(self) -> list[Run]:
        return [run for group in self.groups.values() for run in group.values() if run is not self.centre]

    @property
    def runs(self) -> list[Run]:
        return ([self.centre] if self.centre else []) + self.changed


def find_sweeps(runs: Sequence[Run]) -> list[Sweep]:
    """The sweeps among ``runs`` of one data set, one a method at most.

    Its centre has the values that are commonest among the method's runs; an argument that another version did not have
    counts as unchanged. What differs from the centre in two settings, or not at all, belongs to no sweep.
    """
    methods: dict[str, list[Run]] = {}
    for run in runs:
        if run.settings:
            methods.setdefault(run.label, []).append(run)
    return [sweep for label, group in methods.items() if (sweep := _sweep(label, group))]


def _sweep(label: str, runs: Sequence[Run]) -> Sweep | None:
    values = [_flat(run.settings) for run in runs]
    names = list(dict.fromkeys(name for each in values for name in each))
    usual = {name: _commonest([each[name] for each in values if name in each]) for name in names}
    places: dict[Setting, dict[str, Run]] = {}
    centre: Run | None = None
    for run, mine in zip(runs, values, strict=True):
        settings = {_setting(name) for name in mine if mine[name] != usual[name]}
        if not settings:
            centre = centre or run
        elif len(settings) == 1:
            (setting,) = settings
            places.setdefault(setting, {}).setdefault(setting.say(usual | mine), run)
    if not places:
        return None
    groups = {}
    for setting in dict.fromkeys([*SETTINGS, *places]):  # the paper's first
        if setting in places:
            group = ({setting.say(usual): centre} if centre else {}) | places[setting]
            groups[setting.title] = dict(sorted(group.items(), key=lambda place: _rank(place[0])))
    return Sweep(label, groups, centre)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name, without those that mean nothing; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix + key
        if name in UNSEEN or name.startswith("trainer.enable_"):
            continue
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _commonest(values: Sequence[Any]) -> Any:
    """The most frequent of them, the first of these: values need not be hashable."""
    (text, _), *_ = Counter(json.dumps(value, default=str) for value in values).most_common(1)
    return next(value for value in values if json.dumps(value, default=str) == text)


def _setting(name: str) -> Setting:
    """The setting that the argument ``name`` belongs to: one of its own, if it is none of the paper's."""
    for setting in SETTINGS:
        if name in setting.keys:
            return setting
    return Setting(".".join(part for part in name.split(".") if part not in ("model", "init_args")), (name,), str)


def _rank(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then what is none, as a schedule."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def sweep_table(name: str, sweep: Sweep, runs: Sequence[Run]) -> Table:
    """The records ``name`` of those runs of ``sweep`` that are in ``runs``, which are alike in protocol.

    Ranked within each setting, as in Table 9; its columns come first.
    """
    records = [run.records[name] for run in runs]
    columns = sorted(columns_of(records), key=lambda column: TABLE_9.index(column.key) if column.key in TABLE_9 else 9)
    published = ABLATIONS.get(records[0].get("published") or "", {}).get(sweep.label, {})
    rows = []
    for title, group in sweep.groups.items():
        there = {text: run for text, run in group.items() if run in runs}
        rows.append(Row(title, cells(columns, {}, absent=""), "group"))
        entries = [
            Entry(text, text, "unsupervised", run.records[name]["metrics"], run.facts["steps"], run.facts["minutes"])
            for text, run in there.items()
        ]
        for entry, marks in zip(entries, ranks(columns, entries, everything=True), strict=True):
            kept = " (unchanged)" if there[entry.label] is sweep.centre else ""
            shown = cells(columns, entry.values, marks)
            rows.append(Row(entry.shown + kept, shown, entry.kind, entry.steps, entry.minutes))
            if paper := published.get(title, {}).get(entry.label):
                values = dict(zip(TABLE_9, paper, strict=True))
                rows.append(Row("in the paper", cells(columns, values, absent=""), "published"))
    notes = ["The paper's rows: Table 9."] if any(row.kind == "published" for row in rows) else []
    notes += unavailable([run.folder.name for run in runs], records)
    return Table("setting", str(records[0].get("protocol", "")), tuple(columns), tuple(rows), tuple(notes))
