"""beta at every optimizer step, in numbers and in a fit."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surf_lightning.callbacks.beta_schedule import BetaSchedule, check_steps, in_steps
from surf_lightning.errors import UserError


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (BetaSchedule(), {0: 1.0, 1: 1 - 1 / 200_000, 50_000: 0.75, 100_000: 0.5, 200_000: 0.0, 10**6: 0.0}),
        (BetaSchedule(steps=10, frozen_steps=5), {0: 1.0, 4: 1.0, 5: 1.0, 6: 0.9, 10: 0.5, 15: 0.0, 16: 0.0}),
        (BetaSchedule(0.8, 0.2, steps=3), {0: 0.8, 1: 0.6, 2: 0.4, 3: 0.2, 4: 0.2}),
        (BetaSchedule(0.6, 0.6, steps=3), {0: 0.6, 1: 0.6, 3: 0.6, 99: 0.6}),
    ],
)
def test_beta_falls_linearly_after_the_frozen_phase(schedule: BetaSchedule, values: dict[int, float]) -> None:
    for step, value in values.items():
        assert schedule.beta(step) == pytest.approx(value, abs=1e-12)
    assert schedule.beta(10**9) == schedule.end  # exactly: at beta = 0 the frozen_teacher is not evaluated


@pytest.mark.parametrize(
    "options", [{"start": 1.5}, {"end": -0.1}, {"steps": 0}, {"frozen_steps": -1}, {"start": float("nan")}]
)
def test_impossible_schedules_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"beta|frozen_steps"):
        BetaSchedule(**options)


class Toy(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(3, 1)
        self.beta = -1.0
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.global_step, self.beta))
        return self.student(batch).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.betas: list[float] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "beta" in metrics:
            self.betas.append(metrics["beta"])


def test_a_fit_sees_and_logs_the_beta_of_its_step_not_of_its_batch() -> None:
    module, logger = Toy(), Recorder()
    rows: Any = torch.randn(12, 3)
    trainer = L.Trainer(
        max_steps=6,
        accumulate_grad_batches=2,
        callbacks=[BetaSchedule(steps=4, frozen_steps=1)],
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(rows))
    expected = [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert module.seen == [(step, expected[step]) for step in range(6) for _ in range(2)]
    assert logger.betas == expected


def test_a_schedule_may_be_a_share_of_the_run() -> None:
    schedule = BetaSchedule(steps=0.5, frozen_steps=0.25)
    with pytest.raises(UserError, match=r"share of the run .*--trainer.max_steps"):
        schedule.beta(3)
    for total in (8, 8000):
        schedule.total = total
        assert schedule.end_step == 0.75 * total
        assert [schedule.beta(step * total // 8) for step in range(8)] == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert in_steps(1, 10) == 1  # a step, but
    assert in_steps(1.0, 10) == 10
    assert in_steps(0.001, 10) == 1


@pytest.mark.parametrize("given", [0, -1, 0.0, 1.5, float("nan")])
def test_a_schedule_is_a_number_of_steps_or_a_share(given: float) -> None:
    with pytest.raises(ValueError, match="mixpit_steps must be"):
        check_steps("mixpit_steps", given)


def test_shares_of_a_run_that_a_checkpoint_tells_need_no_max_steps() -> None:
    schedule, toy = BetaSchedule(steps=0.5), Toy()
    toy.run_steps = 8  # type: ignore[assignment]
    endless = L.Trainer(max_steps=-1, max_epochs=1, logger=False, enable_checkpointing=False, barebones=False)
    schedule.on_train_start(endless, toy)
    assert [schedule.beta(step) for step in (0, 2, 4)] == [1.0, 0.5, 0.0]
