"""Files, targets and options that the documents name are there, and nothing is left to be filled in."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from surf_lightning import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_configs_are_there(document: Path) -> None:
    text = document.read_text()
    assert "@@" not in text
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [name for name in re.findall(r"\bconfigs/[\w/.-]+\.yaml", text) if not (ROOT / name).exists()]
    assert not missing


def test_every_target_of_make_in_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {name for path in DOCUMENTS for name in re.findall(r"(?:`|^)make ([a-z0-9-]+)", path.read_text(), re.M)}
    rules = {name for line in re.findall(r"^([\w%. -]+):(?!=)", makefile, re.MULTILINE) for name in line.split()}
    patterns = [re.escape(rule).replace("%", ".*") for rule in rules]  # `make reproduce-*` names them all
    assert named
    assert not {name for name in named if not any(re.fullmatch(pattern, name) for pattern in patterns)}


def commands() -> Iterator[str]:
    """What the documents tell a reader to type after ``surf``, without placeholders."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.match(r"(?:[A-Z_]+=\S+ )*surf (.*)", line):
                    command = re.split(r"\s#|\s\s+| [|>&]", found[1])[0]
                    if not re.search(r"\.\.\.|…|\b[A-Z]{3,}\b(?!=)|--config runs/|my_networks", command):
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
