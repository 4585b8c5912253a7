"""Speech enhancement from noisy speech and noise, without clean speech. Axes: B batch, T samples."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from surf_lightning.data.audio import AudioMixtures, Part
from surf_lightning.data.audio_examples import Examples, RandomCrops
from surf_lightning.data.base import Batches
from surf_lightning.data.folder import SHARE, Folder
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.evaluation import SpeechMetrics, si_sdr_columns, speech_metrics


class Alternating(Dataset[dict[str, Tensor]]):
    """Item i: the mixtures of batch i of two sets in turn, noisy speech at even rows and noise at odd ones."""

    def __init__(self, speech: RandomCrops, noise: RandomCrops) -> None:
        self.speech, self.noise = speech, noise

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        mixtures = torch.stack([each[batch]["mixtures"] for each in (self.speech, self.noise)], 1)
        return {"mixtures": mixtures.flatten(0, 1)}


class WithNoise(Examples):
    """Examples of noisy and clean speech that are read as mixture, speech, and what the two differ in, the noise."""

    def read(self, example: int, start: int = 0, count: int | None = None) -> Tensor:
        noisy, clean = super().read(example, start, count)
        return torch.stack([noisy, clean, noisy - clean])


class Enhancement(Folder):
    """Recordings of noisy speech and recordings of noise, in turn, for MixIT's enhancement (MixIT paper, Section 4.2).

    Which recordings have speech is all that must be known. Where there is clean speech to some test recordings, it
    measures the separator and picks the best checkpoint; training does not look at it.

    Args:
        root: a folder of noisy speech.
        noise_root: a folder of noise.
        clean_root: a folder of the clean speech of every recording in ``root``, under the same names. Then as many
            recordings as are validated on are held out to test on as well.
        validation_share: of the files, in (0, 1).
        sample_rate: in Hz, that all recordings are brought to.
        num_sources: the speech and the noise.
        options: the other arguments of ``Folder``.
    """

    def __init__(
        self,
        root: str = "data/noisy_speech",
        noise_root: str = "data/noise",
        clean_root: str | None = None,
        validation_share: float = SHARE,
        sample_rate: int = 16000,
        num_sources: int = 2,
        **options: Any,
    ) -> None:
        options = {"sample_rate": sample_rate, "num_sources": num_sources, **options}
        super().__init__(root, validation_share, **options)
        if self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size} must be even: half of the batch is noise")
        self.clean_root = clean_root
        self.noise = Folder(noise_root, validation_share, **options)
        if clean_root:
            self.monitor = AudioMixtures.monitor

    @cached_property
    def recordings(self) -> Examples:
        if self.clean_root is None:
            return super().recordings
        root, clean = Path(self.root).expanduser(), Path(self.clean_root).expanduser().absolute()
        found = self._usable(root, [[path, os.fspath(clean / path)] for path in self.found()], num_sources=1)
        return WithNoise(**vars(found))

    def load(self, part: Part) -> Examples:
        if self.clean_root is None:
            return super().load(part)
        hashes, share = self.hashes(), self.validation_share or SHARE
        validation, training = hashes < share, hashes >= 2 * share
        which = {"validation": validation, "train": training, "test": ~(validation | training)}[part]
        if not which.any():
            raise UserError(f"{self.root} has no recordings left for the {part} split: raise data.validation_share")
        return self.recordings.select(which)

    def training_batches(self, ranks: Ranks) -> Batches:
        half = self.batch_size // 2
        speech = RandomCrops(self.trained_on(), self.crop, half, self.seed, ranks)
        return Alternating(speech, RandomCrops(self.noise.examples("train"), self.crop, half, self.seed + 1, ranks))

    def held_out_crops(self, batch_size: int) -> Batches:
        if self.clean_root is not None:
            return super().held_out_crops(batch_size)
        sets = (self.examples("validation"), self.noise.examples("validation"))
        return Alternating(*(RandomCrops(each, self.crop, batch_size // 2) for each in sets))

    def metrics(self) -> Metric:
        return SpeechMetrics(si_sdr_columns())

    def test_metrics(self) -> Metric:
        return SpeechMetrics(speech_metrics(self.sample_rate, self.weights))

    def protocol(self) -> str:
        count = len(self.test_batches())  # type: ignore[arg-type]
        return (
            f"{count:,} whole recordings of {self.root} at {self.sample_rate:,} Hz. The first estimate is scored as "
            "the speech: no order is searched."
        )
