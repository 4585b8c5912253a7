"""The two remixing losses, as functions of the student's residual. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from surf_lightning.losses import mean_square, regrouped
from surf_lightning.remixing import Ranks

Reduction = Callable[[Tensor], Tensor]


class RemixingLoss(ABC):
    """A loss of the student's residual, of which a ``reduction`` makes one number for each mixture."""

    label: str

    def __init__(self, reduction: Reduction = mean_square) -> None:
        self.reduction = reduction

    @abstractmethod
    def __call__(self, residual: Tensor, pit_order: Tensor, remix_order: Tensor, ranks: Ranks) -> Tensor:
        """``residual [B,K,*S]``, ``pit_order [B,K]`` of this rank, ``remix_order`` of all ranks -> this rank's [B]."""


class ReMixITLoss(RemixingLoss):
    """The student is to find the teacher's sources: Eq. (16) and (24).

    Args:
        reduction: ``losses.mean_square`` (images) or ``losses.log_energy`` (audio, FLOSS).
    """

    label = "ReMixIT"

    def __call__(self, residual: Tensor, pit_order: Tensor, remix_order: Tensor, ranks: Ranks) -> Tensor:
        return self.reduction(residual)


class SelfRemixingLoss(RemixingLoss):
    """The student's sources, put back where the teacher's came from, are to give the mixtures: Eq. (17) and (30).

    Args:
        reduction: ``losses.mean_square`` (images) or ``losses.log_energy`` (audio, FLOSS).
    """

    label = "Self-Remixing"

    def __call__(self, residual: Tensor, pit_order: Tensor, remix_order: Tensor, ranks: Ranks) -> Tensor:
        if len(remix_order) == residual.shape[1]:
            rank_zero_warn("Self-Remixing of one mixture has a loss of 0: use a batch_size of at least 2")
        original = regrouped(ranks.gather(residual), ranks.gather(pit_order), remix_order)
        return self.reduction(ranks.local(original))
