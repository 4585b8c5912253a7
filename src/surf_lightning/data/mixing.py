"""Drawing mixtures of images: which image goes where is a function of (seed, position) alone.

Axes: N images, B batch, K sources, C H W.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from surf_lightning.functional.randomness import Ranks, mix_seed


def distinct(count: int, size: int, population: int, generator: torch.Generator) -> Tensor:
    """``[count,size]`` indices below ``population``, uniform, no two alike in a row."""
    if size > population:
        raise ValueError(f"cannot draw {size} distinct images from {population}")
    rows = torch.empty(count, 0, dtype=torch.long)
    for taken in range(size):
        draw = torch.randint(population - taken, (count, 1), generator=generator)
        for earlier in rows.sort(1).values.unbind(1):  # the draw-th index that is not taken yet
            draw += draw >= earlier.unsqueeze(1)
        rows = torch.cat([rows, draw], 1)
    return rows


def to_sources(images: Tensor) -> Tensor:
    """uint8 pixels to floats in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def silence_some(sources: Tensor, fewest: int, counts: Tensor) -> Tensor:
    """``sources [B,K,C,H,W]`` of which each mixture keeps the first ``fewest`` + ``counts [B]``; the others are 0."""
    slots = torch.arange(sources.shape[1])
    return sources.masked_fill((slots >= fewest + counts.unsqueeze(1))[..., None, None, None], 0)


class RandomMixtures(Dataset[dict[str, Tensor]]):
    """Item i is training batch i: this rank's rows of random mixtures of K distinct images.

    ``images [N,C,H,W]`` uint8; ``batch_size`` is a rank's. A share ``single_source_share`` of the mixtures holds one
    image alone, the other sources being 0: the mixtures that MixIT is trained on (Appendix D.4). The others hold from
    ``fewest_sources`` to K images, each number as often; by default K.
    Items are ``mixtures [B,C,H,W]`` and ``sources [B,K,C,H,W]``.
    """

    def __init__(
        self,
        images: Tensor,
        num_sources: int,
        batch_size: int,
        seed: int,
        ranks: Ranks,
        single_source_share: float = 0.0,
        fewest_sources: int | None = None,
    ) -> None:
        self.images, self.num_sources, self.batch_size = images, num_sources, batch_size
        self.seed, self.ranks, self.single_source_share = seed, ranks, single_source_share
        self.fewest_sources = fewest_sources or num_sources

    def names(self, batch: int, row: int) -> str:
        """The numbers of the images in row ``row`` of this rank's training batch ``batch``."""
        chosen, _ = self._chosen(batch)
        return f"training images {' and '.join(map(str, self.ranks.local(chosen)[row].tolist()))}"

    def _chosen(self, batch: int) -> tuple[Tensor, torch.Generator]:
        """The images of the whole batch ``[world*B,K]``, and the generator that drew them."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, batch))
        everywhere = self.batch_size * self.ranks.world_size
        return distinct(everywhere, self.num_sources, len(self.images), generator), generator

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        chosen, generator = self._chosen(batch)
        single = torch.rand(len(chosen), generator=generator) < self.single_source_share
        sources = to_sources(self.images[self.ranks.local(chosen)])
        if (more := self.num_sources - self.fewest_sources) > 0:
            counts = torch.randint(more + 1, (len(chosen),), generator=generator)
            sources = silence_some(sources, self.fewest_sources, self.ranks.local(counts))
        sources[self.ranks.local(single), 1:] = 0
        return {"mixtures": sources.sum(1), "sources": sources}


class FixedMixtures(Dataset[dict[str, Tensor]]):
    """Item j is batch j of a fixed set of mixtures, the same for every seed of training and number of ranks.

    The images are dealt by seeded permutations of them all, one after another, so that each is used equally often:
    10,000 test images make the 5,000 pairs of Table 1. ``fewest_sources`` as of ``RandomMixtures``.
    """

    def __init__(
        self,
        images: Tensor,
        num_sources: int,
        num_mixtures: int,
        batch_size: int,
        fewest_sources: int | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        per_round = len(images) // num_sources
        rounds = -(-num_mixtures // per_round)
        dealt = [torch.randperm(len(images), generator=generator)[: per_round * num_sources] for _ in range(rounds)]
        self.images, self.batch_size = images, batch_size
        self.chosen = torch.cat(dealt).view(-1, num_sources)[:num_mixtures]
        self.fewest_sources = fewest_sources or num_sources
        self.counts = torch.randint(num_sources - self.fewest_sources + 1, (num_mixtures,), generator=generator)

    def __len__(self) -> int:
        return -(-len(self.chosen) // self.batch_size)

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        if batch >= len(self):
            raise IndexError(batch)
        rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        sources = silence_some(to_sources(self.images[self.chosen[rows]]), self.fewest_sources, self.counts[rows])
        return {"mixtures": sources.sum(1), "sources": sources}
