"""Conv-TasNet on magnitude spectra (Karamatlı and Kırbız, 2022).

Axes: B batch, M outputs, T samples, N frames, J frequency bins.
"""

from __future__ import annotations

from torch import Tensor
from torchaudio.models.conv_tasnet import MaskGenerator

from surf_lightning.functional.precision import at_least_float32
from surf_lightning.networks.base import RegressionNetwork, serializable
from surf_lightning.networks.stft import STFT, ratio_masks, rms


@serializable
class STFTConvTasNet(RegressionNetwork):
    """Masks of the mixture's magnitudes that sum to one, and the mixture's phases (MixCycle paper, Fig. 1).

    Untrained masks are nearly alike, so every untrained estimate is nearly a copy of the mixture: what MixCycle's
    teacher begins with. The masks come from torchaudio's Conv-TasNet: norms over channels and frames of the given
    window, skip connections, sigmoids.

    Levels: the network sees the magnitudes divided by the RMS of the mixture, so a gain on the mixture is a gain on the
    estimates.

    Args:
        num_outputs: M.
        n_fft: samples of a frame, of a Hann window.
        hop: samples between frames.
        bottleneck: channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: number of times that the sequence of dilations repeats.
        blocks: blocks of each repeat, with dilations 1, 2, 4, ..., 2^(blocks - 1).

    Raises:
        ValueError: ``n_fft`` is odd or ``hop`` is above half of it.
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
        self.num_outputs = num_outputs
        self.stft = STFT(n_fft, hop, "hann")
        self.masks = MaskGenerator(
            input_dim=n_fft // 2 + 1,
            num_sources=num_outputs,
            kernel_size=kernel,
            num_feats=bottleneck,
            num_hidden=hidden,
            num_layers=blocks,
            num_stacks=repeats,
            msk_activate="sigmoid",
        )

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,T]`` (sums), any T -> ``estimates [B,M,T]``, which sum to them."""
        spectra = self.stft(mixtures)  # [B,N,J,2]
        magnitudes = spectra.norm(dim=-1) / rms(mixtures).unsqueeze(2)
        masks = ratio_masks(at_least_float32(self.masks(magnitudes.mT)))  # [B,M,J,N]
        return self.stft.inverse(masks.mT.unsqueeze(4) * spectra.unsqueeze(1), mixtures.shape[-1])
