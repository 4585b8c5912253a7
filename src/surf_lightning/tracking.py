"""Where a run is tracked: Weights & Biases, offline where nobody is logged in, and a CSV file that resumes extend."""

from __future__ import annotations

import csv
import netrc
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

WANDB_ID = "wandb_id"


class _AppendingWriter(ExperimentWriter):
    """Goes on in the file that is there; Lightning's own deletes it."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class MetricsCSV(CSVLogger):
    """All metrics in ``<save_dir>/metrics.csv``.

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
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment


def wandb_login_known() -> bool:
    """Whether W&B would find an account without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        account = netrc.netrc(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return account is not None and bool(account[2])  # an entry without a key is no login


def complete_loggers(trainer: Namespace, folder: Path, is_new: bool) -> None:
    """Fill in what the loggers of a configuration need to know of the run in ``folder``, writing nothing."""
    if trainer.logger is False:
        return
    if trainer.logger in (None, True):
        trainer.logger = []
    if not isinstance(trainer.logger, list):
        trainer.logger = [trainer.logger]
    for logger in trainer.logger:
        if logger.class_path.endswith(".WandbLogger"):
            _complete_wandb(logger.init_args, folder, is_new)
        elif "save_dir" in (given := logger.get("init_args") or {}) and given["save_dir"] in (None, "."):
            given["save_dir"] = str(folder)
    csv_path = f"{MetricsCSV.__module__}.{MetricsCSV.__qualname__}"
    if not any(logger.class_path == csv_path for logger in trainer.logger):
        arguments = Namespace(save_dir=str(folder), flush_logs_every_n_steps=100)
        trainer.logger.append(Namespace(class_path=csv_path, init_args=arguments))


def _complete_wandb(arguments: Namespace, folder: Path, is_new: bool) -> None:
    """One W&B run for a folder, however often it is resumed; offline where W&B would ask for an account."""
    mode = os.environ.get("WANDB_MODE")
    arguments.offline = arguments.offline or (mode is None and not wandb_login_known())
    arguments.save_dir = str(folder)
    arguments.name = arguments.name or folder.name
    remembered = folder / WANDB_ID
    if arguments.id is None and remembered.is_file() and not is_new:
        arguments.id = remembered.read_text().strip()
    arguments.id = arguments.id or secrets.token_hex(4)
    if arguments.offline:
        rank_zero_info(
            f"W&B: no account is logged in, so run {arguments.id} is tracked offline in {folder}/wandb; "
            f"`wandb sync {folder}/wandb/offline-run-*-{arguments.id}` uploads it."
        )


@rank_zero_only
def remember(loggers: Iterable[Logger], folder: Path) -> None:
    """Keep the id of the W&B run in ``folder``, for later commands to go on in it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / WANDB_ID).write_text(f"{logger.version}\n")
