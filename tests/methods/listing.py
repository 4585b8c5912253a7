"""Code Listing 1 of the SURF paper with the hybrid teacher of Appendix D.3, one example and one source at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surf_lightning.networks.base import VelocityNetwork

Rows = list[list[Tensor]]  # [B][K] signals


@dataclass
class Draws:
    """The random numbers of a step, in the order in which a training batch draws them."""

    generator: torch.Generator

    def normal(self, batch: int, num_sources: int, shape: torch.Size) -> Tensor:
        return torch.randn((batch, num_sources, *shape), generator=self.generator).double()

    def order(self, size: int) -> list[int]:
        return torch.randperm(size, generator=self.generator).tolist()

    def times(self, batch: int) -> Tensor:
        return torch.rand(batch, generator=self.generator)


def prior(mixtures: Tensor, z: Tensor) -> Tensor:
    num_sources = z.shape[1]
    return torch.stack([mixtures / num_sources + z[:, k] - z.mean(1) for k in range(num_sources)], 1)


def hybrid_sample(
    teacher: VelocityNetwork, anchor: Callable[[Tensor], Tensor], mixtures: Tensor, x0: Tensor, beta: float, steps: int
) -> Tensor:
    """Every step of the sampler, the anchored ones included."""
    x = x0
    with torch.no_grad():
        for step in range(steps):
            t = torch.full((len(x),), step / steps, dtype=torch.float64)
            velocity = anchor(mixtures) - x0 if step / steps < beta else teacher(x, t, mixtures)
            x = x + velocity / steps
    return x


def remixed(pseudo: Tensor, order: list[int]) -> Tensor:
    batch, num_sources = pseudo.shape[:2]
    flat = [pseudo[b, k] for b in range(batch) for k in range(num_sources)]
    return torch.stack([flat[row] for row in order]).view_as(pseudo)


def alignment(start: Tensor, sources: Tensor) -> list[tuple[int, ...]]:
    """For each example the order of its sources that is nearest to ``start``."""
    orders = list(itertools.permutations(range(sources.shape[1])))
    return [
        min(orders, key=lambda order: float((found - truth[list(order)]).square().sum()))
        for found, truth in zip(start.detach(), sources, strict=True)
    ]


def aligned_residual(
    student: VelocityNetwork, sources: Tensor, draws: Draws, sigma: float = 1.0
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """R_t ``[B,K,*S]`` of Listing 1, weighted as the network asks, and the orders that aligned the sources."""
    batch, num_sources = sources.shape[:2]
    mixtures = sources.sum(1)
    t = draws.times(batch)
    x0 = prior(mixtures, sigma * draws.normal(batch, num_sources, sources.shape[2:]))
    with torch.no_grad():
        v0 = student(x0, torch.zeros(batch), mixtures)
    orders = alignment(v0 + x0, sources)
    x1 = torch.stack([source[list(order)] for source, order in zip(sources, orders, strict=True)])
    x_t = torch.stack([(1 - float(t[b])) * x0[b] + float(t[b]) * x1[b] for b in range(batch)])
    residual = student(x_t, t, mixtures) - (x1 - x0)
    weights = [1 - float(s) if type(student.head).__name__ == "SourceHead" else 1.0 for s in t]
    return torch.stack([weight * r for weight, r in zip(weights, residual, strict=True)]), orders


def rm_loss(residual: Tensor) -> Tensor:
    return (residual**2).mean()


def sr_loss(residual: Tensor, orders: list[tuple[int, ...]], remix_order: list[int]) -> Tensor:
    """Each residual back to the mixture that its teacher estimate came from, summed there."""
    batch, num_sources = residual.shape[:2]
    sums = [torch.zeros_like(residual[0, 0]) for _ in range(batch)]
    for b in range(batch):
        for k in range(num_sources):
            remixed_row = b * num_sources + orders[b][k]
            original = remix_order[remixed_row] // num_sources
            sums[original] = sums[original] + residual[b, k]
    return (torch.stack(sums) ** 2).mean()
