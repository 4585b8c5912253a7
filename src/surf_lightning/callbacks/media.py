"""What a person can look at while a run trains. Axes: B batch, K sources, C H W."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from surf_lightning.metrics.images import align, to_unit_range

ROWS, ZOOM_TO = 8, 64


def image_grid(mixtures: Tensor, estimates: Tensor, sources: Tensor) -> Tensor:
    """A picture ``[3,H',W']`` in [0,1]: a row a mixture; columns: mixture / K, K estimates, K sources.

    Takes ``mixtures [B,C,H,W]``, ``estimates`` and ``sources [B,K,C,H,W]``, the estimates in any order.
    """
    columns = torch.cat([(mixtures / sources.shape[1]).unsqueeze(1), align(estimates, sources), sources], 1)
    zoom = max(1, ZOOM_TO // mixtures.shape[-1])
    pictures = to_unit_range(columns).flatten(0, 1).repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    return make_grid(pictures, nrow=columns.shape[1], pad_value=0.5)


class ImageGrids(L.Callback):
    """``media/step_<n>.png`` after each validation, sent to the loggers that take images as well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        is_image = pl_module.signal["kind"] == "image"
        if batch_idx or not is_image or not trainer.is_global_zero or outputs is None:
            return
        grid = image_grid(*(x[:ROWS] for x in (batch["mixtures"], outputs, batch["sources"])))
        media = self.folder / "media"
        media.mkdir(parents=True, exist_ok=True)
        save_image(grid, media / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("separated", [grid], step=trainer.global_step)
