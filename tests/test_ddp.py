"""Two processes with half the batch each train as one process with the whole batch: remixing spans all ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning.cli import main
from tests.test_configs import arguments

COMMAND = [sys.executable, "-m", "surf_lightning"]


def fit(name: str, folder: str, processes: int, *more: str) -> dict[str, Any]:
    args = [*arguments(name, Path()), "--trainer.default_root_dir", folder, "--data.batch_size", str(8 // processes)]
    args += ["--data.num_validation", "8", "--model.network.init_args.dropout", "0.0", *more]
    if processes == 1:
        assert main(args) == 0
    else:
        args += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads on two cores would spin against each other
        done = subprocess.run([*COMMAND, *args], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)


@pytest.mark.parametrize("method", ["surf_sr", "remixit"])
def test_two_ranks_compute_what_one_does(method: str) -> None:
    fit("digits_mixit", "runs/digits_mixit", 1)
    # Adam would blow up the rounding of gradients that are zero, as those of biases that the projection cancels.
    options = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    options += ["--model.beta_steps", "2"] if method.startswith("surf") else ["--model.teacher_steps", "1"]
    one, two = (fit(f"digits_{method}", f"ranks{ranks}", ranks, *options) for ranks in (1, 2))
    assert one["global_step"] == two["global_step"] == 2
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
