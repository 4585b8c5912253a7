"""The Conv-TasNet on magnitudes against torch's own STFT and its inverse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Conv1d, GroupNorm

from surf_lightning.inference.checkpoint import describe, rebuild
from surf_lightning.networks import STFTConvTasNet
from surf_lightning.networks.stft import ratio_masks
from tests.tiny import perturbed

TINY: dict[str, Any] = {"n_fft": 64, "hop": 16, "bottleneck": 6, "hidden": 8, "repeats": 2, "blocks": 2}


def network(num_outputs: int = 3, **changes: Any) -> STFTConvTasNet:
    torch.manual_seed(0)
    return perturbed(STFTConvTasNet(num_outputs, **{**TINY, **changes}).double())


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_estimates_are_masked_magnitudes_with_the_mixtures_phases() -> None:
    """By torch.stft and torch.istft, magnitude and phase apart; the least-squares inverse is theirs too."""
    net, mixture = network(), noise(1, 400)
    window = torch.hann_window(64, dtype=torch.float64)
    spectrum = torch.stft(mixture, 64, 16, window=window, pad_mode="constant", return_complex=True)[0]
    heard = spectrum.abs() / window.norm() / mixture.square().mean().sqrt()
    raw = net.masks(heard[None])[0].unflatten(0, (3, 33)).sigmoid()
    assert raw.std() > 0.01  # not vacuous
    for found, mask in zip(net(mixture)[0], raw / raw.sum(0), strict=True):
        polar = torch.polar(mask * spectrum.abs(), spectrum.angle())
        torch.testing.assert_close(found, torch.istft(polar, 64, 16, window=window, length=400), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 63, 64, 1000])
def test_any_length_sums_to_the_mixture_and_a_gain_is_a_gain(length: int) -> None:
    net, mixtures = network(), noise(2, length)
    estimates = net(mixtures)
    assert estimates.shape == (2, 3, length)
    torch.testing.assert_close(estimates.sum(1), mixtures, rtol=0, atol=1e-6)
    torch.testing.assert_close(net(1e-3 * mixtures), 1e-3 * estimates, rtol=0, atol=1e-8)


def test_the_masks_come_from_conv_tasnets_blocks_with_skips() -> None:
    """Written out: 1x1, PReLU, norm over all, dilated depthwise, PReLU, norm; 1x1 to the next block and to the sum."""
    net = network().masks
    x = noise(1, 33, 20).abs()

    def norm(x: Tensor, at: GroupNorm) -> Tensor:
        return (x - x.mean()) / x.var(unbiased=False).sqrt() * at.weight[:, None] + at.bias[:, None]

    def pointwise(x: Tensor, at: Conv1d) -> Tensor:
        return at.weight[:, :, 0] @ x + at.bias[:, None]

    h = pointwise(norm(x[0], net.first[0]), net.first[1])
    total = torch.zeros_like(h)
    for number, block in enumerate(net.blocks):
        expand, prelu, first, depthwise, second_prelu, second = block.layers
        inside = norm(prelu(pointwise(h, expand)), first)
        dilation = (1, 2, 1, 2)[number]
        padded = torch.cat([torch.zeros(8, dilation), inside, torch.zeros(8, dilation)], 1)
        taps = [depthwise.weight[:, 0, k, None] * padded[:, k * dilation : k * dilation + 20] for k in range(3)]
        inside = norm(second_prelu(sum(taps) + depthwise.bias[:, None]), second)
        total = total + pointwise(inside, block.skip)
        h = h if number == 3 else h + pointwise(inside, block.residual)
    assert net.blocks[3].residual is None
    torch.testing.assert_close(net(x)[0], pointwise(net.last[0](total), net.last[1]), rtol=0, atol=1e-6)


def test_silence_stays_silence() -> None:
    assert torch.equal(network()(torch.zeros(1, 200, dtype=torch.float64)), torch.zeros(1, 3, 200).double())


def test_shares_sum_to_one_but_of_nothing_they_are_nothing() -> None:
    shares = ratio_masks(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]))
    assert shares.tolist() == [[[0.25, 0.0], [0.75, 0.0]]]


def test_untrained_estimates_are_nearly_copies_of_the_mixture() -> None:
    """What MixCycle begins with (Eq. (7) and (8) of its paper)."""
    torch.manual_seed(0)
    mixtures = noise(1, 8000).float()
    for estimate in STFTConvTasNet(2)(mixtures)[0]:
        cosine = torch.nn.functional.cosine_similarity(estimate, mixtures[0], dim=0)
        assert cosine > 0.9


def test_the_papers_size_and_a_checkpoints_record() -> None:
    """X = 4 and R = 3, 128 and 512 channels of Conv-TasNet's best configuration (Luo and Mesgarani, 2019)."""
    with torch.device("meta"):
        net = rebuild(describe(STFTConvTasNet(2)))
    assert (net.stft.n_fft, net.stft.hop, len(net.masks.blocks)) == (512, 128, 12)
    block = 128 * 512 + 512 + 2 * (1 + 2 * 512) + 512 * 3 + 512 + (512 * 128 + 128) * 2
    ends = 2 * 257 + (257 * 128 + 128) + 1 + (128 * 2 * 257 + 2 * 257)
    assert sum(parameter.numel() for parameter in net.parameters()) == 12 * block - (512 * 128 + 128) + ends
