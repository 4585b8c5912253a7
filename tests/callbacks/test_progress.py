"""How often the progress bar looks at the numbers."""

from __future__ import annotations

import pytest

from surf_lightning.callbacks import progress


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
