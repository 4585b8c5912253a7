"""Shuffling sources across the batch of all ranks, and back. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
from torch import Tensor


@dataclass(frozen=True)
class Remix:
    """Sources dealt anew to the mixtures, Eq. (14)-(15).

    ``sources [B,K,*S]``, ``mixtures [B,*S]`` their sums, ``order [B*K]``: flat row i came from flat row ``order[i]``.
    """

    sources: Tensor
    mixtures: Tensor
    order: Tensor


def remix(sources: Tensor, generator: torch.Generator | None = None) -> Remix:
    """Shuffle all B*K rows of ``sources [B,K,*S]`` by one permutation drawn uniformly from S_BK and sum each K."""
    order = torch.randperm(sources.shape[0] * sources.shape[1], generator=generator, device=sources.device)
    return deal(sources, order)


def deal(sources: Tensor, order: Tensor) -> Remix:
    """The rows of ``sources [B,K,*S]`` in the given ``order [B*K]``, and the sums of each K."""
    shuffled = sources.flatten(0, 1)[order].view_as(sources)
    return Remix(shuffled, shuffled.sum(1), order)


def unremix(rows: Tensor, order: Tensor) -> Tensor:
    """Put ``rows [B,K,*S]`` back in their original mixtures: the inverse of the shuffle ``order [B*K]``."""
    return rows.flatten(0, 1)[order.argsort()].view_as(rows)


@dataclass(frozen=True)
class Ranks:
    """The processes that share one remixed batch; rank r holds rows ``[r*B, (r+1)*B)`` of it."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """All ranks of the running process group, or this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def gather(self, rows: Tensor) -> Tensor:
        """``[B,...]`` of every rank in order, ``[world*B,...]``; gradients flow back to the rank a row came from."""
        if self.world_size == 1:
            return rows
        return torch.cat(dist_fn.all_gather(rows.contiguous()))

    def local(self, rows: Tensor) -> Tensor:
        """This rank's part ``[B,...]`` of ``rows [world*B,...]``."""
        return rows if self.world_size == 1 else rows.chunk(self.world_size)[self.rank]


class BatchRandomness:
    """The random numbers of one training batch: drawn for the batch of all ranks from (seed, batch), alike everywhere.

    Each rank draws them all and takes its rows, so that the same global batch computes the same thing on any number
    of ranks, and a resumed run draws what the uninterrupted one would have drawn.
    """

    def __init__(self, seed: int, batch: int, device: torch.device, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.device = device
        self.generator = torch.Generator(device).manual_seed(mix_seed(seed, batch))

    def normal(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """This rank's rows of standard normal numbers; ``shape`` is the local one, batch first."""
        everywhere = (shape[0] * self.ranks.world_size, *shape[1:])
        return self.ranks.local(torch.randn(everywhere, generator=self.generator, device=self.device, dtype=dtype))

    def uniform(self, count: int) -> Tensor:
        """This rank's ``[count]`` of the numbers drawn uniformly from [0, 1)."""
        return self.ranks.local(torch.rand(count * self.ranks.world_size, generator=self.generator, device=self.device))

    def permutation(self, size: int) -> Tensor:
        """This rank's own permutation ``[size]``, one of as many as there are ranks."""
        draws = range(self.ranks.world_size)
        return [torch.randperm(size, generator=self.generator, device=self.device) for _ in draws][self.ranks.rank]


def mix_seed(*keys: int) -> int:
    """One well-spread 63-bit seed from several small integers (splitmix64 of each, chained)."""
    state = 0
    for key in keys:
        state = (state ^ (key & (2**64 - 1))) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
