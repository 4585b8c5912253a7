"""Separation of signals of any length in bounded memory.

Axes: C channels, K sources, P planes (0 the estimate, 1 its variance over posterior samples), T samples, n of a block,
W of a window.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from surf_lightning.audio.files import StreamResampler
from surf_lightning.audio.streams import AudioFile
from surf_lightning.functional.flow import mixture_consistent
from surf_lightning.functional.permutation import best_permutation, reorder
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.overlap_add import OverlapAdd, Windows, agreement, split_windows
from surf_lightning.inference.separator import Separator

NOISE_BLOCK = 16384  # samples whose noise is drawn together

Channels = Literal["each", "mix", "first"]
"""What is separated of a file of several channels: each of them, their mean, or the first alone."""
CHANNELS: tuple[Channels, ...] = get_args(Channels)


@dataclass(frozen=True)
class Chunk:
    """A stretch of a separated signal."""

    start: int
    """Its first sample."""
    estimates: Tensor
    """``[C,K,n]``, float64 on the CPU; they sum to the mixture over the sources."""
    curve: Tensor
    """``[N,1+K]``, the next points of the uncertainty curve: time in seconds, then the standard deviation of each
    source over posterior samples. No rows if one sample is drawn."""


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


def draw(separator: Separator, mixtures: Tensor, start: int, seed: int) -> Tensor:
    """A posterior sample ``[C,K,W]`` of the window ``mixtures [C,W]`` at ``start``; all channels get the same noise."""
    noise = noise_at(start, mixtures.shape[1], separator.num_sources, seed, mixtures.device)
    return separator.separate_from(mixtures, noise.expand(len(mixtures), -1, -1))


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


def separate_window(separator: Separator, mixtures: Tensor, start: int, num_samples: int, seed: int) -> Tensor:
    """Mean and variance ``[C,K,2,W]`` of posterior samples of the window ``mixtures [C,W]`` (float64) at ``start``.

    A channel of digital silence is not given to the network: its sources are silent.
    """
    result = mixtures.new_zeros(len(mixtures), separator.num_sources, 2, mixtures.shape[1])
    audible = mixtures.any(1)
    if audible.any():
        inputs = mixtures[audible].to(next(separator.parameters(), mixtures).device, torch.float32)
        seeds = (mix_seed(seed, number) for number in range(num_samples))
        mean, variance = posterior(draw(separator, inputs, start, seed).cpu().double() for seed in seeds)
        if not mean.isfinite().all():
            raise ValueError("the separator gave NaN or infinite samples")
        result[audible] = torch.stack([mean, variance], 2)
    return result


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
        parts = list(held.split(self.size, 1)) if held.shape[1] else []
        self.held = held[:, :0]
        if parts and parts[-1].shape[1] < self.size and not last:
            self.held = parts.pop()
        points = []
        for part in parts:
            middle = (self.start + part.shape[1] / 2) / self.rate
            points.append(torch.cat([part.new_tensor([middle]), part.mean(1).sqrt()]))
            self.start += part.shape[1]
        return torch.stack(points) if points else pooled.new_zeros(0, 1 + len(pooled))


def separate_stream(
    separator: Separator, blocks: Iterable[Tensor], windows: Windows | None = None, num_samples: int = 1, seed: int = 0
) -> Iterator[Chunk]:
    """Separate a stream of blocks as they come, in memory that does not depend on its length.

    Args:
        separator: of audio, from ``load_separator``.
        blocks: ``[C,n]`` each, of any lengths, at the separator's own sample rate; C channels go through it as a batch.
        windows: how the stream is split; windows of 10 s by default, like the crops of the audio sets.
        num_samples: posterior samples whose mean is taken; each window's are aligned to one another.
        seed: of a flow's noise; the same input gives the same output.

    Yields:
        Chunks in order, without gaps. The sources keep their order from the first to the last.

    Raises:
        ValueError: the separator gave NaN or is not of audio, or ``num_samples`` is not positive.
    """
    if num_samples < 1:
        raise ValueError(f"at least one posterior sample must be drawn, not {num_samples}")
    rate = sample_rate(separator)
    sizes = (windows or Windows()).samples(rate)
    overlap_add, curve, start = OverlapAdd(sizes), UncertaintyCurve(rate), 0

    def chunk(planes: Tensor, last: bool) -> Chunk:
        points = curve(planes[:, :, 1], last) if num_samples > 1 else no_points(separator.num_sources)
        return Chunk(start, planes[:, :, 0], points)

    for at, window in split_windows((block.double() for block in blocks), sizes):
        planes = overlap_add(at, separate_window(separator, window, at, num_samples, seed))
        if planes.shape[-1]:
            yield chunk(planes, last=False)
            start += planes.shape[-1]
    if overlap_add.tail is not None:
        yield chunk(overlap_add.finish(), last=True)


def sample_rate(separator: Separator) -> int:
    """In Hz; raises ValueError if it separates no audio."""
    if separator.signal["kind"] != "audio":
        raise ValueError(f"a separator of audio is needed, this one is of {separator.signal}")
    return int(separator.signal["sample_rate"])


def no_points(num_sources: int) -> Tensor:
    """An uncertainty curve without points."""
    return torch.zeros(0, 1 + num_sources, dtype=torch.float64)


class RateBridge:
    """Brings a mixture down to the separator's rate and its estimates back up to the file's, where they sum to it.

    Args:
        file_rate: in Hz.
        rate: the separator's, in Hz.
        num_channels: C.
        num_sources: K.
    """

    def __init__(self, file_rate: int, rate: int, num_channels: int, num_sources: int) -> None:
        self.sources = (num_channels, num_sources)
        self._down = StreamResampler(file_rate, rate, num_channels)
        self._up = StreamResampler(rate, file_rate, num_channels * num_sources)
        self._waiting = torch.zeros(num_channels, 0, dtype=torch.float64)  # mixture whose estimates are still to come

    def down(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks ``[C,n]`` of the file -> blocks at the separator's rate."""
        for block in blocks:
            self._waiting = torch.cat([self._waiting, block], 1)
            yield self._down(block)
        yield self._down(self._waiting[:, :0], last=True)

    def up(self, estimates: Tensor) -> Tensor:
        """Estimates ``[C,K,n]`` at the separator's rate -> ``[C,K,n']`` at the file's: as many as are complete."""
        return self._consistent(self._up(estimates.flatten(0, 1)))

    def finish(self) -> Tensor:
        """The estimates ``[C,K,n']`` of the rest of the file."""
        rows = self._up(torch.zeros(math.prod(self.sources), 0), last=True)
        missing = self._waiting.shape[1] - rows.shape[1]  # the two resamplers round the length
        return self._consistent(torch.nn.functional.pad(rows, (0, max(0, missing))))

    def _consistent(self, rows: Tensor) -> Tensor:
        mixture, self._waiting = self._waiting[:, : rows.shape[1]], self._waiting[:, rows.shape[1] :]
        return mixture_consistent(rows[:, : mixture.shape[1]].unflatten(0, self.sources), mixture)


def num_separated(file: AudioFile, channels: Channels) -> int:
    """C, how many channels of ``file`` are separated."""
    if channels not in CHANNELS:
        raise ValueError(f"channels must be one of {', '.join(CHANNELS)}, not {channels!r}")
    return file.channels if channels == "each" else 1


def select_channels(block: Tensor, channels: Channels) -> Tensor:
    """What is separated, ``[C,n]``, of a block of all channels of a file."""
    if channels == "mix":
        return block.mean(0, keepdim=True)
    return block[:1] if channels == "first" else block


def separate_file(
    separator: Separator,
    audio: AudioFile | str | os.PathLike[str],
    channels: Channels = "each",
    windows: Windows | None = None,
    num_samples: int = 1,
    seed: int = 0,
) -> Iterator[Chunk]:
    """Separate an audio file of any length and rate in bounded memory.

    For a classifier, for example::

        for chunk in separate_file(load_separator("best.ckpt"), "field.wav"):
            for source in chunk.estimates[0]:  # [K,n] at the file's own rate
                ...

    Args:
        separator: as of ``separate_stream``.
        audio: the file, or its path.
        channels: what is separated of a file of several: ``"each"``, their mean (``"mix"``) or the ``"first"``.
        windows: as of ``separate_stream``.
        num_samples: as of ``separate_stream``.
        seed: as of ``separate_stream``.

    Yields:
        Chunks as of ``separate_stream``, at the file's own rate: together they have as many samples as the file, and
        their sources sum to it. What lies above the separator's band is shared equally.

    Raises:
        BadAudio: the file cannot be decoded; the message is the reason.
    """
    file = audio if isinstance(audio, AudioFile) else AudioFile.open(audio)
    bridge = RateBridge(file.rate, sample_rate(separator), num_separated(file, channels), separator.num_sources)
    mixtures = bridge.down(select_channels(block, channels) for block in file.blocks())
    start, curve = 0, no_points(separator.num_sources)
    for chunk in separate_stream(separator, mixtures, windows, num_samples, seed):
        estimates, curve = bridge.up(chunk.estimates), torch.cat([curve, chunk.curve])
        if estimates.shape[-1]:
            yield Chunk(start, estimates, curve)
            start, curve = start + estimates.shape[-1], curve[:0]
    rest = bridge.finish()
    if rest.shape[-1]:
        yield Chunk(start, rest, curve)
