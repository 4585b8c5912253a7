"""Lightning's command line with this project's run folders, checkpoints and tracking."""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from surf_lightning.data.base import SeparationData
from surf_lightning.engine import loggers as tracking
from surf_lightning.engine import run_folder
from surf_lightning.engine.bookkeeping import SaveConfig, standard_callbacks
from surf_lightning.engine.checkpoints import LastCheckpoint
from surf_lightning.engine.fit import TRAINER_DEFAULTS, check, keep_quiet
from surf_lightning.engine.progress import progress_bar
from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import AtomicCheckpointIO
from surf_lightning.methods.base import SeparationModule

TRACKER = {"class_path": "WandbLogger", "init_args": {"project": "surf-lightning"}}  # by default


class SurfCLI(LightningCLI):
    """``--name``, one seed for everything, run folders, and the callbacks that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, help="Name of the run's folder in runs/ (default: the config's)."
        )
        parser.add_class_arguments(LastCheckpoint, "checkpoints", skip={"folder"}, instantiate=False)
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way, which lets the hyper-parameters of a checkpoint override the configuration."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        subcommand = str(self.subcommand)
        config: Namespace = self.config[subcommand]
        given = config.trainer.default_root_dir
        self.folder = Path(given) if given else run_folder.default_folder(config.name, _first_config(config))
        # Given to surf again, it means this run by default, but neither its checkpoint nor its W&B run.
        self.lasting_config = copy.deepcopy(config)
        self.lasting_config.ckpt_path = None
        if not given and config.name is None:
            self.lasting_config.name = self.folder.name
        config.trainer.default_root_dir = str(self.folder)
        if TorchElasticEnvironment.detect():
            _follow_torchrun(config.trainer)
        self.is_new = subcommand == "fit" and config.ckpt_path is None
        find = run_folder.checkpoint_to_continue if subcommand == "fit" else run_folder.trained_checkpoint
        config.ckpt_path = find(self.folder, config.ckpt_path)
        tracking.complete_loggers(config.trainer, self.folder, subcommand, self.is_new)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # an argument that its class refuses; jsonargparse may have wrapped it
            raise UserError(str(error.__cause__ or error)) from error

    def before_fit(self) -> None:
        """What a fit changes on disk, once all that can be checked without training has been."""
        check(self.trainer, self.model, self.datamodule, self._get(self.config, "ckpt_path"))
        processes, cores = self.trainer.num_devices, os.cpu_count() or 1
        if isinstance(self.trainer.accelerator, CPUAccelerator) and processes > cores:
            raise UserError(f"trainer.devices is {processes}, but this machine has {cores} CPU cores")
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # which leaves nothing
            self.fit_context.enter_context(run_folder.claimed(self.folder, fresh=self.is_new))
            for callback in _configuration(self.trainer):
                callback.write(self.trainer)  # the other processes may be about to read it
            tracking.remember(self.trainer.loggers, self.folder)

    def _run_subcommand(self, subcommand: str) -> None:
        with ExitStack() as self.fit_context:
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        plugins = _list(config.plugins)
        checkpoints = self._get(self.config_init, "checkpoints")
        standard = standard_callbacks(self.folder, str(self.subcommand), bool(config.logger), **checkpoints)
        standard += progress_bar(config.enable_progress_bar is not False, _list(config.callbacks))
        # LastCheckpoint requeues, after writing between two steps. Within SLURM, torchrun knows better of processes.
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
        self.trainer_defaults["callbacks"] = standard
        trainer = super().instantiate_trainer(plugins=[*plugins, AtomicCheckpointIO()], **kwargs)
        tracking.mend(trainer.loggers)
        for callback in _configuration(trainer):
            callback.config = self.lasting_config
        return trainer


def _configuration(trainer: Trainer) -> list[SaveConfig]:
    return [callback for callback in trainer.callbacks if isinstance(callback, SaveConfig)]  # type: ignore[attr-defined]


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given else []


def _follow_torchrun(trainer: Namespace) -> None:
    """The processes are those that torchrun started; ``devices`` and ``num_nodes`` need not say so again.

    Raises:
        UserError: they say otherwise.
    """
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for name, default, count in (("devices", "auto", local), ("num_nodes", "1", world // local)):
        given = trainer[name]
        listed = given.split(",") if isinstance(given, str) and "," in given else given
        said = str(len(listed) if isinstance(listed, list) else listed)
        if said not in (default, "-1", str(count)):
            raise UserError(
                f"torchrun started {local} processes on each of {world // local} nodes, but {name} is {given}"
            )
        if not isinstance(listed, list):
            trainer[name] = count


def _first_config(config: Namespace) -> str | None:
    paths = config.get("config") or []
    return os.fspath(paths[0]) if paths else None


def _readable(message: str) -> str:
    """jsonargparse's message without its internals: the types it tried in vain, and the whole of the value."""
    noise = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")
    lines = [line for line in message.splitlines() if not line.strip().startswith(noise)]
    hint = " (give a configuration, e.g. --config configs/digits_mixit.yaml)" if "are required" in message else ""
    hint = " (--config comes before a configuration)" if re.search(r"nrecognized arg.*\.ya?ml", message) else hint
    return "\n".join(lines) + hint


def run_lightning(args: Sequence[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: for whatever the user can mend.
    """
    keep_quiet()
    if args[0] != "fit":
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # they are those of fit
    argv, sys.argv = sys.argv, [sys.argv[0], *args]  # DDP starts the other processes by sys.argv
    strict = {"exit_on_error": False, "allow_abbrev": False}
    try:
        SurfCLI(
            SeparationModule,
            SeparationData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            parser_kwargs={**strict, **{name: dict(strict) for name in SurfCLI.subcommands()}},
            trainer_defaults={**TRAINER_DEFAULTS, "logger": TRACKER},
        )
    except KeyboardInterrupt:  # while there was nothing to save yet
        raise SystemExit(128 + signal.SIGINT) from None
    except ArgumentError as error:
        raise UserError(_readable(str(error))) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if tracking.is_wandb_error(error):
            raise UserError(f"W&B: {error}") from error
        raise
    finally:
        sys.argv = argv
