"""Crops of audio files are what they say they are. Axes: C channels, T samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from surf_lightning.audio.files import (
    EXTENSIONS,
    BadAudio,
    Resampler,
    StreamResampler,
    is_cut_short,
    open_audio,
    read_crop,
)
from surf_lightning.audio.index import index_audio
from surf_lightning.audio.streams import AudioFile
from surf_lightning.files import files_under
from tests.audio.trees import BROKEN, RATE, noise, write


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.flac", "PCM_24")],
)
def test_a_crop_is_the_samples_at_its_offset(tmp_path: Path, name: str, subtype: str) -> None:
    signal = write(tmp_path / name, noise(2.0, 0), subtype=subtype)
    for start, count in ((0, 100), (12345, 8000), (31000, 1000), (0, 32000)):
        crop = read_crop(tmp_path / name, start, count, RATE)
        assert crop.dtype == torch.float32
        np.testing.assert_array_equal(crop.numpy(), signal[start : start + count])


def test_channels_are_averaged(tmp_path: Path) -> None:
    signal = write(tmp_path / "a.wav", noise(1.0, 0, channels=3))
    crop = read_crop(tmp_path / "a.wav", 500, 700, RATE)
    np.testing.assert_allclose(crop.numpy(), signal[500:1200].mean(1), atol=1e-7)


def test_a_crop_ends_with_its_file(tmp_path: Path) -> None:
    signal = write(tmp_path / "a.wav", noise(1.0, 0))
    np.testing.assert_array_equal(read_crop(tmp_path / "a.wav", 15000, 8000, RATE).numpy(), signal[15000:])
    assert len(read_crop(tmp_path / "a.wav", 16000, 10, RATE)) == 0
    assert len(read_crop(tmp_path / "a.wav", 99999, 10, RATE)) == 0


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44101, 48000, 250000])
def test_a_crop_is_a_part_of_the_whole_resampled(tmp_path: Path, rate: int) -> None:
    """The filter's surroundings are read with it, so that no crop has edges of its own."""
    signal = write(tmp_path / "a.wav", noise(1.0, 0, rate), rate)
    whole = Resampler(rate, RATE)(torch.from_numpy(signal).float())
    assert len(whole) == Resampler(rate, RATE).length(len(signal)) == RATE
    for start, count in ((0, 4000), (1, 7), (3333, 5000), (12000, 4000), (len(whole) - 5, 100)):
        crop = read_crop(tmp_path / "a.wav", start, count, RATE)
        torch.testing.assert_close(crop, whole[start : start + count], atol=1e-6, rtol=0)


FORMATS = {
    **dict.fromkeys((".wav", ".wave", ".bwf"), ("WAV", "PCM_16")),
    **dict.fromkeys((".aif", ".aiff", ".aifc"), ("AIFF", "PCM_24")),
    **dict.fromkeys((".au", ".snd"), ("AU", "FLOAT")),
    **dict.fromkeys((".ogg", ".oga"), ("OGG", "VORBIS")),
    ".rf64": ("RF64", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
    ".caf": ("CAF", "ALAC_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.mark.parametrize(
    ("extension", "rate"),
    [*((each, 48000) for each in EXTENSIONS), *((each, 44100) for each in (".ogg", ".mp3", ".flac"))],
)
def test_every_format_is_indexed_cropped_and_streamed(extension: str, rate: int) -> None:
    """A decoder that is entered in the middle, or block by block, gives what it gives for the whole file."""
    path = Path(f"a{extension}")
    container, subtype = FORMATS[extension]
    loudness = np.random.default_rng(1).uniform(0.03, 1, 96).repeat(rate // 12)  # loud frames lend bits of quiet ones
    write(path, loudness * noise(8.0, 0, rate), rate, format=container, subtype=subtype)
    assert [file.frames for file in index_audio(Path(), files_under(Path(), EXTENSIONS))] == [8 * rate]
    decoded = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    streamed = torch.cat(list(AudioFile.open(path).blocks(0.5)), 1)[0].float()
    torch.testing.assert_close(streamed, decoded, atol=1e-6, rtol=0)
    whole = Resampler(rate, RATE)(decoded)
    for start in np.random.default_rng(0).integers(0, 6 * RATE, 12).tolist():
        crop = read_crop(path, start, 2 * RATE, RATE)
        torch.testing.assert_close(crop, whole[start : start + 2 * RATE], atol=1e-6, rtol=0)


def test_only_the_stretch_of_the_crop_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.flac", noise(20.0, 0, 48000), 48000)
    counts: list[int] = []
    read = soundfile.SoundFile.read

    def spy(self: Any, frames: int = -1, **options: Any) -> Any:
        counts.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    assert len(read_crop(tmp_path / "a.flac", 8 * RATE, RATE, RATE)) == RATE
    assert 48000 <= sum(counts) < 1.03 * 48000


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_tones(rate: int) -> None:
    """Against the tone itself, sampled in float64: frequency, phase and level."""

    def tone(frequency: float, at: int) -> torch.Tensor:
        return torch.sin(2 * math.pi * frequency * torch.arange(at, dtype=torch.float64) / at)

    for frequency in (440.0, 3000.0):
        resampled = Resampler(rate, RATE)(tone(frequency, rate).float())
        inside = slice(1000, RATE - 1000)
        torch.testing.assert_close(resampled.double()[inside], tone(frequency, RATE)[inside], atol=2e-3, rtol=0)


def test_resampling_removes_what_lies_above_the_band() -> None:
    tone = torch.sin(2 * math.pi * 11000 * torch.arange(48000, dtype=torch.float64) / 48000).float()
    resampled = Resampler(48000, RATE)(tone)[1000:-1000]
    assert 10 * math.log10(2 * float(resampled.double().square().mean())) < -70


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 44101, 96000])
def test_a_length_is_that_of_the_resampled_signal(rate: int) -> None:
    one = Resampler(rate, RATE)
    for frames in (*range(1, 60), 5001, 70_003):
        assert len(one(torch.zeros(frames))) == one.length(frames)


@pytest.mark.parametrize("rate", [8000, 44100, 44101, 96000])
def test_a_crop_is_what_a_stream_of_the_file_has_there(tmp_path: Path, rate: int) -> None:
    """Training and separation resample alike."""
    path = tmp_path / "a.wav"
    write(path, noise(3.0, 0, rate), rate)
    down = StreamResampler(rate, RATE, 1)
    blocks = [down(block) for block in AudioFile.open(path).blocks(0.3)]
    stream = torch.cat([*blocks, down(torch.zeros(1, 0), last=True)], 1)[0]
    assert len(stream) == Resampler(rate, RATE).length(3 * rate)
    for start, count in ((0, 4000), (12345, 16000), (47000, 1000)):
        crop = read_crop(path, start, count, RATE)
        torch.testing.assert_close(crop.double(), stream[start : start + count], atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", ["empty.wav", "text.wav", "nan.wav"])
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str) -> None:
    make, reason = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(BadAudio, match=reason):
        read_crop(tmp_path / name, 0, 100, RATE)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="missing"):
        open_audio(tmp_path / "a.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(BadAudio, match="unreadable"):
        open_audio(tmp_path / "folder.wav")


def test_the_end_of_a_truncated_file_cannot_be_read(tmp_path: Path) -> None:
    BROKEN["truncated.flac"][0](tmp_path / "a.flac")
    assert len(read_crop(tmp_path / "a.flac", 0, 8000, RATE)) == 8000
    with pytest.raises(BadAudio, match="truncated"):
        read_crop(tmp_path / "a.flac", 2 * RATE, 8000, RATE)


def test_nan_is_found_where_it_is_alone(tmp_path: Path) -> None:
    signal = noise(2.0, 0)
    signal[20000] = np.nan
    write(tmp_path / "a.wav", signal, subtype="FLOAT")
    assert read_crop(tmp_path / "a.wav", 0, 20000, RATE).isfinite().all()
    for bad in (np.nan, np.inf, -np.inf):
        signal[20000:20002] = bad, -bad
        write(tmp_path / "a.wav", signal, subtype="FLOAT")
        with pytest.raises(BadAudio, match="NaN or infinity"):
            read_crop(tmp_path / "a.wav", 10000, 20000, RATE)


def cut(path: Path) -> Path:
    """Takes a third of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def test_an_aiff_file_cut_short_is_known() -> None:
    write(Path("a.aiff"), noise(1.0, 0))
    assert not is_cut_short("a.aiff")
    assert is_cut_short(cut(Path("a.aiff")))


@pytest.mark.parametrize("comment", [10, 5000])
def test_a_wav_file_cut_short_is_known_however_long_its_header(comment: int) -> None:
    """libsndfile's own words of it end after 2 kB of header."""
    path = Path("a.wav")
    write(path, noise(1.0, 0))
    whole = path.read_bytes()
    text = b"LIST" + (comment + 12).to_bytes(4, "little") + b"INFOICMT" + comment.to_bytes(4, "little") + b"x" * comment
    size, where = (len(whole) + len(text) - 8).to_bytes(4, "little"), whole.index(b"data")
    path.write_bytes(whole[:4] + size + whole[8:where] + text + whole[where:])
    assert AudioFile.open(path).remark is None
    assert "cut short" in str(AudioFile.open(cut(path)).remark)
    assert sum(block.shape[1] for block in AudioFile.open(path).blocks()) < RATE, "what is there is read"


@pytest.mark.parametrize("claim", [0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_file_from_a_pipe_is_not_cut_short(claim: int) -> None:
    """Programs that write one to a pipe cannot go back to fill in its size."""
    path = Path("a.wav")
    write(path, noise(1.0, 0))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"data" + whole[40:44], b"data" + claim.to_bytes(4, "little")))
    header = AudioFile.open(path)
    assert (header.frames, header.remark) == (RATE, None)
    assert [file.reason for file in index_audio(Path(), ["a.wav"])] == [""]
