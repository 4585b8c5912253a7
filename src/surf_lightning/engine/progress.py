"""What a fit tells of itself: how far it is and how long it will take, and in the end what to do next."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info

from surf_lightning import data as surf_data
from surf_lightning.data.base import SeparationData
from surf_lightning.data.shards import Shards
from surf_lightning.engine import run_folder
from surf_lightning.engine.checkpoints import SMOOTHED, SMOOTHED_METRIC, BestCheckpoint
from surf_lightning.engine.configs import data_of, summaries
from surf_lightning.inference.checkpoint import class_path
from surf_lightning.methods.base import SeparationModule

TIMED = 20  # steps, after which the length of the run is told
LINE_EVERY = 60.0  # seconds, where there is no screen to draw a bar on


class Progress(TQDMProgressBar):
    """A bar of the whole run, step of steps, and the time left; where output is redirected, a line a minute.

    It is redrawn once a second, not every step: a number on the screen is read from the device, which waits for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws = sys.stdout.isatty() or "ipykernel" in sys.modules
        self._drawn, self._first, self._clock, self._told = 0.0, 0, 0.0, False

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and self.draws

    def _should_update(self, current: int, total: int) -> bool:
        due = self.is_enabled and (current == total or time.monotonic() - self._drawn >= 1)
        self._drawn = time.monotonic() if due else self._drawn
        return due

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        bar = self.train_progress_bar = self.init_train_tqdm()
        bar.total = trainer.max_steps if trainer.max_steps > 0 else None
        bar.initial = bar.n = trainer.global_step
        bar.set_description("Step")
        self._first, self._clock, self._drawn, self._told = trainer.global_step, 0.0, time.monotonic(), False

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Nothing begins anew: the bar is of the run."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing ends."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, now = trainer.global_step, time.monotonic()
        if not self._clock:  # the first step starts workers and compiles: it is not timed
            self._first, self._clock = step, now
        if step >= self._first + TIMED and not self._told and self._enabled:
            self._told = True
            self._say(f"{TIMED} steps took {now - self._clock:.1f} s{self._left(trainer, ': about {} to step {:,}')}")
        if self.draws and self._should_update(step, self.train_progress_bar.total):
            self.train_progress_bar.n = step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
        elif not self.draws and self._enabled and now - self._drawn >= LINE_EVERY:
            self._drawn = now
            self._line(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.draws and self._enabled:
            self._line(trainer, pl_module)

    def _line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = self.get_metrics(trainer, pl_module)
        texts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in metrics.items()}
        numbers = [f"{name} {text}" for name, text in texts.items()]
        steps = f"step {trainer.global_step:,}" + (f" of {trainer.max_steps:,}" if trainer.max_steps > 0 else "")
        self._say(", ".join([steps + self._left(trainer, ", {} left"), *numbers]))

    def _left(self, trainer: L.Trainer, text: str) -> str:
        """``text`` with the time to the last step and its number; nothing where there is none."""
        done, left = trainer.global_step - self._first, trainer.max_steps - trainer.global_step
        if done < 1 or left < 1:
            return ""
        return text.format(duration(left * (time.monotonic() - self._clock) / done), trainer.max_steps)

    def _say(self, text: str) -> None:
        if self.draws:
            self.print(text)
        else:
            with suppress(OSError):  # a log on a full disk, or whose reader is gone, ends no training
                print(text, flush=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        try:
            sys.stdout.flush()
        except OSError:  # what could not be said would make the exit status 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration(seconds: float) -> str:
    """In the two largest units: 45 s, 12 min, 1 h 45 min, 2 d 3 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{days} d {hours} h"


def tell_end(trainer: L.Trainer, data: SeparationData, config: str) -> None:
    """Say where the best weights of a fit of ``config`` that is done are, how good, and which commands are next."""
    folder = Path(trainer.default_root_dir)
    best, last = (run_folder.checkpoint(folder, name) for name in ("best", "last"))
    kept = next((each for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)), None)
    score = kept.best_model_score if kept else None
    if kept is None or score is None or not best.is_file():
        said = f"The weights are in {best if best.is_file() else last}."
    else:
        error = trainer.callback_metrics.get("val/momi_error")
        doubt = "" if error is None or not error.isfinite() else f", of which one is uncertain by {float(error):.2f}"
        of = f", the mean of the latest {SMOOTHED} validations{doubt}" if kept.monitor == SMOOTHED_METRIC else ""
        said = f"The best {kept.monitor} was {float(score):.4g}{of}: {best}"
    root = f" --data.root {data.root}" if hasattr(data, "root") else ""
    commands = []
    if config.endswith("_mixit") and (later := f"{config.removesuffix('mixit')}surf_rm") in summaries():
        kind = type(data).__name__
        own = "" if folder == Path("runs", config) else f" --model.mixit_checkpoint {last}"
        other = "" if kind == data_of(later) else f" --data {kind if kind in surf_data.__all__ else class_path(data)}"
        commands.append(f"surf fit --config {later}{other}{root}{own}")
    if data.monitor == SMOOTHED_METRIC:
        files = "FILES" if isinstance(data, Shards) else getattr(data, "root", "FILES")
        separated = f"surf separate {files} --checkpoint {best if best.is_file() else last}"
        commands.append(f"{separated} --output separated")
    else:
        commands.append(f"surf test --config {folder}/config.yaml")
    rank_zero_info("\n".join([said, *(f"  next: {command}" for command in commands)]))


def tell_network(module: SeparationModule) -> None:
    """Say what is trained: the class of the network and its size."""
    network = module.separator.network
    weights = sum(parameter.numel() for parameter in network.parameters())
    rank_zero_info(f"Network: {type(network).__name__}, {weights / 1e6:.2f} million weights.")
