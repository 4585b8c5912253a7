"""SURF's training step against Code Listing 1 and Appendix D.3, in values, gradients and network evaluations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import surf_minimal
import torch
from torch import Tensor

from surf_lightning.functional.losses import Objective
from surf_lightning.functional.permutation import order_without_mates
from surf_lightning.functional.randomness import BatchRandomness, Ranks
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator
from surf_lightning.methods import SURF
from surf_lightning.networks import ConstantNoise, SourceHead, VelocityHead
from surf_lightning.networks.base import Head
from tests.tiny import (
    BATCH,
    CPU,
    SEED,
    adam,
    assert_loss,
    digits,
    draws,
    gradients,
    mixtures,
    perturbed,
    random,
    regression,
    trainer,
    velocity,
)


def surf(objective: Objective, num_sources: int = 2, head: Head | None = None, **options: Any) -> SURF:
    """In float64, teacher and student apart, the frozen teacher in place."""
    student = velocity(num_sources, head=head or VelocityHead())
    module = SURF(student, objective, mixit_checkpoint="", optimizer=adam, **options)
    perturbed(module.separator, seed=5)
    module._freeze(RegressionSeparator(regression(4, num_sources), num_sources))
    return module.double()


def one_shuffle(size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator)


def listed(
    module: SURF, m: Tensor, self_remixing: bool, draw_order: Callable[[int, torch.Generator], Tensor] = one_shuffle
) -> Tensor:
    """The loss of ``examples/surf_minimal.py`` from the random numbers of batch ``BATCH``."""
    student, teacher, generator = module.student, module.teacher, draws()
    shape, sigma = (len(m), student.num_sources, *m.shape[1:]), student.noise.scale
    teacher_noise = torch.randn(shape, generator=generator).double()
    order = draw_order(shape[0] * shape[1], generator)
    t, noise = torch.rand(len(m), generator=generator), torch.randn(shape, generator=generator).double()
    x0 = surf_minimal.prior(m, sigma * teacher_noise)
    sample = surf_minimal.teacher_sample(teacher.network, module.frozen_teacher, m, x0, module.beta, teacher.num_steps)
    sources = surf_minimal.remix(sample, order)
    x0 = surf_minimal.prior(sources.sum(1), sigma * noise)
    residual, pit = surf_minimal.flow_residual(student.network, x0, sources, sources.sum(1), t)
    residual = student.network.residual_weight(t).view(-1, 1, 1, 1, 1) * residual
    return surf_minimal.sr_loss(residual, pit, order) if self_remixing else surf_minimal.rm_loss(residual)


@pytest.mark.parametrize("head", [VelocityHead(), SourceHead()])
@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
@pytest.mark.parametrize(("num_sources", "beta"), [(2, 1.0), (2, 0.5), (3, 0.2), (2, 0.0)])
def test_the_loss_and_its_gradient_are_those_of_code_listing_1(
    head: Head, objective: Objective, num_sources: int, beta: float
) -> None:
    module = surf(objective, num_sources, head, noise=ConstantNoise(0.8), num_steps=4)
    module.beta = beta
    expected = listed(module, mixtures(), objective == "self_remixing")
    assert expected.item() > 1e-3
    assert_loss(module, {"mixtures": mixtures()}, expected, rtol=1e-5)
    module.loss({"mixtures": mixtures()}, random()).backward()
    assert all(name.startswith("student.") for name in gradients(module))


@pytest.mark.parametrize(
    ("beta", "frozen", "sampled"), [(1.0, 1, 0), (0.99, 1, 0), (0.5, 1, 2), (0.1, 1, 4), (0.0, 0, 5)]
)
def test_a_step_evaluates_no_network_in_vain(beta: float, frozen: int, sampled: int) -> None:
    module = surf("remixit")
    module.beta = beta
    calls: list[tuple[str, bool]] = []
    for name in ("frozen_teacher", "separator", "student"):
        network = getattr(module, name).network
        network.register_forward_hook(lambda *_, name=name: calls.append((name, torch.is_grad_enabled())))
    module.loss({"mixtures": mixtures()}, random()).backward()
    expected = [("frozen_teacher", False)] * frozen + [("separator", False)] * sampled
    assert calls == [*expected, ("student", False), ("student", True)]


@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_give_the_same_gradient(objective: Objective, micro_batch: int) -> None:
    module, m = surf(objective), mixtures(6)
    module.beta = 0.5
    whole = module.loss({"mixtures": m}, random())
    whole.backward()
    wanted = gradients(module)
    rows = {"frozen_teacher": 0, "separator": 0, "student": 0}

    def count(name: str, inputs: Tensor) -> None:
        rows[name] += len(inputs)
        assert len(inputs) <= micro_batch

    for name in rows:
        getattr(module, name).network.register_forward_pre_hook(lambda _, args, name=name: count(name, args[0]))
    module.micro_batch = micro_batch
    loss = module.loss({"mixtures": m}, random())
    loss.backward()
    torch.testing.assert_close(loss, whole)
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-10)
    assert rows == {"frozen_teacher": 6, "separator": 2 * 6, "student": 3 * 6}


def test_the_loss_is_a_function_of_the_mixtures_the_seed_and_the_batch_number() -> None:
    module, m = surf("self_remixing"), mixtures()
    loss = module.loss({"mixtures": m}, random())
    torch.manual_seed(99)
    assert torch.equal(module.loss({"mixtures": m}, random()), loss)
    assert not torch.equal(module.loss({"mixtures": m + 0.1}, random()), loss)
    assert not torch.equal(module.loss({"mixtures": m}, random(seed=SEED + 1)), loss)


def test_one_mixture_alone_teaches_remixit_but_not_self_remixing(mixit: str, tmp_path: Path) -> None:
    m = mixtures(1)
    assert surf("self_remixing").loss({"mixtures": m}, random()).item() < 1e-12
    alone = SURF(velocity(), "self_remixing", mixit_checkpoint=mixit, optimizer=adam)
    with pytest.warns(UserWarning, match="batch_size of at least 2"):
        trainer(tmp_path / "surf").fit(alone, digits(batch_size=1))
    assert surf("remixit").loss({"mixtures": m}, random()).item() > 1e-2


def test_self_remixing_is_zero_where_mates_meet_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", lambda size, **_: torch.arange(size).view(-1, 2).flip(0, 1).flatten())
    assert surf("self_remixing").loss({"mixtures": mixtures()}, random()).item() < 1e-12
    assert surf("remixit").loss({"mixtures": mixtures()}, random()).item() > 1e-2


class Threads(Ranks):
    """Two ranks in two threads of one process, with gradients from one to the other."""

    barrier = threading.Barrier(2)
    board: list[Any] = [None, None]  # noqa: RUF012

    def gather(self, rows: Tensor) -> Tensor:
        self.board[self.rank] = rows
        self.barrier.wait()
        everything = torch.cat(list(self.board))
        self.barrier.wait()
        return everything


@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
def test_two_ranks_compute_what_one_computes_of_their_batches_together(objective: Objective) -> None:
    module, m = surf(objective), mixtures(6)
    module.beta = 0.5
    alone = module.loss({"mixtures": m}, random())
    alone.backward()
    wanted = gradients(module)
    losses: list[Any] = [None, None]

    def run(rank: int) -> None:
        ranks = Threads(rank, 2)
        losses[rank] = module.loss({"mixtures": ranks.local(m)}, BatchRandomness(SEED, BATCH, CPU, ranks))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = (losses[0] + losses[1]) / 2
    together.backward()
    torch.testing.assert_close(together, alone)
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
def test_remixing_within_the_rank_is_one_shuffle_a_rank_and_needs_no_other_process(objective: Objective) -> None:
    """Together the ranks compute what one does whose permutation keeps each half of the batch to itself."""
    module, m = surf(objective, remix_over_ranks=False), mixtures(6)
    module.beta = 0.5
    losses = [
        module.loss({"mixtures": part}, BatchRandomness(SEED, BATCH, CPU, Ranks(rank, 2)))
        for rank, part in enumerate(m.chunk(2))
    ]
    ((losses[0] + losses[1]) / 2).backward()
    found = gradients(module)

    def halves(size: int, generator: torch.Generator) -> Tensor:
        first, second = (torch.randperm(size // 2, generator=generator) for _ in range(2))
        return torch.cat([first, size // 2 + second])

    expected = listed(module, m, objective == "self_remixing", halves)
    expected.backward()
    torch.testing.assert_close((losses[0] + losses[1]) / 2, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
def test_on_one_process_it_makes_no_difference_where_remixing_ends(objective: Objective) -> None:
    losses = [surf(objective, remix_over_ranks=over).loss({"mixtures": mixtures()}, random()) for over in (True, False)]
    assert torch.equal(*losses)


def test_the_teacher_starts_as_the_student_and_follows_it_alone(mixit: str, tmp_path: Path) -> None:
    module = SURF(velocity(dropout=0.3), "self_remixing", mixit_checkpoint=mixit, ema_decay=0.9, optimizer=adam)
    teacher = {name: value.double() for name, value in module.separator.state_dict().items()}
    for name, value in module.student.state_dict().items():
        assert torch.equal(teacher[name].float(), value)
    frozen_teacher: dict[str, Tensor] = {}
    modes: list[bool] = []

    class Watch(SURF):
        def on_train_start(self) -> None:
            super().on_train_start()
            frozen_teacher.update({name: value.clone() for name, value in self.frozen_teacher.state_dict().items()})

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            step = self.global_step + 1  # Lightning counts it after this hook
            alpha = min(0.9, step / (9 + step))
            for name, value in self.student.state_dict().items():
                teacher[name] = alpha * teacher[name] + (1 - alpha) * value.double()
            modes.extend(part.training for part in [*self.separator.modules(), *self.frozen_teacher.modules()])
            assert self.student.training

    module.__class__ = Watch
    trainer(tmp_path / "surf", max_steps=5).fit(module, digits(num_validation=8))
    for name, value in module.separator.state_dict().items():
        torch.testing.assert_close(value.double(), teacher[name], rtol=1e-5, atol=1e-6)
    for name, value in module.frozen_teacher.state_dict().items():
        assert torch.equal(value, frozen_teacher[name])
    assert modes
    assert not any(modes)


def test_a_bare_train_leaves_both_teachers_in_evaluation_mode_without_gradients() -> None:
    module = surf("remixit")
    for mode in (True, False, True):
        module.train(mode)
        assert all(part.training is mode for part in module.student.modules())
        for frozen in (module.separator, module.frozen_teacher):
            assert not any(part.training for part in frozen.modules())
            assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_teachers_sample_is_consistent_and_the_frozen_teachers_at_beta_one() -> None:
    module, m = surf("remixit"), mixtures()
    for beta in (1.0, 0.6, 0.0):
        module.beta = beta
        sample = module.teacher_estimates(m, random().normal((6, 2, 1, 8, 8)))
        torch.testing.assert_close(sample.sum(1), m, rtol=0, atol=1e-6)
        assert torch.allclose(sample, module.frozen_teacher.separate(m)) == (beta == 1)
        assert not sample.requires_grad


def test_a_frozen_flow_teaches_by_its_own_samples_from_the_noise_of_the_path() -> None:
    module, m, sigma = surf("remixit", noise=ConstantNoise(0.8), num_steps=4), mixtures(), 0.5
    module._freeze(FlowSeparator(perturbed(velocity(), seed=7), 3, ConstantNoise(sigma)).double())
    frozen, noise = module.frozen_teacher.network, random().normal((6, 2, 1, 8, 8)).double()
    sources = surf_minimal.prior(m, sigma * noise)
    for step in range(3):  # three Euler steps of its own, whatever those of the student are
        sources = sources + frozen(sources, torch.full((6,), step / 3, dtype=torch.float64), m) / 3
    for beta in (1.0, 0.5, 0.0):
        module.beta = beta
        x0 = surf_minimal.prior(m, 0.8 * noise)
        expected = surf_minimal.teacher_sample(module.teacher.network, lambda _: sources, m, x0, beta, 4)
        torch.testing.assert_close(module.teacher_estimates(m, noise), expected, rtol=1e-6, atol=1e-7)
    module.beta = 0.5
    whole = module.loss({"mixtures": m}, random())
    module.micro_batch = 4
    torch.testing.assert_close(module.loss({"mixtures": m}, random()), whole)


def test_one_time_is_that_of_the_whole_batch_on_all_ranks() -> None:
    seen: list[Tensor] = []
    module = surf("remixit", one_time=True, remix_over_ranks=False)
    module.student.network.register_forward_hook(lambda _, args, output: seen.append(args[1]))
    for rank in range(2):
        module.loss({"mixtures": mixtures()}, BatchRandomness(SEED, BATCH, CPU, Ranks(rank, 2)))
    assert torch.equal(seen[1], seen[3])
    assert seen[1].unique().numel() == 1
    assert len(seen[1]) == 6
    module.loss({"mixtures": mixtures()}, random(seed=SEED + 1))
    assert not torch.equal(seen[5], seen[1])


@pytest.mark.parametrize("objective", ["self_remixing", 0.25])
def test_the_constrained_shuffle_and_the_weighted_sum_are_those_of_every_remixing_method(
    objective: Objective | float,
) -> None:
    module, m = surf("remixit", shuffle="constrained"), mixtures()
    module.objective, module.beta = objective, 0.5
    losses = [
        listed(module, m, part, lambda size, generator: order_without_mates(size // 2, 2, generator))
        for part in (False, True)
    ]
    weight = objective if isinstance(objective, float) else 0.0
    expected = weight * losses[0] + (1 - weight) * losses[1]
    torch.testing.assert_close(module.loss({"mixtures": m}, random()), expected, rtol=1e-5, atol=0)


def test_early_times_and_sampling_noise_are_powers_and_factors_of_what_is_drawn() -> None:
    numbers = random()
    numbers.normal((6, 2, 1, 8, 8)), numbers.remix_order(12, numbers.ranks)
    drawn = numbers.uniform(6)
    seen: list[Tensor] = []
    module = surf("remixit", early_times=2.0)
    module.student.network.register_forward_hook(lambda _, args, output: seen.append(args[1]))
    module.loss({"mixtures": mixtures()}, random())
    assert torch.equal(seen[1], drawn**2)
    noise, m = random().normal((6, 2, 1, 8, 8)), mixtures()
    quiet, usual = surf("remixit", sampling_noise=0.5), surf("remixit")
    quiet.beta = usual.beta = 0.0
    assert torch.equal(quiet.teacher_estimates(m, noise), usual.teacher_estimates(m, 0.5 * noise))
    assert torch.equal(quiet.teacher.separate_from(m, noise), usual.teacher.separate_from(m, 0.5 * noise))
