"""Steps whose gradient is not finite are left out."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from surf_lightning.errors import UserError

LOOK_EVERY = 100  # steps; a look at a number on CUDA waits for the device


class FiniteSteps(L.Callback):
    """Skips optimizer steps whose gradient holds NaN or infinity: weights, optimizer state and EMA never see one.

    What is said of a skipped step names the batches and the mixtures in them that hold NaN or infinity, and, where the
    data set has a method ``names(batch, row)``, the files behind them; where all are finite, the loudest mixture.

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
        self.skipped = 0
        self._in_a_row: int | Tensor = 0
        self._unseen: Tensor | None = None  # on CUDA: steps skipped, longest row of them
        self._peaks: dict[int, Tensor] = {}  # of each mixture, by the number of the batch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        mixtures = batch.get("mixtures") if isinstance(batch, dict) else None
        peaks = torch.zeros(0) if mixtures is None else mixtures.detach().flatten(1).abs().amax(1)
        self._peaks[progress.processed] = peaks

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients or trainer.precision == "16-mixed":
            self._peaks.clear()
            return
        norms = torch._foreach_norm(gradients)
        broken = ~torch.stack([norm.float() for norm in norms]).isfinite().all()
        if gradients[0].is_cuda and any(group.get("fused") for group in optimizer.param_groups):
            self._skip_on_device(trainer, optimizer, broken)
            return
        if broken:
            for group in optimizer.param_groups:  # an optimizer passes over parameters without a gradient
                for parameter in group["params"]:
                    parameter.grad = None
            self._in_a_row = int(self._in_a_row) + 1
            self._tell(trainer, self._in_a_row, 1)
        else:
            self._in_a_row = 0
        self._peaks.clear()

    def _skip_on_device(self, trainer: L.Trainer, optimizer: Any, broken: Tensor) -> None:
        optimizer.found_inf = broken.float()  # as GradScaler tells fused optimizers
        one = broken.long()
        self._in_a_row = (self._in_a_row + one) * one
        if self._unseen is None:
            self._unseen = torch.zeros(2, dtype=torch.long, device=one.device)
        self._unseen = torch.stack([self._unseen[0] + one, torch.maximum(self._unseen[1], self._in_a_row)])
        if trainer.global_step % LOOK_EVERY == LOOK_EVERY - 1:
            self._look(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        """Tell of the steps that were skipped on the device since the last look, for which it must be waited for."""
        skipped, in_a_row = (0, 0) if self._unseen is None else self._unseen.tolist()
        self._unseen = None
        if skipped:
            self._tell(trainer, in_a_row, skipped)
        self._peaks.clear()

    def _tell(self, trainer: L.Trainer, in_a_row: int, skipped: int) -> None:
        self.skipped += skipped
        here = self._broken_rows(trainer)
        rows = here or self._loudest_row(trainer)
        said = f"training batch {max(self._peaks, default=0)}: the gradient is not finite{rows}"
        if in_a_row >= self.patience:
            raise UserError(
                f"{said}, and {in_a_row} steps in a row were skipped. The weights are those before them: look at the "
                "data and the learning rate, then go on with --ckpt_path last"
            )
        warn = warnings.warn if here else rank_zero_warn  # the process that has such a mixture knows its file
        warn(f"{said}: step skipped, {self.skipped} so far. The weights are untouched.")

    def _broken_rows(self, trainer: L.Trainer) -> str:
        """Which mixtures of the batches since the last look hold NaN or infinity."""
        broken = {batch: (~peaks.isfinite()).nonzero().flatten().tolist() for batch, peaks in self._peaks.items()}
        found = [_named(trainer, batch, rows) for batch, rows in broken.items() if rows]
        return f" (mixtures {' and '.join(found)} hold NaN or infinity)" if found else ""

    def _loudest_row(self, trainer: L.Trainer) -> str:
        peaks = {batch: float(peaks.max()) for batch, peaks in self._peaks.items() if len(peaks)}
        if not peaks:
            return ""
        batch = max(peaks, key=lambda number: peaks[number])
        here = " of this process" if trainer.world_size > 1 else ""
        loudest = _named(trainer, batch, [int(self._peaks[batch].argmax())])
        return f" (all mixtures{here} are finite; the loudest, {loudest} reaches {peaks[batch]:.3g})"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])


def _named(trainer: L.Trainer, batch: int, rows: list[int]) -> str:
    """Rows of a batch, and the files behind them where the data set knows."""
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    files = "; ".join(dataset.names(batch, row) for row in rows) if hasattr(dataset, "names") else ""
    return f"{', '.join(map(str, rows))} of batch {batch}{f', {files},' if files else ''}"
