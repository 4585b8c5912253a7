"""Sound of telephones and films, read by PyAV, against what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surf_lightning.audio.files import BadAudio
from surf_lightning.audio.streams import AudioFile

RATE = 44100


def tone(seconds: float = 2.0, channels: int = 2) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.stack([0.3 * np.sin(2 * np.pi * (400 + 300 * channel) * time) for channel in range(channels)])


def encode(path: Any, codec: str, samples: np.ndarray, film: bool = False, container_format: str | None = None) -> None:
    av: Any = pytest.importorskip("av")
    with av.open(path, "w", format=container_format) as container:
        if film:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 32
        stream = container.add_stream(codec, rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        convert = av.AudioResampler(format=stream.format.name, layout="stereo", rate=RATE, frame_size=0)
        for part in convert.resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        if film:
            for _ in range(20):
                picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "film"),
    [
        ("a.m4a", "aac", False),
        ("a.aac", "aac", False),
        ("a.mp4", "aac", True),
        ("a.MKV", "aac", True),
        ("a.mka", "ac3", False),
    ],
)
def test_sound_is_decoded(name: str, codec: str, film: bool) -> None:
    expected = tone()
    encode(name, codec, expected, film)
    file = AudioFile.open(name)
    assert (file.channels, file.rate) == (2, RATE)
    blocks = list(file.blocks(0.5))
    found = torch.cat(blocks, 1).numpy()
    assert max(block.shape[1] for block in blocks) < 0.6 * RATE
    assert abs(found.shape[1] - expected.shape[1]) < 4096  # coders pad to whole frames
    middle = slice(RATE // 2, RATE)
    ours = np.fft.rfft(found[:, middle]).__abs__().argmax(1)
    np.testing.assert_array_equal(ours, np.fft.rfft(expected[:, middle]).__abs__().argmax(1))
    assert np.abs(found[:, middle]).max() == pytest.approx(0.3, abs=0.03)
    coded = file.source_format()
    assert (coded.container, coded.subtype, coded.suffix) == ("WAV", "PCM_16", ".wav")


class Pipe:
    """A file in which a container cannot go back to write its duration, as in a browser's recorder."""

    def __init__(self, path: str) -> None:
        self.write = open(path, "wb", 0).write  # noqa: SIM115


def test_a_container_that_does_not_know_its_duration_is_counted() -> None:
    encode(Pipe("a.webm"), "aac", tone(), container_format="matroska")
    file = AudioFile.open("a.webm")
    frames = sum(block.shape[1] for block in file.blocks())
    assert abs(frames - 2 * RATE) < 4096
    assert file.frames == pytest.approx(frames, rel=0.02)


def test_what_is_no_film_says_so() -> None:
    pytest.importorskip("av")
    Path("a.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")  # a playlist would open other files
    with pytest.raises(BadAudio, match="cannot be decoded"):
        AudioFile.open("a.mp4")
    with pytest.raises(BadAudio, match="missing"):
        AudioFile.open("nowhere.mp4")


def test_a_film_without_sound_says_so() -> None:
    av: Any = pytest.importorskip("av")
    with av.open("a.mp4", "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(pictures.encode(None))
    with pytest.raises(BadAudio, match="no sound"):
        AudioFile.open("a.mp4")


def test_a_film_cut_short_is_named() -> None:
    encode("whole.mp4", "aac", tone(), film=True)
    Path("a.mp4").write_bytes(Path("whole.mp4").read_bytes()[:5000])
    with pytest.raises(BadAudio):
        list(AudioFile.open("a.mp4").blocks())


def test_without_the_decoder_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    Path("a.m4a").touch()
    with pytest.raises(BadAudio, match=r"pip install 'surf-lightning\[formats\]'"):
        AudioFile.open("a.m4a")
