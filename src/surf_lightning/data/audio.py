"""What the DataModules of audio share. Axes: B batch, K sources, T samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Subset
from torchmetrics import Metric

from surf_lightning.data.audio_examples import (
    BesideSupervised,
    Examples,
    RandomCrops,
    Readable,
    WholeExamples,
    usable_examples,
)
from surf_lightning.data.base import Batches, SeparationData
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.evaluation import AudioMetrics, si_sdr_columns, speech_metrics

Part = Literal["train", "validation", "test"]

HELD_OUT_BATCH = 8  # at most: a large training batch goes through its network in micro-batches, this one does not


def find_folder(root: str, places: Sequence[str], contents: str, what: str, option: str = "--data.root FOLDER") -> Path:
    """The first of ``root`` and ``places`` in it that holds ``contents``; raises UserError, which says what to do."""
    folders = [Path(root).expanduser(), *(Path(root).expanduser() / place for place in places)]
    for folder in folders:
        if (folder / contents).exists():
            return folder
    looked_for = ", ".join(str(folder / contents) for folder in folders)
    raise UserError(
        f"{what} is not in {root}: there is no {looked_for}. Put it there, or name the folder that holds it: {option}"
    )


def check_share(name: str, share: float) -> float:
    """``share``, which the argument ``name`` gives; raises ValueError where it is none."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is a share, between 0 and 1, not {share}")
    return share


def _hours(examples: Readable, sample_rate: int) -> float:
    return round(float(examples.lengths.sum()) / sample_rate / 3600, 4)


class AudioMixtures(SeparationData):
    """Mono crops of recordings, random to train on and fixed to validate on; tests take whole recordings, one by one.

    Args:
        crop_seconds: length of a crop; shorter recordings are padded with zeros.
        sample_rate: in Hz, that all recordings are brought to.
        num_validation: held-out crops looked at after each epoch, at most as many as there are.
        max_bad_share: files that cannot be used are reported and skipped; more than this share of a set is an error.
        train_share: of the training examples that are used, drawn alike for every seed; a smaller share is part of a
            larger one. For comparisons of how much data a method needs.
        batch_size: mixtures in a training batch of one process.
        num_workers: processes that read and resample; 0 does it in the training process.
        supervised: another set, of the same rate. Methods that learn from true sources as well as from mixtures
            (``SemiSupervisedMixIT``) then learn from its sources and from this set's mixtures, as where the domains of
            the MixIT paper's Figure 2 and Table 1 differ; this set's sources are not read.
        weights: folder that holds DNSMOS/DNSMOS/sig_bak_ovr.onnx, the network of DNSMOS; by default the package
            speechmos has it.

    The other arguments are those of ``SeparationData``.
    """

    monitor = "val/si_sdri"
    single_source_share = 0.0
    crops: type[RandomCrops] = RandomCrops
    num_sources: int | None
    """Rows of ``sources`` where there is truth, those beyond a mixture's own being 0."""

    def __init__(
        self,
        crop_seconds: float = 10.0,
        sample_rate: int = 16000,
        num_validation: int = 256,
        max_bad_share: float = 0.2,
        train_share: float = 1.0,
        batch_size: int = 4,
        num_workers: int = 2,
        supervised: AudioMixtures | None = None,
        weights: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, **options)
        self.crop, self.sample_rate = round(crop_seconds * sample_rate), sample_rate
        self.num_validation, self.weights = num_validation, weights
        self.max_bad_share = check_share("max_bad_share", max_bad_share)
        if self.crop < 1 or num_validation < 1:
            raise ValueError("crop_seconds and num_validation must be positive")
        if not 0 < train_share <= 1:
            raise ValueError(f"train_share is a share above 0 and up to 1, not {train_share}")
        if supervised and supervised.sample_rate != sample_rate:
            raise ValueError(
                f"the supervised set has {supervised.sample_rate:,} Hz and this one {sample_rate:,}: bring it to the "
                f"same rate, --data.supervised.sample_rate {sample_rate}"
            )
        self.train_share, self.supervised = train_share, supervised
        self._loaded: dict[tuple[Part, bool], Readable] = {}

    @property
    def with_sources(self) -> bool:
        """Whether training batches hold this set's sources, where they are known."""
        return self.single_source_share > 0 or (self._supervises() and self.supervised is None)

    def _supervises(self) -> bool:
        """Whether the attached method ``needs_sources``."""
        method = self.trainer and self.trainer.lightning_module
        return getattr(method, "needs_sources", False)

    @abstractmethod
    def load(self, part: Part) -> Readable:
        """Find and index a part of the set; raises UserError where it is not there or mostly unusable."""

    def examples(self, part: Part) -> Readable:
        """A part of the set, indexed once."""
        if (key := (part, self.with_sources)) not in self._loaded:
            self._loaded[key] = self.load(part)
        return self._loaded[key]

    def prepare_data(self) -> None:
        """Index on one process what this stage needs. The others, which wait without limit, then find the cache."""
        if self.trainer is None or self.trainer.state.fn is None:
            return
        stage = self.trainer.state.fn.value
        if stage == "fit":
            self.training_batches(self._ranks())
        if stage in ("fit", "validate"):
            self.validation_batches()
        else:
            self.test_batches()

    def training_batches(self, ranks: Ranks) -> Batches:
        own = self._crops(self, ranks, self.seed)
        if self.supervised is None or not self._supervises():
            return own
        self.supervised.trainer = self.trainer
        try:
            return BesideSupervised(own, self._crops(self.supervised, ranks, self.seed + 1))
        except UserError as error:
            raise UserError(f"supervised set: {error}".replace("--data.", "--data.supervised.")) from error

    def _crops(self, data: AudioMixtures, ranks: Ranks, seed: int) -> RandomCrops:
        return data.crops(data.trained_on(), self.crop, self.batch_size, seed, ranks, data.single_source_share)

    def trained_on(self) -> Readable:
        """The training examples, or ``train_share`` of them, at least one."""
        examples = self.examples("train")
        if self.train_share == 1:
            return examples
        order = np.random.default_rng(0).permutation(len(examples))
        return examples.select(np.sort(order[: max(1, round(self.train_share * len(examples)))]))

    def validation_batches(self) -> Batches:
        # All batches are full, for MixIT cannot use one of a single mixture, and every rank has one.
        size = min(self.batch_size, HELD_OUT_BATCH)
        num_batches = min(self.num_validation, self._num_crops(self.examples("validation"))) // size
        return Subset(self.held_out_crops(size), range(max(num_batches, self._ranks().world_size)))

    def held_out_crops(self, batch_size: int) -> Batches:
        """Random crops to validate on, the same for every run and number of ranks: of which the first are taken."""
        return self.crops(self.examples("validation"), self.crop, batch_size)

    def _num_crops(self, examples: Readable) -> int:
        return len(examples)

    def test_batches(self) -> Batches:
        return WholeExamples(self.examples("test"))

    def metrics(self) -> Metric:
        return AudioMetrics(si_sdr_columns())

    def test_metrics(self) -> Metric:
        return AudioMetrics(speech_metrics(self.sample_rate, self.weights))

    def protocol(self) -> str:
        count = len(self.test_batches())  # type: ignore[arg-type]
        return (
            f"{count:,} whole mixtures of {self._test_set()} at {self.sample_rate:,} Hz. Estimates are given to "
            "sources so that the sum of their SI-SDRs is highest."
        )

    def _test_set(self) -> str:
        return f"{type(self).__name__}'s test set"

    def amount(self) -> dict[str, float]:
        parts = {"train": self.trained_on(), "validation": self.examples("validation")}
        if self.supervised is not None and self._supervises():
            parts["supervised"] = self.supervised.trained_on()
        files = {f"{part}_files": len(examples) for part, examples in parts.items()}
        hours = {f"{part}_hours": _hours(examples, self.sample_rate) for part, examples in parts.items()}
        return files | hours

    def signal(self) -> dict[str, Any]:
        return {"kind": "audio", "sample_rate": self.sample_rate}

    def _usable(self, root: Path, rows: Sequence[Sequence[str]], num_sources: int = 0, **checks: Any) -> Examples:
        return usable_examples(root, rows, num_sources, self.sample_rate, self.max_bad_share, **checks)
