"""MoMi of held-out mixtures, with or without truth. Axes: B batch, P pairs of mixtures, M outputs, *S the signal."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from surf_lightning.metrics.audio import MoMi


class MeasureMoMi(L.Callback):
    """Logs how well held-out mixtures are rebuilt from separated mixtures of two of them, see ``metrics.MoMi``.

    ``val/momi`` is of the neighbours in a batch, and ``val/momi_error`` is its standard error; amid a fit they are left
    out where there is truth, which says more. ``test/momi`` stands beside the other metrics, and is of one batch and
    the next, longer recordings cut. A process with one batch has none.

    Works for any LightningModule with ``outputs(mixtures [P,*S], batch_idx) -> [P,M,*S]``.
    """

    def __init__(self) -> None:
        self.momi = MoMi()
        self.waiting: Tensor | None = None
        self.in_test = False

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        mixtures = batch["mixtures"]
        wanted = "sources" not in batch or trainer.state.fn == TrainerFn.VALIDATING
        if wanted and len(mixtures) > 1:
            self._update(trainer, pl_module, mixtures, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "val/momi")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.waiting = None
        batches = torch.tensor(trainer.num_test_batches[0], device=pl_module.device)
        least = trainer.strategy.reduce(batches, reduce_op="min")  # or some processes would wait for one without pairs
        self.in_test = int(least) > 1

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self.in_test:
            return
        if self.waiting is None:
            self.waiting = batch["mixtures"]
            return
        rows, *_, last = (min(sizes) for sizes in zip(self.waiting.shape, batch["mixtures"].shape, strict=True))
        pairs = torch.stack([mixtures[:rows, ..., :last] for mixtures in (self.waiting, batch["mixtures"])], 1)
        self.waiting = None
        self._update(trainer, pl_module, pairs.flatten(0, 1), batch_idx)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "test/momi")

    def _update(self, trainer: L.Trainer, pl_module: Any, mixtures: Tensor, batch_idx: int) -> None:
        """Separate the sums of neighbours among ``mixtures [2P,*S]``; an odd last is left out."""
        pairs = torch.unflatten(mixtures[: len(mixtures) // 2 * 2], 0, (-1, 2))
        with trainer.precision_plugin.forward_context():
            outputs = pl_module.outputs(pairs.sum(1), batch_idx)
        self.momi.to(pl_module.device).update(outputs.flatten(2), pairs.flatten(2))

    def _log(self, pl_module: Any, name: str) -> None:
        if self.momi.update_called:
            pl_module.log(name, self.momi.compute(), prog_bar=True)
            if name == "val/momi":
                pl_module.log("val/momi_error", self.momi.error)
            self.momi.reset()
