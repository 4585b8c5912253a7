"""The YAML files of experiments/ for W&B, by W&B's own code and without its service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as agent

from tests.test_configs import ROOT

SWEEP = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())
SMALL = ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.accelerator", "cpu"]


def command() -> list[str]:
    """What an agent runs: the file's command with the values that the service has drawn."""
    drawn = {"model.optimizer.lr": {"value": 0.0042}, "data.batch_size": {"value": 6}}
    assert drawn.keys() == SWEEP["parameters"].keys()
    arguments = agent.create_sweep_command_args({"args": drawn})["args"]
    return [word for part in agent.create_sweep_command(SWEEP["command"]) for word in _filled(part, arguments)]


def _filled(part: str, arguments: list[str]) -> list[str]:
    return arguments if part == "${args}" else [part]


@pytest.mark.slow
def test_an_agent_trains_a_run_of_the_sweep(tmp_path: Path) -> None:
    surf = tmp_path / "bin" / "surf"
    surf.parent.mkdir()
    surf.write_text(f'#!/bin/sh\nexec {sys.executable} -m surf_lightning "$@"\n')
    surf.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{surf.parent}:{os.environ['PATH']}",
        "WANDB_RUN_ID": "drawn1",
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_MODE": "offline",
    }
    subprocess.run([*command(), *SMALL], env=environment, check=True, timeout=300)
    config = yaml.safe_load(Path("runs/sweep-drawn1/hparams.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0042
    assert Path("runs/sweep-drawn1/wandb_id").read_text() == "drawn1\n"
    assert list(Path("runs/sweep-drawn1/wandb").glob("offline-run-*-drawn1"))


@pytest.mark.slow
def test_checkpoints_become_artifacts_offline() -> None:
    # In a process and with a service of its own, which at its end has written everything.
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | {
        "WANDB_MODE": "offline"
    }
    artifact = ["--config", str(ROOT / "experiments" / "wandb_artifact.yaml"), *SMALL]
    command = [sys.executable, "-m", "surf_lightning", "fit", "--config", "digits_mixit", *artifact]
    subprocess.run(command, env=environment, check=True, timeout=300)
    run_id = Path("runs/digits_mixit/wandb_id").read_text().strip()
    (written,) = Path("runs/digits_mixit/wandb").glob("offline-run-*/*.wandb")
    assert f"model-{run_id}".encode() in written.read_bytes()
    assert b"best" in written.read_bytes()
