"""SIGTERM, SIGUSR1 and Ctrl-C: what they end, with which status, and when they have to wait."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ending = threading.Event()  # a signal has come to a training


def status(number: int) -> int:
    """The exit status of a process that ends because of a signal: 130 after Ctrl-C, else 143."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def can_handle() -> bool:
    """Whether this thread may set handlers of signals: the main one alone may."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def held() -> Iterator[None]:
    """Signals that come while the block runs are handled when it ends: none falls into the writing of a checkpoint."""
    if not can_handle():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


class StopAtSignal(L.Callback):
    """An evaluation ends at the first signal, with status 143, after Ctrl-C 130, and leaves no results."""

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if (launcher := trainer.strategy.launcher) is not None:
                launcher.kill(number)
            raise SystemExit(status(number))

        for number in SIGNALS if can_handle() else ():  # Lightning puts back what was there before
            signal.signal(number, stop)

    on_validation_start: Any = on_test_start


def slurm_job() -> str | None:
    """This job's name. One task of an array has the number of the array as its job id, by which all are meant."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


@rank_zero_only
def requeue(job: str, step: int) -> None:
    """Give a SLURM job back to the queue, and say how far it came."""
    done = f"preempted at step {step}, checkpoint written"
    try:
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        # SLURM has put a job that it preempts itself into the queue before it signals.
        failure = "" if asked.returncode == 0 or "is pending" in asked.stderr else asked.stderr.strip()
    except OSError as error:
        failure = str(error)
    if failure:
        rank_zero_warn(f"{done}. The job cannot be requeued from here ({failure}): submit it again.")
    else:
        rank_zero_info(f"{done}, requeued")
