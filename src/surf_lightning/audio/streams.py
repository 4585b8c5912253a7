"""Audio files in blocks: reading, resampling, writing. Axes: C channels, K sources, R rows, T samples, n of a block."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from surf_lightning.audio.files import SteadyFile, is_cut_short
from surf_lightning.files import partial_path

PLAIN = (".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd")
EXTENSIONS = frozenset([*PLAIN, ".flac", ".ogg", ".oga", ".opus", ".mp3"])
BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "ALAC_16": 16, "ALAC_24": 24}
FLOATS = {"FLOAT": 32, "DOUBLE": 64}
LARGEST = 4_000_000_000  # bytes; the size fields of WAV and AIFF end at 4 GiB
UNLIMITED = ("RF64", "W64", "CAF", "FLAC")


@dataclass(frozen=True)
class SampleFormat:
    """How samples lie in a file, in libsndfile's words, and the suffix of the file's name."""

    container: str
    subtype: str
    endian: str
    suffix: str

    @property
    def bits(self) -> int:
        return (BITS | FLOATS)[self.subtype]

    @property
    def step(self) -> float | None:
        """The distance of neighbouring values, as a share of full scale; None for floats."""
        return 2.0 ** (1 - BITS[self.subtype]) if self.subtype in BITS else None

    def as_float(self) -> SampleFormat:
        """The same container with float32 samples, or WAV where it has none."""
        if soundfile.check_format(self.container, "FLOAT"):
            return replace(self, subtype="FLOAT")
        return SampleFormat("WAV", "FLOAT", "FILE", ".wav")

    def for_size(self, samples: int) -> SampleFormat:
        """The same, or RF64 (a WAV file without the limit of 4 GiB) where ``samples`` need it."""
        if self.container in UNLIMITED or samples * self.bits // 8 < LARGEST:
            return self
        return SampleFormat("RF64", self.subtype, "FILE", ".wav")


@dataclass(frozen=True)
class AudioFile:
    """The header of an audio file."""

    path: Path
    frames: int
    channels: int
    rate: int
    format: SampleFormat
    remark: str | None
    """What a user should know of the file, though it can be read."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> AudioFile:
        """Read the header.

        Raises:
            ValueError: the file cannot be decoded, or is empty; the message is the reason.
        """
        path = Path(path)
        try:
            with soundfile.SoundFile(os.fsencode(path)) as file:  # a name need not be valid UTF-8
                header = cls(
                    path,
                    file.frames,
                    file.channels,
                    file.samplerate,
                    SampleFormat(file.format, file.subtype, file.endian, path.suffix),
                    "cut short: its header promises more; what is there is separated" if is_cut_short(path) else None,
                )
        except soundfile.LibsndfileError as error:
            if path.is_file() and path.stat().st_size == 0:
                raise ValueError("is an empty file") from error
            raise ValueError(f"cannot be decoded: {error.error_string}") from error
        if header.frames == 0:
            raise ValueError("holds no samples")
        return header

    def source_format(self) -> SampleFormat:
        """What its sources are written in: the same, or 16-bit WAV where that is lossy or cannot be written.

        Sources that are coded with loss do not sum to the input, and some codecs change the length.
        """
        own = self.format
        if own.subtype in BITS | FLOATS and soundfile.check_format(own.container, own.subtype, own.endian):
            return own
        return SampleFormat("WAV", "PCM_16", "FILE", ".wav")

    def blocks(self, seconds: float = 1.0) -> Iterator[Tensor]:
        """The samples in order, blocks ``[C,n]`` of ``seconds`` each, float64, full scale 1.

        Raises:
            ValueError: the file ends early or is damaged, or a sample is NaN or infinite.
        """
        done = 0
        with SteadyFile(os.fsencode(self.path)) as file:
            while done < self.frames:
                try:
                    block = file.read(max(1, round(seconds * self.rate)), dtype="float64", always_2d=True)
                except soundfile.LibsndfileError:
                    block = np.zeros((0, self.channels))
                if len(block) == 0:
                    raise ValueError(
                        f"is damaged or truncated: of its {self.frames} samples only about {done} can be decoded"
                    )
                if not np.isfinite(block).all():
                    raise ValueError(
                        f"holds NaN or infinite samples, {done / self.rate:.1f} s after its start or later"
                    )
                done += len(block)
                yield torch.from_numpy(np.ascontiguousarray(block.T))


class StreamResampler:
    """Resampling of a stream: the results of its blocks, joined, are those of the whole signal at once.

    Args:
        from_rate, to_rate: in Hz.
        rows: R, signals side by side.
    """

    def __init__(self, from_rate: int, to_rate: int, rows: int) -> None:
        self.stream = None if from_rate == to_rate else soxr.ResampleStream(from_rate, to_rate, rows, dtype="float64")

    def __call__(self, block: Tensor, last: bool = False) -> Tensor:
        """``[R,n] -> [R,n']`` of float64; what the filter still needs neighbours for comes with later blocks."""
        if self.stream is None:
            return block.double()
        samples = np.ascontiguousarray(block.double().numpy().T)
        return torch.from_numpy(np.ascontiguousarray(self.stream.resample_chunk(samples, last).T))


class SampleQueue:
    """Samples ``[C,n]`` in, samples out, in blocks of other lengths."""

    def __init__(self, num_channels: int) -> None:
        self.empty = torch.zeros(num_channels, 0, dtype=torch.float64)
        self.blocks: deque[Tensor] = deque()
        self.count = 0

    def put(self, block: Tensor) -> None:
        self.blocks.append(block)
        self.count += block.shape[1]

    def take(self, count: int) -> Tensor:
        """The next ``count`` samples, or all there are."""
        parts, missing = [self.empty], min(count, self.count)
        self.count -= missing
        while missing:
            block = self.blocks.popleft()
            parts.append(block[:, :missing])
            if block.shape[1] > missing:
                self.blocks.appendleft(block[:, missing:])
            missing -= parts[-1].shape[1]
        return torch.cat(parts, 1)


def sync(path: Path) -> None:
    """Have a written file on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def quantise(sources: Tensor, step: float) -> Tensor:
    """``sources [C,K,n]`` on the grid of ``step``, each within one step, summing to the rounded sum.

    Rounding each by itself would leave up to K/2 steps; the sums of the first 1, 2, ..., K are rounded instead.
    """
    sums = (sources.cumsum(1) / step).round() * step
    return sums.diff(dim=1, prepend=torch.zeros_like(sums[:, :1]))


class SourceWriter:
    """K files of one length written side by side, as float32 from the first sample on that would clip.

    A context manager. They are written to ``partial_path``s, which are complete when it ends.

    Args:
        stem: files are named ``<stem>_source<k><suffix>``, k from 1.
        samples: expected of each file, over all channels.
    """

    def __init__(
        self, stem: Path, num_sources: int, rate: int, channels: int, samples: int, sample_format: SampleFormat
    ) -> None:
        self.stem, self.num_sources, self.rate, self.channels, self.samples = stem, num_sources, rate, channels, samples
        self.format = sample_format.for_size(samples)
        self.clipped, self.written = False, 0
        self._files = self._open()

    @property
    def paths(self) -> list[Path]:
        """The files' final names."""
        return source_paths(self.stem, self.num_sources, self.format)

    def write(self, sources: Tensor) -> None:
        """Append ``sources [C,K,n]``, float64."""
        step = self.format.step
        if step is not None:
            rounded = quantise(sources, step)
            if rounded.numel() and (rounded.max() > 1 - step or rounded.min() < -1):
                self._go_on_as_float()
            else:
                sources = rounded
        for file, source in zip(self._files, sources.unbind(1), strict=True):
            file.write(source.T.numpy())
        self.written += sources.shape[-1]

    def __enter__(self) -> SourceWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Have the complete files on disk or, after an error, remove what was written."""
        for file, path in zip(self._files, self.paths, strict=True):
            file.close()
            if error is None:
                sync(partial_path(path))
            else:
                partial_path(path).unlink(missing_ok=True)

    def _open(self) -> list[soundfile.SoundFile]:
        return [
            soundfile.SoundFile(
                os.fsencode(partial_path(path)),
                "w",
                self.rate,
                self.channels,
                self.format.subtype,
                self.format.endian,
                self.format.container,
            )
            for path in self.paths
        ]

    def _go_on_as_float(self) -> None:
        old_files, old_paths = self._files, [partial_path(path) for path in self.paths]
        for file in old_files:
            file.close()
        aside = [path.with_suffix(".integers.partial") for path in old_paths]
        for old, new in zip(old_paths, aside, strict=True):
            os.replace(old, new)
        self.format, self.clipped = self.format.as_float().for_size(self.samples), True
        self._files = self._open()
        for path, file in zip(aside, self._files, strict=True):
            if self.written:  # an empty FLAC file cannot be read
                for block in soundfile.blocks(os.fsencode(path), 65536, dtype="float64", always_2d=True):
                    file.write(block)
            path.unlink()


def source_paths(stem: Path, num_sources: int, sample_format: SampleFormat) -> list[Path]:
    """The names of the sources of ``stem``."""
    return [stem.with_name(f"{stem.name}_source{k + 1}{sample_format.suffix}") for k in range(num_sources)]
