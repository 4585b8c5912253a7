"""One flow-matching step on given sources, of SURF and of the supervised flow. Axes: B batch, K sources, *S signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surf_lightning.flow import interpolate, rows_like
from surf_lightning.losses import pit_order
from surf_lightning.methods.micro_batches import in_micro_batches
from surf_lightning.permutation import permute
from surf_lightning.remixing import BatchRandomness
from surf_lightning.separator import FlowSeparator


@dataclass(frozen=True)
class FlowResidual:
    """R_t of Eq. (23), times 1 - t where the network predicts sources; row i belongs to source ``pit_order[b,i]``."""

    residual: Tensor  # [B,K,*S]
    pit_order: Tensor  # [B,K]


def flow_residual(
    separator: FlowSeparator,
    sources: Tensor,
    mixtures: Tensor,
    random: BatchRandomness,
    micro_batch: int | None = None,
) -> FlowResidual:
    """Lines 7-12 of Algorithm 1 for x1 = ``sources [B,K,*S]``, sums ``mixtures [B,*S]`` and t uniform in [0,1)."""
    network = separator.network
    t = random.uniform(len(sources))
    x0 = separator.prior(mixtures, random)
    with torch.no_grad():
        start = x0 + in_micro_batches(network, micro_batch, x0, torch.zeros_like(t), mixtures)
    order = pit_order(start, sources)
    x1 = permute(sources, order)
    velocity = in_micro_batches(network, micro_batch, interpolate(x0, x1, t), t, mixtures)
    residual = velocity - (x1 - x0)
    return FlowResidual(rows_like(network.residual_weight(t), residual) * residual, order)
