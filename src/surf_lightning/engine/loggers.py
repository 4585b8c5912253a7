"""Where a run is tracked: metrics.csv, and what every logger is told of the run, and may fail at."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from surf_lightning.data.base import undeclared
from surf_lightning.engine.signals import ending
from surf_lightning.engine.weights_and_biases import INSTALL_WANDB, has_wandb, resolve_wandb, start_wandb
from surf_lightning.errors import first_line
from surf_lightning.files import own_file, replacing
from surf_lightning.provenance import provenance

COLUMNS = ("step", "epoch", "name", "value")
HPARAMS = "hparams.yaml"


class MetricsCSV(Logger):
    """Every number of the training, one to a line of ``<save_dir>/metrics.csv``: step, epoch, name, value.

    Lines are only ever appended. A resumed run logs the steps since its checkpoint a second time; where a step has
    several values of a name, the last one counts. On a full disk the training goes on, and the lines wait for room.

    Args:
        save_dir: The folder. The command line sets it to the run's.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self._path = Path(save_dir, "metrics.csv")
        self._begun = False
        self._waiting = ""  # lines that are not on disk yet
        self._told = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Written to ``hparams.yaml``, beside the table, as Lightning's own CSVLogger does."""
        path = self._path.with_name(HPARAMS)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, "w") as file:
                yaml.safe_dump(params, file, sort_keys=False, allow_unicode=True)
        except OSError as error:
            rank_zero_warn(f"{path} is left out: {error.strerror or error}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", "")  # LearningRateMonitor gives none
        lines = io.StringIO()
        rows = ((step, epoch, name, value) for name, value in values.items())
        csv.writer(lines, lineterminator="\n").writerows(rows)
        self._waiting += lines.getvalue()
        self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self._waiting:  # a fit that is refused leaves no table
            return
        try:
            self._append()
        except (OSError, ValueError) as error:
            if not self._told:
                reason = getattr(error, "strerror", None) or error
                rank_zero_warn(f"{self._path}: {reason}. The training goes on, its metrics are kept and tried again.")
            self._told = True
        else:
            self._waiting, self._told, self._begun = "", False, True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
        if self._waiting:
            rank_zero_warn(f"{self._path}: the last {self._waiting.count(chr(10))} lines could not be written.")

    def _append(self) -> None:
        """Append the lines, all or none; the first time, after the header and without what a kill left of a line."""
        lines = self._waiting.encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            if os.path.lexists(self._path):
                own_file(self._path.parent, self._path)  # in a run of a stranger it may lead elsewhere, or nowhere
            with self._path.open("a+b") as file:
                file.seek(0)
                whole = file.truncate(file.read().rfind(b"\n") + 1)
            if not whole:
                lines = (",".join(COLUMNS) + "\n").encode() + lines
        size = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(lines)
        except OSError:
            os.truncate(self._path, size)
            raise


def resolve_loggers(trainer: Namespace, folder: Path, subcommand: str, is_new: bool) -> list[str]:
    """Fill in what the loggers of a configuration need to know of the run in ``folder``, writing nothing.

    ``False`` means no logger but ``metrics.csv``, which is no service. ``validate`` logs nothing, as its numbers are no
    part of the run's course. ``test`` leaves ``metrics.csv`` alone, which is the table of the training.

    Returns:
        What to say when the run begins.
    """
    if subcommand == "validate" or (trainer.logger is False and subcommand == "test"):
        trainer.logger = False
        return []
    notes = []
    if trainer.logger in (None, True, False):
        if subcommand == "fit" and trainer.logger is not False and not has_wandb():
            notes.append(f"Only metrics.csv records this run. To track it with W&B as well: {INSTALL_WANDB}")
        trainer.logger = []
    if not isinstance(trainer.logger, list):
        trainer.logger = [trainer.logger]
    csv_path = f"{MetricsCSV.__module__}.{MetricsCSV.__qualname__}"
    if subcommand == "test":
        trainer.logger = [logger for logger in trainer.logger if logger.class_path != csv_path]
    for logger in trainer.logger:
        if logger.class_path.rpartition(".")[2] == "WandbLogger":
            notes += resolve_wandb(logger.init_args, folder, is_new)
        elif "save_dir" in (given := logger.get("init_args") or {}) and given["save_dir"] in (None, "."):
            given["save_dir"] = str(folder)
    if subcommand == "fit" and not any(logger.class_path == csv_path for logger in trainer.logger):
        trainer.logger.append(Namespace(class_path=csv_path, init_args=Namespace(save_dir=str(folder))))
    return notes


def go_on_without(tracker: Logger) -> None:
    """Let no error of ``tracker`` in mid-run end the training: the first is told of."""
    told: set[str] = set()
    for name in ("log_metrics", "log_image", "log_audio", "after_save_checkpoint", "save", "finalize"):
        if method := getattr(tracker, name, None):
            setattr(tracker, name, functools.partial(_attempt, method, type(tracker).__name__, told))


def _attempt(method: Callable[..., Any], tracker: str, told: set[str], *args: Any, **options: Any) -> None:
    try:
        method(*args, **options)
    except Exception as error:
        if not told and not ending.is_set():  # SLURM signals W&B's service as well, which ends at once
            rank_zero_warn(f"{tracker} has failed ({first_line(error)}). The training goes on without it.")
        told.add(tracker)


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
            start_wandb(logger, folder)
        if config is not None:
            logger.log_hyperparams(config)
