"""Two implementations timed side by side: alternating, so that a machine's moods fall on both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """One call, to the end of what it launched.

    On a CPU with one thread it is the time that this process had the core: what others do meanwhile does not count.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return _timed(function, device, time.process_time if alone else time.perf_counter)


def wall_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """One call that waits for other processes, by the clock on the wall."""
    return _timed(function, device, time.perf_counter)


def _timed(function: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    synchronize(device)
    start = clock()
    function()
    synchronize(device)
    return clock() - start


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], device: torch.device, rounds: int = 7
) -> dict[str, float]:
    """Medians in milliseconds over ``rounds`` alternations, and the median of their ratios.

    Each is timed after an untimed call of itself, so that neither pays for the state that the other left caches and
    memory in: after gigabytes are freed, getting some is slow.
    """

    def settled(function: Callable[[], Any]) -> float:
        function()
        return seconds(function, device)

    pairs = [(settled(ours), settled(theirs)) for _ in range(rounds)]
    return {
        "ours_ms": 1e3 * median(a for a, _ in pairs),
        "theirs_ms": 1e3 * median(b for _, b in pairs),
        "ratio": median(b / a for a, b in pairs),
    }


def alone(function: Callable[[], Any], device: torch.device, rounds: int = 7) -> float:
    """The median time of ``function`` in milliseconds, after a warm-up."""
    seconds(function, device)
    return 1e3 * median(seconds(function, device) for _ in range(rounds))


def alternating(functions: list[Callable[[], Any]], device: torch.device, rounds: int = 5) -> list[float]:
    """The median time of each in milliseconds, after a warm-up of all, each round running them all once."""
    for function in functions:
        seconds(function, device)
    times = [[seconds(function, device) for function in functions] for _ in range(rounds)]
    return [1e3 * median(column) for column in zip(*times, strict=True)]
