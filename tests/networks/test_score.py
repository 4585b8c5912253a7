"""The prior's network: units and scale."""

from __future__ import annotations

import pytest
import torch

from surf_lightning.networks import ScoreNCSNpp
from tests.tiny import perturbed

SIGMA = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)


@pytest.mark.parametrize("size", [6, 8])
def test_the_score_is_the_trunk_of_images_in_minus_one_to_one_over_sigma(size: int) -> None:
    network = ScoreNCSNpp(2, size, channels=4, multipliers=[1, 1, 1], blocks=1, attention_resolutions=[4])
    perturbed(network).double().eval()
    x = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = network.trunk(2 * x - 1, torch.tensor([0.0, -2.302585092994046, -4.605170185988091], dtype=torch.float64))
    expected = torch.stack([raw[0], raw[1] * 10, raw[2] * 100])
    torch.testing.assert_close(network(x, SIGMA), expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().amax((1, 2, 3)).min() > 0.01


def test_each_image_is_treated_alone() -> None:
    network = perturbed(ScoreNCSNpp(1, 8, channels=4, multipliers=[1, 1], blocks=1, attention_resolutions=[8, 4]))
    network.double().eval()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = torch.cat([network(x[n : n + 1], SIGMA[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(network(x, SIGMA), alone, rtol=1e-9, atol=1e-9)
