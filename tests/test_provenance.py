"""The commit that is written down is that of this package's checkout, or none."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from surf_lightning import __version__, provenance


def git(*command: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *identity, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that holds the module."""
    git("init", "--quiet")
    file = Path("package/provenance.py").absolute()
    file.parent.mkdir()
    file.write_text("one\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    monkeypatch.setattr(provenance, "__file__", str(file))
    return file


def test_the_commit_of_the_checkout_is_named_and_changes_are_owned_up_to(checkout: Path) -> None:
    head = git("rev-parse", "HEAD")
    assert provenance.commit() == head
    Path("runs").mkdir()
    assert provenance.commit() == head
    checkout.write_text("two\n")
    assert provenance.commit() == f"{head} with changes"


def test_a_package_installed_below_another_checkout_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / "site-packages" / "provenance.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() is None


def test_there_is_no_commit_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None
    found = provenance.provenance(torch.device("cpu"))
    assert found["version"] == __version__
    assert str(found["hardware"]).startswith(provenance.processor())


def test_the_cpu_is_named_by_its_model_or_else_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    information = Path("cpuinfo")
    information.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.20GHz\n\nprocessor\t: 1\nmodel name\t: other\n")
    assert provenance.processor(information) == "Some CPU @ 2.20GHz"
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "aarch64")
    information.write_text("processor\t: 0\nBogoMIPS\t: 48.00\n")
    for place in (information, Path("nowhere")):
        assert provenance.processor(place) == "aarch64 CPU"
    monkeypatch.setattr(provenance, "processor", lambda: "Some CPU")
    for threads, text in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert provenance.hardware(torch.device("cpu")) == f"Some CPU, {text}"


def test_a_bug_report_has_versions_devices_and_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "wandb":
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(provenance, "version", version)
    lines = provenance.environment()
    assert lines[0].startswith(f"surf-lightning {__version__}")
    assert lines[1].startswith("Python 3.")
    assert lines[2].startswith("cpu: ")
    assert any(line.startswith("torch 1.2.3, torchvision 1.2.3, ") for line in lines)
    assert "extra wandb: wandb is missing" in lines
    assert "extra images: torch-fidelity 1.2.3" in lines
    assert not any("dev" in line.split(":")[0] for line in lines[5:])
