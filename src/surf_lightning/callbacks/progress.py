"""The progress bar."""

from __future__ import annotations

import time

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Redrawn once a second, not every step: a number on the screen is read from the device, which waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0.0

    def _should_update(self, current: int, total: int) -> bool:
        due = self.is_enabled and (current == total or time.monotonic() - self._drawn >= 1)
        self._drawn = time.monotonic() if due else self._drawn
        return due
