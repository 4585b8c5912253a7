"""Conv-TasNet in the form of TDCN++ (Wisdom et al., 2020), the MixIT teacher for audio.

Axes: B batch, M outputs, T samples, N frames, E filters of the encoder, C channels.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.functional.precision import at_least_float32, full_precision
from surf_lightning.networks.base import RegressionNetwork, serializable
from surf_lightning.networks.stft import rms


class ScaledConv(nn.Module):
    """A pointwise convolution times a learned scalar, ``[B,C,N] -> [B,C',N]``."""

    def __init__(self, channels: int, outer: int, scale: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, outer, 1, bias=bias)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        # Scaling the weights is cheaper than scaling the frames.
        bias = self.convolution.bias
        return F.conv1d(x, self.scale * self.convolution.weight, None if bias is None else self.scale * bias)


class InstanceNorm(nn.Module):
    """Mean 0 and variance 1 over time for each channel, then one gain and one bias for all, ``[B,C,N]``, in float32."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        with full_precision(x):
            # One group per channel: a single fused pass, the affine map included.
            gain, bias = self.gain.expand(channels), self.bias.expand(channels)
            return F.group_norm(at_least_float32(x), channels, gain, bias, self.eps)


class TemporalBlock(nn.Module):
    """x + (expand, PReLU, norm, dilated depthwise convolution, PReLU, norm, contract) of x, ``[B,C,N]``.

    Args:
        channels, hidden: C outside and inside the block.
        scale: initial scalar of the last map.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, dilation: int, scale: float) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd")
        padding = dilation * (kernel - 1) // 2
        self.layers = nn.Sequential(
            ScaledConv(channels, hidden),
            nn.PReLU(init=0.1),
            InstanceNorm(),
            nn.Conv1d(hidden, hidden, kernel, padding=padding, dilation=dilation, groups=hidden),
            nn.PReLU(init=0.1),
            InstanceNorm(),
            ScaledConv(hidden, channels, scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class TemporalNetwork(nn.Module):
    """The TCN: ``repeats`` times ``blocks`` blocks of dilations 1, 2, 4, ..., ``[B,C,N] -> [B,C,N]``.

    Args:
        skip_residuals: add a linear map of every earlier repeat's input to the input of each later repeat.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, repeats: int, blocks: int, skip_residuals: bool
    ) -> None:
        super().__init__()
        self.repeats = nn.ModuleList(
            nn.Sequential(
                *(
                    TemporalBlock(channels, hidden, kernel, 2**block, 0.9 ** (repeat * blocks + block))
                    for block in range(blocks)
                )
            )
            for repeat in range(repeats)
        )
        links = itertools.combinations(range(repeats), 2) if skip_residuals else ()
        self.skips = nn.ModuleDict({f"{j}_{k}": ScaledConv(channels, channels, bias=True) for j, k in links})

    def forward(self, x: Tensor) -> Tensor:
        inputs: list[Tensor] = []
        for k, repeat in enumerate(self.repeats):
            for j in range(k if self.skips else 0):
                x = x + self.skips[f"{j}_{k}"](inputs[j])
            inputs.append(x)
            x = repeat(x)
        return x


class MaskedFilterbank(nn.Module):
    """Learned analysis and synthesis filters, and sigmoid masks between them.

    Args:
        filters: E.
        frame, hop: in samples.

    Raises:
        ValueError: ``hop`` does not divide ``frame``, or is as long.
    """

    def __init__(self, filters: int, frame: int, hop: int) -> None:
        super().__init__()
        if frame % hop or frame == hop:
            raise ValueError(f"frame {frame} must be a multiple (2, 3, ...) of hop {hop}")
        self.filters, self.hop = filters, hop
        # The first and last samples too lie in frame / hop frames; the decoder's padding cuts what the encoder's added.
        self.encoder = nn.Conv1d(1, filters, frame, hop, padding=frame - hop, bias=False)
        self.decoder = nn.ConvTranspose1d(filters, 1, frame, hop, padding=frame - hop, bias=False)

    def encode(self, signals: Tensor) -> Tensor:
        """``signals [B,T] -> coefficients [B,E,N]``, N = ceil(T / hop) + frame / hop - 1, in float32 or better."""
        with full_precision(signals):
            return F.relu(self.encoder(F.pad(signals, (0, -signals.shape[-1] % self.hop))[:, None]))

    def decode(self, logits: Tensor, coefficients: Tensor, length: int) -> Tensor:
        """Mask logits ``[B,M*E,N]`` and ``coefficients [B,E,N] -> estimates [B,M,length]``, in float32 or better."""
        with full_precision(coefficients):
            masks = at_least_float32(logits).sigmoid().unflatten(1, (-1, self.filters))
            rows = (masks * coefficients[:, None]).flatten(0, 1)
            return self.decoder(rows).view(*masks.shape[:2], -1)[..., :length]


class ConsistencyWeights(nn.Module, ABC):
    """The shares of the mixture's residual that the estimates get; they sum to one."""

    @abstractmethod
    def forward(self, estimates: Tensor, features: Tensor) -> Tensor:
        """``estimates [B,M,T]``, TCN output ``features [B,C,N]`` -> ``weights [B,M]``."""


@serializable
class UniformWeights(ConsistencyWeights):
    """Equal shares, 1/M."""

    def forward(self, estimates: Tensor, features: Tensor) -> Tensor:
        return torch.full_like(estimates[..., 0], 1 / estimates.shape[1])


@serializable
class PowerWeights(ConsistencyWeights):
    """Shares in proportion to each estimate's mean power (plus 1e-8): "magsq" of the MixIT code."""

    def forward(self, estimates: Tensor, features: Tensor) -> Tensor:
        power = 1e-8 + estimates.square().mean(-1)
        return power / power.sum(1, keepdim=True)


@serializable
class PredictedSourceWeights(ConsistencyWeights):
    """Shares predicted from the time mean of the TCN output: "pred_source", the default of the MixIT code.

    Args:
        num_outputs: M of the network.
        bottleneck: C of its TCN.
    """

    def __init__(self, num_outputs: int, bottleneck: int = 256) -> None:
        super().__init__()
        self.linear = nn.Linear(bottleneck, num_outputs)

    def forward(self, estimates: Tensor, features: Tensor) -> Tensor:
        return at_least_float32(self.linear(features.mean(-1))).softmax(-1)  # bfloat16 would not sum to one


@serializable
class ConvTasNet(RegressionNetwork):
    """Learned filterbank, dilated convolutions, one sigmoid mask per output, mixture consistency.

    Levels: m/K is divided by its root mean square and the estimates are multiplied by it and by K, so that a gain on
    the mixture is a gain on the estimates. Norms are over the time of the window given; nothing outlives a call.

    Args:
        num_outputs: M.
        num_sources: K, the number by which the mixtures are divided at the input.
        filters: E.
        frame: length of the filters, in samples; 2.5 ms at 16 kHz.
        hop: step of the filters, in samples.
        bottleneck: channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: how often the sequence of dilations is gone through.
        blocks: blocks of each repeat, of dilations 1, 2, 4, ..., 2^(blocks - 1).
        skip_residuals: links between repeats, see :class:`TemporalNetwork`.
        consistency: shares of the mixture's residual; predicted from the features if None.

    Raises:
        ValueError: ``hop`` does not divide ``frame``, or ``kernel`` is even.
    """

    def __init__(
        self,
        num_outputs: int,
        num_sources: int,
        filters: int = 256,
        frame: int = 40,
        hop: int = 20,
        bottleneck: int = 256,
        hidden: int = 512,
        kernel: int = 3,
        repeats: int = 4,
        blocks: int = 8,
        skip_residuals: bool = False,
        consistency: ConsistencyWeights | None = None,
    ) -> None:
        super().__init__()
        self.num_outputs, self.num_sources = num_outputs, num_sources
        self.filterbank = MaskedFilterbank(filters, frame, hop)
        self.dense = ScaledConv(filters, bottleneck, bias=True)
        self.tcn = TemporalNetwork(bottleneck, hidden, kernel, repeats, blocks, skip_residuals)
        self.masks = nn.Conv1d(bottleneck, num_outputs * filters, 1, bias=False)
        self.consistency = PredictedSourceWeights(num_outputs, bottleneck) if consistency is None else consistency

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,T]`` (sums), any T -> ``estimates [B,M,T]``, which sum to them."""
        means = mixtures / self.num_sources
        scale = rms(means)
        coefficients = self.filterbank.encode(means / scale)
        features = self.tcn(self.dense(coefficients))
        estimates = self.filterbank.decode(self.masks(features), coefficients, mixtures.shape[-1])
        weights = self.consistency(estimates, features)
        residual = (means / scale - estimates.sum(1))[:, None]
        return self.num_sources * scale[:, None] * (estimates + weights[..., None] * residual)
