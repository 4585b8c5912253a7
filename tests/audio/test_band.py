"""How high recordings reach, and the rate that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr

from surf_lightning.audio.band import band_of, common_band, exceeds, lost_band, usual_rate
from tests.audio.trees import noise, write


def limited(band: float, rate: int = 48000, seconds: float = 3.0) -> np.ndarray:
    """Noise up to ``band``."""
    slow = noise(seconds, 0, round(2 * band))
    return soxr.resample(slow, round(2 * band), rate)


@pytest.mark.parametrize("band", [4000, 8000, 11025, 16000])
def test_the_band_is_where_the_sounds_end(band: float, tmp_path: Path) -> None:
    write(tmp_path / "a.wav", limited(band), 48000)
    assert band_of(tmp_path / "a.wav") == pytest.approx(band, rel=0.04)


def test_a_quiet_high_call_counts_and_the_noise_of_16_bits_does_not(tmp_path: Path) -> None:
    time = np.arange(3 * 48000) / 48000
    call = 1e-2 * np.sin(2 * np.pi * 12000 * time)
    write(tmp_path / "call.flac", 0.5 * limited(2000) + call, 48000)
    write(tmp_path / "none.wav", 0.5 * limited(2000), 48000)
    write(tmp_path / "short.wav", noise(0.01, 0), 16000)
    assert band_of(tmp_path / "call.flac") == pytest.approx(12000, abs=150)
    assert band_of(tmp_path / "none.wav") == pytest.approx(2000, rel=0.1)
    assert band_of(tmp_path / "short.wav") == pytest.approx(8000, rel=0.05)
    write(tmp_path / "silent.wav", np.zeros(48000), 48000)
    assert band_of(tmp_path / "silent.wav") == 0


def test_what_nine_of_ten_recordings_fill_decides(tmp_path: Path) -> None:
    for name, band in (("low", 8000), ("high", 15000)):
        write(tmp_path / f"{name}.wav", limited(band), 48000)
    (tmp_path / "none.wav").write_text("no audio")
    low, high, none = (tmp_path / f"{name}.wav" for name in ("low", "high", "none"))
    assert usual_rate(common_band([low] * 2 + [high] * 20 + [none])) == 32000
    assert usual_rate(common_band([low] * 5 + [high] * 20)) == 16000
    assert common_band([none]) == 0


def test_the_rate_is_the_lowest_that_holds_the_band() -> None:
    rates = {0: 16000, 8100: 16000, 9000: 24000, 11025: 24000, 16000: 32000, 22050: 48000, 96000: 48000}
    assert {band: usual_rate(band) for band in rates} == rates
    assert not exceeds(8200, 16000)
    assert exceeds(9000, 16000)


def test_a_file_above_the_models_band_is_remarked_on(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", limited(12000), 48000)
    (remark,) = lost_band(tmp_path / "a.wav", 16000)
    assert remark.startswith("what lies above 8 kHz (its sounds reach 11.9 kHz) is not separated")
    assert lost_band(tmp_path / "a.wav", 24000) == lost_band(tmp_path / "nowhere.wav", 16000) == []
