"""MB-TFLocoformer and its layers against independent float64 computations.

Axes: B batch, S sources, N frames, F bands.
"""

from __future__ import annotations

import cmath
import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surf_lightning.networks import locoformer_layers
from surf_lightning.networks.base import Head, SourceHead, VelocityHead
from surf_lightning.networks.locoformer import Locoformer, LocoformerBlock, MBLocoformer, RegressionLocoformer
from surf_lightning.networks.locoformer_layers import (
    AdaptiveResidual,
    ConvolutionalAttention,
    ConvSwiGLU,
    Residual,
    RMSGroupNorm,
    TimeEmbedding,
    attend,
    identity,
    rotate,
)
from surf_lightning.networks.stft import rms

TINY: dict[str, Any] = {
    "features": 8, "attention": 8, "heads": 2, "hidden": 6, "blocks": 2, "mel_bands": 4, "n_fft": 32, "hop": 16
}  # fmt: skip
AUDIOSET: dict[str, Any] = {"features": 384, "attention": 96, "heads": 4, "hidden": 192}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def perturbed(module: nn.Module) -> Any:
    """In float64, no weight zero or one: closed gates would make every test of a block pass."""
    for index, parameter in enumerate(module.double().parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        parameter.data += 0.3 * noise
    return module


def velocity_network(num_sources: int = 3, **changes: Any) -> MBLocoformer:
    torch.manual_seed(0)
    return perturbed(MBLocoformer(num_sources, **{**TINY, **changes}))


def regression_network(**changes: Any) -> RegressionLocoformer:
    torch.manual_seed(0)
    return perturbed(RegressionLocoformer(3, 2, **{**TINY, **changes}))


def flow_state(batch: int = 2, num_sources: int = 3, length: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    x_t = randn(batch, num_sources, length)
    return x_t, torch.linspace(0, 0.9, batch, dtype=torch.float64), x_t.sum(1)


# --- layers ---


def test_norm_of_groups() -> None:
    x, norm = randn(2, 3, 8), perturbed(RMSGroupNorm(8))
    grouped = x.reshape(2, 3, 4, 2)
    expected = (grouped / (grouped.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5)).reshape(2, 3, 8) * norm.gain
    torch.testing.assert_close(norm(x), expected, atol=1e-12, rtol=0)
    silence = torch.zeros(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(RMSGroupNorm(8)(silence).sum(), silence)
    assert gradient.isfinite().all()
    assert norm(x.bfloat16()).dtype == torch.float64  # bfloat16 never holds a norm


def rotated_by_hand(tokens: Tensor) -> Tensor:
    """RoPE as the product with complex exponentials."""
    length, dim = tokens.shape[-3], tokens.shape[-1]
    pairs = torch.complex(tokens[..., : dim // 2], tokens[..., dim // 2 :])
    turns = [[cmath.exp(1j * p * 10000 ** (-2 * i / dim)) for i in range(dim // 2)] for p in range(length)]
    turned = pairs * torch.tensor(turns, dtype=torch.complex128)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def test_rotation_turns_pairs_and_only_differences_of_position_count() -> None:
    tokens = randn(2, 6, 3, 8)
    torch.testing.assert_close(rotate(tokens), rotated_by_hand(tokens), atol=1e-12, rtol=0)
    query, key = (rotate(randn(1, 1, count).expand(6, 1, count)[..., :8]) for count in (8, 9))
    products = torch.einsum("ihd,jhd->ij", query, key)
    for offset in range(-5, 6):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12, rtol=0)
    assert products[0].std() > 0.1
    assert rotate(tokens.bfloat16()).dtype == torch.bfloat16


def attention_by_hand(tokens: Tensor) -> Tensor:
    """``tokens [L,3,h,d]`` (queries, keys, values) -> ``[L,h*d]``."""
    heads = []
    for h in range(tokens.shape[2]):
        q, k, v = tokens[:, :, h].unbind(1)
        scores = (q @ k.T / q.shape[-1] ** 0.5).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ v)
    return torch.cat(heads, -1)


def qkv_by_hand(layer: ConvolutionalAttention, x: Tensor) -> Tensor:
    """Convolution over frames and bands as a sum over its taps, each source alone, ``[B,S,N,F,3,h,d]``."""
    weight = layer.qkv.weight
    kn, kf = weight.shape[2:]
    out = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=x.dtype)
    frames, bands = x.shape[2:4]
    for n, f, i, j in itertools.product(range(frames), range(bands), range(kn), range(kf)):
        m, g = n + i - kn // 2, f + j - kf // 2
        if 0 <= m < frames and 0 <= g < bands:
            out[:, :, n, f] += x[:, :, m, g] @ weight[:, :, i, j].T
    return out.unflatten(-1, (3, layer.heads, -1))


def rotated_queries_and_keys(tokens: Tensor) -> Tensor:
    """``tokens [L,3,h,d]`` with queries and keys at positions 0..L-1."""
    queries, keys, values = tokens.unbind(1)
    return torch.stack([rotated_by_hand(queries), rotated_by_hand(keys), values], 1)


def test_band_source_attention_by_hand() -> None:
    x, block = randn(2, 3, 4, 5, 8), perturbed(LocoformerBlock(Residual, 8, 4, 2, 6, 3, (3, 1), 2))
    layer = block.layers[0].branch
    assert layer.qkv.kernel_size == (3, 1)
    qkv, out = qkv_by_hand(layer, x), layer(x)
    for b, n in itertools.product(range(2), range(4)):
        tokens = torch.cat(
            [rotated_queries_and_keys(qkv[b, s, n]) for s in range(3)]
        )  # each source starts at position 0
        expected = (attention_by_hand(tokens) @ layer.out.weight.T).unflatten(0, (3, 5))
        torch.testing.assert_close(out[b, :, n], expected, atol=1e-12, rtol=0)


def test_time_source_attention_by_hand() -> None:
    x, block = randn(2, 3, 4, 5, 8), perturbed(LocoformerBlock(Residual, 8, 4, 2, 6, 3, (3, 5), 2))
    layer = block.layers[2].branch
    time, source = layer.first, layer.second
    assert (time.qkv.kernel_size, source.qkv.kernel_size) == ((1, 1), (3, 5))
    expected = torch.zeros_like(x)
    along_time, along_sources = qkv_by_hand(time, x), qkv_by_hand(source, x)
    for b, s, f in itertools.product(range(2), range(3), range(5)):
        tokens = rotated_queries_and_keys(along_time[b, s, :, f])
        expected[b, s, :, f] += attention_by_hand(tokens) @ time.out.weight.T
    for b, n, f in itertools.product(range(2), range(4), range(5)):
        expected[b, :, n, f] += attention_by_hand(along_sources[b, :, n, f]) @ source.out.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_attention_over_more_rows_than_a_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [randn(7, 5, 2, 4) for _ in range(3)]
    rows[1] = rows[1].flip(0)
    expected = torch.stack([attention_by_hand(torch.stack(tokens, 1)) for tokens in zip(*rows, strict=True)])
    for limit in (65535, 3, 1):
        monkeypatch.setattr(locoformer_layers, "_LARGEST_BATCH", limit)
        torch.testing.assert_close(attend(*rows), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_conv_swiglu_by_hand(axis: int, kernel: int) -> None:
    x = randn(2, 2, 5, 4, 3)
    layer = perturbed(ConvSwiGLU(3, 6, (kernel, 1) if axis == 2 else (1, kernel)))
    first, second = layer.expand.weight.flatten(2), layer.contract.weight.flatten(2)  # [2H,D,k], [H,D,k]
    lines = x.movedim(axis, 0)
    length = len(lines)
    zero = torch.zeros_like(lines[0])
    padded = [zero] * (kernel - 1) + list(lines) + [zero] * (kernel - 1)
    hidden = []
    for n in range(length + kernel - 1):
        both = layer.expand.bias + sum(padded[n + i] @ first[:, :, i].T for i in range(kernel))
        value, gate = both.chunk(2, -1)
        hidden.append(value * gate / (1 + (-gate).exp()))
    spread = [layer.contract.bias.expand_as(zero) for _ in range(len(hidden) + kernel - 1)]
    for n, i in itertools.product(range(len(hidden)), range(kernel)):
        spread[n + i] = spread[n + i] + hidden[n] @ second[:, :, i]
    expected = torch.stack(spread[kernel - 1 : kernel - 1 + length]).movedim(0, axis)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_convolutions_do_not_cross_sources() -> None:
    x, changed = randn(1, 3, 4, 5, 8), randn(1, 3, 4, 5, 8)
    changed[:, 1] += 1
    block = perturbed(LocoformerBlock(Residual, 8, 4, 2, 6, 3, (3, 3), 2))
    for feed_forward in (block.layers[1].branch, block.layers[3].branch):
        same = (feed_forward(x) == feed_forward(changed)).flatten(2).all(-1)[0]
        assert same.tolist() == [True, False, True]
    alone = ConvolutionalAttention(8, 4, 2, (3, 3), rows=(0, 1), position=identity).double()
    same = (alone(x) == alone(changed)).flatten(2).all(-1)[0]
    assert same.tolist() == [True, False, True]


def test_adaptive_residual_by_hand() -> None:
    x, embedding, layer = randn(2, 3, 4, 5, 8), randn(2, 8), AdaptiveResidual(8, nn.Linear(8, 8)).double()
    assert torch.equal(layer(x, embedding), x)
    perturbed(layer)
    expected = torch.empty_like(x)
    for b in range(2):
        shift, scale, gate = (layer.modulation.weight @ embedding[b] + layer.modulation.bias).split(8)
        expected[b] = x[b] + gate * layer.branch(layer.norm(x[b]) * (1 + scale) + shift)
    torch.testing.assert_close(layer(x, embedding), expected, atol=1e-12, rtol=0)


def test_time_embedding_tells_times_apart() -> None:
    embedding = TimeEmbedding(16)
    assert embedding.frequencies[[0, -1]].tolist() == pytest.approx([1, 256])
    times = embedding(torch.linspace(0, 1, 50))
    assert torch.pdist(times).min() > 1e-3


def test_checkpointing_changes_nothing() -> None:
    x, embedding = randn(2, 3, 4, 5, 8), randn(2, 8)
    block: dict[str, Any] = {"features": 8, "attention": 8, "heads": 2, "hidden": 6}
    block |= {"bsja_kernel": 3, "tspa_kernel": (3, 3), "ffn_kernel": 2}
    results = []
    for keep in (False, True):
        torch.manual_seed(0)
        trunk = perturbed(Locoformer(AdaptiveResidual, blocks=2, activation_checkpointing=keep, **block))
        out = trunk(x, embedding)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in trunk.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


# --- the velocity network ---


@pytest.mark.parametrize(("sizes", "expected"), [({}, 36_014_504), (AUDIOSET, 37_201_256)])
def test_parameters_of_the_velocity_network(sizes: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        network = MBLocoformer(4, **sizes)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == expected
    assert count == pytest.approx(36e6, rel=0.04)


@pytest.mark.parametrize(("sizes", "expected"), [({}, 33_137_192), (AUDIOSET, 25_990_760)])
def test_parameters_of_the_regression_network(sizes: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        network = RegressionLocoformer(4, 4, **sizes)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("head", [None, VelocityHead(), SourceHead()])
def test_velocity_is_equivariant_and_sums_to_zero(head: Head | None) -> None:
    network = velocity_network(head=head)
    x_t, t, mixtures = flow_state()
    velocity = network(x_t, t, mixtures)
    assert velocity.sum(1).abs().max() < 1e-12
    assert velocity.std(1).min() > 0
    for order in itertools.permutations(range(3)):
        torch.testing.assert_close(network(x_t[:, order], t, mixtures), velocity[:, order], atol=1e-10, rtol=0)


def test_velocity_depends_on_all_it_is_given() -> None:
    network = velocity_network()
    x_t, t, mixtures = flow_state()
    velocity = network(x_t, t, mixtures)
    other_sources = network(x_t + randn(2, 1, 100) * torch.tensor([1.0, -1.0, 0.0])[:, None], t, mixtures)
    assert (other_sources - velocity)[:, 2].abs().mean() > 1e-3  # the third source sees the other two
    assert (network(x_t, t + 0.05, mixtures) - velocity).abs().mean() > 1e-3
    assert (network(x_t, t, mixtures + randn(2, 100).flip(1)) - velocity).abs().mean() > 1e-3


def test_velocity_of_a_new_network_is_alive() -> None:
    """Neither zero nor with a vanishing gradient, as a zero-initialized decoder would give."""
    torch.manual_seed(0)
    network: Any = MBLocoformer(2, **TINY)
    x_t, t, mixtures = (z.float() for z in flow_state(num_sources=2))
    (network(x_t, t, mixtures) + x_t).square().mean().backward()
    assert network.decoder.weight.grad is not None
    assert network.decoder.weight.grad.abs().max() > 1e-4
    gates = [layer.modulation.weight.grad for block in network.trunk.blocks for layer in block.layers]
    assert all(gradient.abs().max() > 1e-7 for gradient in gates)


def test_examples_of_a_batch_do_not_mix() -> None:
    network, (x_t, t, mixtures) = velocity_network(), flow_state()
    mixtures[1] *= 100
    rows = [network(x_t[b : b + 1], t[b : b + 1], mixtures[b : b + 1]) for b in range(2)]
    torch.testing.assert_close(network(x_t, t, mixtures), torch.cat(rows), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("length", [1, 15, 16, 33])
def test_any_length(length: int) -> None:
    x_t, t, mixtures = flow_state(length=length)
    velocity = velocity_network()(x_t, t, mixtures)
    assert velocity.shape == x_t.shape
    assert velocity.isfinite().all()
    estimates = regression_network()(mixtures)
    torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-12, rtol=0)


def test_a_gain_on_the_input_is_a_gain_on_the_velocity() -> None:
    network, (x_t, t, mixtures) = velocity_network(), flow_state()
    velocity = network(x_t, t, mixtures)
    for gain in (0.01, 300.0):
        torch.testing.assert_close(network(gain * x_t, t, gain * mixtures) / gain, velocity, atol=1e-6, rtol=0)
    assert (network(0 * x_t, t, 0 * mixtures)).abs().max() < 1e-6


def test_weight_of_the_residual_is_the_heads() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    assert velocity_network().residual_weight(t).tolist() == [1, 1, 1]
    assert velocity_network(head=SourceHead()).residual_weight(t).tolist() == [1, 0.75, 0]


# --- both networks ---


def test_slots_differ_and_estimates_sum_to_the_mixture() -> None:
    network, mixtures = regression_network(), randn(2, 100)
    estimates = network(mixtures)
    torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-12, rtol=0)
    for i, j in itertools.combinations(range(3), 2):
        assert (estimates[:, i] - estimates[:, j]).abs().mean() > 1e-2
    shuffled = copy.deepcopy(network)
    shuffled.slots.data = network.slots.data[[2, 0, 1]]
    torch.testing.assert_close(shuffled(mixtures), estimates[:, [2, 0, 1]], atol=1e-10, rtol=0)
    torch.testing.assert_close(network(300 * mixtures) / 300, estimates, atol=1e-6, rtol=0)
    assert (network(0 * mixtures)).abs().max() < 1e-6


def test_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    velocity_net, regression_net = MBLocoformer(3, **TINY), RegressionLocoformer(3, 2, **TINY)
    for layer in velocity_net.modules():
        if isinstance(layer, AdaptiveResidual):
            nn.init.normal_(layer.modulation.weight, std=0.1)
            nn.init.constant_(layer.modulation.bias, 0.5)
    x_t, t, mixtures = (z.float() for z in flow_state())
    with torch.autocast("cpu", torch.bfloat16):
        velocity, estimates = velocity_net(x_t, t, mixtures), regression_net(mixtures)
    assert velocity.dtype == estimates.dtype == torch.float32
    assert velocity.sum(1).abs().max() < 1e-4 * velocity.abs().max()
    torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-4, rtol=0)
    (velocity.square().mean() + estimates.square().mean()).backward()
    for network in (velocity_net, regression_net):
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    with torch.no_grad():
        assert rms((velocity - velocity_net(x_t, t, mixtures)).flatten()) < 0.03 * rms(velocity.flatten())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"features": 6}, "multiple of the norms"),
        ({"attention": 6}, "even number of channels"),
        ({"bsja_kernel": 4}, "must be odd"),
        ({"tspa_kernel": (5, 2)}, "must be odd"),
        ({"mel_bands": 40}, "lower mel_bands"),
        ({"hop": 17}, "n_fft must be even"),
    ],
)
def test_unusable_sizes_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MBLocoformer(2, **{**TINY, **sizes})


def test_constructor_arguments_are_recorded() -> None:
    network: Any = velocity_network(head=SourceHead())
    again = MBLocoformer(**network.init_args)
    again.double().load_state_dict(network.state_dict())
    x_t, t, mixtures = flow_state()
    assert torch.equal(again(x_t, t, mixtures), network(x_t, t, mixtures))


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_more_rows_than_a_cuda_grid_takes(dtype: torch.dtype) -> None:
    rows = [torch.randn(70000, 3, 2, 8, dtype=dtype, device="cuda", requires_grad=True) for _ in range(3)]
    out = attend(*rows)
    out.float().sum().backward()
    expected = attend(*(row[-5:] for row in rows))
    torch.testing.assert_close(out[-5:], expected, atol=1e-2, rtol=0)
    assert rows[0].grad is not None
    assert rows[0].grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_velocity_is_the_same_on_a_gpu() -> None:
    network = velocity_network()
    x_t, t, mixtures = flow_state()
    expected = network(x_t, t, mixtures)
    velocity = network.cuda()(x_t.cuda(), t.cuda(), mixtures.cuda()).cpu()
    torch.testing.assert_close(velocity, expected, atol=1e-8, rtol=0)
