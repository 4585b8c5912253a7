"""One input of the page to files, and to pictures of them. Axes: K sources, N points of a curve, T samples."""

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
from torch import Tensor

from surf_lightning.audio.spectrogram import DYNAMIC_RANGE, HOP, log_spectrogram
from surf_lightning.audio.streams import AudioFile, SampleFormat, SourceWriter
from surf_lightning.files import partial_path
from surf_lightning.inference.jobs import Settings, make_task
from surf_lightning.inference.separator import Separator
from surf_lightning.inference.streaming import separate_file

PLAYED = ("WAV", "FLAC")  # containers that browsers play; sources of other files are written as WAV
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


# -- recordings --


def separate_recording(
    separator: Separator, path: Path, folder: Path, num_samples: int, seed: int, progress: Progress
) -> Separated:
    """Separate an audio file into ``folder``.

    Raises:
        BadAudio: the file cannot be decoded.
    """
    file = AudioFile.open(path)
    coded = file.source_format()
    coded = coded if coded.container in PLAYED else SampleFormat("WAV", "PCM_16", "FILE", ".wav")
    points = []
    size = file.frames * file.channels
    with SourceWriter(folder / path.stem, separator.num_sources, file.rate, file.channels, size, coded) as writer:
        for chunk in separate_file(separator, file, num_samples=num_samples, seed=seed):
            writer.write(chunk.estimates)
            points.append(chunk.curve)
            progress(writer.written / file.frames)
    published = [partial_path(source).replace(source) for source in writer.paths]
    found = Separated(published, spectrograms([path, *published], folder), remarks=[file.remark] if file.remark else [])
    if num_samples > 1:
        found.curve, table = uncertainty(torch.cat(points), folder / path.stem)
        found.files.append(table)
    return found


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


def uncertainty(points: Tensor, stem: Path) -> tuple[Path, Path]:
    """A picture and a table of the curve ``points [N,1+K]``: time, then the standard deviation of each source."""
    names = [f"source {k + 1}" for k in range(points.shape[1] - 1)]
    picture, table = stem.with_name("uncertainty.png"), stem.with_name(f"{stem.name}_uncertainty.csv")
    header = ",".join(["time", *names]).replace(" ", "")
    np.savetxt(table, points.numpy(), fmt="%.6g", delimiter=",", header=header, comments="")
    figure, panel = _panel()
    panel.plot(points[:, 0].numpy(), points[:, 1:].numpy(), label=names)
    panel.set_ylabel("standard deviation")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=100)
    return picture, table


def _panel() -> tuple[Figure, Axes]:
    """A picture over time; at its top is room for the page's label and buttons."""
    figure = Figure(figsize=(7, 2.2))
    panel = figure.add_axes((0.08, 0.2, 0.9, 0.64))
    panel.set_xlabel("s")
    return figure, panel


# -- images --


def separate_image(separator: Separator, path: Path, folder: Path, num_samples: int, seed: int) -> Separated:
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
    files = [partial_path(file).replace(file) for file in task.run(task.plan(mixture, folder / path.stem))[0]]
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
            image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST).save(
                folder / f"enlarged{number}.png"
            )
        pictures.append(folder / f"enlarged{number}.png")
    return pictures
