"""Mixture-invariant training. Axes: B batch, P = B/2 pairs of mixtures, K sources, M outputs, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surf_lightning.data.base import SeparationData
from surf_lightning.errors import UserError
from surf_lightning.functional.flow import expand_like
from surf_lightning.functional.losses import EnergyLoss, mixit, pit, thresholded_snr
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator, Selection
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.methods.supervised import true_sources, with_silence
from surf_lightning.networks.base import RegressionNetwork


def check_pairs(batch_size: int) -> None:
    """Raises UserError where there are fewer than two mixtures."""
    if batch_size < 2:
        raise UserError("this method mixes pairs of mixtures: set data.batch_size to at least 2")


def in_pairs(mixtures: Tensor) -> Tensor:
    """Neighbours ``[P,2,*S]`` of ``mixtures [B,*S]``, alike however the batch is shared out; an odd last is dropped.

    Raises:
        UserError: there are fewer than two mixtures.
    """
    check_pairs(len(mixtures))
    return torch.unflatten(mixtures[: len(mixtures) // 2 * 2], 0, (-1, 2))


class MixIT(SeparationModule):
    """Separates mixtures of two mixtures so that some sums of its M estimates give the two back.

    Args:
        network: of M outputs.
        num_sources: sources in a mixture (K).
        selection: how M outputs become K, see ``RegressionSeparator``.
        error: of the best sums against the mixtures, a function of energies in ``surf_lightning.functional.losses``.

    The other arguments are those of ``SeparationModule``.
    """

    label = "MixIT"

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        error: EnergyLoss = thresholded_snr,
        selection: Selection = "loudest",
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources, selection), **options)
        self.error = error

    def check_batch(self, data: SeparationData) -> None:
        check_pairs(data.batch_size)

    def outputs(self, mixtures: Tensor, batch_idx: int) -> Tensor:
        """The network's M outputs ``[B,M,*S]``, not yet reduced to K."""
        return self.micro_batched(self.separator.network)(mixtures)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        pairs = in_pairs(batch["mixtures"])
        estimates = self.micro_batched(self.trained.network)(pairs.sum(1))
        losses, _ = mixit(estimates, pairs, error=self.error)
        return losses.mean()


def without_second(pairs: Tensor, zeroed: Tensor) -> Tensor:
    """``pairs [P,2,...]``, the second set to 0 where ``zeroed [P]``; both are drawn alike, so either would do."""
    first, second = pairs.unbind(1)
    return torch.stack([first, torch.where(expand_like(zeroed, second), 0, second)], 1)


class SemiSupervisedMixIT(MixIT):
    """MixIT, but some mixtures of mixtures are trained on their true sources (MixIT paper, Section 3.3).

    A supervised pair of mixtures has the permutation-invariant error, Eq. (1), of all M outputs against the true
    sources of both, padded with silence to M; see ``functional.losses.reference_energy`` for what silence costs. With
    ``supervised_share`` 1 this is the paper's supervised training on mixtures of mixtures. Training batches must hold
    true sources; those of a pair that is not supervised are not looked at.

    Args:
        network: of at least 2K outputs.
        num_sources: sources in a mixture (K).
        supervised_share: p, the probability that a pair is supervised.
        zeroed_share: p0 of Table 1, the probability that of a supervised pair one mixture is zeroed, with its sources:
            what remains teaches the network not to over-separate.

    The other arguments are those of ``MixIT``.

    Raises:
        ValueError: the network has too few outputs, or a share is not between 0 and 1.
    """

    label = "Semi-supervised MixIT"

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        supervised_share: float = 0.1,
        zeroed_share: float = 0.2,
        **options: Any,
    ) -> None:
        if network.num_outputs < 2 * num_sources:
            raise ValueError(f"two mixtures of {num_sources} sources need {2 * num_sources} outputs or more")
        if not 0 <= min(supervised_share, zeroed_share) <= max(supervised_share, zeroed_share) <= 1:
            raise ValueError("supervised_share and zeroed_share must lie in [0, 1]")
        super().__init__(network, num_sources, **options)
        self.supervised_share, self.zeroed_share = supervised_share, zeroed_share

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        pairs = in_pairs(batch["mixtures"])
        supervised = random.uniform(len(pairs)) < self.supervised_share
        zeroed = supervised & (random.uniform(len(pairs)) < self.zeroed_share)

        sources = in_pairs(true_sources(batch, self.separator.num_sources))  # [P,2,K,*S]
        sources = torch.where(expand_like(supervised, sources), sources, 0)
        pairs, sources = without_second(pairs, zeroed), without_second(sources, zeroed).flatten(1, 2)
        estimates = self.micro_batched(self.trained.network)(pairs.sum(1))
        by_mixtures, _ = mixit(estimates, pairs, error=self.error)
        by_sources, _ = pit(estimates, with_silence(sources, estimates.shape[1]), self.error, pairs.sum(1))
        return torch.where(supervised, by_sources, by_mixtures).mean()
