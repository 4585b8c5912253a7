"""Separating one file: audio to audio, PNG to PNG. Axes: C channels, K sources, N points of a curve, n samples, H W."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from surf_lightning.audio.band import lost_band
from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.audio.streams import AudioFile, SourceWriter, source_paths
from surf_lightning.errors import UserError
from surf_lightning.files import writing
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.journal import Entry
from surf_lightning.inference.overlap_add import Windows
from surf_lightning.inference.separator import Separator
from surf_lightning.inference.streaming import Channels, num_separated, posterior, separate_file


@dataclass(frozen=True)
class Settings:
    """What the outputs depend on besides input and checkpoint; see ``streaming.separate_file``."""

    channels: Channels = "each"
    num_samples: int = 1
    seed: int = 0
    windows: Windows = field(default_factory=Windows)


@dataclass(frozen=True)
class Job:
    """A file to separate, whose header has been read."""

    path: Path
    stem: Path
    """What the names of its outputs begin with."""
    outputs: tuple[Path, ...]
    """All names that its outputs may get."""
    size: int
    """Bytes that they will need."""
    seconds: float


Done = tuple[list[Path], list[Entry], list[str]]
"""The outputs, complete at their ``partial_path``s; their rows of the manifest; remarks for the user."""


class Task(ABC):
    """Separates files of one kind."""

    extensions: tuple[str, ...]

    def __init__(self, separator: Separator, settings: Settings) -> None:
        self.separator, self.settings, self.num_sources = separator, settings, separator.num_sources

    @abstractmethod
    def plan(self, path: Path, stem: Path) -> Job:
        """Read the header of ``path``; raises ValueError with the reason if it cannot be separated."""

    @abstractmethod
    def run(self, job: Job) -> Done:
        """Separate the file; raises ValueError with the reason if it cannot be."""

    def curve_paths(self, stem: Path) -> list[Path]:
        """The file of the uncertainty, if more than one sample is drawn."""
        return [stem.with_name(f"{stem.name}_uncertainty.csv")] if self.settings.num_samples > 1 else []

    def write_curve(self, stem: Path, columns: list[str], points: Tensor) -> None:
        """Write the uncertainty ``points [N,*]``: ``columns``, then the standard deviation of each source."""
        for path in self.curve_paths(stem):
            with writing(path, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow([*columns, *(f"source{k + 1}" for k in range(self.num_sources))])
                table.writerows([f"{value:.6g}" for value in point] for point in points.tolist())


def manifest_row(job: Job, output: Path, source: int, energy: float, highest: float | None = None) -> Entry:
    """A row of the manifest. Raven's column names come first: in Raven, each source is one selection of its file.

    Args:
        job: of the input.
        output: the source's file.
        source: its number, from 1.
        energy: the sum of squares of its samples.
        highest: of its frequencies, in Hz; None for an image.
    """
    is_audio = highest is not None
    return {
        "View": "Spectrogram 1",
        "Channel": 1,
        "Begin Time (s)": 0.0 if is_audio else "",
        "End Time (s)": job.seconds if is_audio else "",
        "Low Freq (Hz)": 0.0 if is_audio else "",
        "High Freq (Hz)": highest if is_audio else "",
        "Begin Path": str(output.absolute()),
        "Begin File": output.name,
        "File Offset (s)": 0.0,
        "Input": str(job.path),
        "Source": source,
        "Offset (s)": 0.0,
        "Duration (s)": job.seconds,
        "Energy": energy,
    }


class AudioTask(Task):
    """Any rate and number of channels, through ``separate_file``."""

    extensions = EXTENSIONS

    def plan(self, path: Path, stem: Path) -> Job:
        file = AudioFile.open(path)
        samples, coded = file.frames * num_separated(file, self.settings.channels), file.source_format()
        names = {
            name
            for each in (coded, coded.as_float() if coded.step else coded)
            for name in source_paths(stem, self.num_sources, each.for_size(samples))
        }
        size = self.num_sources * samples * coded.bits // 8
        return Job(path, stem, (*sorted(names), *self.curve_paths(stem)), size, file.frames / file.rate)

    def run(self, job: Job) -> Done:
        file, settings = AudioFile.open(job.path), self.settings
        channels = num_separated(file, settings.channels)
        samples = file.frames * channels
        energies, points = torch.zeros(self.num_sources, dtype=torch.float64), []
        with SourceWriter(job.stem, self.num_sources, file.rate, channels, samples, file.source_format()) as writer:
            for chunk in separate_file(
                self.separator, file, settings.channels, settings.windows, settings.num_samples, settings.seed
            ):
                writer.write(chunk.estimates)
                energies += chunk.estimates.square().sum((0, 2))
                points.append(chunk.curve)
            self.write_curve(job.stem, ["time"], torch.cat(points))
        rows = [
            manifest_row(job, path, k + 1, energy, file.rate / 2)
            for k, (path, energy) in enumerate(zip(writer.paths, energies.tolist(), strict=True))
        ]
        return writer.paths + self.curve_paths(job.stem), rows, self._remarks(file, writer)

    def _remarks(self, file: AudioFile, writer: SourceWriter) -> list[str]:
        rate = self.separator.signal["sample_rate"]
        remarks = [file.remark] if file.remark else []
        remarks += lost_band(file.path, rate) if file.rate > rate else []
        if writer.clipped:
            remarks.append("a source exceeds full scale: all are written as 32-bit float, which does not clip")
        elif file.source_format() != file.format:
            remarks.append(f"sources coded as {file.format.subtype} would not sum to the input: they are 16-bit WAV")
        return remarks


class ImageTask(Task):
    """8-bit PNG files of the separator's shape: each is the average m/K of its sources, and each source is a PNG."""

    extensions = (".png",)

    def __init__(self, separator: Separator, settings: Settings) -> None:
        super().__init__(separator, settings)
        channels, self.height, self.width = separator.signal["shape"]
        modes = {1: "L", 3: "RGB"}
        if channels not in modes:
            raise UserError(f"images of {channels} channels cannot be written as PNG: use Separator.separate in Python")
        self.mode = modes[channels]

    def plan(self, path: Path, stem: Path) -> Job:
        self._read(path)
        size = self.num_sources * self.height * self.width * len(self.mode)
        return Job(path, stem, (*self._paths(stem), *self.curve_paths(stem)), size, 0.0)

    def run(self, job: Job) -> Done:
        average = torch.from_numpy(self._read(job.path)).float() / 127.5 - 1  # [H,W,C] or [H,W]
        average = average.reshape(self.height, self.width, -1).permute(2, 0, 1)
        mean, variance = posterior(self._samples(self.num_sources * average))
        if not mean.isfinite().all():
            raise ValueError("the separator gave NaN or infinite pixels")
        paths = self._paths(job.stem)
        for path, source in zip(paths, mean[0], strict=True):
            pixels = ((source.view(average.shape) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            with writing(path) as file:
                Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy(), self.mode).save(file, "PNG")
        self.write_curve(job.stem, [], variance.mean(2).sqrt())
        energies = mean[0].square().sum(1).tolist()
        rows = [
            manifest_row(job, path, k + 1, energy) for k, (path, energy) in enumerate(zip(paths, energies, strict=True))
        ]
        return paths + self.curve_paths(job.stem), rows, []

    def _samples(self, mixture: Tensor) -> Iterator[Tensor]:
        """Posterior samples ``[1,K,C*H*W]``, from the same noise for every image."""
        device = next(self.separator.parameters(), mixture).device
        for number in range(self.settings.num_samples):
            generator = torch.Generator(device).manual_seed(mix_seed(self.settings.seed, number))
            yield self.separator.separate(mixture[None].to(device), generator).flatten(2).cpu().double()

    def _paths(self, stem: Path) -> list[Path]:
        return [stem.with_name(f"{stem.name}_source{k + 1}.png") for k in range(self.num_sources)]

    def _read(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                plain = image.convert("RGB") if image.mode == "P" else image
                if (plain.mode, plain.size) != (self.mode, (self.width, self.height)):
                    raise ValueError(
                        f"is {plain.mode} of {plain.width}x{plain.height} pixels, "
                        f"but the separator takes {self.mode} of {self.width}x{self.height}"
                    )
                return np.array(plain)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # SyntaxError: Pillow's for a broken PNG
            takes = f"{self.mode} images of {self.width}x{self.height} pixels"
            raise ValueError(f"cannot be decoded ({error}); the separator takes {takes}") from error


def make_task(separator: Separator, settings: Settings) -> Task:
    """The task for the signals of ``separator``."""
    tasks: dict[str, type[Task]] = {"audio": AudioTask, "image": ImageTask}
    return tasks[separator.signal["kind"]](separator, settings)
