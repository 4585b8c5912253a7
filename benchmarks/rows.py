"""The rows of the tables that `make bench` prints and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import linear_regression
from typing import ClassVar


@dataclass
class Timing:
    """A case: our time, that of a plain version measured beside it, and what bounds them."""

    HEADER: ClassVar[str] = (
        f"{'case':62} {'ours':>11} {'plain':>11} {'ratio':>8} {'bound':>7} {'floor':>11}  remark\n" + "-" * 140
    )

    case: str
    ours_ms: float | None = None
    theirs_ms: float | None = None
    ratio: float | None = None
    bound: float | None = None
    floor_ms: float | None = None
    remark: str = ""

    def line(self) -> str:
        times = [_milliseconds(time) for time in (self.ours_ms, self.theirs_ms)]
        factors = [f"{factor:.2f}x" if factor else "" for factor in (self.ratio, self.bound)]
        cells = f"{times[0]:>11} {times[1]:>11} {factors[0]:>8} {factors[1]:>7} {_milliseconds(self.floor_ms):>11}"
        return f"{self.case:62} {cells}  {self.remark}".rstrip()


@dataclass
class Growth:
    """How a time grows with one size: ``time ~ size^exponent``, fitted to the larger half of the sizes."""

    HEADER: ClassVar[str] = f"{'how it grows':62} {'with':>10} {'power':>7}  times\n" + "-" * 140

    case: str
    of: str
    sizes: list[float]
    times_ms: list[float]
    remark: str = ""
    exponent: float = field(init=False)

    def __post_init__(self) -> None:
        self.exponent = fitted_exponent(self.sizes, self.times_ms)

    def line(self) -> str:
        pairs = zip(self.sizes, self.times_ms, strict=True)
        times = ", ".join(f"{size:g}: {_milliseconds(time)}" for size, time in pairs)
        return f"{self.case:62} {self.of:>10} {self.exponent:7.2f}  {times}  {self.remark}".rstrip()


@dataclass
class Cost:
    """Operations of a training step for each 10 s clip in it, and the hours of an epoch that follow: calculated."""

    HEADER: ClassVar[str] = (
        f"{'one epoch of AudioSet (731 h), calculated':62} {'TFLOP/clip':>11} {'1 device':>11} {'8':>9} {'64':>9}"
        "  remark\n" + "-" * 140
    )

    case: str
    tflop_per_clip: float
    hours: dict[str, float]
    remark: str = ""

    def line(self) -> str:
        hours = [_hours(self.hours[devices]) for devices in ("1", "8", "64")]
        return f"{self.case:62} {self.tflop_per_clip:11.3f} {hours[0]:>11} {hours[1]:>9} {hours[2]:>9}  {self.remark}"


@dataclass
class Memory:
    """Bytes alive together at most, in units of 2^30: counted. Of forward and backward, or of a whole SURF step."""

    HEADER: ClassVar[str] = (
        f"{'memory of a forward and backward, or of a whole step, counted':72} {'GiB':>11}\n" + "-" * 140
    )

    case: str
    gib: float

    def line(self) -> str:
        return f"{self.case:72} {self.gib:11.1f}"


Row = Timing | Growth | Cost | Memory


def fitted_exponent(sizes: list[float], times: list[float]) -> float:
    """The slope of log time over log size by least squares, over the larger half: small sizes show overheads."""
    x, y = ([math.log(value) for value in values[(len(values) - 1) // 2 :]] for values in (sizes, times))
    return linear_regression(x, y).slope


def _milliseconds(time: float | None) -> str:
    if time is None:
        return ""
    return f"{time:,.2f} ms" if time < 10 else f"{time:,.0f} ms" if time >= 1000 else f"{time:.1f} ms"


def _hours(hours: float) -> str:
    return f"{hours / 24:,.0f} days" if hours >= 100 else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
