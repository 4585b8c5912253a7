"""What a run leaves in its folder: checkpoints, configuration, test results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor

from surf_lightning.callbacks.results import measured, without_nan
from surf_lightning.files import make_writable, replacing
from surf_lightning.metrics.availability import unavailable_columns
from surf_lightning.provenance import provenance

EXAMPLES = {"image": 8, "audio": 3}  # test mixtures whose estimates are kept for reports
NOTHING = "no number came out: a mean over no example, or estimates that are not finite"


class TestResults(L.Callback):
    """What ``surf test`` measured, as ``metrics.json`` (the DataModule may name it otherwise), and some examples.

    Beside the values stand those of the mean of the sources, m/K. A value that cannot be had is null, and
    ``unavailable`` says why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            make_writable(self.folder)  # known before anything is measured
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.average = data.test_metrics().to(pl_module.device)
        self.examples: dict[str, list[Tensor]] = {"mixtures": [], "sources": [], "estimates": []}
        self.count = torch.zeros((), dtype=torch.long, device=pl_module.device)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        mixtures, sources = batch["mixtures"], batch["sources"]
        self.average.update((mixtures.unsqueeze(1) / sources.shape[1]).expand_as(sources), sources, mixtures)
        self.count += len(mixtures)
        missing = EXAMPLES[pl_module.signal["kind"]] - len(self.examples["mixtures"])
        for kept, signals in zip(self.examples.values(), (mixtures, sources, outputs), strict=True):
            kept.extend(signal.cpu().clone() for signal in signals[:missing])

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        average = {name: float(value) for name, value in self.average.compute().items()}
        count = int(trainer.strategy.reduce(self.count, reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        values = measured(trainer, "test")
        nothing = {name: NOTHING for name, value in values.items() if not math.isfinite(value)}
        loader: Any = trainer.test_dataloaders
        complete = trainer.num_test_batches == [len(loader)]
        record = {
            "metrics": without_nan(values),
            "unavailable": nothing | unavailable_columns(pl_module.test_metrics),
            "average": without_nan(average),
            "mixtures": count,
            "protocol": data.protocol() if complete else f"Only the first {count:,} of: {data.protocol()}",
            "published": data.published() if complete else None,
            "method": type(pl_module).__name__,
            "label": pl_module.label,
            "data": type(data).__name__,
            "seed": _fitted_seed(self.folder, pl_module.seed),
            "steps": pl_module.trained_steps,
            "seconds": pl_module.trained_seconds,
            "checkpoint": str(trainer.ckpt_path),
            **provenance(pl_module.device),
        }
        with replacing(self.folder / "test_examples.pt") as file:
            torch.save({**self.examples, **pl_module.signal}, file)
        with replacing(self.folder / f"{data.results_name}.json", "w") as file:  # last: make takes it for a test done
            file.write(json.dumps(record, indent=2) + "\n")


def _fitted_seed(folder: Path, otherwise: int) -> int:
    """The seed that the run in ``folder`` was trained from: a test need not be given it again."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return config.get("seed_everything", otherwise)
