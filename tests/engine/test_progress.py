"""How often the progress bar looks at the numbers."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from surf_lightning.engine import progress


def test_the_bar_is_drawn_once_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    bar = progress.Progress()
    drawn = []
    for step in range(1, 11):
        if bar._should_update(step, 10):
            drawn.append(step)
        now[0] += 0.3
    assert drawn == [1, 5, 9, 10]
    bar.disable()  # as on all ranks but the first
    assert not bar._should_update(10, 10)


def test_a_bar_of_the_users_is_the_only_one() -> None:
    assert [type(bar) for bar in progress.progress_bar(True, [])] == [progress.Progress]
    assert progress.progress_bar(False, []) == progress.progress_bar(True, [TQDMProgressBar()]) == []
