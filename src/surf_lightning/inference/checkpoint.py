"""What a checkpoint holds, reading one safely, and handing a stage's model to the next."""

from __future__ import annotations

import importlib
import os
import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surf_lightning import __version__
from surf_lightning.errors import UserError, did_you_mean

KEY = "surf_lightning"  # our part of a Lightning checkpoint
PREFIX = "separator."  # of the separator's weights in its state_dict
PACKAGE = __name__.split(".")[0]
# Checkpoints of version 0.1 before its folders moved name classes by these modules.
OLD_MODULES = {
    "networks.heads": "networks.base",
    "networks.noise": "networks.base",
    "networks.velocity_conv_tasnet": "networks.conv_tasnet",
    "methods.teaching": "methods.remixing",
    "separator": "inference.separator",
}
# Arguments that version 0.1 recorded and later versions no longer take: all weights written with the defaults load.
OLD_ARGUMENTS = {"networks.conv_tasnet.ConvTasNet": {"consistency"}}


def describe(instance: Any) -> dict[str, Any]:
    """Class path and arguments of an instance of a ``serializable`` class, nested ones too: plain values only.

    Raises:
        UserError: a class in it is not recorded, or an argument is no plain value.
    """
    arguments = {name: _describe_value(value) for name, value in instance.init_args.items()}
    return {"class_path": class_path(instance), "init_args": arguments}


def class_path(instance: Any) -> str:
    """The import path of an instance's class."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _describe_value(value: Any) -> Any:
    if hasattr(value, "init_args"):
        return describe(value)
    if isinstance(value, list | tuple):
        return [_describe_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        raise UserError(
            f"a checkpoint could not rebuild {class_path(value)}: decorate it with {PACKAGE}.networks.serializable"
        )
    raise UserError(f"a checkpoint cannot hold the argument {value!r}: give a plain value or a @serializable instance")


def rebuild(description: Any, trust: bool = False) -> Any:
    """The inverse of ``describe``.

    Raises:
        UserError: the class is from outside this package, and ``trust`` is not given; or it does not exist, or is no
            ``nn.Module``: a checkpoint must not call whatever else a package holds.
    """
    if isinstance(description, list):
        return [rebuild(item, trust) for item in description]
    if not isinstance(description, dict):
        return description
    module, _, name = current(description["class_path"]).rpartition(".")
    if module.split(".")[0] != PACKAGE and not trust:
        raise UserError(
            f"the checkpoint would import {module}.{name}, from outside {PACKAGE}. Where you trust it, allow that: "
            "--model.trust_checkpoint true in a later stage, --trust to surf separate and export, trust=True in Python"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the checkpoint needs {module}.{name}, which cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"the checkpoint would call {module}.{name}, which is no network")
    gone = OLD_ARGUMENTS.get(f"{module}.{name}".removeprefix(f"{PACKAGE}."), set())
    arguments = {key: rebuild(value, trust) for key, value in description["init_args"].items() if key not in gone}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"the checkpoint's {name} cannot be rebuilt: {error}") from error


def current(path: str) -> str:
    """The class path of today for one of a version before the folders moved."""
    module, _, name = path.rpartition(".")
    inside = module.removeprefix(f"{PACKAGE}.")
    return f"{PACKAGE}.{OLD_MODULES.get(inside, inside)}.{name}" if inside != module else path


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """A checkpoint of this package as a dict of plain values and tensors on the CPU; no code in it is run.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this package.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no checkpoint {path}{checkpoints_near(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # of any type: the unpickler stumbles over damaged bytes in every way
        if code := re.search(r"Unsupported \w+: GLOBAL ([\w.]+)", str(error)):
            raise UserError(f"{path} holds code ({code[1]}), which is not run: {PACKAGE} has not written it") from error
        raise UserError(f"{path} is no checkpoint, or a damaged one") from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise UserError(f"{path} was not written by {PACKAGE}")
    return _with_current_names(checkpoint)


def checkpoints_near(path: str | PathLike[str]) -> str:
    """A hint at checkpoints that are there: those of a folder that was named, of the same run, or of a like name."""
    given = Path(path)
    run = given if given.is_dir() else given.parent.parent if given.parent.name == "checkpoints" else given.parent
    if own := sorted(map(str, run.glob("**/*.ckpt"))) if run.is_dir() and run != Path() else []:
        return f"; there is {', '.join(own[:5])}."
    return did_you_mean(str(given), map(str, run.parent.glob("*/checkpoints/*.ckpt")))


def _with_current_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The frozen teacher was called anchor before the folders moved."""
    if "anchor" in checkpoint[KEY]:
        checkpoint[KEY]["frozen_teacher"] = checkpoint[KEY].pop("anchor")
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {re.sub(r"^anchor\.", "frozen_teacher.", key): value for key, value in state}
    return checkpoint


def load_separator_checkpoint(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our record in the checkpoint, and the weights of its separator."""
    checkpoint = read_checkpoint(path)
    state = checkpoint["state_dict"].items()
    return checkpoint[KEY], {key[len(PREFIX) :]: value for key, value in state if key.startswith(PREFIX)}


def check_fits(checkpoint: dict[str, Any], separator: nn.Module) -> None:
    """Whether ``separator`` can take the weights that a checkpoint holds of one.

    Raises:
        UserError: it cannot; names the arguments that differ.
    """
    weights = {key: value.shape for key, value in checkpoint["state_dict"].items() if key.startswith(PREFIX)}
    if weights != {f"{PREFIX}{key}": value.shape for key, value in separator.state_dict().items()}:
        there, here = _flat(checkpoint[KEY]["separator"]), _flat(describe(separator))
        differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        # Another class has other arguments altogether.
        differing = [name for name in differing if name.rpartition(".")[2] == "class"] or differing
        said = "; ".join(f"{name} is {there.get(name)} there, {here.get(name)} here" for name in differing)
        said = said or f"its parameters have other names (it is of version {checkpoint[KEY]['version']})"
        raise UserError(f"the checkpoint is of another network: {said}")


def _flat(description: Any, name: str = "") -> dict[str, Any]:
    """A description's plain values by their dotted names."""
    if not isinstance(description, dict):
        return {name: description}
    values = {f"{name}.class" if name else "class": description["class_path"]}
    for key, value in description["init_args"].items():
        values |= _flat(value, f"{name}.{key}" if name else key)
    return values


def checkpoint_metadata(module: Any) -> dict[str, Any]:
    """Our part of the checkpoint of a ``SeparationModule``: all that is needed to rebuild its separator."""
    return {
        "version": __version__,
        "method": class_path(module),
        "separator": describe(module.separator),
        "signal": module.signal,
    }
