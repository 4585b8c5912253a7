"""How M outputs become K, by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from surf_lightning.functional.selection import first_outputs, merge_outputs, most_energetic


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_most_energetic_keeps_the_original_order() -> None:
    loud = torch.tensor([[0.1, 3.0, 2.0, 0.5], [4.0, 0.1, 0.2, 5.0]], dtype=torch.float64)
    estimates = loud.view(2, 4, 1) * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    assert torch.equal(most_energetic(estimates, 2), torch.stack([estimates[0, [1, 2]], estimates[1, [0, 3]]]))
    assert torch.equal(most_energetic(estimates, 3), torch.stack([estimates[0, [1, 2, 3]], estimates[1, [0, 2, 3]]]))
    assert torch.equal(most_energetic(estimates, 1), torch.stack([estimates[0, [1]], estimates[1, [3]]]))
    assert torch.equal(most_energetic(estimates, 4), estimates)


def test_most_energetic_ranks_by_mean_square_and_passes_gradients() -> None:
    estimates = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 1.6], [0.0, 2.0, 0.0]]]).requires_grad_()
    kept = most_energetic(estimates.view(1, 3, 1, 3), 2)
    assert kept.flatten().tolist() == [1, 1, 1, 0, 2, 0]
    kept.sum().backward()
    assert estimates.grad is not None
    assert estimates.grad.tolist() == [[[1.0] * 3, [0.0] * 3, [1.0] * 3]]


@pytest.mark.parametrize(("outputs", "count"), [(4, 2), (5, 3), (3, 3), (8, 2)])
def test_merged_outputs_are_the_sums_whose_weakest_is_loudest(outputs: int, count: int) -> None:
    estimates = normal(6, outputs, 7)
    merged = merge_outputs(estimates, count)
    assert merged.shape == (6, count, 7)
    torch.testing.assert_close(merged.sum(1), estimates.sum(1))
    for rows, found in zip(estimates, merged, strict=True):
        best = -1.0
        for owners in itertools.product(range(count), repeat=outputs):
            sums = [sum((rows[m] for m in range(outputs) if owners[m] == k), torch.zeros(7)) for k in range(count)]
            best = max(best, min(float(one.square().sum()) for one in sums))
        weakest = float(found.square().sum(1).min())
        assert weakest == pytest.approx(best, rel=1e-5) or count == outputs


def test_merging_passes_gradients_and_refuses_what_is_too_much() -> None:
    estimates = normal(2, 4, 5).requires_grad_()
    merge_outputs(estimates, 2).sum().backward()
    assert estimates.grad is not None
    assert torch.equal(estimates.grad, torch.ones_like(estimates))
    with pytest.raises(ValueError, match="16 outputs are too many"):
        merge_outputs(normal(1, 16, 5), 4)


def test_the_first_outputs_and_the_sum_of_the_others() -> None:
    estimates = normal(2, 4, 3)
    assert torch.equal(first_outputs(estimates, 4), estimates)
    expected = torch.stack([estimates[:, 0], estimates[:, 1] + estimates[:, 2] + estimates[:, 3]], 1)
    torch.testing.assert_close(first_outputs(estimates, 2), expected)
