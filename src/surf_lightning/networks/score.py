"""Priors of single images, as scores. Axes: N images, C H W the image, *S the signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like
from surf_lightning.networks.base import serializable
from surf_lightning.networks.ncsnpp import NCSNpp


class ScoreNetwork(nn.Module, ABC):
    """The score of single signals: the gradient of log p_sigma, the density of clean signals blurred by sigma."""

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Map noisy signals ``x [N,*S]`` and noise levels ``sigma [N]``, in the units of x, to the score ``[N,*S]``."""


@serializable
class ScoreNCSNpp(ScoreNetwork):
    """NCSN++ conditioned on log sigma, its output divided by sigma. Images lie in [0,1]; sigma has their units.

    Args:
        image_channels: C.
        image_size: height and width of the images; the network pads them inside where the levels need it.
        channels: width of the finest level.
        multipliers: width of each level, in units of ``channels``.
        blocks: residual blocks per level on the way down; the way up has one more.
        attention_resolutions: the sizes H of the levels with attention; the middle always has it.
        dropout: share of the activations that dropout zeroes in each residual block.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16, 8),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.trunk = NCSNpp(
            in_channels=image_channels,
            out_channels=image_channels,
            image_size=image_size,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
        )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.trunk(2 * x - 1, sigma.log()).to(x.dtype) / expand_like(sigma, x)
