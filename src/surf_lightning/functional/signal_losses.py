"""Losses of whole signals, for regressions on audio. Axes: B batch, K sources, T samples, N frames, J bins."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from surf_lightning.functional.losses import log_mse, squared_norm, thresholded_snr
from surf_lightning.functional.precision import at_least_float32, full_precision

FRAMES = (400, 800, 1600)  # samples of a frame: 50, 100 and 200 ms at 8 kHz


class SignalLoss(Protocol):
    """``loss(estimates [...,T], references [...,T]) -> [...]``."""

    def __call__(self, estimates: Tensor, references: Tensor, /) -> Tensor: ...


def signal_snr(estimates: Tensor, references: Tensor) -> Tensor:
    """``thresholded_snr`` in dB, 10 log10(|y - y^|^2 + tau |y|^2) - 10 log10 |y|^2, ``[...,T] -> [...]``."""
    kept = estimates.ndim - 1
    energies = squared_norm(references, kept)
    errors = squared_norm(estimates - references, kept)
    return thresholded_snr(errors, energies) - log_mse(energies, energies)


def multi_resolution_l1(estimates: Tensor, references: Tensor) -> Tensor:
    """Self-Remixing's loss on speech (Saijo and Ogawa, 2023), ``[...,T] -> [...]``.

    The sum of ``signal_snr``, the mean absolute error of the samples, and that of magnitude spectra, the mean over
    three resolutions: Hann windows of 400, 800 and 1600 samples, hops of 0.4 of them.
    """
    with full_precision(estimates):
        estimates, references = at_least_float32(estimates), at_least_float32(references)
        spectral = [(_magnitudes(estimates, n) - _magnitudes(references, n)).abs().mean((-2, -1)) for n in FRAMES]
        error = (estimates - references).abs().mean(-1)
        return signal_snr(estimates, references) + error + torch.stack(spectral).mean(0)


def _magnitudes(signals: Tensor, frame: int) -> Tensor:
    """``[...,T] -> [...,J,N]``; frames are padded to the next power of two."""
    window = torch.hann_window(frame, dtype=signals.dtype, device=signals.device)
    spectra = torch.stft(
        signals.flatten(0, -2),
        n_fft=1 << (frame - 1).bit_length(),
        hop_length=2 * frame // 5,
        win_length=frame,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    # The gradient of a magnitude is undefined at 0.
    power = torch.view_as_real(spectra).square().sum(-1)
    magnitudes: Tensor = (power + torch.finfo(power.dtype).tiny).sqrt()
    return torch.unflatten(magnitudes, 0, signals.shape[:-1])


def of_pairs(error: SignalLoss, pairs: Tensor) -> Tensor:
    """The error of estimates and references that stand side by side, ``[B,K,2,T]`` or ``[B,2,T]``, averaged: ``[B]``.

    Such pairs can be regrouped as a residual can, for sums of references are references as well.

    Raises:
        ValueError: ``error`` does not give one number for each pair, as ``losses.squared_error`` does not.
    """
    errors = error(*pairs.unbind(-2))
    if errors.shape != pairs.shape[:-2]:
        raise ValueError(f"error must map [...,T] and [...,T] to [...], as signal_snr does, not to {[*errors.shape]}")
    return errors.flatten(1).mean(1) if pairs.ndim == 4 else errors
