"""Weights & Biases: one run for a run's folder, offline where its server cannot be reached, and none that waits."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from surf_lightning.errors import UserError, first_line

WANDB_ID = "wandb_id"
WANDB_SECONDS = "10"  # that a run waits for W&B's server before it goes on offline; WANDB_INIT_TIMEOUT changes it
WANDB_LAST_SECONDS = "60"  # that it waits at its end for the last uploads; WANDB_FINISH_TIMEOUT changes it
INSTALL_WANDB = "pip install 'surf-lightning[wandb]'"


def has_wandb() -> bool:
    """Whether W&B is installed: it is an extra. A run's folder of that name, which reads as a package, is not it."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def resolve_wandb(arguments: Namespace, folder: Path, is_new: bool) -> list[str]:
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


def offline_note(reason: str, run_id: str, folder: Path) -> str:
    """What to say of a run that is tracked offline."""
    return (
        f"W&B: {reason}, so run {run_id} is tracked offline in {folder}/wandb; "
        f"`wandb sync {folder}/wandb/offline-run-*-{run_id}` uploads it."
    )


def start_wandb(logger: WandbLogger, folder: Path) -> None:
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


def finish_wandb(folder: Path) -> None:
    """End what W&B writes into ``folder``, if it does."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is not None and Path(run.dir).resolve().is_relative_to(folder.resolve()):
        run.finish(exit_code=1)


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


def is_wandb_error(error: Exception) -> bool:
    """Whether W&B raised ``error``, asked without importing it."""
    return type(error).__module__.partition(".")[0] == "wandb"
