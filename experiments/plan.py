"""What tables.yaml means: the runs of each table, and what each run trains. The Snakefile and the tests read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PLAN = yaml.safe_load((Path(__file__).parent / "tables.yaml").read_text())


@dataclass(frozen=True)
class Run:
    """A run, by its name.

    Args:
        config: the configuration that it trains.
        changes: further arguments of its training.
        first: the run that must be trained before it, if any.
    """

    config: Path
    changes: str
    first: str | None


def run(name: str) -> Run:
    """The run ``name``: a configuration's name, followed by settings.

    Raises:
        ValueError: there is no such configuration, or no such setting.
    """
    stems = [path.stem for path in CONFIGS.glob("*.yaml") if f"{name}_".startswith(f"{path.stem}_")]
    if not stems:
        raise ValueError(f"{name} begins with the name of no file in configs/")
    stem = max(stems, key=len)
    settings = re.findall(r"_([a-z]+)(?:_?([\d.]+))?", name.removeprefix(stem))
    if unknown := [setting for setting, _ in settings if setting not in PLAN["settings"]]:
        raise ValueError(f"{name}: there is no setting {unknown[0]} in experiments/tables.yaml")
    config = CONFIGS / f"{stem}.yaml"
    first = re.search(r"(?:mixit|flow)_checkpoint: runs/([^/]+)/", config.read_text())
    changes = " ".join(PLAN["settings"][setting].format(value) for setting, value in settings)
    return Run(config, changes, first[1] if first else None)


def tested(name: str) -> tuple[str, str]:
    """The run that is trained for the row ``name``, and the arguments of its test."""
    borrowed = PLAN["borrowed"].get(name, {"run": name, "test": ""})
    return borrowed["run"], borrowed["test"].format(configs=CONFIGS)


def rows(table: str) -> list[str]:
    """The runs of ``table``, in its order.

    Raises:
        ValueError: there is no such table.
    """
    if table not in PLAN["tables"]:
        raise ValueError(f"there is no table {table}: the tables are {', '.join(PLAN['tables'])}")
    plan = PLAN["tables"][table]
    names = [f"{plan['data']}_{method}" for method in plan["methods"]]
    names += [f"{plan['data']}_{method}_seed{n}" for method, seeds in plan.get("seeds", {}).items() for n in seeds]
    sweep = plan.get("sweep", {"of": [], "settings": {}})
    for method in sweep["of"]:
        for setting, values in sweep["settings"].items():
            names += [f"{plan['data']}_{method}_{setting}_{value}" for value in values]
    return names


def results(table: str) -> list[str]:
    """The files that ``table`` reports."""
    return [f"runs/{name}/{PLAN['tables'][table].get('results', 'metrics')}.json" for name in rows(table)]


def resources(name: str) -> dict[str, int]:
    """Threads and GPUs of the run ``name``."""
    return {"threads": 1, "gpus": 0, **PLAN["resources"].get(name.partition("_")[0], {})}
