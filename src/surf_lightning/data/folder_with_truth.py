"""Any folder of mixtures whose true sources lie beside them: mix/, s1/, s2/, ..."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.data.audio import Part
from surf_lightning.data.audio_examples import Examples
from surf_lightning.data.folder import SHARE, Folder
from surf_lightning.errors import UserError
from surf_lightning.files import files_under

MIXTURES = "mix"
PARTS: tuple[Part, ...] = ("train", "validation", "test")


class FolderWithTruth(Folder):
    """Mixtures in ``mix/`` and, by the same names, their true sources in ``s1/``, ``s2/``, ...

    These folders lie in ``train/``, ``validation/`` and ``test/`` of ``root``, of which each command needs its own: a
    ``test/`` is enough to score a separator. Where they lie in ``root`` itself, a tenth of the mixtures is held out to
    validate and another tenth to test on, chosen by a hash of their names.

    Args:
        root: the folder.
        num_sources: sources in a mixture (K); by default as many as there are folders of sources.
        with_sources: training batches hold the sources, cropped alike: for supervised methods.
        options: the arguments of ``Folder``; ``validation_share`` has no effect.
    """

    monitor = "val/si_sdri"

    def __init__(
        self,
        root: str = "data/mixtures",
        num_sources: int | None = None,
        with_sources: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        self.with_sources = with_sources
        found = max((len(sources_in(folder)) for folder in self._folders()), default=0)
        self.num_sources = num_sources or found or None

    def _folders(self) -> list[Path]:
        """Those that hold ``mix/``."""
        folders = [self._folder, *(self._folder / part for part in PARTS)]
        return [folder for folder in folders if (folder / MIXTURES).is_dir()]

    def mixtures(self) -> list[str]:
        found = []
        for folder in self._folders():
            inside = (folder / MIXTURES).relative_to(self._folder)
            found += [os.path.join(inside, name) for name in files_under(self._folder / inside, EXTENSIONS)]
        return found

    def load(self, part: Part) -> Examples:
        folder = self._folder / part if (self._folder / part / MIXTURES).is_dir() else self._folder
        names = files_under(folder / MIXTURES, EXTENSIONS)
        sources = sources_in(folder)
        if not names or not sources:
            raise UserError(
                f"there are no mixtures with their sources in {self._folder / part}: put them into mix/ and, by the "
                f"same names, into s1/, s2/, ... there, or in {self._folder} (--data.root FOLDER)"
            )
        if folder == self._folder:
            names = _share(names, part, self._folder)
        kinds = [MIXTURES, *(sources if part != "train" or self.with_sources else [])]
        return self._usable(folder, [[os.path.join(kind, name) for kind in kinds] for name in names], len(kinds) - 1)


def sources_in(folder: Path) -> list[str]:
    """The names of its folders of sources, in order."""
    names = [path.name for path in folder.glob("s*") if re.fullmatch(r"s\d+", path.name) and path.is_dir()]
    return sorted(names, key=lambda name: int(name[1:]))


def _share(names: list[str], part: Part, folder: Path) -> list[str]:
    """The mixtures of ``part``: a tenth to validate, the next to test, the others to train, in the order of hashes."""
    count = max(1, round(SHARE * len(names)))
    if len(names) < 3:
        raise UserError(f"{folder} holds {len(names)} mixtures: to train, validate and test on them takes 3 at least")
    order = np.argsort([zlib.crc32(os.fsencode(name)) for name in names], kind="stable").tolist()
    chosen = {"validation": order[:count], "test": order[count : 2 * count], "train": order[2 * count :]}[part]
    return [names[number] for number in sorted(chosen)]
