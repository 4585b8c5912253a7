"""What `surf validate` and `surf test` tell the user."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch

from surf_lightning.metrics.availability import unavailable_columns
from surf_lightning.reporting.console import result_text


def measured(trainer: L.Trainer, stage: str) -> dict[str, float]:
    """What ``stage``, val or test, has logged, by the metrics' own names."""
    logged = trainer.callback_metrics.items()
    return {name.removeprefix(f"{stage}/"): float(value) for name, value in logged if name.startswith(f"{stage}/")}


def without_nan(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class PrintedResult(L.Callback):
    """Prints the row of the paper's table instead of Lightning's list of numbers.

    A test's is read from the file that ``TestResults``, a callback before this one, has written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.validate_loop.verbose = trainer.test_loop.verbose = False

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.count += len(batch["mixtures"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        count = int(trainer.strategy.reduce(torch.tensor(self.count, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        record = {
            "metrics": without_nan(measured(trainer, "val")),
            "unavailable": unavailable_columns(pl_module.val_metrics),
            "protocol": f"{type(data).__name__}: {count:,} held-out mixtures, those that training looks at.",
            "label": pl_module.label,
            "data": type(data).__name__,
            "steps": pl_module.trained_steps,
            "seconds": pl_module.trained_seconds,
        }
        print(f"\n{result_text(self.folder, 'metrics', record)}")

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        path = self.folder / f"{data.results_name}.json"
        record = json.loads(path.read_text())
        print(f"\n{result_text(self.folder, data.results_name, record)}\nwritten to {path}")
