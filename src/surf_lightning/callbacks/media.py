"""Examples to look at and listen to while a run trains. Axes: B batch, K sources, C H W, T samples."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import soundfile
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchvision.utils import make_grid, save_image

from surf_lightning.audio.band import DYNAMIC_RANGE, log_spectrogram
from surf_lightning.data.base import undeclared
from surf_lightning.files import replacing
from surf_lightning.metrics.audio import align_by_si_sdr
from surf_lightning.metrics.images import align_by_mse, to_unit_range

ROWS, CLIPS = 8, 2  # mixtures of images, of audio, that are kept
ZOOM_TO = 64  # pixels


def image_grid(mixtures: Tensor, estimates: Tensor, sources: Tensor) -> Tensor:
    """A picture ``[3,H',W']`` in [0,1]: a row a mixture; columns: mixture / K, K estimates, K sources.

    Takes ``mixtures [B,C,H,W]``, ``estimates`` and ``sources [B,K,C,H,W]``, the estimates in any order.
    """
    columns = torch.cat([(mixtures / sources.shape[1]).unsqueeze(1), align_by_mse(estimates, sources), sources], 1)
    zoom = max(1, ZOOM_TO // mixtures.shape[-1])
    pictures = to_unit_range(columns).flatten(0, 1).repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    return make_grid(pictures, nrow=columns.shape[1], pad_value=0.5)


def spectrogram_grid(signals: Tensor) -> Tensor:
    """A picture ``[3,H',W']`` in [0,1] of ``signals [N,T]``, one below the other, their levels comparable."""
    levels = log_spectrogram(signals)
    pictures = ((levels - levels.max()) / DYNAMIC_RANGE + 1).clamp(0, 1).flip(1).unsqueeze(1)
    return make_grid(pictures, nrow=1, pad_value=0.5)


def named_signals(mixture: Tensor, estimates: Tensor, sources: Tensor | None) -> dict[str, Tensor]:
    """``mixture [T]``, ``sources [K,T]`` that are not zero, and ``estimates [M,T]`` in their order, by name."""
    named = {"mixture": mixture}
    if sources is not None:
        active = sources[sources.square().sum(1) > 0]
        named |= {f"reference{k + 1}": source for k, source in enumerate(active)}
        estimates = align_by_si_sdr(estimates[None], active[None])[0]
    return named | {f"estimate{k + 1}": estimate for k, estimate in enumerate(estimates)}


def send_to_all(loggers: Iterable[Logger], send: Callable[..., None], *args: Any) -> None:
    """Call ``send(logger, *args)``, whose failure ends no training: a server may be gone, its folder's disk full."""
    for logger in loggers:
        try:
            send(logger, *args)
        except Exception as error:
            rank_zero_warn(f"{type(logger).__name__} has failed ({error}). The training goes on without it.")


def send_image(logger: Logger, title: str, picture: Tensor, step: int) -> None:
    """``picture [3,H,W]`` in [0,1] to W&B, TensorBoard or MLflow."""
    if hasattr(logger, "log_image"):
        logger.log_image(title, [picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(title, picture, step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture.movedim(0, -1).numpy(), key=title, step=step)


def send_audio(logger: Logger, title: str, signal: Tensor, rate: int, path: Path, step: int) -> None:
    """``signal [T]``, which lies in the file ``path``, to W&B, TensorBoard or MLflow."""
    if hasattr(logger, "log_audio"):
        logger.log_audio(title, [signal.numpy()], step=step, sample_rate=[rate])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_audio(title, signal[None].clamp(-1, 1), step, rate)
    elif isinstance(logger, MLFlowLogger) and path.is_file():
        logger.experiment.log_artifact(logger.run_id, str(path), title.partition("/")[0])


class Media(L.Callback):
    """Writes ``media/step_<n>*`` after each validation, and sends it to the loggers that take images or audio.

    Images: a grid of mixtures, estimates and truth. Audio: the mixture, its estimates and, where there are any, its
    references as wav files, and their spectrograms in that order. What cannot be written, on a full disk, is said and
    left out: the training goes on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "media"

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        is_image = pl_module.signal["kind"] == "image"
        unseen = batch_idx or not trainer.is_global_zero or undeclared(trainer).fast_dev_run
        if unseen or (is_image and ("sources" not in batch or batch["mixtures"].shape[1] not in (1, 3))):
            return
        if is_image:
            grid = image_grid(*(x[:ROWS] for x in (batch["mixtures"], outputs, batch["sources"])))
            self._picture(trainer, "separated", "", grid)
            return
        mixtures = batch["mixtures"][:CLIPS]
        estimates = pl_module.separate(mixtures, batch_idx) if outputs is None else outputs[:CLIPS]
        for number, (mixture, found) in enumerate(zip(mixtures, estimates, strict=True)):
            truth = batch["sources"][number] if "sources" in batch else None
            self._audio(trainer, number, named_signals(mixture, found, truth), pl_module.signal["sample_rate"])

    def _audio(self, trainer: L.Trainer, number: int, signals: dict[str, Tensor], rate: int) -> None:
        for name, signal in signals.items():
            file = io.BytesIO()
            soundfile.write(file, signal.float().cpu().numpy(), rate, subtype="FLOAT", format="WAV")
            path = self.folder / f"step_{trainer.global_step:07d}_{number + 1}_{name}.wav"
            self._write(path, file.getvalue())
            title, clip = f"audio{number + 1}/{name}", signal.float().cpu()
            send_to_all(trainer.loggers, send_audio, title, clip, rate, path, trainer.global_step)
        grid = spectrogram_grid(torch.stack(list(signals.values())))
        self._picture(trainer, f"spectrograms{number + 1}", f"_{number + 1}", grid)

    def _picture(self, trainer: L.Trainer, title: str, suffix: str, grid: Tensor) -> None:
        file = io.BytesIO()
        save_image(grid, file, format="png")
        self._write(self.folder / f"step_{trainer.global_step:07d}{suffix}.png", file.getvalue())
        send_to_all(trainer.loggers, send_image, title, grid.float().cpu(), trainer.global_step)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(content)
        except OSError as error:
            rank_zero_warn(f"{path} is left out: {error.strerror}")
