"""Images and arrays to one file a source. Axes: K sources, C H W, P planes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from surf_lightning.audio.streams import SampleFormat, source_paths
from surf_lightning.errors import UserError
from surf_lightning.files import replacing
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.array_files import ARRAYS, AVERAGES, is_average, read_array, scale_of
from surf_lightning.inference.jobs import Done, Job, Settings, Task, Work, manifest_rows
from surf_lightning.inference.sampling import Window, posterior
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator


class ImageTask(Task):
    """Files of the separator's shape: PNGs of 8 bits, each the average m/K of its sources, which are PNGs; and arrays.

    An array (.npy, .npz, TIFF, FITS) is the sum of its sources, which are .npy of float32 in its own values.
    """

    extensions: tuple[str, ...] = ARRAYS

    def __init__(self, separator: Separator, settings: Settings) -> None:
        super().__init__(separator, settings)
        self.shape = list(separator.signal["shape"])
        if self.shape[0] in (1, 3):
            self.extensions = (*AVERAGES, *ARRAYS)
        if settings.events or (settings.format, settings.samples) != ("same", "same"):
            raise UserError("--events, --format and --samples are for sound; this checkpoint separates images")
        self.window = self.shape[-1]

    def plan(self, path: Path, stem: Path) -> Job:
        size = self.num_sources * self.read(path).size * (1 if is_average(path) else 4)
        return Job(path, stem, (*self.paths(path, stem), *self.curve_paths(stem)), size, 0.0)

    def open(self, job: Job, folder: Path) -> Work:
        return ImageWork(self, job, folder)

    def separate(self, windows: list[Window]) -> list[Tensor]:
        """Posterior samples from the same noise for every image: it does not matter which come together."""
        device = next(self.separator.parameters(), torch.zeros(0)).device
        mixtures = torch.cat([rows for _, rows in windows]).to(device)
        samples = (self._sample(mixtures, number) for number in range(self.settings.num_samples))
        return list(torch.stack(posterior(sample.flatten(2).cpu().double() for sample in samples), 2).split(1))

    def _sample(self, mixtures: Tensor, number: int) -> Tensor:
        seed = mix_seed(self.settings.seed, number)
        if isinstance(self.separator, RegressionSeparator | FlowSeparator):
            generator = torch.Generator(mixtures.device).manual_seed(seed)
            shape = (1, self.num_sources, *mixtures.shape[1:])
            noise = torch.randn(shape, generator=generator, device=mixtures.device)
            return self.separator.separate_from(mixtures, noise.expand(len(mixtures), -1, -1, -1, -1))
        generators = (torch.Generator(mixtures.device).manual_seed(seed) for _ in mixtures)
        each = zip(mixtures.split(1), generators, strict=True)  # a sampler of another kind draws as it goes
        return torch.cat([self.separator.separate(mixture, generator) for mixture, generator in each])

    def paths(self, path: Path, stem: Path) -> list[Path]:
        """The names of the sources of ``path``."""
        suffix = ".png" if is_average(path) else ".npy"
        return source_paths(stem, self.num_sources, SampleFormat("", "", "", suffix), self.settings.names)

    def read(self, path: Path) -> np.ndarray:
        """The values ``[C,H,W]``; raises ValueError with the reason if they are not of the separator's shape."""
        array = read_array(path)
        if list(array.shape) != self.shape:
            raise ValueError(f"is an array {list(array.shape)}, but the separator takes {self.shape}")
        return array


class ImageWork(Work):
    """An image on its way: its only window. Arguments as of ``Task.open``."""

    def __init__(self, task: ImageTask, job: Job, folder: Path) -> None:
        self.task, self.job, self.stem = task, job, folder / job.stem.name
        self.is_average = is_average(job.path)
        self.center, self.half = scale_of(task.separator.signal, job.path, task.num_sources)
        values = torch.from_numpy(task.read(job.path).astype(np.float64))
        self.average = ((values - self.center) / self.half).float()
        self.planes = torch.zeros(0)

    def windows(self) -> Iterator[Window]:
        yield 0, (self.task.num_sources * self.average)[None]

    def add(self, at: int, planes: Tensor) -> float:
        self.planes = planes
        return 0.0

    def finish(self) -> Done:
        mean, variance = self.planes[0].unbind(1)  # [K,2,C*H*W]
        if not mean.isfinite().all():
            raise ValueError("the separator gave NaN or infinite pixels")
        # The sources of an array sum to it, in its own values; those of a picture are told in [-1, 1].
        share, unit = (1, 1.0) if self.is_average else (self.task.num_sources, self.half / self.task.num_sources)
        paths = self.task.paths(self.job.path, self.stem)
        for path, source in zip(paths, mean, strict=True):
            self._write(path, (source.view(self.average.shape) * self.half + self.center) / share)
        rows = manifest_rows(self.job, paths, mean @ mean.T, 0.0, highest=None)
        curve = self.task.write_curve(self.stem, [], unit * variance.mean(1).sqrt()[None])
        return Done(paths + curve, rows, [])

    def _write(self, path: Path, values: Tensor) -> None:
        with replacing(path) as file:
            if self.is_average:
                pixels = values.round().clamp(0, 255).to(torch.uint8)
                Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "PNG")
            else:
                np.save(file, (values[0] if len(values) == 1 else values).float().numpy())  # [H,W], or [C,H,W]
