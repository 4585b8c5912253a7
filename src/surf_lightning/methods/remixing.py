"""Teacher and student, and the regression baselines ReMixIT and Self-Remixing. Axes: B batch, K sources, *S signal."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from surf_lightning.callbacks.ema_teacher import EMATeacher
from surf_lightning.errors import UserError
from surf_lightning.functional.losses import Objective, Reduction, mean_square, pit_permutation, remixing_loss
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.randomness import ALONE, BatchRandomness
from surf_lightning.functional.remixing import remix_over_ranks
from surf_lightning.inference.checkpoint import KEY, describe, rebuild
from surf_lightning.inference.separator import RegressionSeparator, Separator, load_separator
from surf_lightning.methods.base import Batch, SeparationModule
from surf_lightning.networks.base import RegressionNetwork

LABELS = {"remixit": "ReMixIT", "self_remixing": "Self-Remixing"}


class TeacherStudentModule(SeparationModule):
    """A ``student``, the ``teacher``, which is its EMA copy and what separates, and the ``frozen_teacher``, MixIT.

    Args:
        student: what is trained.
        objective: ``remixit`` or ``self_remixing``, of ``functional.losses``.
        reduction: what makes one number of a residual.
        mixit_checkpoint: a checkpoint of the MixIT stage; read only when a fit starts from the beginning.
        ema_decay: alpha, see ``callbacks.EMATeacher``.
        remix_over_ranks: shuffle the teacher's estimates over the batches of all processes, as if they were one. False:
            each process shuffles its own batch, and exchanges nothing but gradients.
        initialize_from_mixit: begin with the weights of the MixIT network that have a namesake of the same shape in the
            student's, Appendix D.4. For networks of one family, such as ConvTasNet and VelocityConvTasNet.
        trust_checkpoint: allow networks from outside this package, imported by the checkpoint, such as your own.

    The other arguments are those of ``SeparationModule``.
    """

    frozen_teacher: RegressionSeparator
    family: str
    loss_tells_the_best = False  # the teacher moves

    def __init__(
        self,
        student: Separator,
        objective: Objective,
        reduction: Reduction,
        mixit_checkpoint: str,
        ema_decay: float = 0.999,
        remix_over_ranks: bool = True,
        initialize_from_mixit: bool = False,
        trust_checkpoint: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(copy.deepcopy(student).requires_grad_(False).eval(), **options)
        self.student, self.trust_checkpoint = student, trust_checkpoint
        self.mixit_checkpoint, self.follower = mixit_checkpoint, EMATeacher(ema_decay)
        self.remix_over_ranks, self.initialize_from_mixit = remix_over_ranks, initialize_from_mixit
        self.objective, self.reduction = objective, reduction
        self.label = f"{self.family} ({LABELS[objective]})"

    @property
    def teacher(self) -> Any:
        return self.separator

    def on_fit_start(self) -> None:
        together = self.whole_batch() if self.remix_over_ranks else self.data.batch_size
        if self.objective == "self_remixing" and together == 1:
            rank_zero_warn("Self-Remixing of one mixture has a loss of 0: use a batch_size of at least 2")
        if not hasattr(self, "frozen_teacher"):  # a resumed fit has that of its checkpoint
            self._take_over(self.mixit_checkpoint)
            self.frozen_teacher.to(self.device, self.dtype)  # type: ignore[arg-type]
        self.lay_out(self.frozen_teacher)
        super().on_fit_start()

    def check_earlier_stage(self) -> None:
        frozen_teacher = self._earlier_stage(self.mixit_checkpoint)
        if self.initialize_from_mixit:
            self._shared_weights(frozen_teacher)

    def _earlier_stage(self, path: str) -> RegressionSeparator:
        if not os.path.isfile(path):
            raise UserError(
                f"there is no checkpoint {path} of the earlier stage, MixIT. Train it first (surf fit --config "
                "configs/<dataset>_mixit.yaml), or name another by --model.mixit_checkpoint"
            )
        frozen_teacher = load_separator(path, trust=self.trust_checkpoint)
        if not isinstance(frozen_teacher, RegressionSeparator):
            raise UserError(
                f"{path} holds a {type(frozen_teacher).__name__}: a regression separator such as MixIT is needed"
            )
        return frozen_teacher

    def _take_over(self, path: str) -> None:
        frozen_teacher = self._earlier_stage(path)
        if frozen_teacher.signal != self.signal or frozen_teacher.num_sources != self.separator.num_sources:
            raise UserError(
                f"{path} separates {frozen_teacher.num_sources} sources of {frozen_teacher.signal}, but this run has "
                f"{self.separator.num_sources} sources of {self.signal}"
            )
        self._freeze(frozen_teacher)
        if self.initialize_from_mixit:
            weights = self._shared_weights(frozen_teacher)
            for separator in (self.student, self.separator):
                separator.network.load_state_dict(weights, strict=False)
            taken = sum(weight.numel() for weight in weights.values())
            total = sum(weight.numel() for weight in self.student.network.state_dict().values())
            rank_zero_info(f"The student begins with {taken / total:.0%} of its weights from MixIT.")

    def _shared_weights(self, frozen_teacher: RegressionSeparator) -> dict[str, Tensor]:
        """Weights of the frozen teacher that the student has under the same names in the same shapes."""
        own, theirs = self.student.network.state_dict(), frozen_teacher.network.state_dict()
        shared = {name: weight for name, weight in theirs.items() if name in own and own[name].shape == weight.shape}
        if not shared:
            raise UserError(
                "no weight of the MixIT network has a namesake of the same shape in the student's: leave out "
                "model.initialize_from_mixit, or choose networks of one family and width"
            )
        return shared

    def _freeze(self, frozen_teacher: RegressionSeparator) -> None:
        self.frozen_teacher = frozen_teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TeacherStudentModule:
        """Both teachers stay in evaluation mode: their dropout is off."""
        super().train(mode)
        self.teacher.eval()
        if hasattr(self, "frozen_teacher"):
            self.frozen_teacher.eval()
        return self

    def configure_callbacks(self) -> list[Callback]:
        return [self.follower]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["frozen_teacher"] = describe(self.frozen_teacher)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._freeze(rebuild(checkpoint[KEY]["frozen_teacher"], self.trust_checkpoint))


class Remixing(TeacherStudentModule):
    """A regression student separates remixed estimates of its teacher (Section 2.3).

    Args:
        network: the student; where it has more than K outputs, the K most energetic count.
        objective: ``remixit``, Eq. (16), or ``self_remixing``, Eq. (17).
        reduction: ``mean_square`` (images) or ``log_energy`` (audio) of ``functional.losses``.
        num_sources: sources in a mixture (K).
        teacher_steps: optimizer steps in which the frozen MixIT is the teacher; from then on the student's EMA is.

    The other arguments are those of ``TeacherStudentModule``.
    """

    family = "Regression"

    def __init__(
        self,
        network: RegressionNetwork,
        objective: Objective = "remixit",
        reduction: Reduction = mean_square,
        num_sources: int = 2,
        teacher_steps: int = 200_000,
        **options: Any,
    ) -> None:
        super().__init__(RegressionSeparator(network, num_sources), objective, reduction, **options)
        self.teacher_steps = teacher_steps

    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        mixtures = batch["mixtures"]
        ranks = random.ranks if self.remix_over_ranks else ALONE
        order = random.remix_order(len(mixtures) * self.student.num_sources, ranks)
        teacher = self.frozen_teacher if self.steps_made < self.teacher_steps else self.teacher
        with torch.no_grad():
            estimates = self.micro_batched(teacher)(mixtures)
        remixed = remix_over_ranks(estimates, order, ranks)
        estimates = self.micro_batched(self.student)(remixed.mixtures)
        pit = pit_permutation(estimates, remixed.sources)
        residual = estimates - reorder(remixed.sources, pit)
        return remixing_loss(self.objective, residual, pit, order, ranks, self.reduction).mean()
