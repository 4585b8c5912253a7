"""SC09Mix: pairs of spoken digits of the Speech Commands data set (Karamatlı and Kırbız, 2022). Axes: T samples."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.audio.files import EXTENSIONS, BadAudio, read_crop
from surf_lightning.data.audio import AudioMixtures, Part, find_folder
from surf_lightning.data.audio_examples import NOTHING, Examples
from surf_lightning.errors import UserError
from surf_lightning.files import files_under

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}  # what neither lists is to train on
NUM_MIXTURES = {"train": 15_000, "validation": 5_000, "test": 5_000}
NUM_TEST_UTTERANCES = 4107  # of digits, in version 2 of Speech Commands
PLACES = ("speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02")


class SpokenPairs(Examples):
    """Examples whose mixtures are on no disk: sums of utterances, each standardised.

    ``files [N,3]``: nothing in place of the mixture, then the two utterances.
    """

    def read(self, example: int, start: int = 0, count: int | None = None) -> Tensor:
        sources = torch.stack([self._utterance(example, part) for part in (1, 2)])
        signals = torch.cat([sources.sum(0, keepdim=True), sources])[:, start:]
        return signals if count is None else F.pad(signals, (0, count - signals.shape[1]))

    def _utterance(self, example: int, part: int) -> Tensor:
        """A second ``[T]`` of zero mean and unit variance; what is shorter lies in the middle of silence."""
        path, second = self.path(example, part), self.sample_rate
        try:
            signal = read_crop(path, 0, second, self.sample_rate)
        except BadAudio as error:
            raise BadAudio(f"{path}: {error}") from error
        before = (second - len(signal)) // 2
        signal = F.pad(signal, (before, second - len(signal) - before))
        return (signal - signal.mean()) / signal.std()


class SC09Mix(AudioMixtures):
    """15,000 mixtures of two spoken digits to train on, 5,000 to validate and 5,000 to test on, a second each.

    The utterances of a split, of the lists that come with Speech Commands, are dealt to its mixtures in random order,
    again and again as often as needed; always alike.

    Args:
        root: the folder of Speech Commands, unpacked: zero/*.wav, ..., validation_list.txt, testing_list.txt.
        sample_rate: in Hz.
        crop_seconds: length of a crop.
        options: the arguments of ``AudioMixtures``.
    """

    num_sources = 2

    def __init__(
        self, root: str = "data/SpeechCommands", sample_rate: int = 8000, crop_seconds: float = 1.0, **options: Any
    ) -> None:
        super().__init__(sample_rate=sample_rate, crop_seconds=crop_seconds, **options)
        self.root = root

    @cached_property
    def folder(self) -> Path:
        """Of the lists."""
        return find_folder(self.root, PLACES, LISTS["test"], "Speech Commands")

    def utterances(self, part: Part) -> list[str]:
        """Those of digits in the split ``part``, relative to ``folder``; raises UserError where there are none."""
        lists = {name: set((self.folder / file).read_text().split()) for name, file in LISTS.items()}
        found = [f"{digit}/{name}" for digit in DIGITS for name in files_under(self.folder / digit, EXTENSIONS)]
        held_out = set().union(*lists.values())
        chosen = [path for path in found if (path in lists[part] if part in lists else path not in held_out)]
        if not chosen:
            raise UserError(f"{self.folder} holds no digits to {part} on: {DIGITS[0]}/*.wav and so on are missing")
        return chosen

    def load(self, part: Part) -> Examples:
        good = self._usable(self.folder, [[path] for path in self.utterances(part)])
        number = list(NUM_MIXTURES).index(part)
        pairs = dealt(len(good), NUM_MIXTURES[part], torch.Generator().manual_seed(number))
        nothing = np.full((len(pairs), 1), NOTHING, good.files.dtype)
        files = np.concatenate([nothing, good.files[pairs.numpy(), 0]], 1)
        lengths = np.full(len(files), self.sample_rate)
        return SpokenPairs(good.root, lengths, good.failures_left, files, self.sample_rate)

    def test_metrics(self) -> Metric:
        return self.metrics()

    def genuine(self) -> bool:
        """Whether there are as many utterances to test on as version 2 has."""
        return len(self.utterances("test")) == NUM_TEST_UTTERANCES


def dealt(population: int, pairs: int, generator: torch.Generator) -> Tensor:
    """``[pairs,2]`` of numbers below ``population``: random orders of them all, one after another."""
    rounds = -(-2 * pairs // population)
    orders = [torch.randperm(population, generator=generator) for _ in range(rounds)]
    return torch.cat(orders)[: 2 * pairs].view(-1, 2)
