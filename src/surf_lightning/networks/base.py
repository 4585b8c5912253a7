"""The two protocols of networks, the heads of flow networks, and the noise of their prior.

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

ENVELOPE_SECONDS = 1024 / 44100  # from first to last of the 1025 taps at 44.1 kHz in Scheibler et al. (2025)

Class = TypeVar("Class", bound=type[Any])
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # what a class inherits from nn.Module
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def serializable(cls: Class, rest: type | None = None) -> Class:
    """Class decorator: store the constructor's arguments of an instance as ``init_args``.

    Checkpoints rebuild networks from them (``surf_lightning.inference.checkpoint``). Arguments must be plain values
    (numbers, strings, lists of them) or instances of serializable classes. Where the constructor hands ``**arguments``
    on to the class ``rest``, they are those of its positional arguments that have defaults.
    """
    init = cls.__init__
    signature = inspect.signature(init)
    parameters = [each for each in signature.parameters.values() if each.kind not in VARIADIC]
    if rest is not None:
        known, others = set(signature.parameters), inspect.signature(rest).parameters.values()
        parameters += [p for p in others if p.kind is POSITIONAL and p.default is not p.empty and p.name not in known]
        signature = signature.replace(parameters=parameters)
    cls.arguments = [each.name for each in parameters[1:]]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        init(self, *args, **kwargs)
        if type(self) is cls:  # else the subclass's own decorator stores them
            self.init_args = {name: bound.arguments[name] for name in cls.arguments}

    cls.__init__, cls.is_serializable = __init__, True
    return cls


class RegressionNetwork(nn.Module, ABC):
    """Maps mixtures to estimates.

    Attributes:
        num_outputs: M.
    """

    num_outputs: int

    @abstractmethod
    def forward(self, mixtures: Tensor) -> Tensor:
        """Separate mixtures.

        Args:
            mixtures: sums of sources, ``[B,*S]``.

        Returns:
            Estimates that sum to the mixtures, ``[B,M,*S]``.
        """


class VelocityNetwork(nn.Module, ABC):
    """The velocity field v(x_t, t, m) of a flow separator.

    Attributes:
        num_sources: K.
    """

    num_sources: int

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """Predict the velocity.

        Args:
            x_t: points on the paths from prior to sources, ``[B,K,*S]``.
            t: times in [0,1], ``[B]``.
            mixtures: sums of sources, ``[B,*S]``.

        Returns:
            The velocity ``[B,K,*S]``. It sums to zero over the sources at every t.
        """

    @abstractmethod
    def residual_weight(self, t: Tensor) -> Tensor:
        """Weight ``[B]`` of the residual R_t in the training loss.

        1 for a network that predicts the velocity; 1 - t, Eq. (29), for one that predicts the sources.
        """


# -- heads: from a flow network's raw output to a velocity --


class Head(nn.Module, ABC):
    """Turns a raw network output into a velocity that sums to zero over the sources."""

    @abstractmethod
    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Map ``raw [B,K,*S]``, ``x_t [B,K,*S]`` and ``t [B]`` in [0,1] to the velocity ``[B,K,*S]``."""

    @abstractmethod
    def residual_weight(self, t: Tensor) -> Tensor:
        """Weight ``[B]`` of the training residual at times ``t [B]``; see :class:`VelocityNetwork`."""


@serializable
class VelocityHead(Head):
    """The raw output is the velocity: v = P raw, where P projects to zero sum over the sources."""

    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return project_zero_sum(raw)

    def residual_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@serializable
class SourceHead(Head):
    """The raw output estimates the sources: v = P(raw - x_t) / (1 - t), weighted by 1 - t, Eq. (29).

    Then x_t + (1 - t) v is the raw output made consistent with the mixture, the sum of x_t.
    """

    def forward(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        # The floor keeps v finite at t = 1, where the residual's weight is zero and 0 * inf would be NaN.
        remaining = (1 - t).clamp_min(torch.finfo(t.dtype).eps)
        return project_zero_sum(raw - x_t) / expand_like(remaining, x_t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return 1 - t


# -- the prior's noise: its standard deviation as a function of the mixture --


class PriorNoise(nn.Module, ABC):
    """Standard deviation of the prior's noise, the same for all sources: the prior stays exchangeable."""

    @abstractmethod
    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor | float:
        """Standard deviation for ``mixtures [B,*S]`` of K sources.

        Returns:
            A number, or a tensor that broadcasts against ``[B,K,*S]``, in the units of the sources.
        """


@serializable
class ConstantNoise(PriorNoise):
    """The same deviation everywhere: ``scale`` times the z of Eq. (4), whose deviation is 1.

    Args:
        scale: standard deviation, in the units of the sources.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> float:
        return self.scale


@serializable
class GlobalRMSNoise(PriorNoise):
    """One deviation per example, proportional to the RMS of m/K.

    Args:
        scale: standard deviation in units of this RMS. At 1, the noise is as loud as the mean of the prior.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mixtures: Tensor, num_sources: int) -> Tensor:
        deviation = self.scale / num_sources * rms(mixtures.flatten(1)).squeeze(1)
        return expand_like(deviation, mixtures.unsqueeze(1))


@serializable
class EnvelopeNoise(PriorNoise):
    """A deviation that follows the envelope of m/K: the root of its smoothed power (Scheibler et al., 2025).

    A Hamming window of unit sum and 23 ms smooths the power. For signals ``[B,T]``.

    Args:
        sample_rate: in Hz.
        scale: factor on the envelope.
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
        # Convolutions by FFT can return small negative values.
        return self.scale / num_sources * envelope.clamp_min(0).sqrt()
