"""The worked examples of CONTRIBUTING.md run, and the habits it describes are those of the other files."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from surf_lightning.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", DOCUMENT, re.DOTALL)
KINDS = ["networks", "methods", "data", "metrics"]
TINY = (
    "--trainer.max_steps 2 --trainer.logger false --trainer.accelerator cpu --data.batch_size 4 --data.num_validation 4"
)


def load(path: str, code: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The code of the document as the module that it would be at ``path``."""
    file = Path(path)
    file.parent.mkdir(parents=True)
    file.write_text(code)
    name = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, file.absolute())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_there_is_an_example_of_each_kind() -> None:
    folders = [path.rsplit("/", 1)[0] for path, _ in BLOCKS]
    assert folders == [folder for kind in KINDS for folder in (f"src/surf_lightning/{kind}", f"tests/{kind}")]
    assert not any((ROOT / path).exists() for path, _ in BLOCKS)


@pytest.mark.parametrize("kind", KINDS)
def test_worked_example(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tests = [load(path, code, monkeypatch) for path, code in BLOCKS if f"/{kind}/" in path]
    functions: list[Callable[[], None]] = [value for name, value in vars(tests).items() if name.startswith("test_")]
    assert len(functions) == 2
    for function in functions:
        function()


@pytest.mark.parametrize("command", re.findall(r"^surf (fit --config \S+ --.*)", DOCUMENT, re.MULTILINE))
def test_command_of_a_worked_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, code in BLOCKS:
        if path.startswith("src/"):
            load(path, code, monkeypatch)
    Path("configs").symlink_to(ROOT / "configs")
    assert main([*command.split(), *TINY.split()]) == 0


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_hooks_and_lint_run_the_same_commands() -> None:
    entries = [hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    programs = [re.sub(r"\$\(BIN\)/| --.*| \.", "", line.strip()) for line in lint.splitlines()]
    assert programs == [entry.partition(" --")[0] for entry in entries]


def test_continuous_integration_runs_the_lowest_and_the_newest_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    matrix = read(".github/workflows/test.yml")["jobs"]["suite"]["strategy"]["matrix"]["python"]
    assert matrix == [versions[0], versions[-1]]
    below = f"3.{int(versions[-1].removeprefix('3.')) + 1}"
    assert project["requires-python"] == f">={versions[0]},<{below}"


def test_the_citation_is_that_of_the_readme() -> None:
    paper = read("CITATION.cff")["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert authors in readme
    assert paper["title"] in readme.replace("{SURF}", "SURF")
    assert paper["identifiers"][0]["value"] in readme
