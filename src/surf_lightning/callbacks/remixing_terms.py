"""How much of its own error a separator would teach itself by remixing."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from surf_lightning.functional.randomness import mix_seed
from surf_lightning.functional.remixing import remix
from surf_lightning.metrics.remixing import RemixingTerms


class MeasureRemixing(L.Callback):
    """Logs ``metrics.RemixingTerms`` of held-out mixtures with truth, for the separator as its own student.

    As where it begins to teach a stage of remixing, and at the end of SURF, where teacher and student are alike. Only
    by request: ``surf test --config digits_mixit --trainer.callbacks MeasureRemixing``.

    Works for any LightningModule with a ``separator``.
    """

    def __init__(self) -> None:
        self.terms = RemixingTerms()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if "sources" not in batch:
            return
        generator = torch.Generator(pl_module.device).manual_seed(mix_seed(trainer.global_rank, batch_idx))
        with trainer.precision_plugin.forward_context():
            teacher = pl_module.separator.separate(batch["mixtures"], generator)
            remixed = remix(teacher, generator)
            student = pl_module.separator.separate(remixed.mixtures, generator)
        self.terms.to(pl_module.device).update(teacher, student, batch["sources"], remixed)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "test")

    def _log(self, pl_module: Any, stage: str) -> None:
        if self.terms.update_called:
            pl_module.log_dict({f"{stage}/{name}": value for name, value in self.terms.compute().items()})
            self.terms.reset()
