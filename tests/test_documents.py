"""Files and targets that the documents name are there, and nothing is left to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
