"""What a checkpoint holds, reading one safely, and handing a stage's model to the next."""

from __future__ import annotations

import importlib
import math
import os
import re
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surf_lightning import __version__
from surf_lightning.errors import UserError, did_you_mean
from surf_lightning.inference.untrusted import MAX_NUMBER, building, load_tensors

KEY = "surf_lightning"  # our part of a Lightning checkpoint
PREFIX = "separator."  # of the separator's weights in its state_dict
PACKAGE = __name__.split(".")[0]
BUILT = ("networks", "methods", "inference.separator")  # our modules that a checkpoint may name, or modules in them
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
        UserError: the class is from outside this package, and ``trust`` is not given; or it does not exist, is not
            ``serializable`` or cannot be built so: a checkpoint must not call whatever else a package holds.
    """
    if isinstance(description, list):
        return [rebuild(item, trust) for item in description]
    if not isinstance(description, dict):
        return _plain(description)
    path, arguments = description.get("class_path"), description.get("init_args")
    if not (isinstance(path, str) and isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)):
        raise UserError("the checkpoint describes a part of its network in a way that is not known")
    path = current(path)
    cls, gone = _class(path, trust), OLD_ARGUMENTS.get(path.removeprefix(f"{PACKAGE}."), set())
    values = {key: rebuild(value, trust) for key, value in arguments.items() if key not in gone}
    try:
        return cls(**values)
    except UserError:
        raise
    except Exception as error:  # of any type: the arguments may be anything
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"the checkpoint's {cls.__name__} cannot be rebuilt: {said}") from error


def _plain(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str | None):
        raise UserError(f"the checkpoint gives its network a {type(value).__name__}, which is no plain value")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise UserError(f"the checkpoint gives its network the number {value}, beyond all sizes and rates")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"the checkpoint gives its network the number {value}")
    return value


def _class(path: str, trust: bool) -> Any:
    """The class of a description. Nothing is imported before its name is known to be harmless."""
    module, _, name = path.rpartition(".")
    inside = module.removeprefix(f"{PACKAGE}.")
    if module.split(".")[0] != PACKAGE and not trust:
        raise UserError(
            f"the checkpoint would import {module}.{name}, from outside {PACKAGE}. Where you trust it, allow that: "
            "--model.trust_checkpoint true in a later stage, --trust to surf separate and export, trust=True in Python"
        )
    if module.split(".")[0] == PACKAGE and not f"{inside}.".startswith(tuple(f"{part}." for part in BUILT)):
        raise UserError(f"the checkpoint would call {module}.{name}, which is no network")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the checkpoint needs {module}.{name}, which cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and "is_serializable" in vars(cls)):
        raise UserError(f"the checkpoint would call {module}.{name}, which is no network")
    return cls


def build(description: Any, state: dict[str, Tensor], trust: bool = False) -> Any:
    """The module of a ``description`` with the weights ``state``. A larger network than these is not begun.

    Raises:
        UserError: as ``rebuild``, or the weights are not those of the module.
    """
    if not trust:
        with building(len(state)):
            _check_weights(rebuild(description), state)
    module = rebuild(description, trust)
    _check_weights(module, state)
    module.load_state_dict(state)
    return module


def _check_weights(module: Any, state: dict[str, Tensor]) -> None:
    if not isinstance(module, nn.Module):
        raise UserError("the checkpoint describes no network")
    own, given = ({key: list(value.shape) for key, value in each.items()} for each in (module.state_dict(), state))
    wrong = [f"it has no {key}" for key in own if key not in given]
    wrong += [f"{key} is unknown" for key in given if key not in own]
    wrong += [f"{key} is {given[key]} there, {own[key]} here" for key in own if given.get(key, own[key]) != own[key]]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"the weights are not of the network that it describes: {wrong[0]}{more}")


def current(path: str) -> str:
    """The class path of today for one of a version before the folders moved."""
    module, _, name = path.rpartition(".")
    inside = module.removeprefix(f"{PACKAGE}.")
    return f"{PACKAGE}.{OLD_MODULES.get(inside, inside)}.{name}" if inside != module else path


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """A checkpoint of this package as a dict of plain values and tensors on the CPU; no code in it is run.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this package, or its weights are not finite.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no checkpoint {path}{checkpoints_near(path)}")
    checkpoint = load_tensors(path)
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise UserError(f"{path} was not written by {PACKAGE}")
    record, state = checkpoint[KEY], checkpoint.get("state_dict")
    check_record(record, path)
    if not isinstance(state, dict) or not all(isinstance(x, str) and isinstance(state[x], Tensor) for x in state):
        raise UserError(f"{path} holds no weights by name")
    check_finite(state, path)
    if "anchor" in record:  # so the frozen teacher was called before the folders moved
        record["frozen_teacher"] = record.pop("anchor")
        checkpoint["state_dict"] = {re.sub(r"^anchor\.", "frozen_teacher.", key): state[key] for key in state}
    return checkpoint


def check_finite(state: dict[str, Tensor], path: str | PathLike[str]) -> None:
    """Raises UserError where a weight in ``path`` is NaN or infinite, in float32, or no real number."""
    if unreal := [key for key, value in state.items() if value.is_complex()]:
        raise UserError(f"{path} holds complex numbers in {unreal[0]}, which no network here has")
    broken = [key for key, value in state.items() if not value.float().isfinite().all()]
    if broken:
        raise UserError(
            f"{path} holds NaN or infinity in {broken[0]} ({len(broken)} of {len(state)} weights): take an earlier one"
        )


def checkpoints_near(path: str | PathLike[str]) -> str:
    """A hint at checkpoints that are there: those of a folder that was named, of the same run, or of a like name."""
    given = Path(path)
    run = given if given.is_dir() else given.parent.parent if given.parent.name == "checkpoints" else given.parent
    if own := sorted(map(str, (*run.glob("*.ckpt"), *run.glob("checkpoints/*.ckpt")))) if run != Path() else []:
        return f"; there is {', '.join(own[:5])}."
    return did_you_mean(str(given), map(str, run.parent.glob("*/checkpoints/*.ckpt")))


def check_record(record: Any, path: str | PathLike[str]) -> None:
    """Raises UserError where what ``path`` says of its separator is not as ``checkpoint_metadata`` says it."""
    signal = record.get("signal") if isinstance(record, dict) else None
    if not (isinstance(record, dict) and isinstance(record.get("separator"), dict) and isinstance(signal, dict)):
        raise UserError(f"{path} does not say which separator it holds")
    if not all(isinstance(record.get(name), str) for name in ("version", "method")):
        raise UserError(f"{path} does not say its version and method")
    shape, rate = signal.get("shape"), signal.get("sample_rate")
    is_image = isinstance(shape, list) and len(shape) == 3 and all(_is_size(size) for size in shape)
    if not {"image": is_image, "audio": _is_size(rate)}.get(str(signal.get("kind"))):
        raise UserError(f"{path} is of no signals that this version, {__version__}, knows: {str(signal)[:200]}")
    scale = signal.get("values", [0.0, 1.0])
    finite = isinstance(scale, list) and all(isinstance(value, float) and math.isfinite(value) for value in scale)
    if not (finite and len(scale) == 2 and scale[1] > 0):
        raise UserError(f"{path} gives its values no center and half width: {str(scale)[:200]}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 < value <= MAX_NUMBER


def weights_of(checkpoint: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """The weights of the part whose names begin with ``prefix``, by their names in it."""
    state = checkpoint["state_dict"].items()
    return {key[len(prefix) :]: value for key, value in state if key.startswith(prefix)}


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
        "needs_sources": module.needs_sources,
        "separator": describe(module.separator),
        "signal": module.signal,
    }
