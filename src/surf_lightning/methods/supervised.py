"""Supervised upper bounds, trained on true sources. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.losses import ErrorOfEnergies, mean_square, pit, squared_error
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.methods.flow_matching import flow_residual
from surf_lightning.methods.micro_batches import in_micro_batches
from surf_lightning.methods.objectives import Reduction
from surf_lightning.networks.noise import PriorNoise
from surf_lightning.networks.protocols import RegressionNetwork, VelocityNetwork
from surf_lightning.remixing import BatchRandomness
from surf_lightning.separator import FlowSeparator, RegressionSeparator


def true_sources(batch: Batch, count: int) -> Tensor:
    """The sources of ``batch`` as ``[B,count,*S]``: slots beyond those of the data are silent.

    Raises:
        UserError: the data have no true sources, or more than ``count``.
    """
    if "sources" not in batch:
        raise UserError("supervised training needs true sources, and these data have none (data.with_sources=true?)")
    sources = batch["sources"]
    if sources.shape[1] > count:
        raise UserError(f"the mixtures have {sources.shape[1]} sources, the network separates {count}")
    silent = sources.new_zeros(len(sources), count - sources.shape[1], *sources.shape[2:])
    return torch.cat([sources, silent], 1)


class SupervisedRegression(SeparationModule):
    """Permutation-invariant training, Eq. (3).

    Args:
        network: of as many outputs as there are sources, or more: then the most energetic are taken.
        num_sources: sources in a mixture (K).
        error: of each source, a function of energies: ``losses.log_error`` (Section 5.1) or ``losses.squared_error``
            (Appendix D.4).

    The other arguments are those of ``SeparationModule``.
    """

    label = "Supervised Regression"

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        error: ErrorOfEnergies = squared_error,
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources), **options)
        self.error = error

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        estimates = in_micro_batches(self.separator, self.micro_batch, batch["mixtures"])
        losses, _ = pit(estimates, true_sources(batch, estimates.shape[1]), self.error)
        return losses.mean()


class SupervisedFlow(SeparationModule):
    """Flow matching with permutation-invariant alignment (FLOSS), Eq. (10): SURF's step on true sources.

    Args:
        network: of K sources.
        reduction: ``losses.mean_square`` (images) or ``losses.log_energy`` (audio).
        noise: standard deviation of the prior.
        num_steps: Euler steps of the sampler.

    The other arguments are those of ``SeparationModule``.
    """

    label = "Supervised Flow"
    separator: FlowSeparator

    def __init__(
        self,
        network: VelocityNetwork,
        reduction: Reduction = mean_square,
        noise: PriorNoise | None = None,
        num_steps: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(FlowSeparator(network, num_steps, noise), **options)
        self.reduction = reduction

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        sources = true_sources(batch, self.separator.num_sources)
        flow = flow_residual(self.separator, sources, batch["mixtures"], random, self.micro_batch)
        return self.reduction(flow.residual).mean()
