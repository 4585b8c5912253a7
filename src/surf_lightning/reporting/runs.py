"""What a run left in its folder, as far as it is there."""

from __future__ import annotations

import csv
import functools
import json
import math
import pickle
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from surf_lightning.errors import UserError

Value = TypeVar("Value")
SEED = re.compile(r"_seed\d+$")  # runs/digits_mixit_seed1 repeats runs/digits_mixit
LONG = ("hardware", "commit", "version", "checkpoint")
RECORDS = ("metrics", "metrics_samples")
Curves = dict[str, dict[int, float]]
"""Values by step, by name."""


@dataclass(frozen=True)
class Run:
    """A run's folder and what is in it: a part that is not there is empty, and ``missing`` says so."""

    folder: Path
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What ``surf test`` wrote, by the file's name without .json."""
    examples: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    curves: Curves = field(default_factory=dict)
    media: tuple[Path, ...] = ()
    """Pictures and sounds of its latest validation."""
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises UserError where nothing of a run is there."""
        missing: list[str] = []

        def read(name: str, how: Callable[[Path], Value], nothing: Value, hint: str) -> Value:
            path = folder / name
            if not path.is_file():
                missing.append(f"no {name}{hint}")
                return nothing
            try:
                return how(path)
            except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                missing.append(f"{name} cannot be read: {error}")
                return nothing

        config = read("config.yaml", Path.read_text, "", ": surf fit writes it")
        names = [name for name in RECORDS if (folder / f"{name}.json").is_file()]
        test = ": surf test writes it"
        nothing: dict[str, Any] = {}
        records, examples = {}, nothing
        if names or not re.search(r"^  class_path: surf_lightning\.data\.Folder$", config, re.MULTILINE):
            records = {name: read(f"{name}.json", _record, nothing, test) for name in names or RECORDS[:1]}
            load = functools.partial(torch.load, map_location="cpu", weights_only=True)
            examples = read("test_examples.pt", load, nothing, test)
        run = cls(
            folder,
            {name: record for name, record in records.items() if record},
            examples,
            config,
            read("metrics.csv", read_curves, {}, ": the run was not logged to it"),
            _latest(folder / "media"),
            tuple(missing),
        )
        if not (run.records or run.examples or run.config or run.curves):
            raise UserError(f"{folder} is no run: there is nothing in it that surf fit or surf test has written")
        return run

    @property
    def name(self) -> str:
        """The folder's name without the suffix of a repetition with another seed."""
        return SEED.sub("", self.folder.name)

    @property
    def is_repetition(self) -> bool:
        return self.name != self.folder.name

    @property
    def label(self) -> str:
        """The method's name; for a run that was never tested the folder's."""
        return next((str(record["label"]) for record in self.records.values()), self.folder.name)

    @property
    def data(self) -> str:
        """The data set's name."""
        for record in self.records.values():
            return str(record["data"])
        return str(self.settings.get("data", {}).get("class_path", "unknown data")).rpartition(".")[2]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as nested dicts."""
        try:
            settings = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}
        return settings if isinstance(settings, dict) else {}

    @property
    def facts(self) -> dict[str, str]:
        """Seed, steps, minutes, hardware, commit, version: of the training where that is known, else of the test."""
        record: dict[str, Any] = next(iter(self.records.values()), {})
        header = dict(re.findall(r"^# (\w+): (.*)$", self.config, re.MULTILINE))
        last_step = max((max(curve) for curve in self.curves.values()), default=-1) + 1
        known = {
            "seed": self.settings.get("seed_everything", record.get("seed")),
            "steps": f"{steps:,}" if (steps := record.get("steps", last_step)) else None,
            "minutes": f"{record['seconds'] / 60:.1f}" if "seconds" in record else None,
            "hardware": header.get("hardware", record.get("hardware")),
            "commit": header.get("commit", record.get("commit")),
            "version": header.get("version", record.get("version")),
            "checkpoint": str(record.get("checkpoint", "")).removeprefix(f"{self.folder}/"),
        }
        return {name: "" if value is None else str(value) for name, value in known.items()}


def names_of(runs: Sequence[Run]) -> list[str]:
    """What tells ``runs`` apart: their labels, and their folders where labels are alike."""
    labels = Counter(run.label for run in runs)
    return [f"{run.label}, {run.folder.name}" if labels[run.label] > 1 else run.label for run in runs]


def facts_in_common(runs: Sequence[Run]) -> tuple[dict[str, str], list[str]]:
    """What holds for all of ``runs``, and the names of the facts that are to be said of each."""
    facts = [run.facts for run in runs]
    names = [name for name in facts[0] if any(each[name] for each in facts)]
    common = {name: facts[0][name] for name in names if name in LONG and len({each[name] for each in facts}) == 1}
    return (common if len(runs) > 1 else {}), [name for name in names if name not in common or len(runs) == 1]


def _latest(media: Path) -> tuple[Path, ...]:
    files = sorted(media.glob("step_*"))
    return tuple(path for path in files if path.name[: len("step_0000000")] == files[-1].name[: len("step_0000000")])


def _record(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    absent = {"metrics", "label", "data"} - record.keys()
    if absent:
        raise ValueError(f"it has no {', '.join(sorted(absent))}")
    return record


def read_curves(path: Path) -> Curves:
    """The numbers of a metrics.csv by name and step. A resumed run may log a step again: the last value counts.

    Raises:
        ValueError: it is no such table.
    """
    curves: Curves = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a kill may have cut off the last line
    if not {"step", "name", "value"} <= set(rows.fieldnames or ()):
        raise ValueError("its columns are not step, name and value")
    for row in rows:
        if math.isfinite(value := float(row["value"] or "")):
            curves.setdefault(row["name"], {})[int(row["step"])] = value
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}
