"""SIGTERM, SIGUSR1 and Ctrl-C, once and twice: in a validation, while a checkpoint is written, in an evaluation."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning.callbacks.results import PrintedResult
from surf_lightning.cli import main
from surf_lightning.engine import checkpoints
from surf_lightning.engine.checkpoints import LastCheckpoint
from surf_lightning.engine.signals import SIGNALS, held
from surf_lightning.reporting.runs import read_curves
from tests.test_configs import arguments

STATUS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
VALIDATIONS = ["--trainer.logger", "MetricsCSV", "--data.batches_per_epoch", "4", "--data.num_validation", "12"]


def surf(folder: str, *more: str, command: str = "fit") -> int:
    return main([*arguments("digits_mixit", Path(), command), "--trainer.default_root_dir", folder, *more])


def weights(path: str) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True)
    return {**checkpoint["state_dict"], "step": torch.tensor(checkpoint["global_step"])}


def signalled_in_validation(monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    plain = LastCheckpoint.on_validation_batch_end

    def hook(self: LastCheckpoint, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == step and batch_idx == 1:
            os.kill(os.getpid(), number)
        assert (trainer.global_step, batch_idx) != (step, 2), "the validation was to be left"
        plain(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(LastCheckpoint, "on_validation_batch_end", hook)


@pytest.mark.parametrize(
    ("number", "interval", "step", "steps"),
    [
        (signal.SIGTERM, "4", 4, "6"),
        (signal.SIGINT, "2", 4, "6"),
        (signal.SIGTERM, "2", 6, "6"),  # no step is left to make
        (signal.SIGTERM, "4", 8, "8"),  # as before, at the end of an epoch
    ],
)
def test_a_signal_in_a_validation_saves_and_the_resumed_run_begins_with_it(
    number: signal.Signals, interval: str, step: int, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*VALIDATIONS, "--trainer.val_check_interval", interval, "--trainer.max_steps", steps]
    with monkeypatch.context() as patched:
        signalled_in_validation(patched, number, step)
        with pytest.raises(SystemExit, match=str(STATUS[number])):
            surf("parts", *options)
    assert weights("parts/checkpoints/last.ckpt")["step"] == step
    assert surf("parts", *options, "--ckpt_path", "last") == surf("whole", *options) == 0
    curves = [read_curves(Path(run, "metrics.csv")) for run in ("parts", "whole")]
    assert curves[0] == curves[1]
    for name in ("last", "best"):
        left, right = (weights(f"{run}/checkpoints/{name}.ckpt") for run in ("parts", "whole"))
        assert all(torch.equal(left[key], value) for key, value in right.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_wait_until_a_checkpoint_is_written(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them: the second Ctrl-C would otherwise end the run at once."""
    plain = torch.save

    def save(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        plain(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.torch, "save", save)
        with pytest.raises(SystemExit, match=str(STATUS[number])):
            surf("run", "--trainer.max_steps", "6")
    files = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert files in (["best.ckpt"], ["best.ckpt", "last.ckpt"])
    assert weights("run/checkpoints/best.ckpt")["step"] == 2


def test_a_second_ctrl_c_ends_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(self: Any, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("unreachable")

    monkeypatch.setattr("surf_lightning.methods.mixit.MixIT.loss", hang)
    with pytest.raises(SystemExit, match="130"):
        surf("run")


@pytest.mark.parametrize(("command", "number"), [("test", signal.SIGTERM), ("validate", signal.SIGINT)])
def test_an_evaluation_that_is_stopped_says_so_and_leaves_nothing(
    number: signal.Signals, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    surf("run")
    stopped = lambda self, *_: os.kill(os.getpid(), number)  # noqa: E731
    monkeypatch.setattr(PrintedResult, f"on_{command.replace('ate', 'ation')}_batch_end", stopped, raising=False)
    with pytest.raises(SystemExit, match=str(STATUS[number])):
        surf("run", command=command)
    assert not Path("run/metrics.json").exists()
    assert "psnr" not in capsys.readouterr().out.lower()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_held_comes_after() -> None:
    order: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: order.append("signal"))
    try:
        with held():
            os.kill(os.getpid(), signal.SIGUSR1)
            order.append("block")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert order == ["block", "signal"]
