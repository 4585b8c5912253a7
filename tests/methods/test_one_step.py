"""Distillation into one step: its loss, its beginning, and what it separates with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import FlowSeparator, load_separator
from surf_lightning.methods import SURF, OneStep
from tests.tiny import adam, digits, perturbed, trainer, velocity


def one_step(flow: str, **options: Any) -> OneStep:
    return OneStep(velocity(), flow, optimizer=adam, ema_decay=0.5, **options)


@pytest.mark.parametrize("flow_steps", [None, 3])
def test_the_loss_is_the_distance_of_one_step_from_several_of_the_same_noise(flow_steps: int | None) -> None:
    module = one_step("", sampling_noise=0.3, flow_steps=flow_steps).double()
    teacher = FlowSeparator(perturbed(velocity(), seed=4), num_steps=5 if flow_steps else 3).double()
    module._freeze(teacher)
    mixtures = torch.rand(5, 1, 8, 8).double()
    noise = BatchRandomness(1, 2, torch.device("cpu")).normal((5, 2, 1, 8, 8)).double()
    x0 = mixtures[:, None] / 2 + 0.3 * (noise - noise.mean(1, keepdim=True))
    x = x0
    for step in range(3):
        x = x + teacher.network(x, torch.full((5,), step / 3).double(), mixtures) / 3
    found = x0 + module.student.network(x0, torch.zeros(5).double(), mixtures)
    loss = module.loss({"mixtures": mixtures}, BatchRandomness(1, 2, torch.device("cpu")))
    both = torch.stack([(found - order).flatten(1).square().mean(1) for order in (x, x.flip(1))])
    torch.testing.assert_close(loss, both.amin(0).mean(), rtol=1e-6, atol=0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_run_begins_with_the_flows_weights_and_separates_in_one_evaluation(mixit: str, tmp_path: Path) -> None:
    trainer(tmp_path / "surf").fit(SURF(velocity(), mixit_checkpoint=mixit, optimizer=adam), digits())
    flow = load_separator(tmp_path / "surf" / "checkpoints" / "last.ckpt")
    module, began = one_step(str(tmp_path / "surf" / "checkpoints" / "last.ckpt")), []

    class Watch(OneStep):
        def on_train_start(self) -> None:
            super().on_train_start()
            began.append({name: value.clone() for name, value in self.student.network.state_dict().items()})

    module.__class__ = Watch
    trainer(tmp_path / "one").fit(module, digits())
    for name, value in flow.network.state_dict().items():
        assert torch.equal(began[0][name], value)
    separator, calls = load_separator(tmp_path / "one" / "checkpoints" / "last.ckpt"), []
    separator.network.register_forward_hook(lambda *_: calls.append(1))
    mixtures = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(separator.separate(mixtures).sum(1), mixtures)
    assert len(calls) == 1


def test_a_regression_is_no_flow(mixit: str) -> None:
    with pytest.raises(UserError, match="RegressionSeparator: a flow such as SURF's is needed"):
        one_step(mixit).check_earlier_stage()
