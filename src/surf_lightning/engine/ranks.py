"""The processes of a fit: what is said where one dies, and how long the others wait for one that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.plugins.environments import LightningEnvironment

RANKS_WAIT = timedelta(minutes=10)
GRACE = 10.0  # seconds in which ranks that are well come to their end after an error
FOLLOW_SECONDS = 1.0  # between two looks of a rank at the one that started it
GONE = ("gloo/transport", "ncclRemoteError")  # words of an error of who talked to a rank that has ended
GO_ON = "The same command with --ckpt_path last goes on."
# Ends the process of a descriptor that is inherited, should it still be there then.
REAPER = "import signal, sys, time; time.sleep(3 * float(sys.argv[2])); signal.pidfd_send_signal(int(sys.argv[1]), 9)"


class LostProcesses(L.Callback):
    """Finds out which data worker or rank an error comes from, and lets no rank outlive the one that started it.

    ``lost`` says it after the error; it is empty where no process was lost. A rank that hangs is known when the others
    have waited for it as long as the strategy's ``timeout``, and then ended.
    """

    lost = ""
    _follower: threading.Thread | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(environment, LightningEnvironment) and trainer.local_rank:
            self._follower = threading.Thread(target=_follow, args=(trainer.global_rank, os.getppid()), daemon=True)
            self._follower.start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, RuntimeError | OSError | EOFError):
            self.lost = _dead_worker(trainer)
        if not self.lost and isinstance(exception, RuntimeError) and trainer.world_size > 1:
            if self._follower is not None:
                self._follower.join(3 * FOLLOW_SECONDS)  # if rank 0 is gone, it says so and ends this process
            self.lost = _lost_rank(trainer, str(exception))


def _follow(rank: int, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(FOLLOW_SECONDS)
    print(f"Rank 0 (process {parent}) is gone: rank {rank} ends as well. {GO_ON}", file=sys.stderr, flush=True)
    os._exit(1)


def _end(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def _dead_worker(trainer: L.Trainer) -> str:
    iterator: Any = getattr(trainer.train_dataloader, "_iterator", None)
    for number, worker in enumerate(getattr(iterator, "_workers", ())):
        if worker.exitcode:
            hint = ", often for want of memory: fewer data.num_workers need less" if worker.exitcode == -9 else ""
            return f"data worker {number} (process {worker.pid}) {_end(worker.exitcode)}{hint}. {GO_ON}"
    return ""


def _lost_rank(trainer: L.Trainer, error: str) -> str:
    """Which of the ranks that this process started has died or hangs; a rank that hangs is ended."""
    timed_out = "timed out" in error.lower()
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    if not processes:  # SLURM, torchrun or rank 0 started them, and says which has died
        other = f"rank {1 - trainer.global_rank}" if trainer.world_size == 2 else "another rank"
        if timed_out:
            _end_parent(trainer)
            return f"{other} does not answer. {GO_ON}"
        return f"{other} is gone. {GO_ON}" if any(words in error for words in GONE) else ""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        ended = [process.poll() for process in processes]
        if None not in ended or (any(ended) and not timed_out):
            break
        time.sleep(0.1)
    named = {f"rank {rank} (process {process.pid})": process for rank, process in enumerate(processes, 1)}
    found = [f"{name} {_end(process.returncode)}" for name, process in named.items() if process.returncode]
    if timed_out and (hung := {name: process for name, process in named.items() if process.poll() is None}):
        for process in hung.values():
            process.kill()
        found = [f"{name} does not answer, and was killed" for name in hung]
    return f"{'; '.join(found)}. {GO_ON}" if found else ""


def _end_parent(trainer: L.Trainer) -> None:
    """Rank 0, which started this one, may be what hangs: where it is well, it is gone before the time is up."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, LightningEnvironment) and hasattr(os, "pidfd_open"):
        parent = os.pidfd_open(os.getppid())
        command = [sys.executable, "-S", "-c", REAPER, str(parent), str(GRACE)]
        subprocess.Popen(command, pass_fds=[parent], start_new_session=True)
