"""MixPIT and MixCycle against a loop over pairs of mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surf_lightning.functional.losses import squared_error
from surf_lightning.functional.randomness import Ranks
from surf_lightning.methods import MixCycle, MixPIT
from surf_lightning.methods.mixcycle import exchange
from tests.tiny import adam, assert_loss, digits, draws, mixtures, random, regression, trainer


def both(**options: Any) -> list[MixPIT]:
    """MixPIT, and MixCycle past its first phase."""
    arguments = {"optimizer": adam, **options}
    return [MixPIT(regression(), **arguments).double(), MixCycle(regression(), 0, **arguments).double()]


def best_order_error(found: Tensor, sources: list[Tensor], thresholded: bool = True) -> Tensor:
    """The lesser mean error of two estimates over both orders."""

    def error(estimate: Tensor, truth: Tensor) -> Tensor:
        energy = (estimate - truth).square().sum()
        return 10 * torch.log10(energy + 1e-3 * truth.square().sum() + 1e-8) if thresholded else energy

    one, other = sources
    ways = [error(found[0], one) + error(found[1], other), error(found[0], other) + error(found[1], one)]
    return min(ways, key=lambda way: way.item()) / 2


# -- MixPIT --


@pytest.mark.parametrize("thresholded", [True, False])
def test_mixpit_is_the_lesser_error_of_both_orders_of_the_two_mixtures(thresholded: bool) -> None:
    options: dict[str, Any] = {} if thresholded else {"error": squared_error}
    module, m = MixPIT(regression(), optimizer=adam, **options).double(), mixtures(6)
    losses = []
    for one, other in [(m[0], m[1]), (m[2], m[3]), (m[4], m[5])]:
        found = module.separator.network((one + other)[None])[0]
        losses.append(best_order_error(found, [one, other], thresholded))
    assert_loss(module, {"mixtures": m}, torch.stack(losses).mean())


def test_the_network_sees_sums_of_neighbours() -> None:
    module, seen = both()[0], []
    module.separator.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    m = mixtures(5)
    module.loss({"mixtures": m}, random())
    (found,) = seen
    assert torch.equal(found, torch.stack([m[0] + m[1], m[2] + m[3]]))  # the fifth has no mate


# -- MixCycle --


def test_sources_of_neighbours_are_exchanged() -> None:
    i, j, k, m, a, b, c, d = torch.arange(8.0).view(8, 1)
    estimates = torch.stack([i, j, k, m, a, b, c, d]).view(4, 2, 1)
    swapped = torch.tensor([False, True, False, False])
    found = exchange(estimates, swapped)
    assert torch.equal(found, torch.stack([i, m, j, k, a, c, b, d]).view(4, 2, 1))


def test_new_mixtures_hold_one_source_of_either_neighbour_and_lose_nothing() -> None:
    estimates = torch.arange(80.0).view(40, 2, 1)
    swapped = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.5
    sources = exchange(estimates, swapped).long().squeeze(-1)  # source s came from mixture s // 2
    old = sources // 2
    assert torch.equal(old, torch.arange(40).view(20, 2).repeat_interleave(2, 0))
    assert torch.equal(sources.view(20, 4).sort(1).values, torch.arange(80).view(20, 4))
    met = {(one % 2, other % 2) for one, other in sources.tolist()}
    assert met == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_mixcycle_separates_its_own_exchanged_estimates() -> None:
    module, m = both()[1], mixtures(6)
    swapped = (torch.rand(6, generator=draws()) < 0.5).tolist()
    assert len(set(swapped)) == 2
    with torch.no_grad():
        teacher = [list(module.separator.network(one[None])[0]) for one in m]
    shuffled = [pair[::-1] if swap else pair for pair, swap in zip(teacher, swapped, strict=True)]
    losses = []
    for one, other in [(0, 1), (2, 3), (4, 5)]:
        for place in range(2):
            sources = [shuffled[one][place], shuffled[other][place]]
            found = module.separator.network((sources[0] + sources[1])[None])[0]
            losses.append(best_order_error(found, sources))
    assert_loss(module, {"mixtures": m}, torch.stack(losses).mean())


def test_the_teacher_is_the_student_as_it_is_without_dropout() -> None:
    module = MixCycle(regression(dropout=0.5), 0, optimizer=adam).double().train()
    teacher = module.teacher_estimates(mixtures(2))
    assert not teacher.requires_grad
    assert all(each.training for each in module.modules())
    assert torch.equal(teacher, module.eval().separator(mixtures(2)))
    module.teacher_estimates(mixtures(2))
    assert not any(each.training for each in module.separator.modules())


def test_the_first_steps_are_those_of_mixpit() -> None:
    cycled: list[int] = []

    class Watch(MixCycle):
        def teacher_estimates(self, mixtures: Tensor) -> Tensor:
            cycled.append(self.global_step)
            return super().teacher_estimates(mixtures)

    module = Watch(regression(), 2, optimizer=adam)
    options: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer(Path("cycle"), **options).fit(module, digits())
    assert cycled == [2, 2, 3, 3]
    alone = MixPIT(regression(), optimizer=adam)
    trainer(Path("pit"), **{**options, "max_steps": 2}).fit(alone, digits())
    whole = MixCycle(regression(), 2, optimizer=adam)
    trainer(Path("two"), **{**options, "max_steps": 2}).fit(whole, digits())
    for one, other in zip(alone.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


# -- both --


def test_the_loss_is_the_same_on_two_ranks_and_in_micro_batches() -> None:
    m = mixtures(8)
    for module, small in zip(both(), both(micro_batch=3), strict=True):
        parts = [small.loss({"mixtures": part}, random(Ranks(rank, 2))) for rank, part in enumerate(m.chunk(2))]
        whole = module.loss({"mixtures": m}, random())
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", [MixPIT, MixCycle])
def test_other_numbers_of_outputs_are_refused(method: type[MixPIT]) -> None:
    with pytest.raises(ValueError, match="need a network of 2 outputs, not 4"):
        method(regression(4), optimizer=adam)
