"""What a method asks of a network, the heads of flow networks, and the noise of their prior.

Axes: B batch, K sources, M outputs, *S the signal ([C,H,W] or [T]), T samples.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like, project_zero_sum
from surf_lightning.functional.precision import at_least_float32, full_precision
from surf_lightning.networks.stft import rms

ENVELOPE_SECONDS = 1024 / 44100  # the first to the last of the 1025 taps at 44.1 kHz of Scheibler et al. (2025)

Class = TypeVar("Class", bound=type[Any])
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # nn.Module's own, which takes none


def serializable(cls: Class) -> Class:
    """Class decorator: an instance keeps its constructor's arguments as ``init_args``.

    A checkpoint needs them to rebuild the network; see ``surf_lightning.inference.checkpoint``. Arguments must be plain
    values (numbers, strings, lists of them) or themselves instances of recorded classes.
    """
    init = cls.__init__
    signature = inspect.signature(init)
    named = [name for name, parameter in signature.parameters.items() if parameter.kind not in VARIADIC][1:]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        init(self, *args, **kwargs)
        if type(self) is cls:  # else a recorded subclass does it
            self.init_args = {name: bound.arguments[name] for name in named}

    cls.__init__ = __init__
    return cls


class RegressionNetwork(nn.Module, ABC):
    """Maps mixtures to estimates. Subclasses set ``num_outputs`` (M) and keep the estimates mixture-consistent."""

    num_outputs: int

    @abstractmethod
    def forward(self, mixtures: Tensor) -> Tensor:
        """``mixtures [B,*S]`` (sums of sources) -> ``estimates [B,M,*S]``, which sum to the mixtures."""


class VelocityNetwork(nn.Module, ABC):
    """The velocity field v(x_t, t, m) of a flow separator, zero-sum over the sources at every t."""

    num_sources: int

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """``x_t [B,K,*S]``, ``t [B]`` in [0,1], ``mixtures [B,*S]`` (sums of sources) -> ``velocity [B,K,*S]``."""

    @abstractmethod
    def residual_weight(self, t: Tensor) -> Tensor:
        """Weight ``[B]`` of the residual R_t in the training loss: 1 for a network that predicts the velocity,
        1 - t, as in Eq. (29), for one that predicts the sources."""


# -- heads: how a flow network's raw output becomes a velocity --


class Head(nn.Module, ABC):
    """Turns a raw network output into a velocity that sums to zero over the sources."""

    @abstractmethod
    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``raw [B,K,*S]``, ``x_t [B,K,*S]``, ``t [B]`` in [0,1] -> ``velocity [B,K,*S]``."""

    @abstractmethod
    def residual_weight(self, t: Tensor) -> Tensor:
        """Weight ``[B]`` of the training residual at times ``t [B]``."""


@serializable
class VelocityHead(Head):
    """The raw output is the velocity itself: v = P raw, with P the zero-sum projection."""

    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return project_zero_sum(raw)

    def residual_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@serializable
class SourceHead(Head):
    """The raw output is an estimate of the sources: v = P(raw - x_t) / (1 - t), weighted by 1 - t, Eq. (29).

    x_t + (1 - t) v is then the raw output made consistent with the mixture that x_t sums to.
    """

    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        # The floor keeps t = 1 finite; there the residual's weight is zero, and 0 * inf would be NaN.
        remaining = (1 - t).clamp_min(torch.finfo(t.dtype).eps)
        return project_zero_sum(raw - x_t) / expand_like(remaining, x_t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return 1 - t


# -- the standard deviation of the prior's noise, a function of the mixture --


class PriorNoise(nn.Module, ABC):
    """Gives the deviation of the noise, the same for all sources, so that the prior stays exchangeable."""

    @abstractmethod
    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor | float:
        """``mixtures [B,*S]`` -> a number, or a tensor that broadcasts against ``[B,K,*S]``."""


@serializable
class ConstantNoise(PriorNoise):
    """The same deviation everywhere: Sigma = scale^2 I in Eq. (4).

    Args:
        scale: the deviation, in the units of the sources.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> float:
        return self.scale


@serializable
class GlobalRMSNoise(PriorNoise):
    """One deviation for each example, in proportion to the RMS of m/K.

    Args:
        scale: the deviation in units of that RMS; at 1, noise and mean of the prior are equally loud.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor:
        deviation = self.scale / num_sources * rms(mixtures.flatten(1)).squeeze(1)
        return expand_like(deviation, mixtures.unsqueeze(1))


@serializable
class EnvelopeNoise(PriorNoise):
    """A deviation that follows the loudness of m/K in time: the root of its power, smoothed (Scheibler et al., 2025).

    The window is a Hamming window of unit sum, 23 ms long. For signals ``[B,T]``.

    Args:
        sample_rate: in Hz.
        scale: what the deviation is multiplied by.
    """

    window: Tensor

    def __init__(self, sample_rate: int = 16000, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        taps = 2 * round(ENVELOPE_SECONDS * sample_rate / 2) + 1
        window = torch.hamming_window(taps, periodic=False, dtype=torch.float64)
        self.register_buffer("window", (window / window.sum()).float(), persistent=False)

    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor:
        with full_precision(mixtures):
            power = at_least_float32(mixtures).square().unsqueeze(1)
            window = self.window.to(power.dtype).view(1, 1, -1)
            envelope = nn.functional.conv1d(power, window, padding=len(self.window) // 2)
        # Convolutions by FFT can give less than zero.
        return self.scale / num_sources * envelope.clamp_min(0).sqrt()
