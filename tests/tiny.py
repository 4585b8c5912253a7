"""Networks, data and trainers small enough for a unit test."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from torch import nn

from surf_lightning.data import Digits
from surf_lightning.engine.fit import make_trainer
from surf_lightning.methods import MixIT
from surf_lightning.networks import RegressionNCSNpp, SharedNCSNpp

Module = TypeVar("Module", bound=nn.Module)
adam = functools.partial(torch.optim.Adam, lr=1e-2)


def perturbed(module: Module, seed: int = 0) -> Module:
    """The module with noise on every parameter: layers that start at zero would make tests pass vacuously."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def regression(num_outputs: int = 2, num_sources: int = 2, **options: Any) -> RegressionNCSNpp:
    arguments: dict[str, Any] = {"channels": 4, "multipliers": [1], "blocks": 1, "attention_resolutions": []}
    arguments |= {"image_channels": 1, "image_size": 8, "dropout": 0.0, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return perturbed(RegressionNCSNpp(num_outputs, num_sources, **arguments), seed=1)


def velocity(num_sources: int = 2, **options: Any) -> SharedNCSNpp:
    arguments: dict[str, Any] = {"channels": 4, "multipliers": [1], "blocks": 1, "attention_resolutions": []}
    arguments |= {"image_channels": 1, "image_size": 8, "dropout": 0.0, "scale_by_sigma": False, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return perturbed(SharedNCSNpp(num_sources, **arguments), seed=2)


def digits(**options: Any) -> Digits:
    return Digits(**{"batch_size": 4, "batches_per_epoch": 2, "num_validation": 4, "num_test": 4, **options})


def trainer(folder: Path, subcommand: str = "fit", **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return make_trainer(folder, subcommand, **{"accelerator": "cpu", "max_steps": 2, **quiet, **options})


def mixit_checkpoint(folder: Path, **options: Any) -> str:
    """The last checkpoint of a MixIT run of two steps in ``folder``."""
    trainer(folder, limit_val_batches=0).fit(MixIT(regression(4), optimizer=adam, **options), digits())
    return str(folder / "checkpoints" / "last.ckpt")
