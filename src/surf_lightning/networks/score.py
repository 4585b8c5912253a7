"""Priors of single images, as scores. Axes: N images, C H W the image, *S the signal."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like
from surf_lightning.networks.base import serializable
from surf_lightning.networks.ncsnpp import NCSNpp


class ScoreNetwork(nn.Module, ABC):
    """The score of single signals: the gradient of log p_sigma, the density of clean signals blurred by sigma."""

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Map noisy signals ``x [N,*S]`` and noise levels ``sigma [N]``, in the units of x, to the score ``[N,*S]``."""


@functools.partial(serializable, rest=NCSNpp)
class ScoreNCSNpp(ScoreNetwork):
    """NCSN++ conditioned on log sigma, its output divided by sigma. Images lie in [0,1]; sigma has their units.

    Args:
        image_channels: C.
        image_size: height and width of the images; the network pads them inside where the levels need it.
        unet: the other arguments of ``NCSNpp``.
    """

    def __init__(self, image_channels: int, image_size: int, **unet: Any) -> None:
        super().__init__()
        self.trunk = NCSNpp(image_channels, image_channels, image_size, conditional=True, **unet)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.trunk(2 * x - 1, sigma.log()).to(x.dtype) / expand_like(sigma, x)
