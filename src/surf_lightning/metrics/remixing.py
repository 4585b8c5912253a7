"""What the losses of remixing are made of, where the truth is known. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.functional.losses import pit_permutation, with_silence
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.remixing import Remix, unremix


class RemixingTerms(Metric):
    """The terms of Proposition C.2 of the SURF paper, in units of the teacher's squared error, Eq. (62).

    With e the teacher's errors and Δ the student's on remixed estimates, both against the truth, and means over all
    sources, ``compute`` gives

    - ``pseudo_supervised``: |Δ|² / |e|², Eq. (55), what one would like to make small;
    - ``inherited``: <e, Δ> / |e|², the share of the teacher's error that the student repeats. ReMixIT's loss is
      pseudo_supervised + 1 - 2 inherited, Eq. (63): at 1 it sees nothing of the teacher's error;
    - ``coupled``: the mean of <Δ, Δ'> over the other sources of a mixture / |e|². Self-Remixing's loss is
      pseudo_supervised + (K - 1) coupled, Eq. (64): at -pseudo_supervised / (K - 1) errors cancel, and it sees none.

    The inner products are those with δ, the mean of Δ over all backgrounds, in expectation.
    """

    teacher: Tensor
    student: Tensor
    both: Tensor
    mates: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("teacher", "student", "both", "mates"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, teacher: Tensor, student: Tensor, sources: Tensor, remixed: Remix) -> None:
        """Count a batch of true ``sources [B,K,*S]``, each in any order.

        Args:
            teacher: its estimates ``[B,K,*S]`` of ``sources.sum(1)``.
            student: its estimates ``[B,K,*S]`` of ``remixed.mixtures``.
            sources: the truth, of K sources or fewer.
            remixed: what became of ``teacher``.
        """
        sources = with_silence(sources, teacher.shape[1])
        truth = reorder(sources, pit_permutation(teacher, sources))
        found = unremix(reorder(student, pit_permutation(remixed.sources, student)), remixed.order)
        errors, delta = ((estimates - truth).flatten(2).double() for estimates in (teacher, found))
        self.teacher += errors.square().sum()
        self.student += delta.square().sum()
        self.both += (errors * delta).sum()
        self.mates += (delta.sum(1).square().sum() - delta.square().sum()) / max(sources.shape[1] - 1, 1)

    def compute(self) -> dict[str, Tensor]:
        terms = {"pseudo_supervised": self.student, "inherited": self.both, "coupled": self.mates}
        return {name: value / self.teacher for name, value in terms.items()}
