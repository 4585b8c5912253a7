"""PNG images to one PNG a source. Axes: K sources, C H W, P planes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from surf_lightning.audio.streams import SampleFormat, source_paths
from surf_lightning.errors import UserError
from surf_lightning.files import writing
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.jobs import Done, Job, Settings, Task, Work, manifest_rows
from surf_lightning.inference.sampling import Window, posterior
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator


class ImageTask(Task):
    """8-bit PNG files of the separator's shape: each is the average m/K of its sources, and each source is a PNG."""

    extensions = (".png",)

    def __init__(self, separator: Separator, settings: Settings) -> None:
        super().__init__(separator, settings)
        channels, self.height, self.width = separator.signal["shape"]
        modes = {1: "L", 3: "RGB"}
        if channels not in modes:
            raise UserError(f"images of {channels} channels cannot be written as PNG: use Separator.separate in Python")
        if settings.events or (settings.format, settings.samples) != ("same", "same"):
            raise UserError("--events, --format and --samples are for sound; this checkpoint separates images")
        self.mode, self.window = modes[channels], self.width

    def plan(self, path: Path, stem: Path) -> Job:
        self.read(path)
        size = self.num_sources * self.height * self.width * len(self.mode)
        return Job(path, stem, (*self.paths(stem), *self.curve_paths(stem)), size, 0.0)

    def open(self, job: Job, folder: Path) -> Work:
        return ImageWork(self, job, folder)

    def separate(self, windows: list[Window]) -> list[Tensor]:
        """Posterior samples from the same noise for every image: it does not matter which come together."""
        device = next(self.separator.parameters(), torch.zeros(0)).device
        mixtures = torch.cat([rows for _, rows in windows]).to(device)
        samples = (self._sample(mixtures, number) for number in range(self.settings.num_samples))
        return list(torch.stack(posterior(sample.flatten(2).cpu().double() for sample in samples), 2).split(1))

    def _sample(self, mixtures: Tensor, number: int) -> Tensor:
        separator, seed = self.separator, mix_seed(self.settings.seed, number)
        if isinstance(separator, RegressionSeparator):
            return separator.separate(mixtures)
        generators = [torch.Generator(mixtures.device).manual_seed(seed) for _ in mixtures]
        if isinstance(separator, FlowSeparator):
            shape = (1, self.num_sources, *mixtures.shape[1:])
            noise = torch.randn(shape, generator=generators[0], device=mixtures.device)
            return separator.separate_from(mixtures, noise.expand(len(mixtures), -1, -1, -1, -1))
        each = zip(mixtures.split(1), generators, strict=True)  # a sampler of another kind draws as it goes
        return torch.cat([separator.separate(mixture, generator) for mixture, generator in each])

    def paths(self, stem: Path) -> list[Path]:
        """The names of the sources."""
        return source_paths(stem, self.num_sources, SampleFormat("", "", "", ".png"), self.settings.names)

    def read(self, path: Path) -> np.ndarray:
        """The pixels; raises ValueError with the reason if it is no image of the separator's shape."""
        try:
            with Image.open(path) as image:
                if (image.width, image.height) != (self.width, self.height):
                    raise ValueError(
                        f"is of {image.width}x{image.height} pixels, but the separator takes "
                        f"{self.mode} of {self.width}x{self.height}"
                    )
                plain = image.convert("RGB") if image.mode == "P" else image
                if plain.mode != self.mode:
                    raise ValueError(f"is {plain.mode}, but the separator takes {self.mode}")
                return np.array(plain)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            takes = f"{self.mode} images of {self.width}x{self.height} pixels"  # SyntaxError: Pillow's for a broken PNG
            raise ValueError(f"cannot be decoded ({error}); the separator takes {takes}") from error


class ImageWork(Work):
    """An image on its way: its only window. Arguments as of ``Task.open``."""

    def __init__(self, task: ImageTask, job: Job, folder: Path) -> None:
        self.task, self.job, self.stem = task, job, folder / job.stem.name
        average = torch.from_numpy(task.read(job.path)).float() / 127.5 - 1  # [H,W,C] or [H,W]
        self.average = average.reshape(task.height, task.width, -1).permute(2, 0, 1)
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
        paths = self.task.paths(self.stem)
        for path, source in zip(paths, mean, strict=True):
            pixels = ((source.view(self.average.shape) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            with writing(path) as file:
                Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy(), self.task.mode).save(file, "PNG")
        rows = manifest_rows(self.job, paths, mean @ mean.T, 0.0, highest=None)
        curve = self.task.write_curve(self.stem, [], variance.mean(1).sqrt()[None])
        return Done(paths + curve, rows, [])

    def abandon(self) -> None:
        """Nothing is open between two calls."""
