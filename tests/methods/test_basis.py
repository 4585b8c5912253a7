"""BASIS: the prior's loss, and samples of a posterior that is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surf_lightning.functional.randomness import Ranks
from surf_lightning.inference.separator import load_separator
from surf_lightning.methods import BASIS, SequentialUpdate, SimultaneousUpdate
from surf_lightning.methods.basis import BasisSeparator
from surf_lightning.networks import ScoreNCSNpp, ScoreNetwork
from tests.tiny import NCSNPP, adam, assert_loss, digits, draws, perturbed, random, trainer


def network() -> ScoreNCSNpp:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return perturbed(ScoreNCSNpp(1, 8, **NCSNPP), seed=3)


class GaussianScore(ScoreNetwork):
    """Of independent pixels N(mean, variance), blurred by sigma."""

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_variance = nn.Parameter(torch.tensor(variance, dtype=torch.float64).log())

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.mean - x) / (self.log_variance.exp() + sigma**2).view(-1, 1, 1, 1)


def eight_bit(*shape: int) -> Tensor:
    """Images in [-1,1], as the DataModules give them."""
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1)).double() / 127.5 - 1


# -- the prior --


@pytest.mark.parametrize("flip", [False, True])
def test_the_loss_is_denoising_score_matching_of_the_dequantised_images(flip: bool) -> None:
    net = network()
    module = BASIS(net, flip=flip, optimizer=adam).double()
    sources = eight_bit(5, 2, 1, 8, 8)
    drawn = draws()
    mirrored = torch.rand(10, generator=drawn) < 0.5 if flip else torch.zeros(10, dtype=torch.bool)
    pixel = torch.rand(10 * 64, generator=drawn).view(10, 1, 8, 8).double()
    levels = torch.rand(10, generator=drawn)
    noise = torch.randn(10, 1, 8, 8, generator=drawn).double()
    total = torch.zeros((), dtype=torch.float64)
    for n in range(10):
        unit = (sources[n // 2, n % 2] + 1) / 2
        if mirrored[n]:
            unit = unit[..., [7, 6, 5, 4, 3, 2, 1, 0]]
        clean = unit * 255 / 256 + pixel[n] / 256
        sigma = 10 ** (-2 * math.floor(10 * levels[n].item()) / 9)
        score = net((clean + sigma * noise[n])[None], torch.tensor([sigma], dtype=torch.float64))[0]
        total = total + 0.5 * ((sigma * score + noise[n]) ** 2).sum() / 10
    unseen = torch.full((5, 1, 8, 8), float("nan"))
    assert_loss(module, {"mixtures": unseen, "sources": sources}, total)
    if flip:
        assert 0 < mirrored.sum() < 10


def test_dequantised_images_fill_the_unit_interval_evenly() -> None:
    ramp = (torch.arange(256).repeat(100).view(100, 1, 1, 16, 16) / 127.5 - 1).float()
    images = BASIS(network(), optimizer=adam).clean_images(ramp, random())
    assert images.shape == (100, 1, 16, 16)
    assert images.min() >= 0
    assert images.max() < 1
    counts = torch.histc(images, 256, 0, 1)
    assert (counts - 100).abs().max() <= 2  # a number on the edge of two cells falls on either side
    assert images.mean().item() == pytest.approx(0.5, abs=1e-4)


def test_the_minimiser_on_gaussian_images_is_their_score() -> None:
    mean, deviation = 0.45, 0.15
    prior = GaussianScore(0.8, 1.0)
    module = BASIS(prior, optimizer=adam)
    unit = mean + deviation * torch.randn(4000, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    batch = {"sources": 2 * unit - 1}
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module.loss(batch, random())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert prior.mean.item() == pytest.approx(mean * 255 / 256 + 1 / 512, abs=0.01)
    assert prior.log_variance.exp().item() == pytest.approx((deviation * 255 / 256) ** 2, rel=0.1)


def test_the_loss_is_the_same_on_two_ranks_and_in_micro_batches() -> None:
    sources = eight_bit(6, 2, 1, 8, 8)
    whole = BASIS(network(), flip=True, optimizer=adam).double().loss({"sources": sources}, random())
    module = BASIS(network(), flip=True, optimizer=adam, micro_batch=5).double()
    parts = [module.loss({"sources": part}, random(Ranks(rank, 2))) for rank, part in enumerate(sources.chunk(2))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-9, atol=0)


# -- the separator --


@pytest.mark.parametrize(
    ("num_sources", "update", "pull"), [(2, SequentialUpdate(), 1.0), (2, SimultaneousUpdate(), 2.0), (3, None, 1.0)]
)
def test_estimates_are_posterior_samples_in_the_units_of_the_sources(
    num_sources: int, update: Any, pull: float
) -> None:
    mean, variance, sigma = 0.5, 0.01, 0.05
    levels = dict[str, Any](sigma_max=0.2, sigma_min=sigma, num_levels=3, langevin_steps=100, step_size=2.5e-4)
    separator = BasisSeparator(GaussianScore(mean, variance), num_sources, update, **levels)
    total = num_sources * mean + 0.2  # of images in [0,1]
    mixtures = torch.full((500, 1, 4, 4), 2 * total - num_sources, dtype=torch.float64)
    estimates = separator.separate(mixtures, torch.Generator().manual_seed(0))
    assert estimates.shape == (500, num_sources, 1, 4, 4)
    blurred = variance + sigma**2
    gain = blurred / (num_sources * blurred + sigma**2 / pull)  # share of the surprise that a source takes
    expected = 2 * (mean + gain * 0.2) - 1
    deviation = 2 * math.sqrt(blurred * (1 - gain))
    rows = estimates.transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        rows.mean(1), torch.full((num_sources,), expected, dtype=torch.float64), rtol=0, atol=5 * deviation / 8000**0.5
    )
    assert rows.std(1).tolist() == pytest.approx([deviation] * num_sources, rel=0.07)  # the steps' own error included


def test_estimates_are_clamped_to_the_range_of_images() -> None:
    separator = BasisSeparator(GaussianScore(3.0, 0.01), langevin_steps=3)
    assert separator.separate(torch.full((2, 1, 4, 4), 5.0)).unique().tolist() == [1.0]


def test_the_sampler_goes_through_all_levels_from_a_uniform_start() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watch(GaussianScore):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append((x, sigma))
            return super().forward(x, sigma)

    separator = BasisSeparator(Watch(0.5, 0.1), langevin_steps=4)
    separator.separate(torch.zeros(3, 1, 8, 8), torch.Generator().manual_seed(7))
    start = torch.rand(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    assert torch.equal(seen[0][0], start.flatten(0, 1))
    assert len(seen) == 40
    for index, (x, sigma) in enumerate(seen):
        assert x.shape == (6, 1, 8, 8)
        assert sigma.tolist() == pytest.approx([10 ** (-2 * (index // 4) / 9)] * 6)


def test_the_generator_makes_the_estimates_reproducible() -> None:
    separator, mixtures = BasisSeparator(network(), langevin_steps=2), torch.zeros(2, 1, 8, 8)
    first, again, other = (separator.separate(mixtures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_leaves_a_checkpoint_that_separates_as_it_did() -> None:
    options: dict[str, Any] = {"update": SimultaneousUpdate(), "langevin_steps": 2, "step_size": 2e-5, "num_levels": 3}
    module = BASIS(network(), optimizer=adam, **options)
    trainer(Path("run")).fit(module, digits())
    loaded = load_separator("run/checkpoints/last.ckpt")
    assert isinstance(loaded, BasisSeparator)
    assert isinstance(loaded.update, SimultaneousUpdate)
    assert loaded.sigmas == module.separator.sigmas
    mixtures = digits().validation_batches()[0]["mixtures"]
    found, expected = (
        each.separate(mixtures, torch.Generator().manual_seed(1)) for each in (loaded, module.separator.eval())
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{"langevin_steps": 0}, {"step_size": 0.0}])
def test_a_sampler_that_cannot_step_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"langevin_steps .* must be at least 1, step_size .* positive"):
        BASIS(network(), optimizer=adam, **options)
