"""Libri2Mix as LibriMix writes it: wav16k/min/{train-360,dev,test}/{mix_clean,s1,s2}/ID.wav and metadata/*.csv."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any

from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.data.audio import AudioMixtures, Part, check_share, find_folder
from surf_lightning.data.audio_examples import Examples
from surf_lightning.errors import UserError
from surf_lightning.files import files_under, read_list

NUM_TEST = 3000
COLUMNS = {"mix_clean": "mixture_path", "s1": "source_1_path", "s2": "source_2_path"}


class Libri2Mix(AudioMixtures):
    """Mixtures of two speakers, ``min`` version.

    A split is what its metadata list or, without metadata, what its mix_clean folder holds. The paths in the metadata
    are those of the machine that made the set: the files of those names in this set's own folders are read.

    Args:
        root: the folder Libri2Mix.
        train_split: train-360 or train-100.
        single_source_share: of the training mixtures that hold one speaker alone, either of the two, for MixIT.
        options: the arguments of ``AudioMixtures``.
    """

    num_sources = 2

    def __init__(
        self,
        root: str = "data/Libri2Mix",
        train_split: str = "train-360",
        single_source_share: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.single_source_share = check_share("single_source_share", single_source_share)
        self.splits: dict[Part, str] = {"train": train_split, "validation": "dev", "test": "test"}

    def genuine(self) -> bool:
        """Whether the test set has the published number of mixtures."""
        return len(self.examples("test")) == NUM_TEST

    def load(self, part: Part) -> Examples:
        split = self.splits[part]
        version = f"wav{self.sample_rate // 1000}k/min"
        places = (version, f"Libri2Mix/{version}")
        base = find_folder(self.root, places, os.path.join(split, "mix_clean"), f"Libri2Mix's {split}")
        kinds = list(COLUMNS) if part != "train" or self.with_sources else ["mix_clean"]
        metadata = base / "metadata" / f"mixture_{split}_mix_clean.csv"
        if metadata.is_file():
            rows = _listed(metadata, kinds)
        else:
            names = files_under(base / split / "mix_clean", EXTENSIONS)
            rows = [[os.path.join(kind, name) for kind in kinds] for name in names]
        if not rows:
            raise UserError(f"{metadata if metadata.is_file() else base / split / 'mix_clean'} lists no mixtures")
        return self._usable(base / split, rows, len(kinds) - 1)


def _listed(metadata: Path, kinds: list[str]) -> list[list[str]]:
    reader = csv.DictReader(read_list(metadata).splitlines(keepends=True))
    try:
        missing = {COLUMNS[kind] for kind in kinds} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{metadata} has no column {', '.join(sorted(missing))}: it is not LibriMix's metadata")
        rows = [[re.split(r"[\\/]", row[COLUMNS[kind]] or "")[-1] for kind in kinds] for row in reader]
    except csv.Error as error:
        raise UserError(f"{metadata}: {error}") from error
    return [[os.path.join(kind, name) for kind, name in zip(kinds, row, strict=True)] for row in rows]
