"""The velocity forms of Conv-TasNet against independent float64 computations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from surf_lightning.functional.flow import interpolate, prior_from_noise
from surf_lightning.networks import STFTConvTasNet, VelocityConvTasNet, VelocityNetwork, VelocitySTFTConvTasNet
from tests.networks.test_conv_tasnet import TINY, perturbed, randn

SPECTRAL: dict[str, Any] = {"n_fft": 16, "hop": 4, "bottleneck": 6, "hidden": 8, "repeats": 2, "blocks": 2}


def learned(num_sources: int = 3, **changes: Any) -> VelocityConvTasNet:
    torch.manual_seed(0)
    return perturbed(VelocityConvTasNet(num_sources, **{**TINY, **changes}))


def spectral(num_sources: int = 3) -> VelocitySTFTConvTasNet:
    torch.manual_seed(0)
    return perturbed(VelocitySTFTConvTasNet(num_sources, **SPECTRAL))


Make = Callable[..., VelocityNetwork]
both = pytest.mark.parametrize("network", [learned, spectral])


def flow_state(batch: int = 2, num_sources: int = 3, length: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    x_t = randn(batch, num_sources, length)
    return x_t, torch.linspace(0.2, 0.9, batch, dtype=torch.float64), x_t.sum(1)


def test_velocity_by_hand() -> None:
    net, (x_t, t, mixtures) = learned(), flow_state(2)
    scale = (mixtures / 3).square().mean(-1).sqrt()[:, None]
    mixture = net.filterbank.encode(mixtures / 3 / scale)
    noisy = torch.cat([net.filterbank.encode(x_t[:, k] / scale) for k in range(3)], 1)
    features = net.dense(mixture) + net.time(t)[..., None] + t[:, None, None] * net.noisy(noisy)
    masked = 3 * scale[..., None] * net.filterbank.decode(net.masks(net.tcn(features)), mixture, 100)
    sources = masked + (mixtures - masked.sum(1))[:, None] / 3
    expected = (sources - x_t) / (1 - t)[:, None, None]
    torch.testing.assert_close(net(x_t, t, mixtures), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(net.residual_weight(t), 1 - t)


def test_spectral_velocity_by_hand() -> None:
    net, (x_t, t, mixtures) = spectral(), flow_state(2)
    scale = mixtures.square().mean(-1).sqrt()[:, None, None]
    magnitudes = [net.stft(x).norm(dim=-1).mT / scale for x in (mixtures, *x_t.unbind(1))]
    features = net.masks.first(magnitudes[0]) + net.time(t)[..., None]
    x = features + t[:, None, None] * net.noisy(torch.cat(magnitudes[1:], 1))
    skipped = 0
    for block in net.masks.blocks:
        x, skip = block(x)
        skipped = skipped + skip
    masks = net.masks.last(skipped).sigmoid().view(2, 3, 9, -1)
    spectra = net.stft(mixtures)[:, None] * (masks / masks.sum(1, keepdim=True)).mT[..., None]
    sources = net.stft.inverse(spectra, 100)
    torch.testing.assert_close(net(x_t, t, mixtures), (sources - x_t) / (1 - t)[:, None, None], atol=1e-5, rtol=0)
    torch.testing.assert_close(net.residual_weight(t), 1 - t)


def test_the_first_estimate_is_that_of_the_regression_whose_weights_it_begins_with() -> None:
    net, (x_t, _, mixtures), start = spectral(), flow_state(2), torch.zeros(2, dtype=torch.float64)
    regression = STFTConvTasNet(3, **SPECTRAL).double()
    regression.load_state_dict(net.state_dict(), strict=False)
    net.time.requires_grad_(False).apply(lambda part: [value.zero_() for value in part.parameters(recurse=False)])
    torch.testing.assert_close(x_t + net(x_t, start, mixtures), regression(mixtures), atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("num_sources", [2, 4])
@pytest.mark.parametrize("length", [1, 77])
def test_velocity_sums_to_zero_at_any_length(network: Make, num_sources: int, length: int) -> None:
    velocity = network(num_sources)(*flow_state(2, num_sources, length))
    assert velocity.shape == (2, num_sources, length)
    torch.testing.assert_close(velocity.sum(1), torch.zeros(2, length, dtype=torch.float64), atol=1e-10, rtol=0)


@both
def test_at_the_start_the_estimate_does_not_depend_on_the_noise_and_later_it_does(network: Make) -> None:
    net, mixtures = network(), randn(1, 90)
    sources = [prior_from_noise(mixtures, noise) for noise in (randn(1, 3, 90), randn(1, 3, 90).flip(-1))]
    for t, same in ((torch.zeros(1), True), (torch.full((1,), 0.5), False)):
        one, other = (x + (1 - t).double() * net(x, t.double(), mixtures) for x in sources)
        assert torch.allclose(one, other, atol=1e-10) == same


@both
def test_a_gain_on_both_is_a_gain_on_the_velocity(network: Make) -> None:
    net, (x_t, t, mixtures) = network(), flow_state()
    for gain in (1e-4, 300.0):
        torch.testing.assert_close(net(gain * x_t, t, gain * mixtures) / gain, net(x_t, t, mixtures), atol=1e-6, rtol=0)


@both
def test_examples_of_a_batch_do_not_mix(network: Make) -> None:
    net, (x_t, t, mixtures) = network(), flow_state(3)
    each = [net(x_t[b : b + 1], t[b : b + 1], mixtures[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(net(x_t, t, mixtures), torch.cat(each), atol=1e-12, rtol=0)


@both
def test_bfloat16_autocast_and_every_gradient(network: Make) -> None:
    net = network().float()
    x0, x1 = randn(2, 3, 400).float(), randn(2, 3, 400).float().flip(0)
    x0 += (x1.sum(1) - x0.sum(1))[:, None] / 3
    t = torch.tensor([0.1, 0.6])
    state = interpolate(x0, x1, t), t, x1.sum(1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = net(*state)
    assert velocity.dtype == torch.float32
    assert velocity.sum(1).abs().max() < 1e-4
    velocity.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert (velocity - net(*state)).abs().mean() < 0.1
