"""What a run leaves in its folder: checkpoints, configuration, test results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import SaveConfigCallback

from surf_lightning.callbacks.media import Media
from surf_lightning.callbacks.results import PrintedResult, TestResults
from surf_lightning.engine.checkpoints import BestCheckpoint, LastCheckpoint
from surf_lightning.engine.loggers import ContinueTables
from surf_lightning.files import replacing
from surf_lightning.provenance import provenance


class SaveConfig(SaveConfigCallback):
    """``config.yaml``: the configuration of the latest fit in this folder, and what it was made with."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.write(trainer)

    def write(self, trainer: L.Trainer) -> None:
        """Write it now."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            made_with = provenance(trainer.strategy.root_device)
            header = "".join(f"# {name}: {value}\n" for name, value in made_with.items() if value)
            with replacing(folder / "config.yaml", "w") as file:
                file.write(header + self.parser.dump(self.config, skip_none=False))


def standard_callbacks(folder: Path, subcommand: str, has_loggers: bool, **checkpoints: Any) -> list[L.Callback]:
    """The callbacks that every run of ``subcommand`` has; ``checkpoints`` are arguments of ``LastCheckpoint``."""
    if subcommand == "test":
        return [TestResults(folder), PrintedResult(folder)]
    if subcommand != "fit":
        return [PrintedResult(folder)]
    monitor: list[L.Callback] = [LearningRateMonitor("step"), ContinueTables()] if has_loggers else []
    return [*monitor, Media(folder), BestCheckpoint(folder), LastCheckpoint(folder, **checkpoints)]
