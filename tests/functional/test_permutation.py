"""Axes: B batch, K sources, T samples."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from surf_lightning.functional import permutation
from surf_lightning.functional.permutation import best_permutation, invert, reorder


def total(cost: Tensor, order: tuple[int, ...] | list[int]) -> float:
    """The cost [K,K] of one order, in Python's float64."""
    rows = cost.double().tolist()
    return sum(rows[i][j] for i, j in enumerate(order))


def least_total(cost: Tensor) -> float:
    rows = cost.double().tolist()
    orders = itertools.permutations(range(len(rows)))
    return min(sum(row[j] for row, j in zip(rows, order, strict=True)) for order in orders)


def matrix(order: Tensor) -> Tensor:
    """The matrix sigma with (sigma x)[i] = x[order[i]]."""
    sigma = torch.zeros(len(order), len(order), dtype=torch.float64)
    for i, j in enumerate(order.tolist()):
        sigma[i, j] = 1
    return sigma


@pytest.fixture(params=["enumeration", "hungarian", "as shipped"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"enumeration": 8, "hungarian": 0, "as shipped": permutation.ENUMERATION_LIMIT}
    monkeypatch.setattr(permutation, "ENUMERATION_LIMIT", limits[request.param])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", range(1, 8))
def test_best_order_is_exact(size: int, dtype: torch.dtype) -> None:
    costs = torch.randn(4, size, size, dtype=dtype, generator=torch.Generator().manual_seed(size))
    orders = best_permutation(costs)
    assert orders.dtype == torch.long
    for cost, order in zip(costs, orders.tolist(), strict=True):
        assert sorted(order) == list(range(size))
        assert total(cost, order) == pytest.approx(least_total(cost), abs=1e-12)


@pytest.mark.usefixtures("path")
def test_best_order_is_exact_for_eight() -> None:
    cost = torch.randn(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    assert total(cost[0], best_permutation(cost)[0].tolist()) == pytest.approx(least_total(cost[0]), abs=1e-12)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", range(2, 8))
def test_ties_give_some_best_order(size: int) -> None:
    costs = torch.randint(0, 3, (4, size, size), generator=torch.Generator().manual_seed(size)).float()
    costs[0] = 1
    for cost, order in zip(costs, best_permutation(costs).tolist(), strict=True):
        assert sorted(order) == list(range(size))
        assert total(cost, order) == least_total(cost)


@pytest.mark.usefixtures("path")
def test_best_order_does_not_round_the_totals() -> None:
    """2^24 + 1 is not a float32: summed in float32 both orders would tie."""
    cost = torch.tensor([[[2.0**24, 2.0**24], [0.0, 1.0]]])
    assert best_permutation(cost).tolist() == [[1, 0]]


@pytest.mark.usefixtures("path")
def test_best_order_is_not_symmetric_in_its_axes() -> None:
    """``cost[i,j]`` is of row j in place i: the cheapest cells of this cycle are (0,1), (1,2), (2,0)."""
    cost = 1 - torch.tensor([[[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]])
    assert best_permutation(cost).tolist() == [[1, 2, 0]]


@pytest.mark.usefixtures("path")
def test_best_order_in_training_after_validation() -> None:
    """What a first call in inference mode leaves in the cache is usable with gradients, which stop here."""
    permutation._all_permutations.cache_clear()
    cost = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    with torch.inference_mode():
        best_permutation(cost)
    order = best_permutation(cost)
    assert not order.requires_grad
    rows = torch.randn(1, 2, 3, requires_grad=True)
    reorder(rows, order)[:, 0].sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[[0.0] * 3, [1.0] * 3]]


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 4), (2, 2, 3, 3)])
def test_best_order_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B,K,K\]"):
        best_permutation(torch.zeros(shape))


@pytest.mark.parametrize("signal", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_permute_and_invert(size: int, signal: tuple[int, ...]) -> None:
    rows = torch.randn(6, size, *signal, dtype=torch.float64)
    order = torch.rand(6, size).argsort(1)
    permuted = reorder(rows, order)
    for b in range(6):
        for i in range(size):
            assert torch.equal(permuted[b, i], rows[b, int(order[b, i])])
        sigma = matrix(order[b])
        assert torch.equal(permuted[b].reshape(size, -1), sigma @ rows[b].reshape(size, -1))
        assert torch.equal(matrix(invert(order)[b]), sigma.T)
    assert torch.equal(reorder(permuted, invert(order)), rows)
    assert torch.equal(reorder(reorder(rows, invert(order)), order), rows)


def test_permute_carries_gradients_to_the_rows_taken() -> None:
    rows = torch.randn(1, 3, 2, requires_grad=True)
    weights = torch.tensor([10.0, 20.0, 30.0])
    (reorder(rows, torch.tensor([[2, 0, 1]])) * weights.view(1, 3, 1)).sum().backward()
    assert rows.grad is not None
    assert rows.grad[0, :, 0].tolist() == [20.0, 30.0, 10.0]


@pytest.mark.parametrize("size", [6, 7])
def test_costs_that_are_no_numbers_have_some_order(size: int) -> None:
    cost = torch.full((2, size, size), torch.nan)
    cost[1] = torch.inf
    assert torch.equal(best_permutation(cost).sort(1).values, torch.arange(size).expand(2, size))
