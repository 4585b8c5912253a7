"""Layers of MB-TFLocoformer. Axes: B batch, S sources and auxiliary tokens, N frames, F bands, D features, A attention.

Every layer maps ``[B,S,N,F,D]`` to ``[B,S,N,F,D]``. Convolutions see it as ``[B*S,D,N,F]`` in channels-last memory: the
same memory without a copy. No convolution crosses sources.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.functional.precision import at_least_float32, full_precision

_LARGEST_BATCH = 65535  # of the flash and memory-efficient kernels of scaled_dot_product_attention: a CUDA grid's limit


class RMSGroupNorm(nn.Module):
    """Normalizes groups of the last axis, γ x / (RMS of the group + eps), in float32 or better."""

    def __init__(self, features: int, groups: int = 4, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.gain = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        grouped = at_least_float32(x).unflatten(-1, (self.groups, -1))
        # The vector norm has a finite gradient at zero; the root of a mean of squares does not.
        rms = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True) * grouped.shape[-1] ** -0.5
        return (grouped / (rms + self.eps)).flatten(-2) * self.gain


def rotate(tokens: Tensor) -> Tensor:
    """Rotary position embedding of ``tokens [*,L,h,d]`` along L: rotate pair (i, i + d/2) by position/10000^(2i/d)."""
    length, _, dim = tokens.shape[-3:]
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    frequencies = 10000 ** -(torch.arange(0, dim, 2, device=tokens.device, dtype=dtype) / dim)
    angles = torch.arange(length, device=tokens.device, dtype=dtype)[:, None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = tokens.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(tokens.dtype)


def identity(tokens: Tensor) -> Tensor:
    """No position embedding: the tokens are a set."""
    return tokens


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention among the L tokens of each row, three times ``[R,L,h,d] -> [R,L,h*d]``, for any R."""
    heads = [z.transpose(1, 2) for z in (queries, keys, values)]
    if torch.compiler.is_exporting():  # splits of a free size have no fixed number
        parts = [heads]
    else:
        parts = [list(part) for part in zip(*(z.split(_LARGEST_BATCH) for z in heads), strict=True)]
    outputs = [F.scaled_dot_product_attention(q, k, v) for q, k, v in parts]
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined.transpose(1, 2).flatten(-2)


def _convolve(convolution: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``convolution`` over (N, F) of ``x [B,S,N,F,D]`` to each source alone."""
    channels_last = x.flatten(0, 1).permute(0, 3, 1, 2)
    return convolution(channels_last).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class ConvolutionalAttention(nn.Module):
    """CMHSA: multi-head self-attention with queries, keys and values from a convolution over (N, F).

    The convolution's ``kernel``, frames and bands, is odd; (1, 1) is plain MHSA. ``rows`` are the axes, of B S N F =
    0 1 2 3, along which attention runs separately. The other axes hold the tokens; the last of them varies fastest.
    ``position`` embeds the positions of queries and keys ``[*,L,h,d]`` along it.
    """

    def __init__(
        self,
        features: int,
        attention: int,
        heads: int,
        kernel: tuple[int, int],
        rows: tuple[int, ...],
        position: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        assert kernel[0] % 2 == kernel[1] % 2 == 1
        self.heads, self.num_row_axes, self.position = heads, len(rows), position
        self.order = (*rows, *(axis for axis in range(4) if axis not in rows))
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.qkv = nn.Conv2d(features, 3 * attention, kernel, padding=padding, bias=False)
        self.out = nn.Linear(attention, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = _convolve(self.qkv, x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = qkv.permute(4, *self.order, 5, 6)
        queries, keys = self.position(queries), self.position(keys)
        ordered = values.shape[:4]
        rows = (z.flatten(self.num_row_axes, 3).flatten(0, -4) for z in (queries, keys, values))
        joined = self.out(attend(*rows)).view(*ordered, -1)
        return joined.permute(*(self.order.index(axis) for axis in range(4)), 4)


class ConvSwiGLU(nn.Module):
    """Feed-forward layer: a transposed convolution of u SiLU(v), where [u, v] is a convolution of the input.

    u and v have ``hidden`` channels; ``kernel`` is frames and bands of both convolutions: 1 leaves an axis alone.
    """

    def __init__(self, features: int, hidden: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        assert 1 in kernel
        padding = (kernel[0] - 1, kernel[1] - 1)
        self.over_frames, self.padding = kernel[0] > 1, (0, max(padding))
        self.expand = nn.Conv2d(features, 2 * hidden, kernel, padding=padding)
        # This padding crops what the padding of the first convolution added.
        self.contract = nn.ConvTranspose2d(hidden, features, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        # Kernels run fastest along the axis next to the features in memory: two copies cost less than they gain.
        if self.over_frames:
            return _convolve(self._glu, x.transpose(2, 3).contiguous()).transpose(2, 3)
        return _convolve(self._glu, x)

    def _glu(self, x: Tensor) -> Tensor:
        expand, contract = (layer.weight.flatten(2).unsqueeze(2) for layer in (self.expand, self.contract))
        values, gates = F.conv2d(x, expand, self.expand.bias, padding=self.padding).chunk(2, 1)
        return F.conv_transpose2d(values * F.silu(gates), contract, self.contract.bias, padding=self.padding)


class Parallel(nn.Module):
    """The sum of two branches of the same input."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Residual(nn.Module):
    """x + branch(norm x)."""

    def __init__(self, features: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = RMSGroupNorm(features), branch

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform ``x [B,S,N,F,D]``; the embedding is ignored."""
        return x + self.branch(self.norm(x))


class AdaptiveResidual(nn.Module):
    """x + gate branch(scale norm x + shift); scale, shift and gate come from an embedding of time (adaLN-Zero of DiT).

    The gates start at zero, so every block starts as the identity. The output head must not start at zero too: the
    magnitude expansion has derivative zero there, and no weight would learn.
    """

    def __init__(self, features: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = RMSGroupNorm(features), branch
        self.modulation = nn.Linear(features, 3 * features)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Transform ``x [B,S,N,F,D]``, given the ``embedding [B,D]`` of time."""
        with full_precision(x):
            shift, scale, gate = self.modulation(embedding)[:, None, None, None].chunk(3, -1)
        return x + gate * self.branch(self.norm(x) * (1 + scale) + shift)


class TimeEmbedding(nn.Module):
    """Fourier features of t and a small perceptron, in float32 or better.

    ``features`` is even. The frequencies go from 1 to ``highest``, in radians per unit of time.
    """

    frequencies: Tensor

    def __init__(self, features: int, highest: float = 256.0) -> None:
        super().__init__()
        assert features % 2 == 0
        exponents = torch.linspace(0, 1, features // 2)
        self.register_buffer("frequencies", highest**exponents, persistent=False)
        self.layers = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        """Map ``t [B]`` in [0,1] to ``[B,features]``."""
        with full_precision(t):
            angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies
            return self.layers(torch.cat([angles.cos(), angles.sin()], -1))
