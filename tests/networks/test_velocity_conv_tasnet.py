"""The velocity form of Conv-TasNet against independent float64 computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from surf_lightning.functional.flow import interpolate, prior_from_noise
from surf_lightning.networks import VelocityConvTasNet
from tests.networks.test_conv_tasnet import TINY, perturbed, randn


def network(num_sources: int = 3, **changes: Any) -> VelocityConvTasNet:
    torch.manual_seed(0)
    return perturbed(VelocityConvTasNet(num_sources, **{**TINY, **changes}))


def flow_state(batch: int = 2, num_sources: int = 3, length: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    x_t = randn(batch, num_sources, length)
    return x_t, torch.linspace(0.2, 0.9, batch, dtype=torch.float64), x_t.sum(1)


def test_velocity_by_hand() -> None:
    net, (x_t, t, mixtures) = network(), flow_state(2)
    scale = (mixtures / 3).square().mean(-1).sqrt()[:, None]
    mixture = net.filterbank.encode(mixtures / 3 / scale)
    noisy = torch.cat([net.filterbank.encode(x_t[:, k] / scale) for k in range(3)], 1)
    features = net.dense(mixture) + net.time(t)[..., None] + t[:, None, None] * net.noisy(noisy)
    masked = 3 * scale[..., None] * net.filterbank.decode(net.masks(net.tcn(features)), mixture, 100)
    sources = masked + (mixtures - masked.sum(1))[:, None] / 3
    expected = (sources - x_t) / (1 - t)[:, None, None]
    torch.testing.assert_close(net(x_t, t, mixtures), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(net.residual_weight(t), 1 - t)


@pytest.mark.parametrize("num_sources", [2, 4])
@pytest.mark.parametrize("length", [1, 77])
def test_velocity_sums_to_zero_at_any_length(num_sources: int, length: int) -> None:
    velocity = network(num_sources)(*flow_state(2, num_sources, length))
    assert velocity.shape == (2, num_sources, length)
    torch.testing.assert_close(velocity.sum(1), torch.zeros(2, length, dtype=torch.float64), atol=1e-10, rtol=0)


def test_at_the_start_the_estimate_does_not_depend_on_the_noise_and_later_it_does() -> None:
    net, mixtures = network(), randn(1, 90)
    sources = [prior_from_noise(mixtures, noise) for noise in (randn(1, 3, 90), randn(1, 3, 90).flip(-1))]
    for t, same in ((torch.zeros(1), True), (torch.full((1,), 0.5), False)):
        one, other = (x + (1 - t).double() * net(x, t.double(), mixtures) for x in sources)
        assert torch.allclose(one, other, atol=1e-10) == same


def test_a_gain_on_both_is_a_gain_on_the_velocity() -> None:
    net, (x_t, t, mixtures) = network(), flow_state()
    for gain in (1e-4, 300.0):
        torch.testing.assert_close(net(gain * x_t, t, gain * mixtures) / gain, net(x_t, t, mixtures), atol=1e-6, rtol=0)


def test_examples_of_a_batch_do_not_mix() -> None:
    net, (x_t, t, mixtures) = network(), flow_state(3)
    each = [net(x_t[b : b + 1], t[b : b + 1], mixtures[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(net(x_t, t, mixtures), torch.cat(each), atol=1e-12, rtol=0)


def test_bfloat16_autocast_and_every_gradient() -> None:
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
