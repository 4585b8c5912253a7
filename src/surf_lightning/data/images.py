"""Mixtures of images drawn on the fly from a set held in memory. Axes: N images, C H W."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.data.base import Batches, SeparationData
from surf_lightning.data.mixing import FixedMixtures, RandomMixtures
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.evaluation import ImageEvaluation, PerceptualMetrics
from surf_lightning.metrics.images import ImageMetrics


@dataclass(frozen=True)
class ImageSplits:
    """uint8 images ``[N,C,H,W]``. Validation images are held out of training; tests use the test set alone."""

    train: Tensor
    validation: Tensor
    test: Tensor


class ImageMixtures(SeparationData):
    """Mixtures of ``num_sources`` random distinct images.

    Args:
        num_sources: images in a mixture (K).
        single_source_share: share of the training mixtures that hold one image alone; 0.5 for MixIT (Appendix D.4).
        fewest_sources: the mixtures hold from so many images to ``num_sources``, each number as often, the other
            sources being 0; None: always ``num_sources``.
        num_validation: held-out mixtures looked at after each epoch.
        num_test: mixtures of the final evaluation, always the same; 5,000 in Table 1, 25,000 in Table 2.
        evaluation: what the final evaluation measures: PixelMetrics, PerceptualMetrics (Table 1) or SampleMetrics
            (Table 2), of surf_lightning.metrics; by default what suits the data set.
        weights: folder that holds inception_fid.pth and alexnet_features.pth, the networks of the perceptual metrics;
            by default, and where one is not in it, it is downloaded.

    The other arguments are those of ``SeparationData``.
    """

    monitor = "val/psnr"
    usual_evaluation: type[ImageEvaluation] = PerceptualMetrics

    def __init__(
        self,
        num_sources: int = 2,
        single_source_share: float = 0.0,
        num_validation: int = 256,
        num_test: int = 5000,
        evaluation: ImageEvaluation | None = None,
        weights: str | None = None,
        fewest_sources: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if fewest_sources is not None and not 1 <= fewest_sources <= num_sources:
            raise ValueError(f"fewest_sources ({fewest_sources}) must lie between 1 and num_sources ({num_sources})")
        if min(num_validation, num_test) < 1 or not 0 <= single_source_share <= 1:
            raise ValueError("num_validation and num_test must be at least 1, single_source_share must lie in [0, 1]")
        self.num_sources, self.single_source_share = num_sources, single_source_share
        self.num_validation, self.num_test = num_validation, num_test
        self.evaluation: ImageEvaluation = evaluation or self.usual_evaluation()
        self.weights, self.fewest_sources = weights, fewest_sources

    @abstractmethod
    def load(self) -> ImageSplits:
        """Read the images; raises UserError where they cannot be had."""

    @cached_property
    def splits(self) -> ImageSplits:
        return self.load()

    def training_batches(self, ranks: Ranks) -> Batches:
        images, alone = self.splits.train, self.single_source_share
        return RandomMixtures(
            images, self.num_sources, self.batch_size, self.seed, ranks, alone, fewest_sources=self.fewest_sources
        )

    def validation_batches(self) -> Batches:
        return self._fixed(self.splits.validation, self.num_validation)

    def test_batches(self) -> Batches:
        return self._fixed(self.splits.test, self.num_test)

    def _fixed(self, images: Tensor, count: int) -> Batches:
        size = self.held_out_batch_size(count)
        return FixedMixtures(images, self.num_sources, count, size, fewest_sources=self.fewest_sources)

    def metrics(self) -> Metric:
        return ImageMetrics()

    def test_metrics(self) -> Metric:
        return ImageMetrics(self.evaluation.columns(self._training_images, self.weights))

    def _training_images(self) -> Tensor:
        return torch.cat([self.splits.train, self.splits.validation])

    def protocol(self) -> str:
        images = len(self.splits.test)
        number = f"{self.fewest_sources} to {self.num_sources}" if self.fewest_sources else self.num_sources
        return (
            f"{self.num_test:,} mixtures, each the mean of {number} images of the {images:,} test images of "
            f"{type(self).__name__}, dealt by seeded permutations, so that none comes again before all have come. The "
            "estimates of a mixture are put in the order of least squared error, mapped to [0, 1] and clamped. "
            f"{self.evaluation.protocol}"
        )

    def amount(self) -> dict[str, float]:
        return {"train_images": len(self.splits.train), "validation_images": len(self.splits.validation)}

    def signal(self) -> dict[str, Any]:
        return {"kind": "image", "shape": list(self.splits.test.shape[1:])}
