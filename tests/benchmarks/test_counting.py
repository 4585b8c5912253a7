"""Counted operations and bytes, against numbers worked out by hand. Axes: B batch, C channels, T samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counting import LiveBytes, count_flops, without_data
from epoch import evaluations
from hours import surf as mean_surf_step
from memory import surf_step_bytes
from shipped import RATE, build, inputs, operations
from surf_step import our_step, surf

from surf_lightning.functional.permutation import best_permutation
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.networks import GlobalRMSNoise, MBLocoformer


def forward(groups: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=1, groups=groups)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_counts_once_forward_and_twice_backward(groups: int) -> None:
    x = torch.randn(3, 8, 10).requires_grad_()
    weight = torch.randn(8, 8 // groups, 3).requires_grad_()
    each = 2 * 3 * 10 * 8 * (8 // groups) * 3  # multiplications and additions of B T C C/groups taps
    assert count_flops(lambda: forward(groups, x, weight)) == each
    assert count_flops(lambda: forward(groups, x, weight).sum().backward()) == 3 * each
    assert count_flops(lambda: forward(groups, x.detach(), weight).sum().backward()) == 2 * each


def test_attention_counts_on_this_device() -> None:
    q, k, v = torch.randn(3, 2, 4, 10, 8)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * (2 * 2 * 4 * 10 * 10 * 8)


@pytest.mark.parametrize(("config", "gradient"), [("folder_locoformer", False), ("folder_mixit", True)])
def test_counting_without_data_is_counting(config: str, gradient: bool) -> None:
    network = build(config)
    given = inputs(network, 1, 800)

    def evaluate() -> None:
        with torch.set_grad_enabled(gradient):
            loss = network(*given).square().mean()
        if gradient:
            loss.backward()

    assert operations(config, 800, gradient=gradient) == count_flops(evaluate)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, (1, 1)), (0.5, (3, 1)), (0.0, (6, 0))])
def test_a_surf_step_costs_its_evaluations(beta: float, expected: tuple[int, int]) -> None:
    assert evaluations(beta) == expected
    network = MBLocoformer(2, features=16, attention=16, heads=2, hidden=32, blocks=1, mel_bands=20)
    frozen_teacher = RegressionSeparator(build("folder_mixit"), 2)
    module, optimizer = surf(network, frozen_teacher, torch.device("cpu"), noise=GlobalRMSNoise())
    module.beta = beta
    mixtures = torch.randn(3, 800)
    given = inputs(network, 3, 800)

    def evaluate() -> torch.Tensor:
        with torch.no_grad():
            return network(*given)

    step = our_step(module, optimizer, mixtures, torch.autocast("cpu", enabled=False))
    sampled, frozen = expected
    velocity = sampled * count_flops(evaluate) + count_flops(lambda: network(*given).square().mean().backward())
    total = velocity + frozen * count_flops(lambda: frozen_teacher(mixtures))
    assert count_flops(step) == pytest.approx(total, rel=0.01)  # the correlations of PIT come on top


def test_a_mean_surf_step_costs_that_of_its_schedule() -> None:
    """1 to 5 of 5 steps are straight while beta rises from 0, and PIT's order is one evaluation more."""
    falling, at_zero = (5 + 4 + 3 + 2 + 1) / 5, 6
    mean = mean_surf_step({"beta_steps": 200_000}, 400_000, alone=1, frozen=0)
    assert mean == pytest.approx((falling + at_zero) / 2, rel=0.01)
    assert mean_surf_step({"beta_steps": 200_000}, 400_000, alone=0, frozen=1) == pytest.approx(0.5, rel=0.01)


def test_live_bytes_are_those_alive_together() -> None:
    with LiveBytes() as live:
        for _ in range(3):
            x = torch.zeros(1000)
            del x
        kept = torch.ones(500)
        view = kept[10:]
        del kept
        assert live.now == 2000
        del view
    assert (live.now, live.peak) == (0, 4000)


def test_activations_of_a_linear_layer_are_counted() -> None:
    with without_data(), LiveBytes() as live:
        weight = torch.randn(64, 64, requires_grad=True)
        x = torch.randn(100, 64)
        y = (x @ weight).exp()
    assert y.shape == (100, 64)
    assert live.peak == 4 * (64 * 64 + 3 * 100 * 64)  # weight, x, the product, its exponential


def test_counting_without_data_leaves_no_tables_behind() -> None:
    with without_data():
        best_permutation(torch.zeros(1, 3, 3))
    assert best_permutation(-torch.eye(3)[None]).tolist() == [[0, 1, 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "batch", "shape", "options"),
    [
        ("cifar", 256, (3, 32, 32), {"micro_batch": 32}),
        ("audioset", 4, (10 * RATE,), {"micro_batch": 1, "bf16": True, "checkpointing": True}),
    ],
)
def test_a_surf_step_is_counted_to_fit_into_24_gb(
    data: str, batch: int, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    """With 4 GB to spare for what kernels work in. On a GPU it is measured: methods/test_memory.py."""
    weights = sum(parameter.numel() for parameter in build(f"{data}_velocity").parameters())
    size = surf_step_bytes(data, batch, *shape, **options)
    assert 5 * 4 * weights < size < 20e9  # student, its gradient, Adam's two moments and the teacher, at least
