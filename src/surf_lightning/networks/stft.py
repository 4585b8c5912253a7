"""The spectral front-end of the audio networks.

Axes: B batch, T samples, N frames, J frequency bins, and a last axis of 2 for the real and imaginary parts.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.functional.precision import at_least_float32, full_precision

COMPRESSION = 0.33  # exponent of the magnitude compression, Tables 7 and 8 of the SURF paper


def pad_to_hops(signals: Tensor, hop: int) -> Tensor:
    """``signals [*,T]`` with zeros up to a whole number of hops."""
    length = signals.shape[-1]
    return F.pad(signals, (0, (length + hop - 1) // hop * hop - length))  # torch.export does not follow -length % hop


def rms(signals: Tensor, eps: float = 1e-8) -> Tensor:
    """Root mean square over the samples, ``[*,T] -> [*,1]``; at least ``eps``, so silence can be divided by it."""
    return (at_least_float32(signals).square().mean(-1, keepdim=True) + eps**2).sqrt()


def compress(spectrum: Tensor, eps: float = 1e-8) -> Tensor:
    """Compress magnitudes to the power 0.33 and keep phases: X (|X|² + eps)^((0.33 - 1)/2), ``[*,2] -> [*,2]``."""
    power = spectrum.square().sum(-1, keepdim=True)
    return spectrum * (power + eps) ** ((COMPRESSION - 1) / 2)


def expand(compressed: Tensor) -> Tensor:
    """Invert :func:`compress` for magnitudes well above sqrt(eps): Y |Y|^(1/0.33 - 1), ``[*,2] -> [*,2]``."""
    power = compressed.square().sum(-1, keepdim=True)
    return compressed * power ** ((1 / COMPRESSION - 1) / 2)


def ratio_masks(magnitudes: Tensor) -> Tensor:
    """Each of ``magnitudes [B,M,...]``, none negative, as its share of the sum over M; 0 where all are 0."""
    return magnitudes / magnitudes.sum(1, keepdim=True).clamp_min(torch.finfo(magnitudes.dtype).tiny)


class STFT(nn.Module):
    """Short-time Fourier transform with an energy-normalized window, and its least-squares inverse.

    The window's squares sum to one: each bin of a white signal has the expected power of one sample. Works in float32,
    for float64 inputs in float64, also under autocast.

    Args:
        n_fft: samples of a frame, even.
        hop: samples between frames, at most ``n_fft // 2``.
        window: ``hamming`` or ``hann``, both periodic.

    Raises:
        ValueError: ``n_fft`` is odd or ``hop`` is out of range.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, window: Literal["hamming", "hann"] = "hamming") -> None:
        super().__init__()
        if n_fft % 2 or not 0 < hop <= n_fft // 2:
            raise ValueError(f"n_fft must be even and hop within 1..n_fft/2, not n_fft {n_fft} and hop {hop}")
        self.n_fft, self.hop = n_fft, hop
        kind = {"hamming": torch.hamming_window, "hann": torch.hann_window}[window]
        taps = kind(n_fft, dtype=torch.float64)
        self.register_buffer("window", (taps / taps.norm()).float(), persistent=False)

    def forward(self, signals: Tensor) -> Tensor:
        """Map ``signals [*,T]``, any T, to spectra ``[*,N,J,2]``, N = 1 + ceil(T / hop) and J = n_fft / 2 + 1."""
        with full_precision(signals):
            signals = at_least_float32(signals)
            # A whole number of hops: two windows then overlap well at the last sample too.
            rows = pad_to_hops(signals.flatten(0, -2), self.hop)
            spectrum = torch.stft(
                rows,
                self.n_fft,
                self.hop,
                window=self.window.to(rows.dtype),
                pad_mode="constant",  # reflection needs more than n_fft / 2 samples
                return_complex=True,
            )
            return torch.view_as_real(spectrum).transpose(1, 2).unflatten(0, signals.shape[:-1])

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """Map ``spectrum [*,N,J,2]`` to the signals ``[*,length]`` with the closest spectra, by least squares."""
        with full_precision(spectrum):
            spectrum = at_least_float32(spectrum)
            rows = torch.view_as_complex(spectrum.flatten(0, -4).contiguous())
            window, inside = self.window.to(spectrum.dtype), slice(self.n_fft // 2, self.n_fft // 2 + length)
            signals = self._overlap_add(torch.fft.irfft(rows, self.n_fft) * window)[:, inside]
            energy = self._overlap_add(window.square().expand(1, rows.shape[1], -1))[:, inside]
            return (signals / energy).unflatten(0, spectrum.shape[:-3])

    # torch.istft does the same, but waits for the device in order to check that the windows overlap.
    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Sum ``frames [R,N,n_fft]``, each ``hop`` samples after the previous one, ``-> [R,(N-1)*hop+n_fft]``."""
        samples = (frames.shape[1] - 1) * self.hop + self.n_fft
        return F.fold(frames.mT, (1, samples), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
