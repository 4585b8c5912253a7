"""What a fit tells of itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surf_lightning.engine import progress
from surf_lightning.engine.progress import Progress, duration
from tests.tiny import digits, mixit, trainer


def fit(steps: int, **options: Any) -> Progress:
    fitter = trainer(Path("run"), max_steps=steps, enable_progress_bar=True, limit_val_batches=0)
    fitter.fit(mixit(), digits(batches_per_epoch=4), **options)
    return next(each for each in fitter.callbacks if isinstance(each, Progress))  # type: ignore[attr-defined]


def test_redirected_output_has_lines_of_the_whole_run_and_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TIMED", 2)
    fit(6)
    told, last = capsys.readouterr().out.splitlines()
    assert told.startswith("2 steps took ")
    assert told.endswith(" s to step 6")
    assert last.startswith("step 6 of 6, loss ")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    fit(9, ckpt_path="run/checkpoints/last.ckpt")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("step")] == [
        f"step {step} of 9" for step in (7, 8, 9, 9)
    ]
    assert " left, loss " in next(line for line in lines if line.startswith("step 8 of 9"))


def test_the_bar_is_of_the_whole_run_after_a_resume_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fit(6)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    drawn = fit(11, ckpt_path="run/checkpoints/last.ckpt").train_progress_bar
    assert (drawn.initial, drawn.n, drawn.total) == (6, 11, 11)
    assert "loss=" in str(drawn.postfix)
    assert "v_num" not in str(drawn.postfix)


def test_the_bar_is_drawn_once_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar = Progress()
    bar.draws = True
    drawn = []
    for step in range(1, 11):
        if bar._should_update(step, 10):
            drawn.append(step)
        now[0] += 0.3
    assert drawn == [1, 5, 9, 10]
    bar.disable()  # as on all ranks but the first
    assert not bar._should_update(10, 10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (89, "89 s"), (720, "12 min"), (6300, "1 h 45 min"), (183_600, "2 d 3 h"), (3599, "1 h 0 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_on_a_full_disk_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr(progress, "LINE_EVERY", 0)
        run = trainer(Path("run"), enable_progress_bar=True, max_steps=4)
        run.fit(mixit(), digits())
        assert run.global_step == 4
        full.flush()  # nothing is left that could not be written
