"""Parts of audio files as mono signals of one sample rate, without decoding the rest. Axes: T samples."""

from __future__ import annotations

import functools
import math
import os
import struct
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")

MARGIN = 192  # samples at the lower of two rates: beyond them the resampling filter's response is below -120 dB
PREROLL = {"MP3": 11520}  # frames: ten blocks, after which its decoder has forgotten where it was entered
UNRECOGNISED_FORMAT = 1  # libsndfile's error code
STREAM_SIZE = 0x7FFFF000  # bytes: what programs that write a WAV file to a pipe claim, or more


class BadAudio(Exception):
    """A file, or the part of it that was asked for, is no usable audio; the message is the reason."""


class SteadyFile(soundfile.SoundFile):
    """An open file that stays where a read has left it.

    The library's own seeks there once more, and a decoder of MP3 thereby loses the bits that frames to come refer to.
    """

    def seekable(self) -> bool:
        return False


def open_audio(path: str | Path) -> SteadyFile:
    """Open a file of any format that libsndfile reads; raises BadAudio.

    Read one part of it and close it: libsndfile's second seek in an Ogg file can be off by a block.
    """
    name = os.fsencode(path)  # a file name need not be valid UTF-8
    try:
        return SteadyFile(name)
    except soundfile.LibsndfileError as error:
        raise BadAudio(_why_not_opened(name, error)) from error


def _why_not_opened(name: bytes, error: soundfile.LibsndfileError) -> str:
    try:
        with open(name, "rb") as file:
            if not file.read(1):
                return "empty file"
    except FileNotFoundError:
        return "missing"
    except OSError as system:
        return f"unreadable ({system.strerror})"
    if error.code == UNRECOGNISED_FORMAT:
        return "wrongly named: it holds no audio that can be read"
    return f"unreadable ({error.error_string})"


def is_cut_short(path: str | Path) -> bool:
    """Whether the header of a WAV file claims more audio than the file has: libsndfile reads what there is."""
    with open(os.fsencode(path), "rb") as file:
        if file.read(4) != b"RIFF":
            return False
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                return size < STREAM_SIZE and file.tell() + size > os.fstat(file.fileno()).st_size
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def read_frames(file: soundfile.SoundFile, start: int, count: int) -> Tensor:
    """``[T]``, T <= ``count``: the mean of the channels from frame ``start`` on, integer formats scaled to ±1.

    Raises:
        BadAudio: they cannot be decoded, or hold NaN or infinity.
    """
    roll = min(start, PREROLL.get(file.format, 0))
    try:
        file.seek(start - roll)
        frames = torch.from_numpy(file.read(roll + count, dtype="float32", always_2d=True))[roll:]
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"damaged or truncated ({error.error_string})") from error
    signal = frames.mean(1) if file.channels > 1 else frames[:, 0]
    if not signal.sum(dtype=torch.float64).isfinite():  # much faster than to look at each
        raise BadAudio("holds NaN or infinity")
    return signal


class Resampler:
    """From ``rate`` to ``sample_rate`` by soxr, a signal as a whole or the parts that a stretch of it needs.

    The same samples as those of a stream (``separation.audio_io``): models are trained on what they will separate.
    """

    def __init__(self, rate: int, sample_rate: int) -> None:
        common = math.gcd(rate, sample_rate)
        self.old, self.new = rate // common, sample_rate // common  # so many frames become so many samples, at most 1 s
        self.margin = 0 if self.old == self.new else math.ceil(MARGIN * max(1, self.old / self.new))

    def length(self, frames: int) -> int:
        """Samples that ``frames`` become: rounded, halves upwards."""
        return (2 * frames * self.new + self.old) // (2 * self.old)

    def __call__(self, signal: Tensor) -> Tensor:
        """``[T]`` at the old rate -> ``[length(T)]`` at the new."""
        if self.old == self.new:
            return signal
        return torch.from_numpy(soxr.resample(signal.numpy(), self.old, self.new))

    def part(self, file: soundfile.SoundFile, start: int, count: int) -> Tensor:
        """Samples ``[start, start + count)`` of the resampled file, as far as it goes, from the frames they need."""
        period = max(start * self.old // self.new - self.margin, 0) // self.old  # both grids share its first point
        first = period * self.old
        last = min(-(-(start + count) * self.old // self.new) + self.margin, file.frames)
        if first >= last:
            return torch.empty(0)
        begin = start - period * self.new
        return self(read_frames(file, first, last - first))[begin : begin + count]


@functools.lru_cache(64)
def resampler(rate: int, sample_rate: int) -> Resampler:
    """The resampler of a pair of rates in Hz, made once."""
    return Resampler(rate, sample_rate)


def read_crop(path: str | Path, start: int, count: int, sample_rate: int) -> Tensor:
    """``[T]``: samples ``[start, start + count)`` of a file mixed down to mono at ``sample_rate``, as far as it goes.

    They are those that resampling the whole file would give, but only the stretch they come from is decoded, where the
    format can be entered in the middle (wav, flac, ogg; mp3 after a scan of its headers).

    Raises:
        BadAudio: the file cannot be read there, or holds NaN there.
    """
    with open_audio(path) as file:
        return resampler(file.samplerate, sample_rate).part(file, start, count)
