"""What a configuration leaves to the data and to the stage before: the number of sources and the sample rate."""

from __future__ import annotations

import os
import pkgutil
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import KEY
from surf_lightning.inference.hub import local_path, read_trained

EARLIER = ("mixit_checkpoint", "flow_checkpoint")  # arguments of methods
UNITS = {"num_sources": "sources", "sample_rate": "Hz"}
LEAST_OUTPUTS = 3  # of MixIT: with two, either is a whole mixture, and nothing learns to separate one
IN_SAMPLES = ("frame", "hop", "filters", "n_fft")  # arguments of networks that grow with the sample rate


def fill_in_sizes(config: Namespace, checkpoint: str | None) -> None:
    """Give data and networks one number of sources and one sample rate, in place.

    Either is, by precedence, what the data's arguments say, that of ``checkpoint``, which the command goes on from,
    that of the earlier stage's, or what the data's own files say.

    Raises:
        UserError: the data's arguments are refused.
    """
    data, model = (config[part].get("init_args") or Namespace() for part in ("data", "model"))
    missing = [name for name in UNITS if name in data and data[name] is None]
    sizes = {name: data.get(name) for name in UNITS}
    if missing:
        path = checkpoint or next((model[name] for name in EARLIER if model.get(name)), None)
        path = path and local_path(path)
        is_there = path is not None and os.path.exists(path)
        found = _sizes_in(str(path)) if is_there else _sizes_of(config.data)
        sizes |= {name: found[name] for name in missing}
        if is_there:
            said = [f"{found[name]:,} {UNITS[name]}" for name in missing if found[name]]
            rank_zero_info(f"{' at '.join(said)}, as in {path}.")
    supervised = (data.get("supervised") or Namespace()).get("init_args") or Namespace()
    if "sample_rate" in supervised and supervised.sample_rate is None:
        supervised.sample_rate = sizes["sample_rate"]
    if sizes["num_sources"] and isinstance(model.get("network"), Namespace):
        _set_sources(config.model, sizes["num_sources"])
    if sizes["sample_rate"] and "num_sources" in data:  # a user's own; other sets have configurations for their rates
        data.sample_rate = sizes["sample_rate"]
        for part in (model.get("network"), model.get("noise")):
            if isinstance(part, Namespace) and "sample_rate" in (part.get("init_args") or {}):
                _set_rate(part.init_args, data.sample_rate)


def _sizes_in(path: str) -> dict[str, int | None]:
    """Those of a checkpoint or an exported folder."""
    record: dict[str, Any] = read_trained(path)[KEY]
    separator = record["separator"]["init_args"]
    sources = separator.get("num_sources") or separator["network"]["init_args"].get("num_sources")
    return {"num_sources": sources, "sample_rate": record["signal"].get("sample_rate")}


def _sizes_of(data: Namespace) -> dict[str, int | None]:
    """Those that the data's own files say."""
    try:
        own = {name: given for name, given in data.init_args.as_dict().items() if name != "supervised"}
        built = pkgutil.resolve_name(data.class_path)(**own)
    except ValueError as error:
        raise UserError(str(error)) from error
    return {"num_sources": built.num_sources, "sample_rate": built.sample_rate}


def _set_sources(method: Namespace, sources: int) -> None:
    """``sources`` for a method and its network, with as many outputs a source as configured."""
    model = method.init_args
    network = model.network.get("init_args") or Namespace()
    before = network.get("num_sources") or model.get("num_sources")
    if "num_outputs" in network and before and before != sources:
        least = LEAST_OUTPUTS if method.class_path.endswith("MixIT") else sources
        network.num_outputs = max(least, round(network.num_outputs / before * sources))
    for arguments in (model, network):
        if "num_sources" in arguments:
            arguments.num_sources = sources


def _set_rate(arguments: Namespace, rate: int) -> None:
    """Bring the ``arguments`` of a network, which hold for their own ``sample_rate``, to ``rate``."""
    before = arguments.sample_rate
    if before == rate:
        return
    ratio, overlap = rate / before, arguments.get("frame", 0) // arguments.get("hop", 1)
    for name in IN_SAMPLES:
        if name in arguments:
            unit = 2 if name == "n_fft" else 1
            arguments[name] = unit * round(ratio * arguments[name] / unit)
    if "frame" in arguments:
        arguments.frame = overlap * arguments.hop  # of which it is a multiple
    arguments.sample_rate = rate
