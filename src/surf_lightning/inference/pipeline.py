"""Reading, separating and writing files at the same time; windows of one shape, of any files, in one batch."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from surf_lightning.inference.inputs import check_regular
from surf_lightning.inference.jobs import Done, Job, Task, Work
from surf_lightning.inference.sampling import Window

M_MMAP_THRESHOLD, LARGE = -3, 1 << 18  # of malloc.h; bytes
MOST = 64  # windows of the batch that a device's memory decides
IMAGES = 32  # of a batch on a CPU
ROOM = 0.5  # of a device's free memory that a batch may take

Separated = tuple[int, Tensor]
"""The first sample of a window in its stream, and its planes."""


@dataclass
class Course:
    """A file on its course: read, separated, written."""

    job: Job
    folder: Path
    work: Work | None = None
    failed: bool = False
    sent: int = 0
    """Windows read."""
    written: int = 0
    seconds: float = 0.0
    """So many of it are done."""
    began: float = field(default_factory=time.perf_counter)
    held: dict[int, Separated | None] = field(default_factory=dict)
    """Separated windows whose turn has not come: others of their shape were more."""


Found = tuple[Course | None, Window | Exception | None]
"""A file with a window of it, None at its end, or what is wrong with it; no file where none comes for a while."""


class Observer(Protocol):
    """Is told by the writer's thread that a file is complete, cannot be separated, or so many seconds further."""

    def finished(self, course: Course, done: Done) -> None: ...

    def failed(self, course: Course, error: Exception) -> None: ...

    def advanced(self, course: Course, seconds: float) -> None: ...


class Pipeline:
    """Three threads: one reads ahead, the caller's separates in batches, one joins the windows and writes.

    What waits between them is bounded by two batches. A ``batch`` is so many windows, or as many samples of shorter
    files; with 1 each window is alone, and its samples do not depend on what comes with it. If None, the device's
    memory decides: 1 on a CPU.
    """

    def __init__(self, task: Task, observer: Observer, batch: int | None = None) -> None:
        self.task, self.observer = task, observer
        self.device = next(task.separator.parameters(), torch.zeros(0)).device
        is_image = task.separator.signal["kind"] == "image"
        self.batch = batch or (IMAGES if is_image else 1)
        self.measures = batch is None and self.device.type == "cuda"
        self._waiting: dict[tuple[int, ...], list[tuple[Course, int, Window]]] = {}
        self._writer = ThreadPoolExecutor(1)
        self._writes: deque[Future[None]] = deque()

    def run(self, courses: Iterator[Course | None]) -> None:
        """Separate files as they come; None says that none comes for a while.

        An interruption lets the files that are read to their end be written. What is wrong with one file leaves the
        others alone. Of what is not finished, the folder is for the caller to remove.
        """
        return_large_blocks()
        reader = ThreadPoolExecutor(1)
        try:
            for course, found in self._ahead(reader, courses):
                self._take(course, found)
            self._flush()
        finally:
            reader.shutdown(cancel_futures=True)
            self._writer.shutdown()
        for write in self._writes:
            write.result()

    def _ahead(self, reader: Executor, courses: Iterator[Course | None]) -> Iterator[Found]:
        """What ``reader`` finds while the caller uses what it has found before."""
        found, waiting = self._read(courses), deque[Future[Found | None]]()
        while True:
            while len(waiting) < 2 * self.batch:
                waiting.append(reader.submit(next, found, None))
            if (item := waiting.popleft().result()) is None:
                return
            yield item

    def _read(self, courses: Iterator[Course | None]) -> Iterator[Found]:
        for course in courses:
            try:
                if course is not None:
                    course.folder.mkdir(parents=True, exist_ok=True)
                    check_regular(course.job.path)
                    course.work = self.task.open(course.job, course.folder)
                    for window in course.work.windows():
                        yield course, window
                        if course.failed:
                            break
                yield course, None
            except Exception as error:
                yield course, error

    # -- the caller's thread --

    def _take(self, course: Course | None, found: Window | Exception | None) -> None:
        if course is None:  # nothing to read for a while: others may wait for what waits here
            self._flush()
        elif found is None or isinstance(found, Exception):
            self._hand_over(course, course.sent, found)
        elif not course.failed:
            group = self._waiting.setdefault(tuple(found[1].shape[1:]), [])
            group.append((course, course.sent, found))
            course.sent += 1
            if self.batch == 1 or self._size(group) >= self.batch * self.task.window:
                self._separate(group)
            elif sum(map(self._size, self._waiting.values())) >= 2 * self.batch * self.task.window:
                self._separate(max(self._waiting.values(), key=self._size))

    def _hand_over(self, course: Course, number: int, separated: Separated | Exception | None) -> None:
        """Hand over to the writer's thread; raises what it could not even record as a file's failure."""
        while len(self._writes) >= 2 * self.batch:
            self._writes.popleft().result()
        self._writes.append(self._writer.submit(self._write, course, number, separated))

    @staticmethod
    def _size(group: list[tuple[Course, int, Window]]) -> int:
        return sum(rows.shape[0] * rows.shape[-1] for _, _, (_, rows) in group)

    def _flush(self) -> None:
        for group in self._waiting.values():
            if group:
                self._separate(group)

    def _separate(self, group: list[tuple[Course, int, Window]]) -> None:
        waiting, group[:] = [item for item in group if not item[0].failed], []
        if not waiting:
            return
        try:
            separated = self._evaluate([window for _, _, window in waiting])
        except Exception as error:
            for course, number, _ in waiting:
                self._hand_over(course, number, error)
            return
        for (course, number, (at, _)), planes in zip(waiting, separated, strict=True):
            self._hand_over(course, number, (at, planes))

    def _evaluate(self, windows: list[Window]) -> list[Tensor]:
        """Half as many at a time if the device's memory does not hold them."""
        try:
            return self._measured(windows) if self.measures else self._separated(windows)
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                raise
            half = len(windows) // 2
            self.batch = max(1, self.batch // 2)
            return self._evaluate(windows[:half]) + self._evaluate(windows[half:])

    def _separated(self, windows: list[Window]) -> list[Tensor]:
        rough = self.task.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=rough):
            return self.task.separate(windows)

    def _measured(self, windows: list[Window]) -> list[Tensor]:
        """The first evaluation on CUDA: its peak of memory tells how many windows a batch may have."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        separated = self._separated(windows)
        share = sum(rows.shape[0] * rows.shape[-1] for _, rows in windows) / self.task.window
        peak = (torch.cuda.max_memory_allocated(self.device) - before) / share
        self.batch = windows_that_fit(torch.cuda.mem_get_info(self.device)[0], peak)
        self.measures = False
        return separated

    # -- the writer's thread --

    def _write(self, course: Course, number: int, separated: Separated | Exception | None) -> None:
        if course.failed:
            return
        try:
            self._add(course, number, separated)
        except Exception as error:
            course.failed = True
            if course.work is not None:
                course.work.abandon()
            self.observer.failed(course, error)

    def _add(self, course: Course, number: int, separated: Separated | Exception | None) -> None:
        if isinstance(separated, Exception):
            raise separated
        course.held[number] = separated
        while course.written in course.held and course.work is not None:
            planes = course.held.pop(course.written)
            course.written += 1
            if planes is not None:
                self.observer.advanced(course, course.work.add(*planes))
            else:
                self.observer.finished(course, course.work.finish())


def return_large_blocks() -> None:
    """Let glibc give every freed tensor back: one thread frees what another allocated, and its heaps would grow."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def windows_that_fit(free: int, peak: float) -> int:
    """Windows of a batch, if ``free`` bytes are left and one takes ``peak``."""
    return max(1, min(MOST, int(ROOM * free / max(peak, 1.0))))
