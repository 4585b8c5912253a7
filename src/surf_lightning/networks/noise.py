"""The standard deviation of the prior's noise, a function of the mixture. Axes: B batch, *S the signal, T samples."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from surf_lightning.flow import rows_like
from surf_lightning.networks.protocols import recorded
from surf_lightning.networks.stft import level
from surf_lightning.precision import at_least_float32, full_precision

ENVELOPE_SECONDS = 1024 / 44100  # the first to the last of the 1025 taps at 44.1 kHz of Scheibler et al. (2025)


class PriorNoise(nn.Module, ABC):
    """Gives the deviation of the noise, the same for all sources, so that the prior stays exchangeable."""

    @abstractmethod
    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor | float:
        """``mixtures [B,*S]`` -> a number, or a tensor that broadcasts against ``[B,K,*S]``."""


@recorded
class ConstantNoise(PriorNoise):
    """The same deviation everywhere: Sigma = scale^2 I in Eq. (4).

    Args:
        scale: the deviation, in the units of the sources.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> float:
        return self.scale


@recorded
class GlobalRMSNoise(PriorNoise):
    """One deviation for each example, in proportion to the RMS of m/K.

    Args:
        scale: the deviation in units of that RMS; at 1, noise and mean of the prior are equally loud.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor:
        rms = level(mixtures.flatten(1)).squeeze(1)
        return rows_like(self.scale / num_sources * rms, mixtures.unsqueeze(1))


@recorded
class EnvelopeNoise(PriorNoise):
    """A deviation that follows the loudness of m/K in time: the root of its power, smoothed (Scheibler et al., 2025).

    The window is a Hamming window of unit sum, 23 ms long. For signals ``[B,T]``.

    Args:
        sample_rate: in Hz.
        scale: what the deviation is multiplied by.
    """

    window: Tensor

    def __init__(self, sample_rate: int = 16000, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        taps = 2 * round(ENVELOPE_SECONDS * sample_rate / 2) + 1
        window = torch.hamming_window(taps, periodic=False, dtype=torch.float64)
        self.register_buffer("window", (window / window.sum()).float(), persistent=False)

    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor:
        with full_precision(mixtures):
            power = at_least_float32(mixtures).square().unsqueeze(1)
            window = self.window.to(power.dtype).view(1, 1, -1)
            envelope = nn.functional.conv1d(power, window, padding=len(self.window) // 2)
        # Convolutions by FFT can give less than zero.
        return self.scale / num_sources * envelope.clamp_min(0).sqrt()
