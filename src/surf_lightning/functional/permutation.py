"""Exact assignment of rows to rows. Axes: B batch, K sources, P permutations, *S the signal."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

# 6! = 720 sums of 6 terms are cheaper on any device than a round trip to the host; 7! = 5040 of 7 are not.
ENUMERATION_LIMIT = 6


@functools.lru_cache(maxsize=64)
def _all_permutations(size: int, device: torch.device) -> Tensor:
    """Every permutation of ``size`` items, ``[P,K]``, the identity first."""
    return torch.tensor(list(itertools.permutations(range(size))), device=device)


def best_permutation(cost: Tensor) -> Tensor:
    """The order of least total cost, exact for any K, Eq. (3) and (22).

    Args:
        cost: ``[B,K,K]``; ``cost[b,i,j]`` is paid when row j is put in place i. Where it is not finite, any order will
            do: the loss is none, and says so to ``callbacks.FiniteSteps``.

    Returns:
        ``order [B,K]`` (long), minimising ``sum_i cost[b,i,order[b,i]]``. Up to K = 6 every permutation is tried on
        the device, without synchronisation; beyond, the Hungarian algorithm runs on the host.

    Raises:
        ValueError: ``cost`` is not ``[B,K,K]``.
    """
    if cost.ndim != 3 or cost.shape[1] != cost.shape[2]:
        raise ValueError(f"cost must be [B,K,K], got {list(cost.shape)}")
    size = cost.shape[1]
    if size <= ENUMERATION_LIMIT:
        orders = _all_permutations(size, cost.device)
        totals = cost.detach().double()[:, torch.arange(size, device=cost.device), orders].sum(-1)
        return orders[totals.argmin(1)]
    from scipy.optimize import linear_sum_assignment  # a fifth of the start of `surf separate`, and seldom needed

    host = cost.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0).numpy()  # the algorithm refuses others
    return torch.stack([torch.as_tensor(linear_sum_assignment(c)[1]) for c in host]).to(cost.device)


def reorder(rows: Tensor, permutation: Tensor) -> Tensor:
    """``rows [B,K,*S]`` in another order: ``out[b,i] = rows[b, permutation[b,i]]``, ``permutation [B,K]`` (long)."""
    index = permutation.view(*permutation.shape, *[1] * (rows.ndim - 2))
    return rows.gather(1, index.expand(*permutation.shape, *rows.shape[2:]))


def order_without_mates(
    count: int, num_sources: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Self-Remixing's constrained shuffle (Saijo and Ogawa, 2023): no two sources of a mixture meet again.

    The sources of each mixture are dealt to K columns at random, and each column is moved on by a shift of its own
    along one random circle of the mixtures. So any K different mixtures are equally likely to meet in a new one, as
    where a permutation for each column is drawn again and again until none has a mate, but nothing is drawn in vain.

    Returns:
        ``order [B*K]`` (long), as of ``remixing.Remix``, B being ``count`` and K ``num_sources``.

    Raises:
        ValueError: B is less than K.
    """
    if count < num_sources:
        raise ValueError(f"{num_sources} sources of a mixture cannot be kept apart in {count} mixtures")
    circle = torch.randperm(count, generator=generator, device=device)
    shifts = torch.randperm(count, generator=generator, device=device)[:num_sources]
    columns = torch.rand(count, num_sources, generator=generator, device=device).argsort(1)
    mixture = circle[(torch.arange(count, device=device).unsqueeze(1) + shifts) % count]  # [B,K]
    return (mixture * num_sources + columns.gather(0, mixture)).flatten()


def invert(permutation: Tensor) -> Tensor:
    """Give the inverse of ``permutation [B,K]``: reordering by one and then the other changes nothing."""
    return permutation.argsort(dim=1)
