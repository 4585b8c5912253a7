"""Audio files: formats, opening, reading a part, resampling. Axes: R rows side by side, T samples, n of a block."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

EXTENSIONS = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"),
    *(".flac", ".ogg", ".oga", ".opus", ".mp3"),
)
"""Of the files that are taken for recordings, to train on and to separate."""

MARGIN = 192  # samples at the lower of two rates: beyond them the resampling filter's response is below -120 dB
PREROLL = {"MP3": 11520}  # frames: ten blocks, after which its decoder no longer depends on where it started
UNKNOWN_LENGTH = 1 << 40  # frames: libsndfile's way of saying that the header gives none
DENSEST = 10_000  # frames a byte: silence in the largest blocks of FLAC comes near it
FASTEST = 10_000_000  # Hz
NO_FILE = "unreadable (no file, but a folder, a named pipe or a device)"
UNRECOGNISED_FORMAT = 1  # libsndfile's error code
CHUNKS = {b"RIFF": ("<4sI", b"data"), b"FORM": (">4sI", b"SSND")}  # a chunk's name and size, and which holds the audio
STREAM_SIZE = 0x7FFFF000  # bytes: what programs that write a WAV file to a pipe claim, or more


class BadAudio(ValueError):
    """A file, or the part of it that was asked for, is no usable audio; the message is the reason."""


class SteadyFile(soundfile.SoundFile):
    """An open file that is read from beginning to end without seeking.

    soundfile seeks after every read to where it is anyway, and drops the MP3 decoder's bit reservoir by it.
    """

    def seekable(self) -> bool:
        return False


def file_state(path: str | Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns: a file whose state is the same is taken to be the same."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def open_audio(path: str | Path) -> SteadyFile:
    """Open a file of any format that libsndfile reads.

    Read one part of it and close it: libsndfile's second seek in an Ogg file can be off by a block.

    Raises:
        BadAudio: it is missing, no audio, or does not say how many samples it has.
    """
    name = os.fsencode(path)  # a file name need not be valid UTF-8
    if os.path.exists(name) and not os.path.isfile(name):  # a named pipe would be waited for
        raise BadAudio(NO_FILE)
    try:
        file = SteadyFile(name)
    except soundfile.LibsndfileError as error:
        raise BadAudio(_why_not_opened(name, error)) from error
    frames, rate = file.frames, file.samplerate
    if 0 < frames <= min(UNKNOWN_LENGTH - 1, DENSEST * os.path.getsize(name)) and rate <= FASTEST:
        return file
    file.close()
    if frames >= UNKNOWN_LENGTH:
        raise BadAudio("its header does not say how long it is: encode it again")
    if frames and rate <= FASTEST:
        raise BadAudio(f"its header claims {frames} samples, more than the file can hold")
    raise BadAudio(f"a sample rate of {rate} Hz" if frames else "holds no samples")


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
    """Whether the header of a WAV or AIFF file claims more audio than the file has: libsndfile reads what there is."""
    with open(os.fsencode(path), "rb") as file:
        form = file.read(4)
        if form not in CHUNKS:
            return False
        layout, audio = CHUNKS[form]
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack(layout, header)
            if name == audio:
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
    """From ``rate`` to ``sample_rate`` in Hz by soxr: a whole signal, or the part of a file that a crop needs.

    It gives the samples that ``StreamResampler`` gives: models are trained on what they will separate.
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


class StreamResampler:
    """From ``rate`` to ``sample_rate`` in Hz by soxr, block by block; joined, the blocks are the whole resampled.

    ``rows`` is R, the number of signals side by side.
    """

    def __init__(self, rate: int, sample_rate: int, rows: int) -> None:
        self.stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, rows, dtype="float64")

    def __call__(self, block: Tensor, last: bool = False) -> Tensor:
        """``[R,n] -> [R,n']`` of float64; samples whose neighbours are still to come are given with later blocks."""
        if self.stream is None:
            return block.double()
        samples = np.ascontiguousarray(block.double().numpy().T)
        return torch.from_numpy(np.ascontiguousarray(self.stream.resample_chunk(samples, last).T))


def read_crop(path: str | Path, start: int, count: int, sample_rate: int) -> Tensor:
    """``[T]``: samples ``[start, start + count)`` of a file mixed down to mono at ``sample_rate``, as far as it goes.

    They are those that resampling the whole file would give, but only the stretch they come from is decoded, in formats
    that can be entered in the middle (in mp3 after a scan of its headers).

    Raises:
        BadAudio: the file cannot be read there, or holds NaN there.
    """
    with open_audio(path) as file:
        return Resampler(file.samplerate, sample_rate).part(file, start, count)
