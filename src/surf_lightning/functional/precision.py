"""Where bfloat16 is not enough: spectra, waveforms, filters, sums of mixtures, losses and metrics are in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is so already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
