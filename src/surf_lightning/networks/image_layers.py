"""Layers of NCSN++. Axes: N batch items, C channels, H W the image, D embedding, G items that attend jointly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.functional.precision import full_precision

SQRT_HALF = math.sqrt(0.5)
BACKGROUND = -1.0


def default_init_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill ``weight [out,in,*kernel]`` in place: uniform, with variance scale / ((fan_in + fan_out) / 2).

    A scale of 0 stands for 1e-10: the layer starts close to zero.
    """
    fan_average = (weight.shape[0] + weight.shape[1]) / 2 * math.prod(weight.shape[2:])
    bound = math.sqrt(3 * max(scale, 1e-10) / fan_average)
    return nn.init.uniform_(weight, -bound, bound)


def conv(in_channels: int, out_channels: int, size: int, scale: float = 1.0) -> nn.Conv2d:
    """Make a convolution that keeps H and W; ``size`` is odd, ``scale`` that of :func:`default_init_`."""
    layer = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    default_init_(layer.weight, scale)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


conv1x1 = partial(conv, size=1)
conv3x3 = partial(conv, size=3)


def linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    """Make a linear layer; on the last axis of channels-last features it is a 1x1 convolution ("NIN")."""
    layer = nn.Linear(in_features, out_features)
    default_init_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a group normalization over min(C // 4, 32) groups.

    Raises:
        ValueError: ``channels`` is not a multiple of the number of groups.
    """
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class FIRResample(nn.Module):
    """Resamples by two with the fixed low-pass kernel outer([1,3,3,1], [1,3,3,1]) / 64, zero outside the image.

    Works in float32 also under autocast: CPUs have no fast bfloat16 kernel for it.
    """

    kernel: Tensor
    gain: float
    convolve: Callable[..., Tensor]

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None] / 64 * self.gain, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        with full_precision(x):
            weight = self.kernel.expand(channels, 1, 4, 4)
            return self.convolve(x.to(weight.dtype), weight, stride=2, padding=1, groups=channels)


class FIRDown(FIRResample):
    """Halves images, ``[N,C,H,W] -> [N,C,H/2,W/2]``."""

    gain, convolve = 1.0, staticmethod(F.conv2d)


class FIRUp(FIRResample):
    """Doubles images, ``[N,C,H,W] -> [N,C,2H,2W]``; a gain of 4 makes up for the zeros between the samples."""

    gain, convolve = 4.0, staticmethod(F.conv_transpose2d)


class FourierTime(nn.Module):
    """Embeds conditioning values s ``[N]`` by frozen random frequencies, ``-> [N, 4 * features]``.

    SiLU(Linear(SiLU(Linear(e)))), where e = [sin 2πWs, cos 2πWs] and W ~ N(0, 16²). All residual blocks apply a SiLU
    to the embedding first, so this layer applies it once.
    """

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 16 * torch.randn(features))
        self.hidden = linear(2 * features, 4 * features)
        self.out = linear(4 * features, 4 * features)

    def forward(self, value: Tensor) -> Tensor:
        angle = 2 * math.pi * value[:, None] * self.frequencies
        embedding = torch.cat([angle.sin(), angle.cos()], dim=1)
        return F.silu(self.out(F.silu(self.hidden(embedding))))


class ResBlock(nn.Module):
    """BigGAN residual block, ``[N,C_in,H,W] -> [N,C_out,H',W']``; without ``resample``, H and W stay.

    ``embedding`` is D, None in an unconditional network.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int | None,
        dropout: float,
        resample: FIRDown | FIRUp | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.condition = None if embedding is None else linear(embedding, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, scale=0.0)
        self.resample = resample
        projected = in_channels != out_channels or resample is not None
        self.skip = conv1x1(in_channels, out_channels) if projected else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform ``x [N,C_in,H,W]``, given the activated ``embedding [N,D]`` of time (None if unconditional)."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.condition is not None:
            h = h + self.condition(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (h + (x if self.skip is None else self.skip(x))) * SQRT_HALF


class Attention(nn.Module):
    """Single-head self-attention over the pixels of each image, or of G consecutive images jointly."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        for weight in self.qkv.weight.detach().chunk(3):  # three layers in one product, each with its own fan-out
            default_init_(weight, 0.1)
        nn.init.zeros_(self.qkv.bias)
        self.out = linear(channels, channels, scale=0.0)

    def forward(self, x: Tensor, group: int = 1) -> Tensor:
        """``x [B*G,C,H,W]`` -> the same shape; the G = ``group`` images of an example attend to one another."""
        n, c, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n // group, group * height * width, c)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        # PyTorch chooses its fast kernels only for inputs with a head axis, here of length one.
        h = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        h = self.out(h).reshape(n, height, width, c).permute(0, 3, 1, 2)
        return (x + h) * SQRT_HALF


class AttendedResBlock(nn.Module):
    """A residual block and, if ``attention``, an attention block after it."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding: int | None, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.block = ResBlock(in_channels, out_channels, embedding, dropout)
        self.attention = Attention(out_channels) if attention else None

    def forward(self, x: Tensor, embedding: Tensor | None, group: int) -> Tensor:
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h, group)


class Frame(nn.Module):
    """Pads images to a size divisible by 2^halvings, and crops them back."""

    def __init__(self, image_size: int, halvings: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.padded_size = math.ceil(image_size / 2**halvings) * 2**halvings
        self.before = (self.padded_size - image_size) // 2
        self.after = self.padded_size - image_size - self.before

    def pad(self, images: Tensor) -> Tensor:
        """Pad ``[*,H,W] -> [*,H',W']`` with the background's value, -1."""
        return F.pad(images, [self.before, self.after] * 2, value=BACKGROUND) if self.before + self.after else images

    def crop(self, images: Tensor) -> Tensor:
        """Crop ``[*,H',W'] -> [*,H,W]``."""
        inside = slice(self.before, self.before + self.image_size)
        return images[..., inside, inside]
