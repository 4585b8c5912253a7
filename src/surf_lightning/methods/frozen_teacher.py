"""A training stage that learns from the frozen model of an earlier stage."""

from __future__ import annotations

import inspect
import os
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import KEY, build, checkpoints_near, describe, weights_of
from surf_lightning.inference.separator import Separator, load_separator
from surf_lightning.methods.base import SeparationModule
from surf_lightning.methods.beginnings import begin_with, shared_weights


class FrozenTeacherModule(SeparationModule):
    """Holds the ``frozen_teacher``, which its checkpoints hold as well: a resumed run needs no other file.

    Args:
        separator: what is trained.
        earlier_checkpoint: of the earlier stage; read only when a fit starts from the beginning. None: there is none.
        initialize: begin with those of its weights that have a namesake of the same shape in the separator's network.
        trust_checkpoint: allow networks from outside this package, imported by the checkpoint, such as your own.

    The other arguments are those of ``SeparationModule``.
    """

    frozen_teacher: Any
    teacher_kind: type = Separator
    needed = "a separator"
    earlier_stage, checkpoint_argument = "MixIT", "mixit_checkpoint"

    def __init__(
        self,
        separator: Separator,
        earlier_checkpoint: str | None,
        initialize: bool,
        trust_checkpoint: bool,
        **options: Any,
    ) -> None:
        super().__init__(separator, **options)
        self.frozen_teacher = None
        self.earlier_checkpoint = earlier_checkpoint
        self.initialize, self.trust_checkpoint = initialize, trust_checkpoint

    def on_fit_start(self) -> None:
        if self.earlier_checkpoint is None:
            rank_zero_info(f"No {self.checkpoint_argument} is given: the untrained EMA teaches from the beginning.")
        if self.frozen_teacher is None and self.earlier_checkpoint is not None:  # a resumed fit has its checkpoint's
            self._take_over(self._read_earlier_stage(self.earlier_checkpoint))
        if self.frozen_teacher is not None:
            self.frozen_teacher.to(self.device, self.dtype)
            self.lay_out(self.frozen_teacher)
        super().on_fit_start()

    def check_earlier_stage(self) -> None:
        super().check_earlier_stage()
        if self.earlier_checkpoint is not None:
            frozen_teacher = self._read_earlier_stage(self.earlier_checkpoint)
            if self.initialize:
                shared_weights(self.separator, frozen_teacher, f"the {self.earlier_stage} network")

    def _read_earlier_stage(self, path: str) -> Separator:
        stage = self.earlier_stage
        if path.endswith(".ckpt") and not os.path.isfile(path):
            near = checkpoints_near(path) or "."
            raise UserError(
                f"there is no checkpoint {path} of the earlier stage, {stage}{near} Train it first (surf fit --config "
                f"<dataset>_{stage.lower()}), or name another by --model.{self.checkpoint_argument}"
            )
        frozen_teacher = load_separator(path, trust=self.trust_checkpoint)
        if not isinstance(frozen_teacher, self.teacher_kind):
            raise UserError(f"{path} holds a {type(frozen_teacher).__name__}: {self.needed} is needed")
        return frozen_teacher

    def _take_over(self, frozen_teacher: Separator) -> None:
        theirs, own = ({**signal, "values": None} for signal in (frozen_teacher.signal, self.signal))  # scaled alike
        if theirs != own or frozen_teacher.num_sources != self.separator.num_sources:
            raise UserError(
                f"{self.earlier_checkpoint} separates {_in_words(frozen_teacher.signal, frozen_teacher.num_sources)}, "
                f"this run {_in_words(self.signal, self.separator.num_sources)}: give "
                f"{self._flags(frozen_teacher)}, or another --model.{self.checkpoint_argument}"
            )
        self._freeze(frozen_teacher)
        if self.initialize:
            begin_with((self.trained, self.separator), frozen_teacher, f"the {self.earlier_stage} network")

    def _flags(self, frozen_teacher: Separator) -> str:
        """The options that bring this run to what the earlier stage separates."""
        sources, signal, flags = frozen_teacher.num_sources, frozen_teacher.signal, []
        if sources != self.separator.num_sources:
            part = "data" if "num_sources" in inspect.signature(type(self.data)).parameters else "model.network"
            flags.append(f"--{part}.num_sources {sources}")
        if "sample_rate" in signal and signal["sample_rate"] != self.signal.get("sample_rate"):
            flags.append(f"--data.sample_rate {signal['sample_rate']}")
        return " ".join(flags) or "--data of the same kind"

    def _freeze(self, frozen_teacher: Separator) -> None:
        self.frozen_teacher = frozen_teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenTeacherModule:
        """The frozen teacher stays in evaluation mode: its dropout is off."""
        super().train(mode)
        if self.frozen_teacher is not None:
            self.frozen_teacher.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.frozen_teacher is not None:
            checkpoint[KEY]["frozen_teacher"] = describe(self.frozen_teacher)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not self.strict_loading:
            return
        record = checkpoint[KEY].get("frozen_teacher")
        if (record is None) != (self.earlier_checkpoint is None):
            raise UserError(
                f"the checkpoint was written with{'out' if record is None else ''} an earlier stage, this run has "
                f"{self.earlier_checkpoint or 'none'} (model.{self.checkpoint_argument})"
            )
        if record is not None:
            self._freeze(build(record, weights_of(checkpoint, "frozen_teacher."), self.trust_checkpoint))


def _in_words(signal: dict[str, Any], sources: int) -> str:
    where = f"images of {signal['shape']}" if signal["kind"] == "image" else f"sounds at {signal['sample_rate']:,} Hz"
    return f"{sources} sources in {where}"
