"""Mixtures of two mixtures. Axes: B batch, P = B/2 pairs, *S the signal."""

from __future__ import annotations

from torch import Tensor

from surf_lightning.errors import UserError


def in_pairs(mixtures: Tensor) -> Tensor:
    """Neighbours ``[P,2,*S]`` of ``mixtures [B,*S]``, alike however the batch is shared out; an odd last is dropped.

    Raises:
        UserError: there are fewer than two mixtures.
    """
    if len(mixtures) < 2:
        raise UserError("this method mixes pairs of mixtures: set data.batch_size to at least 2")
    return mixtures[: len(mixtures) // 2 * 2].unflatten(0, (-1, 2))
