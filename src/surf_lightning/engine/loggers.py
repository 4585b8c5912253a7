"""Where a run is tracked: a CSV file for all of a run, and Weights & Biases, offline where it cannot be reached."""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from surf_lightning.engine.signals import ending
from surf_lightning.errors import UserError
from surf_lightning.files import own_file, replacing

COLUMNS = ("step", "epoch", "name", "value")
HPARAMS = "hparams.yaml"
WANDB_ID = "wandb_id"
WANDB_SECONDS = "10"  # that a run waits for W&B's server before it goes on offline; WANDB_INIT_TIMEOUT changes it
WANDB_LAST_SECONDS = "60"  # that it waits at its end for the last uploads; WANDB_FINISH_TIMEOUT changes it
INSTALL_WANDB = "pip install 'surf-lightning[wandb]'"


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
        lines, header = self._waiting.encode(), (",".join(COLUMNS) + "\n").encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            if os.path.lexists(self._path):
                own_file(self._path.parent, self._path)  # in a run of a stranger it may lead elsewhere, or nowhere
            with self._path.open("a+b") as file:
                file.seek(0)
                table = file.read()
                file.truncate(table.rfind(b"\n") + 1)
            if not table.startswith(header):  # it is new, or of an early version, which had a column for each name
                lines = header + lines
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
            notes += _resolve_wandb(logger.init_args, folder, is_new)
        elif "save_dir" in (given := logger.get("init_args") or {}) and given["save_dir"] in (None, "."):
            given["save_dir"] = str(folder)
    if subcommand == "fit" and not any(logger.class_path == csv_path for logger in trainer.logger):
        trainer.logger.append(Namespace(class_path=csv_path, init_args=Namespace(save_dir=str(folder))))
    return notes


def _resolve_wandb(arguments: Namespace, folder: Path, is_new: bool) -> list[str]:
    """One W&B run for a folder, however often it is resumed; offline where W&B would ask for an account."""
    if not has_wandb():
        raise UserError(f"WandbLogger needs W&B: {INSTALL_WANDB}")
    arguments.save_dir = str(folder)
    arguments.name = arguments.name or folder.name
    saved = folder / WANDB_ID
    if arguments.id is None and saved.is_file() and not is_new:
        arguments.id = saved.read_text().strip()
    # In a sweep W&B's agent has named the run already, and no other name is taken.
    arguments.id = arguments.id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if getattr(rank_zero_only, "rank", 0):  # only the first process tracks
        return []
    reason = "offline mode is chosen" if arguments.offline else why_offline()
    if reason is None:
        return []
    if arguments.get("log_model"):  # which Lightning refuses offline; W&B keeps artifacts until they are synced
        arguments.offline = False
        os.environ["WANDB_MODE"] = "offline"
    else:
        arguments.offline = True
    os.environ.setdefault("WANDB_SILENT", "true")  # one line is enough: ours
    return [offline_note(reason, arguments.id, folder)]


def offline_note(reason: str, run_id: str, folder: Path) -> str:
    """What to say of a run that is tracked offline."""
    return (
        f"W&B: {reason}, so run {run_id} is tracked offline in {folder}/wandb; "
        f"`wandb sync {folder}/wandb/offline-run-*-{run_id}` uploads it."
    )


def has_wandb() -> bool:
    """Whether W&B is installed: it is an extra. A run's folder of that name, which reads as a package, is not it."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def why_offline() -> str | None:
    """Why W&B cannot track online, None where it may: by its own settings and files, without asking its server.

    Raises:
        UserError: W&B refuses its settings.
    """
    import wandb  # half a second that a run without it need not spend

    if wandb.run is not None:  # a run of the calling program's, which Lightning goes on in
        return None
    os.environ.setdefault("WANDB_INIT_TIMEOUT", WANDB_SECONDS)
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", WANDB_LAST_SECONDS)
    try:
        mode = wandb.setup(wandb.Settings(silent=True)).settings.mode
        if mode in ("offline", "dryrun"):
            return "offline mode is chosen"
        if mode == "disabled" or "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False):
            return None
        return "no account is logged in"
    except wandb.errors.AuthenticationError as error:
        return f"the key of its account cannot be one ({first_line(error)})"
    except ValueError as error:
        raise UserError(f"W&B: {error}") from error
    finally:
        wandb.teardown()  # it has read its settings, and would not look again for offline mode


def finish_wandb(folder: Path) -> None:
    """End what W&B writes into ``folder``, if it does."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is not None and Path(run.dir).resolve().is_relative_to(folder.resolve()):
        run.finish(exit_code=1)


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


def close_wandb(loggers: Iterable[Logger]) -> None:
    """End W&B's part of a run that is about to end, and its service, without waiting for a server that is gone."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        ending = threading.Thread(target=_end_wandb, daemon=True)
        ending.start()
        ending.join(float(WANDB_SECONDS))
        sys.unraisablehook = lambda _: None  # what it says at exit, where a signal has ended the service before


def _end_wandb() -> None:
    import wandb

    with suppress(Exception):
        wandb.teardown()


def first_line(error: Exception) -> str:
    """Of what ``error`` says, without a full stop; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def is_wandb_error(error: Exception) -> bool:
    """Whether W&B raised ``error``, asked without importing it."""
    return type(error).__module__.partition(".")[0] == "wandb"
