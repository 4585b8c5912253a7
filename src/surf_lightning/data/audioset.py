"""AudioSet: ten-second clips of any sound, without true sources."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from surf_lightning.data.audio import AudioMixtures, Part
from surf_lightning.data.audio_examples import Examples
from surf_lightning.data.base import Batches
from surf_lightning.data.folder import Folder
from surf_lightning.data.fuss import FUSS, LibriSpeechFUSS
from surf_lightning.errors import UserError
from surf_lightning.files import read_list
from surf_lightning.metrics.evaluation import MetricsByNumberOfSources

SMALLEST_PART = 15_000  # clips: AudioSet's balanced part, less the videos that are gone
CLIP = re.compile(r"Y?([A-Za-z0-9_-]{11})(_\d+(\.\d+)?){0,2}")  # <YTID>, Y<YTID>, <YTID>_<start>, <YTID>_<start>_<end>


def youtube_id(path: str) -> str | None:
    """The video that a file is a clip of, by its name; None if that is no name of a clip."""
    match = CLIP.fullmatch(Path(path).stem)
    return match[1] if match else None


def listed_ids(segments: Path) -> set[str]:
    """The videos of a segments CSV: lines of ``YTID, start, end, "labels"``, comments by #. Raises UserError."""
    lines = read_list(segments).splitlines()
    return {line.split(",")[0].strip() for line in lines if line.strip() and not line.startswith("#")}


class AudioSet(Folder):
    """Clips anywhere under ``root``, named <YTID>, Y<YTID>, <YTID>_<start> or <YTID>_<start>_<end>.

    Files of other names are reported and skipped: use ``Folder`` for those. Tests are those of Table 3, as far as
    their sets are given: FUSS and LibriSpeech + FUSS.

    Args:
        root: the folder of the clips.
        segments: a segments CSV: only clips of the videos it lists are used. By default the ``*_train_segments.csv``
            in ``root``, and all clips where there is none.
        fuss_root: as ``root`` of ``FUSS``.
        librispeech_root: as in ``LibriSpeechFUSS``; needs ``fuss_root`` as well.
        sample_rate: in Hz, that all recordings are brought to.
        options: the arguments of ``Folder``.
    """

    def __init__(
        self,
        root: str = "data/AudioSet",
        segments: str | None = None,
        fuss_root: str | None = None,
        librispeech_root: str | None = None,
        sample_rate: int = 16000,
        **options: Any,
    ) -> None:
        super().__init__(root=root, sample_rate=sample_rate, **options)
        if librispeech_root and not fuss_root:
            raise ValueError("librispeech_root needs fuss_root: the speech is mixed with FUSS's backgrounds")
        self.segments, self.fuss_root, self.librispeech_root = segments, fuss_root, librispeech_root

    @cached_property
    def recordings(self) -> Examples:
        clips = self.found()
        root = Path(self.root).expanduser()
        segments = [Path(self.segments)] if self.segments else sorted(root.glob("*_train_segments.csv"))
        if segments:
            listed = set().union(*(listed_ids(path) for path in segments))
            clips = [clip for clip in clips if (name := youtube_id(clip)) is None or name in listed]
            absent = len(listed) - len({youtube_id(clip) for clip in clips} - {None})
            lists = ", ".join(map(os.fspath, segments))
            if absent == len(listed):
                raise UserError(f"none of the {len(listed)} videos of {lists} has a clip in {root}")
            if absent:
                rank_zero_warn(f"{absent} of the {len(listed)} videos of {lists} have no clip in {root}")
        wrong = "wrongly named: neither <YTID> nor <YTID>_<start>_<end>"
        return self._usable(root, [[clip] for clip in clips], name_error=lambda name: "" if youtube_id(name) else wrong)

    @cached_property
    def tests(self) -> list[AudioMixtures]:
        """The sets of Table 3 that are given."""
        options: Any = {name: getattr(self, name) for name in ("sample_rate", "max_bad_share", "weights")}
        tests: list[AudioMixtures] = []
        if self.fuss_root:
            tests.append(FUSS(self.fuss_root, **options))
            if self.librispeech_root:
                tests.append(LibriSpeechFUSS(self.librispeech_root, self.fuss_root, **options))
        return tests

    def load(self, part: Part) -> Examples:
        if part == "test":
            raise UserError(
                "AudioSet has no true sources to test against: name the sets of Table 3, --data.fuss_root FOLDER and "
                "--data.librispeech_root FOLDER"
            )
        return super().load(part)

    def test_batches(self) -> Batches:
        return ConcatDataset([test.test_batches() for test in self.tests]) if self.tests else super().test_batches()

    def test_metrics(self) -> Metric:
        metrics = {str(test.num_sources): test.test_metrics() for test in self.tests}
        return MetricsByNumberOfSources(metrics) if metrics else self.metrics()

    def protocol(self) -> str:
        return " ".join(test.protocol() for test in self.tests)

    def genuine(self) -> bool:
        """Whether there are as many clips as AudioSet's balanced part has, and the test sets are genuine."""
        return len(self.found()) >= SMALLEST_PART and all(test.genuine() for test in self.tests)
