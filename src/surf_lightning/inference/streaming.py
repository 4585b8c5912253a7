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
from itertools import groupby, islice
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
    stream = SeparatedStream(separator, windows, num_samples)
    yield from stream.chunks(stream.windows(blocks), seed, batch)


def sample_rate(separator: Separator) -> int:
    """In Hz; raises ValueError if it separates no audio."""
    if separator.signal["kind"] != "audio":
        raise ValueError(f"a separator of audio is needed, this one is of {separator.signal}")
    return int(separator.signal["sample_rate"])


class RateBridge:
    """Brings a mixture down to the separator's ``rate``, its estimates back up to the file's, where they sum to it.

    One thread may bring down while another brings up.
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


class SeparatedStream:
    """A stream on its way through a separator: windows go out, separated windows come in, in order, and become chunks.

    Its windows may be read by one thread while another adds what became of them. Arguments as of ``separate_stream``;
    ``bridge`` leads to the stream's own rate, where the estimates are made consistent with it once more.
    """

    def __init__(
        self, separator: Separator, windows: Windows | None, num_samples: int, bridge: RateBridge | None = None
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"at least one posterior sample must be drawn, not {num_samples}")
        rate = sample_rate(separator)
        self.separator, self.num_samples = separator, num_samples
        self.sizes = (windows or Windows()).samples(rate)
        self.overlap_add, self.bridge = OverlapAdd(self.sizes), bridge
        self.curve = UncertaintyCurve(rate) if num_samples > 1 else None
        self.start, self.points = 0, torch.zeros(0, 1 + separator.num_sources, dtype=torch.float64)

    def windows(self, blocks: Iterable[Tensor]) -> Iterator[Window]:
        """The windows of ``blocks [C,n]``."""
        low = self.bridge.down(blocks) if self.bridge else (block.double() for block in blocks)
        return split_windows(low, self.sizes)

    def add(self, at: int, planes: Tensor) -> Iterator[Chunk]:
        """What the window ``planes [C,K,2,W]``, which begins at ``at``, completes; raises ValueError if it has NaN."""
        if not planes.isfinite().all():
            raise ValueError("the separator gave NaN or infinite samples")
        complete = self.overlap_add(at, planes)
        if complete.shape[-1]:
            yield from self._joined(complete, last=False)

    def finish(self) -> Iterator[Chunk]:
        """The rest of the stream."""
        if self.overlap_add.tail is not None:
            yield from self._joined(self.overlap_add.finish(), last=True)
        if self.bridge:
            yield from self._chunk(self.bridge.finish())

    def _joined(self, planes: Tensor, last: bool) -> Iterator[Chunk]:
        if self.curve:
            self.points = torch.cat([self.points, self.curve(planes[:, :, 1], last)])
        estimates = planes[:, :, 0]
        return self._chunk(self.bridge.up(estimates) if self.bridge else estimates)

    def _chunk(self, estimates: Tensor) -> Iterator[Chunk]:
        if estimates.shape[-1]:
            yield Chunk(self.start, estimates, self.points)
            self.start, self.points = self.start + estimates.shape[-1], self.points[:0]

    def chunks(self, windows: Iterable[Window], seed: int, batch: int) -> Iterator[Chunk]:
        """All of the stream, up to ``batch`` neighbouring windows of one length at a time."""
        for _, alike in groupby(windows, lambda window: window[1].shape[-1]):
            while group := list(islice(alike, batch)):
                separated = separate_windows(self.separator, group, self.num_samples, seed)
                for (at, _), planes in zip(group, separated, strict=True):
                    yield from self.add(at, planes)
        yield from self.finish()


class FileStream(SeparatedStream):
    """An audio file as such a stream, at its own rate. Arguments as of ``separate_file``."""

    def __init__(
        self, separator: Separator, file: AudioFile, channels: Channels, windows: Windows | None, num_samples: int
    ) -> None:
        self.file, self.channels, self.num_channels = file, channels, num_separated(file, channels)
        bridge = RateBridge(file.rate, sample_rate(separator), self.num_channels, separator.num_sources)
        super().__init__(separator, windows, num_samples, bridge)

    def read(self) -> Iterator[Window]:
        """The windows of the file; raises BadAudio if it cannot be decoded."""
        blocks = self.file.blocks()
        if self.channels == "mix":
            blocks = (block.mean(0, keepdim=True) for block in blocks)
        elif self.channels == "first":
            blocks = (block[:1] for block in blocks)
        return self.windows(blocks)


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

    What is separated of a file of several ``channels`` is ``"each"``, their mean (``"mix"``) or the ``"first"``; the
    other arguments are those of ``separate_stream``.

    Yields:
        Chunks as of ``separate_stream``, at the file's own rate: together they have as many samples as the file, and
        their sources sum to it. What lies above the separator's band is shared equally.

    Raises:
        BadAudio: the file cannot be decoded; the message is the reason.
    """
    file = audio if isinstance(audio, AudioFile) else AudioFile.open(audio)
    stream = FileStream(separator, file, channels, windows, num_samples)
    yield from stream.chunks(stream.read(), seed, batch)
