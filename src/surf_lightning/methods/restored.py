"""Whether a run can go on from what a checkpoint restored of it, in which a stranger may have put anything."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from surf_lightning.errors import UserError


def plain_number(value: Any) -> Any:
    """``value`` if it is an ordinary number, or None."""
    return value if type(value) in (int, float) and abs(value) < 2.0**63 else None


def check_average(state: dict[str, Any], configured: bool) -> None:
    """Raises UserError where one of the weights ``state`` and the ``configured`` run has an EMA, and the other none."""
    averaged = any(name.startswith("student.") for name in state)
    if averaged != configured:
        raise UserError(
            f"the checkpoint was written {'with' if averaged else 'without'} an EMA of the weights, this run has "
            f"{'none' if averaged else 'one'} (model.ema_decay)"
        )


def check_kind(restored: dict[str, Any], configured: dict[str, Any]) -> None:
    """Raises UserError where the ``restored`` settings lack some that the ``configured`` optimizer has."""
    if missing := configured.keys() - restored.keys():
        raise UserError(
            f"the checkpoint's optimizer is of another kind: it has no {', '.join(sorted(missing))}. Configure "
            "the one that the run began with (see its config.yaml), or start a new run without --ckpt_path"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Try the next step: of a copy of the optimizer, on weights and gradients of zero, one weight at a time.

    Raises:
        UserError: it fails, or leaves a weight that is not finite.
    """
    groups = [{**group} for group in optimizer.param_groups]
    trial = _copy(optimizer, [{**group, "params": []} for group in groups])
    for group, tried in zip(groups, trial.param_groups, strict=True):
        for weight in group["params"]:
            zero = torch.zeros_like(weight, requires_grad=True)
            zero.grad = torch.zeros_like(weight)
            tried["params"] = [zero]
            trial.state = defaultdict(dict)
            try:
                trial.state[zero] = copy.deepcopy(optimizer.state.get(weight, {}))
                trial.step()
                kept = [value for value in (zero, *trial.state[zero].values()) if isinstance(value, Tensor)]
            except Exception as error:  # optimizers have no errors of their own for this
                raise _unfit("the optimizer's state", error) from error
            if not all(value.isfinite().all() for value in kept):
                raise _unfit("the optimizer's state", "it is not finite")
            tried["params"] = []
    later = copy.copy(schedule)
    later.optimizer = _copy(optimizer, groups)
    try:
        with warnings.catch_warnings():  # the copy's step does not count as one, of which a schedule would warn
            warnings.simplefilter("ignore")
            later.step()
        rates = [float(group["lr"]) for group in groups]
    except Exception as error:
        raise _unfit("the learning rate's schedule", error) from error
    if not all(math.isfinite(rate) for rate in rates):
        raise _unfit("the learning rate's schedule", "it is not finite")


def check_progress(found: Any, mine: Any) -> None:
    """Raises UserError where ``found``, the state of Lightning's loops, has no count where ``mine`` has one."""
    if isinstance(mine, dict):
        if not isinstance(found, dict):
            raise _unfit("its progress", f"{type(found).__name__} in place of counts")
        for name in mine.keys() & found.keys():
            check_progress(found[name], mine[name])
    elif type(mine) is int and not (type(found) is int and 0 <= found < 2**63):
        raise _unfit("its progress", f"{found!r:.40} in place of a count")


def _copy(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    twin = copy.copy(optimizer)
    twin.param_groups = groups
    return twin


def _unfit(what: str, why: Any) -> UserError:
    said = f"{type(why).__name__}: {why}".partition("\n")[0] if isinstance(why, Exception) else why
    return UserError(
        f"the checkpoint cannot be continued: {what} does not fit ({said}). Its weights can be begun with, by "
        "--model.initial_checkpoint"
    )
