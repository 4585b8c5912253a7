"""A rank that is killed or stopped ends the whole job, which names it and goes on when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surf_lightning.cli import main
from tests.test_configs import arguments
from tests.torture import faults
from tests.torture.conftest import Trials

pytestmark = pytest.mark.slow
TWO = ["--trainer.devices", "2", "--data.batches_per_epoch", "20", "--data.num_validation", "8", "--ckpt_path", "last"]
PATIENCE = 30  # seconds that the ranks wait for each other where one hangs
DDP = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", f"0:00:{PATIENCE:02d}"]


def processes(group: int) -> list[int]:
    """Those of a process group that are still there, the first being the one that began it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(folder.name))
    return sorted(found)


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_a_lost_rank_ends_the_job(trials: Trials, fault: str) -> None:
    trials.least = min(trials.least, 1) if trials.seconds == 0 else 4
    args = [*arguments("digits_mixit", Path()), "--trainer.default_root_dir", faults.RUN, *TWO]
    args += ["--trainer.strategy", "ddp"] if fault == "killed" else DDP
    longest = 0.0
    for random in trials:
        before, victim = faults.last_step(), (trials.count + random.randint(0, 1)) % 2
        with open("said", "w") as file:
            command = [sys.executable, "-m", "surf_lightning", *args, "--trainer.max_steps", str(faults.FOREVER)]
            job = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        while faults.last_step() == before:
            assert job.poll() is None, faults.said()
            time.sleep(0.05)
        time.sleep(random.uniform(0, 1))
        ranks = [job.pid, next(pid for pid in processes(job.pid) if pid != job.pid)]
        os.kill(ranks[victim], signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        began = time.monotonic()
        while processes(job.pid):
            assert time.monotonic() - began < 60 + PATIENCE, faults.said()
            time.sleep(0.1)
            job.poll()
        longest = max(longest, time.monotonic() - began)
        assert job.wait() != 0
        assert f"rank {victim}" in faults.said().lower(), faults.said()
    steps = faults.last_step() + 4
    alone = ["--trainer.devices", "1", "--data.batch_size", "8", "--trainer.max_steps", str(steps)]
    assert main([*args[: args.index("--trainer.strategy")], *alone]) == 0
    assert faults.last_step() == steps
    trials.facts |= {fault: trials.count, "longest end": f"{longest:.0f} s"}
