"""Reading what may come from a stranger: no code runs, and memory and time are bounded by the file's own size."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from surf_lightning.errors import UserError
from surf_lightning.files import is_damaged

MAX_VALUES = 1_000_000  # in a file, lists and dicts counted: shared parts of a pickle can unfold without end
MAX_NUMBER = 10_000_000  # an argument of a network: sizes and rates are smaller
SPARE_MODULES = 1000  # that a network may have besides twice as many as tensors: those without parameters


def load_tensors(path: str | PathLike[str]) -> Any:
    """What ``torch.save`` wrote to ``path``: plain values and dense tensors, on the CPU.

    Raises:
        UserError: it cannot be read, is no such file, is damaged, or holds code.
    """
    try:
        _check_directory(path)
        if is_damaged(path):
            raise ValueError("its bytes are not those that were written")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of any type: the unpickler stumbles over damaged bytes in every way
        if code := re.search(r"Unsupported \w+: GLOBAL ([\w.]+)", str(error)):
            said = f"{path} holds code ({code[1]}), which is not run: surf_lightning has not written it"
            raise UserError(said) from error
        raise UserError(f"{path} is no checkpoint, or a damaged one") from error
    for value in _values(content, path):
        if isinstance(value, Tensor) and not _is_plain(value):
            raise UserError(f"{path} holds a tensor that is larger than what the file has of it: it is not loaded")
    return content


def _check_directory(path: str | PathLike[str]) -> None:
    """Raises ValueError where the file would unfold to more than it is: torch compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed")
    if sum(member.file_size for member in members) > os.path.getsize(path):
        raise ValueError("its parts overlap")


def _values(content: Any, path: str | PathLike[str]) -> Iterator[Any]:
    """All values in nested dicts, lists and tuples."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        count += 1
        if count + len(waiting) > MAX_VALUES:
            raise UserError(f"{path} holds more than {MAX_VALUES:,} values, which no checkpoint needs")


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


@contextmanager
def building(num_tensors: int) -> Iterator[None]:
    """In the block, networks are built without memory, and not beyond the size of their ``num_tensors`` weights.

    Raises:
        UserError: a network has more parameters, or far more modules.
    """
    left = {"parameters": num_tensors, "modules": 2 * num_tensors + SPARE_MODULES}

    def count(kind: str, owner: nn.Module, name: str, value: Any) -> None:
        left[kind] -= value is not None
        if left[kind] < 0:
            raise UserError(f"the network that it describes is larger than its {num_tensors} weights")

    with (
        registration.register_module_parameter_registration_hook(partial(count, "parameters")),
        registration.register_module_module_registration_hook(partial(count, "modules")),
        torch.device("meta"),
    ):
        yield
