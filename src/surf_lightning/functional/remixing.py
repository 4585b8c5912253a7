"""Shuffling sources across the batch of all ranks, and back. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surf_lightning.functional.randomness import Ranks


@dataclass(frozen=True)
class Remix:
    """A shuffled batch, Eq. (14)-(15).

    ``sources [B,K,*S]``, ``mixtures [B,*S]`` their sums, ``order [B*K]``: flat row i came from flat row ``order[i]``.
    """

    sources: Tensor
    mixtures: Tensor
    order: Tensor


def remix(sources: Tensor, generator: torch.Generator | None = None) -> Remix:
    """Shuffle all B*K rows of ``sources [B,K,*S]`` by one permutation drawn uniformly from S_BK and sum each K."""
    order = torch.randperm(sources.shape[0] * sources.shape[1], generator=generator, device=sources.device)
    return shuffle_sources(sources, order)


def shuffle_sources(sources: Tensor, order: Tensor) -> Remix:
    """``remix`` by a given ``order [B*K]``: Π ``sources [B,K,*S]`` and its mixtures."""
    shuffled = sources.flatten(0, 1)[order].view_as(sources)
    return Remix(shuffled, shuffled.sum(1), order)


def remix_over_ranks(sources: Tensor, order: Tensor, ranks: Ranks) -> Remix:
    """This rank's part of the remixed batch of all ``ranks``, from its ``sources [B,K,*S]``.

    ``order [world*B*K]`` is a permutation of the rows of all ranks, and stays whole in the result.
    """
    if ranks.world_size == 1:
        return shuffle_sources(sources, order)
    whole = shuffle_sources(ranks.gather(sources), order)
    return Remix(ranks.local(whole.sources), ranks.local(whole.mixtures), order)


def unremix(rows: Tensor, order: Tensor) -> Tensor:
    """Put ``rows [B,K,*S]`` back in their original mixtures: the inverse of the shuffle ``order [B*K]``."""
    return rows.flatten(0, 1)[order.argsort()].view_as(rows)
