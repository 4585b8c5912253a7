"""Image metrics of Tables 1 and 2; ours: aligned by least squares, mapped to [0,1] and clamped. Axes: B K C H W."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from surf_lightning.functional.losses import pit_permutation
from surf_lightning.functional.permutation import invert, reorder
from surf_lightning.metrics.base import ScoreMean, SeparationMetrics

MSE_FLOOR = 1e-10  # a pixel-exact image counts as 100 dB


def align_by_mse(estimates: Tensor, sources: Tensor) -> Tensor:
    """``estimates [B,K,*S]``, permuted to the least squared error from ``sources [B,K,*S]``."""
    return reorder(estimates, invert(pit_permutation(estimates, sources)))


def to_unit_range(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped."""
    return (images.float() / 2 + 0.5).clamp(0, 1)


class ImageMean(ScoreMean):
    """The mean of a score over images. ``update(estimates, references)``, both ``[N,C,H,W]`` in [0,1]."""

    @abstractmethod
    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        """The score of each image, ``[N]``."""

    def update(self, estimates: Tensor, references: Tensor) -> None:
        """Count ``[N,C,H,W]`` images in [0,1]."""
        scores = self.score(estimates, references)
        self._add(scores, torch.ones_like(scores, dtype=torch.bool))

    def compute(self) -> Tensor:
        return super().compute().float()


class PSNR(ImageMean):
    """Peak signal-to-noise ratio in dB, the mean over the images."""

    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        mse = (estimates - references).square().flatten(1).mean(1)
        return -10 * mse.clamp_min(MSE_FLOOR).log10()


class SSIM(ImageMean):
    """Structural similarity, the mean over the images.

    The Gaussian window is 11x11 with deviation 1.5; in images below 16 pixels, where it does not fit, 5x5 with 0.5.
    """

    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        sigma = 1.5 if min(references.shape[-2:]) >= 16 else 0.5
        looks: Any = {"data_range": 1.0, "sigma": sigma, "k1": 0.01, "k2": 0.03, "reduction": "none"}
        values = structural_similarity_index_measure(estimates, references, **looks)
        assert isinstance(values, Tensor)
        return values.view(-1)


class ImageMetrics(SeparationMetrics):
    """Several metrics of separated images, after their alignment. ``compute`` gives a dict of scalars.

    Args:
        columns: metrics by name; their ``update`` takes ``estimates``, ``references`` or both, ``[N,C,H,W]`` in [0,1].
            By default ``psnr`` (dB) and ``ssim``.
    """

    def __init__(self, columns: Mapping[str, Metric] | None = None) -> None:
        super().__init__(columns or {"psnr": PSNR(), "ssim": SSIM()})

    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        """Count ``estimates`` and ``sources [B,K,C,H,W]`` in [-1,1]; ``mixtures [B,C,H,W]`` are not looked at."""
        found, truth = (to_unit_range(x).flatten(0, 1) for x in (align_by_mse(estimates, sources), sources))
        self.columns.update(estimates=found, references=truth)
