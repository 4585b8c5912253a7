"""A run that was stopped in mid-epoch and resumed is, bit for bit, the run that never stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning.cli import main
from surf_lightning.reporting.runs import read_curves
from tests.test_configs import arguments

IN_STEPS = ["--model.decay_steps", "4000"]  # not a share of the run, which would be another one when it is resumed
STEPS, STOP = 11, 7  # epochs of 4 batches, 3 workers' batches ahead of the step at the stop


def fit(name: str, folder: str, *more: str) -> dict[str, Any]:
    args = [*arguments(name, Path()), "--trainer.default_root_dir", folder, "--data.batches_per_epoch", "4"]
    args += ["--trainer.logger", "MetricsCSV", *more]
    assert main(args) == 0
    return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)


def assert_same(left: Any, right: Any, path: str = "") -> None:
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert left == right, path


def curves(folder: str) -> dict[str, dict[int, float]]:
    return read_curves(Path(folder, "metrics.csv"))


@pytest.mark.parametrize("method", ["surf_sr", "self_remixing", "mixit", "supervised_flow"])
def test_resuming_in_mid_epoch_continues_bit_for_bit(method: str, mixit: str) -> None:
    options = ["--model.network.init_args.dropout", "0.3", "--data.num_workers", "2"]
    options += {
        "surf_sr": ["--model.mixit_checkpoint", mixit, "--model.beta_steps", "8", "--model.frozen_steps", "2"],
        "self_remixing": ["--model.mixit_checkpoint", mixit, *IN_STEPS, "--model.teacher_steps", "1500"],
        "mixit": IN_STEPS,
    }.get(method, [])
    name = f"digits_{method}"
    whole = fit(name, "whole", *options, "--trainer.max_steps", str(STEPS))
    fit(name, "parts", *options, "--trainer.max_steps", str(STOP))
    parts = fit(name, "parts", *options, "--trainer.max_steps", str(STEPS), "--ckpt_path", "last")
    assert whole["global_step"] == parts["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(whole[part], parts[part], part)
    assert curves("whole") == curves("parts")


@pytest.mark.parametrize("name", ["digits_mixit", "folder_mixit"])
def test_the_same_seed_gives_the_same_weights_for_any_number_of_data_workers(name: str, audio_sets: Path) -> None:
    def weights(folder: str, workers: int) -> dict[str, Any]:
        args = [*arguments(name, audio_sets), "--trainer.default_root_dir", folder, "--data.batches_per_epoch", "4"]
        assert main([*args, "--trainer.max_steps", "6", "--data.num_workers", str(workers)]) == 0
        return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)

    first = weights("first", 0)
    for folder, workers in (("again", 0), ("three", 3)):
        same = weights(folder, workers)
        for part in ("state_dict", "optimizer_states"):
            assert_same(first[part], same[part], part)


def test_resuming_with_accumulated_gradients_continues_bit_for_bit() -> None:
    options = [*IN_STEPS, "--trainer.accumulate_grad_batches", "2", "--model.network.init_args.dropout", "0.3"]
    whole = fit("digits_mixit", "whole", *options, "--trainer.max_steps", "5")
    fit("digits_mixit", "parts", *options, "--trainer.max_steps", "3")
    parts = fit("digits_mixit", "parts", *options, "--trainer.max_steps", "5", "--ckpt_path", "last")
    assert_same(whole["state_dict"], parts["state_dict"])


def test_a_signal_ends_the_run_with_a_checkpoint_that_continues_bit_for_bit() -> None:
    options = [*IN_STEPS, "--model.network.init_args.dropout", "0.3", "--trainer.logger", "MetricsCSV"]
    args = [*arguments("digits_mixit", Path()), "--trainer.default_root_dir", "parts", *options]
    command = [sys.executable, "-m", "surf_lightning", *args]
    command += ["--trainer.max_steps", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    last = Path("parts/checkpoints/last.ckpt")
    while not last.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert said.endswith(f"Stopped after step {stopped_at}; the same command with --ckpt_path last goes on.\n")
    assert "Traceback" not in said
    assert not list(last.parent.glob(".*"))
    steps = ["--trainer.max_steps", str(stopped_at + 3)]
    parts = fit("digits_mixit", "parts", *options, *steps, "--data.batches_per_epoch", "2", "--ckpt_path", "last")
    whole = fit("digits_mixit", "whole", *options, *steps, "--data.batches_per_epoch", "2")
    assert_same(whole["state_dict"], parts["state_dict"])


KILLED = """
import os, sys
from surf_lightning.callbacks.media import Media
from surf_lightning.cli import main
Media.on_train_batch_start = lambda self, trainer, *_: trainer.global_step == 6 and os._exit(9)
main(sys.argv[1:])
"""


def test_readers_of_a_run_that_was_killed_and_resumed_see_one_that_was_not() -> None:
    options = ["--trainer.max_steps", "9"]
    fit("digits_mixit", "whole", *options)
    args = [*arguments("digits_mixit", Path()), "--trainer.default_root_dir", "parts", "--data.batches_per_epoch", "4"]
    args += ["--trainer.logger", "MetricsCSV", *options]
    done = subprocess.run([sys.executable, "-c", KILLED, *args], check=False)
    assert done.returncode == 9
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert max(curves("parts")["loss"]) == 5  # beyond the checkpoint
    fit("digits_mixit", "parts", *options, "--ckpt_path", "last")
    assert curves("parts") == curves("whole")
    args[0] = "test"
    assert main(args) == 0
    assert main(["validate", *args[1:]]) == 0
    assert curves("parts") == curves("whole")


def test_a_moved_run_still_knows_its_best_score() -> None:
    first = fit("digits_mixit", "before", "--trainer.max_steps", "8")
    Path("before").rename("after")
    second = fit(
        "digits_mixit", "after", "--trainer.max_steps", "9", "--ckpt_path", "last", "--data.num_validation", "4"
    )
    (score, again) = (
        next(state["best_model_score"] for key, state in checkpoint["callbacks"].items() if "val/psnr" in key)
        for checkpoint in (first, second)
    )
    assert again >= score
    assert Path("after/checkpoints/best.ckpt").is_file()


def test_a_run_resumed_with_another_batch_says_so() -> None:
    fit("digits_mixit", "run", "--trainer.max_steps", "2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch, steps in (("4", "3"), ("6", "4")):
            fit("digits_mixit", "run", "--trainer.max_steps", steps, "--ckpt_path", "last", "--data.batch_size", batch)
    said = [str(warning.message) for warning in caught if "mixtures a batch" in str(warning.message)]
    assert said == [
        "The resumed run goes on with 6 mixtures a batch (data.batch_size, times the processes), NOT with the 4 it "
        "began with."
    ]
