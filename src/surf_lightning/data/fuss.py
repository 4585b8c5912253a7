"""FUSS as it is published, and noisy speech to evaluate on: LibriSpeech in its backgrounds. Axes: B K T samples.

{train,validation,eval}_example_list.txt list the files, paths relative to them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.data.audio import AudioMixtures, Part, find_folder
from surf_lightning.data.audio_examples import MAX_DRAWS, Examples, as_batch
from surf_lightning.data.base import Batches
from surf_lightning.errors import UserError
from surf_lightning.files import files_under, is_inside, read_list
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.metrics.audio import is_active
from surf_lightning.metrics.evaluation import AudioMetrics, speech_metrics
from surf_lightning.metrics.fuss import MAX_SOURCES, FUSSMetrics

NUM_EVAL = 1000
SPEECH = "test-clean"
NUM_UTTERANCES = 2620
SNR = (-5.0, 15.0)  # dB
PEAK = 0.99
LISTS: dict[Part, str] = {"train": "train", "validation": "validation", "test": "eval"}


def fuss_folder(root: str, part: Part) -> Path:
    """The folder that holds the list of ``part``: ``root``, or ssdata in it. Raises UserError."""
    contents = f"{LISTS[part]}_example_list.txt"
    option = "--data.root FOLDER (--data.fuss_root FOLDER beside another set)"
    return find_folder(root, ("ssdata", "FUSS/ssdata"), contents, f"FUSS's {LISTS[part]} list", option)


def fuss_rows(folder: Path, part: Part) -> list[list[str]]:
    """A mixture, its background and its foregrounds, by example; paths relative to ``folder``. Raises UserError."""
    path = folder / f"{LISTS[part]}_example_list.txt"
    rows = [line.rstrip("\r").split("\t") for line in read_list(path).split("\n") if line.strip()]
    if not rows:
        raise UserError(f"{path} lists no examples")
    for row in rows:
        if not 2 <= len(row) <= 1 + MAX_SOURCES:
            raise UserError(f"{path} lists {row[0][:200]} with {len(row) - 1} sources: FUSS has 1 to {MAX_SOURCES}")
        if outside := [name for name in row if not is_inside(name)]:
            raise UserError(f"{path} lists {outside[0][:200]}, which lies outside of {folder}")
    return rows


class FUSS(AudioMixtures):
    """Mixtures of one to four sounds of any kind. Sources that are all zero count as none.

    Args:
        root: the folder of the lists, ssdata or ssdata_reverb, or the one that holds ssdata.
        options: the arguments of ``AudioMixtures``.
    """

    monitor = "val/MSi"
    num_sources = MAX_SOURCES

    def __init__(self, root: str = "data/FUSS/ssdata", **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    def load(self, part: Part) -> Examples:
        folder = fuss_folder(self.root, part)
        rows = fuss_rows(folder, part)
        if part == "train" and not self.with_sources:
            return self._usable(folder, [row[:1] for row in rows])
        return self._usable(folder, rows, MAX_SOURCES)

    def metrics(self) -> Metric:
        return AudioMetrics({"fuss": FUSSMetrics()})

    def test_metrics(self) -> Metric:
        return self.metrics()

    def genuine(self) -> bool:
        """Whether the eval list has the published number of mixtures."""
        return len(self.examples("test")) == NUM_EVAL


# -- LibriSpeech + FUSS (SURF paper, Section 5.2) --


def at_snr(speech: Tensor, noise: Tensor, snr: float) -> Tensor:
    """Speech and noise ``[T]``, neither silent, scaled so that their powers differ by ``snr`` dB: ``[2,T]``.

    A common gain brings the highest peak of the two and of their sum to 0.99.
    """
    power = speech.square().mean() / noise.square().mean()
    sources = torch.stack([speech, noise * (power / 10 ** (snr / 10)).sqrt()])
    return sources * (PEAK / torch.cat([sources, sources.sum(0, keepdim=True)]).abs().max())


class NoisySpeech(Dataset[dict[str, Tensor]]):
    """Item j is an utterance in background j, at an SNR uniform in (-5, 15) dB, the same for every run.

    ``mixtures [1,T]``, ``sources [1,2,T]``: speech, noise. T is the length of the shorter of the two; from the longer
    one a stretch is drawn uniformly. A permutation assigns the utterances, so that each is used about equally often.
    """

    def __init__(self, speech: Examples, backgrounds: Examples) -> None:
        self.speech, self.backgrounds = speech, backgrounds
        self.order = torch.randperm(len(speech), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.backgrounds)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(mix_seed(0, item))
        utterance = int(self.order[item % len(self.speech)])
        snr = torch.empty(()).uniform_(*SNR, generator=generator).item()
        count = int(min(self.speech.lengths[utterance], self.backgrounds.lengths[item]))
        for _ in range(MAX_DRAWS):
            voice = _stretch(self.speech, utterance, count, generator)
            noise = _stretch(self.backgrounds, item, count, generator)
            if is_active(torch.stack([voice, noise])).all():
                sources = at_snr(voice, noise, snr)
                return as_batch(torch.cat([sources.sum(0, keepdim=True), sources]).unsqueeze(0))
        raise UserError(f"{self.speech.path(utterance)} or {self.backgrounds.path(item)} is nearly silent throughout")


def _stretch(examples: Examples, example: int, count: int, generator: torch.Generator) -> Tensor:
    starts = int(examples.lengths[example]) - count + 1
    start = int(torch.randint(starts, (), generator=generator))
    return examples.read_for_evaluation(example, start, count)[0]


class LibriSpeechFUSS(AudioMixtures):
    """LibriSpeech's test-clean in the backgrounds of FUSS's eval list. Only for tests; only the speech is scored.

    Args:
        librispeech_root: the folder LibriSpeech.
        fuss_root: as ``root`` of ``FUSS``.
        options: the arguments of ``AudioMixtures``.
    """

    num_sources = 2

    def __init__(
        self, librispeech_root: str = "data/LibriSpeech", fuss_root: str = "data/FUSS/ssdata", **options: Any
    ) -> None:
        super().__init__(**options)
        self.librispeech_root, self.fuss_root = librispeech_root, fuss_root

    def load(self, part: Part) -> Examples:
        raise UserError("LibriSpeech + FUSS is for tests alone: train on another set, and use surf test with this one")

    @cached_property
    def noisy_speech(self) -> NoisySpeech:
        """The whole set, indexed."""
        what, option = f"LibriSpeech's {SPEECH}", "--data.librispeech_root FOLDER"
        base = find_folder(self.librispeech_root, ("LibriSpeech",), SPEECH, what, option)
        utterances = [[path] for path in files_under(base / SPEECH, EXTENSIONS)]
        if not utterances:
            raise UserError(f"{base / SPEECH} holds no recordings")
        folder = fuss_folder(self.fuss_root, "test")
        sources = [source for row in fuss_rows(folder, "test") for source in row]
        backgrounds = [[source] for source in sources if Path(source).name.startswith("background")]
        if not backgrounds:
            raise UserError(f"no source in the eval list of {folder} is named background*")
        return NoisySpeech(self._usable(base / SPEECH, utterances), self._usable(folder, backgrounds))

    def test_batches(self) -> Batches:
        return self.noisy_speech

    def test_metrics(self) -> Metric:
        return AudioMetrics(speech_metrics(self.sample_rate, self.weights), num_scored=1)

    def _test_set(self) -> str:
        return "LibriSpeech's test-clean in the backgrounds of FUSS's eval list, of which only the speech is scored,"

    def genuine(self) -> bool:
        """Whether there are as many utterances and backgrounds as are published."""
        return (len(self.noisy_speech.speech), len(self.noisy_speech.backgrounds)) == (NUM_UTTERANCES, NUM_EVAL)
