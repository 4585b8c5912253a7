"""Axes: B batch, K sources, M outputs, T samples. Everything in float64 unless said otherwise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from surf_lightning.functional.flow import (
    euler,
    expand_like,
    hybrid_euler,
    interpolate,
    mixture_consistent,
    prior_from_noise,
    project_zero_sum,
    sample_prior,
    sources_from_velocity,
    time_grid,
)
from surf_lightning.functional.permutation import reorder

SIGNALS = [(), (5,), (1, 3, 4)]
GRIDS = [[0, 0.3, 1], [0, 0.01, 0.5, 0.79, 0.8, 1], [0, 0.1, 0.2, 0.25], [0.25, 0.5, 0.9, 1], [0.4, 1], [0, 1]]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def projection(count: int) -> Tensor:
    """P-perp = I - 1 1^T / K."""
    return torch.eye(count) - torch.ones(count, count) / count


# -- the prior, Eq. (4) --


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_project_zero_sum_is_p_perp(count: int, signal: tuple[int, ...]) -> None:
    x = torch.randn(4, count, *signal)
    projected = project_zero_sum(x)
    for b in range(4):
        expected = projection(count) @ x[b].reshape(count, -1)
        assert torch.allclose(projected[b].reshape(count, -1), expected, rtol=0, atol=1e-14)
    assert torch.allclose(projected.sum(1), torch.zeros(4, *signal), rtol=0, atol=1e-13)
    assert torch.allclose(project_zero_sum(projected), projected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_mixture_consistent_is_the_nearest_point_that_sums_to_the_mixture(count: int, signal: tuple[int, ...]) -> None:
    estimates, mixtures = torch.randn(4, count, *signal), torch.randn(4, *signal)
    consistent = mixture_consistent(estimates, mixtures)
    for b in range(4):
        for m in range(count):
            expected = estimates[b, m] + (mixtures[b] - sum(estimates[b])) / count
            assert torch.allclose(consistent[b, m], expected, rtol=0, atol=1e-14)
    assert torch.allclose(consistent.sum(1), mixtures, rtol=0, atol=1e-14)
    assert torch.allclose(mixture_consistent(consistent, mixtures), consistent, rtol=0, atol=1e-14)
    other = mixture_consistent(torch.randn_like(estimates), mixtures)
    inner = ((consistent - estimates) * (other - consistent)).sum()  # orthogonal to the plane, hence nearest
    assert inner.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_prior_in_matrices(count: int, signal: tuple[int, ...], scale: float) -> None:
    mixtures = torch.randn(6, *signal)
    x0 = sample_prior(mixtures, count, scale, torch.Generator().manual_seed(3))
    z = torch.randn(6, count, *signal, generator=torch.Generator().manual_seed(3))
    assert x0.shape == z.shape
    for b in range(6):
        m = mixtures[b].reshape(1, -1)
        expected = torch.ones(count, 1) @ m / count + projection(count) @ (scale * z[b].reshape(count, -1))
        assert torch.allclose(x0[b].reshape(count, -1), expected, rtol=0, atol=1e-14)
    assert torch.allclose(x0.sum(1), mixtures, rtol=0, atol=1e-13)


def test_prior_takes_a_scale_for_each_example_and_sample() -> None:
    mixtures, scale = torch.randn(4, 3), torch.rand(4, 1, 3)
    x0 = sample_prior(mixtures, 2, scale, torch.Generator().manual_seed(3))
    z = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(3))
    for b, k, s in itertools.product(range(4), range(2), range(3)):
        noise = scale[b, 0, s] * (z[b, k, s] - z[b, 1 - k, s]) / 2
        assert x0[b, k, s].item() == pytest.approx((mixtures[b, s] / 2 + noise).item(), abs=1e-14)


@pytest.mark.parametrize("count", [2, 3])
def test_prior_is_gaussian_of_covariance_p_perp(count: int) -> None:
    draws, scale = 50_000, 0.7
    mixture = torch.tensor([1.5, -0.5])
    x0 = sample_prior(mixture.expand(draws, 2), count, scale, torch.Generator().manual_seed(0))
    mean = x0.mean(0)
    assert torch.allclose(mean, (mixture / count).expand(count, 2), rtol=0, atol=5 * scale / math.sqrt(draws))
    flat = (x0 - mean).permute(0, 2, 1).reshape(draws, 2 * count)
    expected = scale**2 * torch.kron(torch.eye(2), projection(count))  # samples are independent of one another
    assert torch.allclose(flat.T @ flat / draws, expected, rtol=0, atol=7 * scale**2 / math.sqrt(draws))
    kurtosis = (flat.pow(4).mean(0) / flat.square().mean(0).square()).mean()
    assert kurtosis.item() == pytest.approx(3, abs=0.06)


def test_prior_is_exchangeable() -> None:
    """The density is a function of z up to the order of its rows, and so is x0."""
    mixtures, noise = torch.randn(6, 4), torch.randn(6, 3, 4)
    order = torch.rand(6, 3).argsort(1)
    moved = prior_from_noise(mixtures, reorder(noise, order))
    assert torch.allclose(moved, reorder(prior_from_noise(mixtures, noise), order), rtol=0, atol=1e-14)


def test_prior_keeps_the_precision_of_the_mixtures_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        assert sample_prior(torch.zeros(2, 3, dtype=dtype), 2, 0.5, generator).dtype == dtype
    assert torch.equal(torch.get_rng_state(), before)


# -- the path --


@pytest.mark.parametrize("signal", SIGNALS)
def test_interpolate_is_eq_20(signal: tuple[int, ...]) -> None:
    x0, x1, t = torch.randn(4, 3, *signal), torch.randn(4, 3, *signal), torch.rand(4)
    x_t = interpolate(x0, x1, t)
    for b, time in enumerate(t.tolist()):
        expected = (1 - time) * x0[b] + time * x1[b]
        assert torch.allclose(x_t[b], expected, rtol=0, atol=1e-15)
        assert torch.allclose(interpolate(x0, x1, time)[b], expected, rtol=0, atol=1e-15)
        assert torch.allclose(interpolate(x0, x1, t[b])[b], expected, rtol=0, atol=1e-15)
    assert torch.equal(interpolate(x0, x1, torch.zeros(4)), x0)
    assert torch.equal(interpolate(x0, x1, torch.ones(4)), x1)


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_true_velocity_gives_the_sources_at_any_time(signal: tuple[int, ...]) -> None:
    """Eq. (18) for the velocity x1 - x0 of one path."""
    x0, x1, t = torch.randn(4, 3, *signal), torch.randn(4, 3, *signal), torch.rand(4)
    assert torch.allclose(sources_from_velocity(interpolate(x0, x1, t), t, x1 - x0), x1, rtol=0, atol=1e-14)
    velocity = torch.randn_like(x0)
    estimates = sources_from_velocity(x0, t, velocity)
    for b, time in enumerate(t.tolist()):
        assert torch.allclose(estimates[b], x0[b] + (1 - time) * velocity[b], rtol=0, atol=1e-15)


def test_rows_like() -> None:
    assert expand_like(torch.zeros(4), torch.zeros(4, 3, 2, 5)).shape == (4, 1, 1, 1)
    assert expand_like(torch.zeros(4), torch.zeros(4)).shape == (4,)
    assert expand_like(torch.tensor(0.5), torch.zeros(4, 3)).shape == ()


# -- Euler --


class Recorded:
    """dx/dt = a(t) x + c m, and the times at which it was asked for."""

    def __init__(self, rate: float = 0.0, constant: float = 0.0) -> None:
        self.rate, self.constant = rate, constant
        self.times: list[float] = []

    def a(self, time: float) -> float:
        return self.rate + math.cos(3 * time)

    def __call__(self, x: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        assert len(set(t.tolist())) == 1
        self.times.append(t[0].item())
        return self.a(self.times[-1]) * x + self.constant * mixtures.unsqueeze(1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 7])
def test_time_grid(num_steps: int) -> None:
    assert time_grid(num_steps) == pytest.approx([n / num_steps for n in range(num_steps + 1)], abs=1e-15)
    assert time_grid(num_steps)[-1] == 1


@pytest.mark.parametrize("num_steps", [0, -1])
def test_a_flow_takes_at_least_one_step(num_steps: int) -> None:
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="at least one step"):
        time_grid(num_steps)
    with pytest.raises(ValueError, match="at least one step"):
        euler(Recorded(), x, x.sum(1), num_steps)
    with pytest.raises(ValueError, match="at least one step"):
        hybrid_euler(Recorded(), lambda m: x, x, x.sum(1), 0.5, num_steps)


@pytest.mark.parametrize("times", [*GRIDS, [0], 1, 3, 5])
def test_euler_is_its_closed_form(times: list[float] | int) -> None:
    """x_N = x_0 prod (1 + dt_n a(t_n)) for dx/dt = a(t) x, on any grid and for numbers of uniform steps."""
    x0, mixtures = torch.randn(4, 3, 5), torch.randn(4, 5)
    start, velocity = x0.clone(), Recorded(-1.5)
    if isinstance(times, int):
        x1 = euler(velocity, x0, mixtures, times)
        times = [n / times for n in range(times + 1)]
    else:
        x1 = euler(velocity, x0, mixtures, num_steps=99, times=times)
    growth = math.prod(1 + (then - now) * velocity.a(now) for now, then in itertools.pairwise(times))
    assert torch.allclose(x1, growth * start, rtol=1e-14, atol=0)
    assert velocity.times == times[:-1]
    assert torch.equal(x0, start)


def test_euler_takes_five_steps_by_default() -> None:
    velocity, x = Recorded(), torch.zeros(1, 2, 3)
    euler(velocity, x, x.sum(1))
    assert velocity.times == [0, 0.2, 0.4, 0.6, 0.8]


def test_euler_gives_the_mixtures_to_the_velocity() -> None:
    x0, mixtures = torch.randn(4, 3, 5), torch.randn(4, 5)
    x1 = euler(lambda x, t, m: (t.view(-1, 1) * m).unsqueeze(1) + 0 * x, x0, mixtures, 2)
    assert torch.allclose(x1, x0 + 0.25 * mixtures.unsqueeze(1), rtol=0, atol=1e-15)


def test_euler_converges_to_the_solution_at_first_order() -> None:
    x0, mixtures = torch.ones(1, 1, 1), torch.zeros(1, 1)
    exact = math.exp(-1 + math.sin(3) / 3)
    errors = [abs(euler(Recorded(-1), x0, mixtures, n).item() - exact) for n in (200, 400, 800)]
    assert errors[0] < 1e-2
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.03)


def test_a_zero_sum_velocity_keeps_the_mixture() -> None:
    mixtures = torch.randn(4, 5)
    x0 = sample_prior(mixtures, 3)
    weight = torch.randn(5, 5)
    x1 = euler(lambda x, t, m: project_zero_sum(torch.tanh(x @ weight)), x0, mixtures, 4)
    assert (x1 - x0).abs().max() > 0.1
    assert torch.allclose(x1.sum(1), mixtures, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "time_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_times_are_never_rounded_to_bfloat16(dtype: torch.dtype, time_dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        seen.append(t)
        return x

    euler(velocity, torch.zeros(2, 2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype), times=[0, 0.799, 1])
    assert {t.dtype for t in seen} == {time_dtype}
    assert seen[1].tolist() == torch.full((2,), 0.799, dtype=time_dtype).tolist()


# -- the hybrid teacher of Appendix D.3 --


class Anchor:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, mixtures: Tensor) -> Tensor:
        self.calls += 1
        shares = torch.tensor([0.6, 0.5, -0.1]).view(1, 3, 1)
        return shares * mixtures.unsqueeze(1) + project_zero_sum(
            torch.stack([mixtures.sin(), mixtures, mixtures**2], 1)
        )


def step_by_step(velocity: Recorded, x0: Tensor, mixtures: Tensor, beta: float, times: Sequence[float]) -> Tensor:
    """v_beta = f(m) - x0 for t < beta, else v, evaluated anew at every step."""
    x = x0
    for now, then in itertools.pairwise(times):
        v = Anchor()(mixtures) - x0 if now < beta else velocity(x, torch.full((len(x),), now), mixtures)
        x = x + (then - now) * v
    return x


@pytest.mark.parametrize("grid", [1, 3, 5, *GRIDS])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.2, 0.5, 0.79, 1.0])
def test_hybrid_euler_is_the_step_by_step_sampler(beta: float, grid: int | list[float]) -> None:
    mixtures = torch.randn(4, 5)
    x0 = sample_prior(mixtures, 3)
    velocity, frozen_teacher, reference = Recorded(-1.5, 0.3), Anchor(), Recorded(-1.5, 0.3)
    if isinstance(grid, int):
        x1 = hybrid_euler(velocity, frozen_teacher, x0, mixtures, beta, grid)
        times = [n / grid for n in range(grid + 1)]
    else:
        x1 = hybrid_euler(velocity, frozen_teacher, x0, mixtures, beta, num_steps=99, times=grid)
        times = grid
    assert torch.allclose(x1, step_by_step(reference, x0, mixtures, beta, times), rtol=0, atol=1e-14)
    assert velocity.times == reference.times == [t for t in times[:-1] if t >= beta]
    assert frozen_teacher.calls == any(t < beta for t in times[:-1])
    if beta == 1:
        assert velocity.times == []
    if beta == 0:
        assert frozen_teacher.calls == 0
    if beta == 1 and times[0] == 0 and times[-1] == 1:
        assert torch.equal(x1, Anchor()(mixtures))


def test_hybrid_euler_without_a_frozen_teacher_is_euler() -> None:
    mixtures = torch.randn(4, 5)
    x0 = sample_prior(mixtures, 3)
    x1 = hybrid_euler(Recorded(-1.5), Anchor(), x0, mixtures, beta=0.0)
    assert torch.equal(x1, euler(Recorded(-1.5), x0, mixtures))


def test_the_hybrid_teacher_is_mixture_consistent() -> None:
    mixtures = torch.randn(4, 5)
    x0 = sample_prior(mixtures, 3)
    weight = torch.randn(5, 5)

    def velocity(x: Tensor, t: Tensor, m: Tensor) -> Tensor:
        return project_zero_sum(torch.tanh(x @ weight))

    for beta in (0.0, 0.3, 0.7, 1.0):
        x1 = hybrid_euler(velocity, Anchor(), x0, mixtures, beta)
        assert torch.allclose(x1.sum(1), mixtures, rtol=0, atol=1e-13)
