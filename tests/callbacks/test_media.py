"""Where each picture lies in the grid, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.io import read_image

from surf_lightning.callbacks.media import ImageGrids, image_grid


def example(batch: int, sources: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.rand(batch, sources, *shape, generator=generator) - 1
    estimates = truth + 0.01 * torch.rand(truth.shape, generator=generator)
    return truth.sum(1), estimates, truth


@pytest.mark.parametrize(("shape", "zoom"), [((1, 8, 8), 8), ((3, 32, 32), 2), ((1, 28, 28), 2), ((1, 70, 70), 1)])
def test_every_row_shows_mixture_estimates_and_sources(shape: tuple[int, int, int], zoom: int) -> None:
    mixtures, estimates, sources = example(3, 2, *shape)
    grid = image_grid(mixtures, estimates.flip(1), sources)  # the estimates in the other order
    side = zoom * shape[-1]
    assert grid.shape == (3, 3 * (side + 2) + 2, 5 * (side + 2) + 2)
    expected = torch.full_like(grid, 0.5)
    for row in range(3):
        pictures = [mixtures[row] / 2, *estimates[row], *sources[row]]
        for column, picture in enumerate(pictures):
            top, left = 2 + row * (side + 2), 2 + column * (side + 2)
            for y in range(side):
                line = ((picture[:, y // zoom] + 1) / 2).clamp(0, 1).repeat_interleave(zoom, 1)
                expected[:, top + y, left : left + side] = line
    torch.testing.assert_close(grid, expected)


class ImageLogger:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Tensor, int]] = []

    def log_image(self, key: str, images: list[Tensor], step: int) -> None:
        self.calls.append((key, images[0], step))


def validate(kind: str = "image", batch_idx: int = 0, zero: bool = True, separated: bool = True) -> ImageLogger:
    mixtures, estimates, sources = example(10, 2, 1, 8, 8)
    logger = ImageLogger()
    trainer: Any = SimpleNamespace(is_global_zero=zero, global_step=123, loggers=[object(), logger])
    module: Any = SimpleNamespace(signal={"kind": kind})
    batch = {"mixtures": mixtures, "sources": sources}
    ImageGrids(Path("run")).on_validation_batch_end(trainer, module, estimates if separated else None, batch, batch_idx)
    return logger


def test_the_first_eight_mixtures_of_a_validation_become_a_file_and_an_image_of_the_loggers() -> None:
    ((key, grid, step),) = validate().calls
    mixtures, estimates, sources = example(10, 2, 1, 8, 8)
    assert (key, step) == ("separated", 123)
    assert torch.equal(grid, image_grid(mixtures[:8], estimates[:8], sources[:8]))
    (path,) = Path("run", "media").iterdir()
    assert path.name == "step_0000123.png"
    torch.testing.assert_close(read_image(str(path)).float() / 255, grid, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"kind": "audio"}, {"batch_idx": 1}, {"zero": False}, {"separated": False}])
def test_nothing_else_is_drawn(options: dict[str, Any]) -> None:
    assert validate(**options).calls == []
    assert not Path("run").exists()
