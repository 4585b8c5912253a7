"""MB-TFLocoformer and Conv-TasNet forward and backward, and the separation of files, as multiples of real time.

Axes: B batch, K sources, T samples.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from counting import count_flops
from machine import Machine, name
from rows import Timing
from shipped import RATE, build, inputs, operations
from timing import alone

from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator
from surf_lightning.inference.streaming import separate_file
from surf_lightning.networks import GlobalRMSNoise

# Config, seconds, whether its activations are computed again: in seconds on a CPU, and as trained on CUDA.
ON_CPU = (("folder_locoformer", 4.0, False), ("audioset_velocity", 0.2, False), ("audioset_mixit", 4.0, False))
ON_CUDA = (
    ("folder_locoformer", 4.0, False),
    ("audioset_velocity", 1.0, False),
    ("audioset_velocity", 10.0, True),
    ("libri2mix_velocity", 10.0, True),
    ("audioset_mixit", 10.0, False),
)
_shares: dict[tuple[str, torch.dtype], float] = {}


def forward_backward(
    machine: Machine, config: str, seconds: float, checkpointing: bool, precision: torch.dtype
) -> Timing:
    """One example, with the gradient of every weight. Operations that checkpointing repeats count only once."""
    changes = {"activation_checkpointing": True} if checkpointing else {}
    network = build(config, **changes).to(machine.device)
    given = inputs(network, 1, round(seconds * RATE), device=machine.device)

    def step() -> None:
        with machine.autocast(precision):
            loss = network(*given).square().mean()
        loss.backward()

    flops = operations(config, round(seconds * RATE), gradient=True)
    floor = machine.floor_ms(flops, precision=precision)
    again = ", checkpointed" if checkpointing else ""
    case = f"{config} forward and backward, {seconds:g} s{again}, {name(precision)}"
    try:
        time = alone(step, machine.device, 1 if machine.small else 5)
    except torch.OutOfMemoryError:
        return Timing(case, floor_ms=floor, remark="does not fit into memory")
    _shares[config, precision] = floor / time
    remark = f"{flops / 1e9:,.0f} GFLOP, {floor / time:.0%} of the peak, {1e3 * seconds / time:.3g} x real time"
    return Timing(case, time, floor_ms=floor, remark=remark)


def share_of_peak(machine: Machine, config: str, precision: torch.dtype) -> float:
    """What the network reached of the peak at the largest size that fits, measured in this run; NaN if none does."""
    if (config, precision) not in _shares:
        for case in ON_CPU if machine.small else ON_CUDA:
            if case[0] == config:
                forward_backward(machine, *case, precision)
    return _shares.get((config, precision), math.nan)


def separation(machine: Machine, label: str, separator: Separator, length: int, precision: torch.dtype) -> Timing:
    """A file of ``length`` seconds through the streaming separator, from disk to estimates."""
    separator.signal = {"kind": "audio", "sample_rate": RATE}
    separator = separator.to(machine.device).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "noise.wav")
        soundfile.write(path, 0.1 * torch.randn(length * RATE).numpy(), RATE)

        def separate() -> None:
            with machine.autocast(precision):
                for _ in separate_file(separator, path):
                    pass

        flops = count_flops(separate)
        time = alone(separate, machine.device, 1)
    floor = machine.floor_ms(flops, precision=precision)
    case = f"separate a file of {length} s: {label}, {name(precision)}"
    remark = f"{1e3 * length / time:.3g} x real time, {floor / time:.0%} of the peak"
    return Timing(case, time, floor_ms=floor, remark=remark)


def run(machine: Machine) -> Iterator[Timing]:
    """Networks, then separation by the Conv-TasNet of Libri2Mix and by flows in five steps."""
    torch.manual_seed(0)
    for precision in machine.precisions():
        for config, seconds, checkpointing in ON_CPU if machine.small else ON_CUDA:
            yield forward_backward(machine, config, seconds, checkpointing, precision)
    for precision in machine.precisions():
        tasnet = RegressionSeparator(build("libri2mix_mixit"), 4)
        yield separation(machine, "libri2mix_mixit", tasnet, 19 if machine.small else 600, precision)
        for config in ("folder_locoformer",) if machine.small else ("folder_locoformer", "audioset_velocity"):
            flow = FlowSeparator(build(config), noise=GlobalRMSNoise())
            yield separation(machine, config, flow, 4 if machine.small else 60, precision)
