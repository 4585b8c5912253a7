"""Run folders: what of their contents is there and can be read."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from surf_lightning import methods
from surf_lightning.engine.loggers import COLUMNS
from surf_lightning.errors import UserError, first_line
from surf_lightning.files import own_file, read_yaml
from surf_lightning.metrics.tables import Results, cost
from surf_lightning.reporting.parts import read_config, read_examples, read_results

Value = TypeVar("Value")
ASIDE = re.compile(r"\.\d+$")  # an earlier run that a later one has moved aside
DEPTH = 3  # of folders of runs in folders of runs
LONG = ("hardware", "commit", "version", "checkpoint")  # facts that are said once if they hold for all runs
STEP = len("step_0000000")
Curves = dict[str, dict[int, float]]
"""Values by step, by name."""


@dataclass(frozen=True)
class Run:
    """A run's folder and its parts. A part that is not there is empty, and ``missing`` says so."""

    folder: Path
    results: dict[str, Results] = field(default_factory=dict)
    """What ``surf test`` wrote, by the file's name without .json."""
    examples: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    curves: Curves = field(default_factory=dict)
    media: tuple[Path, ...] = ()
    """Pictures and sounds of the latest validation."""
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read what is there.

        Raises:
            UserError: nothing of a run is there.
        """
        missing: list[str] = []

        def read(name: str, how: Callable[[Path], Value], nothing: Value, hint: str) -> Value:
            path = folder / name
            if not os.path.lexists(path):
                missing.append(f"no {name}{hint}")
                return nothing
            try:
                return how(own_file(folder, path))
            except Exception as error:  # of any type: the file may be anything
                missing.append(f"{name} cannot be read: {first_line(error)}")
                return nothing

        config = read("config.yaml", read_config, "", ": surf fit writes it")
        curves = read("metrics.csv", read_curves, Curves(), ": the run was not logged to it")
        tests = sorted(path.name for path in folder.glob("metrics*.json"))
        hint, nothing = ": surf test writes it", dict[str, Any]()
        results, examples = {}, nothing
        if tests or "val/momi" not in curves:  # which a fit logs where there is no truth to test against
            results = {name: read(name, read_results, nothing, hint) for name in tests or ["metrics.json"]}
            examples = read("test_examples.pt", read_examples, nothing, hint)
        run = cls(
            folder,
            {name.removesuffix(".json"): each for name, each in results.items() if each},
            examples,
            config,
            curves,
            _latest(folder / "media"),
            tuple(missing),
        )
        if not (run.results or run.examples or run.config or run.curves):
            raise UserError(f"{folder} is no run: there is nothing in it that surf fit or surf test has written")
        return run

    @property
    def tested(self) -> Results:
        """What the first of its tests wrote; empty where there is none."""
        return next(iter(self.results.values()), {})

    @property
    def label(self) -> str:
        """The method's name; the folder's where not even a configuration tells it."""
        return str(self.tested.get("label") or _method_label(self.settings) or self.folder.name)

    @property
    def needs_sources(self) -> bool:
        """Whether its method learns from true sources."""
        method = getattr(methods, _part(self.settings, "model")[0], None)
        return bool(self.tested.get("needs_sources", getattr(method, "needs_sources", False)))

    @property
    def data(self) -> str:
        """The data set's name."""
        return str(self.tested.get("data") or _part(self.settings, "data")[0] or "unknown data")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as nested dicts."""
        return _settings(self.config)

    @property
    def seed(self) -> Any:
        """The one it was trained from."""
        return self.settings.get("seed_everything", self.tested.get("seed"))

    @property
    def pace(self) -> float | None:
        """Minutes a step, on average over the training; None where no test has said them."""
        seconds, steps = self.tested.get("seconds"), self.tested.get("steps")
        return float(seconds / steps / 60) if seconds and steps else None

    @property
    def unfinished(self) -> str:
        """What to know of a SURF run whose beta has not fallen to its end, else nothing."""
        given = _part(self.settings, "model")[1].get("beta_end", 0.0)
        end = float(given) if isinstance(given, int | float) else 0.0
        last = list(self.curves.get("beta", {0: end}).values())[-1]
        if last <= end + 0.05:
            return ""
        return f"beta has fallen to {last:.2f} only, not to {end:g}: MixIT still led the student"

    @property
    def facts(self) -> dict[str, str]:
        """Seed, steps, minutes, hardware, commit, version: of the training where that is known, else of the test."""
        results = self.tested
        header = dict(re.findall(r"^# (\w+): (.*)$", self.config, re.MULTILINE))
        last_step = max((max(curve) for curve in self.curves.values()), default=-1) + 1
        known = {
            "seed": self.seed,
            **dict(zip(("steps", "minutes"), cost({"steps": last_step, **results}), strict=True)),
            **{name: header.get(name, results.get(name)) for name in ("hardware", "commit", "version")},
            "checkpoint": str(results.get("checkpoint", "")).removeprefix(f"{self.folder}/"),
        }
        return {name: "" if value is None else str(value) for name, value in known.items()}


def runs_in(folder: Path, depth: int = DEPTH) -> list[Path]:
    """``folder``, or, where it is no run, those in it and in its folders, without those that were moved aside."""
    parts = ("checkpoints", "config.yaml", "metrics.csv", "test_examples.pt")
    if any((folder / part).exists() for part in parts) or any(folder.glob("metrics*.json")):
        return [folder]
    inside = sorted(folder.iterdir()) if folder.is_dir() and depth else []
    inner = [path for path in inside if path.is_dir() and path.name[0] != "." and not ASIDE.search(path.name)]
    return [run for path in inner for run in runs_in(path, depth - 1)]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Names that tell ``runs`` apart: their labels, with their folders where labels are alike."""
    labels = Counter(run.label for run in runs)
    return [f"{run.label}, {run.folder.name}" if labels[run.label] > 1 else run.label for run in runs]


def facts_in_common(runs: Sequence[Run]) -> tuple[dict[str, str], list[str]]:
    """The long facts that hold for all of ``runs``, and the names of the others, which are said of each run."""
    facts = [run.facts for run in runs]
    names = [name for name in facts[0] if any(each[name] for each in facts)]
    common = {name: facts[0][name] for name in names if name in LONG and len({each[name] for each in facts}) == 1}
    if len(runs) == 1:
        common = {}
    return common, [name for name in names if name not in common]


def _settings(config: str) -> dict[str, Any]:
    return read_yaml(config) if config.strip() else {}


def _method_label(settings: dict[str, Any]) -> str:
    """The name of a configuration's method."""
    name, arguments = _part(settings, "model")
    method: Any = getattr(methods, name, None)
    try:
        if hasattr(method, "label_of"):
            return method.label_of(arguments.get("objective", "remixit"))
    except (KeyError, TypeError, ValueError):  # a stranger's configuration may say anything
        return name
    return str(getattr(method, "label", name))


def _part(settings: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The class of a configuration's ``name``, model or data, without its module, and its arguments."""
    part = settings.get(name)
    kind, arguments = (part.get("class_path"), part.get("init_args")) if isinstance(part, dict) else ("", {})
    return str(kind).rpartition(".")[2], arguments if isinstance(arguments, dict) else {}


def _latest(media: Path) -> tuple[Path, ...]:
    inside = media.parent.resolve()  # no link may show what lies elsewhere
    files = sorted(path for path in media.glob("step_*") if path.resolve().is_relative_to(inside) and path.is_file())
    return tuple(path for path in files if path.name[:STEP] == files[-1].name[:STEP])


def read_curves(path: Path) -> Curves:
    """The numbers of a metrics.csv by name and step. A resumed run may log a step again: the last value counts.

    Raises:
        ValueError: it is no such table.
    """
    curves: Curves = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())  # a kill may have cut off the last line
    if (columns := tuple(next(rows, COLUMNS))) != COLUMNS:
        raise ValueError(f"its columns are {', '.join(columns)[:99]}, not {', '.join(COLUMNS)}")
    for step, _, name, value in rows:
        if math.isfinite(number := float(value)):
            curves.setdefault(name, {})[int(step)] = number
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}
