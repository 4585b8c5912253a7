"""MixPIT and MixCycle (Karamatlı and Kırbız, 2022), for mixtures of two sources.

Axes: B batch, P = B/2 pairs of mixtures, *S the signal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surf_lightning.callbacks.beta_schedule import Steps, check_steps
from surf_lightning.data.base import SeparationData
from surf_lightning.functional.losses import EnergyLoss, pit, thresholded_snr
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.methods.mixit import check_groups, in_groups
from surf_lightning.networks.base import RegressionNetwork


def exchange(estimates: Tensor, swapped: Tensor) -> Tensor:
    """Sources of new mixtures, each of one source from either of two neighbours, Eq. (5).

    Args:
        estimates: ``[B,2,*S]``, B even.
        swapped: ``[B]`` of bool; where True the two estimates of a mixture change places first (RSWAP of Fig. 3).

    Returns:
        ``sources [B,2,*S]``: mixtures 2p and 2p+1 hold the first and second estimates of the old 2p and 2p+1.
    """
    places = torch.arange(2, device=estimates.device)
    shuffled = reorder(estimates, torch.where(swapped.unsqueeze(1), 1 - places, places))
    return torch.unflatten(shuffled, 0, (-1, 2)).transpose(1, 2).flatten(0, 1)


class MixPIT(SeparationModule):
    """Separates mixtures of two mixtures into the two, with as many outputs as a mixture has sources.

    Args:
        network: of two outputs.
        error: of each mixture, a function of energies in ``surf_lightning.functional.losses``.

    The other arguments are those of ``SeparationModule``.

    Raises:
        ValueError: the network has not two outputs.
    """

    label = "MixPIT"
    least_mixtures = 2

    def __init__(self, network: RegressionNetwork, error: EnergyLoss = thresholded_snr, **options: Any) -> None:
        if network.num_outputs != 2:
            raise ValueError(f"MixPIT and MixCycle need a network of 2 outputs, not {network.num_outputs}")
        super().__init__(RegressionSeparator(network, num_sources=2), **options)
        self.error = error

    def check_batch(self, data: SeparationData) -> None:
        check_groups(data.batch_size)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        pairs = in_groups(batch["mixtures"])
        return self._pit(pairs)

    def _pit(self, sources: Tensor) -> Tensor:
        """The mean error of separating the sums of ``sources [P,2,*S]``."""
        estimates = self.micro_batched(self.trained)(sources.sum(1))
        losses, _ = pit(estimates, sources, self.error)
        return losses.mean()


class MixCycle(MixPIT):
    """Begins as MixPIT; then separates remixed estimates of itself, one step after another without any average.

    Args:
        network: of two outputs.
        mixpit_steps: optimizer steps of MixPIT at the beginning, or, a float in (0, 1], their share of the run; 50
            epochs in the paper.

    The other arguments are those of ``MixPIT``.
    """

    label = "MixCycle"

    def __init__(self, network: RegressionNetwork, mixpit_steps: Steps = 20_000, **options: Any) -> None:
        super().__init__(network, **options)
        check_steps("mixpit_steps", mixpit_steps, least=0)
        self.mixpit_steps = mixpit_steps

    @property
    def schedules(self) -> dict[str, Steps | None]:
        return {**super().schedules, "mixpit_steps": self.mixpit_steps}

    @torch.no_grad()
    def teacher_estimates(self, mixtures: Tensor) -> Tensor:
        """``[B,2,*S]``, of the weights as they are, dropout off: theta' = theta in Fig. 3."""
        self.trained.eval()
        estimates = self.micro_batched(self.trained)(mixtures)
        self.trained.train(self.training)
        return estimates

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        if self.steps_made < self.in_steps(self.mixpit_steps):
            return super().loss(batch, random)
        estimates = self.teacher_estimates(in_groups(batch["mixtures"]).flatten(0, 1))
        swapped = random.uniform(len(estimates)) < 0.5
        return self._pit(exchange(estimates, swapped))
