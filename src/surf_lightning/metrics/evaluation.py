"""What the final evaluations measure: the columns of the papers' tables.

Axes: N images, B batch, K sources, M estimates, T samples, C H W the image.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import rank_zero_warn

from surf_lightning.metrics.audio import SISDR, SISDRi, align_by_si_sdr
from surf_lightning.metrics.base import SeparationMetrics
from surf_lightning.metrics.images import PSNR, SSIM
from surf_lightning.metrics.speech import DNSMOS, ESTOI, PESQ, WIDE_BAND


def build_metrics(builders: Mapping[str, Callable[[], Metric]]) -> dict[str, Any]:
    """Build metrics by name; leave out, with a warning that gives the reason, what cannot be built here.

    All processes leave out what one of them cannot build, because they compute each value together.
    """
    built, reasons = {}, {}
    for name, build in builders.items():
        try:
            built[name] = build()
        except Exception as error:  # a library, its network or a file is missing: each library has its own errors
            hint = " (it is in the extra images)" if "torch_fidelity" in str(error) else ""
            reasons[name] = f"{error}{hint}"
    if dist.is_available() and dist.is_initialized():
        of_each: list[dict[str, str]] = [{}] * dist.get_world_size()
        dist.all_gather_object(of_each, reasons)
        reasons = {name: reason for each in of_each for name, reason in each.items()}
    for name, reason in reasons.items():
        rank_zero_warn(f"the metric {name} is left out: {reason}")
    return {name: metric for name, metric in built.items() if name not in reasons}


class ImageEvaluation(ABC):
    """Columns of a table of separated images."""

    results_name = "metrics"
    """Name of the file, without .json, that a test writes its results to."""
    protocol: str
    """How the images are measured: a sentence for the readers of the table."""

    @abstractmethod
    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        """Fresh metrics by name, with ``update(estimates, references)``, both ``[N,C,H,W]`` in [0,1].

        Args:
            training_images: gives the training set, uint8 ``[N,C,H,W]``.
            weights: folder of the networks' weights; None lets the libraries download them.
        """


class PixelMetrics(ImageEvaluation):
    """PSNR and SSIM: fast, and without any network."""

    protocol = "PSNR and SSIM are means over the separated images."

    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        return {"psnr": PSNR(), "ssim": SSIM()}


class PerceptualMetrics(ImageEvaluation):
    """The columns of Table 1: PSNR, LPIPS, SSIM, and FID against the true sources."""

    protocol = (
        "PSNR, LPIPS (AlexNet) and SSIM are means over the separated images; FID is between them all, quantised to "
        "8 bits, and the true sources."
    )

    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        from surf_lightning.metrics.perceptual import FID, LPIPS, inception

        lpips = functools.partial(LPIPS, weights)
        return build_metrics({"psnr": PSNR, "lpips": lpips, "ssim": SSIM, "fid": lambda: FID(inception(weights))})


class SampleMetrics(ImageEvaluation):
    """The columns of Table 2, on 25,000 mixtures there: Inception Score, and FID against the training images."""

    results_name = "metrics_samples"  # beside those of Table 1, from another test of the same run
    protocol = (
        "Inception Score: mean and deviation over 10 splits of the separated images. FID is between them all, "
        "quantised to 8 bits, and all training images."
    )

    def columns(self, training_images: Callable[[], Tensor], weights: str | None) -> dict[str, Metric]:
        from surf_lightning.metrics.perceptual import SampleQuality, inception

        return build_metrics({"samples": lambda: SampleQuality(inception(weights), training_images)})


# -- signals --


class AudioMetrics(SeparationMetrics):
    """Metrics whose updates name their arguments estimates, references, mixtures: each takes what it needs.

    Only the first ``num_scored`` sources are scored, by the estimates that serve them when all sources are served.
    """

    def __init__(self, columns: Mapping[str, Metric] | MetricCollection, num_scored: int | None = None) -> None:
        super().__init__(columns)
        self.num_scored = num_scored

    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        """Count ``estimates [B,M,T]``, in any order, against ``sources [B,K,T]`` and ``mixtures [B,T]``."""
        if self.num_scored is not None:
            estimates = align_by_si_sdr(estimates, sources)[:, : self.num_scored]
            sources = sources[:, : self.num_scored]
        self.columns.update(estimates=estimates, references=sources, mixtures=mixtures)


def si_sdr_columns() -> dict[str, Metric]:
    """``si_sdr`` and ``si_sdri``: cheap enough to be looked at during fit."""
    return {"si_sdr": SISDR(), "si_sdri": SISDRi()}


def speech_metrics(sample_rate: int = WIDE_BAND, weights: str | None = None) -> MetricCollection:
    """The speech columns of Tables 3 and 4, and SI-SDRi: ``si_sdr``, ``si_sdri``, ``estoi``, ``pesq``, ``dnsmos``.

    ``update(estimates=[B,M,T], references=[B,K,T], mixtures=[B,T])`` gives each metric the arguments that it takes.

    Args:
        sample_rate: of the signals, in Hz.
        weights: as in ``DNSMOS``.
    """
    measures: dict[str, Callable[[], Metric]] = {
        "si_sdr": SISDR,
        "si_sdri": SISDRi,
        "estoi": lambda: ESTOI(sample_rate),
        "pesq": lambda: PESQ(sample_rate),
        "dnsmos": lambda: DNSMOS(sample_rate, weights),
    }
    # Compute groups would share one state among metrics whose first batches happen to agree.
    return MetricCollection(build_metrics(measures), compute_groups=False)


class SpeechMetrics(AudioMetrics):
    """Of the first estimate against the first source, the speech: the order is not searched, it is known."""

    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        super().update(estimates[:, :1], sources[:, :1], mixtures)


class ArrayMetrics(AudioMetrics):
    """Metrics of signals for values that have no range, and so no peak: the arrays as rows of numbers."""

    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        super().update(estimates.flatten(2), sources.flatten(2), mixtures.flatten(1))


class MetricsByNumberOfSources(SeparationMetrics):
    """The metrics of several sets, by K; the number of rows of a batch's sources says which set it is from."""

    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        """Count ``estimates [B,M,T]`` against ``sources [B,K,T]`` by the metrics of the set of K rows."""
        self.columns[str(sources.shape[1])].update(estimates, sources, mixtures)
