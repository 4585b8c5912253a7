"""Splitting a stream into overlapping windows, and joining the separated windows by overlap-add.

Axes: C channels, K sources, P planes (0 the estimate, 1 its variance over posterior samples), n of a block, W of a
window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surf_lightning.functional.permutation import best_permutation, reorder

TIE_BREAK = 0.1  # weight of the other channels in the choice of an order, against 1 for the channel's own past


@dataclass(frozen=True)
class Windows:
    """The windows of a stream, in seconds: they follow one another every ``length - 2 margin - crossfade``.

    Args:
        length: of a window.
        margin: discarded at both ends of a window, where the network lacks context.
        crossfade: what two neighbours then still share.
    """

    length: float = 10.0
    margin: float = 0.5
    crossfade: float = 1.0

    def __post_init__(self) -> None:
        overlap = 2 * self.margin + self.crossfade
        if min(self.margin, self.crossfade) < 0 or self.length < 3 * overlap or self.length <= 0:
            raise ValueError(f"windows must be three times as long as their overlap, 2 margin + crossfade: {self}")

    def samples(self, rate: int) -> WindowSamples:
        """In samples at ``rate`` Hz, multiples of 20 ms so that every window starts on the same grid of frames."""
        grid = max(1, rate // 50)
        seconds = (self.length, self.margin, self.crossfade)
        length, margin, crossfade = (max(1, round(each * rate / grid)) * grid for each in seconds)
        return WindowSamples(length, margin, crossfade, grid)


@dataclass(frozen=True)
class WindowSamples:
    """``Windows`` in samples; windows start at multiples of ``grid``."""

    length: int
    margin: int
    crossfade: int
    grid: int

    @property
    def overlap(self) -> int:
        """Of two neighbouring windows."""
        return 2 * self.margin + self.crossfade


def split_windows(blocks: Iterable[Tensor], windows: WindowSamples) -> Iterator[tuple[int, Tensor]]:
    """Windows ``(start, [C,W])`` of a stream of blocks ``[C,n]``.

    The last one is moved back so that it ends with the stream; a stream shorter than a window is one window. Holds two
    windows and a block.
    """
    held: Tensor | None = None
    start, step = 0, 0
    for block in blocks:
        held = block if held is None else torch.cat([held, block], 1)
        while held.shape[1] >= step + windows.length:
            held, start, step = held[:, step:], start + step, windows.length - windows.overlap
            yield start, held[:, : windows.length]
    if held is not None and held.shape[1] > (windows.length if step else 0):
        back = max(0, -(-(held.shape[1] - windows.length) // windows.grid)) * windows.grid
        yield start + back, held[:, back:]


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Inner products ``[C,K,K]`` of the rows of ``a`` and ``b [C,K,n]``, scaled to lie in [-1,1]; 0 for silence."""
    products = a @ b.mT
    largest = (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
    return products / largest[:, None, None]


def align_channels(estimates: Tensor, past: Tensor) -> Tensor:
    """Permutations ``[C,K]`` by which each channel continues its own past and the channels agree with one another.

    The channel with the clearest past leads. The others follow their own past too; where that decides nothing (a pause,
    the first window) they follow the leader by the magnitude of correlation, as a source may have opposite phases.
    ``past [C,K,K]`` is the agreement of each channel's past rows with the window's ``estimates [C,K,W]``, or zeros.
    """
    strength = past.square().sum((1, 2))
    lead = int((strength if strength.any() else estimates.square().sum((1, 2))).argmax())
    leader = reorder(estimates[lead : lead + 1], best_permutation(-past[lead : lead + 1]))
    across = agreement(leader.expand_as(estimates), estimates).abs()
    return best_permutation(-(past + TIE_BREAK * across))


class OverlapAdd:
    """Joins separated windows to one stream: sources aligned in the overlap, margins discarded, the rest cross-faded.

    Limit: one source that is silent throughout an overlap is still recognised, because the others are. Two are not:
    they keep the order in which the separator gave them. A longer overlap makes that rarer.
    """

    def __init__(self, windows: WindowSamples) -> None:
        self.windows = windows
        # The weights of two windows sum to 1, so the sources still sum to the mixture.
        ramp = (torch.arange(windows.crossfade, dtype=torch.float64) + 0.5) / windows.crossfade
        self.rise = torch.sin(ramp * torch.pi / 2).square()
        self.tail: Tensor | None = None  # of the window before, from its overlap with the next one on
        self.end = 0  # of the tail
        self.emitted = 0  # samples

    def __call__(self, start: int, window: Tensor) -> Tensor:
        """The planes ``[C,K,P,n]`` that ``window [C,K,P,W]``, which begins at sample ``start``, completes."""
        size, w = window.shape[-1], self.windows
        past = window.new_zeros(len(window), window.shape[1], window.shape[1])
        if self.tail is not None:
            overlap = slice(self.end - w.overlap - start, self.end - start)
            past = agreement(self.tail[:, :, 0], window[:, :, 0, overlap])
        window = reorder(window, align_channels(window[:, :, 0], past))
        if self.tail is not None:
            fade = slice(self.emitted - start, self.emitted - start + w.crossfade)
            before = self.tail[..., w.margin : w.margin + w.crossfade]
            window[..., fade] = before + self.rise * (window[..., fade] - before)
        ready = max(self.emitted, start + size - w.margin - w.crossfade)
        complete = window[..., self.emitted - start : ready - start]
        self.tail, self.end, self.emitted = window[..., max(0, size - w.overlap) :], start + size, ready
        return complete

    def finish(self) -> Tensor:
        """The rest, up to the end of the stream: nothing is discarded there."""
        assert self.tail is not None
        return self.tail[..., self.tail.shape[-1] - (self.end - self.emitted) :]
