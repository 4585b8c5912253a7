"""What the metrics share: the mean of a score, and several metrics of the same estimates. Axes: B batch, K sources."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


class ScoreMean(Metric):
    """The mean of a score over all that was counted; NaN while there is nothing."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def _add(self, scores: Tensor, counted: Tensor) -> None:
        """Count those of ``scores`` that the mask ``counted``, of their shape, names."""
        self.total += torch.where(counted, scores.double(), 0).sum()
        self.count += counted.sum()

    def compute(self) -> Tensor:
        return self.total / self.count


class SeparationMetrics(Metric):
    """Several metrics of the same estimates. ``compute`` gives a dict of scalars.

    Args:
        columns: metrics by name, whose ``update`` takes by name what ``update`` here gives.
    """

    full_state_update = False

    def __init__(self, columns: Mapping[str, Metric] | MetricCollection) -> None:
        super().__init__()
        chosen: dict[str, Metric | MetricCollection] = dict(columns.items())
        # Compute groups would share one state among metrics whose first batch happened to agree.
        self.columns = MetricCollection(chosen, compute_groups=False)

    @abstractmethod
    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        """Count ``estimates [B,M,*S]``, in any order, against ``sources [B,K,*S]`` and ``mixtures [B,*S]``."""

    def compute(self) -> dict[str, Tensor]:
        return self.columns.compute()

    def reset(self) -> None:
        super().reset()
        self.columns.reset()

    def merge_state(self, incoming_state: Any) -> None:
        """Add what another instance has counted."""
        for name, column in self.columns.items():
            column.merge_state(incoming_state.columns[name])
