"""How far a batch is: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import IO

from tqdm import tqdm

from surf_lightning.inference.inputs import shown
from surf_lightning.inference.pipeline import Course

EVERY = 60.0  # seconds between two lines within a file


class Progress:
    """Counts seconds of audio, or images, over all workers as far as this one knows."""

    def __init__(self, files: int, seconds: float) -> None:
        self.files, self.total, self.done, self.finished = files, seconds, 0.0, 0
        self.start = self.said = time.perf_counter()
        unit = {"total": seconds, "unit": "s"} if seconds else {"total": files, "unit": "file"}
        form = "{desc} {percentage:.0f}%|{bar}| {remaining} left"
        self.bar: tqdm[None] = tqdm(**unit, disable=None, leave=False, bar_format=form, file=sys.stderr)

    def advance(self, course: Course, seconds: float) -> None:
        """So many seconds of a file are done."""
        self.done, course.seconds = self.done + seconds, course.seconds + seconds
        share = min(1.0, course.seconds / course.job.seconds) if course.job.seconds else 1.0
        said = f"{shown(course.job.path)} {share:.0%}"
        if not self.bar.disable:
            self.bar.set_description_str(said, refresh=False)
            self.bar.update(seconds)
        elif time.perf_counter() - self.said > EVERY and share < 1:
            self.say(f"{said}{self._left()}")

    def file_done(self, seconds: float, course: Course | None = None, remarks: Sequence[str] | None = None) -> None:
        """A file has been settled: by this worker on its ``course``, with ``remarks`` if it is done, or by another."""
        rest = seconds - (course.seconds if course else 0.0)
        self.done, self.finished = self.done + rest, self.finished + 1
        self.bar.update(rest if self.total else 1)
        if course is not None and remarks is not None:
            took = time.perf_counter() - course.began
            self.say(f"[{self.finished}/{self.files}] {shown(course.job.path)}: {speed(seconds, took)}{self._left()}")
            for remark in remarks:
                self.say(f"    {remark}")

    def say(self, line: str, stream: IO[str] | None = None) -> None:
        """Print a line above the bar."""
        self.said = time.perf_counter()
        tqdm.write(line, file=stream or sys.stdout)
        (stream or sys.stdout).flush()

    def _left(self) -> str:
        done, total = (self.done, self.total) if self.total else (self.finished, self.files)
        if not 0 < done < total:
            return ""
        left = (time.perf_counter() - self.start) * (total - done) / done
        return f", {tqdm.format_interval(left)} left"


def speed(audio_seconds: float, seconds: float) -> str:
    """For the user."""
    if audio_seconds == 0:
        return f"{seconds:.1f} s"
    return f"{audio_seconds:.1f} s of audio in {seconds:.1f} s (real-time factor {seconds / audio_seconds:.3f})"
