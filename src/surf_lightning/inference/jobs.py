"""What `surf separate` does with one file: audio in, audio out; PNG in, PNG out.

Axes: C channels, K sources, n samples of a chunk, H W.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from surf_lightning.audio.streams import EXTENSIONS, AudioFile, SourceWriter, source_paths, sync
from surf_lightning.errors import UserError
from surf_lightning.files import partial_path
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.overlap_add import Windows
from surf_lightning.inference.separator import Separator
from surf_lightning.inference.streaming import CHANNELS, posterior, separate_file


@dataclass(frozen=True)
class Settings:
    """All on which the outputs depend, next to input and checkpoint; see ``streaming.separate_file``."""

    channels: str = "each"
    num_samples: int = 1
    seed: int = 0
    windows: Windows = field(default_factory=Windows)

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """An input whose header has been read.

    ``outputs`` are all names that its outputs may take, ``size`` the bytes they will need, ``seconds`` its duration.
    """

    path: Path
    stem: Path
    outputs: tuple[Path, ...]
    size: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Complete partial files, to get the names ``paths``; rows of the manifest; what the user should know."""

    paths: list[Path]
    rows: list[dict[str, Any]]
    remarks: list[str]


class Task(ABC):
    """Separates files of one kind."""

    extensions: frozenset[str]

    def __init__(self, separator: Separator, settings: Settings) -> None:
        self.separator, self.settings, self.num_sources = separator, settings, separator.num_sources

    @abstractmethod
    def plan(self, path: Path, stem: Path) -> Plan:
        """Check the file; raises ValueError with the reason for which it cannot be separated."""

    @abstractmethod
    def run(self, plan: Plan) -> Outcome:
        """Separate it; raises ValueError with the reason for which it cannot be, and then leaves no files."""

    def curve_path(self, stem: Path) -> list[Path]:
        """The uncertainty's file, if there is one."""
        return [stem.with_name(f"{stem.name}_uncertainty.csv")] if self.settings.num_samples > 1 else []

    @contextmanager
    def curve(self, stem: Path, columns: list[str]) -> Iterator[Any]:
        """A CSV writer of the uncertainty; of nothing, where a single sample is drawn."""
        paths = [partial_path(path) for path in self.curve_path(stem)]
        if not paths:
            yield None
            return
        try:
            with open(paths[0], "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([*columns, *(f"source{k + 1}" for k in range(self.num_sources))])
                yield writer
            sync(paths[0])
        except BaseException:
            paths[0].unlink(missing_ok=True)
            raise


def manifest_row(plan: Plan, output: Path, source: int, energy: float, **measured: Any) -> dict[str, Any]:
    """The columns, Raven's own names first: opened as a sound selection table, each source is one selection."""
    audio = {name: measured.get(name, "") for name in ("Begin Time (s)", "End Time (s)")}
    band = {name: measured.get(name, "") for name in ("Low Freq (Hz)", "High Freq (Hz)")}
    return {
        "View": "Spectrogram 1",
        "Channel": 1,
        **audio,
        **band,
        "Begin Path": str(output.absolute()),
        "Begin File": output.name,
        "File Offset (s)": 0.0,
        "Input": str(plan.path),
        "Source": source,
        "Offset (s)": 0.0,
        "Duration (s)": plan.seconds,
        "Energy": energy,
    }


class AudioTask(Task):
    """Any rate and number of channels, through ``separate_file``."""

    extensions = EXTENSIONS

    def plan(self, path: Path, stem: Path) -> Plan:
        file = AudioFile.open(path)
        samples, coded = file.frames * self._channels(file), file.source_format()
        names = {
            name
            for each in (coded, coded.as_float() if coded.step else coded)
            for name in source_paths(stem, self.num_sources, each.for_size(samples))
        }
        size = self.num_sources * samples * coded.bits // 8
        return Plan(path, stem, (*sorted(names), *self.curve_path(stem)), size, file.frames / file.rate)

    def run(self, plan: Plan) -> Outcome:
        file = AudioFile.open(plan.path)
        channels = self._channels(file)
        writer = SourceWriter(
            plan.stem, self.num_sources, file.rate, channels, file.frames * channels, file.source_format()
        )
        energies = torch.zeros(self.num_sources, dtype=torch.float64)
        choose, settings = CHANNELS[self.settings.channels], self.settings
        with writer, self.curve(plan.stem, ["time"]) as curve:
            for chunk in separate_file(
                self.separator, file, choose, settings.windows, settings.num_samples, settings.seed
            ):
                writer.write(chunk.estimates)
                energies += chunk.estimates.square().sum((0, 2))
                if curve is not None:
                    curve.writerows([f"{value:.6g}" for value in point] for point in chunk.curve.tolist())
        times = {"Begin Time (s)": 0.0, "End Time (s)": plan.seconds}
        band = {"Low Freq (Hz)": 0.0, "High Freq (Hz)": file.rate / 2}
        rows = [
            manifest_row(plan, path, k + 1, energy, **times, **band)
            for k, (path, energy) in enumerate(zip(writer.paths, energies.tolist(), strict=True))
        ]
        return Outcome(writer.paths + self.curve_path(plan.stem), rows, self._remarks(file, writer))

    def _channels(self, file: AudioFile) -> int:
        return len(CHANNELS[self.settings.channels](torch.zeros(file.channels, 1)))

    def _remarks(self, file: AudioFile, writer: SourceWriter) -> list[str]:
        remarks = [file.remark] if file.remark else []
        if writer.clipped:
            remarks.append("a source exceeds full scale: all are written as 32-bit float, which does not clip")
        elif file.source_format() != file.format:
            remarks.append(f"sources coded as {file.format.subtype} would not sum to the input: they are 16-bit WAV")
        return remarks


class ImageTask(Task):
    """8-bit PNG files of the separator's shape: the average m/K of the sources, each of which is then a PNG."""

    extensions = frozenset([".png"])

    def __init__(self, separator: Separator, settings: Settings) -> None:
        super().__init__(separator, settings)
        channels, self.height, self.width = separator.signal["shape"]
        modes = {1: "L", 3: "RGB"}
        if channels not in modes:
            raise UserError(f"images of {channels} channels cannot be written as PNG: use Separator.separate in Python")
        self.mode = modes[channels]

    def plan(self, path: Path, stem: Path) -> Plan:
        self._read(path)
        size = self.num_sources * self.height * self.width * len(self.mode)
        return Plan(path, stem, (*self._paths(stem), *self.curve_path(stem)), size, 0.0)

    def run(self, plan: Plan) -> Outcome:
        average = torch.from_numpy(self._read(plan.path)).float() / 127.5 - 1  # [H,W,C] or [H,W]
        average = average.reshape(self.height, self.width, -1).permute(2, 0, 1)
        mean, variance = posterior(self._samples(self.num_sources * average))
        if not mean.isfinite().all():
            raise ValueError("the separator gave NaN or infinite pixels")
        paths = self._paths(plan.stem)
        try:
            for path, source in zip(paths, mean[0], strict=True):
                pixels = ((source.view(average.shape) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
                Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy(), self.mode).save(partial_path(path), "PNG")
                sync(partial_path(path))
            with self.curve(plan.stem, []) as curve:
                if curve is not None:
                    curve.writerow([f"{value:.6g}" for value in variance[0].mean(1).sqrt().tolist()])
        except BaseException:
            for path in paths:
                partial_path(path).unlink(missing_ok=True)
            raise
        energies = mean[0].square().sum(1).tolist()
        rows = [
            manifest_row(plan, path, k + 1, energy)
            for k, (path, energy) in enumerate(zip(paths, energies, strict=True))
        ]
        return Outcome(paths + self.curve_path(plan.stem), rows, [])

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
    """The task for what ``separator`` separates."""
    tasks: dict[str, type[Task]] = {"audio": AudioTask, "image": ImageTask}
    return tasks[separator.signal["kind"]](separator, settings)
