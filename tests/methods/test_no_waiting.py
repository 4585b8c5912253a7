"""The host never waits for the device within a step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from surf_lightning.callbacks.ema_teacher import ema_update
from surf_lightning.engine.fit import Progress, standard_callbacks
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.methods import SURF
from surf_lightning.methods.base import SeparationModule
from tests.methods.test_bfloat16 import CASES, batch
from tests.tiny import digits, velocity

aten = torch.ops.aten
# Each reads a value of the device's, or (lift_fresh) brings numbers of the host's into a tensor.
WAITING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.unique_dim,
    aten._unique2,
    aten.bincount,
    aten.lift_fresh,
    aten.lift_fresh_copy,
}


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in WAITING, f"{func} waits for the device"
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            indices = [index for index in tree_leaves(args[1]) if isinstance(index, Tensor)]
            assert all(index.dtype != torch.bool for index in indices), f"{func} of a mask waits for the device"
        return func(*args, **(kwargs or {}))


STEPS = [name for name in CASES if not name.startswith("basis")]  # BASIS makes its table of noise levels in each step


@pytest.mark.parametrize("case", STEPS)
def test_no_operation_of_a_step_reads_a_value(case: str) -> None:
    """On the CPU nothing waits: it is looked which operations would, on another device."""
    module: Any = CASES[case]()
    module.beta = 0.5
    examples = batch(audio=case.split()[1] in ("conv_tasnet", "locoformer"))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.loss(examples, BatchRandomness(0, 0, torch.device("cpu")))
        loss.backward()
        if hasattr(module, "student"):
            ema_update(module.separator, module.student, 0.9)

    step()  # tables that are made once
    with NoWaiting():
        step()


def test_what_would_wait_is_found() -> None:
    x = torch.arange(3.0)
    for waiting in (lambda: x[0].item(), lambda: bool(x[0] > 1), lambda: x[x > 1], lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            waiting()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_not_waited_for_between_the_third_batch_and_the_last(mixit: str, tmp_path: Path) -> None:
    """Data, loss, gradients, clipping, optimizer, EMA, logging and progress bar."""

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: SeparationModule, batch: Any, index: int) -> None:  # type: ignore[override]
            if index == 2:
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(
            self,
            trainer: L.Trainer,
            module: SeparationModule,
            outputs: Any,
            batch: Any,
            index: int,  # type: ignore[override]
        ) -> None:
            if index == 7:
                torch.cuda.set_sync_debug_mode("default")

    bar = Progress()
    bar._drawn = float("inf")  # not due within the test
    fused = functools.partial(torch.optim.Adam, fused=True)  # others are asked after each step whether it was finite
    module = SURF(velocity(), "self_remixing", mixit_checkpoint=mixit, optimizer=fused, beta_steps=10)
    trainer = L.Trainer(
        accelerator="cuda",
        devices=1,
        precision="bf16-mixed",
        max_steps=8,
        gradient_clip_val=1.0,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[Watch(), *standard_callbacks(tmp_path, "fit", False), bar],
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, digits(batches_per_epoch=8))
    finally:
        torch.cuda.set_sync_debug_mode("default")
