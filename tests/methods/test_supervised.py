"""The supervised methods, and that their flow is SURF's step on true sources."""

from __future__ import annotations

import itertools
import math

import pytest
import surf_minimal
import torch
from torch import Tensor

from surf_lightning.functional.losses import log_energy, log_mse
from surf_lightning.functional.randomness import Ranks
from surf_lightning.functional.remixing import shuffle_sources
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.methods import SURF, SupervisedFlow, SupervisedRegression
from surf_lightning.networks import ConstantNoise, SourceHead, VelocityHead
from surf_lightning.networks.base import Head, VelocityNetwork
from tests.tiny import adam, assert_loss, draws, perturbed, random, regression, velocity


def batch(count: int = 6, num_sources: int = 2) -> dict[str, Tensor]:
    shape = (count, num_sources, 1, 8, 8)
    sources = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    return {"mixtures": sources.sum(1), "sources": sources}


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_sources"), [(2, 2), (4, 2), (3, 3)])
def test_regression_is_the_least_error_over_all_orders(logarithmic: bool, num_outputs: int, num_sources: int) -> None:
    options = {"error": log_mse} if logarithmic else {}
    module = SupervisedRegression(regression(num_outputs, num_sources), num_sources, optimizer=adam, **options).double()
    data = batch(num_sources=num_sources)
    estimates = module.separator.separate(data["mixtures"])

    def error(found: Tensor, truth: Tensor) -> float:
        energy = float(((found - truth) ** 2).sum())
        return 10 * math.log10(energy + 1e-8) if logarithmic else energy

    total = 0.0
    for found, truth in zip(estimates, data["sources"], strict=True):
        orders = itertools.permutations(range(num_sources))
        total += min(sum(error(found[i], truth[j]) for i, j in enumerate(order)) / num_sources for order in orders)
    loss = module.loss(data, random())
    assert loss.item() == pytest.approx(total / 6, rel=1e-9)
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_dynamic_mixing_is_regression_on_mixtures_of_shuffled_sources() -> None:
    module = SupervisedRegression(regression(3, 3), 3, optimizer=adam, dynamic_mixing=True).double()
    data = batch(num_sources=3)
    order = torch.randperm(18, generator=draws())
    sources = data["sources"].flatten(0, 1)[order].view(6, 3, 1, 8, 8)
    total = 0.0
    for found, truth in zip(module.separator.separate(sources.sum(1)), sources, strict=True):
        orders = itertools.permutations(range(3))
        total += min(sum(float((found[i] - truth[j]).square().sum()) for i, j in enumerate(o)) / 3 for o in orders)
    assert module.loss(data, random()).item() == pytest.approx(total / 6, rel=1e-9)


def aligned_residual(network: VelocityNetwork, sources: Tensor, sigma: float = 1.0) -> Tensor:
    """The weighted R_t of ``examples/surf_minimal.py`` from the random numbers of batch ``BATCH``."""
    generator = draws()
    t = torch.rand(len(sources), generator=generator)
    x0 = surf_minimal.prior(sources.sum(1), sigma * torch.randn(sources.shape, generator=generator).double())
    residual, _ = surf_minimal.flow_residual(network, x0, sources, sources.sum(1), t)
    return network.residual_weight(t).view(-1, 1, 1, 1, 1) * residual


@pytest.mark.parametrize("head", [VelocityHead(), SourceHead()])
@pytest.mark.parametrize("num_sources", [2, 3])
def test_the_flow_is_lines_7_to_12_of_algorithm_1_on_true_sources(head: Head, num_sources: int) -> None:
    network = velocity(num_sources, head=head)
    module = SupervisedFlow(network, noise=ConstantNoise(0.6), optimizer=adam).double()
    data = batch(num_sources=num_sources)
    expected = surf_minimal.rm_loss(aligned_residual(network, data["sources"], sigma=0.6))
    assert_loss(module, data, expected, rtol=1e-5)


def test_the_log_loss_of_the_flow_is_in_decibels_of_each_example() -> None:
    network = velocity()
    data = batch()
    residual = aligned_residual(network.double(), data["sources"])
    expected = [10 * math.log10(float((example**2).sum()) + 1e-8) for example in residual.detach()]
    loss = SupervisedFlow(network, reduction=log_energy, optimizer=adam).loss(data, random())
    assert loss.item() == pytest.approx(sum(expected) / 6, rel=1e-5)


def test_surf_with_remixit_is_the_supervised_flow_on_its_remixed_estimates() -> None:
    surf = SURF(velocity(), mixit_checkpoint="", optimizer=adam)
    perturbed(surf.separator, seed=7)
    surf._freeze(RegressionSeparator(regression(4), 2))
    surf.double().beta = 0.5
    supervised = SupervisedFlow(surf.student.network, optimizer=adam)
    mixtures, numbers = batch()["mixtures"], random()
    teacher_noise, order = numbers.normal((6, 2, 1, 8, 8)), numbers.remix_order(12, Ranks())
    remixed = shuffle_sources(surf.teacher_estimates(mixtures, teacher_noise), order)
    expected = supervised.loss({"sources": remixed.sources, "mixtures": remixed.mixtures}, numbers)
    assert torch.equal(surf.loss({"mixtures": mixtures}, random()), expected)


def test_the_student_is_evaluated_once_without_and_once_with_gradient() -> None:
    module, calls = SupervisedFlow(velocity(), optimizer=adam).double(), []
    module.student.network.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    module.loss(batch(), random())
    assert calls == [False, True]
