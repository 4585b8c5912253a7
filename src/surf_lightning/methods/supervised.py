"""Supervised counterparts, trained on true sources. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.functional.flow import flow_residual
from surf_lightning.functional.losses import EnergyLoss, Reduction, mean_square, pit, squared_error, with_silence
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.functional.remixing import remix_over_ranks
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.networks.base import PriorNoise, RegressionNetwork, VelocityNetwork


def true_sources(batch: Batch, count: int) -> Tensor:
    """The sources of ``batch`` as ``[B,count,*S]``: slots beyond those of the data are silent.

    Raises:
        UserError: the data have no true sources, or more than ``count``.
    """
    if "sources" not in batch:
        raise UserError("supervised training needs true sources, and these data have none")
    sources = batch["sources"]
    if sources.shape[1] > count:
        raise UserError(f"the mixtures have {sources.shape[1]} sources, the network separates {count}")
    return with_silence(sources, count)


class SupervisedRegression(SeparationModule):
    """Permutation-invariant training, Eq. (3).

    Args:
        network: of as many outputs as there are sources, or more: then the most energetic are taken.
        num_sources: sources in a mixture (K).
        error: of each source, a function of energies: ``losses.log_mse`` (Section 5.1), ``losses.squared_error``
            (Appendix D.4) or ``losses.thresholded_snr`` (PIT of the MixIT and MixCycle papers).
        dynamic_mixing: train on mixtures of the batch's sources in a new order (PIT-DM).

    The other arguments are those of ``SeparationModule``.
    """

    label = "Supervised Regression"
    needs_sources = True

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        error: EnergyLoss = squared_error,
        dynamic_mixing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources), **options)
        self.error, self.dynamic_mixing = error, dynamic_mixing
        if dynamic_mixing:
            self.label = "Dynamic Mixing"

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        mixtures, sources = batch["mixtures"], true_sources(batch, self.separator.num_sources)
        if self.dynamic_mixing:
            order = random.remix_order(sources.shape[0] * sources.shape[1], random.ranks)
            remixed = remix_over_ranks(sources, order, random.ranks)
            mixtures, sources = remixed.mixtures, remixed.sources
        losses, _ = pit(self.micro_batched(self.trained)(mixtures), sources, self.error)
        return losses.mean()


class SupervisedFlow(SeparationModule):
    """Flow matching with permutation-invariant alignment (FLOSS), Eq. (10): SURF's step on true sources, unshuffled.

    Args:
        network: of K sources.
        reduction: ``losses.mean_square`` (images) or ``losses.log_energy`` (audio).
        noise: standard deviation of the prior.
        num_steps: Euler steps of the sampler.
        sampling_noise: factor on the prior's deviation where sources are sampled, see ``FlowSeparator``.
        early_times: as of ``SURF``.
        ema_decay: as of ``SeparationModule``; the paper trains this flow by Algorithm 1, its line 16 included.

    The other arguments are those of ``SeparationModule``.
    """

    label = "Supervised Flow"
    needs_sources = True
    separator: FlowSeparator

    def __init__(
        self,
        network: VelocityNetwork,
        reduction: Reduction = mean_square,
        noise: PriorNoise | None = None,
        num_steps: int = 5,
        sampling_noise: float = 1.0,
        early_times: float = 1.0,
        ema_decay: float | None = 0.999,
        **options: Any,
    ) -> None:
        super().__init__(FlowSeparator(network, num_steps, noise, sampling_noise), ema_decay=ema_decay, **options)
        if early_times <= 0:
            raise ValueError(f"early_times must be above 0, not {early_times}: 1 is uniform")
        self.reduction, self.early_times = reduction, early_times

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        sources, mixtures = true_sources(batch, self.separator.num_sources), batch["mixtures"]
        t = random.uniform(len(mixtures)) ** self.early_times
        x0 = self.separator.prior(mixtures, random.normal(sources.shape))
        network = self.trained.network
        velocity, weight = self.micro_batched(network), network.residual_weight(t)
        residual, _ = flow_residual(velocity, x0, sources, mixtures, t, weight)
        return self.reduction(residual).mean()
