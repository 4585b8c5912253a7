"""How the M outputs of a separator become K estimates. Axes: B batch, K sources, M outputs, *S the signal."""

from __future__ import annotations

import torch
from torch import Tensor

from surf_lightning.functional.losses import check_deals, partitions, subsets
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.precision import at_least_float32, full_precision


def merge_outputs(estimates: Tensor, count: int) -> Tensor:
    """K sums of all M outputs, the weakest of which is as energetic as it can be.

    A separator that over-separates splits a source into several outputs; the K loudest of them then leave the rest to
    be shared out. Of all K^M ways to sum the outputs to K, this takes the one whose weakest sum has the most energy.
    Our choice: the SURF paper does not say how M outputs become K, and others keep the K loudest. No true source is
    looked at.

    Returns:
        ``[B,K,*S]`` of ``estimates [B,M,*S]``, with the same sum; K is ``count``.

    Raises:
        ValueError: there are more than 2^20 ways.
    """
    outputs = estimates.shape[1]
    if count == outputs:
        return estimates
    check_deals(outputs, count)
    with full_precision(estimates):
        rows = at_least_float32(estimates.detach().flatten(2))
        gram = (rows @ rows.mT).double()
        all_subsets = subsets(outputs, rows.device)
        energies = ((all_subsets @ gram) * all_subsets).sum(-1)  # [B,2^M]
        deals = partitions(outputs, count, rows.device)
        chosen = deals[energies[:, deals].amin(-1).argmax(1)]  # [B,K]
        rows = at_least_float32(estimates.flatten(2))
        return torch.unflatten(all_subsets[chosen].to(rows.dtype) @ rows, 2, estimates.shape[2:])


def most_energetic(estimates: Tensor, count: int) -> Tensor:
    """The ``count`` rows of ``estimates [B,M,*S]`` of the highest mean square, in their original order."""
    if count == estimates.shape[1]:
        return estimates
    energies = at_least_float32(estimates).flatten(2).square().sum(-1)
    kept = energies.topk(count, dim=1).indices.sort(1).values
    return reorder(estimates, kept)


def first_outputs(estimates: Tensor, count: int) -> Tensor:
    """The first ``count - 1`` of ``estimates [B,M,*S]`` and the sum of the others: in enhancement, speech and noise."""
    return torch.cat([estimates[:, : count - 1], estimates[:, count - 1 :].sum(1, keepdim=True)], 1)
