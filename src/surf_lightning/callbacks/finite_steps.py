"""Steps whose gradient is not finite are left out."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from surf_lightning.errors import UserError

LOOK_EVERY = 100  # steps; a look at a number on CUDA waits for the device


class FiniteSteps(L.Callback):
    """Skips optimizer steps whose gradient holds NaN or infinity: weights, optimizer state and EMA never see one.

    The gradient of a distributed batch is the same on all processes, so all skip alike. On CUDA a fused optimizer skips
    on the device, without waiting for it; what was skipped is then said up to 100 steps later.

    Works in any Trainer, for any LightningModule. With 16-mixed it leaves all to the gradient scaler, which skips by
    design.

    Args:
        patience: so many skipped steps in a row end the run.
    """

    def __init__(self, patience: int = 20) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 step, not {patience}")
        self.patience = patience
        self.skipped, self._batch = 0, 0
        self._in_a_row: int | Tensor = 0
        self._unseen: Tensor | None = None  # on CUDA: steps skipped, longest row of them
        self._mixtures: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        self._batch, self._mixtures = progress.processed, batch

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.precision == "16-mixed":
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        norms = torch._foreach_norm(gradients)
        broken = ~torch.stack([norm.float() for norm in norms]).isfinite().all()
        if gradients[0].is_cuda and any(group.get("fused") for group in optimizer.param_groups):
            self._skip_on_device(trainer, optimizer, broken)
        elif broken:
            for group in optimizer.param_groups:  # an optimizer passes over parameters without a gradient
                for parameter in group["params"]:
                    parameter.grad = None
            self._in_a_row = int(self._in_a_row) + 1
            self._tell(self._in_a_row, 1)
        else:
            self._in_a_row = 0

    def _skip_on_device(self, trainer: L.Trainer, optimizer: Any, broken: Tensor) -> None:
        optimizer.found_inf = broken.float()  # as GradScaler tells fused optimizers
        one = broken.long()
        self._in_a_row = (self._in_a_row + one) * one
        if self._unseen is None:
            self._unseen = torch.zeros(2, dtype=torch.long, device=one.device)
        self._unseen = torch.stack([self._unseen[0] + one, torch.maximum(self._unseen[1], self._in_a_row)])
        if trainer.global_step % LOOK_EVERY == LOOK_EVERY - 1:
            skipped, in_a_row = self._unseen.tolist()
            self._unseen = None
            if skipped:
                self._tell(in_a_row, skipped)

    def _tell(self, in_a_row: int, skipped: int) -> None:
        self.skipped += skipped
        said = f"training batch {self._batch}: the gradient is not finite{self._rows()}"
        if in_a_row >= self.patience:
            raise UserError(
                f"{said}, and {in_a_row} steps in a row were skipped. The weights are those before them: look at the "
                "data and the learning rate, then go on with --ckpt_path last"
            )
        rank_zero_warn(f"{said}: step skipped, {self.skipped} so far. The weights are untouched.")

    def _rows(self) -> str:
        """Which mixtures of the batch hold NaN or infinity, and the files they come from where the data say so."""
        if not isinstance(self._mixtures, dict) or "mixtures" not in self._mixtures:
            return ""
        finite = self._mixtures["mixtures"].flatten(1).isfinite().all(1)
        rows = (~finite).nonzero().flatten().tolist()
        return f" (mixtures {', '.join(map(str, rows))} of it hold NaN or infinity)" if rows else ""

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])
