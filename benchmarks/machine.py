"""What a machine can do at best: the floors below which no time can fall."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch
from timing import seconds

from surf_lightning.provenance import processor

PRECISIONS = (torch.float32, torch.bfloat16)
MEANINGFUL = 1.5  # bfloat16 is measured where its peak is this much higher


@dataclass(frozen=True)
class Machine:
    """A device, its FLOP/s by precision, and its bytes/s in a large copy.

    The peak is that of a large product of matrices or of a large convolution, whichever is higher: by Winograd's
    algorithm a convolution needs fewer operations than are counted for it.
    """

    device: torch.device
    matmul: dict[torch.dtype, float]
    convolution: dict[torch.dtype, float]
    bandwidth: float

    @property
    def peaks(self) -> dict[torch.dtype, float]:
        """FLOP/s that can be reached, by precision."""
        return {precision: max(self.matmul[precision], self.convolution[precision]) for precision in self.matmul}

    @classmethod
    def measure(cls, device: torch.device) -> Machine:
        """All in this run: the best of several, for another process can only make them slower."""
        matmul = {precision: _matmul_peak(device, precision) for precision in PRECISIONS}
        convolution = {precision: _convolution_peak(device, precision) for precision in PRECISIONS}
        return cls(device, matmul, convolution, _copy_bandwidth(device))

    @property
    def small(self) -> bool:
        """Whether only small cases end in seconds."""
        return self.device.type == "cpu"

    def precisions(self) -> list[torch.dtype]:
        """Those worth measuring here."""
        single, half = self.peaks[torch.float32], self.peaks[torch.bfloat16]
        return [torch.float32, torch.bfloat16] if half > MEANINGFUL * single else [torch.float32]

    def floor_ms(self, flops: float = 0.0, bytes_moved: float = 0.0, precision: torch.dtype = torch.float32) -> float:
        """Operations over the peak, or bytes over the bandwidth, whichever takes longer."""
        return 1e3 * max(flops / self.peaks[precision], bytes_moved / self.bandwidth)

    def autocast(self, precision: torch.dtype) -> torch.autocast:
        """What Lightning does for bf16-mixed; nothing in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)

    def description(self) -> dict[str, Any]:
        """What the figures were measured on, in plain values."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else processor(),
            "devices": torch.cuda.device_count() if cuda else 1,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "system": platform.platform(),
            "matmul_gflops": _gigaflops(self.matmul),
            "convolution_gflops": _gigaflops(self.convolution),
            "copy_gb_per_s": round(self.bandwidth / 1e9, 1),
        }


def name(precision: torch.dtype) -> str:
    """As in a table."""
    return str(precision).removeprefix("torch.")


def _gigaflops(peaks: dict[torch.dtype, float]) -> dict[str, float]:
    return {name(precision): round(peak / 1e9, 1) for precision, peak in peaks.items()}


def _matmul_peak(device: torch.device, precision: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, size, size, device=device).to(precision)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions are allowed to use it, so is their floor
    try:
        return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(8))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _convolution_peak(device: torch.device, precision: torch.dtype) -> float:
    batch, channels, size = (64, 512, 64) if device.type == "cuda" else (4, 256, 32)
    x = torch.randn(batch, channels, size, size, device=device).to(precision, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(precision, memory_format=torch.channels_last)
    best = min(seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device) for _ in range(8))
    return 2 * x.numel() * channels * 9 / best


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(8))
    return 2 * source.nbytes / best
