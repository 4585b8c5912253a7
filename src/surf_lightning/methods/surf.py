"""SURF: separation via unsupervised remixing flow, Algorithm 1. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from surf_lightning.callbacks.beta_schedule import BetaSchedule, Steps
from surf_lightning.functional.flow import flow_residual, hybrid_euler
from surf_lightning.functional.losses import Objective, Reduction, mean_square, remixing_loss
from surf_lightning.functional.randomness import ALONE, BatchRandomness
from surf_lightning.functional.remixing import remix_over_ranks
from surf_lightning.inference.separator import FlowSeparator
from surf_lightning.methods.base import Batch
from surf_lightning.methods.remixing import TeacherStudentModule
from surf_lightning.networks.base import PriorNoise, VelocityNetwork


class SURF(TeacherStudentModule):
    """A flow student learns from remixed samples of its teacher, a hybrid of the frozen MixIT teacher and its own EMA.

    Args:
        network: of K sources, for student and teacher.
        objective: ``remixit``, Eq. (24), ``self_remixing``, Eq. (30), or the weight of the former in a sum of both.
        reduction: ``mean_square`` (images) or ``log_energy`` (audio) of ``functional.losses``.
        noise: standard deviation of the prior.
        num_steps: Euler steps of the sampler, in training and after.
        sampling_noise: factor on the prior's deviation where the teacher samples, see ``FlowSeparator``.
        early_times: t = u^early_times for u uniform in [0,1): above 1, the early, hard times are drawn more often. The
            paper's density of t, λ, is open.
        one_time: draw one t for the whole batch, as Code Listing 1 does, not one for each mixture.
        frozen_steps: optimizer steps before beta begins to fall, or, a float in (0, 1], their share of the whole run.
        beta_start: beta in the frozen phase; the share of the teacher's path that leads straight to the MixIT estimate.
        beta_end: beta in the end.
        beta_steps: optimizer steps from ``beta_start`` to ``beta_end``, or, a float in (0, 1], their share of the run.

    The other arguments are those of ``TeacherStudentModule``.
    """

    student: FlowSeparator
    family = "SURF"

    def __init__(
        self,
        network: VelocityNetwork,
        objective: Objective | float = "remixit",
        reduction: Reduction = mean_square,
        noise: PriorNoise | None = None,
        num_steps: int = 5,
        sampling_noise: float = 1.0,
        early_times: float = 1.0,
        one_time: bool = False,
        frozen_steps: Steps = 0,
        beta_start: float = 1.0,
        beta_end: float = 0.0,
        beta_steps: Steps = 200_000,
        **options: Any,
    ) -> None:
        super().__init__(FlowSeparator(network, num_steps, noise, sampling_noise), objective, reduction, **options)
        if early_times <= 0:
            raise ValueError(f"early_times must be above 0, not {early_times}: 1 is uniform")
        if self.earlier_checkpoint is None:  # there is no frozen teacher to lean on
            beta_start = beta_end = 0.0
        self.early_times, self.one_time, self.beta = early_times, one_time, beta_start
        self.schedule = BetaSchedule(beta_start, beta_end, beta_steps, frozen_steps)

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        mixtures = batch["mixtures"]  # line 3
        shape = (len(mixtures), self.student.num_sources, *mixtures.shape[1:])
        # All random numbers of lines 4 to 8.
        ranks = random.ranks if self.remix_over_ranks else ALONE
        teacher_noise = random.normal(shape)
        order = random.shuffled_order(shape[0], shape[1], ranks, self.shuffle)
        t = (random.shared_uniform if self.one_time else random.uniform)(len(mixtures)) ** self.early_times
        noise = random.normal(shape)

        estimates = self.teacher_estimates(mixtures, teacher_noise)  # line 4
        remixed = remix_over_ranks(estimates, order, ranks)  # lines 5-6
        student = self.student.network
        x0 = self.student.prior(remixed.mixtures, noise)  # line 9
        velocity, weight = self.micro_batched(student), student.residual_weight(t)
        residual, pit = flow_residual(velocity, x0, remixed.sources, remixed.mixtures, t, weight)  # lines 10-12
        losses = remixing_loss(self.objective, residual, pit, order, ranks, self.reduction)  # lines 13-14
        return losses.mean()  # the optimizer is line 15, callbacks.EMATeacher line 16

    @torch.no_grad()
    def teacher_estimates(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        """A sample ``[B,K,*S]`` of the hybrid teacher for ``mixtures [B,*S]`` and ``noise [B,K,*S]``, Appendix D.3."""
        teacher = self.teacher

        def sample(x0: Tensor, mixtures: Tensor, noise: Tensor) -> Tensor:
            # A frozen flow samples from the noise of x0, so that its sources come in the order of the path's.
            frozen = lambda mixtures: self.frozen_teacher.separate_from(mixtures, noise)  # noqa: E731
            return hybrid_euler(teacher.network, frozen, x0, mixtures, self.beta, teacher.num_steps)

        x0 = teacher.prior(mixtures, teacher.sampling_noise * noise)
        return self.micro_batched(sample)(x0, mixtures, noise)

    @property
    def schedules(self) -> dict[str, Steps | None]:
        return {**super().schedules, "frozen_steps": self.schedule.frozen_steps, "beta_steps": self.schedule.steps}

    def on_fit_start(self) -> None:
        schedule = self.schedule
        schedule.total = self.run_steps
        if schedule.start != schedule.end and 0 < self.run_steps < schedule.end_step:
            rank_zero_warn(
                f"The run ends at step {self.run_steps:,}, before beta does (step {schedule.end_step:,}): beta falls "
                f"to {schedule.beta(self.run_steps):.2f}, not {schedule.end:g}, and at 1 the student imitates MixIT. "
                "Give --model.frozen_steps and --model.beta_steps as shares of the run, e.g. 0.25"
            )
        super().on_fit_start()

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), self.schedule]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.strict_loading:
            self.schedule.total = self.run_steps
            self.beta = self.schedule.beta(self.trained_steps)
