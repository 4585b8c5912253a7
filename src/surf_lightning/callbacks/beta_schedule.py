"""How long the hybrid teacher follows the frozen MixIT teacher (Appendix D.3)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class BetaSchedule(L.Callback):
    """Sets ``module.beta``: ``start`` for ``frozen_steps`` steps, then linearly to ``end`` within ``steps`` steps.

    Works in any Trainer, for any LightningModule.

    The paper goes from 1 to 0 in 200,000; the ablation of Table 9 holds it (``start`` = ``end``).
    """

    def __init__(self, start: float = 1.0, end: float = 0.0, steps: int = 200_000, frozen_steps: int = 0) -> None:
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"beta must lie in [0, 1], not go from {start} to {end}")
        if steps < 1 or frozen_steps < 0:
            raise ValueError("the beta schedule needs steps of at least 1 and frozen_steps of at least 0")
        self.start, self.end, self.steps, self.frozen_steps = start, end, steps, frozen_steps

    def beta(self, step: int) -> float:
        """The value at optimizer step ``step``, counted from 0."""
        progress = max(step - self.frozen_steps, 0) / self.steps
        if progress >= 1:
            return self.end  # to the bit: the frozen teacher's part ends where t < beta does
        return self.start + (self.end - self.start) * progress

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.beta = self.beta(trainer.global_step)
        # Filled on the device: a number of the host's would be copied there, and the host wait for the copy.
        pl_module.log("beta", torch.full((), pl_module.beta, device=pl_module.device))
