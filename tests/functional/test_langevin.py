"""Score matching and Langevin sampling where everything is Gaussian: all moments are known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from surf_lightning.functional.langevin import (
    Update,
    annealed_langevin,
    denoising_error,
    noise_levels,
    sequential_update,
    simultaneous_update,
)

MEAN, VARIANCE = 0.4, 0.09  # of the prior of each source
UPDATES: list[Update] = [simultaneous_update, sequential_update]
PULL: dict[Update, float] = {simultaneous_update: 2.0, sequential_update: 1.0}
Array = np.ndarray


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def score(x: Tensor, sigma: float) -> Tensor:
    """Of the prior blurred by sigma."""
    return (MEAN - x) / (VARIANCE + sigma**2)


def posterior(mixture: float, sigma: float, pull: float, num_sources: int) -> tuple[Array, Array]:
    """Mean and precision of the sources: each N(MEAN, VARIANCE + sigma²), their sum N(mixture, sigma²/pull)."""
    ones = np.ones((num_sources, num_sources))
    precision = np.eye(num_sources) / (VARIANCE + sigma**2) + pull / sigma**2 * ones
    linear = MEAN / (VARIANCE + sigma**2) + pull / sigma**2 * mixture
    return np.linalg.solve(precision, np.full(num_sources, linear)), precision


def affine(update: Update, precision: Array, step: float) -> tuple[Array, Array]:
    """One step as x - mean <- A (x - mean) + N e. One after another, source k sees the new ones before it."""
    size = len(precision)
    if update is simultaneous_update:
        return np.eye(size) - step * precision, math.sqrt(2 * step) * np.eye(size)
    below = np.linalg.inv(np.eye(size) + step * np.tril(precision, -1))
    return below @ (np.eye(size) - step * np.triu(precision)), math.sqrt(2 * step) * below


# -- noise levels and score matching --


def test_the_noise_levels_fall_geometrically_from_first_to_last() -> None:
    levels = noise_levels(1.0, 0.01, 10)
    assert levels[0] == 1.0
    assert levels[-1] == pytest.approx(0.01, rel=1e-12)
    ratios = [later / earlier for earlier, later in itertools.pairwise(levels)]
    assert ratios == pytest.approx([10 ** (-2 / 9)] * 9, rel=1e-12)


@pytest.mark.parametrize("levels", [(0.01, 1.0, 10), (1.0, 1.0, 10), (1.0, 0.0, 10), (1.0, 0.01, 1)])
def test_levels_that_do_not_fall_are_refused(levels: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="noise levels fall from sigma_max to sigma_min"):
        noise_levels(*levels)


def test_the_denoising_error_is_half_the_squared_norm_weighted_by_the_noise_level() -> None:
    found, noise, sigma = normal(3, 2, 4, seed=1), normal(3, 2, 4, seed=2), torch.tensor([1.0, 0.1, 0.01]).double()
    expected = []
    for n in range(3):
        pixels = zip(found[n].flatten().tolist(), noise[n].flatten().tolist(), strict=True)
        # sigma² / 2 |s - grad log q(x + sigma e | x)|², that gradient being -e / sigma
        expected.append(sum(sigma[n].item() ** 2 / 2 * (s + e / sigma[n].item()) ** 2 for s, e in pixels))
    assert denoising_error(found, noise, sigma).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_minimiser_for_a_gaussian_is_its_blurred_score(sigma: float) -> None:
    """The error of s(x) = a x + b is quadratic: its minimum over many samples, found by one exact Newton step."""
    count = 50_000
    noise = normal(count, 1, seed=1)
    x = MEAN + math.sqrt(VARIANCE) * normal(count, 1, seed=2) + sigma * noise

    def gradient(parameters: Tensor) -> Tensor:
        a, b = parameters.requires_grad_().unbind()
        error = denoising_error(a * x + b, noise, torch.full((count,), sigma, dtype=torch.float64)).mean()
        return torch.autograd.grad(error, parameters)[0]

    origin = gradient(torch.zeros(2, dtype=torch.float64))
    hessian = torch.stack([gradient(unit) - origin for unit in torch.eye(2, dtype=torch.float64)], 1)
    a, b = torch.linalg.solve(hessian, -origin).tolist()
    blurred = VARIANCE + sigma**2
    spread = 1 / (sigma * math.sqrt(count * blurred))  # of the estimates, from the noise's own deviation
    assert a == pytest.approx(-1 / blurred, abs=6 * spread)
    assert b == pytest.approx(MEAN / blurred, abs=6 * spread)


# -- one step --


def test_all_sources_move_at_once_down_the_squared_norm() -> None:
    x, moves, mixtures = normal(4, 3, 5, seed=1).requires_grad_(), normal(4, 3, 5, seed=2), normal(4, 5, seed=3)
    (gradient,) = torch.autograd.grad((x.sum(1) - mixtures).square().sum(), x)
    torch.testing.assert_close(simultaneous_update(x, moves, mixtures, 0.3), x + moves - 0.3 * gradient)


def test_each_source_sees_the_new_ones_before_it() -> None:
    x, moves, mixtures = normal(4, 3, 5, seed=1), normal(4, 3, 5, seed=2), normal(4, 5, seed=3)
    first = x[:, 0] + moves[:, 0] - 0.3 * (x[:, 0] + x[:, 1] + x[:, 2] - mixtures)
    second = x[:, 1] + moves[:, 1] - 0.3 * (first + x[:, 1] + x[:, 2] - mixtures)
    third = x[:, 2] + moves[:, 2] - 0.3 * (first + second + x[:, 2] - mixtures)
    before = x.clone()
    torch.testing.assert_close(
        sequential_update(x, moves, mixtures, 0.3), torch.stack([first, second, third], 1), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(x, before)


def test_the_steps_grow_with_the_square_of_the_noise_level() -> None:
    """Seen through a score of 1 and without noise: x moves by eta_j, and the pull's weight is eta_j / sigma_j²."""
    steps: list[float] = []
    noises: list[Tensor] = []

    def watch(x: Tensor, moves: Tensor, mixtures: Tensor, weight: float) -> Tensor:
        assert weight == pytest.approx(0.3, rel=1e-12)
        noise = torch.randn(x.shape, generator=twin, dtype=x.dtype)
        step = 3e-5 * (sigmas[len(steps) // 2] / 0.01) ** 2
        torch.testing.assert_close(moves, step + math.sqrt(2 * step) * noise, rtol=1e-9, atol=0)
        steps.append(step)
        noises.append(noise)
        return x

    sigmas, twin = noise_levels(1.0, 0.01, 10), generator(5)
    x = normal(2, 2, 3)
    annealed_langevin(lambda x, sigma: torch.ones_like(x), watch, x, x.sum(1), sigmas, 2, 3e-5, generator(5))
    assert len(steps) == 20
    assert steps[0] == pytest.approx(0.3)
    assert steps[-1] == pytest.approx(3e-5)
    assert len({float(noise.sum()) for noise in noises}) == 20


# -- the sampler --

COUNT = 10_000


def assert_moments(found: Tensor, mean: Array, covariance: Array) -> None:
    """``found [N,K]`` has these moments within five standard errors of N independent Gaussian rows."""
    root = np.sqrt(np.diag(covariance))
    torch.testing.assert_close(
        found.mean(0) / torch.tensor(root), torch.tensor(mean / root), rtol=0, atol=5 / math.sqrt(len(found))
    )
    scatter = torch.cov(found.T) / torch.tensor(np.outer(root, root))
    wanted = torch.tensor(covariance / np.outer(root, root))
    torch.testing.assert_close(scatter, wanted, rtol=0, atol=5 * math.sqrt(2 / len(found)))


@pytest.mark.parametrize(("num_sources", "update"), [(2, UPDATES[0]), (2, UPDATES[1]), (3, UPDATES[1])])
def test_every_step_of_the_annealing_moves_mean_and_covariance_as_computed(num_sources: int, update: Update) -> None:
    mixture, sigmas, steps, step_size = 1.1, noise_levels(1.0, 0.1, 4), 3, 3e-3
    mean, covariance = np.full(num_sources, 0.5), np.eye(num_sources) / 12  # of the uniform start
    for sigma in sigmas:
        centre, precision = posterior(mixture, sigma, PULL[update], num_sources)
        matrix, spread = affine(update, precision, step_size * (sigma / 0.1) ** 2)
        for _ in range(steps):
            mean = centre + matrix @ (mean - centre)
            covariance = matrix @ covariance @ matrix.T + spread @ spread.T
    start = torch.rand(COUNT, num_sources, generator=generator(1), dtype=torch.float64)
    mixtures = torch.full((COUNT,), mixture, dtype=torch.float64)
    found = annealed_langevin(score, update, start, mixtures, sigmas, steps, step_size, generator(2))
    assert_moments(found, mean, covariance)


@pytest.mark.parametrize("update", UPDATES)
def test_small_steps_recover_the_posterior_of_the_sources_given_their_sum(update: Update) -> None:
    mixture, sigmas = 1.1, [0.4, 0.2]
    centre, precision = posterior(mixture, sigmas[-1], PULL[update], 2)
    step_size = 0.002  # 0.05 of the last level's variance: the chain's own covariance is off by some per cent
    matrix, spread = affine(update, precision, step_size)
    stationary = solve_discrete_lyapunov(matrix, spread @ spread.T)
    assert stationary == pytest.approx(np.linalg.inv(precision), rel=0.1)
    start = torch.rand(COUNT, 2, generator=generator(1), dtype=torch.float64)
    mixtures = torch.full((COUNT,), mixture, dtype=torch.float64)
    found = annealed_langevin(score, update, start, mixtures, sigmas, 100, step_size, generator(2))
    assert_moments(found, centre, stationary)
