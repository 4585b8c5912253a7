"""Mixture-invariant training. Axes: B batch, P = B/2 pairs of mixtures, M outputs, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.functional.losses import EnergyLoss, mixit, thresholded_snr
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.metrics.audio import MoMi
from surf_lightning.networks.base import RegressionNetwork


def in_pairs(mixtures: Tensor) -> Tensor:
    """Neighbours ``[P,2,*S]`` of ``mixtures [B,*S]``, alike however the batch is shared out; an odd last is dropped.

    Raises:
        UserError: there are fewer than two mixtures.
    """
    if len(mixtures) < 2:
        raise UserError("this method mixes pairs of mixtures: set data.batch_size to at least 2")
    return torch.unflatten(mixtures[: len(mixtures) // 2 * 2], 0, (-1, 2))


class MixIT(SeparationModule):
    """Separates mixtures of two mixtures so that some sums of its M estimates give the two back.

    Args:
        network: of M outputs; where M > K, the K most energetic separate.
        num_sources: sources in a mixture (K).
        error: of the best sums against the mixtures, a function of energies in ``surf_lightning.functional.losses``.

    The other arguments are those of ``SeparationModule``.
    """

    label = "MixIT"

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        error: EnergyLoss = thresholded_snr,
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources), **options)
        self.error = error
        self.momi = MoMi()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Recordings without truth are measured by MoMi, for which mixtures of mixtures are enough."""
        if "sources" not in batch and self.signal["kind"] == "audio":
            pairs = in_pairs(batch["mixtures"])
            self.momi.update(self.micro_batched(self.separator.network)(pairs.sum(1)), pairs)
            self.log("val/momi", self.momi, prog_bar=True)
        return super().validation_step(batch, batch_idx)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        pairs = in_pairs(batch["mixtures"])
        estimates = self.micro_batched(self.separator.network)(pairs.sum(1))
        losses, _ = mixit(estimates, pairs, error=self.error)
        return losses.mean()
