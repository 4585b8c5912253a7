"""Random numbers that are a function of (seed, batch), alike on all ranks. Axes: B batch, *S the signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
from torch import Tensor

from surf_lightning.functional.permutation import order_without_mates

Shuffle = Literal["uniform", "constrained"]


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


ALONE = Ranks()


class BatchRandomness:
    """The random numbers of one training batch: drawn for the batch of all ranks from (seed, batch), alike everywhere.

    Each rank draws them all and takes its rows, so that the same global batch computes the same thing on any number
    of ranks, and a resumed run draws what the uninterrupted one would have drawn.
    """

    def __init__(self, seed: int, batch: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.device = device
        self.generator = torch.Generator(device).manual_seed(mix_seed(seed, batch))

    def normal(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """This rank's rows of standard normal numbers; ``shape`` is the local one, batch first."""
        everywhere = (shape[0] * self.ranks.world_size, *shape[1:])
        return self.ranks.local(torch.randn(everywhere, generator=self.generator, device=self.device, dtype=dtype))

    def uniform(self, count: int) -> Tensor:
        """This rank's ``[count]`` of the numbers drawn uniformly from [0, 1)."""
        return self.ranks.local(torch.rand(count * self.ranks.world_size, generator=self.generator, device=self.device))

    def shared_uniform(self, count: int) -> Tensor:
        """One number drawn uniformly from [0, 1) for all rows of all ranks, ``[count]`` times."""
        return torch.rand((), generator=self.generator, device=self.device).expand(count)

    def remix_order(self, rows: int, ranks: Ranks) -> Tensor:
        """Π of Eq. (14): a permutation of the ``rows`` of each of ``ranks``, ``[rows * world]``.

        Where ``ranks`` is this process alone, the processes draw a permutation of their own each.
        """
        size = rows * ranks.world_size
        return self._order(ranks, lambda: torch.randperm(size, generator=self.generator, device=self.device))

    def shuffled_order(self, mixtures: int, num_sources: int, ranks: Ranks, shuffle: Shuffle) -> Tensor:
        """``remix_order`` of ``mixtures * num_sources`` rows; constrained, no two sources of a mixture meet again."""
        if shuffle == "uniform":
            return self.remix_order(mixtures * num_sources, ranks)
        count = mixtures * ranks.world_size
        return self._order(ranks, lambda: order_without_mates(count, num_sources, self.generator, self.device))

    def _order(self, ranks: Ranks, draw: Callable[[], Tensor]) -> Tensor:
        """What ``draw`` gives: once for all ``ranks``, or for each process in turn where they are this one alone."""
        rounds = self.ranks.world_size // ranks.world_size
        draws = [draw() for _ in range(rounds)]
        return draws[self.ranks.rank if rounds > 1 else 0]


def mix_seed(*keys: int) -> int:
    """One well-spread 63-bit seed from several small integers (splitmix64 of each, chained)."""
    state = 0
    for key in keys:
        state = (state ^ (key & (2**64 - 1))) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
