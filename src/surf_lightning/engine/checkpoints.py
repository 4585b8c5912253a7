"""When checkpoints are written: after validations, when time has passed, when the cluster takes the machine back.

Private names of Lightning that this folder uses, to look at before its version in pyproject.toml is raised:

- ``ModelCheckpoint``: ``_should_skip_saving_checkpoint``, ``_save_none_monitor_checkpoint``, ``_monitor_candidates``,
  ``_save_checkpoint``, ``_last_global_step_saved``
- ``trainer.fit_loop``: ``skip``, ``_should_accumulate``, ``_data_fetcher``, ``epoch_loop._should_check_val_fx``,
  ``epoch_loop.restarted_on_last``, ``epoch_loop.val_loop._has_run``
- ``DDPStrategy._timeout``, ``strategy.launcher.procs``
- ``trainer._logger_connector``: ``update_train_step_metrics``, ``_first_loop_iter``
- ``.temp.ckpt`` (in checkpoint_io), the file in which processes that Lightning has spawned return their weights
- in the other files: ``LightningCLI._parse_ckpt_path``, ``_set_seed``, ``_get`` and ``_parser``;
  ``TQDMProgressBar._should_update``; ``WandbLogger._wandb_init`` and ``_log_model``
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from surf_lightning.data.base import undeclared
from surf_lightning.engine.run_folder import CHECKPOINTS
from surf_lightning.engine.signals import SIGNALS, can_handle, ending, requeue, slurm_job, status
from surf_lightning.engine.weights_and_biases import close_wandb
from surf_lightning.files import replacing

SYNC_EVERY = 20  # optimizer steps between two questions of the ranks to each other, each of which waits for the device
SYNC_SECONDS = 5.0  # where that many steps take longer, the ranks ask at every step
SMOOTHED_METRIC, SMOOTHED = "val/momi", 3


class OwingFitLoop(_FitLoop):
    """Of a run that owes a validation: begins also at its last step, where there is no other one to make."""

    skip = False


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt`` after every validation, when time has passed, at the end, and on SIGTERM, SIGUSR1 or Ctrl-C.

    Accumulated gradients are in no checkpoint: after a validation in the middle of an accumulation, it waits for the
    next step. A signal only sets a flag: the checkpoint is written between two optimizer steps, after the EMA, or two
    batches of a validation, so that ``--ckpt_path last`` continues bit for bit. The process then ends with status 143,
    and a SLURM job requeues itself; after Ctrl-C the status is 130, and a second Ctrl-C ends the run at once, or when a
    checkpoint is written. If a validation was due or not over, the resumed run begins with it.

    Args:
        folder: the run's.
        every_minutes: the longest time between two checkpoints.
        keep: how many checkpoints are kept. Where more than one, they are named by their steps, and ``last.ckpt`` is
            another name of the newest.
    """

    def __init__(self, folder: Path, every_minutes: float = 10.0, keep: int = 1) -> None:
        if every_minutes <= 0 or keep < 1:
            raise ValueError(f"checkpoints.every_minutes ({every_minutes}) must be positive, keep ({keep}) at least 1")
        super().__init__(folder / CHECKPOINTS, "last", enable_version_counter=False, save_on_train_epoch_end=False)
        self.every_minutes, self.keep = every_minutes, keep
        self._signal = 0
        self._saved = 0.0
        self._validation_due = False  # at the step of the latest checkpoint, before the next one
        self._next_sync_step, self._last_sync = 0, (0, 0.0)  # the last is a step and its time
        self._previous: dict[signal.Signals, Any] = {}
        self._shared_batches = 0  # of the validation that runs, which all ranks have

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint now, unless there is one of this step."""
        self._saved = time.monotonic()
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if self.keep > 1 and trainer.is_global_zero:
            keep_newest(Path(filepath), trainer.global_step, self.keep)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation_due:
            trainer.fit_loop.__class__ = OwingFitLoop

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved = time.monotonic()
        self._last_sync = trainer.global_step, self._saved
        ending.clear()
        self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS if can_handle()}
        if self._validation_due:
            _validate(trainer)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:
            raise SystemExit(status(number))
        self._signal = number
        ending.set()
        if number == signal.SIGINT:
            rank_zero_info("Stopping after this step; Ctrl-C again stops at once.")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that are accumulated but not used yet are in no checkpoint.
        if trainer.fit_loop._should_accumulate() or trainer.global_step < self._next_sync_step:
            return
        now = time.monotonic()
        if trainer.world_size > 1:
            a_step = (now - self._last_sync[1]) / max(trainer.global_step - self._last_sync[0], 1)
            slow = self._on_any_rank(trainer, a_step * SYNC_EVERY > SYNC_SECONDS)
            self._last_sync = trainer.global_step, now
            self._next_sync_step = trainer.global_step + (1 if slow else SYNC_EVERY)
        signalled = self._on_any_rank(trainer, self._signal != 0)
        if signalled or self._on_any_rank(trainer, now - self._saved > 60 * self.every_minutes):
            assert trainer.fit_loop._data_fetcher is not None
            self._validation_due = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
            self.save(trainer)
        if signalled:
            self._stop(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Log a step before any callback writes its checkpoint, or a kill between the two would lose its numbers."""
        connector = trainer._logger_connector
        if trainer.training and connector._first_loop_iter is not None:  # after a batch: Lightning logs too late
            connector.update_train_step_metrics()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = torch.tensor(trainer.num_val_batches[0], device=pl_module.device)
        self._shared_batches = int(trainer.strategy.reduce(batches, reduce_op="min"))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # A validation changes no weight: it is left, and the resumed run begins with it.
        if trainer.sanity_checking or trainer.fit_loop._should_accumulate() or batch_idx >= self._shared_batches:
            return
        if self._on_any_rank(trainer, self._signal != 0):
            self._validation_due = True
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
            self.save(trainer)
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation_due:  # there is a checkpoint of this step, from before
            self._validation_due, self._last_global_step_saved = False, 0
        if not trainer.sanity_checking and trainer.fit_loop._should_accumulate():
            self._saved, self._next_sync_step = -math.inf, 0  # due at the next step
        else:
            super().on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"validation_owed": self._validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore no path: Lightning would remove the file or folder that a checkpoint names as the one before it."""
        self._validation_due = state_dict.get("validation_owed") is True

    def _stop(self, trainer: L.Trainer) -> None:
        interrupted = self._on_any_rank(trainer, self._signal == signal.SIGINT)
        close_wandb(trainer.loggers)  # SLURM ends its service too, which would leave a traceback
        if not interrupted and (job := slurm_job()):
            # A requeued job is ended by SIGTERM: all ranks are about to end anyway, and quietly.
            self._previous[signal.SIGTERM] = signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            requeue(job, trainer.global_step)
        else:
            rank_zero_info(f"Stopped after step {trainer.global_step}; the same command with --ckpt_path last goes on.")
        raise SystemExit(status(signal.SIGINT if interrupted else signal.SIGTERM))

    def _on_any_rank(self, trainer: L.Trainer, here: bool) -> bool:
        return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        self._restore_handlers()  # not in teardown, before which Lightning puts back those that it replaced earlier

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _validate(trainer: L.Trainer) -> None:
    """Run the validation that Lightning skips where a run is resumed from the last batch of an epoch."""
    epoch = trainer.fit_loop.epoch_loop
    loop = epoch.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    if epoch.restarted_on_last:  # stopped amid a validation: the epoch is at an end once it has passed over it
        loop._has_run = False


def keep_newest(last: Path, step: int, keep: int) -> None:
    """Name ``last`` by its ``step`` as well, and remove the oldest files so named beyond ``keep``."""
    named = last.with_name(f"step_{step:07d}.ckpt")
    named.unlink(missing_ok=True)
    try:
        os.link(last, named)  # no second copy: the next last.ckpt takes the place of the name, not of the file
    except OSError:  # a file system without links
        with last.open("rb") as original, replacing(named) as copy:
            shutil.copyfileobj(original, copy)
    for old in sorted(last.parent.glob("step_[0-9]*.ckpt"), key=lambda path: path.stat().st_mtime_ns)[:-keep]:
        old.unlink()


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt`` by the DataModule's ``monitor``: PSNR or SI-SDR where truth exists.

    Without truth it is chosen by MoMi, the mean of the latest ``SMOOTHED`` validations, as one is uncertain; it is the
    newest where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.recent: list[float] = []
        """The latest values of the monitor, where it is smoothed."""
        super().__init__(folder / CHECKPOINTS, "best", enable_version_counter=False, save_on_train_epoch_end=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data = undeclared(trainer).datamodule
        self.monitor, self.mode = data.monitor, data.monitor_mode
        self.kth_value = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor == SMOOTHED_METRIC and not self._should_skip_saving_checkpoint(trainer):
            value = trainer.callback_metrics.get(self.monitor)
            if value is None:  # mixtures without neighbours
                self.monitor = None
            else:
                self.recent = [*self.recent, float(value)][-SMOOTHED:]
        super().on_validation_end(trainer, pl_module)

    def _monitor_candidates(self, trainer: L.Trainer) -> dict[str, Tensor]:
        candidates = super()._monitor_candidates(trainer)
        if self.recent and self.monitor in candidates:
            candidates[str(self.monitor)] = torch.tensor(sum(self.recent) / len(self.recent))
        return candidates

    def state_dict(self) -> dict[str, Any]:
        return {"best_model_score": self.best_model_score, "recent": self.recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far, for the file in this run's folder; no path is taken from a checkpoint."""
        self.recent = list(state_dict.get("recent", []))
        score, best = state_dict.get("best_model_score"), os.path.join(str(self.dirpath), "best.ckpt")
        if isinstance(score, Tensor) and os.path.exists(best):  # else it is another run's
            self.best_model_score = self.kth_value = score
            self.best_model_path = self.kth_best_model_path = best
            self.best_k_models = {best: score}
