"""Posterior samples of windows: their noise, their mean and variance, and the curve of their uncertainty.

Axes: C channels, R rows (channels of any windows), K sources, n samples, W samples of a window, N points of a curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from surf_lightning.functional.permutation import best_permutation, reorder
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.overlap_add import agreement
from surf_lightning.inference.separator import Separator

NOISE_BLOCK = 16384  # samples whose noise is drawn together

Window = tuple[int, Tensor]
"""Its first sample in its stream, and its samples ``[C,W]``."""


def noise_at(start: int, length: int, num_sources: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers ``[K,length]`` for the samples from ``start`` on, a function of (seed, position) alone.

    So two overlapping windows start the flow from the same noise where they overlap, and reach the same sample of the
    posterior; with noise of their own, two different answers would be cross-faded. Drawn on the CPU, so that all
    devices get the same.
    """
    first, last = start // NOISE_BLOCK, (start + length - 1) // NOISE_BLOCK
    parts = []
    for block in range(first, last + 1):
        generator = torch.Generator().manual_seed(mix_seed(seed, block))
        parts.append(torch.randn(num_sources, NOISE_BLOCK, generator=generator))
    offset = start - first * NOISE_BLOCK
    return torch.cat(parts, 1)[:, offset : offset + length].to(device)


def draw(separator: Separator, mixtures: Tensor, starts: Sequence[int], seed: int) -> Tensor:
    """Posterior samples ``[R,K,W]`` of rows ``mixtures [R,W]``, windows that begin at ``starts``.

    The channels of a window get the same noise.
    """
    noises = {at: noise_at(at, mixtures.shape[1], separator.num_sources, seed, mixtures.device) for at in {*starts}}
    return separator.separate_from(mixtures, torch.stack([noises[at] for at in starts]))


def posterior(samples: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of posterior ``samples [C,K,n]``, each aligned to the mean of those before it.

    By Welford's recurrence, so that memory does not grow with their number; the variance of one sample is zero.
    """
    mean = squares = torch.zeros(())
    count = 0
    for count, sample in enumerate(samples, 1):
        if count > 1:
            sample = reorder(sample, best_permutation(-agreement(mean, sample)))
        before = sample - mean
        mean = mean + before / count
        squares = squares + before * (sample - mean)
    return mean, squares / max(1, count - 1)


def separate_windows(separator: Separator, windows: Sequence[Window], num_samples: int, seed: int) -> list[Tensor]:
    """Mean and variance ``[C,K,2,W]`` of posterior samples of each window, in one evaluation of the network a sample.

    The windows, of any streams, have one length. A channel of digital silence is not given to the network: its sources
    are silent.
    """
    mixtures = torch.cat([rows for _, rows in windows])
    starts = [start for start, rows in windows for _ in rows]
    result = mixtures.new_zeros(len(mixtures), separator.num_sources, 2, mixtures.shape[1])
    audible = mixtures.any(1)
    if audible.any():
        inputs = mixtures[audible].to(next(separator.parameters(), mixtures).device, torch.float32)
        heard = [start for start, loud in zip(starts, audible.tolist(), strict=True) if loud]
        seeds = (mix_seed(seed, number) for number in range(num_samples))
        drawn = (draw(separator, inputs, heard, seed).cpu().double() for seed in seeds)
        result[audible] = torch.stack(posterior(drawn), 2)
    return list(result.split([len(rows) for _, rows in windows]))


class UncertaintyCurve:
    """Pools variances ``[C,K,n]`` to one standard deviation per source for each tenth of a second."""

    def __init__(self, rate: int) -> None:
        self.rate, self.size = rate, max(1, rate // 10)
        self.held: Tensor | None = None
        self.start = 0

    def __call__(self, variances: Tensor, last: bool = False) -> Tensor:
        """The next points ``[N,1+K]``: the time of their middle in seconds, then K standard deviations."""
        pooled = variances.mean(0)  # the mean variance of the channels
        held = pooled if self.held is None else torch.cat([self.held, pooled], 1)
        whole = held.shape[1] if last else held.shape[1] // self.size * self.size
        self.held, points = held[:, whole:], []
        for part in held[:, :whole].split(self.size, 1) if whole else ():
            middle = (self.start + part.shape[1] / 2) / self.rate
            points.append(torch.cat([part.new_tensor([middle]), part.mean(1).sqrt()]))
            self.start += part.shape[1]
        return torch.stack(points) if points else pooled.new_zeros(0, 1 + len(pooled))
