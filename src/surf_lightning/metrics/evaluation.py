"""What the final evaluation of images measures: a class for each table. Axes: N images, C H W."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from surf_lightning.metrics.images import PSNR, SSIM


class ImageEvaluation(ABC):
    """Columns of a table of separated images."""

    record = "metrics"
    """Name of the file, without .json, that the values are written to."""

    @abstractmethod
    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        """Fresh metrics by name, with ``update(estimates, references)``, both ``[N,C,H,W]`` in [0,1].

        Args:
            training_images: gives the training set, uint8 ``[N,C,H,W]``.
            weights: folder of the networks' weights; None lets the libraries download them.
        """

    @abstractmethod
    def protocol(self) -> str:
        """How the images are measured: a sentence for the readers of the table."""


class PixelMetrics(ImageEvaluation):
    """PSNR and SSIM: fast, and without any network."""

    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        return {"psnr": PSNR(), "ssim": SSIM()}

    def protocol(self) -> str:
        return "PSNR and SSIM are means over the separated images."


class PerceptualMetrics(ImageEvaluation):
    """The columns of Table 1: PSNR, LPIPS, SSIM, and FID against the true sources."""

    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        from surf_lightning.metrics.perceptual import FID, LPIPS, POOL, InceptionLayer

        return {"psnr": PSNR(), "lpips": LPIPS(weights), "ssim": SSIM(), "fid": FID(InceptionLayer(POOL, weights))}

    def protocol(self) -> str:
        return (
            "PSNR, LPIPS (AlexNet) and SSIM are means over the separated images; FID is between them all, quantised to "
            "8 bits, and the true sources."
        )


class SampleMetrics(ImageEvaluation):
    """The columns of Table 2, on 25,000 mixtures there: Inception Score, and FID against the training images."""

    record = "metrics_samples"

    def __init__(self) -> None:
        self._reference: Any = None  # its features are measured once, for the estimates and for m/K

    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        from surf_lightning.metrics.perceptual import FID, LOGITS, POOL, InceptionLayer, InceptionScore, Reference

        self._reference = self._reference or Reference(training_images)
        fid = FID(InceptionLayer(POOL, weights), self._reference)
        return {"is": InceptionScore(InceptionLayer(LOGITS, weights)), "fid": fid}

    def protocol(self) -> str:
        return (
            "Inception Score: mean and deviation over 10 splits of the separated images. FID is between them all, "
            "quantised to 8 bits, and all training images."
        )
