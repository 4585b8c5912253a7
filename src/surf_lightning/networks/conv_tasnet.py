"""Conv-TasNet as TDCN++ (Wisdom et al., 2020): the MixIT teacher for audio, and a flow's velocity for CPUs.

Axes: B batch, K sources, M outputs, T samples, N frames, E filters of the encoder, C channels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like
from surf_lightning.functional.precision import at_least_float32, full_precision
from surf_lightning.networks.base import RegressionNetwork, SourceHead, VelocityNetwork, serializable
from surf_lightning.networks.locoformer_layers import TimeEmbedding
from surf_lightning.networks.stft import pad_to_hops, rms


class ScaledConv(nn.Module):
    """A pointwise convolution times a learned scalar, ``[B,C,N] -> [B,C',N]``."""

    def __init__(self, channels: int, outer: int, scale: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, outer, 1, bias=bias)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        # Scaling the weights costs less than scaling the frames.
        bias = self.convolution.bias
        return F.conv1d(x, self.scale * self.convolution.weight, None if bias is None else self.scale * bias)


class InstanceNorm(nn.Module):
    """Normalizes each channel over time, then applies one gain and one bias to all, ``[B,C,N]``, in float32."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        with full_precision(x):
            # One group per channel: one fused pass does the affine map too.
            gain, bias = self.gain.expand(channels), self.bias.expand(channels)
            return F.group_norm(at_least_float32(x), channels, gain, bias, self.eps)


class TemporalBlock(nn.Module):
    """x + (expand, PReLU, norm, dilated depthwise convolution, PReLU, norm, contract) of x, ``[B,C,N]``.

    Args:
        channels: C.
        hidden: channels inside the block.
        kernel: frames of the depthwise convolution, odd.
        dilation: frames between its taps.
        scale: initial scalar of the last map.
        norm_eps: of the norms.

    Raises:
        ValueError: ``kernel`` is even.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, dilation: int, scale: float, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd")
        padding = dilation * (kernel - 1) // 2
        self.layers = nn.Sequential(
            ScaledConv(channels, hidden),
            nn.PReLU(init=0.1),
            InstanceNorm(norm_eps),
            nn.Conv1d(hidden, hidden, kernel, padding=padding, dilation=dilation, groups=hidden),
            nn.PReLU(init=0.1),
            InstanceNorm(norm_eps),
            ScaledConv(hidden, channels, scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class TemporalNetwork(nn.Module):
    """The TCN, ``[B,C,N] -> [B,C,N]``: ``repeats`` times ``blocks`` blocks of dilations 1, 2, 4, ...

    Args:
        channels: C.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: number of repeats.
        blocks: blocks of each repeat.
        skip_residuals: add a linear map of every earlier repeat's input to the input of each later repeat.
        norm_eps: of the norms.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int,
        repeats: int,
        blocks: int,
        skip_residuals: bool,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.repeats = nn.ModuleList(
            nn.Sequential(
                *(
                    TemporalBlock(channels, hidden, kernel, 2**block, 0.9 ** (repeat * blocks + block), norm_eps)
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
    """Learned analysis and synthesis filters with sigmoid masks between them.

    Args:
        filters: E.
        frame: length of the filters, in samples.
        hop: step of the filters, in samples.

    Raises:
        ValueError: ``frame`` is not 2, 3, ... times ``hop``.
    """

    def __init__(self, filters: int, frame: int, hop: int) -> None:
        super().__init__()
        if frame % hop or frame == hop:
            raise ValueError(f"frame {frame} must be a multiple (2, 3, ...) of hop {hop}")
        self.filters, self.hop = filters, hop
        # This padding puts the first and last samples into frame / hop frames too; the decoder's cuts it off again.
        self.encoder = nn.Conv1d(1, filters, frame, hop, padding=frame - hop, bias=False)
        self.decoder = nn.ConvTranspose1d(filters, 1, frame, hop, padding=frame - hop, bias=False)

    def encode(self, signals: Tensor) -> Tensor:
        """``signals [B,T] -> coefficients [B,E,N]``, N = ceil(T / hop) + frame / hop - 1, in float32 or better."""
        with full_precision(signals):
            return F.relu(self.encoder(pad_to_hops(signals, self.hop)[:, None]))

    def decode(self, logits: Tensor, coefficients: Tensor, length: int) -> Tensor:
        """Mask logits ``[B,M*E,N]`` and ``coefficients [B,E,N] -> estimates [B,M,length]``, in float32 or better."""
        with full_precision(coefficients):
            masks = at_least_float32(logits).sigmoid().unflatten(1, (-1, self.filters))
            rows = (masks * coefficients[:, None]).flatten(0, 1)
            return self.decoder(rows).view(*masks.shape[:2], -1)[..., :length]


class ConsistencyWeights(nn.Module):
    """Each estimate's share of the mixture's residual, from the TCN's time mean: "pred_source" of the MixIT code."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        """``features [B,C,N] -> weights [B,M]`` that sum to one."""
        return at_least_float32(self.linear(features.mean(-1))).softmax(-1)  # in bfloat16 the sum would miss one


@serializable
class ConvTasNet(RegressionNetwork):
    """Learned filterbank, dilated convolutions, one sigmoid mask per output, mixture consistency.

    Levels: the network sees m/K divided by its RMS and multiplies its estimates by this RMS and by K, so a gain on the
    mixture is a gain on the estimates. Norms span the time of the given window; a call keeps no state.

    Args:
        num_outputs: M.
        num_sources: K, the number by which the mixtures are divided at the input.
        filters: E.
        frame: length of the filters, in samples; 40 are 2.5 ms at 16 kHz.
        hop: step of the filters, in samples.
        bottleneck: C, channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: number of times that the sequence of dilations repeats.
        blocks: blocks of each repeat, with dilations 1, 2, 4, ..., 2^(blocks - 1).
        skip_residuals: add links between the repeats, see :class:`TemporalNetwork`.
        sample_rate: in Hz, that ``frame``, ``hop`` and ``filters`` are meant for: the command line brings them to that
            of the data. The network itself knows no rate.
        norm_eps: added to the variances that the norms divide by; 1e-3 in the MixIT paper's code.

    Raises:
        ValueError: ``frame`` is not 2, 3, ... times ``hop``, or ``kernel`` is even.
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
        norm_eps: float = 1e-5,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.num_outputs, self.num_sources = num_outputs, num_sources
        self.filterbank = MaskedFilterbank(filters, frame, hop)
        self.dense = ScaledConv(filters, bottleneck, bias=True)
        self.tcn = TemporalNetwork(
            bottleneck, hidden, kernel, repeats, blocks, skip_residuals=skip_residuals, norm_eps=norm_eps
        )
        self.masks = nn.Conv1d(bottleneck, num_outputs * filters, 1, bias=False)
        self.consistency = ConsistencyWeights(bottleneck, num_outputs)

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,T]`` (sums), any T -> ``estimates [B,M,T]``, which sum to them."""
        means = mixtures / self.num_sources
        scale = rms(means)
        coefficients = self.filterbank.encode(means / scale)
        features = self.tcn(self.dense(coefficients))
        estimates = self.filterbank.decode(self.masks(features), coefficients, mixtures.shape[-1])
        residual = (means / scale - estimates.sum(1))[:, None]
        return self.num_sources * scale[:, None] * (estimates + self.consistency(features)[..., None] * residual)


@serializable
class VelocityConvTasNet(VelocityNetwork):
    """Predicts one mask of the mixture per source, from the mixture, the noisy sources and t.

    The outputs have an order, so this network separates after minutes of training: unlike :class:`MBLocoformer`, it
    need not learn to tell the sources apart by their noise. The noisy sources enter times t, so the estimate at t = 0
    depends on m alone. Pairing at t = 0 then depends on m and x1 alone: x0 is independent of x1 given m. A sampler of
    one step returns this estimate, the mean, for every noise; different samples need two steps or more.

    Levels: the network sees x_t and m/K divided by the RMS of m/K and multiplies its estimates by this RMS, so a gain
    on both inputs is a gain on the velocity.

    Args:
        num_sources: K.
        filters: E.
        frame: length of the filters, in samples; 40 are 2.5 ms at 16 kHz.
        hop: step of the filters, in samples.
        bottleneck: C, channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: number of times that the sequence of dilations repeats.
        blocks: blocks of each repeat, with dilations 1, 2, 4, ..., 2^(blocks - 1).
        skip_residuals: add links between the repeats, see :class:`TemporalNetwork`.
        sample_rate: in Hz, that ``frame``, ``hop`` and ``filters`` are meant for: the command line brings them to that
            of the data. The network itself knows no rate.

    Raises:
        ValueError: ``frame`` is not 2, 3, ... times ``hop``, or ``kernel`` is even.
    """

    def __init__(
        self,
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
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.filterbank = MaskedFilterbank(filters, frame, hop)
        self.dense = ScaledConv(filters, bottleneck, bias=True)
        self.noisy = ScaledConv(num_sources * filters, bottleneck)
        self.time = TimeEmbedding(bottleneck)
        self.tcn = TemporalNetwork(
            bottleneck, hidden, kernel=kernel, repeats=repeats, blocks=blocks, skip_residuals=skip_residuals
        )
        self.masks = nn.Conv1d(bottleneck, num_sources * filters, 1, bias=False)
        self.head = SourceHead()

    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """``x_t [B,K,T]``, ``t [B]`` in [0,1], ``mixtures [B,T]`` (sums), any T -> zero-sum ``velocity [B,K,T]``."""
        means = mixtures[:, None] / self.num_sources
        scale = rms(means)
        coefficients = self.filterbank.encode((means / scale)[:, 0])
        noisy = self.filterbank.encode((x_t / scale).flatten(0, 1)).unflatten(0, (-1, self.num_sources)).flatten(1, 2)
        features = self.dense(coefficients) + self.time(t)[..., None] + expand_like(t, noisy) * self.noisy(noisy)
        estimates = self.filterbank.decode(self.masks(self.tcn(features)), coefficients, mixtures.shape[-1])
        return self.head(self.num_sources * scale * estimates, x_t, t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return self.head.residual_weight(t)
