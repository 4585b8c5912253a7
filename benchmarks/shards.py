"""Crops from shards against loose files, from memory and from the disk; what an index costs; bytes a crop."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from loaders import BATCH, CROP_SECONDS, Kind, write
from machine import Machine
from rows import Timing
from shipped import RATE
from timing import wall_seconds

from surf_lightning.audio.index import index_audio
from surf_lightning.data import Folder, Shards, shard_writer
from surf_lightning.data.audio import AudioMixtures
from surf_lightning.functional.randomness import Ranks

CPU = torch.device("cpu")
CHUNK_BYTES = 8 << 20  # small chunks, so that a small set has several windows of them
KINDS = (Kind("flac", 16_000, 1, 10, 240), Kind("flac", 48_000, 1, 10, 120), Kind("flac", 16_000, 1, 600, 4))
MANY = 100_000  # files to be indexed


def forget(root: Path) -> None:
    """Drop the files under ``root`` from the system's memory."""
    for path in root.rglob("*.*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def milliseconds_a_crop(data: AudioMixtures, root: Path, cold: bool, batches: int = 12, rounds: int = 3) -> float:
    """By the clock on the wall, which waits for the disk; the best of several stretches, in this process."""
    crops = data.training_batches(Ranks())
    times = []
    for number in range(rounds + 1):
        first = number * batches if cold else 0
        if cold:
            forget(root)
        times.append(wall_seconds(lambda first=first: [crops[first + i] for i in range(batches)], CPU))
    return 1e3 * min(times[1:]) / batches / BATCH


def against_loose_files(kind: Kind, root: Path) -> Iterator[Timing]:
    write(root / "loose", kind)
    shard_writer.CHUNK_BYTES = CHUNK_BYTES
    packing = wall_seconds(lambda: shard_writer.write_shards(root / "loose", str(root / "shards"), RATE, 0.1), CPU)
    rate = kind.count * kind.seconds / packing
    yield Timing(f"packing of {kind.label}", 1e3 * packing / kind.count, remark=f"{rate:,.0f} x real time, all cores")
    options = {"crop_seconds": CROP_SECONDS, "batch_size": BATCH}
    loose, shards = Folder(str(root / "loose"), **options), Shards(str(root / "shards"), **options)
    size = shards.index["chunk_size"].sum() / len(shards.index["lengths"]) / 1e3
    for cold in (False, True):
        ours, theirs = (milliseconds_a_crop(data, Path(data.root), cold) for data in (shards, loose))
        where = "from the disk" if cold else "from memory"
        remark = f"{1e3 / ours:,.0f} against {1e3 / theirs:,.0f} crops/s; {size:,.0f} kB of shards a crop"
        yield Timing(
            f"a crop {where}, {kind.label}", ours, theirs, theirs / ours, remark=f"plain: loose files; {remark}"
        )


def indexing(root: Path, count: int) -> Iterator[Timing]:
    """Tiny files, so that it is the files that count, not their audio."""
    data = io.BytesIO()
    soundfile.write(data, np.random.default_rng(0).uniform(-0.5, 0.5, 500), 1000, format="WAV", subtype="PCM_16")
    names = [f"{number // 1000:03}/{number:06}.wav" for number in range(count)]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.getvalue())
    for label in ("first", "second"):
        time = 1e3 * wall_seconds(lambda: index_audio(root, names), CPU)
        yield Timing(f"index of {count:,} files, the {label} time", time, remark=f"{1e3 * count / time:,.0f} files/s")


def run(machine: Machine) -> Iterator[Timing]:
    """Clips at the model's rate and above it, recordings in pieces, then many files."""
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            yield from against_loose_files(kind, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from indexing(Path(folder), MANY)
