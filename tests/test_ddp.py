"""Two processes with half the batch each train as one process with the whole batch: remixing spans all ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from torch import Tensor

from surf_lightning.cli import main
from surf_lightning.engine.lightning_cli import _follow_torchrun
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import BatchRandomness, Ranks
from surf_lightning.methods.base import SeparationModule
from tests.test_configs import arguments

SURF = [sys.executable, "-m", "surf_lightning"]


def processes(args: list[str], start: list[str] = SURF, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}  # more threads would spin against each other
    return subprocess.run([*start, *args], env=environment, capture_output=True, text=True, check=False, timeout=300)


def fit(name: str, folder: str, ranks: int, *more: str) -> dict[str, Any]:
    args = [*arguments(name, Path()), "--trainer.default_root_dir", folder, "--data.batch_size", str(8 // ranks)]
    args += ["--data.num_validation", "8", "--model.network.init_args.dropout", "0.0", *more]
    if ranks == 1:
        assert main(args) == 0
    else:
        done = processes([*args, "--trainer.devices", str(ranks), "--trainer.strategy", "ddp"])
        assert done.returncode == 0, done.stderr
    return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)


@pytest.mark.parametrize(
    "method", ["surf_sr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixit", "remixit"))]
)
def test_two_ranks_compute_what_one_does(method: str) -> None:
    if method != "mixit":
        fit("digits_mixit", "runs/digits_mixit", 1)
    # Adam would blow up the rounding of gradients that are zero, as those of biases that the projection cancels.
    options = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    options += {"surf_sr": ["--model.beta_steps", "2"], "remixit": ["--model.teacher_steps", "1"]}.get(method, [])
    one, two = (fit(f"digits_{method}", f"ranks{ranks}", ranks, *options) for ranks in (1, 2))
    assert one["global_step"] == two["global_step"] == 2
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_processes_that_lightning_spawns_hand_their_weights_back() -> None:
    fit("digits_mixit", "spawned", 2, "--trainer.strategy", "ddp_spawn")
    assert Path("spawned/checkpoints/last.ckpt").is_file()


def one_process_as_two_ranks(module: Any, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
    losses = [
        module.loss({"mixtures": part}, BatchRandomness(module.seed, module.global_step, module.device, Ranks(rank, 2)))
        for rank, part in enumerate(batch["mixtures"].chunk(2))
    ]
    return (losses[0] + losses[1]) / 2


@pytest.mark.slow
def test_remixing_within_the_ranks_is_reproducible_on_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fit("digits_mixit", "runs/digits_mixit", 1)
    options = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1", "--model.beta_steps", "2"]
    two = fit("digits_surf_sr", "two", 2, *options, "--model.remix_over_ranks", "false")
    over = fit("digits_surf_sr", "over", 1, *options)
    monkeypatch.setattr(SeparationModule, "training_step", one_process_as_two_ranks)
    one = fit("digits_surf_sr", "one", 1, *options, "--model.remix_over_ranks", "false")
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert any((over["state_dict"][name] - value).abs().max() > 1e-4 for name, value in one["state_dict"].items())


@pytest.mark.parametrize(
    ("devices", "num_nodes", "become"),
    [
        ("auto", 1, (4, 2)),
        (4, 2, (4, 2)),
        ("4", 1, (4, 2)),
        ([0, 1, 2, 3], 1, ([0, 1, 2, 3], 2)),
        (2, 1, None),
        (4, 3, None),
    ],
)
def test_devices_and_nodes_are_torchruns(
    devices: Any, num_nodes: int, become: tuple[Any, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    config = Namespace(devices=devices, num_nodes=num_nodes)
    if become is None:
        with pytest.raises(UserError, match="torchrun started 4 processes on each of 2 nodes, but"):
            _follow_torchrun(config)
    else:
        _follow_torchrun(config)
        assert (config.devices, config.num_nodes) == become


def test_restarts_of_torchrun_need_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="--max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        _follow_torchrun(Namespace(devices="auto", num_nodes=1))
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _follow_torchrun(Namespace(devices="auto", num_nodes=1))


# What a job of one task has in its environment, in which torchrun starts the processes.
JOB = {"JOB_ID": "1", "JOB_NAME": "train", "NTASKS": "1", "NNODES": "1", "PROCID": "0", "LOCALID": "0"}
JOB |= {"NODEID": "0", "NODELIST": "localhost", "NTASKS_PER_NODE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("job", [{}, {f"SLURM_{name}": value for name, value in JOB.items()}])
def test_torchrun_says_how_many_processes_there_are(job: dict[str, str]) -> None:
    """Its numbers need not be repeated, within SLURM neither; the run is that of Lightning's own processes."""
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    start = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "surf_lightning"]
    args = [*arguments("digits_mixit", Path()), "--data.batch_size", "4", "--data.num_validation", "8"]
    args += ["--model.network.init_args.dropout", "0.0"]
    done = processes([*args, "--trainer.default_root_dir", "torchrun"], start, **job)
    assert done.returncode == 0, done.stderr
    found = torch.load("torchrun/checkpoints/last.ckpt", weights_only=True)
    expected = fit("digits_mixit", "own", 2)
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-5, atol=1e-7, msg=name)
    refused = processes([*args, "--trainer.devices", "1"], start, **job)
    assert refused.returncode != 0
    assert "torchrun started 2 processes on each of 1 nodes, but devices is 1" in refused.stderr


@pytest.mark.slow
def test_all_processes_find_the_configuration_of_the_run_that_they_displace() -> None:
    fit("digits_mixit", "runs/mine", 1)
    args = ["--config=runs/mine/config.yaml", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = processes(["fit", *args])
    assert done.returncode == 0, done.stderr
    assert all(Path(run, "checkpoints", "last.ckpt").is_file() for run in ("runs/mine", "runs/mine.1"))
