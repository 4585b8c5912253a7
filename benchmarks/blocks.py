"""A block of each network against the same block written plainly, layer by layer as the papers' codes have it.

TF-Locoformer (Saijo et al., 2024): along the bands, then along the frames, feed-forward, attention, feed-forward.
NCSN++ (Song et al., 2021): a BigGAN residual block and attention over the pixels.
Axes: B batch, N frames, F bands, D features, R rows of L tokens, h heads, C H W the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from counting import count_flops
from machine import Machine, name
from rows import Timing
from timing import compare
from torch import Tensor, nn

from surf_lightning.networks.image_layers import AttendedResBlock
from surf_lightning.networks.locoformer_layers import ConvolutionalAttention, ConvSwiGLU, Residual, rotate

KERNEL = 4


class OurLocoformerBlock(nn.Sequential):
    """The block of TF-Locoformer from the layers of MB-TFLocoformer, ``[B,1,N,F,D]``."""

    def __init__(self, features: int, attention: int, heads: int, hidden: int) -> None:
        attend = functools.partial(ConvolutionalAttention, features, attention, heads, (1, 1), position=rotate)
        layers: list[nn.Module] = []
        for rows, kernel in (((0, 1, 2), (1, KERNEL)), ((0, 1, 3), (KERNEL, 1))):
            layers += [ConvSwiGLU(features, hidden, kernel), attend(rows=rows), ConvSwiGLU(features, hidden, kernel)]
        super().__init__(*(Residual(features, layer) for layer in layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, None)
        return x


def plain_norm(x: Tensor, gain: Tensor) -> Tensor:
    """RMS of each of four groups of the features."""
    groups = x.view(*x.shape[:-1], 4, -1)
    rms = groups.square().mean(-1, keepdim=True).sqrt()
    return (groups / (rms + 1e-5)).view(x.shape) * gain


def plain_feed_forward(x: Tensor, layer: ConvSwiGLU) -> Tensor:
    """``[R,L,D]`` by convolutions of one dimension: pad, convolve, gate, convolve back, crop."""
    length = x.shape[1]
    padded = F.pad(x.transpose(1, 2), [KERNEL - 1, KERNEL - 1])
    values, gates = F.conv1d(padded, layer.expand.weight.flatten(2), layer.expand.bias).chunk(2, 1)
    full = F.conv_transpose1d(values * F.silu(gates), layer.contract.weight.flatten(2), layer.contract.bias)
    return full[..., KERNEL - 1 : KERNEL - 1 + length].transpose(1, 2)


def plain_attention(x: Tensor, layer: ConvolutionalAttention) -> Tensor:
    """``[R,L,D]`` by rotary embedding as a product of complex numbers, then PyTorch's attention."""
    length, heads = x.shape[1], layer.heads
    q, k, v = F.linear(x, layer.qkv.weight.flatten(1)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    half = q.shape[-1] // 2
    angles = torch.arange(length, device=x.device)[:, None] * 10000 ** -(torch.arange(half, device=x.device) / half)
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(z: Tensor) -> Tensor:
        pairs = torch.complex(*z.float().chunk(2, -1)) * turn
        return torch.cat([pairs.real, pairs.imag], -1).to(z.dtype)

    joined = F.scaled_dot_product_attention(turned(q), turned(k), v)
    return F.linear(joined.transpose(1, 2).flatten(2), layer.out.weight)


def plain_locoformer_block(x: Tensor, ours: OurLocoformerBlock) -> Tensor:
    """``[B,N,F,D]``, with the weights of ``ours``."""
    six = list(ours)
    for layers in (six[:3], six[3:]):
        shape = x.shape
        rows = x.flatten(0, 1)
        for layer in layers:
            plain = plain_feed_forward if isinstance(layer.branch, ConvSwiGLU) else plain_attention
            rows = rows + plain(plain_norm(rows, layer.norm.gain), layer.branch)
        x = rows.view(shape).transpose(1, 2).contiguous()  # the other axis next, and back after it
    return x


def plain_residual_block(x: Tensor, embedding: Tensor, ours: Any) -> Tensor:
    """BigGAN's block of equal sizes, then attention; ``x [B,C,H,W]``, the activated ``embedding [B,E]``."""
    block, attention = ours.block, ours.attention
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.condition(embedding)[:, :, None, None]
    h = block.conv2(F.silu(block.norm2(h)))
    x = (x + h) / 2**0.5
    b, c, height, width = x.shape
    normed = attention.norm(x)
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    pairs = zip(weights, biases, strict=True)
    q, k, v = (torch.einsum("bchw,dc->bdhw", normed, weight) + bias[:, None, None] for weight, bias in pairs)
    scores = torch.einsum("bchw,bcij->bhwij", q, k) * c**-0.5
    scores = scores.reshape(b, height, width, -1).softmax(-1).view_as(scores)
    h = torch.einsum("bhwij,bcij->bchw", scores, v)
    h = torch.einsum("bchw,dc->bdhw", h, attention.out.weight) + attention.out.bias[:, None, None]
    return (x + h) / 2**0.5


def cases(small: bool) -> Iterator[tuple[str, nn.Module, Callable[..., Tensor], Callable[..., Tensor], Tensor]]:
    """Label, our block with its weights, both ways to compute it, an input."""
    sizes = {"features": 64, "attention": 64, "heads": 4, "hidden": 128} if small else {
        "features": 128, "attention": 128, "heads": 4, "hidden": 384
    }  # fmt: skip
    loco = OurLocoformerBlock(**sizes)
    x = torch.randn(1, 100 if small else 500, 40 if small else 65, sizes["features"])
    label = f"TF-Locoformer block, D = {sizes['features']}, {x.shape[1]} frames of {x.shape[2]} bands"
    yield label, loco, lambda z: loco(z[:, None])[:, 0], lambda z: plain_locoformer_block(z, loco), x
    image = AttendedResBlock(128, 128, 256, 0.0, attention=True)
    x = torch.randn(4 if small else 128, 128, 16, 16)
    embedding = torch.randn(len(x), 256)

    def plain(z: Tensor) -> Tensor:
        return plain_residual_block(z, embedding.to(z.device), image)

    label = f"NCSN++ block with attention, C = 128, {len(x)} images of 16 x 16"
    yield label, image, lambda z: image(z, embedding.to(z.device), 1), plain, x


def perturb(block: nn.Module) -> None:
    """No weight at zero, which would hide a difference."""
    for parameter in block.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)


def run(machine: Machine) -> Iterator[Timing]:
    """Forward and backward of each, after a look at whether both compute the same."""
    torch.manual_seed(0)
    for label, block, ours, theirs, given in cases(machine.small):
        block.to(machine.device)
        perturb(block)
        x = given.to(machine.device)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)
        for precision in machine.precisions():

            def step(
                call: Callable[..., Tensor], x: Tensor = x, precision: torch.dtype = precision
            ) -> Callable[[], None]:
                def forward_backward() -> None:
                    with machine.autocast(precision):
                        loss = call(x.requires_grad_()).square().mean()
                    loss.backward()

                return forward_backward

            floor = machine.floor_ms(count_flops(step(ours)), precision=precision)
            row = compare(step(ours), step(theirs), machine.device)
            shares = f"{floor / row['ours_ms']:.0%} of the peak, plain {floor / row['theirs_ms']:.0%}"
            yield Timing(f"{label}, {name(precision)}", **row, floor_ms=floor, remark=shares)
