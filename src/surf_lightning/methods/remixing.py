"""Regression remixing baselines, ReMixIT and Self-Remixing. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surf_lightning.losses import pit_order
from surf_lightning.methods.base import Batch
from surf_lightning.methods.micro_batches import in_micro_batches
from surf_lightning.methods.objectives import RemixingLoss
from surf_lightning.methods.teaching import TeacherStudentModule
from surf_lightning.networks.protocols import RegressionNetwork
from surf_lightning.permutation import permute
from surf_lightning.remixing import BatchRandomness
from surf_lightning.separator import RegressionSeparator


class Remixing(TeacherStudentModule):
    """A regression student separates remixed estimates of its teacher (Section 2.3).

    Args:
        network: the student; where it has more than K outputs, the K most energetic count.
        objective: ReMixITLoss, Eq. (16), or SelfRemixingLoss, Eq. (17).
        num_sources: sources in a mixture (K).
        teacher_steps: optimizer steps in which the frozen MixIT is the teacher; from then on the student's EMA is.

    The other arguments are those of ``TeacherStudentModule``.
    """

    def __init__(
        self,
        network: RegressionNetwork,
        objective: RemixingLoss,
        num_sources: int = 2,
        teacher_steps: int = 200_000,
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources), **options)
        self.objective, self.teacher_steps = objective, teacher_steps
        self.label = f"Regression ({objective.label})"

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        teacher = self.anchor if self.steps_made < self.teacher_steps else self.separator
        with torch.no_grad():
            pseudo_sources = in_micro_batches(teacher, self.micro_batch, batch["mixtures"])
        remixed, ranks = self.remix(pseudo_sources, random)
        estimates = in_micro_batches(self.student, self.micro_batch, remixed.mixtures)
        order = pit_order(estimates, remixed.sources)
        residual = estimates - permute(remixed.sources, order)
        return self.objective(residual, order, remixed.order, ranks).mean()
