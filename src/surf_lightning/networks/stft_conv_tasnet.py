"""Conv-TasNet on magnitude spectra (Karamatlı and Kırbız, 2022).

Axes: B batch, M outputs, T samples, N frames, J frequency bins, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surf_lightning.functional.precision import at_least_float32
from surf_lightning.networks.base import RegressionNetwork, serializable
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
    """``repeats`` times ``blocks`` blocks of dilations 1, 2, 4, ...; a map of the sum of their skips.

    ``[B,J,N] -> [B,outer,N]``, J being ``bins``.
    """

    def __init__(
        self, bins: int, channels: int, hidden: int, kernel: int, repeats: int, blocks: int, outer: int
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(global_norm(bins), nn.Conv1d(bins, channels, 1))
        last = repeats * blocks - 1
        self.blocks = nn.ModuleList(
            SkipBlock(channels, hidden, kernel, 2 ** (number % blocks), number == last) for number in range(last + 1)
        )
        self.last = nn.Sequential(nn.PReLU(), nn.Conv1d(channels, outer, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.last(torch.stack(skips).sum(0))


@serializable
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
        bottleneck: C, channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: number of times that the sequence of dilations repeats.
        blocks: blocks of each repeat, with dilations 1, 2, 4, ..., 2^(blocks - 1).

    Raises:
        ValueError: ``n_fft`` is odd, ``hop`` is above half of it, or ``kernel`` is even.
    """

    def __init__(
        self,
        num_outputs: int,
        n_fft: int = 512,
        hop: int = 128,
        bottleneck: int = 128,
        hidden: int = 512,
        kernel: int = 3,
        repeats: int = 3,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd")
        self.num_outputs, bins = num_outputs, n_fft // 2 + 1
        self.stft = STFT(n_fft, hop, "hann")
        self.masks = SkipNetwork(bins, bottleneck, hidden, kernel, repeats, blocks, num_outputs * bins)

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,T]`` (sums), any T -> ``estimates [B,M,T]``, which sum to them."""
        spectra = self.stft(mixtures)  # [B,N,J,2]
        magnitudes = spectra.norm(dim=-1) / rms(mixtures).unsqueeze(2)
        logits = torch.unflatten(at_least_float32(self.masks(magnitudes.mT)), 1, (self.num_outputs, -1))  # [B,M,J,N]
        masks = ratio_masks(logits.sigmoid()).mT
        return self.stft.inverse(masks.unsqueeze(4) * spectra.unsqueeze(1), mixtures.shape[-1])
