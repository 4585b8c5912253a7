"""Audio files in blocks: reading and writing. Axes: C channels, K sources, n samples of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from surf_lightning.audio.containers import CONTAINERS, decoded_blocks, sound_of
from surf_lightning.audio.files import BadAudio, is_cut_short, open_audio
from surf_lightning.files import sync

BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "ALAC_16": 16, "ALAC_24": 24}
FLOATS = {"FLOAT": 32, "DOUBLE": 64}
LARGEST = 4_000_000_000  # bytes; the size fields of WAV and AIFF end at 4 GiB
UNLIMITED = ("RF64", "W64", "CAF", "FLAC")
SAMPLES = {"int16": "PCM_16", "int24": "PCM_24", "float32": "FLOAT"}
NO_ROOM = "its sources cannot be written: the disk is full, or the files too large for it"
NAMES = "{stem}_source{source}"


@dataclass(frozen=True)
class SampleFormat:
    """The format of a file by libsndfile's names, and the suffix of the file's name."""

    container: str
    subtype: str
    endian: str
    suffix: str

    @property
    def bits(self) -> int:
        """Of a sample."""
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
        """The same, or RF64 (WAV without the limit of 4 GiB) if a file of ``samples``, over all channels, needs it."""
        if self.container in UNLIMITED or samples * self.bits // 8 < LARGEST:
            return self
        return SampleFormat("RF64", self.subtype, "FILE", ".wav")


@dataclass(frozen=True)
class AudioFile:
    """The header of an audio file."""

    path: Path
    frames: int
    """How many there are; in a container of films, about how many: it may not say so exactly."""
    channels: int
    rate: int
    format: SampleFormat
    remark: str | None
    """What a user should know of the file, though it can be read."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> AudioFile:
        """Read the header; raises BadAudio."""
        path = Path(path)
        if path.suffix.lower() in CONTAINERS:
            frames, channels, rate, codec = sound_of(path)
            return cls(path, frames, channels, rate, SampleFormat("", codec, "FILE", path.suffix), None)
        remark = None
        with open_audio(path) as file:
            if is_cut_short(path):
                remark = "cut short: its header promises more; what is there is separated"
            sample_format = SampleFormat(file.format, file.subtype, file.endian, path.suffix)
            return cls(path, file.frames, file.channels, file.samplerate, sample_format, remark)

    def source_format(self, container: str = "same", samples: str = "same") -> SampleFormat:
        """The format of its sources: its own, or 16-bit WAV where that is lossy or cannot be written.

        Sources coded with loss would not sum to the input, and some codecs change the length.

        Args:
            container: ``same``, ``wav`` or ``flac``.
            samples: ``same`` or one of ``SAMPLES``. What the container cannot hold becomes 24 bit in FLAC (which has no
                floats and no more bits), and WAV elsewhere.
        """
        own = self.format
        if not own.container or own.subtype not in BITS | FLOATS:
            own = SampleFormat("WAV", "PCM_16", "FILE", ".wav")
        subtype = SAMPLES.get(samples, own.subtype)
        if container == "flac":
            chosen = subtype if soundfile.check_format("FLAC", subtype) else "PCM_24"
            return SampleFormat("FLAC", chosen, "FILE", ".flac")
        wanted = replace(own, subtype=subtype)
        if container == "same" and soundfile.check_format(wanted.container, wanted.subtype, wanted.endian):
            return wanted
        return SampleFormat("WAV", subtype if soundfile.check_format("WAV", subtype) else "PCM_16", "FILE", ".wav")

    def blocks(self, seconds: float = 1.0) -> Iterator[Tensor]:
        """The samples in order, blocks ``[C,n]`` of ``seconds`` each, float64, full scale 1.

        Raises:
            BadAudio: the file ends early or is damaged, or a sample is NaN or infinite.
        """
        if self.path.suffix.lower() in CONTAINERS:
            yield from decoded_blocks(self.path, seconds)
            return
        done = 0
        with open_audio(self.path) as file:
            while done < self.frames:
                try:
                    block = file.read(max(1, round(seconds * self.rate)), dtype="float64", always_2d=True)
                except soundfile.LibsndfileError:
                    block = np.zeros((0, self.channels))
                if len(block) == 0:
                    raise BadAudio(f"damaged or truncated: of its {self.frames} samples about {done} can be decoded")
                if not np.isfinite(block).all():
                    raise BadAudio(f"holds NaN or infinity, {done / self.rate:.1f} s after its start or later")
                done += len(block)
                yield torch.from_numpy(np.ascontiguousarray(block.T))


def quantise(sources: Tensor, step: float) -> Tensor:
    """``sources [C,K,n]`` on the grid of ``step``, each within one step, summing to the rounded sum.

    Rounding each by itself would leave up to K/2 steps; the sums of the first 1, 2, ..., K are rounded instead.
    """
    sums = (sources.cumsum(1) / step).round() * step
    return sums.diff(dim=1, prepend=torch.zeros_like(sums[:, :1]))


@dataclass
class SourceWriter:
    """Writes K files of one length side by side; if a sample would clip, all of them become float32."""

    stem: Path
    """Its name stands for ``{stem}`` in the files' names."""
    num_sources: int
    rate: int
    channels: int
    samples: int
    """Expected of each file, over all channels."""
    format: SampleFormat
    """Of the files while nothing clips."""
    names: str = NAMES
    """Of the files without the suffix; ``{source}`` counts from 1."""
    clipped: bool = False
    written: int = 0

    def __post_init__(self) -> None:
        self.format = self.format.for_size(self.samples)
        self._files = self._open()

    @property
    def paths(self) -> list[Path]:
        """The files' names."""
        return source_paths(self.stem, self.num_sources, self.format, self.names)

    def write(self, sources: Tensor) -> None:
        """Append ``sources [C,K,n]``, float64; raises OSError if there is no room."""
        try:
            self._append(sources)
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that it wrote all
            raise OSError(NO_ROOM) from error

    def _append(self, sources: Tensor) -> None:
        if step := self.format.step:
            rounded = quantise(sources, step)
            if rounded.numel() and (rounded.max() > 1 - step or rounded.min() < -1):
                self._switch_to_float()
            else:
                sources = rounded
        for file, source in zip(self._files, sources.unbind(1), strict=True):
            file.write(source.T.numpy())
        self.written += sources.shape[-1]

    def close(self, complete: bool) -> None:
        """End the files: they are on disk, or removed where they are not ``complete``."""
        for file, path in zip(self._files, self.paths, strict=True):
            try:
                file.close()
                if complete:
                    sync(path)
                    self._check(path)
            finally:
                if not complete:
                    path.unlink(missing_ok=True)

    def _check(self, path: Path) -> None:
        """Closing a file writes its header, and says nothing when it cannot."""
        with suppress(soundfile.LibsndfileError):
            if soundfile.info(os.fsencode(path)).frames == self.written:
                return
        raise OSError(NO_ROOM)

    def _open(self) -> list[soundfile.SoundFile]:
        coding = (self.format.subtype, self.format.endian, self.format.container)
        names = map(os.fsencode, self.paths)
        return [soundfile.SoundFile(name, "w", self.rate, self.channels, *coding) for name in names]

    def _switch_to_float(self) -> None:
        aside = []
        for file, path in zip(self._files, self.paths, strict=True):
            file.close()
            aside.append(path.replace(path.with_suffix(".integers")))
        self.format, self.clipped = self.format.as_float().for_size(self.samples), True
        self._files = self._open()
        for path, file in zip(aside, self._files, strict=True):
            if self.written:  # an empty FLAC file cannot be read
                for block in soundfile.blocks(os.fsencode(path), 65536, dtype="float64", always_2d=True):
                    file.write(block)
            path.unlink()


def source_paths(stem: Path, num_sources: int, sample_format: SampleFormat, names: str = NAMES) -> list[Path]:
    """The names of the sources of ``stem``."""
    numbered = (names.replace("{source}", str(k + 1)) for k in range(num_sources))
    return [stem.with_name(name.replace("{stem}", stem.name) + sample_format.suffix) for name in numbered]
