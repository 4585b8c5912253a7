"""NCSN++ (Song et al., 2021) for images. Axes: B batch, K sources, M outputs, N network items, C H W the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like, mixture_consistent
from surf_lightning.networks.base import Head, RegressionNetwork, VelocityHead, VelocityNetwork, serializable
from surf_lightning.networks.image_layers import (
    AttendedResBlock,
    FIRDown,
    FIRUp,
    FourierTime,
    Frame,
    ResBlock,
    conv1x1,
    conv3x3,
    group_norm,
)


class NCSNpp(nn.Module):
    """The U-net: BigGAN blocks, FIR resampling, an input pyramid on the way down, an output pyramid on the way up.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        image_size: height and width of the images; the network pads them inside where the levels need it.
        channels: width of the finest level.
        multipliers: width of each level, in units of ``channels``.
        blocks: residual blocks per level on the way down; the way up has one more.
        attention_resolutions: the sizes H of the levels with attention; the middle always has it.
        dropout: share of the activations that dropout zeroes in each residual block.
        patch_size: P; every PxP pixels become the channels of one, so that the finest level has the size
            ``image_size`` / P. Ours: less memory to move for the same arithmetic than a level of single pixels.
        conditional: whether the network takes a conditioning value, for time or noise level.

    Raises:
        ValueError: no level or block, or ``image_size`` is no multiple of ``patch_size``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16, 8),
        dropout: float = 0.1,
        patch_size: int = 1,
        *,
        conditional: bool = True,
    ) -> None:
        super().__init__()
        if not multipliers or blocks < 1:
            raise ValueError(f"multipliers ({list(multipliers)}) must not be empty, blocks ({blocks}) be at least 1")
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"image_size ({image_size}) is no multiple of patch_size ({patch_size})")
        folds = patch_size > 1  # into patches of one pixel it would copy the image
        self.fold = nn.PixelUnshuffle(patch_size) if folds else nn.Identity()
        self.unfold = nn.PixelShuffle(patch_size) if folds else nn.Identity()
        in_channels, out_channels = in_channels * patch_size**2, out_channels * patch_size**2
        self.frame = Frame(image_size // patch_size, len(multipliers) - 1)
        embedding = 4 * channels if conditional else None
        attended = [self.frame.padded_size >> level in attention_resolutions for level in range(len(multipliers))]

        def block(inner: int, outer: int, attention: bool) -> AttendedResBlock:
            return AttendedResBlock(inner, outer, embedding, dropout, attention)

        self.embed = FourierTime(channels) if conditional else None
        self.stem = conv3x3(in_channels, channels)
        self.pyramid_down, self.pyramid_up = FIRDown(), FIRUp()
        self.down_blocks, self.downs, self.combines = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, skips = channels, [channels]
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.downs.append(ResBlock(width, width, embedding, dropout, FIRDown()))
                self.combines.append(conv1x1(in_channels, width))
                skips.append(width)
            stack = nn.ModuleList()
            for _ in range(blocks):
                stack.append(block(width, channels * multiplier, attended[level]))
                width = channels * multiplier
                skips.append(width)
            self.down_blocks.append(stack)

        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])

        # The lists of the way up go from the coarsest level to the finest.
        self.up_blocks, self.ups, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(multipliers))):
            stack = nn.ModuleList()
            outer = channels * multipliers[level]
            for index in range(blocks + 1):
                stack.append(block(width + skips.pop(), outer, attended[level] and index == blocks))
                width = outer
            self.up_blocks.append(stack)
            self.heads.append(nn.Sequential(group_norm(width), nn.SiLU(), conv3x3(width, out_channels, scale=0.0)))
            if level > 0:
                self.ups.append(ResBlock(width, width, embedding, dropout, FIRUp()))

    def forward(self, x: Tensor, time: Tensor | None = None, group: int = 1) -> Tensor:
        """Map ``x [N,C_in,H,W]`` and conditioning values ``time [N]`` (None if unconditional) to ``[N,C_out,H,W]``.

        Every ``group`` consecutive items attend to one another.
        """
        embedding = None if self.embed is None else self.embed(time)
        pyramid = self.frame.pad(self.fold(x))
        h = self.stem(pyramid)
        skips = [h]
        for level, stack in enumerate(self.down_blocks):
            if level > 0:
                pyramid = self.pyramid_down(pyramid)
                h = self.downs[level - 1](h, embedding) + self.combines[level - 1](pyramid)
                skips.append(h)
            for block in stack:  # type: ignore[attr-defined]
                h = block(h, embedding, group)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding, group)
        output = None
        for level, stack in enumerate(self.up_blocks):
            for block in stack:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding, group)
            head = self.heads[level](h)
            output = head if output is None else self.pyramid_up(output) + head
            if level < len(self.ups):
                h = self.ups[level](h, embedding)
        assert output is not None
        assert not skips
        folded: Tensor = self.unfold(self.frame.crop(output))
        return folded


@serializable
class LogSigma(nn.Module):
    """The value that conditions a network on t: log sigma(t), where sigma(t) = sigma_max^(1-t) sigma_min^t.

    Args:
        sigma_min: sigma at t = 1.
        sigma_max: sigma at t = 0.
    """

    def __init__(self, sigma_min: float = 0.05, sigma_max: float = 0.5) -> None:
        super().__init__()
        self.log_min, self.log_max = math.log(sigma_min), math.log(sigma_max)

    def forward(self, t: Tensor) -> Tensor:
        """Map ``t [B]`` in [0,1] to the conditioning value ``[B]``."""
        return (1 - t) * self.log_max + t * self.log_min


@functools.partial(serializable, rest=NCSNpp)
class SharedNCSNpp(VelocityNetwork):
    """One NCSN++ for all sources; it sees each source with the mixture. Permutation-equivariant at every t.

    Ours: the paper asks for an equivariant network (Section 2.2), and Table 6 does not say how NCSN++ becomes one.

    With K = 2 a source and the mixture determine the other source, so the network treats each source alone. With more
    sources, the attention blocks run over the pixels of all K sources jointly.

    Args:
        num_sources: K.
        image_channels: C.
        image_size: height and width of the images; the network pads them inside where the levels need it.
        head: what the raw output stands for; the velocity if None.
        time: what the layers see of t; log sigma(t) from 0.5 to 0.05 if None.
        scale_by_sigma: divide the raw output by sigma(t).
        unet: the other arguments of ``NCSNpp``.

    Raises:
        ValueError: ``scale_by_sigma`` with a head other than VelocityHead; a size that ``NCSNpp`` does not take.
    """

    def __init__(
        self,
        num_sources: int,
        image_channels: int,
        image_size: int,
        head: Head | None = None,
        time: LogSigma | None = None,
        scale_by_sigma: bool = True,
        **unet: Any,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.head = VelocityHead() if head is None else head
        self.time = LogSigma() if time is None else time
        if scale_by_sigma and not isinstance(self.head, VelocityHead):
            raise ValueError("scale_by_sigma needs VelocityHead: pass scale_by_sigma=False")
        self.scale_by_sigma = scale_by_sigma
        self.trunk = NCSNpp(2 * image_channels, image_channels, image_size, conditional=True, **unet)

    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """``x_t [B,K,C,H,W]``, ``t [B]``, ``mixtures [B,C,H,W]`` (sums) -> zero-sum ``velocity [B,K,C,H,W]``."""
        k = self.num_sources
        log_sigma = self.time(t)
        items = torch.cat([x_t, (mixtures / k)[:, None].expand_as(x_t)], dim=2).flatten(0, 1)
        raw = self.trunk(items, log_sigma.repeat_interleave(k), group=k if k > 2 else 1)
        raw = raw.unflatten(0, (-1, k)).to(x_t.dtype)
        if self.scale_by_sigma:
            raw = raw / expand_like(log_sigma.exp(), raw)
        return self.head(raw, x_t, t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return self.head.residual_weight(t)


@functools.partial(serializable, rest=NCSNpp)
class RegressionNCSNpp(RegressionNetwork):
    """NCSN++ without time and noise: maps m/K to M ordered estimates and makes them consistent with the mixture.

    Args:
        num_outputs: M.
        num_sources: K, the number by which the mixtures are divided at the input.
        image_channels: C.
        image_size: height and width of the images; the network pads them inside where the levels need it.
        unet: the other arguments of ``NCSNpp``.

    Raises:
        ValueError: a size that ``NCSNpp`` does not take.
    """

    def __init__(self, num_outputs: int, num_sources: int, image_channels: int, image_size: int, **unet: Any) -> None:
        super().__init__()
        self.num_outputs, self.num_sources = num_outputs, num_sources
        outputs = num_outputs * image_channels
        self.trunk = NCSNpp(image_channels, outputs, image_size, conditional=False, **unet)

    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,C,H,W]`` (sums) -> ``estimates [B,M,C,H,W]``, which sum to them."""
        raw = self.trunk(mixtures / self.num_sources).to(mixtures.dtype)
        estimates = raw.unflatten(1, (self.num_outputs, -1))
        return mixture_consistent(estimates, mixtures)
