"""Spectrograms to look at. Axes: T samples, F bands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FFT, HOP = 512, 128  # samples
DYNAMIC_RANGE = 80.0  # dB below the loudest bin that are shown


def log_spectrogram(signals: Tensor, hop: int = HOP) -> Tensor:
    """Levels in dB of the short-time spectrum of ``signals [...,T]``, 257 bands: ``[...,F,frames]``."""
    window = torch.hann_window(FFT, device=signals.device)
    options: Any = {"window": window, "pad_mode": "constant", "return_complex": True}
    return 20 * torch.stft(signals.float(), FFT, hop, **options).abs().clamp_min(1e-8).log10()
