"""Files, targets and options that the documents name are there, and nothing is left to be filled in."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plan
import pytest

from surf_lightning import cli

ROOT = Path(__file__).parents[1]
SHOWN = ("*.md", "docs/**/*.md", "experiments/cards/*.md", "notebooks/*.ipynb")
DOCUMENTS = sorted(path for pattern in SHOWN for path in ROOT.glob(pattern))
SCRIPTS = ("benchmarks", "examples", "experiments")  # folders


def read(document: Path) -> str:
    """Its text, of a notebook that of its cells of text."""
    text = document.read_text()
    if document.suffix == ".md":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def named(pattern: str) -> set[str]:
    """What the group of ``pattern`` finds in the documents, each on one line."""
    return {" ".join(found.split()) for path in DOCUMENTS for found in re.findall(pattern, read(path), re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_configs_are_there(document: Path) -> None:
    text = read(document)
    assert "@@" not in text
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [name for name in re.findall(r"\bconfigs/[\w/.-]+\.yaml", text) if not (ROOT / name).exists()]
    assert not missing


def test_every_target_of_make_in_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = named(r"(?:`|^)make ([a-z0-9-]+)")
    rules = {name for line in re.findall(r"^([\w%. -]+):(?!=)", makefile, re.MULTILINE) for name in line.split()}
    patterns = [re.escape(rule).replace("%", ".*") for rule in rules]  # `make reproduce-*` names them all
    assert targets
    assert not {name for name in targets if not any(re.fullmatch(pattern, name) for pattern in patterns)}


def test_every_table_in_the_documents_exists() -> None:
    tables = named(r"(?:`|^)make (?:reproduce-|(?=ablation-|table2-))([\w-]+)(?![\w*-])")
    for command in named(r"(?:`|^)snakemake ([^`\n]+)"):
        assert command.startswith("-s experiments/Snakefile "), command
        tables.add(command.split()[-1])
    assert {"cifar", "mnist_half_hour", "ablation-digits"} <= tables <= set(plan.PLAN["tables"])


@pytest.mark.parametrize("script", sorted(named(rf"\bpython ((?:{'|'.join(SCRIPTS)})/\w+\.py)")))
def test_a_script_finds_its_modules(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python starts it: with its own folder on the path, where the tests have all three."""
    folders = [ROOT / name for name in SCRIPTS]
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or ".").parent in folders:
            monkeypatch.delitem(sys.modules, name)
    others = [place for place in sys.path if Path(place) not in folders]
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *others])
    runpy.run_path(str(ROOT / script), run_name="imported")


def commands() -> Iterator[str]:
    """What the documents tell a reader to type after ``surf``, without placeholders."""
    lines = named(r"`surf ([^`]* --(?:config|checkpoint) [^`]+)`")
    for document in DOCUMENTS:
        for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", read(document), re.MULTILINE | re.DOTALL):
            found = (re.match(r"(?:[A-Z_]+=\S+ )*surf (.*)", line) for line in block.replace("\\\n", " ").splitlines())
            lines |= {line[1] for line in found if line}
    for line in lines:
        command = re.split(r"\s#|\s\s+| [|>&]", line)[0]
        if not re.search(r"\.\.\.|…|\b[A-Z]{3,}\b(?!=)|--config (?:runs/|C )|my_networks", command):
            yield command.strip()


ALL = sorted(set(commands()))
TRAINING = [command for command in ALL if command.split()[0] in cli.TRAINING]


@pytest.mark.parametrize("command", [command for command in ALL if command not in TRAINING])
def test_the_options_of_a_command_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is parsed; what it would do is left out."""

    def parsed_only(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(function)(lambda *args, **options: 0)

    for name, function in cli.COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, parsed_only(function))
    assert cli.main(shlex.split(command)) == 0


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_has_a_configuration(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved to the whole configuration that it would run with."""
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as end:
        cli.main([*shlex.split(command), "--print_config"])
    assert not end.value.code
    assert "model:" in output.getvalue()
