"""W&B's process is killed, or its disk is full, in mid-run: the training goes on, and ends as ever."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from surf_lightning.reporting.runs import read_curves
from tests.torture import faults
from tests.torture.conftest import Mount, fill

pytestmark = pytest.mark.slow


def offline(monkeypatch: pytest.MonkeyPatch, *more: str) -> list[str]:
    """A run without end that W&B tracks offline as well."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    args = faults.surf(faults.RUN, faults.FOREVER, *more)
    return [*args, "--trainer.logger+", "WandbLogger", "--trainer.log_every_n_steps", "1"]


def services(parent: int) -> list[int]:
    """The processes of W&B that ``parent`` has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == parent and "wandb" in name:
            found.append(int(folder.name))
    return found


def await_steps(process: object, count: int) -> None:
    """Until the run has done so many steps more."""
    table = Path(faults.RUN, "metrics.csv")
    reached = max(read_curves(table)["loss"]) if table.exists() else 0
    patience = time.monotonic() + faults.PATIENCE
    while not table.exists() or max(read_curves(table).get("loss", [0])) < reached + count:
        assert process.is_alive(), faults.said()  # type: ignore[attr-defined]
        assert time.monotonic() < patience, faults.said()
        time.sleep(0.1)


def stop(process: object) -> str:
    os.kill(process.pid, signal.SIGTERM)  # type: ignore[attr-defined]
    process.join(faults.PATIENCE)  # type: ignore[attr-defined]
    assert process.exitcode == 143, faults.said()  # type: ignore[attr-defined]
    return faults.said()


def test_its_process_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    faults.earlier_stage()
    process = faults.start(offline(monkeypatch))
    await_steps(process, 5)
    killed = services(process.pid)
    assert killed
    for service in killed:
        os.kill(service, signal.SIGKILL)
    await_steps(process, 25)  # with validations, whose pictures are for W&B as well
    said = stop(process)
    assert said.count("The training goes on without it") == 1, said
    assert "Traceback" not in said, said
    faults.assert_as_if_undisturbed()


def test_its_disk_is_full(small_disk: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.earlier_stage()
    disk = small_disk(f"{faults.RUN}/wandb", "400k")
    process = faults.start(offline(monkeypatch))
    await_steps(process, 5)
    fill(disk)
    await_steps(process, 25)
    said = stop(process)
    assert "Traceback" not in said, said
    faults.assert_as_if_undisturbed()
