"""torchmetrics.Metric classes for images, audio and FUSS."""

from surf_lightning.metrics.audio import SISDR, MoMi, SISDRi
from surf_lightning.metrics.fuss import FUSSMetrics
from surf_lightning.metrics.images import ImageMetrics
from surf_lightning.metrics.speech import DNSMOS, ESTOI, PESQ

__all__ = ["DNSMOS", "ESTOI", "PESQ", "SISDR", "FUSSMetrics", "ImageMetrics", "MoMi", "SISDRi"]
