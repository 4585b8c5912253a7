"""SURF: separation via unsupervised remixing flow, Algorithm 1. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from surf_lightning.callbacks.beta_schedule import BetaSchedule
from surf_lightning.flow import hybrid_euler
from surf_lightning.methods.base import Batch
from surf_lightning.methods.flow_matching import flow_residual
from surf_lightning.methods.micro_batches import in_micro_batches
from surf_lightning.methods.objectives import RemixingLoss
from surf_lightning.methods.teaching import TeacherStudentModule
from surf_lightning.networks.noise import PriorNoise
from surf_lightning.networks.protocols import VelocityNetwork
from surf_lightning.remixing import BatchRandomness
from surf_lightning.separator import FlowSeparator


class SURF(TeacherStudentModule):
    """A flow student learns from remixed samples of its teacher, a hybrid of the frozen MixIT and its own EMA.

    Args:
        network: of K sources, for student and teacher.
        objective: ReMixITLoss, Eq. (24), or SelfRemixingLoss, Eq. (30).
        noise: standard deviation of the prior.
        num_steps: Euler steps of the sampler, in training and after.
        frozen_steps: optimizer steps before beta begins to fall.
        beta_start: beta in the frozen phase; the share of the teacher's path that leads straight to the MixIT estimate.
        beta_end: beta in the end.
        beta_steps: optimizer steps from ``beta_start`` to ``beta_end``.

    The other arguments are those of ``TeacherStudentModule``.
    """

    student: FlowSeparator
    separator: FlowSeparator

    def __init__(
        self,
        network: VelocityNetwork,
        objective: RemixingLoss,
        noise: PriorNoise | None = None,
        num_steps: int = 5,
        frozen_steps: int = 0,
        beta_start: float = 1.0,
        beta_end: float = 0.0,
        beta_steps: int = 200_000,
        **options: Any,
    ) -> None:
        super().__init__(FlowSeparator(network, num_steps, noise), **options)
        self.objective = objective
        self.label = f"SURF ({objective.label})"
        self.beta = beta_start
        self.schedule = BetaSchedule(beta_start, beta_end, beta_steps, frozen_steps)

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), self.schedule]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.beta = self.schedule.beta(self.trained_steps)

    @torch.no_grad()
    def teacher_estimates(self, mixtures: Tensor, random: BatchRandomness) -> Tensor:
        """A sample ``[B,K,*S]`` of the hybrid teacher, Appendix D.3."""

        def sample(x0: Tensor, mixtures: Tensor) -> Tensor:
            return hybrid_euler(self.separator.network, self.anchor, x0, mixtures, self.beta, self.separator.num_steps)

        return in_micro_batches(sample, self.micro_batch, self.separator.prior(mixtures, random), mixtures)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        remixed, ranks = self.remix(self.teacher_estimates(batch["mixtures"], random), random)
        flow = flow_residual(self.student, remixed.sources, remixed.mixtures, random, self.micro_batch)
        return self.objective(flow.residual, flow.pit_order, remixed.order, ranks).mean()
