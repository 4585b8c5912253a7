"""Mixture-invariant training. Axes: B batch, M outputs, *S the signal."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from surf_lightning.losses import ErrorOfEnergies, mixit, thresholded_error
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.methods.micro_batches import in_micro_batches
from surf_lightning.methods.pairs import in_pairs
from surf_lightning.metrics.audio import MoMi
from surf_lightning.networks.protocols import RegressionNetwork
from surf_lightning.remixing import BatchRandomness
from surf_lightning.separator import RegressionSeparator


class MixIT(SeparationModule):
    """Separates mixtures of two mixtures so that some sums of its M estimates give the two back.

    Args:
        network: of M outputs; where M > K, the K most energetic separate.
        num_sources: sources in a mixture (K).
        error: of the best sums against the mixtures, a function of energies in ``surf_lightning.losses``.

    The other arguments are those of ``SeparationModule``.
    """

    label = "MixIT"

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        error: ErrorOfEnergies = thresholded_error,
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources), **options)
        self.error = error
        self.momi = MoMi()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Recordings without truth are measured by MoMi, for which mixtures of mixtures are enough."""
        if "sources" not in batch and self.signal["kind"] == "audio":
            pairs = in_pairs(batch["mixtures"])
            self.momi.update(in_micro_batches(self.separator.network, self.micro_batch, pairs.sum(1)), pairs)
            self.log("val/momi", self.momi, prog_bar=True)
        return super().validation_step(batch, batch_idx)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        pairs = in_pairs(batch["mixtures"])
        estimates = in_micro_batches(self.separator.network, self.micro_batch, pairs.sum(1))
        losses, _ = mixit(estimates, pairs, error=self.error)
        return losses.mean()
