"""Cutting a stream into overlapping windows, and joining the separated windows to one stream again.

Axes: C channels, K sources, P planes (0 the estimate, 1 its variance over posterior samples), n of a block, W of a
window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surf_lightning.functional.permutation import best_permutation, reorder

TIE_BREAK = 0.1  # weight of what other channels say of the order, against 1 for the channel's own past


@dataclass(frozen=True)
class Windows:
    """How a stream is cut; in seconds.

    Each window loses ``edge`` at both sides, where its network lacked context, and ``fade`` is what two windows then
    still share: cross-faded there. So windows follow one another at ``length - 2 edge - fade``.
    """

    length: float = 10.0
    edge: float = 0.5
    fade: float = 1.0

    def __post_init__(self) -> None:
        if min(self.edge, self.fade) < 0 or self.length < 3 * (2 * self.edge + self.fade) or self.length <= 0:
            raise ValueError(f"windows must be at least three times as long as their overlap, 2 edge + fade: {self}")

    def samples(self, rate: int) -> WindowSamples:
        """In samples at ``rate`` Hz, all multiples of 20 ms so that every window starts on the same grid of frames."""
        grid = max(1, rate // 50)
        length, edge, fade = (max(1, round(x * rate / grid)) * grid for x in (self.length, self.edge, self.fade))
        return WindowSamples(length, edge, fade, grid)


@dataclass(frozen=True)
class WindowSamples:
    length: int
    edge: int
    fade: int
    grid: int

    @property
    def overlap(self) -> int:
        return 2 * self.edge + self.fade

    @property
    def hop(self) -> int:
        return self.length - self.overlap


def cut(blocks: Iterable[Tensor], windows: WindowSamples) -> Iterator[tuple[int, Tensor]]:
    """Windows ``(start, [C,W])`` of a stream of blocks ``[C,n]``.

    The last one is moved back so that it ends with the stream; a stream shorter than a window is one window. Holds two
    windows and a block.
    """
    held: Tensor | None = None
    start, step = 0, 0
    for block in blocks:
        held = block if held is None else torch.cat([held, block], 1)
        while held.shape[1] >= step + windows.length:
            held, start, step = held[:, step:], start + step, windows.hop
            yield start, held[:, : windows.length]
    if held is not None and held.shape[1] > (windows.length if step else 0):
        back = max(0, -(-(held.shape[1] - windows.length) // windows.grid)) * windows.grid
        yield start + back, held[:, back:]


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Inner products ``[C,K,K]`` of the rows of ``a`` and ``b [C,K,n]``, scaled to lie in [-1,1]; 0 for silence."""
    products = a @ b.mT
    largest = (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
    return products / largest[:, None, None]


def align_channels(estimates: Tensor, own: Tensor) -> Tensor:
    """Orders ``[C,K]`` by which each channel goes on with its own past and the channels agree with one another.

    The channel with the clearest past leads. The others follow their past too; where that decides nothing (a pause, the
    first window) they follow the leader, by the magnitude of correlation: a source may reach them in opposite phase.

    Args:
        estimates: ``[C,K,W]``, the window's.
        own: ``[C,K,K]``, the agreement of each channel's past rows with the new ones; zeros without a past.
    """
    strength = own.square().sum((1, 2))
    lead = int((strength if strength.any() else estimates.square().sum((1, 2))).argmax())
    leader = reorder(estimates[lead : lead + 1], best_permutation(-own[lead : lead + 1]))
    across = agreement(leader.expand_as(estimates), estimates).abs()
    return best_permutation(-(own + TIE_BREAK * across))


class Stitcher:
    """Joins separated windows to one stream: orders aligned in the overlap, edges discarded, the rest cross-faded.

    The limit of it: of the sources that are silent throughout an overlap one can be told, by what is left, two cannot,
    and go on in the order in which the separator gave them. A longer overlap (``Windows``) makes that rarer.
    """

    def __init__(self, windows: WindowSamples) -> None:
        self.windows = windows
        # Weights that sum to 1 keep the sources' sum.
        ramp = (torch.arange(windows.fade, dtype=torch.float64) + 0.5) / windows.fade
        self.rise = torch.sin(ramp * torch.pi / 2).square()
        self.tail: Tensor | None = None  # of the window before, from its overlap with the next one on
        self.end = 0  # where the tail ends
        self.emitted = 0

    def __call__(self, start: int, window: Tensor) -> Tensor:
        """What ``window [C,K,P,W]``, which begins at ``start``, completes: planes ``[C,K,P,n]``."""
        size, w = window.shape[-1], self.windows
        own = window.new_zeros(len(window), window.shape[1], window.shape[1])
        if self.tail is not None:
            own = agreement(self.tail[:, :, 0], window[:, :, 0, self._overlap(start)])
        window = reorder(window, align_channels(window[:, :, 0], own))
        if self.tail is not None:
            fade = slice(self.emitted - start, self.emitted - start + w.fade)
            before = self.tail[..., w.edge : w.edge + w.fade]
            window[..., fade] = before + self.rise * (window[..., fade] - before)
        ready = max(self.emitted, start + size - w.edge - w.fade)
        complete = window[..., self.emitted - start : ready - start]
        self.tail, self.end, self.emitted = window[..., max(0, size - w.overlap) :], start + size, ready
        return complete

    def finish(self) -> Tensor:
        """The rest, which ends with the stream: there is no edge to discard."""
        assert self.tail is not None
        return self.tail[..., self.tail.shape[-1] - (self.end - self.emitted) :]

    def _overlap(self, start: int) -> slice:
        return slice(self.end - self.windows.overlap - start, self.end - start)
