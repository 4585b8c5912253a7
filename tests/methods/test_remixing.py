"""The regression baselines: their losses, and who the teacher is."""

from __future__ import annotations

from typing import Any

import pytest
import surf_minimal
import torch
from torch import Tensor

from surf_lightning.functional.losses import Objective
from surf_lightning.functional.randomness import BatchRandomness, mix_seed
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.methods import Remixing
from tests.tiny import adam, perturbed, regression

SEED, BATCH = 3, 11


def remixing(objective: Objective, num_outputs: int = 2, num_sources: int = 2, teacher_steps: int = 10) -> Remixing:
    student = regression(num_outputs, num_sources)
    options: dict[str, Any] = {"num_sources": num_sources, "teacher_steps": teacher_steps, "mixit_checkpoint": ""}
    module = Remixing(student, objective, optimizer=adam, **options)
    perturbed(module.separator, seed=5)
    module._freeze(RegressionSeparator(perturbed(regression(4, num_sources), seed=6), num_sources))
    return module.double()


def mixtures(count: int = 6) -> Tensor:
    return 2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 1


def random() -> BatchRandomness:
    return BatchRandomness(SEED, BATCH, torch.device("cpu"))


def listed(module: Remixing, teacher: RegressionSeparator, m: Tensor) -> Tensor:
    """Eq. (16) or (17) by ``examples/surf_minimal.py``."""
    pseudo = teacher.separate(m)
    generator = torch.Generator().manual_seed(mix_seed(SEED, BATCH))
    order = torch.randperm(pseudo.shape[0] * pseudo.shape[1], generator=generator)
    sources = surf_minimal.remix(pseudo, order)
    estimates = module.student(sources.sum(1))
    pit = surf_minimal.optimal_pit(estimates, sources)
    residual = estimates - surf_minimal.reorder(sources, pit)
    if module.objective == "self_remixing":
        return surf_minimal.sr_loss(residual, pit, order)
    return surf_minimal.rm_loss(residual)


@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
@pytest.mark.parametrize(("num_outputs", "num_sources"), [(2, 2), (4, 2), (3, 3)])
def test_the_loss_is_that_of_the_paper(objective: Objective, num_outputs: int, num_sources: int) -> None:
    module = remixing(objective, num_outputs, num_sources)
    expected = listed(module, module.frozen_teacher, mixtures())
    expected.backward()
    wanted = [parameter.grad for parameter in module.student.parameters()]
    module.zero_grad()
    loss = module.loss({"mixtures": mixtures()}, random())
    loss.backward()
    assert loss.item() > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for parameter, gradient in zip(module.student.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9)
    assert all(
        parameter.grad is None for parameter in [*module.frozen_teacher.parameters(), *module.separator.parameters()]
    )


def test_self_remixing_is_the_error_of_the_mixtures_themselves() -> None:
    module, m = remixing("self_remixing"), mixtures()
    generator = torch.Generator().manual_seed(mix_seed(SEED, BATCH))
    pseudo = module.frozen_teacher.separate(m)
    order = torch.randperm(12, generator=generator)
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


def test_the_sources_of_a_batch_are_not_looked_at() -> None:
    module, m = remixing("remixit"), mixtures()
    garbage = torch.full((6, 2, 1, 8, 8), float("nan"))
    alone = module.loss({"mixtures": m}, random())
    assert torch.equal(module.loss({"mixtures": m, "sources": garbage}, random()), alone)
