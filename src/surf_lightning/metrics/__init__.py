"""Metrics as the papers define them, by torchmetrics; each is right across processes."""

from surf_lightning.metrics.audio import SISDR, MoMi, SISDRi
from surf_lightning.metrics.evaluation import (
    ImageEvaluation,
    PerceptualMetrics,
    PixelMetrics,
    SampleMetrics,
    speech_metrics,
)
from surf_lightning.metrics.fuss import FUSSMetrics
from surf_lightning.metrics.images import PSNR, SSIM, ImageMetrics
from surf_lightning.metrics.remixing import RemixingTerms
from surf_lightning.metrics.speech import DNSMOS, ESTOI, PESQ

__all__ = [
    "DNSMOS",
    "ESTOI",
    "PESQ",
    "PSNR",
    "SISDR",
    "SSIM",
    "FUSSMetrics",
    "ImageEvaluation",
    "ImageMetrics",
    "MoMi",
    "PerceptualMetrics",
    "PixelMetrics",
    "RemixingTerms",
    "SISDRi",
    "SampleMetrics",
    "speech_metrics",
]
