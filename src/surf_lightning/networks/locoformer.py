"""MB-TFLocoformer (FLOSS, Scheibler et al., 2025; Tables 7 and 8 of the SURF paper).

Axes: B batch, K sources, M outputs, S tokens of a time-frequency point, T samples, N frames, F bands, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from surf_lightning.functional.flow import mixture_consistent
from surf_lightning.networks.band_split import BandDecoder, BandEncoder, mel_band_bins
from surf_lightning.networks.base import Head, RegressionNetwork, VelocityHead, VelocityNetwork, serializable
from surf_lightning.networks.locoformer_layers import (
    AdaptiveResidual,
    ConvolutionalAttention,
    ConvSwiGLU,
    Parallel,
    Residual,
    TimeEmbedding,
    identity,
    rotate,
)
from surf_lightning.networks.stft import STFT, compress, expand, rms


class LocoformerBlock(nn.Module):
    """Band-source joint attention (BSJA), then time-source parallel attention (TSPA), each with a feed-forward layer.

    BSJA attends over all (source, band) pairs of a frame, with positions for bands only; its convolution runs in time,
    its feed-forward layer along the bands. TSPA attends over time and, in parallel, over the sources of each
    time-frequency point, the latter with a convolution in time and bands; its feed-forward layer runs along time.

    ``residual(features, branch)`` wraps a branch with its norm and skip connection; the others are of ``Locoformer``.
    """

    def __init__(
        self,
        residual: Callable[[int, nn.Module], nn.Module],
        features: int,
        attention: int,
        heads: int,
        hidden: int,
        bsja_kernel: int,
        tspa_kernel: tuple[int, int],
        ffn_kernel: int,
    ) -> None:
        super().__init__()
        if features % 4:
            raise ValueError(f"features must be a multiple of the norms' 4 groups, not {features}")
        if attention % (2 * heads):
            raise ValueError(f"attention {attention} must be an even number of channels for each of {heads} heads")
        if not bsja_kernel % 2 == tspa_kernel[0] % 2 == tspa_kernel[1] % 2 == 1:
            raise ValueError(f"kernels of attentions must be odd, not {bsja_kernel} and {tspa_kernel}")
        attend = functools.partial(ConvolutionalAttention, features, attention, heads)
        band_source = attend(kernel=(bsja_kernel, 1), rows=(0, 2), position=rotate)
        time = attend(kernel=(1, 1), rows=(0, 1, 3), position=rotate)
        source = attend(kernel=tspa_kernel, rows=(0, 2, 3), position=identity)
        branches = (
            band_source,
            ConvSwiGLU(features, hidden, (1, ffn_kernel)),
            Parallel(time, source),
            ConvSwiGLU(features, hidden, (ffn_kernel, 1)),
        )
        self.layers = nn.ModuleList(residual(features, branch) for branch in branches)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform ``x [B,S,N,F,D]``, given the ``embedding [B,D]`` of time (None without time)."""
        for layer in self.layers:
            x = layer(x, embedding)
        return x


class Locoformer(nn.Module):
    """The stack of blocks between band encoders and decoder, ``[B,S,N,F,D] -> [B,S,N,F,D]``.

    Args:
        residual: of :class:`LocoformerBlock`.
        features: D.
        attention: channels of queries, keys and values over all heads.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        blocks: number of blocks, each with both attentions.
        bsja_kernel: frames of the convolution in band-source joint attention.
        tspa_kernel: frames and bands of the convolution in time-source parallel attention.
        ffn_kernel: frames or bands of the feed-forward layers' convolutions.
        activation_checkpointing: store only each block's input for the backward pass and recompute the rest.

    Raises:
        ValueError: sizes do not divide, or a kernel of an attention is even.
    """

    def __init__(
        self,
        residual: Callable[[int, nn.Module], nn.Module],
        features: int,
        attention: int = 192,
        heads: int = 8,
        hidden: int = 656,
        blocks: int = 6,
        bsja_kernel: int = 5,
        tspa_kernel: tuple[int, int] = (5, 3),
        ffn_kernel: int = 4,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        sizes = (features, attention, heads, hidden, bsja_kernel, tspa_kernel, ffn_kernel)
        self.blocks = nn.ModuleList(LocoformerBlock(residual, *sizes) for _ in range(blocks))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Transform ``x``, given the ``embedding [B,D]`` of time (None without time)."""
        x = x.contiguous()  # layers keep the layout of x; any other layout would cost a copy at each convolution
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, embedding, use_reentrant=False, preserve_rng_state=False)  # no dropout inside
            else:
                x = block(x, embedding)
        return x


@functools.partial(serializable, rest=Locoformer)
class MBLocoformer(VelocityNetwork):
    """The flow network: one token per source and one for the mixture at each time-frequency point.

    Sources share all weights and have no index: the velocity is permutation-equivariant, v(πx_t, t, m) = πv(x_t, t, m).
    The decoded spectra are the head's raw output. There is no mask: a velocity need not be small where x_t is.

    Levels: the network sees x_t and m/K divided by the RMS of m/K and multiplies its raw output by this RMS, so
    v(c x_t, t, c m) = c v(x_t, t, m) for any gain c > 0, down to levels of about 1e-8.

    Args:
        num_sources: K.
        features: D.
        mel_bands: F.
        sample_rate: in Hz; determines the bands.
        n_fft: frame length of the STFT, in samples.
        hop: step of the STFT, in samples.
        head: what the raw output stands for; the velocity if None.
        trunk: the other arguments of ``Locoformer``.

    Raises:
        ValueError: sizes do not fit one another; the message says which.
    """

    def __init__(
        self,
        num_sources: int,
        features: int = 192,
        mel_bands: int = 80,
        sample_rate: int = 16000,
        n_fft: int = 320,
        hop: int = 160,
        head: Head | None = None,
        **trunk: Any,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.head = VelocityHead() if head is None else head
        self.stft = STFT(n_fft, hop)
        bands = mel_band_bins(n_fft, sample_rate, mel_bands)
        self.source_encoder, self.mixture_encoder = BandEncoder(bands, features), BandEncoder(bands, features)
        self.time = TimeEmbedding(features)
        self.trunk = Locoformer(AdaptiveResidual, features, **trunk)
        self.decoder = BandDecoder(bands, features)

    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """``x_t [B,K,T]``, ``t [B]`` in [0,1], ``mixtures [B,T]`` (sums), any T -> zero-sum ``velocity [B,K,T]``."""
        means = mixtures[:, None] / self.num_sources
        scale = rms(means)
        sources = self.source_encoder(compress(self.stft(x_t / scale)))
        mixture = self.mixture_encoder(compress(self.stft(means / scale)))
        tokens = self.trunk(torch.cat([sources, mixture], 1), self.time(t))
        spectrum = expand(self.decoder(tokens[:, :-1]))
        raw = scale * self.stft.inverse(spectrum, x_t.shape[-1])
        return self.head(raw, x_t, t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return self.head.residual_weight(t)


@functools.partial(serializable, rest=Locoformer)
class RegressionLocoformer(RegressionNetwork):
    """The same network without time and noise: M copies of the mixture's tokens, each plus a learned slot vector.

    The slots are ours: the paper says that the mixture is the only input, not how it makes M outputs.

    Levels: the network sees m/K divided by its RMS and multiplies its output by this RMS, so a gain on the mixture is a
    gain on the estimates. All estimates share the mixture's residual equally.

    Args:
        num_outputs: M.
        num_sources: K, the number by which the mixtures are divided at the input.
        features: D.
        mel_bands: F.
        sample_rate: in Hz; determines the bands.
        n_fft: frame length of the STFT, in samples.
        hop: step of the STFT, in samples.
        trunk: the other arguments of ``Locoformer``.

    Raises:
        ValueError: sizes do not fit one another; the message says which.
    """

    def __init__(
        self,
        num_outputs: int,
        num_sources: int,
        features: int = 192,
        mel_bands: int = 80,
        sample_rate: int = 16000,
        n_fft: int = 320,
        hop: int = 160,
        **trunk: Any,
    ) -> None:
        super().__init__()
        self.num_outputs, self.num_sources = num_outputs, num_sources
        self.stft = STFT(n_fft, hop)
        bands = mel_band_bins(n_fft, sample_rate, mel_bands)
        self.encoder = BandEncoder(bands, features)
        self.slots = nn.Parameter(torch.randn(num_outputs, 1, 1, features))
        self.trunk = Locoformer(Residual, features, **trunk)
        self.decoder = BandDecoder(bands, features)

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,T]`` (sums), any T -> ``estimates [B,M,T]``, which sum to them."""
        means = mixtures[:, None] / self.num_sources
        scale = rms(means)
        tokens = self.encoder(compress(self.stft(means / scale))) + self.slots
        spectrum = expand(self.decoder(self.trunk(tokens)))
        estimates = scale * self.stft.inverse(spectrum, mixtures.shape[-1])
        return mixture_consistent(estimates, mixtures)
