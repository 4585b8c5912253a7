"""Every test runs in an empty folder, on one thread, without tracking services."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.audio import trees as audio_trees

# Several processes of several spinning threads each would stand still: in this one and in those that it starts.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture(scope="session")
def mixit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a tiny MixIT run on digits, for later stages."""
    from tests.tiny import mixit_checkpoint

    return mixit_checkpoint(tmp_path_factory.mktemp("mixit"))


@pytest.fixture
def audio_sets(tmp_path: Path) -> Path:
    """A root with little audio sets of noise in every layout."""
    root = tmp_path / "audio"
    for split, count in (("train-360", 6), ("dev", 4), ("test", 3)):
        audio_trees.libri2mix(root / "Libri2Mix", split, count)
    (root / "Libri2Mix" / "wav8k").symlink_to("wav16k")  # files are resampled to the rate that is asked for
    for split in ("train", "validation", "eval"):
        audio_trees.fuss(root / "FUSS" / "ssdata", split, 4)
    audio_trees.audioset(root / "AudioSet", [f"Y{number:010d}" for number in range(6)])
    for split in ("tr", "cv", "tt"):
        audio_trees.wsj0mix(root / "wsj0-mix", split, 4)
    audio_trees.speech_commands(root / "SpeechCommands")
    for place, part in enumerate(("train", "validation", "test")):
        audio_trees.with_truth(root / "phone" / part, 4, seed=100 * place)
    for number in range(6):
        audio_trees.write(root / "recordings" / f"{number}.wav", audio_trees.noise(1.0, number))
    return root


@pytest.fixture
def image_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with small sets of random pixels in MNIST's and CIFAR-10's own layouts, 10 of each held out."""
    from surf_lightning.data import CIFAR10, image_sets

    monkeypatch.setattr(image_sets, "NUM_VALIDATION", 10)
    rng = np.random.default_rng(0)
    root = tmp_path / "sets"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    folder = root / CIFAR10.folder
    folder.mkdir()
    checksums = {}
    for name in CIFAR10.checksums:
        records = rng.integers(0, 256, (10, 3073), dtype=np.uint8).tobytes()
        (folder / name).write_bytes(records)
        checksums[name] = hashlib.md5(records).hexdigest()
    monkeypatch.setattr(CIFAR10, "checksums", checksums)
    return root
