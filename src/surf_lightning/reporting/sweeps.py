"""Sweeps: runs of one method that differ in one setting each, tabulated in the form of the paper's Table 9."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from surf_lightning.files import own_file, read_yaml
from surf_lightning.metrics.tables import Row, Table, columns_of, measured_row, paper_row, paper_table, ranked
from surf_lightning.reporting.parts import read_config
from surf_lightning.reporting.runs import Run

EARLIER = ("model.init_args.mixit_checkpoint", "model.init_args.flow_checkpoint")
FIRST_COLUMNS = ("psnr", "ssim", "lpips")  # those of Table 9
UNSEEN = {"name", "ckpt_path", "weights_only", "seed_everything", "checkpoints", "data.init_args.root"}
UNSEEN |= {"trainer.logger", "trainer.default_root_dir", "model.init_args.micro_batch", "model.init_args.compile"}
UNSEEN |= {f"data.init_args.{name}" for name in ("num_workers", "weights", "evaluation", "num_test")}
"""Arguments that do not change what is learned; neither do the switches ``trainer.enable_*``."""


class Setting(NamedTuple):
    """Arguments of a configuration, by their dotted names, that mean one thing together."""

    title: str
    keys: tuple[str, ...]
    text: Callable[..., str]

    def say(self, values: dict[str, Any]) -> str:
        """Its value in a configuration; as it stands there, if it is of another kind than expected."""
        mine = [values.get(key) for key in self.keys]
        try:
            return self.text(*mine)
        except (TypeError, ValueError, OverflowError):
            return ", ".join(map(str, mine))


def _schedule(start: float, end: float, steps: float) -> str:
    length = f"{steps:.0%} of the run" if isinstance(steps, float) else f"{steps:,} steps"
    return f"{start:g}" if start == end else f"{start:g} to {end:g} in {length}"


SETTINGS = (  # of Table 9
    Setting("EMA decay α", ("model.init_args.ema_decay",), "{:g}".format),
    Setting("batch size B", ("data.init_args.batch_size",), "{:g}".format),
    Setting("teacher's β", tuple(f"model.init_args.beta_{part}" for part in ("start", "end", "steps")), _schedule),
)


@dataclass(frozen=True)
class Sweep:
    """Runs of the method ``label``, by the title of the changed setting and its value.

    ``centre`` is the run that changes nothing, if there is one: it has a place in every group.
    """

    label: str
    groups: dict[str, dict[str, Run]]
    centre: Run | None

    @property
    def changed(self) -> list[Run]:
        """The runs that change a setting."""
        return [run for group in self.groups.values() for run in group.values() if run is not self.centre]

    @property
    def runs(self) -> list[Run]:
        """All runs, each once."""
        return ([self.centre] if self.centre else []) + self.changed


def find_sweeps(runs: Sequence[Run]) -> list[Sweep]:
    """The sweeps among ``runs`` of one data set, at most one a method.

    The centre of a sweep has the values that are most common among the method's runs; an argument that another version
    did not have counts as unchanged. A run that changes two settings of the centre, or none, belongs to no sweep.
    """
    methods: dict[str, list[Run]] = {}
    for run in runs:
        if run.settings:
            methods.setdefault(run.label, []).append(run)
    return [sweep for label, group in methods.items() if (sweep := _sweep(label, group))]


def _sweep(label: str, runs: Sequence[Run]) -> Sweep | None:
    values = [_flat(run.settings) for run in runs]
    names = list(dict.fromkeys(name for each in values for name in each))
    usual = {name: _most_common([each[name] for each in values if name in each]) for name in names}
    places: dict[Setting, dict[str, Run]] = {}
    centre: Run | None = None
    for run, mine in zip(runs, values, strict=True):
        settings = {_setting(name) for name in mine if mine[name] != usual[name]}
        if not settings:
            centre = centre or run
        elif len(settings) == 1:
            (setting,) = settings
            places.setdefault(setting, {}).setdefault(setting.say(usual | mine), run)
    groups = {}
    for setting in dict.fromkeys([*SETTINGS, *places]):  # the paper's first
        if setting in places:
            group = ({setting.say(usual): centre} if centre else {}) | places[setting]
            groups[setting.title] = dict(sorted(group.items(), key=lambda place: _size(place[0])))
    return Sweep(label, groups, centre) if groups else None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name, without the unseen ones; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in UNSEEN or name.startswith("trainer.enable_"):
            continue
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def repetitions(runs: Sequence[Run]) -> dict[Path, list[Run]]:
    """The ``runs`` that repeat an earlier one of them with another seed, by the folder of that one."""
    firsts: dict[tuple[str, ...], Run] = {}
    found: dict[Path, list[Run]] = {}
    for run in runs:
        first = firsts.setdefault((run.data, run.label, _recipe(run.settings)), run) if run.settings else run
        seeds = {first.seed, *(other.seed for other in found.get(first.folder, []))}
        if run.seed not in seeds:
            found.setdefault(first.folder, []).append(run)
    return found


def _recipe(settings: dict[str, Any], depth: int = 3) -> str:
    """All that is learned from but the seed: an earlier stage counts as its recipe where that can be read."""
    flat = _flat(settings)
    for name in EARLIER:
        if flat.get(name) and depth:
            folder = Path(str(flat[name])).parent.parent
            with suppress(OSError, ValueError):
                config = read_config(own_file(folder, folder / "config.yaml"))
                flat[name] = _recipe(read_yaml(config), depth - 1)
    return json.dumps(flat, sort_keys=True, default=str)


def _most_common(values: Sequence[Any]) -> Any:
    """The most frequent value, the first of several; values need not be hashable."""
    texts = [json.dumps(value, default=str, skipkeys=True) for value in values]
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def _setting(name: str) -> Setting:
    """The paper's setting that the argument ``name`` belongs to, else one of its own."""
    own = Setting(".".join(part for part in name.split(".") if part not in ("model", "init_args")), (name,), str)
    return next((setting for setting in SETTINGS if name in setting.keys), own)


def _size(text: str) -> tuple[bool, float, str]:
    """Sorts numbers by size, and after them what is no number, such as a schedule."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def sweep_table(name: str, sweep: Sweep, runs: Sequence[Run]) -> Table:
    """The results ``name`` of ``runs`` of ``sweep``, which were measured alike: ranked within each setting."""
    results = [run.results[name] for run in runs]
    columns = columns_of(results)
    columns.sort(key=lambda column: FIRST_COLUMNS.index(column.key) if column.key in FIRST_COLUMNS else 9)
    paper = (paper_table(results[0]) or {}).get("sweeps", {"rows": {}})
    rows = []
    for title, group in sweep.groups.items():
        block = [Row(title, {}, "group")]
        for text, run in group.items():
            if run in runs:
                unchanged = " (unchanged)" if run is sweep.centre else ""
                block.append(measured_row(text + unchanged, "unsupervised", run.results[name]))
                if published := paper["rows"].get(sweep.label, {}).get(title, {}).get(text):
                    block.append(paper_row(paper, published))
        rows += ranked(columns, block)
    notes = (f"The paper's rows: {paper['source']}.",) if any(row.kind == "published" for row in rows) else ()
    return Table("setting", str(results[0].get("protocol", "")), tuple(columns), tuple(rows), notes)
