"""One input of the page to files, and to pictures of them. Axes: T samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from surf_lightning.audio.band import DYNAMIC_RANGE, HOP, log_spectrogram
from surf_lightning.audio.streams import AudioFile
from surf_lightning.inference.jobs import Container, Settings, Task
from surf_lightning.inference.separate import make_task
from surf_lightning.inference.separator import Separator

PLAYED = (".wav", ".flac")  # browsers play them; sources of other files are written as WAV
FRAMES, PIXELS = 1200, 256  # of a spectrogram, and of a picture's longer side, as shown

Progress = Callable[[float], Any]
"""Is told the share of the work that is done."""


@dataclass
class Separated:
    """What the page shows of one input."""

    files: list[Path]
    """The sources, then the table of the uncertainty if several samples were drawn."""
    pictures: list[Path]
    """Of the mixture, then of each source."""
    curve: Path | None = None
    """The uncertainty over time."""
    remarks: list[str] = field(default_factory=list)


def separate(task: Task, path: Path, folder: Path, progress: Progress) -> tuple[list[Path], list[str]]:
    """Separate the file ``path`` into ``folder``: the outputs as of ``surf separate``, and remarks.

    Raises:
        ValueError: it cannot be separated; the message is the reason.
    """
    job = task.plan(path, folder / path.stem)
    work, done = task.open(job, folder), 0.0
    try:
        for window in work.windows():
            (planes,) = task.separate([window])
            done += work.add(window[0], planes)
            progress(done / job.seconds if job.seconds else 1.0)
        found = work.finish()
    except BaseException:
        work.abandon()
        raise
    return found.paths, found.remarks


# -- recordings --


def separate_recording(
    separator: Separator, path: Path, folder: Path, num_samples: int, seed: int, progress: Progress
) -> Separated:
    """Separate an audio file into ``folder``, to files that browsers play; raises ValueError as of ``separate``."""
    playable: Container = "same" if path.suffix.lower() in PLAYED else "wav"
    task = make_task(separator, Settings(num_samples=num_samples, seed=seed, format=playable))
    files, remarks = separate(task, path, folder, progress)
    pictures = spectrograms([path, *files[: separator.num_sources]], folder)
    curve = draw_curve(files[-1], folder) if num_samples > 1 else None
    return Separated(files, pictures, curve, remarks)


def spectrograms(paths: list[Path], folder: Path) -> list[Path]:
    """Pictures of sounds, of one scale: the loudest bin of the first is white, 80 dB below it black."""
    pictures, loudest = [], None
    for number, path in enumerate(paths):
        file = AudioFile.open(path)
        samples = torch.cat([block.mean(0).float() for block in file.blocks()])
        levels = log_spectrogram(samples, max(HOP, len(samples) // FRAMES))
        loudest = float(levels.max()) if loudest is None else loudest
        figure, panel = _panel()
        extent = (0, file.frames / file.rate, 0, file.rate / 2000)
        looks: Any = {"cmap": "magma", "vmin": loudest - DYNAMIC_RANGE, "vmax": loudest, "extent": extent}
        panel.imshow(levels.numpy(), origin="lower", aspect="auto", **looks)
        panel.set_ylabel("kHz")
        pictures.append(folder / f"spectrogram{number}.png")
        figure.savefig(pictures[-1], dpi=100)
    return pictures


def draw_curve(table: Path, folder: Path) -> Path:
    """A picture of the uncertainty in ``table``: time, then the standard deviation of each source."""
    points = np.loadtxt(table, delimiter=",", skiprows=1, ndmin=2)
    figure, panel = _panel()
    panel.plot(points[:, 0], points[:, 1:], label=[f"source {k}" for k in range(1, points.shape[1])])
    panel.set_ylabel("standard deviation")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "uncertainty.png", dpi=100)
    return folder / "uncertainty.png"


def _panel() -> tuple[Figure, Axes]:
    """A picture over time; at its top is room for the page's label and buttons."""
    figure = Figure(figsize=(7, 2.2))
    panel = figure.add_axes((0.08, 0.2, 0.9, 0.58))
    panel.set_xlabel("s")
    return figure, panel


# -- images --


def separate_image(
    separator: Separator, path: Path, folder: Path, num_samples: int, seed: int, progress: Progress
) -> Separated:
    """Separate the picture ``path``, the average of its sources, at the separator's own size into ``folder``."""
    channels, height, width = separator.signal["shape"]
    remarks = []
    with Image.open(path) as image:
        if image.size != (width, height):
            remarks.append(f"The picture of {image.width}x{image.height} pixels was scaled to {width}x{height}.")
        picture = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    mixture = folder / f"{path.stem}.png"
    picture.save(mixture)
    task = make_task(separator, Settings(num_samples=num_samples, seed=seed))
    files, _ = separate(task, mixture, folder, progress)
    if num_samples > 1:
        deviations = np.atleast_1d(np.loadtxt(files[-1], delimiter=",", skiprows=1))
        said = ", ".join(f"source {k + 1}: {value:.3f}" for k, value in enumerate(deviations))
        remarks.append(f"Standard deviation of a pixel in [-1, 1] over the samples: {said}.")
    return Separated(files, enlarged([mixture, *files[: separator.num_sources]], folder), remarks=remarks)


def enlarged(paths: list[Path], folder: Path) -> list[Path]:
    """The pictures with every pixel repeated, as browsers blur what they enlarge."""
    pictures = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            zoom = max(1, PIXELS // max(image.size))
            large = image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)
        pictures.append(folder / f"enlarged{number}.png")
        large.save(pictures[-1])
    return pictures
