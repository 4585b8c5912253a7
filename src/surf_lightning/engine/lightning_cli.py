"""Lightning's command line with this project's run folders, checkpoints and tracking."""

from __future__ import annotations

import copy
import inspect
import os
import pkgutil
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.optim  # noqa: F401  jsonargparse finds classes by their names once they are imported
from jsonargparse import ArgumentError, Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import surf_lightning.callbacks
import surf_lightning.data
import surf_lightning.methods
import surf_lightning.metrics
import surf_lightning.networks
from surf_lightning.data.base import SeparationData, undeclared
from surf_lightning.engine import run_folder
from surf_lightning.engine.arguments import near_option, readable
from surf_lightning.engine.checkpoints import LastCheckpoint
from surf_lightning.engine.configs import own_modules, with_config_paths
from surf_lightning.engine.fit import TRAINER_DEFAULTS, filter_warnings, make_trainer, train
from surf_lightning.engine.loggers import resolve_loggers, start_loggers
from surf_lightning.engine.progress import tell_end
from surf_lightning.engine.sizes import fill_in_sizes
from surf_lightning.engine.weights_and_biases import has_wandb, is_wandb_error
from surf_lightning.errors import UserError
from surf_lightning.functional import losses, signal_losses
from surf_lightning.methods.base import SeparationModule

MISUSE = (TypeError, ArithmeticError, LookupError, AttributeError, AssertionError, ImportError, RuntimeError)
FOLDER = r"--(name|trainer\.default_root_dir)\b"  # arguments that say where the run lies
NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # https://github.com/pytorch/pytorch/issues/135712
TRACKER = {"class_path": "WandbLogger", "init_args": {"project": "surf-lightning"}}  # by default, where it is installed


class SurfCLI(LightningCLI):
    """``--name``, one seed for everything, run folders, and the callbacks that every run has."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one that is asked for: a parser takes a tenth of a second to build."""
        return {sys.argv[1]: LightningCLI.subcommands()[sys.argv[1]]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, help="Name of the run's folder in runs/ (default: the config's)."
        )
        parser.add_class_arguments(LastCheckpoint, "checkpoints", skip={"folder"}, instantiate=False)
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            help = "Measure the mean of so many posterior samples of a flow as well, beside that of one."
            parser.add_argument("--num_samples", type=int, default=1, help=help)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with own_modules(sys.argv[1:]) as finder:
            super().parse_arguments(parser, args)
        model = self.config[self.config.subcommand].model
        if finder.used or model.init_args.get("trust_checkpoint"):
            sys.path.append(os.getcwd())  # for what they import later, and for other processes

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
        first, typed = _first_config(config), any(re.match(FOLDER, argument) for argument in sys.argv)
        own = None if typed else run_folder.folder_of(first)
        if own:
            config.name, config.trainer.default_root_dir = os.path.relpath(own, "runs"), None
        given = own or config.trainer.default_root_dir
        self.folder = Path(given) if given else run_folder.default_folder(config.name, first)
        self.is_new = subcommand == "fit" and run_folder.begins_run(self.folder, config.ckpt_path)
        find = run_folder.checkpoint_to_continue if subcommand == "fit" else run_folder.trained_checkpoint
        is_oracle = pkgutil.resolve_name(config.model.class_path).is_oracle
        checkpoint = None if is_oracle else find(self.folder, config.ckpt_path)
        fill_in_sizes(config, checkpoint)
        # What config.yaml holds: given to surf again, it means this run, but neither its checkpoint nor its W&B run.
        self.lasting_config = copy.deepcopy(config)
        self.lasting_config.ckpt_path = None
        if not given and config.name is None:
            self.lasting_config.name = self.folder.name
        config.trainer.default_root_dir = str(self.folder)
        if TorchElasticEnvironment.detect():
            _follow_torchrun(config.trainer)
        config.ckpt_path = checkpoint
        self.notes = resolve_loggers(config.trainer, self.folder, subcommand, self.is_new)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (UserError, MisconfigurationException):
            raise
        except ValueError as error:  # an argument that its class refuses; jsonargparse may have wrapped it
            raise UserError(str(error.__cause__ or error)) from error
        except MISUSE as error:
            said = f"{type(error).__name__}: {error.__cause__ or error}".partition("\n")[0]
            raise UserError(f"an argument of the configuration cannot be used: {said}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        del config["default_root_dir"]
        for name in ("callbacks", "plugins"):
            given = config[name] or []
            config[name] = given if isinstance(given, list) else [given]
        checkpoints = self._get(self.config_init, "checkpoints")
        samples = {"num_samples": self._get(self.config_init, "num_samples")} if self.subcommand == "test" else {}
        return make_trainer(self.folder, str(self.subcommand), checkpoints=checkpoints, **samples, **config)

    def fit(self, model: SeparationModule, datamodule: SeparationData, ckpt_path: str | None, **_: Any) -> None:
        """What LightningCLI runs in place of ``Trainer.fit``."""
        config = self._parser("fit").dump(self.lasting_config, skip_none=False)
        train(self.trainer, model, datamodule, ckpt_path, self.is_new, config, self.notes)
        if not undeclared(self.trainer).fast_dev_run:
            tell_end(self.trainer, datamodule, Path(_first_config(self.lasting_config) or self.folder.name).stem)

    def before_test(self) -> None:
        for note in self.notes:
            rank_zero_info(note)
        start_loggers(self.trainer.loggers, self.folder)


def _known_names() -> dict[str, list[str]]:
    """The arguments of our classes, of the trainer and of the command line itself, for ``near_option``."""
    packages = (surf_lightning.data, surf_lightning.methods, surf_lightning.networks)
    classes = {name: getattr(package, name) for package in packages for name in package.__all__}
    parts = {**classes, "trainer": Trainer, "checkpoints": LastCheckpoint}
    own = ["config", "name", "seed_everything", "ckpt_path", "num_samples", "print_config", "data", "model", "trainer"]
    return {"": own, **{name: _arguments(part) for name, part in parts.items() if isinstance(part, type)}}


def _arguments(described: type) -> list[str]:
    """Of its constructor and of those that this hands its options to."""
    constructors = [vars(base)["__init__"] for base in described.__mro__ if "__init__" in vars(base)]
    inherited = [inspect.signature(constructor).parameters for constructor in constructors]
    return [name for names in (*inherited, getattr(described, "arguments", ())) for name in names]


def _loss(name: str) -> Callable[..., Any]:
    """A loss of ``functional`` by its name, or any function by its import path."""
    ours = signal_losses if hasattr(signal_losses, name) else losses
    return pkgutil.resolve_name(name if "." in name else f"{ours.__name__}.{name}")


def _loss_name(loss: Callable[..., Any]) -> str:
    ours = loss.__module__ in (losses.__name__, signal_losses.__name__)
    return loss.__name__ if ours else f"{loss.__module__}.{loss.__name__}"


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
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.environ.get(NEW_STORE) != "1":
        rank_zero_warn(f"torchrun --max-restarts needs {NEW_STORE}=1 in its environment: no restart succeeds without")


def _while_restoring(error: BaseException) -> bool:
    """Whether Lightning was taking over a checkpoint, in which a stranger may have put anything."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        code.co_name == "_load_combined_loader_states"
        or (code.co_filename.endswith("checkpoint_connector.py") and "restore" in code.co_name)
        for code in frames
    )


def _first_config(config: Namespace) -> str | None:
    paths = config.get("config") or []
    return os.fspath(paths[0]) if paths else None


def run_lightning(*args: str) -> None:
    """Run ``fit``, ``validate`` or ``test`` with the command line ``args``, which begins with the command.

    Raises:
        UserError: for whatever the user can change.
    """
    filter_warnings()
    if seeded := [argument for argument in args if re.match(r"--(model|data)\.(init_args\.)?seed\b", argument)]:
        raise UserError(f"{seeded[0]} would be overwritten: --seed_everything sets the seed of all parts")
    if args[0] != "fit":
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # they are those of fit
    for loss in (losses.EnergyLoss, losses.Reduction, signal_losses.SignalLoss):
        register_type(
            loss, _loss_name, _loss, (ImportError, AttributeError, ValueError), lambda value, _: callable(value)
        )
    argv, sys.argv = sys.argv, [sys.argv[0], *with_config_paths(args)]  # DDP starts the other processes by sys.argv
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
            save_config_callback=None,  # fit.train writes config.yaml
            parser_kwargs={**strict, **{name: dict(strict) for name in SurfCLI.subcommands()}},
            trainer_defaults={**TRAINER_DEFAULTS, "logger": TRACKER if has_wandb() else None},
        )
    except KeyboardInterrupt:  # while there was nothing to save yet
        raise SystemExit(128 + signal.SIGINT) from None
    except ArgumentError as error:
        raise UserError(readable(str(error)) + near_option(str(error), _known_names())) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except UserError:
        raise
    except Exception as error:
        if is_wandb_error(error):
            raise UserError(f"W&B: {error}") from error
        if _while_restoring(error):
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(f"the checkpoint does not hold what this run would go on from: {said}") from error
        raise
    finally:
        sys.argv = argv
