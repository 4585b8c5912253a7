"""Two implementations timed side by side: alternating, so that a machine's moods fall on both alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], device: torch.device, rounds: int = 7
) -> dict[str, float]:
    """Medians in milliseconds over ``rounds`` alternations after a warm-up, and the median of their ratios."""
    pairs = [(alone(ours, device, 1), alone(theirs, device, 1)) for _ in range(rounds)]
    return {
        "ours_ms": median(a for a, _ in pairs),
        "theirs_ms": median(b for _, b in pairs),
        "ratio": median(b / a for a, b in pairs),
    }


def alone(function: Callable[[], Any], device: torch.device, rounds: int = 7) -> float:
    """The median time of ``function`` in milliseconds."""
    _seconds(function, device)
    return 1e3 * median(_seconds(function, device) for _ in range(rounds))


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }
