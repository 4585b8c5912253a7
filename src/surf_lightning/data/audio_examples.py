"""Mixtures on disk, and an endless stream of random crops. Axes: N examples, B batch, K sources, T samples."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from surf_lightning.audio.files import BadAudio, Resampler, read_crop
from surf_lightning.audio.index import SILENT, Examined, index_audio, most_skipped, report_skipped
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks, mix_seed
from surf_lightning.metrics.audio import is_active

MAX_DRAWS = 100  # for one crop: if all are silent, something is wrong with the set
NOTHING = b""  # in place of the name of a source that does not exist or is silent


@dataclass(frozen=True)
class Readable(ABC):
    """What crops are drawn from: N mixtures, each read by its number.

    What is known of each mixture is kept in arrays: workers share their memory, but would copy lists of millions.
    """

    root: str | Path
    lengths: np.ndarray
    """``[N]`` samples at ``sample_rate``."""
    failures_left: int
    """How many more may turn out unusable before it is an error."""
    columns: ClassVar[tuple[str, ...]]
    """The arrays of N."""

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, which: np.ndarray) -> Self:
        """Those of a mask ``[N]``, or of a list of numbers."""
        return replace(self, **{name: getattr(self, name)[which] for name in self.columns})

    @abstractmethod
    def path(self, example: int) -> str:
        """Where a mixture is, for messages."""

    @abstractmethod
    def read(self, example: int, start: int = 0, count: int | None = None) -> Tensor:
        """Mixture and sources ``[1+K,T]``: ``count`` samples from ``start`` on, or all; those beyond the end are 0.

        Raises:
            BadAudio: they cannot be read; names the file.
        """

    def read_for_evaluation(self, example: int, start: int = 0, count: int | None = None) -> Tensor:
        """As ``read``; raises UserError, for an evaluation leaves no example out."""
        try:
            return self.read(example, start, count)
        except BadAudio as error:
            raise UserError(f"an evaluation leaves no example out, but {error}") from error


@dataclass(frozen=True)
class Examples(Readable):
    """The usable mixtures of a set, each with its sources where they are known."""

    files: np.ndarray
    """``[N,1+K]``: the path of the mixture, relative to ``root``, and those of its sources."""
    sample_rate: int
    columns = ("files", "lengths")

    def path(self, example: int, part: int = 0) -> str:
        """The file of an example's mixture, or that of its source ``part - 1``."""
        return os.path.join(self.root, os.fsdecode(self.files[example, part]))

    def read(self, example: int, start: int = 0, count: int | None = None) -> Tensor:
        left = int(self.lengths[example]) - start
        count = left if count is None else count
        signals = torch.zeros(self.files.shape[1], count)
        for part, name in enumerate(self.files[example]):
            if name == NOTHING:
                continue
            path = self.path(example, part)
            try:
                signal = read_crop(path, start, count, self.sample_rate)
                if len(signal) < min(left, count):
                    raise BadAudio("it ends sooner than when it was indexed")
            except BadAudio as error:
                raise BadAudio(f"{path}: {error}") from error
            signals[part, : len(signal)] = signal
        return signals


def usable_examples(
    root: Path,
    rows: Sequence[Sequence[str]],
    num_sources: int,
    sample_rate: int,
    max_bad_share: float,
    name_error: Callable[[str], str] = lambda path: "",
) -> Examples:
    """Index the files of a set, report the bad ones and drop the examples that need them.

    A source may be silent, a mixture may not.

    Args:
        root: the folder of the set.
        rows: for each example the file of its mixture, then those of any sources (up to ``num_sources``) in ``root``.
        num_sources: K.
        sample_rate: in Hz, of what is read.
        max_bad_share: of the examples.
        name_error: the reason why a mixture of this name cannot be used, or "".

    Raises:
        UserError: too many of the examples are bad.
    """
    paths = list(dict.fromkeys(path for row in rows for path in row))
    index = dict(zip(paths, index_audio(root, paths), strict=True))
    reasons: dict[str, str] = {}
    good = []
    for row in rows:
        faults = _faults(row, index, name_error(row[0]))
        if not faults:
            good.append(row)
        reasons |= faults

    num_bad = len(rows) - len(good)
    if reasons:
        skipped = f"bad files: {len(reasons)}; examples skipped for them"
        report_skipped(root, reasons, skipped, num_bad, len(rows), max_bad_share)
    files = [[row[0], *(source for source in row[1:] if index[source].reason != SILENT)] for row in good]
    names = np.array([[os.fsencode(name) for name in row] + [NOTHING] * (1 + num_sources - len(row)) for row in files])
    mixtures = (index[row[0]] for row in good)
    lengths = np.array([Resampler(mixture.rate, sample_rate).length(mixture.frames) for mixture in mixtures])
    return Examples(root, lengths, most_skipped(max_bad_share, len(rows)) - num_bad, names, sample_rate)


def _faults(row: Sequence[str], index: dict[str, Examined], name_error: str) -> dict[str, str]:
    """Why an example cannot be used, by file."""
    mixture, *sources = row
    faults = {path: index[path].reason for path in row if index[path].reason}
    faults = {path: reason for path, reason in faults.items() if path == mixture or reason != SILENT}
    if faults:
        return faults
    size = index[mixture][2:4]
    if name_error:
        return {mixture: name_error}
    unlike = [source for source in sources if not index[source].reason and index[source][2:4] != size]
    return {source: f"{index[source][2:4]} (frames, Hz) against {size} of its mixture" for source in unlike}


def as_batch(signals: Tensor) -> dict[str, Tensor]:
    """``[B,1+K,T]`` as ``mixtures [B,T]`` and, where K > 0, ``sources [B,K,T]``."""
    batch = {"mixtures": signals[:, 0].contiguous()}
    return batch | {"sources": signals[:, 1:].contiguous()} if signals.shape[1] > 1 else batch


def num_crops(examples: Readable, crop: int) -> np.ndarray:
    """How many crops of ``crop`` samples each example is long, one at least, ``[N]``."""
    return np.rint(examples.lengths / crop).astype(np.int64).clip(1)


class RandomCrops(Dataset[dict[str, Tensor]]):
    """Item i is training batch i: this rank's rows of random crops of ``crop`` samples, ``mixtures [B,T]``.

    Crop number p of the run is a function of (seed, p). A round through the set visits the examples in a new order,
    each as often as its length in crops, at least once: all seconds of audio count alike. Each visit starts at a random
    sample. A crop that is silent or cannot be read is replaced by another, drawn with the same seed; a file is reported
    the first time it fails. Of a share ``single_source_share`` of the crops one source is left, which is the mixture:
    the "1-or-2-source" mixtures of the MixIT paper, Section 4.1.
    """

    def __init__(
        self,
        examples: Readable,
        crop: int,
        batch_size: int,
        seed: int = 0,
        ranks: Ranks | None = None,
        single_source_share: float = 0.0,
    ) -> None:
        self.examples, self.crop, self.batch_size = examples, crop, batch_size
        self.seed, self.ranks, self.single_source_share = seed, ranks or Ranks(), single_source_share
        self.visits = np.repeat(np.arange(len(examples), dtype=np.int32), num_crops(examples, crop))
        self.failed = torch.zeros(len(examples), dtype=torch.bool).share_memory_()  # known to all workers
        self._round, self._order = -1, torch.empty(0)

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        first = (batch * self.ranks.world_size + self.ranks.rank) * self.batch_size
        return as_batch(torch.stack([self.draw(first + row) for row in range(self.batch_size)]))

    def names(self, batch: int, row: int) -> str:
        """The file behind row ``row`` of this rank's training batch ``batch``."""
        first = (batch * self.ranks.world_size + self.ranks.rank) * self.batch_size
        return self.examples.path(self._drawn(first + row)[0])

    def draw(self, position: int) -> Tensor:
        """Crop number ``position``, ``[1+K,T]``; raises UserError where too many are silent or cannot be read."""
        return self._drawn(position)[1]

    def _drawn(self, position: int) -> tuple[int, Tensor]:
        """An example's number, and the crop of it."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, position))
        example = self._visited(position)
        for _ in range(MAX_DRAWS):
            starts = max(int(self.examples.lengths[example]) - self.crop, 0) + 1
            start = int(torch.randint(starts, (), generator=generator))
            try:
                signals = self._perhaps_alone(self.examples.read(example, start, self.crop), generator)
                if is_active(signals[0]):
                    return example, signals
            except BadAudio as error:
                self._report(example, error)
            example = self._instead(position, generator)
        raise UserError(f"{MAX_DRAWS} random crops in a row of {self.examples.root} are silent or cannot be read")

    def _perhaps_alone(self, signals: Tensor, generator: torch.Generator) -> Tensor:
        """``signals [1+K,T]``, or one of the K sources as the mixture and its first source, the others being 0."""
        if not self.single_source_share or torch.rand((), generator=generator) >= self.single_source_share:
            return signals
        alone = torch.zeros_like(signals)
        alone[:2] = signals[1 + int(torch.randint(len(signals) - 1, (), generator=generator))]
        return alone

    def _visited(self, position: int) -> int:
        number, place = divmod(position, len(self.visits))
        if number != self._round:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, number, 1))
            self._round, self._order = number, torch.randperm(len(self.visits), generator=generator)
        return int(self.visits[int(self._order[place])])

    def _instead(self, position: int, generator: torch.Generator) -> int:
        """Another example for crop number ``position``."""
        return int(self.visits[int(torch.randint(len(self.visits), (), generator=generator))])

    def _report(self, example: int, error: BadAudio) -> None:
        if not self.failed[example]:
            self.failed[example] = True
            warnings.warn(f"{error}. Other crops replace those of this file.", stacklevel=2)
        if int(self.failed.sum()) > self.examples.failures_left:
            raise UserError(
                f"{int(self.failed.sum())} files of {self.examples.root} that were good when they were indexed cannot "
                f"be read now, which is more than data.max_bad_share allows. The last: {error}"
            )


class BesideSupervised(Dataset[dict[str, Tensor]]):
    """Item i: batch i of a set's own crops and, as ``supervised_mixtures`` and ``supervised_sources``, of another's."""

    def __init__(self, own: RandomCrops, supervised: RandomCrops) -> None:
        self.own, self.supervised = own, supervised

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        return self.own[batch] | {f"supervised_{name}": each for name, each in self.supervised[batch].items()}

    def names(self, batch: int, row: int) -> str:
        """The files of which one is behind this row, as of ``RandomCrops``: which one, the method draws."""
        return f"{self.own.names(batch, row)} or {self.supervised.names(batch, row)}"


class WholeExamples(Dataset[dict[str, Tensor]]):
    """Item j is example j from beginning to end: ``mixtures [1,T]``, ``sources [1,K,T]``."""

    def __init__(self, examples: Readable) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, example: int) -> dict[str, Tensor]:
        return as_batch(self.examples.read_for_evaluation(example).unsqueeze(0))
