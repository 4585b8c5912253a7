"""Mixtures of any kind: a folder of arrays or images of one shape. Axes: N items, B batch, K sources, C H W."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric
from tqdm import tqdm

from surf_lightning.audio.index import BAR_DELAY, report_skipped
from surf_lightning.data.audio import Part, check_share
from surf_lightning.data.base import Batches, SeparationData
from surf_lightning.errors import UserError
from surf_lightning.files import files_under
from surf_lightning.functional.randomness import Ranks, mix_seed
from surf_lightning.inference.array_files import ARRAYS, AVERAGES, is_average, read_array
from surf_lightning.metrics.evaluation import ArrayMetrics, si_sdr_columns
from surf_lightning.metrics.images import ImageMetrics


class Scale(NamedTuple):
    """Maps a file's values to those of the networks, whose sources lie in about [-1, 1] and sum to their mixture."""

    center: float
    half: float
    num_sources: int

    def mixture(self, values: Tensor) -> Tensor:
        """Of a mixture's file, the sum of K sources or their average alike."""
        return self.num_sources * (values - self.center) / self.half

    def source(self, values: Tensor, average: bool) -> Tensor:
        """Of a source's file, where the mixture's holds the ``average`` of the sources, or else their sum."""
        return ((1 if average else self.num_sources) * values - self.center) / self.half


class Files(NamedTuple):
    """The usable items: names relative to each folder, the mixtures' first; their shape ``[C,H,W]``."""

    folders: list[Path]
    names: list[str]
    shape: list[int]
    statistics: list[tuple[float, ...]]
    """Of each mixture: lowest and highest value, mean, mean square."""


class ArrayBatches(Dataset[dict[str, Tensor]]):
    """Item i is training batch i: this rank's rows of ``mixtures [B,C,H,W]`` and any ``sources [B,K,C,H,W]``.

    Row number p of the run is a function of (seed, p): rounds through all files, each in a new order.
    """

    def __init__(
        self, folders: Sequence[Path], files: Sequence[str], scale: Scale, batch_size: int, seed: int, ranks: Ranks
    ) -> None:
        self.folders, self.files, self.scale = folders, files, scale
        self.batch_size, self.seed, self.ranks = batch_size, seed, ranks
        self._round, self._order = -1, torch.empty(0)

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        return self.rows([self._visited(batch, row) for row in range(self.batch_size)])

    def names(self, batch: int, row: int) -> str:
        """The file of row ``row`` of this rank's training batch ``batch``."""
        return str(self.folders[0] / self.files[self._visited(batch, row)])

    def rows(self, items: Sequence[int]) -> dict[str, Tensor]:
        """The batch of ``items``; raises UserError where a file cannot be read any more."""
        mixtures, *sources = [torch.stack([self._read(root, item) for item in items]) for root in self.folders]
        batch = {"mixtures": self.scale.mixture(mixtures)}
        if sources:
            average = torch.tensor([is_average(self.files[item]) for item in items]).view(-1, 1, 1, 1, 1)
            values = torch.stack(sources, 1)
            batch["sources"] = torch.where(average, self.scale.source(values, True), self.scale.source(values, False))
        return batch

    def _read(self, root: Path, item: int) -> Tensor:
        path = root / self.files[item]
        try:
            return torch.from_numpy(read_array(path))
        except ValueError as error:
            raise UserError(f"{path}, which was good at the start, {error}") from error

    def _visited(self, batch: int, row: int) -> int:
        position = (batch * self.ranks.world_size + self.ranks.rank) * self.batch_size + row
        number, place = divmod(position, len(self.files))
        if number != self._round:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, number))
            self._round, self._order = number, torch.randperm(len(self.files), generator=generator)
        return int(self._order[place])


class FixedArrays(ArrayBatches):
    """Item j is batch j of the files in their order, the same for every seed and number of ranks."""

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        if batch >= len(self):
            raise IndexError(batch)
        return self.rows(range(len(self.files))[batch * self.batch_size : (batch + 1) * self.batch_size])


class Arrays(SeparationData):
    """Mixtures of your own: all .npy, .npz, PNG, TIFF and FITS files of a folder tree, of one shape, one mixture each.

    An array is ``[H,W]`` or ``[C,H,W]`` and the sum of its sources; a PNG is their average. FITS needs astropy. Held
    out are files chosen by ``split_seed``, the same for every seed of training. A file that cannot be used, or is of
    another shape than most, is named and skipped.

    Args:
        root: the folder of the mixtures.
        source_roots: a folder for each of the K sources, with files of the mixtures' names, where the truth is known.
            Then as many mixtures as are validated on are held out to test on as well.
        num_sources: sources in a mixture (K).
        scaling: how the values become numbers of about [-1, 1]: by their ``range``, or ``standard``, to zero mean and
            unit variance, for values without bounds. Truth is compared by PSNR and SSIM, or for ``standard`` by SI-SDR.
        scale: the lowest and the highest value of a mixture, or for ``standard`` its mean and standard deviation. By
            default measured on the files that are trained on, and said.
        validation_share: of the files, in (0, 0.5).
        split_seed: of the choice of the files that are held out.
        num_validation: held-out mixtures looked at after each epoch, at most.
        max_bad_share: files that cannot be used are reported and skipped; more than this share of them is an error.

    The other arguments are those of ``SeparationData``.
    """

    monitor = "val/momi"

    def __init__(
        self,
        root: str = "data/arrays",
        source_roots: list[str] | None = None,
        num_sources: int = 2,
        scaling: Literal["range", "standard"] = "range",
        scale: tuple[float, float] | None = None,
        validation_share: float = 0.1,
        split_seed: int = 0,
        num_validation: int = 256,
        max_bad_share: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if source_roots is not None and len(source_roots) != num_sources:
            raise ValueError(f"source_roots names {len(source_roots)} folders for num_sources {num_sources}")
        if not 0 < validation_share < 0.5:
            raise ValueError(f"validation_share must lie between 0 and 0.5, not {validation_share}")
        if min(num_sources, num_validation) < 1:
            raise ValueError("num_sources and num_validation must be at least 1")
        if scale is not None and not (scale[0] < scale[1] if scaling == "range" else scale[1] > 0):
            raise ValueError(f"scale is [lowest, highest], or [mean, standard deviation] for standard, not {scale}")
        self.root, self.source_roots, self.num_sources = root, source_roots, num_sources
        self.scaling, self.given_scale, self.max_bad_share = scaling, scale, check_share("max_bad_share", max_bad_share)
        self.validation_share, self.split_seed, self.num_validation = validation_share, split_seed, num_validation
        if source_roots:
            self.monitor = "val/psnr" if scaling == "range" else "val/si_sdri"

    @cached_property
    def files(self) -> Files:
        """All files, each read once; raises UserError where there are none or many are bad."""
        folders = [Path(root).expanduser() for root in (self.root, *(self.source_roots or ()))]
        names = files_under(folders[0], (*ARRAYS, *AVERAGES))
        if not names:
            why = f"holds no mixtures ({', '.join((*ARRAYS, *AVERAGES))})" if folders[0].is_dir() else "is no folder"
            raise UserError(f"{folders[0]} {why}: name the folder of your mixtures, --data.root FOLDER")
        shapes: dict[str, list[tuple[int, ...]]] = {}
        statistics: dict[str, tuple[float, ...]] = {}
        faults: dict[str, str] = {}
        for name in tqdm(names, desc=f"Reading {self.root}", unit="file", delay=BAR_DELAY):
            try:
                arrays = [read_array(root / name) for root in folders]
                shapes[name], statistics[name] = [array.shape for array in arrays], _statistics(arrays[0])
            except ValueError as error:
                faults[name] = str(error)
        common, _ = Counter(all_[0] for all_ in shapes.values()).most_common(1)[0] if shapes else ((), 0)
        for name, found in shapes.items():
            if other := [shape for shape in found if shape != common]:
                faults[name] = f"is {list(other[0])}, others are {list(common)}"
        if faults:
            skipped = "files that cannot be used"
            report_skipped(Path(self.root), faults, skipped, len(faults), len(names), self.max_bad_share)
        good = [name for name in names if name not in faults]
        return Files(folders, good, list(common), [statistics[name] for name in good])

    @cached_property
    def parts(self) -> dict[Part, list[int]]:
        """The numbers of the files that each part has; raises UserError where there are too few."""
        names = self.files.names
        order = sorted(range(len(names)), key=lambda i: (zlib.crc32(f"{self.split_seed}/{names[i]}".encode()), i))
        size = max(2, round(self.validation_share * len(names)))  # MixIT looks at pairs
        held_out = 2 * size if self.source_roots else size
        if len(names) < held_out + 2:
            raise UserError(f"{self.root} has {len(names)} usable mixtures, {held_out + 2} are the least")
        return {"validation": order[:size], "test": order[size:held_out], "train": sorted(order[held_out:])}

    @cached_property
    def scale(self) -> Scale:
        """The given one, or that of the training mixtures; said once."""
        first, second = map(float, self.given_scale or self._measured())
        if self.scaling == "range":
            return Scale((first + second) / 2, (second - first) / 2, self.num_sources)
        return Scale(first, second, self.num_sources)

    def _measured(self) -> tuple[float, float]:
        lowest, highest, mean, square = np.array([self.files.statistics[i] for i in self.parts["train"]]).T
        found = lowest.min(), highest.max()
        if self.scaling == "standard":
            found = mean.mean(), np.sqrt(square.mean() - mean.mean() ** 2)
        first, second = (float(f"{value:.9g}") for value in found)
        what = "range" if self.scaling == "range" else "mean and standard deviation"
        rank_zero_info(
            f"{self.root}: the {what} of {len(mean):,} training mixtures: {first:g}, {second:g} "
            f"(as --data.scale '[{first!r}, {second!r}]')"
        )
        return first, second

    def _batches(
        self, kind: type[ArrayBatches], part: Part, size: int, ranks: Ranks, most: int | None = None
    ) -> Batches:
        names = [self.files.names[i] for i in self.parts[part]][:most]
        return kind(self.files.folders, names, self.scale, size, self.seed, ranks)

    def training_batches(self, ranks: Ranks) -> Batches:
        return self._batches(ArrayBatches, "train", self.batch_size, ranks)

    def validation_batches(self) -> Batches:
        count = min(self.num_validation, len(self.parts["validation"]))
        size = self.held_out_batch_size(count)
        full = count // size * size  # all batches are, see MixIT
        return self._batches(FixedArrays, "validation", size, Ranks(), full)

    def test_batches(self) -> Batches:
        if not self.source_roots:
            raise UserError(
                f"{self.root} has no true sources to test against (data.source_roots): look at its held-out loss by "
                "surf validate, or at what surf separate makes of it"
            )
        return self._batches(FixedArrays, "test", self.held_out_batch_size(len(self.parts["test"])), Ranks())

    def metrics(self) -> Metric:
        return ImageMetrics() if self.scaling == "range" else ArrayMetrics(si_sdr_columns())

    def protocol(self) -> str:
        units = "mapped to [0, 1] by the range of the mixtures and clamped" if self.scaling == "range" else "rows"
        return (
            f"{len(self.parts['test']):,} held-out mixtures of {self.root}. The estimates are put in the best order "
            f"and {units}."
        )

    def amount(self) -> dict[str, float]:
        return {f"{part}_files": len(numbers) for part, numbers in self.parts.items() if part != "test"}

    def signal(self) -> dict[str, Any]:
        return {"kind": "image", "shape": self.files.shape, "values": [self.scale.center, self.scale.half]}


def _statistics(mixture: np.ndarray) -> tuple[float, ...]:
    lowest, highest = float(mixture.min()), float(mixture.max())
    if lowest == highest:
        raise ValueError(f"is {lowest:g} everywhere")
    values = mixture.astype(np.float64)
    return lowest, highest, float(values.mean()), float(np.square(values).mean())
