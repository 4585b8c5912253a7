"""Losses of whole signals against sums written out. Axes: B batch, K sources, T samples."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from surf_lightning.functional.losses import remixing_loss
from surf_lightning.functional.randomness import ALONE
from surf_lightning.functional.remixing import shuffle_sources
from surf_lightning.functional.signal_losses import SignalLoss, multi_resolution_l1, of_pairs, signal_snr


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def snr_by_hand(found: np.ndarray, truth: np.ndarray) -> float:
    energy = float((truth**2).sum())
    return 10 * math.log10((float(((found - truth) ** 2).sum()) + 1e-3 * energy + 1e-8) / (energy + 1e-8))


def magnitudes_by_hand(signal: np.ndarray, frame: int) -> np.ndarray:
    """Frames centred at multiples of the hop in silence, the window in the middle of the next power of two."""
    size, hop = 2 ** math.ceil(math.log2(frame)), frame * 2 // 5
    before = (size - frame) // 2
    window = np.zeros(size)
    window[before : before + frame] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    padded = np.pad(signal, size // 2)
    starts = range(0, len(padded) - size + 1, hop)
    return np.abs([np.fft.rfft(window * padded[start : start + size]) for start in starts])


def mrl1_by_hand(found: np.ndarray, truth: np.ndarray) -> float:
    spectral = [np.abs(magnitudes_by_hand(found, n) - magnitudes_by_hand(truth, n)).mean() for n in (400, 800, 1600)]
    return snr_by_hand(found, truth) + float(np.abs(found - truth).mean()) + float(np.mean(spectral))


HAND = {signal_snr: snr_by_hand, multi_resolution_l1: mrl1_by_hand}


@pytest.mark.parametrize("loss", HAND)
def test_by_hand_and_flat_where_nothing_is_wrong(loss: SignalLoss) -> None:
    estimates, references = normal(2, 3, 3000), 0.3 * normal(2, 3, 3000).flip(2)
    found = loss(estimates.requires_grad_(), references)
    expected = [
        [HAND[loss](e, r) for e, r in zip(*each, strict=True)]
        for each in zip(estimates.detach().numpy(), references.numpy(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)
    found.sum().backward()
    assert estimates.grad.abs().min() > 0  # type: ignore[union-attr]
    torch.testing.assert_close(loss(references, references), torch.full((2, 3), -30.0).double(), rtol=0, atol=1e-4)


def test_silence_has_a_gradient() -> None:
    estimates = torch.zeros(1, 2000, requires_grad=True)
    multi_resolution_l1(estimates, torch.zeros(1, 2000)).sum().backward()
    assert estimates.grad.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", HAND)
@pytest.mark.parametrize("objective", ["remixit", "self_remixing", 0.25])
def test_remixing_by_a_loss_of_signals(loss: SignalLoss, objective: str | float) -> None:
    """Of single sources against the teacher's, and of their sums in the original places against the mixtures."""
    pseudo, order = normal(3, 2, 2000), torch.tensor([3, 0, 5, 2, 1, 4])
    remixed = shuffle_sources(pseudo, order).sources
    estimates = remixed + 0.5 * normal(3, 2, 2000).flip(2)
    pit = torch.tensor([[0, 1], [1, 0], [0, 1]])
    sources = torch.stack([truth[p] for truth, p in zip(remixed, pit, strict=True)])
    by_source = [
        sum(HAND[loss](e.numpy(), s.numpy()) for e, s in zip(*each, strict=True)) / 2
        for each in zip(estimates, sources, strict=True)
    ]
    rebuilt = np.zeros((6, 2000))
    for b in range(3):
        for k in range(2):
            rebuilt[order[2 * b + int(pit[b, k])]] = estimates[b, k]
    by_mixture = [HAND[loss](rebuilt[2 * b] + rebuilt[2 * b + 1], pseudo[b].sum(0).numpy()) for b in range(3)]
    weight = {"remixit": 1.0, "self_remixing": 0.0}.get(str(objective), objective)
    expected = [weight * a + (1 - weight) * b for a, b in zip(by_source, by_mixture, strict=True)]  # type: ignore[operator]
    pairs, reduction = torch.stack([estimates, sources], 2), functools.partial(of_pairs, loss)
    found = remixing_loss(objective, pairs, pit, order, ALONE, reduction)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
