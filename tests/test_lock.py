"""The locks hold what pyproject.toml asks for, each with hashes, from no named index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "lock").glob("*.txt"))


def pins(lock: Path) -> dict[str, set[str]]:
    """The versions of each package; more than one where Pythons differ."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^ ;]+)", lock.read_text(), re.MULTILINE):
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_each_pin_has_hashes_and_no_index_is_named(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"\n(?=[^ \n])", text)
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))
    assert not re.search(r"https?://|index-url|find-links", text)


def test_what_is_asked_for_is_locked() -> None:
    """Fails after a change of the requirements until `make lock` has run."""
    locked = {name: versions for lock in LOCKS for name, versions in pins(lock).items()}
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    for requirement in map(Requirement, asked):
        if requirement.name != PROJECT["name"]:
            versions = locked[canonicalize_name(requirement.name)]
            assert all(map(requirement.specifier.contains, versions)), requirement


def test_malicious_releases_are_out() -> None:
    (lightning,) = (line for line in map(Requirement, PROJECT["dependencies"]) if line.name == "lightning")
    assert not any(map(lightning.specifier.contains, ["2.6.2", "2.6.3"]))
