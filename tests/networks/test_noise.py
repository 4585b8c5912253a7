"""The prior's noise: exchangeable, equivariant to gain, with the intended level. Axes: B batch, K, T samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surf_lightning.functional.flow import sample_prior
from surf_lightning.inference.checkpoint import describe, rebuild
from surf_lightning.networks.base import ConstantNoise, EnvelopeNoise, GlobalRMSNoise, PriorNoise


def mixtures(*shape: int) -> Tensor:
    """Signals that grow louder, within an example and from one example to the next."""
    signal = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return signal * torch.linspace(0.1, 1, shape[-1]) * torch.arange(1, shape[0] + 1).view(-1, *[1] * (len(shape) - 1))


follows_the_mixture = pytest.mark.parametrize("noise", [GlobalRMSNoise(0.7), EnvelopeNoise(16000, 0.7)])


def test_rms_noise_is_as_loud_as_the_mean_of_the_prior() -> None:
    m = mixtures(3, 5000)
    scale = GlobalRMSNoise()(m, 4)
    assert scale.shape == (3, 1, 1)
    np.testing.assert_allclose(scale.flatten(), np.sqrt(np.mean((m.numpy() / 4) ** 2, 1)), rtol=1e-9)
    images = mixtures(2, 3, 8, 8)
    assert GlobalRMSNoise(2.0)(images, 2).shape == (2, 1, 1, 1, 1)
    expected = np.sqrt(np.mean(images.numpy() ** 2, (1, 2, 3)))
    np.testing.assert_allclose(GlobalRMSNoise(2.0)(images, 2).flatten(), expected, rtol=1e-9)


@pytest.mark.parametrize(("sample_rate", "taps"), [(44100, 1025), (16000, 373), (8000, 187), (48000, 1115)])
def test_envelope_noise_is_the_root_of_the_smoothed_power(sample_rate: int, taps: int) -> None:
    """Against numpy's own window and convolution, at the ends of the signal too."""
    noise = EnvelopeNoise(sample_rate, 1.5)
    assert len(noise.window) == taps
    m = mixtures(2, 3000)
    window = np.hamming(taps) / np.hamming(taps).sum()
    expected = [1.5 / 4 * np.sqrt(np.convolve(row**2, window)[taps // 2 :][:3000]) for row in m.numpy()]
    assert noise(m, 4).shape == (2, 1, 3000)
    np.testing.assert_allclose(noise(m, 4).squeeze(1), expected, rtol=1e-5)


def test_envelope_noise_of_a_steady_mixture_is_that_of_its_level() -> None:
    steady = torch.full((1, 4000), 0.5)
    np.testing.assert_allclose(EnvelopeNoise()(steady, 2)[0, 0, 200:-200], 0.25, rtol=1e-5)
    assert EnvelopeNoise()(torch.zeros(1, 4000), 2).eq(0).all()


@follows_the_mixture
def test_a_gain_on_the_mixture_is_a_gain_on_the_noise(noise: PriorNoise) -> None:
    m = mixtures(2, 2000)
    torch.testing.assert_close(noise(10 * m, 2), 10 * torch.as_tensor(noise(m, 2)))
    torch.testing.assert_close(noise(-m, 2), noise(m, 2))


@follows_the_mixture
def test_the_prior_stays_exchangeable_and_consistent(noise: PriorNoise) -> None:
    """One deviation for all sources, and x0 sums to the mixture; its spread is what P⊥ leaves: sqrt(1 - 1/K)."""
    m, num_sources = mixtures(1, 400), 3
    scale = noise(m, num_sources)
    x0 = sample_prior(m.expand(2000, -1), num_sources, scale, torch.Generator().manual_seed(1))
    torch.testing.assert_close(x0.sum(1), m.expand(2000, -1))
    spread = (x0 - m / num_sources).square().mean(0).sqrt()
    expected = (torch.as_tensor(scale)[0] * (1 - 1 / num_sources) ** 0.5).expand(num_sources, 400)
    torch.testing.assert_close(spread.mean(1), expected.mean(1), rtol=0.01, atol=0)
    torch.testing.assert_close(spread[:, 300:400].mean(1), expected[:, 300:400].mean(1), rtol=0.02, atol=0)


def test_envelope_noise_is_not_made_in_low_precision() -> None:
    m = mixtures(2, 2000).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = EnvelopeNoise()(m, 2)
    assert low.dtype == torch.float32
    assert torch.equal(low, EnvelopeNoise()(m, 2))


@pytest.mark.parametrize("noise", [ConstantNoise(0.3), GlobalRMSNoise(0.3), EnvelopeNoise(8000, 0.3)])
def test_a_checkpoint_rebuilds_it(noise: Any) -> None:
    """Checkpoints need no window: the constructor makes it."""
    again: Any = rebuild(describe(noise))
    m = mixtures(1, 1000)
    torch.testing.assert_close(torch.as_tensor(again(m, 2)), torch.as_tensor(noise(m, 2)), rtol=0, atol=0)
    assert not noise.state_dict()
