"""NCSN++ against independent float64 computations. Axes: B batch, K sources, N items, C H W the image."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surf_lightning.networks.base import SourceHead, VelocityHead
from surf_lightning.networks.image_layers import Attention, FIRDown, FIRUp, FourierTime, Frame, ResBlock, default_init_
from surf_lightning.networks.ncsnpp import LogSigma, NCSNpp, RegressionNCSNpp, SharedNCSNpp

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
SIZE = 8


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def perturbed(module: nn.Module, seed: int = 0) -> Any:
    """``module`` with noise on every parameter that starts at (next to) zero, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.abs().max() < 1e-4:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return module.double().eval()


def flow_inputs(batch: int = 3, num_sources: int = 2, channels: int = 1, size: int = SIZE) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, num_sources, channels, size, size, generator=generator, dtype=torch.float64)
    return x_t, torch.linspace(0.0, 0.9, batch, dtype=torch.float64), x_t.sum(1)


# ---- layers -------------------------------------------------------------------------------------------------------


def upfirdn(x: Tensor, kernel: Tensor, up: int, down: int, pads: tuple[int, int]) -> Tensor:
    """Zero insertion, padding, true convolution (flipped kernel) and decimation, from their definitions."""
    n, c, height, width = x.shape
    spread = x.new_zeros(n, c, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    before, after = pads
    padded = x.new_zeros(n, c, height * up + before + after, width * up + before + after)
    padded[:, :, before : before + height * up, before : before + width * up] = spread
    taps = kernel.shape[0]
    rows, columns = padded.shape[2] - taps + 1, padded.shape[3] - taps + 1
    out = x.new_zeros(n, c, rows, columns)
    for i, j in itertools.product(range(taps), range(taps)):
        out += kernel[taps - 1 - i, taps - 1 - j] * padded[:, :, i : i + rows, j : j + columns]
    return out[:, :, ::down, ::down]


def test_fir_resampling_equals_upfirdn() -> None:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    kernel = torch.outer(taps, taps) / 64
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(FIRDown().double()(x), upfirdn(x, kernel, 1, 2, (1, 1)), rtol=0, atol=1e-14)
    torch.testing.assert_close(FIRUp().double()(x), upfirdn(x, 4 * kernel, 2, 1, (2, 1)), rtol=0, atol=1e-14)


def group_norm_by_hand(x: Tensor, norm: nn.GroupNorm, groups: int) -> Tensor:
    n, c, height, width = x.shape
    grouped = x.reshape(n, groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled.reshape(n, c, height, width) * norm.weight[:, None, None] + norm.bias[:, None, None]


def convolve_by_hand(x: Tensor, layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    weight, half = layer.weight, layer.weight.shape[-1] // 2
    height, width = x.shape[2:]
    padded = x.new_zeros(*x.shape[:2], height + 2 * half, width + 2 * half)
    padded[:, :, half : half + height, half : half + width] = x
    out = layer.bias[None, :, None, None].expand(x.shape[0], -1, height, width).clone()
    for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        out += torch.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return out


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize("resample", [None, FIRDown, FIRUp])
@pytest.mark.parametrize(("inner", "outer"), [(8, 8), (12, 24)])
@pytest.mark.parametrize("embedding_size", [None, 16])
@torch.no_grad()
def test_res_block_recomputed(
    resample: type[FIRDown] | type[FIRUp] | None, inner: int, outer: int, embedding_size: int | None
) -> None:
    block = perturbed(ResBlock(inner, outer, embedding_size, 0.1, None if resample is None else resample()))
    x = torch.randn(2, inner, 4, 6, dtype=torch.float64)
    embedding = None if embedding_size is None else torch.randn(2, embedding_size, dtype=torch.float64)

    change = (lambda y: y) if resample is None else resample().double()
    h = convolve_by_hand(change(silu(group_norm_by_hand(x, block.norm1, inner // 4))), block.conv1)
    if block.condition is not None:
        h = h + (embedding @ block.condition.weight.T + block.condition.bias).reshape(2, outer, 1, 1)
    h = convolve_by_hand(silu(group_norm_by_hand(h, block.norm2, outer // 4)), block.conv2)
    # A projection is on the skip where width or size changes.
    projected = inner != outer or resample is not None
    assert (block.skip is not None) == projected
    skip = convolve_by_hand(change(x), block.skip) if projected else x
    torch.testing.assert_close(block(x, embedding), (skip + h) / math.sqrt(2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("group", [1, 3])
@torch.no_grad()
def test_attention_recomputed(group: int) -> None:
    layer = perturbed(Attention(8))
    x = torch.randn(6, 8, 2, 3, dtype=torch.float64)
    normed = group_norm_by_hand(x, layer.norm, 2)
    weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
    expected = torch.empty_like(x)
    for start in range(0, 6, group):
        tokens = torch.cat([normed[n].reshape(8, 6).T for n in range(start, start + group)])
        query, key, value = (tokens @ w.T + b for w, b in zip(weights, biases, strict=True))
        logits = (query @ key.T / math.sqrt(8)).exp()
        h = (logits / logits.sum(1, keepdim=True)) @ value @ layer.out.weight.T + layer.out.bias
        for index in range(group):
            image = h[6 * index : 6 * index + 6].T.reshape(8, 2, 3)
            expected[start + index] = (x[start + index] + image) / math.sqrt(2)
    torch.testing.assert_close(layer(x, group), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_time_embedding_recomputed() -> None:
    layer = perturbed(FourierTime(6))
    value = torch.tensor([-2.9, -0.7], dtype=torch.float64)
    angle = 2 * math.pi * torch.outer(value, layer.frequencies)
    e = torch.cat([angle.sin(), angle.cos()], dim=1)
    hidden = silu(e @ layer.hidden.weight.T + layer.hidden.bias)
    torch.testing.assert_close(layer(value), silu(hidden @ layer.out.weight.T + layer.out.bias))
    assert "frequencies" in layer.state_dict()
    assert 13 < FourierTime(256).frequencies.std() < 19


# ---- initialization -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0])
def test_default_init_bounds(scale: float) -> None:
    weight = default_init_(torch.empty(48, 16, 3, 3), scale)
    bound = math.sqrt(3 * (scale or 1e-10) / ((48 * 9 + 16 * 9) / 2))
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.05)


def test_initial_scales_of_the_network() -> None:
    """Block, attention and head outputs start close to zero; q, k, v at a tenth; all else at full variance."""
    net = NCSNpp(3, 3, SIZE, 16, (1, 2), 1, (4,))
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            zero = name.endswith(("conv2", "attention.out")) or (name.startswith("heads") and name.endswith("2"))
            scale = 1e-10 if zero else 0.1 if name.endswith("qkv") else 1.0
            weight = module.weight[: len(module.weight) // 3] if name.endswith("qkv") else module.weight
            fan_average = (weight.shape[0] + weight.shape[1]) / 2 * math.prod(weight.shape[2:])
            bound = math.sqrt(3 * scale / fan_average)
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
            assert module.bias is not None
            assert not module.bias.any(), name


# ---- the trunk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "outer", "conditional", "count"),
    [
        (3, 3, True, 15_837_004),
        (9, 6, True, 15_854_488),
        (3, 6, False, 14_467_352),
        (3, 2, True, 15_832_968),
        (1, 2, False, 14_449_416),
        (6, 3, True, 15_839_692),
        (2, 1, True, 15_828_036),
    ],
)
def test_parameter_counts(inner: int, outer: int, conditional: bool, count: int) -> None:
    with torch.device("meta"):
        net = NCSNpp(inner, outer, 32, conditional=conditional)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(b.numel() for name, b in net.named_buffers() if name.endswith("frequencies")) == 64 * conditional


@torch.no_grad()
def test_input_pyramid() -> None:
    """Each level starts from the block above plus a 1x1 convolution of the low-passed input, without a factor."""
    net = perturbed(NCSNpp(2, 1, 16, 8, (1, 1, 2), 1, ()))
    seen: dict[int, Tensor] = {}
    for level, stack in enumerate(net.down_blocks):
        stack[0].register_forward_pre_hook(lambda module, args, level=level: seen.__setitem__(level, args[0]))
    for level, down in enumerate(net.downs, start=1):
        down.register_forward_hook(lambda module, args, out, level=level: seen.__setitem__(-level, out))
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    net(x, torch.zeros(2, dtype=torch.float64))
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    for level in (1, 2):
        x = upfirdn(x, torch.outer(taps, taps), 1, 2, (1, 1))
        torch.testing.assert_close(seen[level], seen[-level] + convolve_by_hand(x, net.combines[level - 1]))


@torch.no_grad()
def test_output_pyramid() -> None:
    """The output is the sum of every level's head, upsampled by the FIR kernel."""
    net = perturbed(NCSNpp(2, 3, 16, 8, (1, 1, 2), 1, (8,)))
    maps: list[Tensor] = []
    for head in net.heads:
        head.register_forward_hook(lambda module, args, out: maps.append(out))
    out = net(torch.randn(2, 2, 16, 16, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert [m.shape[-1] for m in maps] == [4, 8, 16]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
    expected = maps[0]
    for finer in maps[1:]:
        expected = upfirdn(expected, torch.outer(taps, taps), 2, 1, (2, 1)) + finer
    torch.testing.assert_close(out, expected)


def test_attention_only_where_asked() -> None:
    net: Any = NCSNpp(1, 1, 32, 8, (1, 1, 1), 2, (16, 5))
    assert [[b.attention is not None for b in stack] for stack in net.down_blocks] == [
        [False] * 2,
        [True] * 2,
        [False] * 2,
    ]
    assert [b.attention is not None for b in net.middle] == [True, False]
    up = [[b.attention is not None for b in stack] for stack in net.up_blocks]
    assert up == [[False] * 3, [False, False, True], [False] * 3]


@torch.no_grad()
def test_sizes_that_cannot_be_halved_are_padded_inside() -> None:
    """With the background, to the next size that can be halved: 7x7 to 8x8."""
    net = perturbed(NCSNpp(1, 1, 7, 8, (1, 1), 1, ()))
    larger = NCSNpp(1, 1, 8, 8, (1, 1), 1, ()).double()
    larger.load_state_dict(net.state_dict())
    x, time = torch.randn(2, 1, 7, 7, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), value=-1.0)
    torch.testing.assert_close(net.eval()(x, time), larger.eval()(padded, time)[..., :7, :7])


@torch.no_grad()
def test_channels_last_computes_the_same() -> None:
    net = perturbed(NCSNpp(2, 2, SIZE, 8, (1, 2), 1, (4,)))
    x, time = torch.randn(4, 2, SIZE, SIZE, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    expected = net(x, time, 2)
    net = net.to(memory_format=torch.channels_last)
    out = net(x.contiguous(memory_format=torch.channels_last), time, 2)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


# ---- flow networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_sources", [2, 3])
@torch.no_grad()
def test_the_velocity_is_permutation_equivariant(num_sources: int) -> None:
    x_t, t, mixtures = flow_inputs(num_sources=num_sources)
    net = perturbed(SharedNCSNpp(num_sources, 1, SIZE, **SMALL))
    velocity = net(x_t, t, mixtures)
    assert velocity.std(1).mean() > 0.05
    for order in itertools.permutations(range(num_sources)):
        torch.testing.assert_close(net(x_t[:, order], t, mixtures), velocity[:, order], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("num_sources", "coupled"), [(2, False), (3, True)])
@torch.no_grad()
def test_attention_couples_the_sources_beyond_two(num_sources: int, coupled: bool) -> None:
    x_t, t, mixtures = flow_inputs(num_sources=num_sources)
    net = perturbed(SharedNCSNpp(num_sources, 1, SIZE, **SMALL))
    raw: list[Tensor] = []
    net.head.register_forward_pre_hook(lambda module, args: raw.append(args[0]))
    changed = x_t.clone()
    changed[:, -1] += torch.randn_like(changed[:, -1])
    net(x_t, t, mixtures)
    net(changed, t, mixtures)
    for source in range(num_sources - 1):
        assert ((raw[0] - raw[1])[:, source].abs().max() > 1e-5) == coupled
    assert (raw[0] - raw[1])[:, -1].abs().max() > 1e-2


@torch.no_grad()
def test_examples_do_not_mix() -> None:
    x_t, t, mixtures = flow_inputs(num_sources=3)
    net = perturbed(SharedNCSNpp(3, 1, SIZE, **SMALL))
    alone = torch.cat([net(x_t[b : b + 1], t[b : b + 1], mixtures[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(net(x_t, t, mixtures), alone)


@pytest.mark.parametrize(("num_sources", "channels", "size"), [(2, 3, 8), (3, 1, 7)])
@torch.no_grad()
def test_velocity_sums_to_zero(num_sources: int, channels: int, size: int) -> None:
    net = perturbed(SharedNCSNpp(num_sources, channels, size, **SMALL))
    x_t, t, mixtures = flow_inputs(2, num_sources, channels, size)
    velocity = net(x_t, t, mixtures)
    assert velocity.shape == x_t.shape
    assert velocity.abs().mean() > 0.05
    assert velocity.sum(1).abs().max() < 1e-12
    assert torch.equal(net.residual_weight(t), torch.ones_like(t))


@torch.no_grad()
def test_source_head_predicts_consistent_sources() -> None:
    net = perturbed(SharedNCSNpp(3, 1, SIZE, **SMALL, head=SourceHead(), scale_by_sigma=False))
    x_t, t, mixtures = flow_inputs(num_sources=3)
    raw: list[Tensor] = []
    net.head.register_forward_pre_hook(lambda module, args: raw.append(args[0]))
    velocity = net(x_t, t, mixtures)
    assert velocity.sum(1).abs().max() < 1e-11
    consistent = raw[0] + (mixtures - raw[0].sum(1))[:, None] / 3
    predicted = x_t + (1 - t).reshape(-1, 1, 1, 1, 1) * velocity
    torch.testing.assert_close(predicted, consistent, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.residual_weight(t), 1 - t)
    assert net(x_t, torch.ones_like(t), mixtures).isfinite().all()


@torch.no_grad()
def test_log_sigma() -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    sigma = LogSigma(0.05, 0.5)(t).exp()
    torch.testing.assert_close(sigma, torch.tensor([0.5, math.sqrt(0.025), 0.05], dtype=torch.float64))


@torch.no_grad()
def test_layers_see_log_sigma() -> None:
    net = perturbed(SharedNCSNpp(2, 1, SIZE, **SMALL, time=LogSigma(0.1, 0.4), scale_by_sigma=False))
    seen: list[Tensor] = []
    net.trunk.embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x_t, t, mixtures = flow_inputs()
    net(x_t, t, mixtures)
    expected = torch.log(0.4 ** (1 - t) * 0.1**t)
    torch.testing.assert_close(seen[0], torch.stack([expected, expected], 1).flatten())


@torch.no_grad()
def test_scale_by_sigma_divides_the_velocity() -> None:
    scaled = perturbed(SharedNCSNpp(2, 1, SIZE, **SMALL))
    plain = perturbed(SharedNCSNpp(2, 1, SIZE, **SMALL, scale_by_sigma=False))
    plain.load_state_dict(scaled.state_dict())
    x_t, t, mixtures = flow_inputs()
    sigma = (0.5 ** (1 - t) * 0.05**t).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(scaled(x_t, t, mixtures), plain(x_t, t, mixtures) / sigma)


def test_scale_by_sigma_of_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="scale_by_sigma=False"):
        SharedNCSNpp(2, 1, SIZE, **SMALL, head=SourceHead())


@torch.no_grad()
def test_padding_of_28() -> None:
    net = perturbed(SharedNCSNpp(2, 1, 28, channels=8, multipliers=(1, 1, 1, 1), blocks=1, head=VelocityHead()))
    x_t, t, mixtures = flow_inputs(2, size=28)
    seen: list[Tensor] = []
    net.trunk.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    velocity = net(x_t, t, mixtures)
    assert velocity.shape == x_t.shape
    assert seen[0].shape[-2:] == (32, 32)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (seen[0][..., border] == -1).all()
    inside = seen[0][..., 2:30, 2:30]
    assert torch.equal(inside[:, 0].reshape(2, 2, 1, 28, 28), x_t)
    assert torch.equal(inside[:, 1].reshape(2, 2, 1, 28, 28), (mixtures / 2)[:, None].expand_as(x_t))
    # No output shows what the trunk puts on the padding.
    net.trunk.heads[-1].register_forward_hook(lambda module, args, out: torch.where(border, out.new_tensor(1e6), out))
    assert torch.equal(net(x_t, t, mixtures), velocity)


@pytest.mark.parametrize(("size", "halvings", "padded"), [(28, 3, 32), (28, 2, 28), (7, 1, 8), (13, 3, 16)])
def test_frame(size: int, halvings: int, padded: int) -> None:
    frame = Frame(size, halvings)
    x = torch.randn(2, 3, 1, size, size)
    assert frame.padded_size == padded
    out = frame.pad(x)
    assert out.shape[-2:] == (padded, padded)
    assert out.sum().item() == pytest.approx(x.sum().item() - 6 * (padded**2 - size**2), abs=1e-3)
    assert torch.equal(frame.crop(out), x)


# ---- regression ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_outputs", "num_sources", "channels", "size"), [(2, 2, 3, 8), (4, 2, 1, 7)])
@torch.no_grad()
def test_regression_is_mixture_consistent(num_outputs: int, num_sources: int, channels: int, size: int) -> None:
    net = RegressionNCSNpp(num_outputs, num_sources, channels, size, **SMALL).double().eval()
    mixtures = torch.randn(3, channels, size, size, dtype=torch.float64)
    share = (mixtures / num_outputs)[:, None].expand(-1, num_outputs, -1, -1, -1)
    torch.testing.assert_close(net(mixtures), share, rtol=0, atol=1e-3)

    perturbed(net)
    seen: list[Tensor] = []
    net.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.trunk.register_forward_hook(lambda module, args, out: seen.append(out))
    estimates = net(mixtures)
    torch.testing.assert_close(estimates.sum(1), mixtures)
    assert estimates.std(1).mean() > 0.05
    assert torch.equal(seen[0], mixtures / num_sources)
    # Consistency adds the same map to every output.
    raw = seen[1].unflatten(1, (num_outputs, channels))
    torch.testing.assert_close(estimates[:, 1:] - estimates[:, :1], raw[:, 1:] - raw[:, :1])


# ---- training and use ---------------------------------------------------------------------------------------------


def everything() -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    x_t, t, mixtures = flow_inputs(num_sources=3)
    return [
        (SharedNCSNpp(3, 1, SIZE, **SMALL), (x_t, t, mixtures)),
        (RegressionNCSNpp(4, 2, 1, SIZE, **SMALL), (mixtures,)),
    ]


def test_gradients_reach_every_parameter() -> None:
    for net, inputs in everything():
        perturbed(net)
        out = net(*inputs)
        (out * torch.randn_like(out)).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            # A head's bias adds the same to all sources, and the projection removes it.
            if not (isinstance(net, SharedNCSNpp) and name.startswith("trunk.heads") and name.endswith("2.bias")):
                assert parameter.grad.abs().max() > 1e-7, (type(net), name)


@torch.no_grad()
def test_bfloat16_autocast() -> None:
    for net, inputs in everything():
        perturbed(net).float()
        inputs = tuple(x.float() for x in inputs)
        exact = net(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(*inputs)
        assert out.dtype == torch.float32
        assert 0 < (out - exact).square().mean() < 1e-3 * exact.square().mean()
        torch.testing.assert_close(out.sum(1), exact.sum(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("resample", [FIRDown, FIRUp])
def test_resampling_is_in_float32_under_autocast(resample: type[FIRDown] | type[FIRUp]) -> None:
    layer, x = resample(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x), layer(x.bfloat16())
    torch.testing.assert_close(found, (layer(x), layer(x.bfloat16().float())), rtol=0, atol=0)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16  # a network of bfloat16 weights stays so


@torch.no_grad()
def test_dropout_in_train_mode_only() -> None:
    for net, inputs in everything():
        perturbed(net)
        assert torch.equal(net(*inputs), net(*inputs))
        net.train()
        assert not torch.equal(net(*inputs), net(*inputs))


@torch.no_grad()
def test_rebuilt_from_its_recorded_arguments() -> None:
    x_t, t, mixtures = flow_inputs()
    net = perturbed(SharedNCSNpp(2, 1, SIZE, **SMALL, head=SourceHead(), time=LogSigma(0.1, 0.4), scale_by_sigma=False))
    assert net.init_args["head"].init_args == {}
    assert net.init_args["time"].init_args == {"sigma_min": 0.1, "sigma_max": 0.4}
    again = SharedNCSNpp(**net.init_args).double().eval()
    again.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(again(x_t, t, mixtures), net(x_t, t, mixtures))
    assert torch.equal(copy.deepcopy(net)(x_t, t, mixtures), net(x_t, t, mixtures))


@pytest.mark.slow
@torch.no_grad()
def test_traced_as_one_graph() -> None:
    for net, inputs in everything():
        perturbed(net)
        expected = net(*inputs)
        torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(*inputs), expected)
        torch._dynamo.reset()


@torch.no_grad()
def test_patches_are_channels_of_the_network_within() -> None:
    """A network on patches of P x P is one of P² times the channels on the folded image."""
    options = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": ()}
    patched = NCSNpp(2, 3, image_size=14, patch_size=2, **options).eval()
    folded = NCSNpp(8, 12, image_size=7, **options).eval()
    folded.load_state_dict(patched.state_dict())
    for parameter in folded.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    patched.load_state_dict(folded.state_dict())
    x, time = torch.randn(3, 2, 14, 14), torch.rand(3)
    # Channel 4c + 2i + j holds the pixels of rows 2a + i and columns 2b + j.
    cells = x.reshape(3, 2, 7, 2, 7, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 8, 7, 7)
    expected = folded(cells, time).reshape(3, 3, 2, 2, 7, 7).permute(0, 1, 4, 2, 5, 3).reshape(3, 3, 14, 14)
    torch.testing.assert_close(patched(x, time), expected)


def test_images_that_patches_do_not_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of patch_size"):
        SharedNCSNpp(num_sources=2, image_channels=1, image_size=9, patch_size=2)
