"""Which checkpoints a fit leaves: by time, the newest few, and where the user stops it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from surf_lightning.cli import main
from surf_lightning.engine import checkpoints
from surf_lightning.engine.checkpoint_io import AtomicCheckpointIO
from surf_lightning.engine.checkpoints import LastCheckpoint, keep_newest
from surf_lightning.engine.loggers import MetricsCSV
from surf_lightning.reporting.runs import read_curves
from tests import tiny
from tests.test_configs import arguments

LAST = Path("run/checkpoints/last.ckpt")


def fit(*more: str) -> list[str]:
    args = [*arguments("digits_mixit", Path()), "--trainer.default_root_dir", "run", *more]
    assert main(args) == 0
    return sorted(path.name for path in LAST.parent.iterdir())


def step(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


@contextmanager
def signalled(number: int, at: int = 1) -> Iterator[pytest.ExceptionInfo[SystemExit]]:
    """A signal comes after step ``at`` of a fit, and ends it."""
    plain = LastCheckpoint.on_train_batch_end

    def interrupted(self: LastCheckpoint, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == at:
            os.kill(os.getpid(), number)
        plain(self, trainer, *args)

    before = signal.getsignal(signal.SIGTERM)
    with mock.patch.object(LastCheckpoint, "on_train_batch_end", interrupted), pytest.raises(SystemExit) as stopped:
        yield stopped
    signal.signal(signal.SIGTERM, before)  # a requeued job's processes, which are about to end, ignore it


def test_the_newest_few_are_kept_by_their_steps_across_resumes() -> None:
    steps = ["--checkpoints.keep", "3", "--data.batches_per_epoch", "1", "--trainer.max_steps"]
    assert fit(*steps, "4") == ["best.ckpt", "last.ckpt", *(f"step_000000{n}.ckpt" for n in (2, 3, 4))]
    kept = fit(*steps, "6", "--ckpt_path", "last")
    assert kept == ["best.ckpt", "last.ckpt", *(f"step_000000{n}.ckpt" for n in (4, 5, 6))]
    assert [step(LAST.with_name(name)) for name in kept[1:]] == [6, 4, 5, 6]
    # An earlier one is gone back to: what is removed is what was written first, whatever its step.
    earlier = str(LAST.with_name("step_0000004.ckpt"))
    assert fit(*steps, "5", "--ckpt_path", earlier) == kept
    assert step(LAST) == 5


def test_without_links_a_copy_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    last = tmp_path / "last.ckpt"
    (tmp_path / "step_step=1.ckpt").write_text("the user's own")
    for number in range(1, 5):
        last.write_text(str(number))
        os.utime(last, ns=(number, number))
        keep_newest(last, number, keep=2)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept.pop("step_step=1.ckpt")
    assert kept == {"last.ckpt": "4", "step_0000003.ckpt": "3", "step_0000004.ckpt": "4"}


def test_a_checkpoint_is_written_when_its_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second a step, a validation that never comes: every 3 steps and at the end."""
    now = [0.0]

    written: list[int] = []
    monkeypatch.setattr(checkpoints, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    plain = LastCheckpoint.on_train_batch_end

    def clocked(self: LastCheckpoint, trainer: object, *args: object) -> None:
        now[0] += 1
        plain(self, trainer, *args)  # type: ignore[arg-type]
        saved = self._last_global_step_saved
        if saved and saved not in written:
            written.append(saved)

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", clocked)
    options = ["--data.batches_per_epoch", "100", "--trainer.max_steps", "8"]
    fit(*options, "--checkpoints.every_minutes", str(2.5 / 60))
    assert written == [3, 6]
    assert step(LAST) == 8


def test_the_numbers_of_a_step_are_on_disk_before_a_checkpoint_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any callback's: a kill between the two would lose them, as the resumed run does not repeat the step."""
    logged: dict[str, set[int]] = {}
    plain = AtomicCheckpointIO.save_checkpoint

    def noted(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, **options: Any) -> None:
        logged[f"{checkpoint['global_step']} {Path(path).name}"] = set(read_curves(Path("run/metrics.csv"))["loss"])
        plain(self, checkpoint, path, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    of_the_user = ModelCheckpoint("run/checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"logger": MetricsCSV("run"), "log_every_n_steps": 1, "callbacks": [of_the_user]}
    options["checkpoints"] = {"every_minutes": 1e-9}
    tiny.trainer(Path("run"), **options).fit(tiny.mixit(), tiny.digits())
    first, both = {0}, {0, 1}
    assert logged == {
        "1 step=1.ckpt": first, "1 last.ckpt": first, "2 step=2.ckpt": both, "2 last.ckpt": both, "2 best.ckpt": both
    }  # fmt: skip


@pytest.mark.parametrize(("seconds", "asked"), [(0.01, [1, 21, 41]), (2.0, [1, 2, 3, 4, 5])])
def test_ranks_agree_seldom_where_steps_are_fast_and_always_where_they_are_slow(
    seconds: float, asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cluster's warning is of 30 to 90 seconds: 20 slow steps would outlast it."""
    steps: list[int] = []
    ranks = SimpleNamespace(reduce_boolean_decision=lambda here, all: steps.append(trainer.global_step) or here)
    trainer: Any = SimpleNamespace(world_size=2, strategy=ranks, fit_loop=SimpleNamespace(_should_accumulate=bool))
    callback = LastCheckpoint(tmp_path)
    for step in range(1, asked[-1] + 1):
        trainer.global_step = step
        monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda now=step * seconds: now))
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert sorted(set(steps)) == asked


def test_ctrl_c_ends_with_a_checkpoint_says_how_to_go_on_and_means_afterwards_what_it_did(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = [signal.getsignal(number) for number in checkpoints.SIGNALS]
    fit()
    assert [signal.getsignal(number) for number in checkpoints.SIGNALS] == before
    with signalled(signal.SIGINT) as stopped, caplog.at_level("INFO"):
        fit()
    assert stopped.value.code == 130
    assert caplog.messages[-1] == "Stopped after step 1; the same command with --ckpt_path last goes on."
    assert [signal.getsignal(number) for number in checkpoints.SIGNALS] == before
    assert step(LAST) == 1


@pytest.mark.parametrize(
    ("number", "task", "requeued"),
    [
        (signal.SIGTERM, None, "1234"),
        (signal.SIGUSR1, None, "1234"),
        (signal.SIGUSR1, "0", "1234_0"),  # of an array: its number alone means all tasks
        (signal.SIGINT, None, None),
    ],
)
def test_a_slurm_job_that_is_signalled_goes_back_into_the_queue(
    number: int,
    task: str | None,
    requeued: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    if task:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1234")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    with signalled(number), caplog.at_level("INFO"):
        fit()
    assert step(LAST) == 1
    assert (caplog.messages[-1] == "preempted at step 1, checkpoint written, requeued") == bool(requeued)
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else None) == (f"requeue {requeued}\n" if requeued else None)


def test_a_job_that_cannot_be_requeued_ends_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container there may be no scontrol."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    with pytest.warns(UserWarning, match="submit it again"), signalled(signal.SIGTERM) as stopped:
        fit()
    assert stopped.value.code == 143
    assert step(LAST) == 1


def test_a_validation_amid_accumulated_gradients_leaves_its_checkpoint_to_the_next_step() -> None:
    """The gradients so far are in no checkpoint: one written then would not go on as the run does."""
    options = ["--data.batches_per_epoch", "8", "--trainer.accumulate_grad_batches", "4"]
    options += ["--trainer.val_check_interval", "6", "--trainer.max_steps", "4", "--checkpoints.keep", "10"]
    fit(*options)
    whole = torch.load(LAST, weights_only=True)
    named = sorted(LAST.parent.glob("step_*.ckpt"))
    assert [path.name for path in named] == ["step_0000002.ckpt", "step_0000004.ckpt"]
    shutil.copy(named[0], "first.ckpt")
    fit(*options, "--ckpt_path", "first.ckpt")
    again = torch.load(LAST, weights_only=True)
    assert all(torch.equal(again["state_dict"][name], weight) for name, weight in whole["state_dict"].items())


def curves(run: str) -> dict[str, dict[int, float]]:
    return read_curves(Path(run, "metrics.csv"))


EPOCHS = ["--data.batches_per_epoch", "4", "--trainer.logger", "MetricsCSV"]
EPOCHS += ["--model.decay_steps", "9", "--trainer.max_steps"]  # the schedule is that of the whole run


def left(run: str) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """The curves and the best checkpoint."""
    return curves(run), torch.load(Path(run, "checkpoints/best.ckpt"), weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """What a run of nine steps leaves that is never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        fit(*EPOCHS, "9")
        return left("run")


@pytest.mark.parametrize("stopped_after", [3, 4])  # in mid-epoch; at its last batch, before the validation
def test_a_stop_just_before_a_validation_leaves_none_out(stopped_after: int, whole: Any) -> None:
    with signalled(signal.SIGTERM, stopped_after):
        fit(*EPOCHS, "9")
    assert step(LAST) == stopped_after
    for ends in (["9"], ["4", "9"]):  # it is not stopped again, or as soon as it went on
        shutil.copytree("run", "parts")
        for end in ends:
            fit(*EPOCHS, end, "--ckpt_path", "last", "--trainer.default_root_dir", "parts")
        found, best = left("parts")
        assert found == whole[0]
        assert best["global_step"] == whole[1]["global_step"]
        assert all(torch.equal(value, whole[1]["state_dict"][name]) for name, value in best["state_dict"].items())
        shutil.rmtree("parts")


@pytest.mark.parametrize("method", ["surf_rm", "remixit"])
def test_without_truth_and_with_a_moving_teacher_the_best_is_that_of_momi(
    method: str, audio_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss grows as beta falls, or as the student's own average teaches: its least says nothing of the weights."""
    steps = ["--trainer.max_steps", "6", "--trainer.logger", "MetricsCSV"]
    schedule = ["--model.beta_steps", "2"] if method == "surf_rm" else ["--model.teacher_steps", "3"]
    assert main(arguments("folder_mixit", audio_sets)) == 0
    args = [*arguments(f"folder_{method}", audio_sets), "--trainer.default_root_dir", "run"]
    assert main([*args, *steps, *schedule]) == 0
    momi = curves("run")["val/momi"]
    means = {last: np.mean([momi[each] for each in momi if each <= last][-3:]) for last in momi}
    assert step(LAST.with_name("best.ckpt")) == max(means, key=means.__getitem__) + 1
    logged = curves("run")["val/loss"]
    assert len(logged) == 3
    capsys.readouterr()
    assert main(["validate", *args[1:], *schedule, "--ckpt_path", "last"]) == 0
    assert f"{logged[max(logged)]:.3g}" in capsys.readouterr().out
