"""What a run begins with: the weights of an earlier one, and its optimizer's settings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.inference.separator import Separator


def shared_weights(separator: Separator, earlier: Separator, name: str) -> dict[str, Tensor]:
    """Weights of ``earlier``, called ``name``, that have a namesake of the same shape in ``separator``.

    Raises:
        UserError: there are none.
    """
    own, theirs = separator.network.state_dict(), earlier.network.state_dict()
    shared = {key: weight for key, weight in theirs.items() if key in own and own[key].shape == weight.shape}
    if not shared:
        raise UserError(
            f"no weight of {name} has a namesake of the same shape in the network that is trained: begin without it, "
            "or choose networks of one family and width"
        )
    return shared


def begin_with(separators: Sequence[Separator], earlier: Separator, name: str) -> None:
    """Give ``separators``, of one network, the ``shared_weights``, and say how many they are."""
    weights = shared_weights(separators[0], earlier, name)
    for separator in separators:
        separator.network.load_state_dict(weights, strict=False)
    taken = sum(weight.numel() for weight in weights.values())
    total = sum(weight.numel() for weight in separators[0].network.state_dict().values())
    rank_zero_info(f"The student begins with {taken / total:.0%} of its weights from {name}.")


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's settings, the learning rate as it is before any schedule.

    Raises:
        UserError: its step needs a closure that evaluates the loss again, as that of L-BFGS does.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"model.optimizer: {type(optimizer).__name__} evaluates the loss several times a step, training here takes "
            "one gradient: choose an optimizer like torch.optim.AdamW"
        )
    group = optimizer.param_groups[0]
    settings = {key: value for key, value in group.items() if key not in ("params", "lr")}
    return {"initial_lr": group["lr"], **settings}
