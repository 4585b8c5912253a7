"""Reading, separating and writing files at the same time; windows of one shape, of any files, in one batch."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Iterator
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
    complete: bool = False
    sent: int = 0
    """Windows read."""
    written: int = 0
    began: float = field(default_factory=time.perf_counter)
    held: dict[int, Separated | None] = field(default_factory=dict)
    """Separated windows whose turn has not come: others of their shape were more."""

    def abandon(self) -> None:
        """Remove what has been written."""
        if self.work is not None:
            self.work.abandon()


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
        self._read: queue.Queue[tuple[Course | None, Window | None] | None] = queue.Queue(2 * self.batch)
        self._write: queue.Queue[tuple[Course, int, Separated | Exception | None] | None] = queue.Queue(2 * self.batch)
        self._waiting: dict[tuple[int, ...], list[tuple[Course, int, Window]]] = {}
        self._stop = threading.Event()
        self._fatal: BaseException | None = None

    def run(self, courses: Iterator[Course | None]) -> None:
        """Separate files as they come; None says that none comes for a while.

        An interruption lets the files that are read to their end be written. What is wrong with one file leaves the
        others alone.
        """
        return_large_blocks()
        threads = [threading.Thread(target=self._reader, args=(courses,)), threading.Thread(target=self._writer)]
        for thread in threads:
            thread.start()
        reading = True
        try:
            while (item := self._read.get()) is not None:
                self._take(*item)
            reading = False
            self._flush()
        finally:
            self._stop.set()
            while reading and self._read.get() is not None:
                pass
            self._write.put(None)
            for thread in threads:
                thread.join()
        if self._fatal is not None:
            raise self._fatal

    # -- the reader's thread --

    def _reader(self, courses: Iterator[Course | None]) -> None:
        try:
            for course in courses:
                if course is None:
                    self._hand((None, None))
                else:
                    self._read_file(course)
                if self._stop.is_set():
                    break
        except BaseException as error:
            self._fatal = error
            self._stop.set()
        finally:
            self._read.put(None)

    def _read_file(self, course: Course) -> None:
        try:
            course.folder.mkdir(parents=True, exist_ok=True)
            check_regular(course.job.path)
            course.work = self.task.open(course.job, course.folder)
            for window in course.work.windows():
                if self._stop.is_set() or course.failed:
                    return
                self._hand((course, window))
            self._hand((course, None))
        except Exception as error:
            self._write.put((course, course.sent, error))

    def _hand(self, item: tuple[Course | None, Window | None]) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._read.put(item, timeout=0.1)

    # -- the caller's thread --

    def _take(self, course: Course | None, window: Window | None) -> None:
        if course is None:  # nothing to read for a while: others may wait for what waits here
            self._flush()
        elif window is None:
            self._write.put((course, course.sent, None))
        elif not course.failed:
            group = self._waiting.setdefault(tuple(window[1].shape[1:]), [])
            group.append((course, course.sent, window))
            course.sent += 1
            if self.batch == 1 or self._size(group) >= self.batch * self.task.window:
                self._separate(group)
            elif sum(map(self._size, self._waiting.values())) >= 2 * self.batch * self.task.window:
                self._separate(max(self._waiting.values(), key=self._size))

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
                self._write.put((course, number, error))
            return
        for (course, number, (at, _)), planes in zip(waiting, separated, strict=True):
            self._write.put((course, number, (at, planes)))

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
        self._read.maxsize = self._write.maxsize = 2 * self.batch
        self.measures = False
        return separated

    # -- the writer's thread --

    def _writer(self) -> None:
        open_courses: dict[int, Course] = {}
        while (item := self._write.get()) is not None:
            course, number, separated = item
            open_courses[id(course)] = course
            try:
                if not (course.failed or self._fatal):
                    self._add(course, number, separated)
            except Exception as error:
                self._fail(course, error)
            except BaseException as error:
                self._fatal = error
                self._stop.set()
            if course.failed or course.complete:
                open_courses.pop(id(course))
        if self._fatal is None:
            for course in open_courses.values():
                course.abandon()

    def _fail(self, course: Course, error: Exception) -> None:
        course.failed = True
        course.abandon()
        try:
            self.observer.failed(course, error)
        except BaseException as fatal:  # not even that can be recorded
            self._fatal = fatal
            self._stop.set()

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
                course.complete = True
                self.observer.finished(course, course.work.finish())


def return_large_blocks() -> None:
    """Let glibc give every freed tensor back: one thread frees what another allocated, and its heaps would grow."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def windows_that_fit(free: int, peak: float) -> int:
    """Windows of a batch, if ``free`` bytes are left and one takes ``peak``."""
    return max(1, min(MOST, int(ROOM * free / max(peak, 1.0))))
