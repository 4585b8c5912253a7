"""Training, one call a stage: `surf fit` does it by these functions, and so does a program."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.distributed.constants import default_pg_timeout

from surf_lightning.callbacks.media import Media
from surf_lightning.callbacks.results import PrintedResult, TestResults
from surf_lightning.data.base import SeparationData, undeclared
from surf_lightning.engine import run_folder
from surf_lightning.engine.checkpoint_io import AtomicCheckpointIO
from surf_lightning.engine.checkpoints import BestCheckpoint, LastCheckpoint
from surf_lightning.engine.loggers import MetricsCSV, StartLoggers, go_on_without
from surf_lightning.engine.progress import Progress, tell_network
from surf_lightning.engine.ranks import RANKS_WAIT, LostProcesses
from surf_lightning.engine.signals import StopAtSignal
from surf_lightning.engine.weights_and_biases import finish_wandb
from surf_lightning.errors import UserError
from surf_lightning.files import replacing
from surf_lightning.inference.checkpoint import describe
from surf_lightning.methods.base import SeparationModule
from surf_lightning.provenance import provenance

TRAINER_DEFAULTS: dict[str, Any] = {
    "use_distributed_sampler": False,  # the DataModules share out their batches themselves
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,  # it counts zero FLOPs: ``tell_network`` says what can be said
}
AT_LEAST = {  # of arguments of the trainer, which itself takes less in silence, or fails later
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "gradient_clip_val": 0,
    "val_check_interval": 1e-9,
}
LIGHTNING_TIPS = ("\N{ELECTRIC LIGHT BULB} Tip: ", "TPU available: False")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


def filter_warnings() -> None:
    """Drop warnings of what is meant to be so, Lightning's tips, and its notes on accelerators that are not there."""
    for expected in (
        ".*does not have many workers.*",  # batches are drawn in microseconds
        r".*module\(s\) in eval mode.*",  # the teacher and the frozen teacher, as they must be
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # the metrics do it
        ".*isinstance.treespec, LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # a run that goes on
        ".*`srun` command is available.*",  # a laptop may have SLURM
    ):
        warnings.filterwarnings("ignore", expected)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LIGHTNING_TIPS)


def standard_callbacks(
    folder: Path, subcommand: str, has_loggers: bool, num_samples: int = 1, **checkpoints: Any
) -> list[L.Callback]:
    """The callbacks that every run of ``subcommand`` has; ``checkpoints`` are arguments of ``LastCheckpoint``."""
    if subcommand == "test":
        return [StopAtSignal(), TestResults(folder, num_samples), PrintedResult(folder)]
    if subcommand != "fit":
        return [StopAtSignal(), PrintedResult(folder)]
    monitor = [LearningRateMonitor("step")] if has_loggers else []
    return [*monitor, Media(folder), BestCheckpoint(folder), LastCheckpoint(folder, **checkpoints), LostProcesses()]


def make_trainer(
    folder: Path,
    subcommand: str,
    logger: Any,
    callbacks: Sequence[L.Callback] = (),
    plugins: Sequence[Any] = (),
    checkpoints: Mapping[str, Any] | None = None,
    num_samples: int = 1,
    **options: Any,
) -> L.Trainer:
    """A trainer with what every run of ``subcommand`` in ``folder`` has, beside the ``callbacks`` and ``plugins``.

    ``checkpoints`` are arguments of ``LastCheckpoint``, ``num_samples`` is one of ``TestResults``, ``logger`` and
    ``options`` are those of ``lightning.Trainer``.
    """
    for name, least in AT_LEAST.items():
        if isinstance(given := options.get(name), int | float) and not given >= least:
            raise UserError(f"trainer.{name} is {given}, but must be {'positive' if least else 'at least 0'}")
    standard = standard_callbacks(folder, subcommand, bool(logger), num_samples, **(checkpoints or {}))
    if options.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        standard.append(Progress())  # a second bar beside one of the user's would be an error
    # LastCheckpoint requeues, after writing between two steps. Within SLURM, torchrun knows better of processes.
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
    trainer = L.Trainer(
        default_root_dir=folder,
        logger=logger,
        callbacks=[*callbacks, *standard],
        plugins=[*plugins, AtomicCheckpointIO(folder)],
        **{**TRAINER_DEFAULTS, **options},
    )
    if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy._timeout == default_pg_timeout:
        trainer.strategy._timeout = RANKS_WAIT
    for tracker in trainer.loggers:
        go_on_without(tracker)
    return trainer


def check(trainer: L.Trainer, module: SeparationModule, data: SeparationData, continued: str | None) -> None:
    """Check all of a fit that can be checked before it changes anything on disk.

    Raises:
        UserError: it cannot succeed.
    """
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):  # others are kinds of these
        raise UserError(f"{type(trainer.strategy).__name__} is not supported: train on one device or by DDP")
    if isinstance(trainer.accelerator, MPSAccelerator):
        raise UserError("assignments are computed in float64, which MPS has not: use --trainer.accelerator cpu")
    processes, cores = trainer.num_devices, os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and processes > cores:
        raise UserError(f"trainer.devices is {processes}, but this machine has {cores} CPU cores")
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision {trainer.precision} would round away the small steps of an EMA teacher: use bf16-mixed"
        )
    limits = undeclared(trainer)
    if limits.overfit_batches > 0 or (limits.limit_train_batches != 1.0 and not limits.fast_dev_run):
        raise UserError(
            "trainer.overfit_batches and limit_train_batches do not apply, as mixtures are drawn at random: limit an "
            "epoch by data.batches_per_epoch, or the images and recordings themselves"
        )
    interval = trainer.val_check_interval
    if trainer.check_val_every_n_epoch and type(interval) is int and interval > data.batches_per_epoch:
        epoch = data.batches_per_epoch
        raise UserError(f"trainer.val_check_interval is {interval} batches, but data.batches_per_epoch only {epoch}")
    module.check_sources(data)
    module.check_batch(data)
    describe(module.separator)  # as every checkpoint will have to
    if continued is None:
        module.check_earlier_stage()


def train(
    trainer: L.Trainer,
    module: SeparationModule,
    data: SeparationData,
    continued: str | None,
    fresh: bool,
    config: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Fit in the trainer's folder. Nothing on disk changes before ``check`` has passed.

    Args:
        trainer: Of ``make_trainer``.
        module: The method.
        data: What it is trained on.
        continued: The checkpoint to go on from.
        fresh: Whether an earlier run in the folder is moved aside.
        config: The configuration as YAML: for ``config.yaml``, and for the loggers as hyper-parameters.
        notes: What to say of the loggers once they track.

    Raises:
        UserError: the fit cannot succeed, or another one runs in the folder, or one of its processes was lost.
    """
    check(trainer, module, data, continued)
    if undeclared(trainer).fast_dev_run:  # which leaves nothing
        trainer.fit(module, datamodule=data, ckpt_path=continued)
        return
    folder = Path(trainer.default_root_dir)
    with run_folder.claimed(folder, fresh):
        if config is not None and trainer.is_global_zero:  # the other processes may be about to read it
            made_with = provenance(trainer.strategy.root_device)
            header = "".join(f"# {name}: {value}\n" for name, value in made_with.items() if value)
            with replacing(folder / "config.yaml", "w") as file:
                file.write(header + config)
        logged = yaml.safe_load(config or "{}") if undeclared(trainer).enable_autolog_hparams else None
        undeclared(trainer).callbacks.insert(0, StartLoggers(folder, logged, notes))
        tell_network(module)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=continued)
        except Exception as error:
            finish_wandb(folder)  # or it would write into a folder that is removed
            lost = "".join(getattr(callback, "lost", "") for callback in undeclared(trainer).callbacks)
            if lost and isinstance(error, RuntimeError | OSError | EOFError):
                raise UserError(lost) from error
            raise


def fit(
    module: SeparationModule,
    data: SeparationData,
    folder: str | PathLike[str],
    max_steps: int,
    ckpt_path: str | None = None,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> L.Trainer:
    """Train one stage from Python. The run lies in ``folder``, as after `surf fit`: checkpoints, metrics.csv, media.

    Args:
        module: A method, of ``surf_lightning.methods``.
        data: Of ``surf_lightning.data``.
        folder: An earlier run in it is moved aside, unless it is continued.
        max_steps: Optimizer steps in all.
        ckpt_path: Continue from this checkpoint; ``last`` and ``best`` mean the folder's own.
        callbacks: Beside those that every run has.
        options: The other arguments of ``lightning.Trainer``; the logger is ``MetricsCSV`` by default.

    Returns:
        The trainer, done.

    Raises:
        UserError: for whatever the user can change.
    """
    folder = Path(folder)
    continued = run_folder.checkpoint_to_continue(folder, ckpt_path)
    interval = min(50, data.batches_per_epoch)  # Lightning's own, and never less than once an epoch
    options = {"logger": MetricsCSV(str(folder)), "log_every_n_steps": interval, **options}
    filter_warnings()
    trainer = make_trainer(folder, "fit", callbacks=callbacks, max_steps=max_steps, **options)
    train(trainer, module, data, continued, fresh=run_folder.begins_run(folder, ckpt_path))
    return trainer
