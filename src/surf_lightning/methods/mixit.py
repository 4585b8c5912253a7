"""Mixture-invariant training. Axes: B batch, P = B/N groups of N mixtures, K sources, M outputs, *S the signal."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from surf_lightning.data.base import SeparationData
from surf_lightning.errors import UserError
from surf_lightning.functional.flow import expand_like
from surf_lightning.functional.losses import (
    EnergyLoss,
    check_deals,
    enhancement_assignments,
    mixit,
    pit,
    thresholded_snr,
    with_silence,
)
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator, Selection
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.methods.supervised import true_sources
from surf_lightning.networks.base import RegressionNetwork


def check_groups(batch_size: int, size: int = 2) -> None:
    """Raises UserError where there are fewer than ``size`` mixtures."""
    if batch_size < size:
        raise UserError(f"this method adds up {size} mixtures: set data.batch_size to at least {size}")


def in_groups(mixtures: Tensor, size: int = 2) -> Tensor:
    """``size`` neighbours ``[P,N,*S]`` of ``mixtures [B,*S]``, alike however the batch is shared out; drops the rest.

    Raises:
        UserError: there are fewer than N mixtures.
    """
    check_groups(len(mixtures), size)
    return torch.unflatten(mixtures[: len(mixtures) // size * size], 0, (-1, size))


class MixIT(SeparationModule):
    """Separates mixtures of N mixtures so that some sums of its M estimates give the N back.

    Args:
        network: of M outputs.
        num_sources: sources in a mixture (K).
        selection: how M outputs become K, see ``RegressionSeparator``.
        error: of the best sums against the mixtures, a function of energies in ``surf_lightning.functional.losses``.
        num_mixtures: N; the N^M assignments must not exceed 2^20.
        assignments: ``all``, or ``enhancement``: of every two mixtures the first is noisy speech and the second noise,
            and the first output must be the speech, see ``functional.losses.enhancement_assignments``. The data set
            ``Enhancement`` has such batches; ``selection: first`` gives its sources in this order.

    The other arguments are those of ``SeparationModule``.

    Raises:
        ValueError: fewer than two mixtures, or an enhancement with other than two mixtures or below three outputs.
    """

    label = "MixIT"
    allowed: Tensor | None

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        error: EnergyLoss = thresholded_snr,
        selection: Selection = "loudest",
        num_mixtures: int = 2,
        assignments: Literal["all", "enhancement"] = "all",
        **options: Any,
    ) -> None:
        if num_mixtures < 2:
            raise ValueError(f"num_mixtures must be at least 2, not {num_mixtures}")
        check_deals(network.num_outputs, num_mixtures)
        if assignments == "enhancement" and (num_mixtures != 2 or network.num_outputs < 3):
            raise ValueError("assignments for enhancement need num_mixtures 2 and a network of 3 outputs or more")
        super().__init__(RegressionSeparator(network, num_sources, selection), **options)
        self.error, self.num_mixtures = error, num_mixtures
        self.least_mixtures = num_mixtures
        allowed = enhancement_assignments(network.num_outputs) if assignments == "enhancement" else None
        self.register_buffer("allowed", allowed, persistent=False)

    def check_batch(self, data: SeparationData) -> None:
        check_groups(data.batch_size, self.num_mixtures)

    def outputs(self, mixtures: Tensor, batch_idx: int) -> Tensor:
        """The network's M outputs ``[B,M,*S]``, not yet reduced to K."""
        return self.micro_batched(self.separator.network)(mixtures)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        groups = in_groups(batch["mixtures"], self.num_mixtures)
        estimates = self.micro_batched(self.trained.network)(groups.sum(1))
        losses, _ = mixit(estimates, groups, error=self.error, allowed=self.allowed)
        return losses.mean()


def without_last(groups: Tensor, zeroed: Tensor) -> Tensor:
    """``groups [P,N,...]``, the last set to 0 where ``zeroed [P]``; all are drawn alike, so any would do."""
    last = groups[:, -1:]
    return torch.cat([groups[:, :-1], torch.where(expand_like(zeroed, last), 0, last)], 1)


def with_truth(batch: Batch) -> Batch:
    """The mixtures and sources of the data's ``supervised`` set, and where they have none, ``batch``."""
    prefix = "supervised_"
    return {name.removeprefix(prefix): each for name, each in batch.items() if name.startswith(prefix)} or batch


class SemiSupervisedMixIT(MixIT):
    """MixIT, but some mixtures of mixtures are trained on their true sources (MixIT paper, Section 3.3).

    A supervised group of mixtures has the permutation-invariant error, Eq. (1), of all M outputs against the true
    sources of all, padded with silence to M; see ``functional.losses.reference_energy`` for what silence costs. With
    ``supervised_share`` 1 this is the paper's supervised training on mixtures of mixtures. The true sources of a group
    that is not supervised are not looked at. Where the data have a ``supervised`` set of another domain, its mixtures
    and sources are those of the supervised groups, as in the paper's Section 4.1 and Table 1.

    Args:
        network: of at least NK outputs.
        num_sources: sources in a mixture (K).
        supervised_share: p, the probability that a group is supervised, drawn anew at every step. (The paper parts its
            data: in Table 1, 8 hours are supervised and 8 are not.)
        zeroed_share: p0 of Table 1, the probability that of a supervised group one mixture is zeroed, with its sources:
            what remains teaches the network not to over-separate.

    The other arguments are those of ``MixIT``.

    Raises:
        ValueError: the network has too few outputs, or a share is not between 0 and 1.
    """

    label = "Semi-supervised MixIT"
    needs_sources = True

    def __init__(
        self,
        network: RegressionNetwork,
        num_sources: int = 2,
        supervised_share: float = 0.1,
        zeroed_share: float = 0.2,
        **options: Any,
    ) -> None:
        if not 0 <= min(supervised_share, zeroed_share) <= max(supervised_share, zeroed_share) <= 1:
            raise ValueError("supervised_share and zeroed_share must lie in [0, 1]")
        super().__init__(network, num_sources, **options)
        if network.num_outputs < (needed := self.num_mixtures * num_sources):
            raise ValueError(f"{self.num_mixtures} mixtures of {num_sources} sources need {needed} outputs or more")
        self.supervised_share, self.zeroed_share = supervised_share, zeroed_share

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        of_truth = with_truth(batch)
        if "sources" not in of_truth and not self.training:  # held-out mixtures of a domain without truth
            return super().loss(batch, random)
        groups = in_groups(batch["mixtures"], self.num_mixtures)
        supervised = random.uniform(len(groups)) < self.supervised_share
        zeroed = supervised & (random.uniform(len(groups)) < self.zeroed_share)

        others = in_groups(of_truth["mixtures"], self.num_mixtures)
        groups = torch.where(expand_like(supervised, groups), others, groups)
        sources = in_groups(true_sources(of_truth, self.separator.num_sources), self.num_mixtures)  # [P,N,K,*S]
        sources = torch.where(expand_like(supervised, sources), sources, 0)
        groups, sources = without_last(groups, zeroed), without_last(sources, zeroed).flatten(1, 2)
        estimates = self.micro_batched(self.trained.network)(groups.sum(1))
        by_mixtures, _ = mixit(estimates, groups, error=self.error, allowed=self.allowed)
        by_sources, _ = pit(estimates, with_silence(sources, estimates.shape[1]), self.error, groups.sum(1))
        return torch.where(supervised, by_sources, by_mixtures).mean()
