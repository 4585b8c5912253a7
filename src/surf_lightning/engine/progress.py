"""The progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterable

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar


class Progress(TQDMProgressBar):
    """Redrawn once a second, not every step: a number on the screen is read from the device, which waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0.0

    def _should_update(self, current: int, total: int) -> bool:
        due = self.is_enabled and (current == total or time.monotonic() - self._drawn >= 1)
        self._drawn = time.monotonic() if due else self._drawn
        return due


def progress_bar(wanted: bool, callbacks: Iterable[L.Callback]) -> list[L.Callback]:
    """Ours, where one is wanted and ``callbacks`` have none: two would be an error."""
    return [Progress()] if wanted and not any(isinstance(callback, ProgressBar) for callback in callbacks) else []
