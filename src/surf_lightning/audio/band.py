"""Spectra of recordings: to look at, and how high their sounds reach, so at which rate they are worth training.

Axes: T samples, F bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surf_lightning.audio.files import BadAudio, open_audio, read_frames

RATES = (16000, 24000, 32000, 48000)  # Hz, to train at
STRETCHES, SECONDS = 5, 2.0  # of a file that are looked at, evenly spread
FRAME = 1024  # samples
QUIETEST = 1e-6  # of the highest spectral density: 60 dB below it is as good as nothing
SHARE = 0.9  # of the recordings fill the band that decides the rate
MARGIN = 0.05  # of half the rate: what lies so little above is lost without regret
LOOKED_AT = 100  # recordings at most
FFT, HOP = 512, 128  # samples
DYNAMIC_RANGE = 80.0  # dB below the loudest bin that are shown


def band_of(path: str | Path) -> float:
    """The highest frequency, in Hz, at which the sounds of a file are less than 60 dB below its loudest.

    The spectra of a few stretches are averaged; 0 where these are silent.

    Raises:
        BadAudio: the file cannot be read.
    """
    power = torch.zeros(FRAME // 2 + 1, dtype=torch.float64)
    with open_audio(path) as file:
        rate, frames = file.samplerate, file.frames
    for start in torch.linspace(0, max(0, frames - SECONDS * rate), STRETCHES).long().tolist():
        with open_audio(path) as file:  # anew: a second seek in an Ogg file can be off
            signal = read_frames(file, start, round(SECONDS * rate)).double()
        signal = torch.nn.functional.pad(signal, (0, max(0, FRAME - len(signal))))
        spectra = torch.fft.rfft(signal.unfold(0, FRAME, FRAME // 2) * torch.hann_window(FRAME, dtype=torch.float64))
        power += spectra.abs().square().sum(0)
    audible = (power > QUIETEST * power.max()).nonzero().flatten()
    return (int(audible[-1]) + 0.5) * rate / FRAME if len(audible) else 0.0


def common_band(paths: Sequence[str | Path]) -> float:
    """The band that 90% of the recordings fill, in Hz, by up to a hundred of them; 0 where none can be read."""
    bands = []
    for path in paths[:: max(1, -(-len(paths) // LOOKED_AT))]:
        try:
            bands.append(band_of(path))
        except BadAudio:  # whoever reads it will say so
            continue
    bands = sorted(band for band in bands if band > 0)
    return bands[int((1 - SHARE) * len(bands))] if bands else 0.0


def usual_rate(band: float) -> int:
    """The lowest of ``RATES`` whose half holds ``band``, or the highest of them."""
    return next((rate for rate in RATES if band <= (1 + MARGIN) * rate / 2), RATES[-1])


def exceeds(band: float, rate: int) -> bool:
    """Whether sounds up to ``band`` are more than half of ``rate`` can hold."""
    return band > (1 + MARGIN) * rate / 2


def lost_band(path: str | Path, sample_rate: int) -> list[str]:
    """A remark on the sounds of a file that a model of ``sample_rate`` does not hear, where there are any."""
    try:
        band = band_of(path)
    except BadAudio:
        return []
    if not exceeds(band, sample_rate):
        return []
    return [
        f"what lies above {sample_rate / 2000:g} kHz (its sounds reach {band / 1000:.1f} kHz) is not separated but "
        f"shared equally among the sources: the checkpoint was trained at {sample_rate:,} Hz"
    ]


def log_spectrogram(signals: Tensor, hop: int = HOP) -> Tensor:
    """Levels in dB of the short-time spectrum of ``signals [...,T]``, 257 bands: ``[...,F,frames]``."""
    window = torch.hann_window(FFT, device=signals.device)
    options: Any = {"window": window, "pad_mode": "constant", "return_complex": True}
    return 20 * torch.stft(signals.float(), FFT, hop, **options).abs().clamp_min(1e-8).log10()
