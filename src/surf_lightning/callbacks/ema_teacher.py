"""The teacher follows the student."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """theta_T <- decay theta_T + (1 - decay) theta, line 16 of Algorithm 1, as one fused operation; copies buffers."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
    for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
        old.copy_(new)


class EMATeacher(L.Callback):
    """Moves ``module.teacher`` towards ``module.student`` once per optimizer step, however many batches a step has.

    The decay is warmed up: at step n it is min(decay, n / (9 + n)), so that the average covers about the last tenth of
    the steps until it reaches ``decay``, and never holds a share of the random beginning. (The paper has none, and
    needs none: beta alone takes 200,000 steps there. A run of a thousand does.)

    Works in any Trainer, for any LightningModule with these two modules of one shape.

    Args:
        decay: alpha, the share of itself that the teacher keeps at each step.
        every: optimizer steps between two moves, which the warm-up counts then. ReMixIT and Self-Remixing move the
            teacher once an epoch; at a decay of 0 the student replaces the teacher.

    Raises:
        ValueError: the decay is not between 0 and 1, or there is not even a step between two moves.
    """

    def __init__(self, decay: float = 0.999, every: int = 1) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"the EMA decay must lie in [0, 1], not {decay}")
        if every < 1:
            raise ValueError(f"the EMA must move every step or every few steps, not every {every}")
        self.decay, self.every = decay, every
        self._followed = 0

    def decay_at(self, step: int) -> float:
        """The decay at move ``step``, counted from 1; ``decay`` = 1 holds the teacher."""
        return self.decay if self.decay == 1 else min(self.decay, step / (9 + step))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._followed = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step > self._followed and step % self.every == 0:
            ema_update(pl_module.teacher, pl_module.student, self.decay_at(step // self.every))
        self._followed = step
