"""wsj0-mix as its authors' script writes it: 2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}/ID.wav."""

from __future__ import annotations

import os
from typing import Any, Literal

from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.data.audio import AudioMixtures, Part, check_share, find_folder
from surf_lightning.data.audio_examples import Examples
from surf_lightning.errors import UserError
from surf_lightning.files import files_under

NUM_TEST = 3000
SPLITS: dict[Part, str] = {"train": "tr", "validation": "cv", "test": "tt"}


class WSJ0Mix(AudioMixtures):
    """Mixtures of two or of three speakers of the Wall Street Journal corpus.

    Args:
        root: the folder that holds 2speakers or 3speakers, or one of these.
        speakers: in a mixture (K), 2 or 3.
        version: ``min``, mixtures as long as the shortest utterance, or ``max``.
        single_source_share: of the training mixtures that hold one speaker alone, any of them, for MixIT.
        sample_rate: in Hz: the folder read is wav8k, wav16k, ... by it.
        options: the arguments of ``AudioMixtures``.
    """

    num_sources: int

    def __init__(
        self,
        root: str = "data/wsj0-mix",
        speakers: Literal[2, 3] = 2,
        version: Literal["min", "max"] = "min",
        single_source_share: float = 0.0,
        sample_rate: int = 8000,
        **options: Any,
    ) -> None:
        super().__init__(sample_rate=sample_rate, **options)
        self.root, self.version, self.num_sources = root, version, speakers
        self.single_source_share = check_share("single_source_share", single_source_share)

    def genuine(self) -> bool:
        """Whether the test set has the published number of mixtures."""
        return len(self.examples("test")) == NUM_TEST

    def load(self, part: Part) -> Examples:
        split = SPLITS[part]
        version = f"wav{self.sample_rate // 1000}k/{self.version}"
        places = [version, f"{self.num_sources}speakers/{version}", f"wsj0-mix/{self.num_sources}speakers/{version}"]
        base = find_folder(self.root, places, os.path.join(split, "mix"), f"wsj0-mix's {split}") / split
        count = self.num_sources if part != "train" or self.with_sources else 0
        kinds = ["mix", *(f"s{number + 1}" for number in range(count))]
        names = files_under(base / "mix", EXTENSIONS)
        if not names:
            raise UserError(f"{base / 'mix'} holds no mixtures")
        return self._usable(base, [[os.path.join(kind, name) for kind in kinds] for name in names], count)

    def _test_set(self) -> str:
        return f"wsj0-{self.num_sources}mix's test set ({self.version})"
