"""Training from Python, one call a stage, as `surf fit` does it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from surf_lightning.data.base import SeparationData
from surf_lightning.engine import run_folder
from surf_lightning.engine.bookkeeping import standard_callbacks
from surf_lightning.engine.loggers import MetricsCSV, silence_adverts
from surf_lightning.engine.progress import progress_bar
from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import AtomicCheckpointIO, describe
from surf_lightning.methods.base import SeparationModule

TRAINER_DEFAULTS: dict[str, Any] = {
    "use_distributed_sampler": False,  # the DataModules share out their batches themselves
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
}

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


def keep_quiet() -> None:
    """Silence warnings of what is meant to be so, and adverts."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are drawn in microseconds
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode.*")  # the teacher and the anchor, as they must be
    warnings.filterwarnings("ignore", ".*It is recommended to use .self.log.*sync_dist=True.*")  # the metrics do it
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # a run that goes on
    silence_adverts()


def check(trainer: L.Trainer, module: SeparationModule, data: SeparationData, continued: str | None) -> None:
    """All that can be said of a fit before it changes anything on disk.

    Raises:
        UserError: it cannot succeed.
    """
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):  # others are kinds of these
        raise UserError(f"{type(trainer.strategy).__name__} is not supported: train on one device or by DDP")
    if isinstance(trainer.accelerator, MPSAccelerator):
        raise UserError("assignments are computed in float64, which MPS has not: use --trainer.accelerator cpu")
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision {trainer.precision} would round away the small steps of an EMA teacher: use bf16-mixed"
        )
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]
        raise UserError(
            "trainer.overfit_batches does not apply, as mixtures are drawn at random: limit an epoch by "
            "data.batches_per_epoch, or the images and recordings themselves"
        )
    module.check_sources(data)
    describe(module.separator)  # as every checkpoint will have to
    if continued is None:
        module.check_earlier_stage()


def make_trainer(
    folder: Path, subcommand: str, logger: Any, callbacks: Sequence[L.Callback] = (), **options: Any
) -> L.Trainer:
    """A trainer with what every run of ``subcommand`` in ``folder`` has; ``options`` are ``lightning.Trainer``'s."""
    standard = standard_callbacks(folder, subcommand, bool(logger))
    standard += progress_bar(options.get("enable_progress_bar", True), callbacks)
    return L.Trainer(
        default_root_dir=folder,
        logger=logger,
        callbacks=[*standard, *callbacks],
        plugins=[AtomicCheckpointIO()],
        **{**TRAINER_DEFAULTS, **options},
    )


def fit(
    module: SeparationModule,
    data: SeparationData,
    folder: str | PathLike[str],
    max_steps: int,
    ckpt_path: str | None = None,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> L.Trainer:
    """Train one stage. The run lies in ``folder``, as after `surf fit`: checkpoints, metrics.csv, media.

    Args:
        module: a method, of ``surf_lightning.methods``.
        data: of ``surf_lightning.data``.
        folder: an earlier run in it is moved aside, unless it is continued.
        max_steps: optimizer steps in all.
        ckpt_path: continue from this checkpoint; ``last`` and ``best`` mean the folder's own.
        callbacks: beside those that every run has.
        options: the other arguments of ``lightning.Trainer``; the logger is ``MetricsCSV`` by default.

    Returns:
        The trainer, done.

    Raises:
        UserError: for whatever the user can mend.
    """
    folder = Path(folder)
    continued = run_folder.checkpoint_to_continue(folder, ckpt_path)
    interval = min(50, data.batches_per_epoch)  # Lightning's own, and never less than once an epoch
    options = {"logger": MetricsCSV(str(folder)), "log_every_n_steps": interval, **options}
    keep_quiet()
    trainer = make_trainer(folder, "fit", callbacks=callbacks, max_steps=max_steps, **options)
    check(trainer, module, data, continued)
    leaves_nothing = trainer.fast_dev_run  # type: ignore[attr-defined]
    with nullcontext() if leaves_nothing else run_folder.claimed(folder, fresh=ckpt_path is None):
        trainer.fit(module, datamodule=data, ckpt_path=continued)
    return trainer
