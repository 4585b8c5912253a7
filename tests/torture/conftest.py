"""Fault tests: each attacks again and again, twice in the suite and for its share of the time in `make torture`."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

MINUTES = float(os.environ.get("TORTURE_MINUTES", "10"))  # of all long forms together
REPORT: list[str] = []


class Trials:
    """Iterate for a random generator a trial, seeded alike in every run of the short form; ``facts`` are reported."""

    def __init__(self, seed: int, least: int, seconds: float) -> None:
        self.seed, self.least, self.seconds = seed, least, seconds
        self.count, self.began, self.facts = 0, time.monotonic(), dict[str, object]()

    def __iter__(self) -> Iterator[random.Random]:
        while self.count < self.least or time.monotonic() - self.began < self.seconds:
            self.count += 1
            yield random.Random(f"{self.seed} {self.count}")

    def __str__(self) -> str:
        facts = "".join(f", {name} {value}" for name, value in self.facts.items())
        return f"{self.count} trials from seed {self.seed} in {time.monotonic() - self.began:.0f} s{facts}"


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.slow)])
def trials(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Two trials, or as many as the time allows."""
    if request.param == "short":
        yield Trials(0, least=2, seconds=0)
        return
    seed = int(os.environ.get("TORTURE_SEED", random.SystemRandom().randrange(10**6)))
    others = sum("trials" in getattr(item, "fixturenames", ()) for item in request.session.items)
    trials = Trials(seed, least=2, seconds=60 * MINUTES / others)
    yield trials
    REPORT.append(f"{request.node.name}: {trials}")


Mount = Callable[[str, str], Path]


@pytest.fixture
def small_disk() -> Iterator[Mount]:
    """Makes a folder that is a file system of its own, of a size as tmpfs understands it."""
    mounted: list[Path] = []

    def mount(folder: str, size: str) -> Path:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("a small file system needs root")
        mounted.append(Path(folder).absolute())
        return Path(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on ``disk``; returns the file that takes it."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in REPORT:
        terminalreporter.write_line(line)
