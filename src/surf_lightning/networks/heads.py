"""How a flow network's raw output becomes a velocity. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from surf_lightning.flow import project_zero_sum, rows_like
from surf_lightning.networks.protocols import recorded


class Head(nn.Module, ABC):
    """Turns a raw network output into a velocity that sums to zero over the sources."""

    @abstractmethod
    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``raw [B,K,*S]``, ``x_t [B,K,*S]``, ``t [B]`` in [0,1] -> ``velocity [B,K,*S]``."""

    @abstractmethod
    def residual_weight(self, t: Tensor) -> Tensor:
        """Weight ``[B]`` of the training residual at times ``t [B]``."""


@recorded
class VelocityHead(Head):
    """The raw output is the velocity itself: v = P raw, with P the zero-sum projection."""

    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return project_zero_sum(raw)

    def residual_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@recorded
class SourceHead(Head):
    """The raw output is an estimate of the sources: v = P(raw - x_t) / (1 - t), weighted by 1 - t, Eq. (29).

    x_t + (1 - t) v is then the raw output made consistent with the mixture that x_t sums to.
    """

    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        # The floor keeps t = 1 finite; there the residual's weight is zero, and 0 * inf would be NaN.
        remaining = (1 - t).clamp_min(torch.finfo(t.dtype).eps)
        return project_zero_sum(raw - x_t) / rows_like(remaining, x_t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return 1 - t
