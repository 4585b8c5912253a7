"""Lightning's command line with this project's run folders, checkpoints and tracking."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from surf_lightning import run_folder, tracking
from surf_lightning.callbacks.bookkeeping import SaveConfig, standard_callbacks
from surf_lightning.checkpoint import AtomicCheckpointIO
from surf_lightning.data.base import SeparationData
from surf_lightning.errors import UserError
from surf_lightning.methods.base import SeparationModule


class SurfCLI(LightningCLI):
    """``--name``, one seed for everything, run folders, and the callbacks that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, help="Name of the run's folder in runs/ (default: the config's)."
        )
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way, which lets the hyper-parameters of a checkpoint override the configuration."""

    def before_instantiate_classes(self) -> None:
        subcommand = str(self.subcommand)
        config: Namespace = self.config[subcommand]
        given = config.trainer.default_root_dir
        self.folder = Path(given) if given else run_folder.default_folder(config.name, _first_config(config))
        config.trainer.default_root_dir = str(self.folder)
        self.is_new = subcommand == "fit" and config.ckpt_path is None
        find = run_folder.checkpoint_to_continue if subcommand == "fit" else run_folder.trained_checkpoint
        config.ckpt_path = find(self.folder, config.ckpt_path)
        tracking.complete_loggers(config.trainer, self.folder, self.is_new)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # an argument that its class refuses; jsonargparse may have wrapped it
            raise UserError(str(error.__cause__ or error)) from error

    def before_fit(self) -> None:
        """What a fit changes on disk, once all that can be checked without training has been."""
        if self._get(self.config, "ckpt_path") is None:
            self.model.check_earlier_stage()
        processes, cores = self.trainer.num_devices, os.cpu_count() or 1
        if isinstance(self.trainer.accelerator, CPUAccelerator) and processes > cores:
            raise UserError(f"trainer.devices is {processes}, but this machine has {cores} CPU cores")
        if self.is_new:
            run_folder.move_aside(self.folder)
        tracking.remember(self.trainer.loggers, self.folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        if SLURMEnvironment.detect():  # LastCheckpoint requeues, after writing between two steps
            plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
        self.trainer_defaults["callbacks"] = standard_callbacks(self.folder, str(self.subcommand), bool(config.logger))
        return super().instantiate_trainer(plugins=[*plugins, AtomicCheckpointIO()], **kwargs)


def _first_config(config: Namespace) -> str | None:
    paths = config.get("config") or []
    return os.fspath(paths[0]) if paths else None


def _readable(message: str) -> str:
    """jsonargparse's message without its internals: the types it tried in vain, and the whole of the value."""
    noise = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")
    lines = [line for line in message.splitlines() if not line.strip().startswith(noise)]
    hint = " (give a configuration, e.g. --config configs/digits_mixit.yaml)" if "are required" in message else ""
    return "\n".join(lines) + hint


def run_lightning(args: Sequence[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: for whatever the user can mend.
    """
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are drawn in microseconds
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode.*")  # the teacher and the anchor, as they must be
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
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
            trainer_defaults={
                "use_distributed_sampler": False,  # the DataModules share out their batches themselves
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
            },
        )
    except ArgumentError as error:
        raise UserError(_readable(str(error))) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except OSError as error:
        if error.filename is None:  # no file of the user's
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from error
    finally:
        sys.argv = argv
