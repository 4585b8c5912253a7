"""Teacher and student, and the regression baselines ReMixIT and Self-Remixing. Axes: B batch, K sources, *S signal."""

from __future__ import annotations

import functools
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from surf_lightning.callbacks.beta_schedule import Steps, check_steps
from surf_lightning.errors import UserError
from surf_lightning.functional.losses import Objective, Reduction, mean_square, pit_permutation, remixing_loss
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.randomness import ALONE, BatchRandomness, Shuffle
from surf_lightning.functional.remixing import remix_over_ranks
from surf_lightning.functional.signal_losses import SignalLoss, of_pairs
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator
from surf_lightning.methods.base import Batch
from surf_lightning.methods.frozen_teacher import FrozenTeacherModule
from surf_lightning.networks.base import RegressionNetwork

LABELS = {"remixit": "ReMixIT", "self_remixing": "Self-Remixing"}


class TeacherStudentModule(FrozenTeacherModule):
    """A ``student``, the ``teacher``, its EMA copy, which separates, and a ``frozen_teacher``, as a rule MixIT.

    Args:
        student: what is trained.
        objective: ``remixit`` or ``self_remixing``, of ``functional.losses``, or the weight of the former in a sum of
            both, between 0 and 1.
        reduction: what makes one number of a residual.
        mixit_checkpoint: a checkpoint of the MixIT stage, or of any other separator: a supervised one of another data
            set, or a flow, which teaches by samples. Read only when a fit starts from the beginning. None: the EMA
            copy, untrained, teaches from the beginning (Saijo and Ogawa, 2023), with no frozen phase.
        ema_decay: alpha, see ``callbacks.EMATeacher``.
        shuffle: ``uniform``, Eq. (14), or ``constrained``: no two sources of a mixture meet again, as in Self-Remixing.
        remix_over_ranks: shuffle the teacher's estimates over the batches of all processes, as if they were one. False:
            each process shuffles its own batch, and exchanges nothing but gradients.
        initialize_from_mixit: begin with the weights of the MixIT network that have a namesake of the same shape in the
            student's, a reading of Appendix D.4. For networks of one family, such as STFTConvTasNet and
            VelocitySTFTConvTasNet.
        trust_checkpoint: allow networks from outside this package, imported by the checkpoint, such as your own.

    The other arguments are those of ``SeparationModule``.
    """

    family: str

    def __init__(
        self,
        student: Separator,
        objective: Objective | float,
        reduction: Reduction,
        mixit_checkpoint: str | None,
        ema_decay: float = 0.999,
        shuffle: Shuffle = "uniform",
        remix_over_ranks: bool = True,
        initialize_from_mixit: bool = False,
        trust_checkpoint: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(objective, str) and not 0 <= objective <= 1:
            raise ValueError(f"the weight of ReMixIT in the objective must lie in [0, 1], not {objective}")
        if initialize_from_mixit and mixit_checkpoint is None:
            raise ValueError("initialize_from_mixit must come with a mixit_checkpoint")
        super().__init__(
            student, mixit_checkpoint, initialize_from_mixit, trust_checkpoint, ema_decay=ema_decay, **options
        )
        self.remix_over_ranks, self.objective, self.reduction = remix_over_ranks, objective, reduction
        self.shuffle = shuffle
        self.least_mixtures = student.num_sources if shuffle == "constrained" else 1
        self.label = self.label_of(objective)

    @classmethod
    def label_of(cls, objective: Objective | float) -> str:
        """The method's name in the tables of the paper."""
        name = LABELS[objective] if isinstance(objective, str) else f"{objective:.0%} ReMixIT"
        return f"{cls.family} ({name})"

    def on_fit_start(self) -> None:
        together = self.whole_batch() if self.remix_over_ranks else self.data.batch_size
        if self.objective == "self_remixing" and together == 1:
            rank_zero_warn("Self-Remixing of one mixture has a loss of 0: use a batch_size of at least 2")
        if self.shuffle == "constrained" and together < self.student.num_sources:
            sources = self.student.num_sources
            raise UserError(
                f"the constrained shuffle of {sources} sources needs as many mixtures: raise data.batch_size"
            )
        super().on_fit_start()


class Remixing(TeacherStudentModule):
    """A regression student separates remixed estimates of its teacher (Section 2.3).

    Args:
        network: the student; where it has more than K outputs, the K most energetic count.
        objective: ``remixit``, Eq. (16), ``self_remixing``, Eq. (17), or the weight of the former in a sum of both.
        reduction: ``mean_square`` (images) or ``log_energy`` (audio) of ``functional.losses``.
        error: an error of ``functional.signal_losses`` in place of the reduced residual: ``signal_snr`` or
            ``multi_resolution_l1``, the original losses of Self-Remixing. The pairing is by squared error with each.
        num_sources: sources in a mixture (K).
        teacher_steps: optimizer steps in which the frozen MixIT is the teacher, or, a float in (0, 1], their share of
            the run; from then on the student's EMA is.

    The other arguments are those of ``TeacherStudentModule``.
    """

    family = "Regression"

    def __init__(
        self,
        network: RegressionNetwork,
        objective: Objective | float = "remixit",
        reduction: Reduction = mean_square,
        num_sources: int = 2,
        teacher_steps: Steps = 200_000,
        error: SignalLoss | None = None,
        **options: Any,
    ) -> None:
        if error is not None:
            reduction = functools.partial(of_pairs, error)
            reduction(torch.zeros(1, num_sources, 2, 4096))  # refuses an error of another kind before the training
        super().__init__(RegressionSeparator(network, num_sources), objective, reduction, **options)
        check_steps("teacher_steps", teacher_steps, least=0)
        self.teacher_steps, self.error = teacher_steps, error

    @property
    def schedules(self) -> dict[str, Steps | None]:
        return {**super().schedules, "teacher_steps": self.teacher_steps}

    def on_fit_start(self) -> None:
        frozen, end = self.in_steps(self.teacher_steps), self.run_steps
        if self.earlier_checkpoint is not None and 0 < end <= frozen:
            rank_zero_warn(
                f"The run ends at step {end:,}, before the frozen MixIT's last as the teacher (step {frozen:,}): the "
                "student never learns from its own average. Give --model.teacher_steps as a share of the run, e.g. 0.25"
            )
        super().on_fit_start()

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        mixtures = batch["mixtures"]
        ranks = random.ranks if self.remix_over_ranks else ALONE
        order = random.shuffled_order(len(mixtures), self.student.num_sources, ranks, self.shuffle)
        frozen = self.frozen_teacher is not None and self.steps_made < self.in_steps(self.teacher_steps)
        teacher = self.frozen_teacher if frozen else self.teacher
        estimates = self.teacher_estimates(teacher, mixtures, random)
        remixed = remix_over_ranks(estimates, order, ranks)
        estimates = self.micro_batched(self.student)(remixed.mixtures)
        pit = pit_permutation(estimates, remixed.sources)
        sources = reorder(remixed.sources, pit)
        residual = estimates - sources if self.error is None else torch.stack([estimates, sources], 2)
        return remixing_loss(self.objective, residual, pit, order, ranks, self.reduction).mean()

    @torch.no_grad()
    def teacher_estimates(self, teacher: Separator, mixtures: Tensor, random: BatchRandomness) -> Tensor:
        """``[B,K,*S]`` of ``mixtures [B,*S]``: of a flow, a sample."""
        if isinstance(teacher, FlowSeparator):
            noise = random.normal((len(mixtures), teacher.num_sources, *mixtures.shape[1:]))
            return self.micro_batched(teacher.separate_from)(mixtures, noise)
        return self.micro_batched(teacher)(mixtures)
