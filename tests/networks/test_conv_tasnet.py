"""Conv-TasNet against independent float64 computations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.inference.checkpoint import describe, rebuild
from surf_lightning.networks.conv_tasnet import (
    ConsistencyWeights,
    ConvTasNet,
    InstanceNorm,
    TemporalBlock,
    TemporalNetwork,
)
from tests.networks.test_locoformer import perturbed, randn

TINY: dict[str, Any] = {"filters": 12, "bottleneck": 8, "hidden": 10, "repeats": 3, "blocks": 2}


def network(**changes: Any) -> ConvTasNet:
    torch.manual_seed(0)
    return perturbed(ConvTasNet(3, 2, **{**TINY, **changes}))


@pytest.mark.parametrize(
    ("num_outputs", "skips", "expected"),
    [(4, False, 8_803_845), (8, False, 9_067_017), (4, True, 9_198_603), (8, True, 9_461_775)],
)
def test_parameters_of_the_published_sizes(num_outputs: int, skips: bool, expected: int) -> None:
    with torch.device("meta"):
        net = ConvTasNet(num_outputs, 2, skip_residuals=skips)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def norm_by_hand(x: Tensor, norm: InstanceNorm, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return norm.gain * centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() + norm.bias


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_norm_is_over_time_with_one_gain_and_bias(eps: float) -> None:
    x, norm = 3 + 0.1 * randn(2, 5, 7), perturbed(InstanceNorm(eps))
    assert [tuple(parameter.shape) for parameter in norm.parameters()] == [(), ()]
    torch.testing.assert_close(norm(x), norm_by_hand(x, norm, eps), atol=1e-12, rtol=0)


def test_the_norms_epsilon_is_an_argument_that_old_checkpoints_do_not_have() -> None:
    net = network(norm_eps=1e-3)
    record = describe(net)
    assert {norm.eps for norm in rebuild(record).modules() if isinstance(norm, InstanceNorm)} == {1e-3}
    del record["init_args"]["norm_eps"]
    assert {norm.eps for norm in rebuild(record).modules() if isinstance(norm, InstanceNorm)} == {1e-5}
    mixtures = 0.1 * randn(1, 100)
    assert not torch.allclose(net(mixtures), network()(mixtures), rtol=1e-3)


def test_block_by_hand() -> None:
    x, block = randn(2, 4, 9), perturbed(TemporalBlock(4, 6, kernel=3, dilation=2, scale=0.5))
    widen, act1, norm1, depthwise, act2, norm2, narrow = block.layers
    h = widen.scale * torch.einsum("oi,bin->bon", widen.convolution.weight[:, :, 0], x)
    h = norm_by_hand(torch.where(h > 0, h, act1.weight * h), norm1)
    padded = F.pad(h, (2, 2))
    taps = depthwise.weight[:, 0]
    h = depthwise.bias[:, None] + sum(taps[:, i, None] * padded[..., 2 * i : 2 * i + 9] for i in range(3))
    h = norm_by_hand(torch.where(h > 0, h, act2.weight * h), norm2)
    h = narrow.scale * torch.einsum("oi,bin->bon", narrow.convolution.weight[:, :, 0], h)
    torch.testing.assert_close(block(x), x + h, atol=1e-12, rtol=0)


def test_initial_scales_and_dilations() -> None:
    tcn: Any = TemporalNetwork(4, 6, 3, repeats=4, blocks=8, skip_residuals=True)
    blocks = [block for repeat in tcn.repeats for block in repeat]
    assert [block.layers[3].dilation[0] for block in blocks] == 4 * [1, 2, 4, 8, 16, 32, 64, 128]
    assert [block.layers[6].scale.item() for block in blocks] == pytest.approx([0.9**b for b in range(32)])
    assert [block.layers[1].weight.item() for block in blocks] == pytest.approx(32 * [0.1])
    assert len(tcn.skips) == 6


def test_skip_residuals_link_every_earlier_input_to_every_later_one() -> None:
    x, tcn = randn(2, 4, 9), perturbed(TemporalNetwork(4, 6, 3, repeats=4, blocks=1, skip_residuals=True))

    def link(j: int, k: int, value: Tensor) -> Tensor:
        skip = tcn.skips[f"{j}_{k}"]
        return skip.scale * (
            torch.einsum("oi,bin->bon", skip.convolution.weight[:, :, 0], value) + skip.convolution.bias[:, None]
        )

    first = x
    second = tcn.repeats[0](first) + link(0, 1, first)
    third = tcn.repeats[1](second) + link(0, 2, first) + link(1, 2, second)
    fourth = tcn.repeats[2](third) + link(0, 3, first) + link(1, 3, second) + link(2, 3, third)
    torch.testing.assert_close(tcn(x), tcn.repeats[3](fourth), atol=1e-12, rtol=0)
    plain = TemporalNetwork(4, 6, 3, repeats=4, blocks=1, skip_residuals=False).double()
    plain.load_state_dict(tcn.state_dict(), strict=False)
    torch.testing.assert_close(plain(x), nn.Sequential(*tcn.repeats)(x), atol=0, rtol=0)


@pytest.mark.parametrize(("frame", "hop", "length"), [(40, 20, 50), (12, 4, 21), (12, 4, 1)])
def test_filterbank_by_hand(frame: int, hop: int, length: int) -> None:
    net, x = network(frame=frame, hop=hop), randn(2, length)
    coefficients = net.filterbank.encode(x)
    padded = F.pad(x, (frame - hop, -length % hop + frame - hop))
    frames = padded.unfold(1, frame, hop)
    torch.testing.assert_close(
        coefficients, torch.relu(frames @ net.filterbank.encoder.weight[:, 0].T).transpose(1, 2), atol=1e-12, rtol=0
    )
    logits = randn(2, 3 * 12, frames.shape[1])
    out = torch.zeros(2, 3, padded.shape[1], dtype=torch.float64)
    for m, n in itertools.product(range(3), range(frames.shape[1])):
        masks = 1 / (1 + (-logits[:, 12 * m : 12 * m + 12, n]).exp())
        out[:, m, n * hop : n * hop + frame] += masks * coefficients[:, :, n] @ net.filterbank.decoder.weight[:, 0]
    expected = out[..., frame - hop : frame - hop + length]
    torch.testing.assert_close(net.filterbank.decode(logits, coefficients, length), expected, atol=1e-12, rtol=0)


def test_consistency_weights() -> None:
    features, weights = randn(2, 8, 5), ConsistencyWeights(8, 3).double()
    logits = features.mean(-1) @ weights.linear.weight.T + weights.linear.bias
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(weights(features), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [1, 20, 333])
def test_estimates_sum_to_the_mixture(length: int) -> None:
    mixtures = randn(2, length)
    estimates = network()(mixtures)
    assert estimates.shape == (2, 3, length)
    torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-12, rtol=0)


def test_residual_is_shared_by_weight() -> None:
    net, mixtures = network(), randn(2, 200)
    scale = mixtures.pow(2).mean(1, keepdim=True).sqrt()
    coefficients = net.filterbank.encode(mixtures / scale)
    features = net.tcn(net.dense(coefficients))
    raw = scale[..., None] * net.filterbank.decode(net.masks(features), coefficients, 200)
    residual = (mixtures - raw.sum(1))[:, None]
    weights = net.consistency(features)
    assert (weights - 1 / 3).abs().max() > 1e-3
    torch.testing.assert_close(net(mixtures), raw + weights[..., None] * residual, atol=1e-12, rtol=0)


def test_a_gain_on_the_mixture_is_a_gain_on_the_estimates() -> None:
    net, mixtures = network(), randn(2, 100)
    expected = net(mixtures)
    for gain in (1e-4, 300.0):
        torch.testing.assert_close(net(gain * mixtures) / gain, expected, atol=1e-6, rtol=0)
    assert (net(0 * mixtures) == 0).all()


def test_examples_of_a_batch_do_not_mix() -> None:
    net, mixtures = network(skip_residuals=True), randn(3, 100)
    torch.testing.assert_close(net(mixtures), torch.cat([net(row) for row in mixtures.split(1)]), atol=1e-12, rtol=0)


def test_bfloat16_autocast() -> None:
    net, mixtures = network(skip_residuals=True).float(), randn(2, 400).float()
    with torch.autocast("cpu", torch.bfloat16):
        estimates = net(mixtures)
    assert estimates.dtype == torch.float32
    torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-5, rtol=0)
    estimates.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert (estimates - net(mixtures)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"hop": 15}, "frame 40 must be a multiple .* of hop 15"),
        ({"hop": 40}, "frame 40 must be a multiple .* of hop 40"),
        ({"kernel": 2}, "kernel 2 must be odd"),
    ],
)
def test_unusable_sizes_are_refused(sizes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ConvTasNet(2, 2, **sizes)
