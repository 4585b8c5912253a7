"""How long the hybrid teacher follows the frozen MixIT teacher (Appendix D.3), and how long any schedule is."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from surf_lightning.errors import UserError

Steps = int | float
"""Optimizer steps, or, a float in (0, 1], a share of those of the whole run."""


def check_steps(name: str, given: Steps, least: int = 1) -> None:
    """Raises ValueError unless ``given`` is a number of steps, ``least`` or more, or a share of the run."""
    if not (0 < given <= 1 if isinstance(given, float) else given >= least):
        steps = f"a number of steps of at least {least}"
        raise ValueError(f"{name} must be {steps}, or a share of the run in (0, 1] such as 0.25, not {given}")


def in_steps(given: Steps, total: int) -> int:
    """``given`` in optimizer steps, where the run has ``total``.

    Raises:
        UserError: it is a share of a run without an end.
    """
    if not isinstance(given, float):
        return given
    if total < 1:
        raise UserError(f"a schedule is a share of the run ({given}), which has no end: give --trainer.max_steps")
    return max(1, round(given * total))


class BetaSchedule(L.Callback):
    """Sets ``module.beta``: ``start`` for ``frozen_steps`` steps, then linearly to ``end`` within ``steps`` steps.

    Works in any Trainer, for any LightningModule. Both may be shares of the trainer's ``max_steps``.

    The paper goes from 1 to 0 in 200,000 (Appendix D.3); the single values of Table 9 we hold (``start`` = ``end``).
    """

    def __init__(self, start: float = 1.0, end: float = 0.0, steps: Steps = 200_000, frozen_steps: Steps = 0) -> None:
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"beta must lie in [0, 1], not go from {start} to {end}")
        check_steps("beta_steps", steps)
        check_steps("frozen_steps", frozen_steps, least=0)
        self.start, self.end, self.steps, self.frozen_steps = start, end, steps, frozen_steps
        self.total = -1
        """Steps of the run."""

    def beta(self, step: int) -> float:
        """The value at optimizer step ``step``, counted from 0."""
        progress = max(step - in_steps(self.frozen_steps, self.total), 0) / in_steps(self.steps, self.total)
        if progress >= 1:
            return self.end  # to the bit: the frozen teacher's part ends where t < beta does
        return self.start + (self.end - self.start) * progress

    @property
    def end_step(self) -> int:
        """The step at which ``end`` is reached."""
        return in_steps(self.frozen_steps, self.total) + in_steps(self.steps, self.total)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.total = getattr(pl_module, "run_steps", trainer.max_steps)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.beta = self.beta(trainer.global_step)
        # Filled on the device: a number of the host's would be copied there, and the host wait for the copy.
        pl_module.log("beta", torch.full((), pl_module.beta, device=pl_module.device))
