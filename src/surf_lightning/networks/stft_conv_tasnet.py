"""Conv-TasNet on magnitude spectra (Karamatlı and Kırbız, 2022), and a flow's velocity of the same.

Axes: B batch, K sources, M outputs, T samples, N frames, J frequency bins, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like
from surf_lightning.functional.precision import at_least_float32
from surf_lightning.networks.base import RegressionNetwork, SourceHead, VelocityNetwork, serializable
from surf_lightning.networks.locoformer_layers import TimeEmbedding
from surf_lightning.networks.stft import STFT, ratio_masks, rms


def global_norm(channels: int) -> nn.GroupNorm:
    """Over channels and frames together, with a gain and a bias for each channel."""
    return nn.GroupNorm(1, channels, eps=1e-8)


class SkipBlock(nn.Module):
    """The block of Conv-TasNet (Luo and Mesgarani, 2019), ``[B,C,N] -> ([B,C,N], [B,C,N])``: its output and its skip.

    The depthwise convolution has an odd ``kernel``. The last block has no output but the skip.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, dilation: int, is_last: bool) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.layers = nn.Sequential(
            nn.Conv1d(channels, hidden, 1),
            nn.PReLU(),
            global_norm(hidden),
            nn.Conv1d(hidden, hidden, kernel, padding=padding, dilation=dilation, groups=hidden),
            nn.PReLU(),
            global_norm(hidden),
        )
        self.residual = None if is_last else nn.Conv1d(hidden, channels, 1)
        self.skip = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.layers(x)
        return x if self.residual is None else x + self.residual(inside), self.skip(inside)


class SkipNetwork(nn.Module):
    """Logits of masks: ``repeats`` times ``blocks`` blocks of dilations 1, 2, 4, ...; a map of the sum of their skips.

    Magnitudes ``[B,J,N] -> [B,M*J,N]``; a condition ``[B,C,N]`` is added before the blocks.

    Args:
        num_outputs: M.
        n_fft: samples of a frame, of which come J = n_fft / 2 + 1 bins.
        bottleneck: C, channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: number of times that the sequence of dilations repeats.
        blocks: blocks of each repeat, with dilations 1, 2, 4, ..., 2^(blocks - 1).

    Raises:
        ValueError: ``kernel`` is even.
    """

    def __init__(
        self,
        num_outputs: int,
        n_fft: int,
        bottleneck: int = 128,
        hidden: int = 512,
        kernel: int = 3,
        repeats: int = 3,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd")
        bins, self.channels = n_fft // 2 + 1, bottleneck
        self.first = nn.Sequential(global_norm(bins), nn.Conv1d(bins, bottleneck, 1))
        last = repeats * blocks - 1
        self.blocks = nn.ModuleList(
            SkipBlock(bottleneck, hidden, kernel, 2 ** (number % blocks), number == last) for number in range(last + 1)
        )
        self.last = nn.Sequential(nn.PReLU(), nn.Conv1d(bottleneck, num_outputs * bins, 1))

    def forward(self, x: Tensor, condition: Tensor | float = 0.0) -> Tensor:
        x, skips = self.first(x) + condition, []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.last(torch.stack(skips).sum(0))


@functools.partial(serializable, rest=SkipNetwork)
class STFTConvTasNet(RegressionNetwork):
    """Masks of the mixture's magnitudes that sum to one, and the mixture's phases (MixCycle paper, Fig. 1).

    Untrained masks are nearly alike, so every untrained estimate is nearly a copy of the mixture: what MixCycle's
    teacher begins with.

    Levels: the network sees the magnitudes divided by the RMS of the mixture, so a gain on the mixture is a gain on the
    estimates. Norms span the time of the given window; a call keeps no state.

    Args:
        num_outputs: M.
        n_fft: samples of a frame, of a Hann window.
        hop: samples between frames.
        sample_rate: in Hz, that ``n_fft`` and ``hop`` are meant for: the command line brings them to that of the data.
            The network itself knows no rate.
        network: the other arguments of ``SkipNetwork``.

    Raises:
        ValueError: ``n_fft`` is odd, ``hop`` is above half of it, or ``kernel`` is even.
    """

    def __init__(
        self, num_outputs: int, n_fft: int = 512, hop: int = 128, sample_rate: int = 8000, **network: Any
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.stft = STFT(n_fft, hop, "hann")
        self.masks = SkipNetwork(num_outputs, n_fft, **network)

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,T]`` (sums), any T -> ``estimates [B,M,T]``, which sum to them."""
        spectra = self.stft(mixtures)  # [B,N,J,2]
        magnitudes = spectra.norm(dim=-1) / rms(mixtures).unsqueeze(2)
        return masked(self.stft, self.masks(magnitudes.mT), spectra, mixtures.shape[-1])


@functools.partial(serializable, rest=SkipNetwork)
class VelocitySTFTConvTasNet(VelocityNetwork):
    """Predicts masks of the mixture's magnitudes, which sum to one, from the mixture, the noisy sources and t.

    The outputs have an order, and the noisy sources enter times t, as in :class:`VelocityConvTasNet`: the estimate at
    t = 0 depends on m alone and is that of :class:`STFTConvTasNet`, whose weights it can begin with.

    Levels: the network sees magnitudes divided by the RMS of the mixture, so a gain on both inputs is a gain on the
    velocity.

    Args:
        num_sources: K.
        n_fft: samples of a frame, of a Hann window.
        hop: samples between frames.
        sample_rate: in Hz, that ``n_fft`` and ``hop`` are meant for: the command line brings them to that of the data.
            The network itself knows no rate.
        network: the other arguments of ``SkipNetwork``.

    Raises:
        ValueError: ``n_fft`` is odd, ``hop`` is above half of it, or ``kernel`` is even.
    """

    def __init__(
        self, num_sources: int, n_fft: int = 512, hop: int = 128, sample_rate: int = 8000, **network: Any
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.stft = STFT(n_fft, hop, "hann")
        self.masks = SkipNetwork(num_sources, n_fft, **network)
        self.noisy = nn.Conv1d(num_sources * (n_fft // 2 + 1), self.masks.channels, 1, bias=False)
        self.time = TimeEmbedding(self.masks.channels)
        self.head = SourceHead()

    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """``x_t [B,K,T]``, ``t [B]`` in [0,1], ``mixtures [B,T]`` (sums), any T -> zero-sum ``velocity [B,K,T]``."""
        spectra = self.stft(torch.cat([mixtures.unsqueeze(1), x_t], 1))  # [B,1+K,N,J,2]
        magnitudes = (spectra.norm(dim=-1) / rms(mixtures)[:, None, None]).mT
        noisy = self.noisy(magnitudes[:, 1:].flatten(1, 2))
        condition = self.time(t).unsqueeze(2) + expand_like(t, noisy) * noisy
        logits = self.masks(magnitudes[:, 0], condition)
        return self.head(masked(self.stft, logits, spectra[:, 0], mixtures.shape[-1]), x_t, t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return self.head.residual_weight(t)


def masked(stft: STFT, logits: Tensor, spectra: Tensor, length: int) -> Tensor:
    """Logits ``[B,M*J,N]`` of masks and ``spectra [B,N,J,2] -> estimates [B,M,length]``, which sum to the signal."""
    unfolded = torch.unflatten(at_least_float32(logits), 1, (-1, spectra.shape[2]))  # [B,M,J,N]
    masks = ratio_masks(unfolded.sigmoid()).mT
    return stft.inverse(masks.unsqueeze(4) * spectra.unsqueeze(1), length)
