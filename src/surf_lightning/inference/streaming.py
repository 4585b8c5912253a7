"""Separation of signals of any length in bounded memory.

Axes: C channels, K sources, P planes (0 the estimate, 1 its variance over posterior samples), T samples, n of a block,
W of a window.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surf_lightning.audio.streams import AudioFile, SampleQueue, StreamResampler
from surf_lightning.functional.flow import mixture_consistent
from surf_lightning.functional.permutation import best_permutation, reorder
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.overlap_add import Stitcher, Windows, agreement, cut
from surf_lightning.inference.separator import Separator

NOISE_BLOCK = 16384  # samples whose noise is drawn together


@dataclass(frozen=True)
class Chunk:
    """A stretch of separated signal.

    ``estimates [C,K,n]`` (float64, on the CPU) begin at sample ``start`` of the stream and sum to it over the sources.
    ``curve [N,1+K]`` holds the points of the uncertainty curve that have become known: time in seconds, then for each
    source the standard deviation over posterior samples; no rows where one sample is drawn.
    """

    start: int
    estimates: Tensor
    curve: Tensor


def noise_at(start: int, length: int, num_sources: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers ``[K,length]`` of the samples from ``start`` on, a function of (seed, position) alone.

    Overlapping windows thus begin the flow with the same noise where they overlap, and so arrive at the same sample of
    the posterior: with noise of their own they would be two different answers, cross-faded. Drawn on the CPU, so that
    all devices get the same.
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

    Digital silence is passed through: the network never sees it.
    """
    result = mixtures.new_zeros(len(mixtures), separator.num_sources, 2, mixtures.shape[1])
    heard = mixtures.any(1)
    if heard.any():
        inputs = mixtures[heard].to(next(separator.parameters(), mixtures).device, torch.float32)
        seeds = (mix_seed(seed, number) for number in range(num_samples))
        mean, variance = posterior(draw(separator, inputs, start, seed).cpu().double() for seed in seeds)
        if not mean.isfinite().all():
            raise ValueError("the separator gave NaN or infinite samples")
        result[heard] = torch.stack([mean, variance], 2)
    return result


class UncertaintyCurve:
    """Collects variances ``[C,K,n]`` to one standard deviation per source for each tenth of a second."""

    def __init__(self, rate: int) -> None:
        self.rate, self.size = rate, max(1, rate // 10)
        self.held: Tensor | None = None
        self.start = 0

    def __call__(self, variances: Tensor, last: bool = False) -> Tensor:
        """The points ``[N,1+K]`` that are now known: the middle's time in seconds, then K standard deviations."""
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
    separator: Separator,
    blocks: Iterable[Tensor],
    windows: Windows | None = None,
    num_samples: int = 1,
    seed: int = 0,
) -> Iterator[Chunk]:
    """Separate a stream of blocks as they come, in memory that does not depend on its length.

    Args:
        separator: of audio, from ``load_separator``.
        blocks: ``[C,n]`` each, of any lengths, at the separator's own sample rate; C channels go through it as a batch.
        windows: how the stream is cut; windows of 10 s by default, like the crops of the audio sets.
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
    stitch, curve, start = Stitcher(sizes), UncertaintyCurve(rate), 0

    def chunk(planes: Tensor, last: bool) -> Chunk:
        points = curve(planes[:, :, 1], last) if num_samples > 1 else no_points(separator.num_sources)
        return Chunk(start, planes[:, :, 0], points)

    for at, window in cut((block.double() for block in blocks), sizes):
        planes = stitch(at, separate_window(separator, window, at, num_samples, seed))
        if planes.shape[-1]:
            yield chunk(planes, last=False)
            start += planes.shape[-1]
    if stitch.tail is not None:
        yield chunk(stitch.finish(), last=True)


def sample_rate(separator: Separator) -> int:
    """In Hz.

    Raises:
        ValueError: it separates no audio.
    """
    if separator.signal["kind"] != "audio":
        raise ValueError(f"a separator of audio is needed, this one is of {separator.signal}")
    return int(separator.signal["sample_rate"])


def no_points(num_sources: int) -> Tensor:
    """An uncertainty curve without points."""
    return torch.zeros(0, 1 + num_sources, dtype=torch.float64)


def mixed_down(block: Tensor) -> Tensor:
    """The mean of the channels, ``[C,n] -> [1,n]``."""
    return block.mean(0, keepdim=True)


def all_channels(block: Tensor) -> Tensor:
    """``[C,n]`` as it is."""
    return block


def first_channel(block: Tensor) -> Tensor:
    """The first channel, ``[C,n] -> [1,n]``."""
    return block[:1]


CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {"mix": mixed_down, "each": all_channels, "first": first_channel}
"""What is separated of a file of several channels ``[C,n]``: their mean, each of them, or the first alone."""


def separate_file(
    separator: Separator,
    audio: AudioFile | str | os.PathLike[str],
    channels: Callable[[Tensor], Tensor] = all_channels,
    windows: Windows | None = None,
    num_samples: int = 1,
    seed: int = 0,
) -> Iterator[Chunk]:
    """Separate an audio file of any length and rate in bounded memory, e.g. as input of a classifier::

        for chunk in separate_file(load_separator("best.ckpt"), "field.wav"):
            for source in chunk.estimates[0]:  # [K,n] at the file's own rate
                ...

    Args:
        channels: what of its channels is separated, a function of blocks; see ``CHANNELS``.

    The other arguments and what is yielded are those of ``separate_stream``, at the file's own rate: the chunks have as
    many samples as the file, and their sources sum to it. What lies above the separator's band is shared equally.

    Raises:
        ValueError: the file cannot be decoded; the message is the reason.
    """
    file = audio if isinstance(audio, AudioFile) else AudioFile.open(audio)
    rate, num_sources = sample_rate(separator), separator.num_sources
    num_channels = len(channels(torch.zeros(file.channels, 1)))
    down = StreamResampler(file.rate, rate, num_channels)
    up = StreamResampler(rate, file.rate, num_channels * num_sources)
    mixtures, start, points = SampleQueue(num_channels), 0, no_points(num_sources)

    def low_rate() -> Iterator[Tensor]:
        for block in file.blocks():
            chosen = channels(block)
            mixtures.put(chosen)
            yield down(chosen)
        yield down(torch.zeros(num_channels, 0), last=True)

    def high_rate() -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in separate_stream(separator, low_rate(), windows, num_samples, seed):
            yield up(chunk.estimates.flatten(0, 1)), chunk.curve
        rest = up(torch.zeros(num_channels * num_sources, 0), last=True)
        missing = mixtures.count - rest.shape[1]  # the two resamplers round the length
        yield torch.nn.functional.pad(rest, (0, max(0, missing))), no_points(num_sources)

    for rows, known in high_rate():
        points = torch.cat([points, known])
        mixture = mixtures.take(rows.shape[1])
        if mixture.shape[1]:
            estimates = rows[:, : mixture.shape[1]].unflatten(0, (num_channels, num_sources))
            yield Chunk(start, mixture_consistent(estimates, mixture), points)
            start, points = start + mixture.shape[1], no_points(num_sources)
