"""Denoising score matching and annealed Langevin sampling, BASIS (Jayaram and Thickstun, 2020).

Axes: B batch, K sources, N items, L noise levels, *S the signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from surf_lightning.functional.flow import expand_like

Score = Callable[[Tensor, float], Tensor]
"""``score(x [B,K,*S], sigma)``: the gradient of log p_sigma at each source alone, ``[B,K,*S]``."""

Update = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""``update(x [B,K,*S], moves [B,K,*S], mixtures [B,*S], weight) -> x``: ``moves`` and the pull towards the mixtures."""


def noise_levels(sigma_max: float, sigma_min: float, count: int) -> list[float]:
    """``count`` deviations in geometric progression, the largest first.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0 and there are at least two.
    """
    if not (sigma_max > sigma_min > 0 and count >= 2):
        raise ValueError(f"noise levels fall from sigma_max to sigma_min: not {count} from {sigma_max} to {sigma_min}")
    return [sigma_max * (sigma_min / sigma_max) ** (level / (count - 1)) for level in range(count)]


def denoising_error(score: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Denoising score matching, weighted by sigma²: ``|sigma s(x + sigma e, sigma) + e|² / 2``, ``[N]``.

    ``score`` and ``noise`` e are ``[N,*S]``, ``sigma [N]``. Its minimiser is the score of the data blurred by sigma.
    """
    return 0.5 * (expand_like(sigma, score) * score + noise).flatten(1).square().sum(1)


def simultaneous_update(x: Tensor, moves: Tensor, mixtures: Tensor, weight: float) -> Tensor:
    """All sources at once, down the gradient of |sum of x - m|², its factor 2 included: the authors' code for MNIST."""
    return x + moves - 2 * weight * (x.sum(1) - mixtures).unsqueeze(1)


def sequential_update(x: Tensor, moves: Tensor, mixtures: Tensor, weight: float) -> Tensor:
    """One source after another, each seeing the new ones before it, without the 2: the authors' code for CIFAR-10."""
    sources = list(x.unbind(1))
    for k, move in enumerate(moves.unbind(1)):
        sources[k] = sources[k] + move - weight * (torch.stack(sources).sum(0) - mixtures)
    return torch.stack(sources, 1)


def annealed_langevin(
    score: Score,
    update: Update,
    x: Tensor,
    mixtures: Tensor,
    sigmas: Sequence[float],
    num_steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample p(x | sum of x = m) through priors that are blurred less and less, Algorithm 1 of BASIS.

    x_k <- x_k + η_j (s(x_k, σ_j) - g_k / σ_j²) + sqrt(2 η_j) ε, with η_j = δ (σ_j / σ_L)² and g the pull of ``update``
    towards the mixtures. Its relative size, η_j / σ_j² = δ / σ_L², is the same at all levels.

    Args:
        score: of each source alone.
        update: a step towards the mixtures.
        x: where to start, ``[B,K,*S]``.
        mixtures: sums of sources in the units of x, ``[B,*S]``.
        sigmas: the L noise levels, descending.
        num_steps: at each level.
        step_size: δ, the step at the last level.
        generator: of the noise.

    Returns:
        The last x, ``[B,K,*S]``; no noise is removed from it.
    """
    weight = step_size / sigmas[-1] ** 2
    for sigma in sigmas:
        step = weight * sigma**2
        for _ in range(num_steps):
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = update(x, step * score(x, sigma) + math.sqrt(2 * step) * noise, mixtures, weight)
    return x
