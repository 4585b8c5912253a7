"""Flow matching from a mixture-consistent prior to the sources. Axes: B batch, K sources, M outputs, *S the signal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from surf_lightning.functional.losses import pit_permutation
from surf_lightning.functional.permutation import reorder

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``velocity(x_t [B,K,*S], t [B], mixtures [B,*S]) -> [B,K,*S]``."""


def project_zero_sum(x: Tensor) -> Tensor:
    """P⊥ x of Eq. (4): ``x [B,K,*S]`` less its mean over the sources, so that it sums to zero."""
    return x - x.mean(1, keepdim=True)


def mixture_consistent(estimates: Tensor, mixtures: Tensor) -> Tensor:
    """Share the residual equally: ``estimates [B,M,*S]`` made to sum to ``mixtures [B,*S]``."""
    residual = mixtures - estimates.sum(1)
    return estimates + (residual / estimates.shape[1]).unsqueeze(1)


def prior_from_noise(mixtures: Tensor, noise: Tensor) -> Tensor:
    """x0 = m/K + P⊥ z, Eq. (4), for ``mixtures [B,*S]`` and ``noise [B,K,*S]``."""
    return (mixtures / noise.shape[1]).unsqueeze(1) + project_zero_sum(noise)


def sample_prior(
    mixtures: Tensor, num_sources: int, noise_scale: float | Tensor = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw x0 ``[B,K,*S]`` from the prior, Eq. (4): Gaussian of standard deviation ``noise_scale`` around m/K.

    ``noise_scale`` is in the units of the sources: one number, or a tensor that broadcasts against ``[B,1,*S]``.
    """
    shape = (mixtures.shape[0], num_sources, *mixtures.shape[1:])
    noise = torch.randn(shape, generator=generator, device=mixtures.device, dtype=mixtures.dtype)
    return prior_from_noise(mixtures, noise_scale * noise)


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """``t [B]`` (or a scalar) with the trailing axes that broadcast it against ``x [B,...]``."""
    return t.view(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def interpolate(x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
    """x_t = (1-t) x0 + t x1, Eq. (11) and (20), with ``t [B]`` or one number in [0, 1]."""
    if isinstance(t, Tensor):
        t = expand_like(t, x0)
    return (1 - t) * x0 + t * x1


def sources_from_velocity(x_t: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """E[x1 | x_t, m] ≈ x_t + (1-t) v, Eq. (18)-(19)."""
    return x_t + (1 - expand_like(t, x_t)) * velocity


def flow_residual(
    velocity: Velocity, x0: Tensor, sources: Tensor, mixtures: Tensor, t: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Lines 10-12 of Algorithm 1: align the sources to the student, interpolate, compare velocities.

    Args:
        velocity: the student's v.
        x0: a sample of the prior, ``[B,K,*S]``.
        sources: x1 in any order, ``[B,K,*S]``.
        mixtures: their sums, ``[B,*S]``.
        t: times in [0, 1), ``[B]``.
        weight: of the residual at these times, ``[B]``: 1, or 1 - t for networks that predict sources.

    Returns:
        R_t ``[B,K,*S]`` of Eq. (23), weighted, and Υ of Eq. (21)-(22): row i belongs to source ``permutation[b,i]``.
    """
    with torch.no_grad():  # σ is a constant of the gradient, Eq. (7)-(9)
        permutation = pit_permutation(x0 + velocity(x0, torch.zeros_like(t), mixtures), sources)
    x1 = reorder(sources, permutation)
    residual = velocity(interpolate(x0, x1, t), t, mixtures) - (x1 - x0)
    return expand_like(weight, residual) * residual, permutation


def time_grid(num_steps: int) -> list[float]:
    """The uniform grid 0, 1/N, ..., 1."""
    if num_steps < 1:
        raise ValueError(f"a flow is sampled in at least one step, not {num_steps}")
    return [step / num_steps for step in range(num_steps + 1)]


def euler(
    velocity: Velocity, x0: Tensor, mixtures: Tensor, num_steps: int = 5, times: Sequence[float] | None = None
) -> Tensor:
    """Solve dx/dt = v(x, t, m) from x0 by Euler's method, Eq. (6).

    Args:
        velocity: v(x, t, m).
        x0: where to start, ``[B,K,*S]``.
        mixtures: ``[B,*S]``.
        num_steps: steps of equal length.
        times: any increasing grid; where given, it replaces the uniform one of ``num_steps`` steps from 0 to 1.

    Returns:
        x at the last time of the grid, ``[B,K,*S]``.
    """
    times = time_grid(num_steps) if times is None else times
    x = x0
    for now, then in itertools.pairwise(times):
        t = torch.full((x.shape[0],), now, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        x = x + (then - now) * velocity(x, t, mixtures)
    return x


def hybrid_euler(
    velocity: Velocity,
    frozen_teacher: Callable[[Tensor], Tensor],
    x0: Tensor,
    mixtures: Tensor,
    beta: float,
    num_steps: int = 5,
    times: Sequence[float] | None = None,
) -> Tensor:
    """Sample the hybrid teacher of Appendix D.3: velocity f(m) - x0 while t < beta, then ``velocity``.

    f is the ``frozen_teacher`` (mixtures ``[B,*S]`` -> consistent estimates ``[B,K,*S]``). Its part of the path is the
    straight line from x0 to f(m): all its steps are taken at once, by one evaluation of f and none of ``velocity``. At
    beta = 1 ``velocity`` is never called, at beta = 0 f is not.
    """
    times = time_grid(num_steps) if times is None else times
    frozen_steps = sum(t < beta for t in times[:-1])
    if frozen_steps == 0:
        return euler(velocity, x0, mixtures, times=times)
    x = interpolate(x0, frozen_teacher(mixtures), times[frozen_steps] - times[0])
    return euler(velocity, x, mixtures, times=times[frozen_steps:])
