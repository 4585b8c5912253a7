"""Networks, data and trainers small enough for a unit test."""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor, nn

from surf_lightning.data import Digits
from surf_lightning.data.base import SeparationData
from surf_lightning.engine.fit import make_trainer
from surf_lightning.functional.randomness import ALONE, BatchRandomness, Ranks, mix_seed
from surf_lightning.methods import MixIT
from surf_lightning.methods.base import SeparationModule
from surf_lightning.networks import RegressionNCSNpp, SharedNCSNpp

Module = TypeVar("Module", bound=nn.Module)
adam = functools.partial(torch.optim.Adam, lr=1e-2)
NCSNPP: dict[str, Any] = {"channels": 4, "multipliers": [1], "blocks": 1, "attention_resolutions": [], "dropout": 0.0}


def perturbed(module: Module, seed: int = 0) -> Module:
    """The module with noise on every parameter: layers that start at zero would make tests pass vacuously."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def regression(num_outputs: int = 2, num_sources: int = 2, **options: Any) -> RegressionNCSNpp:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return perturbed(RegressionNCSNpp(num_outputs, num_sources, 1, 8, **{**NCSNPP, **options}), seed=1)


def velocity(num_sources: int = 2, **options: Any) -> SharedNCSNpp:
    arguments = {**NCSNPP, "scale_by_sigma": False, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return perturbed(SharedNCSNpp(num_sources, 1, 8, **arguments), seed=2)


def mixit(**options: Any) -> MixIT:
    return MixIT(regression(4), optimizer=adam, **options)


def digits(**options: Any) -> Digits:
    return Digits(**{"batch_size": 4, "batches_per_epoch": 2, "num_validation": 4, "num_test": 4, **options})


def trainer(folder: Path, subcommand: str = "fit", **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return make_trainer(folder, subcommand, **{"accelerator": "cpu", "max_steps": 2, **quiet, **options})


def attach(
    data: SeparationData,
    rank: int = 0,
    world_size: int = 1,
    processed: int = 0,
    stage: str = "fit",
    needs_sources: bool = False,
) -> SeparationData:
    """``data`` with as much of a trainer and its method as it looks at."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=processed))
    stub: Any = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn=SimpleNamespace(value=stage)),
        lightning_module=SimpleNamespace(needs_sources=needs_sources),
    )
    data.trainer = stub
    return data


def mixit_checkpoint(folder: Path, **options: Any) -> str:
    """The last checkpoint of a MixIT run of two steps in ``folder``."""
    trainer(folder, limit_val_batches=0).fit(mixit(**options), digits())
    return str(folder / "checkpoints" / "last.ckpt")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files end at ``size`` bytes. (Not as a fixture: pytest writes files as well.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- a step of a method --

SEED, BATCH, CPU = 3, 17, torch.device("cpu")


def random(ranks: Ranks = ALONE, seed: int = SEED) -> BatchRandomness:
    return BatchRandomness(seed, BATCH, CPU, ranks)


def draws() -> torch.Generator:
    """What ``random()`` draws from."""
    return torch.Generator().manual_seed(mix_seed(SEED, BATCH))


def mixtures(count: int = 6, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64) - 1


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """By the names of the parameters; none is left behind."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_loss(module: SeparationModule, batch: dict[str, Tensor], expected: Tensor, rtol: float = 1e-9) -> None:
    """The module's loss of ``batch`` and its gradient are those of ``expected``, a function of the same weights."""
    expected.backward()
    wanted = gradients(module)
    loss = module.loss(batch, random())
    loss.backward()
    assert loss.isfinite()
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    found = gradients(module)
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert scale > 1e-2
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=100 * rtol, atol=rtol * scale, msg=name)
