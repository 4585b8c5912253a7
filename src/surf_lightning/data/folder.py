"""Any folder of recordings."""

from __future__ import annotations

import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torchmetrics.utilities import rank_zero_warn

from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.data.audio import AudioMixtures, Part
from surf_lightning.data.audio_examples import Examples
from surf_lightning.errors import UserError
from surf_lightning.files import files_under


class Folder(AudioMixtures):
    """Recordings without true sources: all audio files in a folder and its subfolders.

    Whole files are held out to validate on, chosen by a hash of their paths: always the same ones, whatever is added.

    Args:
        root: the folder.
        validation_share: of the files, in (0, 1).
        options: the arguments of ``AudioMixtures``.
    """

    monitor = "val/loss"
    monitor_mode = "min"

    def __init__(self, root: str = "data/recordings", validation_share: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        if not 0 < validation_share < 1:
            raise ValueError(f"validation_share must lie between 0 and 1, not {validation_share}")
        self.root, self.validation_share = root, validation_share

    @cached_property
    def recordings(self) -> Examples:
        """All recordings, indexed."""
        return self._usable(Path(self.root).expanduser(), [[path] for path in self.found()])

    def found(self) -> list[str]:
        """All files named like audio, relative to ``root``; raises UserError where there are none."""
        root = Path(self.root).expanduser()
        paths = files_under(root, EXTENSIONS)
        if not paths:
            kinds = ", ".join(sorted(EXTENSIONS))
            why = f"holds no recordings ({kinds})" if root.is_dir() else "is no folder"
            raise UserError(f"{root} {why}: name the folder of your recordings, --data.root FOLDER")
        return paths

    def load(self, part: Part) -> Examples:
        if part == "test":
            raise UserError(
                f"{self.root} has no true sources to test against: look at its held-out loss by surf validate, or "
                "listen to what surf separate makes of it"
            )
        recordings = self.recordings
        if len(recordings) == 1:
            rank_zero_warn(f"{self.root} holds one recording: it is both trained and validated on")
            return recordings
        held_out = are_held_out(self.hashes(), self.validation_share)
        return recordings.select(held_out == (part == "validation"))

    def hashes(self) -> np.ndarray:
        """A number in [0, 1) of each recording, by its path alone."""
        return path_hashes(self.recordings.files[:, 0].tolist())


def path_hashes(names: list[bytes]) -> np.ndarray:
    """A number in [0, 1) of each path, ``[N]``."""
    paths = (name.replace(os.fsencode(os.sep), b"/") for name in names)
    return np.array([zlib.crc32(path) / 2**32 for path in paths])


def are_held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which of two or more files are validated on, by their ``hashes [N]``: some, but not all."""
    held_out = hashes < share
    return held_out if 0 < held_out.sum() < len(held_out) else hashes == hashes.min()
