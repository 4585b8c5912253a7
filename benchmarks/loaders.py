"""Crops of long files read in part, against whole files read and cut; and whether workers keep up with a step.

Axes: B batch, T samples.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from epoch import clip_seconds, step_operations, surf_step_ms
from machine import Machine, name
from rows import Timing
from shipped import RATE
from timing import compare, seconds, wall_seconds
from torch import Tensor
from torch.utils.data import DataLoader

from surf_lightning.data import Folder
from surf_lightning.data.audio_examples import Examples
from surf_lightning.functional.randomness import Ranks

CROP_SECONDS, BATCH = 10.0, 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kind:
    """Files alike: how many, how long, in what form."""

    extension: str
    rate: int
    channels: int
    seconds: int
    count: int

    @property
    def label(self) -> str:
        length = f"{self.seconds // 60} min" if self.seconds >= 60 else f"{self.seconds} s"
        return f"{length} of {self.extension}, {self.rate / 1000:g} kHz, {'mono' if self.channels == 1 else 'stereo'}"


RECORDINGS = Kind("flac", 44_100, 2, 600, 2)
CLIPS = Kind("flac", 48_000, 1, 10, 12)
KINDS = (Kind("wav", 16_000, 1, 600, 2), Kind("flac", 16_000, 1, 600, 2), RECORDINGS, CLIPS)


def write(folder: Path, kind: Kind) -> None:
    """Files of chirping tones in noise, about as compressible as recordings."""
    folder.mkdir()
    times = np.arange(kind.seconds * kind.rate) / kind.rate
    rng = np.random.default_rng(0)
    for number in range(kind.count):
        tone = np.sin(2 * np.pi * (300 + 50 * number) * times + 40 * np.sin(0.7 * times)) * np.sin(0.3 * times + 1)
        signal = 0.2 * tone[:, None] + 0.01 * rng.standard_normal((len(times), kind.channels))
        soundfile.write(folder / f"{number}.{kind.extension}", signal, kind.rate, subtype="PCM_16")


def whole_then_cut(path: str, start: int, count: int) -> Tensor:
    """The file decoded, mixed down and resampled from beginning to end by soundfile and soxr, then cut."""
    frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(soxr.resample(frames.mean(1), rate, RATE))[start : start + count]


def crops(examples: Examples, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Places ``(example, start)`` at random."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(examples), size=count)
    return [(int(n), int(rng.integers(max(examples.lengths[n] - CROP_SECONDS * RATE, 0) + 1))) for n in chosen]


def against_whole_files(examples: Examples, label: str, rounds: int = 5) -> Timing:
    """A crop by either way, after a look at whether they are the same."""
    count = round(CROP_SECONDS * RATE)
    places = crops(examples, 100)
    for example, start in places[:3]:
        expected = whole_then_cut(examples.path(example), start, count)
        torch.testing.assert_close(
            examples.read(example, start, count)[0, : len(expected)], expected, atol=1e-5, rtol=0
        )
    ours, theirs = iter(places), iter(places)

    def in_part() -> None:
        example, start = next(ours)
        examples.read(example, start, count)

    def whole() -> None:
        example, start = next(theirs)
        whole_then_cut(examples.path(example), start, count)

    row = compare(in_part, whole, CPU, rounds)
    rates = [1e3 / row[key] for key in ("ours_ms", "theirs_ms")]
    remark = f"{rates[0]:,.0f} against {rates[1]:,.0f} crops/s"
    return Timing(f"a crop of 10 s from {label}", **row, remark=remark)


def crops_per_second(data: Folder, workers: int, batches: int = 8, rounds: int = 3) -> float:
    """Of the training batches of a DataModule, once its workers are at work: the best of several stretches."""
    ahead = 3 * max(workers, 1)  # what the workers prepared before the first was taken
    numbers = range(ahead + rounds * batches)
    iterator = iter(DataLoader(data.training_batches(Ranks()), None, sampler=numbers, num_workers=workers))
    for _ in range(ahead):
        next(iterator)

    def stretch() -> None:
        for _ in range(batches):
            next(iterator)

    # The time of this process says nothing of its workers: theirs is that of the clock on the wall.
    clock = functools.partial(wall_seconds if workers else seconds, stretch, CPU)
    return batches * data.batch_size / min(clock() for _ in range(rounds))


def crops_used(machine: Machine) -> Iterator[tuple[str, float, str]]:
    """Crops that a SURF step at beta = 0 uses a second, of two data sets' configs, and how that is known."""
    time = surf_step_ms(machine, "folder", 4.0, 1, torch.float32, checkpointing=False)
    yield "folder_surf_rm, crops of 4 s", 1e3 / time, "measured"
    precision = machine.precisions()[-1]
    each = clip_seconds(machine, precision, step_operations()["SURF, beta = 0"])
    yield (
        f"audioset_surf_rm, crops of 10 s, {name(precision)}",
        1 / each,
        "calculated from operations and share of peak",
    )


def run(machine: Machine) -> Iterator[Timing]:
    """Kinds of files, workers, and what training uses."""
    with tempfile.TemporaryDirectory() as root:
        for number, kind in enumerate(KINDS):
            folder = Path(root, str(number))
            write(folder, kind)
            yield against_whole_files(
                Folder(str(folder), sample_rate=16_000, crop_seconds=CROP_SECONDS).recordings, kind.label
            )
        rates: dict[int, float] = {}
        for kind in (RECORDINGS, CLIPS):
            data = Folder(
                str(Path(root, str(KINDS.index(kind)))), sample_rate=16_000, crop_seconds=CROP_SECONDS, batch_size=BATCH
            )
            for workers in (0, 1, 2, 4, 8, 16):
                if workers <= (os.cpu_count() or 1):
                    rates[workers] = crops_per_second(data, workers)
                    clock = ", by the wall clock" if workers else ""
                    remark = f"{rates[workers]:,.0f} crops of 10 s a second{clock}"
                    yield Timing(f"{workers} workers, {kind.label}", 1e3 / rates[workers], remark=remark)
    for label, used, how in crops_used(machine):
        remark = f"a SURF step uses {used:.3g} a second ({how}), one core reads {rates[0] / used:,.3g} times that"
        yield Timing(label, 1e3 / used, remark=remark)
