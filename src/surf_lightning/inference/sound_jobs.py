"""Recordings to one file a source. Axes: C channels, K sources, P planes, n samples, W of a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from surf_lightning.audio.band import lost_band
from surf_lightning.audio.containers import CONTAINERS
from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.audio.streams import AudioFile, SourceWriter, source_paths
from surf_lightning.inference.events import EventDetector, event_paths, write_events
from surf_lightning.inference.jobs import Done, Job, Settings, Task, Work, manifest_rows
from surf_lightning.inference.sampling import Window, separate_windows
from surf_lightning.inference.separator import Separator
from surf_lightning.inference.streaming import Chunk, FileStream, num_separated, sample_rate


class AudioTask(Task):
    """Recordings of any rate and number of channels."""

    extensions = (*EXTENSIONS, *CONTAINERS)

    def __init__(self, separator: Separator, settings: Settings) -> None:
        super().__init__(separator, settings)
        self.window = settings.windows.samples(sample_rate(separator)).length

    def plan(self, path: Path, stem: Path) -> Job:
        file, settings = AudioFile.open(path), self.settings
        samples = file.frames * num_separated(file, settings.channels)
        coded = file.source_format(settings.format, settings.samples)
        formats = (each.for_size(samples) for each in (coded, coded.as_float() if coded.step else coded))
        names = {name for each in formats for name in source_paths(stem, self.num_sources, each, settings.names)}
        others = [*self.curve_paths(stem), *event_paths(stem, settings.events).values()]
        size = self.num_sources * samples * coded.bits // 8
        return Job(path, stem, (*sorted(names), *others), size, file.frames / file.rate)

    def open(self, job: Job, folder: Path) -> Work:
        return AudioWork(self, job, folder)

    def separate(self, windows: list[Window]) -> list[Tensor]:
        return separate_windows(self.separator, windows, self.settings.num_samples, self.settings.seed)


class AudioWork(Work):
    """A recording on its way. Arguments as of ``Task.open``."""

    def __init__(self, task: AudioTask, job: Job, folder: Path) -> None:
        settings = task.settings
        self.task, self.job, self.file, self.stem = task, job, AudioFile.open(job.path), folder / job.stem.name
        self.stream = FileStream(task.separator, self.file, settings.channels, settings.windows, settings.num_samples)
        self.coded = self.file.source_format(settings.format, settings.samples)
        rate, channels, num_sources = self.file.rate, self.stream.num_channels, task.num_sources
        self.products = torch.zeros(num_sources, num_sources, dtype=torch.float64)
        self.points: list[Tensor] = []
        self.events = EventDetector(rate, num_sources) if settings.events else None
        samples = self.file.frames * channels
        self.writer = SourceWriter(self.stem, num_sources, rate, channels, samples, self.coded, settings.names)

    def windows(self) -> Iterator[Window]:
        return self.stream.read()

    def add(self, at: int, planes: Tensor) -> float:
        return sum(map(self._write, self.stream.add(at, planes)), 0.0)

    def finish(self) -> Done:
        for chunk in self.stream.finish():
            self._write(chunk)
        self.writer.close(complete=True)
        paths = self.writer.paths
        rate = self.file.rate
        rows = manifest_rows(self.job, paths, self.products, self.writer.written / rate, highest=rate / 2)
        others = self.task.write_curve(self.stem, ["time"], torch.cat(self.points))
        if self.events:
            others += write_events(self.stem, self.task.settings.events, self.events.finish(), self.job.path)
        return Done(paths + others, rows, self._remarks())

    def abandon(self) -> None:
        self.writer.close(complete=False)

    def _write(self, chunk: Chunk) -> float:
        self.writer.write(chunk.estimates)
        self.points.append(chunk.curve)
        rows = chunk.estimates.transpose(0, 1).flatten(1)
        self.products += rows @ rows.T
        if self.events:
            self.events.add(chunk.estimates)
        return chunk.estimates.shape[-1] / self.file.rate

    def _remarks(self) -> list[str]:
        rate = sample_rate(self.task.separator)
        remarks = [self.file.remark] if self.file.remark else []
        remarks += lost_band(self.file.path, rate) if self.file.rate > rate else []
        if self.writer.clipped:
            remarks.append("a source exceeds full scale: all are written as 32-bit float, which does not clip")
        elif self.task.settings.format == self.task.settings.samples == "same" and self.coded != self.file.format:
            coding = self.file.format.subtype
            remarks.append(f"sources coded as {coding} would not sum to the input: they are 16-bit WAV")
        return remarks
