"""How much of its own error a separator would teach itself by remixing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.functional.flow import euler, interpolate, sources_from_velocity
from surf_lightning.functional.losses import pit_permutation
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.functional.remixing import Remix, remix
from surf_lightning.inference.separator import FlowSeparator
from surf_lightning.metrics.remixing import RemixingTerms


class MeasureRemixing(L.Callback):
    """Logs ``metrics.RemixingTerms`` of held-out mixtures with truth, for the separator as its own student.

    As where it begins to teach a stage of remixing, and at the end of SURF, where teacher and student are alike. Only
    by request: ``surf test --config digits_mixit --trainer.callbacks MeasureRemixing``.

    Works for any LightningModule with a ``separator``.

    Args:
        times: of a flow, in [0, 1): the terms of what it is trained on, its estimate of the sources at these times of
            the path to the teacher's, as well (Proposition C.4 of the SURF paper), ``inherited_0.5`` at 0.5.

    Raises:
        ValueError: a time is none.
    """

    def __init__(self, times: Sequence[float] = ()) -> None:
        if not all(0 <= time < 1 for time in times):
            raise ValueError(f"times of a path lie in [0, 1), not {list(times)}")
        self.terms: dict[float | None, RemixingTerms] = {time: RemixingTerms() for time in (None, *times)}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if "sources" not in batch:
            return
        separator = pl_module.separator
        if len(self.terms) > 1 and not isinstance(separator, FlowSeparator):
            raise UserError("MeasureRemixing: only a flow has times")
        generator = torch.Generator(pl_module.device).manual_seed(mix_seed(trainer.global_rank, batch_idx))
        with trainer.precision_plugin.forward_context():
            teacher = separator.separate(batch["mixtures"], generator)
            remixed = remix(teacher, generator)
            students = {time: _student(separator, remixed, time, generator) for time in self.terms}
        for time, terms in self.terms.items():
            terms.to(pl_module.device).update(teacher, students[time], batch["sources"], remixed)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "test")

    def _log(self, pl_module: Any, stage: str) -> None:
        for time, terms in self.terms.items():
            if terms.update_called:
                at = "" if time is None else f"_{time:g}"
                pl_module.log_dict({f"{stage}/{name}{at}": value for name, value in terms.compute().items()})
                terms.reset()


@torch.no_grad()
def _student(separator: Any, remixed: Remix, time: float | None, generator: torch.Generator) -> Tensor:
    """Sources ``[B,K,*S]`` of the remixed mixtures, or x_t + (1 - t) v at ``time`` of a flow's path, lines 9-11."""
    sources, mixtures = remixed.sources, remixed.mixtures
    if time is None:
        return separator.separate(mixtures, generator)
    x0 = separator.prior(mixtures, torch.randn(sources.shape, generator=generator, device=sources.device))
    x1 = reorder(sources, pit_permutation(euler(separator.network, x0, mixtures, 1), sources))
    t = torch.full((len(x0),), time, device=x0.device)
    x_t = interpolate(x0, x1, t)
    return sources_from_velocity(x_t, t, separator.network(x_t, t, mixtures))
