"""A data worker or a rank that dies is named, and one that hangs is not waited for without end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy

from surf_lightning.engine import ranks
from surf_lightning.engine.fit import fit
from surf_lightning.engine.ranks import RANKS_WAIT, LostProcesses
from surf_lightning.errors import UserError
from tests import tiny

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def test_a_data_worker_that_is_killed_is_named_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(self: LostProcesses, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            os.kill(trainer.train_dataloader._iterator._workers[1].pid, signal.SIGKILL)
            signal.sigtimedwait([], 5)  # the death of a child interrupts it

    with monkeypatch.context() as patched:
        patched.setattr(LostProcesses, "on_train_batch_start", kill)
        with pytest.raises(
            UserError, match=r"data worker 1 \(process \d+\) was killed by SIGKILL, often .*--ckpt_path"
        ):
            fit(tiny.mixit(), tiny.digits(num_workers=2), "run", 100, **QUIET)
    done = fit(tiny.mixit(), tiny.digits(num_workers=2), "run", 6, ckpt_path="last", **QUIET)
    assert done.global_step == 6


def process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", code])


def ddp(*processes: subprocess.Popen[bytes]) -> Any:
    return SimpleNamespace(
        world_size=1 + len(processes),
        global_rank=0,
        train_dataloader=None,
        strategy=SimpleNamespace(launcher=SimpleNamespace(procs=list(processes))),
    )


def test_a_rank_that_dies_is_named() -> None:
    well, killed = process("import time; time.sleep(60)"), process("import os; os.kill(os.getpid(), 9)")
    callback = LostProcesses()
    callback.on_exception(ddp(well, killed), None, RuntimeError("Connection closed by peer"))  # type: ignore[arg-type]
    assert callback.lost.startswith(f"rank 2 (process {killed.pid}) was killed by SIGKILL. The same command")
    assert well.poll() is None
    well.kill()
    well.wait()


def test_a_rank_that_hangs_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE", 1.0)
    hangs, gave_up = process("import time; time.sleep(60)"), process("raise SystemExit(2)")
    callback = LostProcesses()
    callback.on_exception(ddp(hangs, gave_up), None, RuntimeError("Timed out waiting 600000ms"))  # type: ignore[arg-type]
    assert callback.lost.startswith(f"rank 1 (process {hangs.pid}) does not answer, and was killed.")
    assert hangs.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4995", "rank 1 is gone. The same"),
        ("NCCL error ... ncclRemoteError: A call failed possibly due to a network error", "rank 1 is gone. The same"),
        ("[/gloo/transport/tcp/pair.cc:152] timed out connecting", "rank 1 does not answer. The same"),
        ("shapes do not match", ""),
    ],
)
def test_ranks_that_others_started_are_missed(error: str, said: str) -> None:
    trainer = ddp()
    trainer.world_size = 2
    callback = LostProcesses()
    callback.on_exception(trainer, None, RuntimeError(error))  # type: ignore[arg-type]
    assert callback.lost.startswith(said)
    assert bool(callback.lost) == bool(said)


def test_an_error_of_ones_own_is_no_lost_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE", 0.2)
    well = process("import time; time.sleep(60)")
    callback = LostProcesses()
    for error in (UserError("no data"), RuntimeError("shapes do not match")):
        callback.on_exception(ddp(well), None, error)  # type: ignore[arg-type]
        assert callback.lost == ""
    well.kill()
    well.wait()


ORPHAN = """
import os, sys
from types import SimpleNamespace
from lightning.pytorch.plugins.environments import LightningEnvironment
from surf_lightning.engine.ranks import LostProcesses

strategy = SimpleNamespace(cluster_environment=LightningEnvironment(), launcher=SimpleNamespace())
trainer = SimpleNamespace(world_size=2, global_rank=1, local_rank=1, train_dataloader=None, strategy=strategy)
parent = os.getpid()
if os.fork() == 0:
    callback = LostProcesses()
    callback.setup(trainer, None, "fit")
    os.kill(parent, 9)
    callback.on_exception(trainer, None, RuntimeError("Connection reset by peer"))
    os.write(2, b"a traceback")
os.wait()
"""


def test_a_rank_names_the_one_that_started_it_and_ends_with_it() -> None:
    """The child's child lives on when the child is killed, and may see the connection end before that."""
    done = subprocess.run([sys.executable, "-c", ORPHAN], stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert "is gone: rank 1 ends as well" in done.stderr
    assert "a traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "waits"), [("ddp", RANKS_WAIT), (DDPStrategy(timeout=timedelta(hours=2)), timedelta(hours=2))]
)
def test_ranks_wait_for_each_other_as_long_as_is_said(given: Any, waits: timedelta) -> None:
    trainer: Any = tiny.trainer(Path("run"), devices=2, strategy=given)
    assert trainer.strategy._timeout == waits
