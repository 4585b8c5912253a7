"""The teacher's weights against the recursion in closed form, once per optimizer step."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surf_lightning.callbacks.ema_teacher import EMATeacher, ema_update


class Toy(L.LightningModule):
    """Student and teacher in float64; remembers the student after every optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(3, 2).double()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.history = [self.weights(self.student)]
        self.teacher_seen: list[Tensor] = []

    @staticmethod
    def weights(module: nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.teacher_seen.append(self.weights(self.teacher))
        return self.student(batch).square().sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.history.append(self.weights(self.student))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05)


def loader(batches: int) -> DataLoader[Tensor]:
    rows: Any = torch.randn(2 * batches, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return DataLoader(rows, batch_size=2)


def fit(module: Toy, steps: int, accumulate: int = 3, follower: EMATeacher | None = None, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=[follower or EMATeacher(0.9)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(7), **options)
    return trainer


def closed_form(history: list[Tensor], decay: float) -> Tensor:
    """The sum of all weights, each times its 1 - alpha_i and the alphas that came after it."""
    alphas = [min(decay, n / (9 + n)) for n in range(1, len(history))]
    shares = [(1 - alpha) * math.prod(alphas[n + 1 :]) for n, alpha in enumerate(alphas)]
    return math.prod(alphas) * history[0] + sum(s * w for s, w in zip(shares, history[1:], strict=True))


def test_the_teacher_follows_once_per_step_of_several_batches() -> None:
    module = Toy()
    fit(module, steps=8)  # epochs of 7 batches: steps of 3, 3 and 1
    assert len(module.history) == 9
    assert len(module.teacher_seen) == 7 + 7 + 6
    torch.testing.assert_close(Toy.weights(module.teacher), closed_form(module.history, 0.9), rtol=1e-13, atol=1e-15)
    changes = [not torch.equal(*pair) for pair in zip(module.teacher_seen, module.teacher_seen[1:], strict=False)]
    assert [index + 1 for index, change in enumerate(changes) if change] == [3, 6, 7, 10, 13, 14, 17]


@pytest.mark.parametrize(("decay", "every"), [(0.0, 3), (0.5, 2)])
def test_the_teacher_moves_every_few_steps_or_is_replaced(decay: float, every: int) -> None:
    module = Toy()
    fit(module, steps=8, follower=EMATeacher(decay, every))
    teacher = module.history[0]
    for move, step in enumerate(range(every, 9, every), start=1):
        alpha = min(decay, move / (9 + move))
        teacher = alpha * teacher + (1 - alpha) * module.history[step]
    torch.testing.assert_close(Toy.weights(module.teacher), teacher, rtol=1e-13, atol=1e-15)
    with pytest.raises(ValueError, match="every"):
        EMATeacher(0.9, 0)


def test_a_resumed_fit_does_not_follow_before_its_first_step() -> None:
    first, second = Toy(), Toy()
    fit(first, steps=1).save_checkpoint("one.ckpt")
    fit(second, steps=2, ckpt_path="one.ckpt")
    teacher = Toy.weights(first.teacher)
    assert len(second.teacher_seen) == 3
    assert all(torch.equal(weights, teacher) for weights in second.teacher_seen)
    alpha = 2 / 11  # the second step's, of the warm-up
    torch.testing.assert_close(Toy.weights(second.teacher), alpha * teacher + (1 - alpha) * second.history[-1])


def test_the_warm_up_forgets_the_random_beginning_and_ends_at_the_decay() -> None:
    follower = EMATeacher(0.999)
    share_of_the_beginning = math.prod(follower.decay_at(step) for step in range(1, 1001))
    assert share_of_the_beginning < 1e-9
    assert [follower.decay_at(step) for step in (1, 9, 8990, 8992, 10**6)] == [0.1, 0.5, 8990 / 8999, 0.999, 0.999]
    assert EMATeacher(0.0).decay_at(5) == 0
    assert EMATeacher(1.0).decay_at(5) == 1


def with_buffers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.BatchNorm1d(4)
    module(torch.randn(5, 4))
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.999, 1.0])
def test_parameters_are_averaged_and_buffers_copied(decay: float) -> None:
    teacher, student = with_buffers(0), with_buffers(1)
    student(torch.randn(5, 4))
    expected = [
        decay * old.double() + (1 - decay) * new.double()
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    ema_update(teacher, student, decay)
    for found, wanted in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7)
    for copied, original in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(copied, original)
        assert copied is not original
    assert teacher.num_batches_tracked == 2


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_outside_the_unit_interval_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMATeacher(decay)
