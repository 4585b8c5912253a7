"""The standard deviation of the prior's noise, as a function of the mixture. Axes: B batch, *S the signal."""

from __future__ import annotations

from torch import Tensor, nn

from surf_lightning.networks.protocols import recorded


class PriorNoise(nn.Module):
    """Gives the deviation of the noise, the same for all sources, so that the prior stays exchangeable."""

    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor | float:
        """``mixtures [B,*S]`` -> a number, or a tensor that broadcasts against ``[B,K,*S]``."""
        raise NotImplementedError


@recorded
class ConstantNoise(PriorNoise):
    """The same deviation everywhere, in the units of the sources: Sigma = scale^2 I in Eq. (4)."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> float:
        return self.scale
