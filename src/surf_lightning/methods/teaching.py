"""Teacher and student: what regression remixing and SURF share. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

import copy
import os
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from surf_lightning.callbacks.ema_teacher import EMATeacher
from surf_lightning.checkpoint import KEY, describe, rebuild
from surf_lightning.errors import UserError
from surf_lightning.methods.base import SeparationModule
from surf_lightning.remixing import BatchRandomness, Ranks, Remix, deal, remix
from surf_lightning.separator import RegressionSeparator, Separator, load_separator


class TeacherStudentModule(SeparationModule):
    """A ``student``, the teacher, which is its EMA copy and the ``separator``, and the frozen MixIT ``anchor``.

    Args:
        student: what is trained.
        mixit_checkpoint: a checkpoint of the MixIT stage; read only when a fit starts from the beginning.
        ema_decay: alpha, see ``callbacks.EMATeacher``.
        remix_over_ranks: shuffle the teacher's estimates over the batches of all processes, as if they were one. False:
            each process shuffles its own batch, and exchanges nothing but gradients.
        initialize_from_mixit: begin with the weights of the MixIT network that have a namesake of the same shape in the
            student's, Appendix D.4. For networks of one family, such as ConvTasNet and VelocityConvTasNet.
        trust_checkpoint: allow networks from outside this package, imported by the checkpoint, such as your own.

    The other arguments are those of ``SeparationModule``.
    """

    anchor: RegressionSeparator
    loss_tells_the_best = False  # the teacher moves

    def __init__(
        self,
        student: Separator,
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

    def remix(self, estimates: Tensor, random: BatchRandomness) -> tuple[Remix, Ranks]:
        """Shuffle this rank's teacher ``estimates [B,K,*S]``, Eq. (14)-(15).

        Returns:
            This rank's part of the remixed batch, its ``order`` that of the whole, and the ranks that share it.
        """
        if not self.remix_over_ranks:
            return deal(estimates, random.permutation(len(estimates) * estimates.shape[1])), Ranks()
        whole = remix(random.ranks.gather(estimates), random.generator)
        return Remix(random.ranks.local(whole.sources), random.ranks.local(whole.mixtures), whole.order), random.ranks

    def on_fit_start(self) -> None:
        if not hasattr(self, "anchor"):  # a resumed fit has that of its checkpoint
            self._take_over(self.mixit_checkpoint)
            self.anchor.to(self.device, self.dtype)  # type: ignore[arg-type]
        self.lay_out(self.anchor)
        super().on_fit_start()

    def check_earlier_stage(self) -> None:
        anchor = self._earlier_stage(self.mixit_checkpoint)
        if self.initialize_from_mixit:
            self._shared_weights(anchor)

    def _earlier_stage(self, path: str) -> RegressionSeparator:
        if not os.path.isfile(path):
            raise UserError(
                f"there is no checkpoint {path} of the earlier stage, MixIT. Train it first (surf fit --config "
                "configs/<dataset>_mixit.yaml), or name another by --model.mixit_checkpoint"
            )
        anchor = load_separator(path, trust=self.trust_checkpoint)
        if not isinstance(anchor, RegressionSeparator):
            raise UserError(f"{path} holds a {type(anchor).__name__}: a regression separator such as MixIT is needed")
        return anchor

    def _take_over(self, path: str) -> None:
        anchor = self._earlier_stage(path)
        if anchor.signal != self.signal or anchor.num_sources != self.separator.num_sources:
            raise UserError(
                f"{path} separates {anchor.num_sources} sources of {anchor.signal}, but this run has "
                f"{self.separator.num_sources} sources of {self.signal}"
            )
        self._freeze(anchor)
        if self.initialize_from_mixit:
            weights = self._shared_weights(anchor)
            for separator in (self.student, self.separator):
                separator.network.load_state_dict(weights, strict=False)
            taken = sum(weight.numel() for weight in weights.values())
            total = sum(weight.numel() for weight in self.student.network.state_dict().values())
            rank_zero_info(f"The student begins with {taken / total:.0%} of its weights from MixIT.")

    def _shared_weights(self, anchor: RegressionSeparator) -> dict[str, Tensor]:
        """The weights of the anchor's network that the student's has under the same names in the same shapes."""
        own, theirs = self.student.network.state_dict(), anchor.network.state_dict()
        shared = {name: weight for name, weight in theirs.items() if name in own and own[name].shape == weight.shape}
        if not shared:
            raise UserError(
                "no weight of the MixIT network has a namesake of the same shape in the student's: leave out "
                "model.initialize_from_mixit, or choose networks of one family and width"
            )
        return shared

    def _freeze(self, anchor: RegressionSeparator) -> None:
        self.anchor = anchor.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TeacherStudentModule:
        """Teacher and anchor stay in evaluation mode: their dropout is off."""
        super().train(mode)
        self.separator.eval()
        if hasattr(self, "anchor"):
            self.anchor.eval()
        return self

    def configure_callbacks(self) -> list[Callback]:
        return [self.follower]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["anchor"] = describe(self.anchor)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._freeze(rebuild(checkpoint[KEY]["anchor"], self.trust_checkpoint))
