"""How a checkpoint file is written, read and removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from surf_lightning.engine.signals import held
from surf_lightning.files import replacing, seal
from surf_lightning.inference.hub import read_trained

SPAWNED = ".temp.ckpt"  # Lightning's name of the file in which processes that it has spawned return their weights
OURS = re.compile(r"last|best|step_\d+")  # names of checkpoints


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames: a kill leaves the old checkpoint or the new one, whole.

    The file's hash lies in it, so that a changed byte is noticed. Reads with ``weights_only=True`` alone. Only
    checkpoints in ``folder``, the run's, are its own to remove.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder.absolute()
        self._written: set[Path] = set()
        self._is_ours = False  # what is loaded lies in the folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(), replacing(target, "w+b") as file:
            try:
                torch.save(checkpoint, file)
                seal(file)
            except RuntimeError as error:  # raised while it closed a file that could not be written
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        self._written.add(target.resolve())

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = True) -> Any:
        if Path(path).name == SPAWNED:
            return super().load_checkpoint(path, map_location, weights_only=True)
        self._is_ours = Path(path).resolve().is_relative_to(self._folder.resolve())
        return {"pytorch-lightning_version": L.__version__, **read_trained(path)}  # an exported folder has none

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file that a ``ModelCheckpoint`` of the user's has outdone.

        Its path may come from the checkpoint that the run goes on from. So it must be one that this process has
        written, or, if that checkpoint is the run's own, lie beside one; and never be a checkpoint of the other
        callbacks, which remove none by this way.
        """
        file = Path(path).resolve()
        beside = self._is_ours and file.parent in {written.parent for written in self._written}
        if (file in self._written or beside) and file.suffix == ".ckpt" and not OURS.fullmatch(file.stem):
            file.unlink(missing_ok=True)
