"""Sound in containers of films and telephones, which libsndfile does not read: m4a, aac, mp4, mkv and others.

Decoded by PyAV, an optional dependency whose wheels hold FFmpeg's codecs. Axes: C channels, n samples of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surf_lightning.audio.files import BadAudio

CONTAINERS = {
    **dict.fromkeys((".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp"), "mov"),
    **dict.fromkeys((".mkv", ".mka", ".webm"), "matroska"),
    **dict.fromkeys((".wma", ".wmv"), "asf"),
    **{".aac": "aac", ".avi": "avi", ".amr": "amr"},
}
"""FFmpeg's reader of each extension. It is never guessed from the content: a playlist named .mp4 opens other files."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The container and its first stream of sound."""
    try:
        import av
    except ImportError as error:
        raise BadAudio(f"{path.suffix} needs PyAV: pip install 'surf-lightning[formats]'") from error
    try:
        with open(path, "rb") as file, av.open(file, format=CONTAINERS[path.suffix.lower()]) as container:
            if not container.streams.audio:
                raise BadAudio("holds no sound")
            yield container, container.streams.audio[0]
    except FileNotFoundError as error:
        raise BadAudio("missing") from error
    except (av.FFmpegError, OSError) as error:
        raise BadAudio(f"cannot be decoded ({error.strerror or error})") from error


def sound_of(path: Path) -> tuple[int, int, int, str]:
    """About how many samples the sound has, its channels, its rate in Hz and its codec.

    A container that was written as it was recorded, as browsers do, does not know its duration: it is read through.

    Raises:
        BadAudio: there is none, or PyAV is not installed.
    """
    with _opened(path) as (container, stream):
        seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
        if not stream.rate or not stream.channels:
            raise BadAudio("its sound cannot be decoded")
        if not seconds:
            ends = (part.pts + (part.duration or 0) for part in container.demux(stream) if part.pts is not None)
            seconds = max(ends, default=0) * stream.time_base
        return max(1, round(seconds * stream.rate)), stream.channels, stream.rate, stream.codec_context.name


def decoded_blocks(path: Path, seconds: float) -> Iterator[Tensor]:
    """The samples in order, blocks ``[C,n]`` of ``seconds`` or a little more, float64, full scale 1.

    Raises:
        BadAudio: it is damaged, or holds no sample.
    """
    with _opened(path) as (container, stream):
        from av import AudioResampler

        convert = AudioResampler(format="dblp", layout=stream.layout.name, rate=stream.rate)
        held: list[np.ndarray] = []
        empty = True
        for frame in chain(container.decode(stream), [None]):  # None: what the converter has left
            held += [part.to_ndarray() for part in convert.resample(frame)]
            if held and (frame is None or sum(part.shape[1] for part in held) >= seconds * stream.rate):
                yield torch.from_numpy(np.concatenate(held, 1))
                empty, held = False, []
        if empty:
            raise BadAudio("holds no samples")
