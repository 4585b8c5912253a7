"""Separation of signals of any length in bounded memory.

Axes: C channels, K sources, P planes (0 the estimate, 1 its variance over posterior samples), T samples, n of a block,
W of a window.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from surf_lightning.audio.files import StreamResampler
from surf_lightning.audio.streams import AudioFile
from surf_lightning.functional.flow import mixture_consistent
from surf_lightning.inference.overlap_add import OverlapAdd, Windows, split_windows
from surf_lightning.inference.sampling import UncertaintyCurve, Window, separate_windows
from surf_lightning.inference.separator import Separator

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


class StreamJoin:
    """Joins the separated windows of one stream to chunks in order, without gaps."""

    def __init__(self, num_sources: int, rate: int, windows: Windows | None, num_samples: int) -> None:
        if num_samples < 1:
            raise ValueError(f"at least one posterior sample must be drawn, not {num_samples}")
        self.sizes = (windows or Windows()).samples(rate)
        self.overlap_add, self.start = OverlapAdd(self.sizes), 0
        self.curve = UncertaintyCurve(rate) if num_samples > 1 else None
        self.num_sources = num_sources

    def add(self, at: int, planes: Tensor) -> list[Chunk]:
        """What the window ``planes [C,K,2,W]``, which begins at ``at``, completes; raises ValueError if it has NaN."""
        if not planes.isfinite().all():
            raise ValueError("the separator gave NaN or infinite samples")
        complete = self.overlap_add(at, planes)
        return [self._chunk(complete, last=False)] if complete.shape[-1] else []

    def finish(self) -> list[Chunk]:
        """The rest of the stream."""
        return [self._chunk(self.overlap_add.finish(), last=True)] if self.overlap_add.tail is not None else []

    def _chunk(self, planes: Tensor, last: bool) -> Chunk:
        points = self.curve(planes[:, :, 1], last) if self.curve else no_points(self.num_sources)
        start, self.start = self.start, self.start + planes.shape[-1]
        return Chunk(start, planes[:, :, 0], points)


def in_batches(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Up to ``size`` neighbours of one length together."""
    held: list[Window] = []
    for window in windows:
        if held and (len(held) == size or held[0][1].shape[-1] != window[1].shape[-1]):
            yield held
            held = []
        held.append(window)
    if held:
        yield held


def separate_stream(
    separator: Separator,
    blocks: Iterable[Tensor],
    windows: Windows | None = None,
    num_samples: int = 1,
    seed: int = 0,
    batch: int = 1,
) -> Iterator[Chunk]:
    """Separate a stream of blocks as they come, in memory that does not depend on its length.

    Args:
        separator: of audio, from ``load_separator``.
        blocks: ``[C,n]`` each, of any lengths, at the separator's own sample rate; C channels go through it as a batch.
        windows: how the stream is split; windows of 10 s by default, like the crops of the audio sets.
        num_samples: posterior samples whose mean is taken; each window's are aligned to one another.
        seed: of a flow's noise; the same input gives the same output.
        batch: windows that go through the network together: the same samples to rounding, later.

    Yields:
        Chunks in order, without gaps. The sources keep their order from the first to the last.

    Raises:
        ValueError: the separator gave NaN or is not of audio, or ``num_samples`` is not positive.
    """
    join = StreamJoin(separator.num_sources, sample_rate(separator), windows, num_samples)
    cut = split_windows((block.double() for block in blocks), join.sizes)
    for group in in_batches(cut, batch):
        separated = separate_windows(separator, group, num_samples, seed)
        for (at, _), planes in zip(group, separated, strict=True):
            yield from join.add(at, planes)
    yield from join.finish()


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

    One thread may bring down while another brings up.

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
        self._lock = threading.Lock()  # of _waiting

    def down(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks ``[C,n]`` of the file -> blocks at the separator's rate."""
        for block in blocks:
            with self._lock:
                self._waiting = torch.cat([self._waiting, block], 1)
            yield self._down(block)
        yield self._down(torch.zeros(self.sources[0], 0), last=True)

    def up(self, estimates: Tensor) -> Tensor:
        """Estimates ``[C,K,n]`` at the separator's rate -> ``[C,K,n']`` at the file's: as many as are complete."""
        return self._consistent(self._up(estimates.flatten(0, 1)))

    def finish(self) -> Tensor:
        """The estimates ``[C,K,n']`` of the rest of the file."""
        rows = self._up(torch.zeros(math.prod(self.sources), 0), last=True)
        missing = self._waiting.shape[1] - rows.shape[1]  # the two resamplers round the length
        return self._consistent(torch.nn.functional.pad(rows, (0, max(0, missing))))

    def _consistent(self, rows: Tensor) -> Tensor:
        with self._lock:
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


class FileStream:
    """A file on its way through a separator: windows go out, separated windows come in, in order, and become chunks.

    Its windows may be read by one thread while another adds what became of them.

    Args:
        separator: as of ``separate_file``.
        file: the header.
        channels: as of ``separate_file``.
        windows: as of ``separate_file``.
        num_samples: as of ``separate_file``.
    """

    def __init__(
        self, separator: Separator, file: AudioFile, channels: Channels, windows: Windows | None, num_samples: int
    ) -> None:
        self.file, self.channels, self.num_channels = file, channels, num_separated(file, channels)
        rate, num_sources = sample_rate(separator), separator.num_sources
        self.join = StreamJoin(num_sources, rate, windows, num_samples)
        self.bridge = RateBridge(file.rate, rate, self.num_channels, num_sources)
        self.start, self.curve = 0, no_points(num_sources)

    def windows(self) -> Iterator[Window]:
        """Read the file; raises BadAudio if it cannot be decoded."""
        blocks = self.bridge.down(select_channels(block, self.channels) for block in self.file.blocks())
        return split_windows(blocks, self.join.sizes)

    def add(self, at: int, planes: Tensor) -> Iterator[Chunk]:
        """The chunks that a separated window completes; raises ValueError if it has NaN."""
        for chunk in self.join.add(at, planes):
            yield from self._chunk(self.bridge.up(chunk.estimates), chunk.curve)

    def finish(self) -> Iterator[Chunk]:
        """The rest of the file."""
        for chunk in self.join.finish():
            yield from self._chunk(self.bridge.up(chunk.estimates), chunk.curve)
        yield from self._chunk(self.bridge.finish(), no_points(self.join.num_sources))

    def _chunk(self, estimates: Tensor, points: Tensor) -> Iterator[Chunk]:
        self.curve = torch.cat([self.curve, points])
        if estimates.shape[-1]:
            yield Chunk(self.start, estimates, self.curve)
            self.start, self.curve = self.start + estimates.shape[-1], self.curve[:0]


def separate_file(
    separator: Separator,
    audio: AudioFile | str | os.PathLike[str],
    channels: Channels = "each",
    windows: Windows | None = None,
    num_samples: int = 1,
    seed: int = 0,
    batch: int = 1,
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
        batch: as of ``separate_stream``.

    Yields:
        Chunks as of ``separate_stream``, at the file's own rate: together they have as many samples as the file, and
        their sources sum to it. What lies above the separator's band is shared equally.

    Raises:
        BadAudio: the file cannot be decoded; the message is the reason.
    """
    file = audio if isinstance(audio, AudioFile) else AudioFile.open(audio)
    stream = FileStream(separator, file, channels, windows, num_samples)
    for group in in_batches(stream.windows(), batch):
        separated = separate_windows(separator, group, num_samples, seed)
        for (at, _), planes in zip(group, separated, strict=True):
            yield from stream.add(at, planes)
    yield from stream.finish()
