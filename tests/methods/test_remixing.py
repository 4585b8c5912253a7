"""The regression baselines: their losses, and who the teacher is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import surf_minimal
import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.functional.losses import Objective, squared_error
from surf_lightning.functional.permutation import order_without_mates
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator
from surf_lightning.methods import SURF, Remixing, SupervisedFlow
from surf_lightning.methods.remixing import TeacherStudentModule
from surf_lightning.networks import ConstantNoise
from tests.tiny import (
    adam,
    assert_loss,
    digits,
    draws,
    mixtures,
    perturbed,
    random,
    regression,
    trainer,
    velocity,
)


def remixing(
    objective: Objective | float, num_outputs: int = 2, num_sources: int = 2, teacher_steps: int = 10, **more: Any
) -> Remixing:
    student = regression(num_outputs, num_sources)
    options: dict[str, Any] = {"num_sources": num_sources, "teacher_steps": teacher_steps, "mixit_checkpoint": ""}
    module = Remixing(student, objective, optimizer=adam, **{**options, **more})
    perturbed(module.separator, seed=5)
    module._freeze(RegressionSeparator(perturbed(regression(4, num_sources), seed=6), num_sources))
    return module.double()


def listed(module: Remixing, teacher: RegressionSeparator, m: Tensor) -> Tensor:
    """Eq. (16) or (17) by ``examples/surf_minimal.py``."""
    pseudo, generator = teacher.separate(m), draws()
    if module.shuffle == "constrained":
        order = order_without_mates(*pseudo.shape[:2], generator)
    else:
        order = torch.randperm(pseudo.shape[0] * pseudo.shape[1], generator=generator)
    sources = surf_minimal.remix(pseudo, order)
    estimates = module.student(sources.sum(1))
    pit = surf_minimal.optimal_pit(estimates, sources)
    residual = estimates - surf_minimal.reorder(sources, pit)
    weight = {"remixit": 1.0, "self_remixing": 0.0}.get(module.objective, module.objective)
    return weight * surf_minimal.rm_loss(residual) + (1 - weight) * surf_minimal.sr_loss(residual, pit, order)


@pytest.mark.parametrize("objective", ["remixit", "self_remixing", 0.3])
@pytest.mark.parametrize("shuffle", ["uniform", "constrained"])
@pytest.mark.parametrize(("num_outputs", "num_sources"), [(2, 2), (4, 2), (3, 3)])
def test_the_loss_is_that_of_the_paper(
    objective: Objective | float, shuffle: str, num_outputs: int, num_sources: int
) -> None:
    module = remixing(objective, num_outputs, num_sources, shuffle=shuffle)
    expected = listed(module, module.frozen_teacher, mixtures())
    assert expected.item() > 1e-3
    assert_loss(module, {"mixtures": mixtures()}, expected)


def test_self_remixing_is_the_error_of_the_mixtures_themselves() -> None:
    module, m = remixing("self_remixing"), mixtures()
    pseudo = module.frozen_teacher.separate(m)
    order = torch.randperm(12, generator=draws())
    sources = pseudo.flatten(0, 1)[order].view_as(pseudo)
    estimates = module.student.separate(sources.sum(1))
    total = torch.zeros_like(m)
    for b, one in enumerate(surf_minimal.optimal_pit(estimates, sources).tolist()):
        for k, source in enumerate(one):
            total[order[2 * b + source] // 2] += estimates[b, k]
    loss = module.loss({"mixtures": m}, random())
    torch.testing.assert_close(loss.detach(), (total - m).square().mean())  # the teacher enters only through the order


@pytest.mark.parametrize(("step", "is_frozen"), [(0, True), (9, True), (10, False), (10_000, False)])
def test_the_frozen_mixit_teaches_first_and_the_students_average_after(
    step: int, is_frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, m = remixing("remixit", teacher_steps=10), mixtures()
    monkeypatch.setattr(Remixing, "global_step", property(lambda self: step))
    calls: list[tuple[str, bool]] = []
    for name in ("frozen_teacher", "separator", "student"):
        network = getattr(module, name).network
        network.register_forward_hook(lambda *_, name=name: calls.append((name, torch.is_grad_enabled())))
    loss = module.loss({"mixtures": m}, random())
    assert calls == [("frozen_teacher" if is_frozen else "separator", False), ("student", True)]
    torch.testing.assert_close(loss, listed(module, module.frozen_teacher if is_frozen else module.separator, m))


def test_a_frozen_flow_teaches_by_its_samples() -> None:
    module, m = remixing("remixit"), mixtures()
    module._freeze(FlowSeparator(perturbed(velocity(), seed=7), 2, ConstantNoise(0.5)).double())
    generator = draws()
    order = torch.randperm(12, generator=generator)
    sources = surf_minimal.prior(m, 0.5 * torch.randn(6, 2, 1, 8, 8, generator=generator).double())
    for t in (0.0, 0.5):
        sources = sources + module.frozen_teacher.network(sources, torch.full((6,), t).double(), m) / 2
    sources = surf_minimal.remix(sources.detach(), order)
    estimates = module.student(sources.sum(1))
    pit = surf_minimal.optimal_pit(estimates, sources)
    expected = surf_minimal.rm_loss(estimates - surf_minimal.reorder(sources, pit))
    assert_loss(module, {"mixtures": m}, expected, rtol=1e-5)


# -- from scratch, without an earlier stage --


def from_scratch(flow: bool, **options: Any) -> TeacherStudentModule:
    options = {"mixit_checkpoint": None, "optimizer": adam, **options}
    return SURF(velocity(), "remixit", **options) if flow else Remixing(regression(), "remixit", **options)


def test_from_scratch_the_untrained_average_teaches_from_the_first_step() -> None:
    module: Any = from_scratch(flow=False).double()
    perturbed(module.separator, seed=5)
    assert module.steps_made < module.teacher_steps
    torch.testing.assert_close(
        module.loss({"mixtures": mixtures()}, random()), listed(module, module.separator, mixtures())
    )
    flow: Any = from_scratch(flow=True)
    assert flow.beta == 0
    assert flow.schedule.beta(0) == flow.schedule.beta(10) == 0
    assert flow.loss({"mixtures": mixtures().float()}, random()).item() > 1e-3


@pytest.mark.parametrize("flow", [False, True])
def test_a_run_from_scratch_trains_resumes_and_keeps_no_frozen_teacher(flow: bool, tmp_path: Path) -> None:
    module = from_scratch(flow)
    trainer(tmp_path).fit(module, digits())
    last = tmp_path / "checkpoints" / "last.ckpt"
    names = torch.load(last, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in names} == {"separator", "student"}
    resumed = from_scratch(flow)
    trainer(tmp_path, max_steps=3).fit(resumed, digits(), ckpt_path=str(last))
    assert resumed.global_step == 3
    with pytest.raises(UserError, match="written without an earlier stage"):
        trainer(tmp_path, max_steps=4).fit(from_scratch(flow, mixit_checkpoint="x"), digits(), ckpt_path=str(last))


def test_impossible_teachers_objectives_and_batches_are_refused(mixit: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="with a mixit_checkpoint"):
        from_scratch(flow=False, initialize_from_mixit=True)
    with pytest.raises(ValueError, match="weight of ReMixIT"):
        remixing(1.5)
    with pytest.raises(ValueError, match=r"error must map \[...,T\]"):
        Remixing(regression(), error=squared_error, mixit_checkpoint=mixit, optimizer=adam)
    with pytest.raises(ValueError, match="early_times must be above 0"):
        SURF(velocity(), early_times=0.0, mixit_checkpoint=mixit, optimizer=adam)
    with pytest.raises(ValueError, match="early_times must be above 0"):
        SupervisedFlow(velocity(), early_times=-1.0, optimizer=adam)
    module = Remixing(regression(), mixit_checkpoint=mixit, shuffle="constrained", optimizer=adam)
    with pytest.raises(UserError, match=r"raise data\.batch_size"):
        trainer(tmp_path / "remixing").fit(module, digits(batch_size=1))
