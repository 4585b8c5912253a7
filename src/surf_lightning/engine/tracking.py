"""Begins to track a run: every logger gets the configuration, what the run is made with, and what it is trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from surf_lightning.data.base import undeclared
from surf_lightning.engine.loggers import WANDB_ID, first_line, offline_note
from surf_lightning.provenance import provenance


class StartLoggers(L.Callback):
    """Begins to track a fit when its first step is due: one that is refused before has left nothing anywhere.

    It says ``notes`` then. ``start_loggers`` gets ``config`` and the run's facts beside it; of None neither.
    """

    def __init__(self, folder: Path, config: dict[str, Any] | None, notes: Iterable[str]) -> None:
        self.folder, self.config, self.notes = folder, config, notes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for note in self.notes:
            rank_zero_info(note)
        if trainer.is_global_zero:  # to know whether data is genuine, files may have to be read
            start_loggers(trainer.loggers, self.folder, None if self.config is None else self.config | facts(trainer))


def facts(trainer: L.Trainer) -> dict[str, Any]:
    """What tells runs of one configuration apart: versions, commit, hardware and processes, and the data found."""
    made_with = {**provenance(trainer.strategy.root_device), "processes": trainer.world_size}
    return {"provenance": made_with, "dataset": undeclared(trainer).datamodule.facts()}


@rank_zero_only
def start_loggers(loggers: Iterable[Logger], folder: Path, config: dict[str, Any] | None = None) -> None:
    """Begin to track the run in ``folder``, or go on; every logger gets the configuration as hyper-parameters."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _start_wandb(logger, folder)
        if config is not None:
            logger.log_hyperparams(config)


def _start_wandb(logger: WandbLogger, folder: Path) -> None:
    """Offline where the server does not answer or knows no such account; the id is saved for later commands."""
    import wandb

    if logger._wandb_init.get("anonymous") is None:  # Lightning gives it, empty, and W&B warns of it
        logger._wandb_init.pop("anonymous", None)
    try:
        _ = logger.experiment
    except wandb.errors.CommError as error:
        if "WANDB_MODE" in os.environ or logger._log_model:  # asked for by name; models cannot be uploaded offline
            raise
        wandb.teardown()  # it still holds the id
        logger._wandb_init |= {"mode": "offline", "settings": wandb.Settings(silent=True)}
        rank_zero_info(offline_note(f"its server cannot be used ({first_line(error)})", str(logger.version), folder))
        _ = logger.experiment
    for handler in logging.getLogger("wandb").handlers:  # its own log: on a full disk each line would be a traceback
        handler.handleError = lambda record: None  # type: ignore[method-assign]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WANDB_ID).write_text(f"{logger.version}\n")
