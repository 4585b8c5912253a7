"""kill -9 at any moment, in the writing of a checkpoint above all: the resumed run is the one that never died."""

from __future__ import annotations

import builtins
import os
import signal
import time
from random import Random
from typing import Any

import pytest

from surf_lightning import files
from tests.torture import faults
from tests.torture.conftest import Trials


def test_killed_at_any_moment(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.elsewhere(monkeypatch)
    faults.earlier_stage()
    trained = 0
    for random in trials:
        before = faults.last_step()
        process = faults.start(faults.surf(faults.RUN, faults.FOREVER))
        patience = time.monotonic() + faults.PATIENCE
        while random.random() < 0.999 and faults.last_step() == before and time.monotonic() < patience:
            time.sleep(0.01)  # one in a few dies before its first checkpoint
        time.sleep(random.uniform(0, 0.5))
        assert process.is_alive(), faults.said()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        trained += faults.last_step() > before
    steps = faults.assert_as_if_undisturbed()
    trials.facts |= {"kills": trials.count, "after a new checkpoint": trained, "steps": steps}


SIZE = 350_000  # bytes, about what a checkpoint of the run has


class Fatal:
    """A file in whose writing, after ``left`` bytes or at its end, the process is killed."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        if len(data) > self.left:
            self.file.write(data[: self.left])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= len(data)
        return self.file.write(data)

    def __enter__(self) -> Fatal:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def die_in_a_write(random: Random) -> None:
    """This process is to be killed at a random byte of one of its next checkpoints, before its renaming or after."""
    moment, writes = random.choice(["bytes", "bytes", "bytes", "sync", "rename", "renamed"]), random.randint(1, 4)
    share, rename = random.random(), os.replace
    seen = [0]

    def is_due(path: object, now: str) -> bool:
        if ".ckpt" not in str(path):
            return False
        seen[0] += now == "bytes"
        return seen[0] >= writes and moment == now

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        file = builtins.open(path, mode, **options)  # noqa: SIM115
        return Fatal(file, int(share * SIZE)) if "x" in mode and is_due(path, "bytes") else file

    def replaced(source: Any, target: Any) -> None:
        if is_due(target, "rename"):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if is_due(target, "renamed"):
            os.kill(os.getpid(), signal.SIGKILL)

    files.open = opened  # type: ignore[attr-defined]
    files.os.replace = replaced  # type: ignore[assignment]
    if moment == "sync":
        files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def test_killed_in_the_writing_of_a_checkpoint(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.elsewhere(monkeypatch)
    faults.earlier_stage()
    every_step = ["--checkpoints.every_minutes", "0.00001"]
    partial = 0
    for random in trials:
        args = faults.surf(faults.RUN, faults.FOREVER, *every_step)
        process = faults.start(args, lambda random=random: die_in_a_write(random))  # type: ignore[misc]
        process.join(faults.PATIENCE)
        assert process.exitcode == -signal.SIGKILL, faults.said()
        faults.last_step()
        partial += bool(list(files.Path(faults.RUN).rglob("*.partial")))
    trials.facts |= {"kills": trials.count, "that left a part": partial, "steps": faults.assert_as_if_undisturbed()}
