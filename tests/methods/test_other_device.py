"""A step of every method on a device other than the CPU, which needs no such device: tensors without contents.

No tensor of a step may lie on another device than the module's, and no operation may read a value.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from unittest import mock

import torch
from counting import empty_weights, without_data
from torch.utils import backend_registration

from surf_lightning.callbacks.ema_teacher import ema_update
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.methods.base import SeparationModule
from tests.methods.test_bfloat16 import CASES, batch
from tests.test_configs import ROOT

DEVICE = "other:0"


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def randomness(device: torch.device) -> BatchRandomness:
    """Its numbers come from no generator: there is none of that device."""
    with mock.patch("torch.Generator", return_value=torch.Generator()):
        return BatchRandomness(0, 0, device)


def step(module: Any, examples: dict[str, torch.Tensor], device: torch.device) -> None:
    """As in training: loss, gradient, clipping, optimizer, teacher; and a separation."""
    loss = module.loss(examples, randomness(device))
    assert loss.device == device
    loss.backward()
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert all(weight.grad is None or weight.grad.device == device for weight in weights)
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    torch.optim.Adam(weights).step()
    if hasattr(module, "student"):
        ema_update(module.separator, module.student, 0.9)
    assert module.separator.separate(examples["mixtures"], torch.Generator()).device == device


def main() -> None:
    """Prints each case that passed. The device is one of the whole process."""
    backend_registration._setup_privateuseone_for_python_backend("other", _Backend())
    device = torch.device(DEVICE)
    modules: dict[str, SeparationModule] = {name: make() for name, make in CASES.items()}
    with without_data():
        for name, module in modules.items():
            module.beta = 0.5  # type: ignore[assignment]
            empty_weights(module, device)
            audio = name.split()[1] in ("conv_tasnet", "locoformer")
            examples = {key: value.to(device) for key, value in batch(audio).items()}
            module.micro_batch = 3  # type: ignore[assignment]
            step(module, examples, device)
            print(name, flush=True)


def test_every_step_stays_on_its_device() -> None:
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", __name__], cwd=ROOT, env=os.environ | paths, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == list(CASES), done.stderr[-3000:]


if __name__ == "__main__":
    main()
