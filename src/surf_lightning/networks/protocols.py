"""What a method asks of a network. Axes: B batch, K sources, M outputs, *S the signal ([C,H,W] or [T])."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from torch import Tensor, nn

Class = TypeVar("Class", bound=type[Any])
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # nn.Module's own, which takes none


def recorded(cls: Class) -> Class:
    """Class decorator: an instance keeps its constructor's arguments as ``init_args``.

    A checkpoint needs them to rebuild the network; see ``surf_lightning.checkpoint``. Arguments must be plain
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
