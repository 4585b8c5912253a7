"""The ideal ratio mask: an oracle to compare masks with. Axes: B batch, K sources, T samples, N frames, J bins."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import Separator
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.networks.base import serializable
from surf_lightning.networks.stft import STFT, ratio_masks


@serializable
class _Nothing(Separator):
    """Of as many sources as there are."""

    num_sources = 2**20

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        raise UserError("the ideal ratio mask needs the true sources: it cannot separate files")


class IdealRatioMask(SeparationModule):
    """Magnitudes of the true sources over their sum, as masks of the mixture (MixCycle paper, Table I).

    ``surf test --config CONFIG --model IdealRatioMask --name NAME`` measures it on the data of CONFIG; there is nothing
    to train. Its estimates are what ``STFTConvTasNet`` would give if its masks were those of the truth.

    Args:
        n_fft: samples of a frame, of a Hann window.
        hop: samples between frames.
        seed: is not used.
    """

    label = "Ideal ratio mask"
    needs_sources = is_oracle = True

    def __init__(self, n_fft: int = 512, hop: int = 128, seed: int = 0) -> None:
        super().__init__(_Nothing(), optimizer=torch.optim.SGD, seed=seed)
        self.stft = STFT(n_fft, hop, "hann")

    def estimates(self, batch: Batch, position: int) -> Tensor:
        sources, mixtures = batch["sources"], batch["mixtures"]
        masks = ratio_masks(self.stft(sources).norm(dim=-1))  # [B,K,N,J]
        return self.stft.inverse(masks.unsqueeze(4) * self.stft(mixtures).unsqueeze(1), mixtures.shape[-1])

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        raise UserError("the ideal ratio mask has nothing to train: use surf test")

    def check_earlier_stage(self) -> None:
        self.loss({}, BatchRandomness(0, 0, self.device))

    def configure_callbacks(self) -> list[Callback]:
        return []

    def check_sources(self, data: Any) -> None:
        """Any number will do."""
