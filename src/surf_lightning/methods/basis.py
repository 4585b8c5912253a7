"""BASIS (Jayaram and Thickstun, 2020): a prior of clean images, and Langevin samples of the sources under it.

Axes: B batch, K sources, N = B*K images, C H W the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like
from surf_lightning.functional.langevin import (
    annealed_langevin,
    denoising_error,
    noise_levels,
    sequential_update,
    simultaneous_update,
)
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import Separator
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.methods.supervised import true_sources
from surf_lightning.networks.base import serializable
from surf_lightning.networks.score import ScoreNetwork


class LangevinUpdate(nn.Module, ABC):
    """A ``langevin.Update`` that a checkpoint can name."""

    @abstractmethod
    def forward(self, x: Tensor, moves: Tensor, mixtures: Tensor, weight: float) -> Tensor:
        """As ``langevin.Update``."""


@serializable
class SimultaneousUpdate(LangevinUpdate):
    """``langevin.simultaneous_update``, of the authors' MNIST code; diverges at their step size where K > 2."""

    forward = staticmethod(simultaneous_update)


@serializable
class SequentialUpdate(LangevinUpdate):
    """``langevin.sequential_update``, of the authors' CIFAR-10 code."""

    forward = staticmethod(sequential_update)


@serializable
class BasisSeparator(Separator):
    """Annealed Langevin samples of the sources of a mixture, each source under the same prior.

    Alone among the separators, its estimates do not sum to the mixture exactly: the method ties them to it by a
    likelihood of deviation ``sigma_min``, and clamps them to the range of images. Both are left as they come. The
    arguments are those of ``BASIS``.
    """

    network: ScoreNetwork

    def __init__(
        self,
        network: ScoreNetwork,
        num_sources: int = 2,
        update: LangevinUpdate | None = None,
        sigma_max: float = 1.0,
        sigma_min: float = 0.01,
        num_levels: int = 10,
        langevin_steps: int = 100,
        step_size: float = 3e-5,
    ) -> None:
        super().__init__()
        if langevin_steps < 1 or step_size <= 0:
            raise ValueError(f"langevin_steps ({langevin_steps}) must be at least 1, step_size ({step_size}) positive")
        self.network, self.num_sources = network, num_sources
        self.update = SequentialUpdate() if update is None else update
        self.sigmas = noise_levels(sigma_max, sigma_min, num_levels)
        self.langevin_steps, self.step_size = langevin_steps, step_size

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``mixtures [B,C,H,W]`` (sums of images in [-1,1]) -> ``estimates [B,K,C,H,W]`` in [-1,1]."""
        shape = (mixtures.shape[0], self.num_sources, *mixtures.shape[1:])
        x = torch.rand(shape, generator=generator, device=mixtures.device, dtype=mixtures.dtype)
        sums = (mixtures + self.num_sources) / 2
        steps = (self.sigmas, self.langevin_steps, self.step_size)
        x = annealed_langevin(self._score, self.update, x, sums, *steps, generator)
        return 2 * x.clamp(0, 1) - 1

    def _score(self, x: Tensor, sigma: float) -> Tensor:
        images = x.flatten(0, 1)
        score: Tensor = self.network(images, images.new_full((len(images),), sigma))
        return score.view_as(x)


class BASIS(SeparationModule):
    """Trains the prior on the clean images of a batch, mixtures unseen, by denoising score matching.

    Args:
        network: the score of the prior, in units of [0,1].
        num_sources: sources in a mixture (K).
        update: how a step goes towards the mixture; SequentialUpdate if None.
        sigma_max: the first noise level, in units of [0,1].
        sigma_min: the last; those between are a geometric progression.
        num_levels: noise levels.
        langevin_steps: steps at each level.
        step_size: of a step at the last level.
        flip: mirror every second image at random (CIFAR-10).

    The other arguments are those of ``SeparationModule``.
    """

    label = "BASIS"
    needs_sources = True
    separator: BasisSeparator

    def __init__(
        self,
        network: ScoreNetwork,
        num_sources: int = 2,
        update: LangevinUpdate | None = None,
        sigma_max: float = 1.0,
        sigma_min: float = 0.01,
        num_levels: int = 10,
        langevin_steps: int = 100,
        step_size: float = 3e-5,
        flip: bool = False,
        **options: Any,
    ) -> None:
        levels = (sigma_max, sigma_min, num_levels)
        super().__init__(BasisSeparator(network, num_sources, update, *levels, langevin_steps, step_size), **options)
        self.flip = flip

    def clean_images(self, sources: Tensor, random: BatchRandomness) -> Tensor:
        """8-bit images ``[B,K,C,H,W]`` in [-1,1] -> ``[N,C,H,W]`` in [0,1), dequantised: spread evenly over 1/256."""
        images = (sources.flatten(0, 1) + 1) / 2
        if self.flip:
            mirrored = random.uniform(len(images)) < 0.5
            images = torch.where(expand_like(mirrored, images), images.flip(-1), images)
        return (255 * images + random.uniform(images.numel()).view_as(images)) / 256

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        images = self.clean_images(true_sources(batch, self.separator.num_sources), random)
        sigmas = images.new_tensor(self.separator.sigmas)
        sigma = sigmas[(len(sigmas) * random.uniform(len(images))).long()]
        noise = random.normal(images.shape)
        noisy = images + expand_like(sigma, images) * noise
        score = self.micro_batched(self.trained.network)(noisy, sigma)
        return denoising_error(score, noise, sigma).mean()
