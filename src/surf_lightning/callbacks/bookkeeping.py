"""What a run leaves in its folder: checkpoints, configuration, test results."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import SaveConfigCallback

from surf_lightning import __version__
from surf_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from surf_lightning.callbacks.media import Media

EXAMPLES = 8  # test mixtures whose estimates are kept for reports


class SaveConfig(SaveConfigCallback):
    """``config.yaml``: the configuration of the latest fit in this folder, defaults included."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            # The branch taken by --ckpt_path last is no part of what was run.
            self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)


def hardware(device: torch.device) -> str:
    """The device by name, and the threads where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


class TestRecord(L.Callback):
    """``metrics.json``: what ``surf test`` measured, beside the mean of the sources, m/K; and some examples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.average = data.test_metrics().to(pl_module.device)
        self.examples: dict[str, torch.Tensor] = {}
        self.count = torch.zeros((), dtype=torch.long, device=pl_module.device)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        mixtures, sources = batch["mixtures"], batch["sources"]
        self.average.update((mixtures.unsqueeze(1) / sources.shape[1]).expand_as(sources), sources, mixtures)
        self.count += len(mixtures)
        if batch_idx == 0:
            kept = {"mixtures": mixtures, "sources": sources, "estimates": outputs}
            self.examples = {name: value[:EXAMPLES].cpu() for name, value in kept.items()}

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        average = {name: float(value) for name, value in self.average.compute().items()}
        count = int(trainer.strategy.reduce(self.count, reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        measured = {
            name.removeprefix("test/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        record = {
            "metrics": measured,
            "average": average,
            "mixtures": count,
            "method": type(pl_module).__name__,
            "label": pl_module.label,
            "data": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
            "seed": pl_module.seed,
            "steps": pl_module.trained_steps,
            "seconds": pl_module.trained_seconds,
            "hardware": hardware(pl_module.device),
            "checkpoint": str(trainer.ckpt_path),
            "version": __version__,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
        torch.save(self.examples, self.folder / "test_examples.pt")


def standard_callbacks(folder: Path, subcommand: str, has_loggers: bool) -> list[L.Callback]:
    """The callbacks that every run of ``subcommand`` has."""
    if subcommand == "test":
        return [TestRecord(folder)]
    if subcommand != "fit":
        return []
    monitor: list[L.Callback] = [LearningRateMonitor("step")] if has_loggers else []
    return [*monitor, Media(folder), BestCheckpoint(folder), LastCheckpoint(folder)]
