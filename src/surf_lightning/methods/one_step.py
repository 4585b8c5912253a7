"""A trained flow distilled into one evaluation of its network. Axes: B batch, K sources, *S the signal.

This method is ours: the papers sample in five steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surf_lightning.functional.flow import euler
from surf_lightning.functional.losses import Reduction, mean_square, pit_permutation
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import FlowSeparator
from surf_lightning.methods.base import Batch
from surf_lightning.methods.frozen_teacher import FrozenTeacherModule
from surf_lightning.networks.base import PriorNoise, VelocityNetwork


class OneStep(FrozenTeacherModule):
    """The student's single Euler step from x0 learns to end where the frozen flow's several steps from x0 end.

    Args:
        network: of the shape of the flow's, whose weights it begins with.
        flow_checkpoint: of a trained flow, SURF's or the supervised one's; read when a fit starts from the beginning.
        reduction: of the difference of the two samples: ``mean_square`` (images) or ``log_energy`` (audio).
        noise: standard deviation of the prior, from which both start.
        sampling_noise: factor on it. The less noise, the nearer to the mean are the samples to be imitated.
        flow_steps: Euler steps of the flow; None: those it was trained with.
        ema_decay: as of ``SeparationModule``.
        trust_checkpoint: as of ``FrozenTeacherModule``.

    The other arguments are those of ``SeparationModule``.
    """

    label = "One step"
    teacher_kind = FlowSeparator
    needed = "a flow such as SURF's"
    earlier_stage, checkpoint_argument = "SURF_rm", "flow_checkpoint"

    def __init__(
        self,
        network: VelocityNetwork,
        flow_checkpoint: str,
        reduction: Reduction = mean_square,
        noise: PriorNoise | None = None,
        sampling_noise: float = 1.0,
        flow_steps: int | None = None,
        ema_decay: float | None = 0.999,
        trust_checkpoint: bool = False,
        **options: Any,
    ) -> None:
        if flow_steps is not None and flow_steps < 1:
            raise ValueError(f"flow_steps must be at least 1, not {flow_steps}")
        separator = FlowSeparator(network, 1, noise, sampling_noise)
        super().__init__(separator, flow_checkpoint, True, trust_checkpoint, ema_decay=ema_decay, **options)
        self.reduction, self.flow_steps = reduction, flow_steps

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        mixtures = batch["mixtures"]
        noise = random.normal((len(mixtures), self.separator.num_sources, *mixtures.shape[1:]))
        x0 = self.trained.prior(mixtures, self.trained.sampling_noise * noise)
        with torch.no_grad():
            targets = self.arrival(self.frozen_teacher, x0, mixtures, self.flow_steps)
        estimates = self.arrival(self.trained, x0, mixtures)
        # Which source goes where need not be foreseen from x0: sources have no order.
        aligned = reorder(targets, pit_permutation(estimates, targets))
        return self.reduction(estimates - aligned).mean()

    def arrival(self, flow: FlowSeparator, x0: Tensor, mixtures: Tensor, steps: int | None = None) -> Tensor:
        """Where ``steps`` Euler steps of ``flow`` from ``x0 [B,K,*S]`` end, of the same shape."""
        steps = flow.num_steps if steps is None else steps

        def sample(x0: Tensor, mixtures: Tensor) -> Tensor:
            return euler(flow.network, x0, mixtures, steps)

        return self.micro_batched(sample)(x0, mixtures)
