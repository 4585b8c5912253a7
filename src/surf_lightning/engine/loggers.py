"""Where a run is tracked: Weights & Biases, offline where it cannot be reached, and a CSV file for all of a run."""

from __future__ import annotations

import csv
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from surf_lightning.errors import UserError
from surf_lightning.files import replacing

WANDB_ID = "wandb_id"
ADVERTS = ("\N{ELECTRIC LIGHT BULB} Tip: ", "TPU available: False")


class _ContinuedWriter(ExperimentWriter):
    """Goes on in the file that is there; Lightning's own deletes it."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            self.metrics_keys, _ = self._read()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self._read()[1])

    def keep_before(self, step: int) -> None:
        """Drop the rows from ``step`` on, and what a kill may have left of a row."""
        if os.path.isfile(self.metrics_file_path):
            names, rows = self._read()
            self._write(names, [row for row in rows if (row.get("step") or "").isdecimal() and int(row["step"]) < step])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        text = Path(self.metrics_file_path).read_text(errors="replace")
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        return list(reader.fieldnames or []), list(reader)

    def _write(self, names: list[str], rows: list[dict[str, str]]) -> None:
        with replacing(Path(self.metrics_file_path), "w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class MetricsCSV(CSVLogger):
    """All metrics of the training in ``<save_dir>/metrics.csv``.

    Args:
        save_dir: the command line sets it to the run's folder.
        flush_logs_every_n_steps: how often the file is written.
    """

    def __init__(self, save_dir: str = ".", flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    def log_dir(self) -> str:
        return self.root_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def keep_before(self, step: int) -> None:
        """Drop the rows from ``step`` on: those of a run that was killed, which goes on from there and writes them."""
        self.experiment.keep_before(step)


class ContinueTables(L.Callback):
    """A resumed run's ``metrics.csv`` becomes that of a run that was never killed.

    What was logged between the last checkpoint and the kill is logged again. (Weights & Biases cannot take back what it
    has; the points that it shows twice are the same.)
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.keep_before(trainer.global_step)


def complete_loggers(trainer: Namespace, folder: Path, subcommand: str, is_new: bool) -> None:
    """Fill in what the loggers of a configuration need to know of the run in ``folder``, writing nothing.

    ``validate`` and ``predict`` log nothing, as their numbers are no part of the run's course; ``test`` leaves
    ``metrics.csv``, the table of the training, alone.
    """
    if trainer.logger is False or subcommand in ("validate", "predict"):
        trainer.logger = False
        return
    if trainer.logger in (None, True):
        trainer.logger = []
    if not isinstance(trainer.logger, list):
        trainer.logger = [trainer.logger]
    csv_path = f"{MetricsCSV.__module__}.{MetricsCSV.__qualname__}"
    if subcommand == "test":
        trainer.logger = [logger for logger in trainer.logger if logger.class_path != csv_path]
    for logger in trainer.logger:
        if logger.class_path.endswith(".WandbLogger"):
            _complete_wandb(logger.init_args, folder, is_new)
        elif "save_dir" in (given := logger.get("init_args") or {}) and given["save_dir"] in (None, "."):
            given["save_dir"] = str(folder)
    if subcommand == "fit" and not any(logger.class_path == csv_path for logger in trainer.logger):
        arguments = Namespace(save_dir=str(folder), flush_logs_every_n_steps=100)
        trainer.logger.append(Namespace(class_path=csv_path, init_args=arguments))


def _complete_wandb(arguments: Namespace, folder: Path, is_new: bool) -> None:
    """One W&B run for a folder, however often it is resumed; offline where W&B would ask for an account, or wait."""
    arguments.save_dir = str(folder)
    arguments.name = arguments.name or folder.name
    remembered = folder / WANDB_ID
    if arguments.id is None and remembered.is_file() and not is_new:
        arguments.id = remembered.read_text().strip()
    arguments.id = arguments.id or secrets.token_hex(4)
    if getattr(rank_zero_only, "rank", 0):  # only the first process tracks
        return
    reason = "offline mode is chosen" if arguments.offline else why_offline()
    arguments.offline = reason is not None
    if reason is not None:
        rank_zero_info(
            f"W&B: {reason}, so run {arguments.id} is tracked offline in {folder}/wandb; "
            f"`wandb sync {folder}/wandb/offline-run-*-{arguments.id}` uploads it."
        )


def why_offline() -> str | None:
    """Why W&B cannot track online, None where it can: by its own settings and files, asking nobody.

    Where there is no network this takes W&B's time-out, 10 s (WANDB_HTTP_TIMEOUT).
    """
    import wandb  # half a second that a run without it need not spend

    if wandb.run is not None:  # a run of the calling program's, which Lightning goes on in
        return None
    try:
        mode = wandb.setup().settings.mode
        if mode in ("offline", "dryrun"):
            reason = "offline mode is chosen"
        elif mode == "disabled" or "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=True):
            return None
        else:
            reason = "no account is logged in"
    except wandb.errors.AuthenticationError as error:
        reason = f"its server does not answer, or knows no such account ({str(error).splitlines()[0].rstrip('.')})"
    except ValueError as error:
        raise UserError(f"W&B: {error}") from error
    wandb.teardown()  # it has read its settings, and would hear no more of being offline
    return reason


@rank_zero_only
def remember(loggers: Iterable[Logger], folder: Path) -> None:
    """Keep the id of the W&B run in ``folder``, for later commands to go on in it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / WANDB_ID).write_text(f"{logger.version}\n")


def mend(loggers: Iterable[Logger]) -> None:
    """Keep from W&B an argument that Lightning gives it, empty, and that W&B warns of."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._wandb_init.get("anonymous") is None:
            logger._wandb_init.pop("anonymous", None)


def silence_adverts() -> None:
    """Keep Lightning from advertising its services, and from naming accelerators that are not there."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advert)


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ADVERTS)


def is_wandb_error(error: Exception) -> bool:
    """Whether W&B raised ``error``: asked without importing it."""
    return type(error).__module__.partition(".")[0] == "wandb"
