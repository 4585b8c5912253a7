"""Evaluating a network on a batch that does not fit into memory at once. Axes: B batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_micro_batches(function: Callable[..., Tensor], size: int | None, *batches: Tensor) -> Tensor:
    """``function(*batches)``, evaluated on ``size`` examples at a time; ``batches`` are alike in their first axis.

    ``function`` must treat examples independently. Where gradients are wanted, each part is evaluated again in the
    backward pass instead of keeping its activations, from the same random numbers, so that the peak of memory is a
    part's, while the loss may couple all rows of the batch, as Self-Remixing's does.
    """
    if size is None or len(batches[0]) <= size:
        return function(*batches)
    parts = zip(*(batch.split(size) for batch in batches), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])
    return torch.cat([function(*part) for part in parts])
