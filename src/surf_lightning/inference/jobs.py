"""What there is to do for a file, and the file on its way. Axes: C channels, K sources, N points of a curve."""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from surf_lightning.audio.streams import NAMES
from surf_lightning.errors import UserError
from surf_lightning.files import replacing
from surf_lightning.inference.journal import BEGIN, Entry
from surf_lightning.inference.overlap_add import Windows
from surf_lightning.inference.sampling import Window
from surf_lightning.inference.separator import Separator
from surf_lightning.inference.streaming import Channels

Container = Literal["same", "wav", "flac"]
Samples = Literal["same", "int16", "int24", "float32"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """What the outputs depend on besides input and checkpoint; see ``surf separate --help``.

    Raises:
        UserError: they cannot be fulfilled.
    """

    channels: Channels = "each"
    num_samples: int = 1
    seed: int = 0
    windows: Windows = field(default_factory=Windows)
    format: Container = "same"
    samples: Samples = "same"
    names: str = NAMES
    events: tuple[str, ...] = ()
    precision: Precision = "fp32"
    num_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_steps"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UserError(f"--{name} must be at least 1")
        if self.format == "flac" and self.samples == "float32":
            raise UserError("FLAC holds no floats: --samples int24, or --format wav")
        fields = sorted(re.findall(r"{[^{}]*}", self.names))
        if fields != ["{source}", "{stem}"] or re.search(r"[/\\\0]", self.names) or self.names.startswith("."):
            raise UserError(
                f"--names {self.names!r}: a name holds {{stem}} and {{source}} once each, and no folder, "
                f"as {NAMES!r} does"
            )


@dataclass(frozen=True)
class Job:
    """A file to separate, whose header has been read."""

    path: Path
    stem: Path
    """What stands for the input in the names of its outputs."""
    outputs: tuple[Path, ...]
    """All names that its outputs may get."""
    size: int
    """Bytes that they will need."""
    seconds: float


@dataclass(frozen=True)
class Done:
    """What became of a file: its complete outputs, rows of the manifest, remarks for the user."""

    paths: list[Path]
    rows: list[Entry]
    remarks: list[str]


class Work(ABC):
    """A file on its way: windows go out, separated windows come in, in order; then its outputs are complete.

    One thread reads while another adds.
    """

    @abstractmethod
    def windows(self) -> Iterator[Window]:
        """Read the file; raises ValueError with the reason if it cannot be separated."""

    @abstractmethod
    def add(self, at: int, planes: Tensor) -> float:
        """Take a separated window; returns how many seconds of the file it has completed."""

    @abstractmethod
    def finish(self) -> Done:
        """Complete the outputs."""

    def abandon(self) -> None:  # noqa: B027  some keep nothing open between two calls
        """Close and remove what has been written."""


class Task(ABC):
    """Separates files of one kind.

    Args:
        separator: of them.
        settings: what the user chose.
    """

    extensions: tuple[str, ...]
    window: int
    """Samples of a whole window, or pixels of an image: the unit of a batch."""

    def __init__(self, separator: Separator, settings: Settings) -> None:
        self.separator, self.settings, self.num_sources = separator, settings, separator.num_sources

    @abstractmethod
    def plan(self, path: Path, stem: Path) -> Job:
        """Read the header of ``path``; raises ValueError with the reason if it cannot be separated."""

    @abstractmethod
    def open(self, job: Job, folder: Path) -> Work:
        """Begin the file; what it writes lies in ``folder``."""

    @abstractmethod
    def separate(self, windows: list[Window]) -> list[Tensor]:
        """Windows of one shape, of any files, in one evaluation of the network a sample."""

    def curve_paths(self, stem: Path) -> list[Path]:
        """The file of the uncertainty, if more than one sample is drawn."""
        return [stem.with_name(f"{stem.name}_uncertainty.csv")] if self.settings.num_samples > 1 else []

    def write_curve(self, stem: Path, columns: list[str], points: Tensor) -> list[Path]:
        """Write the uncertainty ``points [N,*]``: ``columns``, then the standard deviation of each source."""
        paths = self.curve_paths(stem)
        for path in paths:
            with replacing(path, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow([*columns, *(f"source{k + 1}" for k in range(self.num_sources))])
                table.writerows([f"{value:.6g}" for value in point] for point in points.tolist())
        return paths


def manifest_rows(
    job: Job, outputs: list[Path], products: Tensor, seconds: float, highest: float | None
) -> list[Entry]:
    """Rows of the manifest. Raven's column names come first: in Raven, each source is one selection of its file.

    ``products [K,K]`` are the inner products of the sources over the whole file of ``seconds``; ``highest`` is of its
    frequencies, in Hz, None for an image.
    """
    extent = ("",) * 4 if highest is None else (0.0, seconds, 0.0, highest)
    energies = products.diagonal()
    norms = energies.sqrt()
    cosines = products / (norms[:, None] * norms).clamp_min(torch.finfo(products.dtype).tiny)
    similarity = (cosines - torch.eye(len(norms))).abs().amax(1)
    share = energies / energies.sum().clamp_min(torch.finfo(products.dtype).tiny)
    return [
        {
            "View": "Spectrogram 1",
            "Channel": 1,
            **dict(zip((BEGIN, "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"), extent, strict=True)),
            "Begin Path": str((job.stem.parent / output.name).absolute()),
            "Begin File": output.name,
            "File Offset (s)": 0.0,
            "Input": str(job.path),
            "Source": k + 1,
            "Offset (s)": 0.0,
            "Duration (s)": seconds,
            "Energy": float(energies[k]),
            "Energy Share": round(float(share[k]), 6),
            "Similarity": round(float(similarity[k]), 6),
        }
        for k, output in enumerate(outputs)
    ]
