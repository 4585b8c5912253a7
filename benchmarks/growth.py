"""How the time of each part grows: with B, K, M, T, the length of a file and the number of ranks. Axes: B K M T."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ranks
import torch
from assignment import SAMPLES, our_mixit, with_gradient
from loaders import CPU, CROP_SECONDS, Kind, crops, whole_then_cut, write
from machine import Machine
from rows import Growth
from shipped import RATE, build, inputs
from surf_step import DIGITS, our_step, surf
from timing import alternating

from surf_lightning.data import Folder
from surf_lightning.functional.losses import pit_permutation
from surf_lightning.functional.remixing import remix
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.inference.streaming import separate_stream
from surf_lightning.networks import RegressionNCSNpp, SharedNCSNpp


def grow(
    machine: Machine, case: str, of: str, sizes: list[int], make: Callable[[int], Callable[[], Any]], rounds: int = 3
) -> Growth:
    """All sizes in turn, several times over."""
    times = alternating([make(size) for size in sizes], machine.device, rounds)
    return Growth(case, of, [float(size) for size in sizes], times)


def run(machine: Machine) -> Iterator[Growth]:
    """One row a part and size; larger sizes on CUDA, where small ones show nothing but launches."""
    device, scale = machine.device, 1 if machine.small else 8
    torch.manual_seed(0)

    def surf_step(batch: int) -> Callable[[], None]:
        mixit = RegressionSeparator(RegressionNCSNpp(num_outputs=4, num_sources=2, **DIGITS), 2)
        module, optimizer = surf(SharedNCSNpp(num_sources=2, **DIGITS), mixit, device)
        module.beta = 0.0
        return our_step(module, optimizer, torch.randn(batch, 1, 8, 8, device=device), machine.autocast(torch.float32))

    def mixit_loss(outputs: int, samples: int) -> Callable[[], None]:
        signals = torch.randn(2, outputs, samples, device=device).requires_grad_()
        return functools.partial(with_gradient, our_mixit, signals, torch.randn(2, 2, samples, device=device))

    def order(sources: int) -> Callable[[], Any]:
        estimates, truth = torch.randn(2, 8, sources, 16_000, device=device)
        return functools.partial(pit_permutation, estimates, truth)

    def shuffle(batch: int) -> Callable[[], Any]:
        sources = torch.randn(batch, 4, SAMPLES, device=device)
        return functools.partial(remix, sources)

    def network(seconds: int, **changes: Any) -> Callable[[], None]:
        module = build("folder_locoformer", **changes).to(device)
        given = inputs(module, 1, seconds * RATE, device=device)

        def step() -> None:
            module(*given).square().mean().backward()

        return step

    def stream(seconds: int) -> Callable[[], None]:
        separator = RegressionSeparator(build("folder_mixit"), 4).to(device).eval()
        separator.signal = {"kind": "audio", "sample_rate": RATE}
        blocks = [torch.randn(1, RATE) for _ in range(seconds)]

        def separate() -> None:
            for _ in separate_stream(separator, iter(blocks)):
                pass

        return separate

    yield grow(machine, "SURF step, digits", "B", [scale * b for b in (4, 8, 16, 32, 64)], surf_step)
    mixit_of_length = functools.partial(mixit_loss, 4)
    lengths = [scale * samples for samples in (40_000, 80_000, 160_000, 320_000)]
    yield grow(machine, "MixIT loss and gradient, M = 4, B = 2", "T", lengths, mixit_of_length)
    mixit_of_outputs = functools.partial(mixit_loss, samples=SAMPLES)
    yield grow(machine, "MixIT loss and gradient, B = 2, T = 160000", "M", [2, 4, 8, 12, 16], mixit_of_outputs)
    yield grow(machine, "PIT order, B = 8, T = 16000", "K", [2, 3, 4, 5, 6], order)
    yield grow(machine, "PIT order, B = 8, T = 16000", "K", [8, 16, 32, 64], order)
    yield grow(machine, "remixing in one process, K = 4, T = 160000", "B", [4, 8, 16, 32, 64], shuffle)
    yield grow(machine, "folder_locoformer forward and backward, K = 4", "seconds", [1, 2, 4, 8], network, 1)
    of_sources = lambda sources: network(1, num_sources=sources)  # noqa: E731
    yield grow(machine, "folder_locoformer forward and backward, 1 s", "K", [2, 4, 8], of_sources, 2)
    yield grow(machine, "separation of a stream, folder_mixit", "seconds", [20, 40, 80], stream, 1)
    yield from reading()
    yield from exchanges(machine)


def reading() -> Iterator[Growth]:
    """A crop of 10 s from files of several lengths, in part and by way of the whole."""
    minutes, count = [1, 4, 16], round(CROP_SECONDS * RATE)
    with tempfile.TemporaryDirectory() as root:
        ours: list[Callable[[], Any]] = []
        theirs: list[Callable[[], Any]] = []
        for length in minutes:
            folder = Path(root, str(length))
            write(folder, Kind("flac", 16_000, 1, 60 * length, 2))
            examples = Folder(str(folder), sample_rate=16_000).recordings
            places = crops(examples, 4)
            ours.append(lambda e=examples, p=places: [e.read(*place, count) for place in p])
            theirs.append(lambda e=examples, p=places: [whole_then_cut(e.path(n), start, count) for n, start in p])
        for label, calls in (("in part", ours), ("by way of the whole file", theirs)):
            times = [time / 4 for time in alternating(calls, CPU, 3)]
            yield Growth(f"a crop of 10 s from a flac file, {label}", "minutes", [float(m) for m in minutes], times)


def exchanges(machine: Machine) -> Iterator[Growth]:
    """Teacher estimates gathered and shuffled over ranks of four clips each; residuals with gradients, and back."""
    most = (os.cpu_count() or 1) if machine.small else torch.cuda.device_count()
    worlds = [count for count in (1, 2, 4, 8) if count <= most]
    results = [ranks.measure(count, machine.device.type) for count in worlds]
    backend = "gloo" if machine.small else "nccl"
    for index, label in enumerate(("estimates gathered and shuffled", "residuals gathered, and their gradients")):
        case = f"{label}, 4 clips of 10 s a rank, {backend}"
        yield Growth(case, "ranks", [float(count) for count in worlds], [times[index] for times in results])
