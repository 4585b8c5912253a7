"""A tiny digits SURF run in a process of its own, to be attacked, and what must hold afterwards."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning.cli import entry_point, main
from surf_lightning.inference.checkpoint import read_checkpoint
from surf_lightning.reporting.runs import read_curves
from tests.methods.test_resume import assert_same
from tests.test_configs import arguments

RUN, WHOLE = "parts", "whole"
FOREVER = 10**9
PATIENCE = 600  # seconds after which a process has hung: where others starve it, its start alone takes minutes
OPTIONS = ["--data.batches_per_epoch", "10", "--model.network.init_args.dropout", "0.3"]
# In steps: a share of the run would be another one when it is resumed to another end.
OPTIONS += ["--model.frozen_steps", "20", "--model.beta_steps", "100"]
OPTIONS += ["--trainer.enable_model_summary", "false", "--trainer.logger", "MetricsCSV", "--ckpt_path", "last"]


def surf(folder: str, steps: int, *more: str) -> list[str]:
    args = [*arguments("digits_surf_rm", Path()), *OPTIONS, "--trainer.default_root_dir", folder]
    return [*args, "--trainer.max_steps", str(steps), *more]


def earlier_stage() -> None:
    if not Path("runs/digits_mixit").exists():
        assert main([*arguments("digits_mixit", Path()), "--trainer.default_root_dir", "runs/digits_mixit"]) == 0


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files lie on another file system, where there is one."""
    if os.path.isdir("/dev/shm"):
        monkeypatch.setenv("TMPDIR", "/dev/shm")


def start(args: list[str], prepare: Callable[[], None] = lambda: None) -> Any:
    """A process, forked from this one, that runs the command line; what it says is in ``said``."""

    def run() -> None:
        sys.stdout = sys.stderr = open("said", "w", buffering=1)  # noqa: SIM115
        warnings.showwarning = tell  # or pytest, here as well, would keep them
        sys.argv = ["surf", *args]
        prepare()
        entry_point()

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


def tell(warning: Warning | str, *_: object, **__: object) -> None:
    with suppress(OSError):  # as Python's own
        print(warning)


def said() -> str:
    return Path("said").read_text(errors="replace")


def last_step(folder: str = RUN) -> int:
    """The step of the run's last checkpoint, 0 before it; every checkpoint that is there can be read."""
    steps = {path.name: read_checkpoint(path)["global_step"] for path in Path(folder, "checkpoints").glob("*.ckpt")}
    return steps.get("last.ckpt", 0)


def assert_as_if_undisturbed() -> int:
    """Let the run go on a little; it is then, bit for bit, one that was never disturbed. Returns its steps."""
    steps = last_step() + 15
    assert main(surf(RUN, steps)) == main(surf(WHOLE, steps)) == 0
    for name in ("last.ckpt", "best.ckpt"):
        parts, whole = (read_checkpoint(Path(run, "checkpoints", name)) for run in (RUN, WHOLE))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_same(parts[part], whole[part], part)
    assert read_curves(Path(RUN, "metrics.csv")) == read_curves(Path(WHOLE, "metrics.csv"))
    assert not list(Path(RUN).rglob("*.partial"))
    return int(steps)


assert torch.get_num_threads() == 1, "forked processes need it"
