"""Writes small checkpoints of every method and kind of network, for the tests of later versions.

``python -m tests.inference.make_checkpoints`` writes ``checkpoints_<day>.tar.xz`` beside this file. Archives
stay as they are: a later version must load all of them.
"""

from __future__ import annotations

import datetime
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surf_lightning.methods
from surf_lightning.data import Folder
from surf_lightning.inference.checkpoint import KEY, read_checkpoint
from surf_lightning.inference.separator import load_separator
from surf_lightning.methods import (
    BASIS,
    SURF,
    MixCycle,
    MixIT,
    MixPIT,
    OneStep,
    Remixing,
    SemiSupervisedMixIT,
    SequentialUpdate,
    SimultaneousUpdate,
    SupervisedFlow,
    SupervisedRegression,
)
from surf_lightning.methods.base import SeparationModule
from surf_lightning.networks import (
    ConstantNoise,
    ConvTasNet,
    EnvelopeNoise,
    GlobalRMSNoise,
    LogSigma,
    MBLocoformer,
    RegressionLocoformer,
    ScoreNCSNpp,
    SourceHead,
    STFTConvTasNet,
    VelocityConvTasNet,
    VelocityHead,
    VelocitySTFTConvTasNet,
)
from tests.audio import trees
from tests.tiny import adam, digits, regression, trainer, velocity

FOLDER = Path(__file__).parent
ARCHIVES = sorted(FOLDER.glob("checkpoints_*.tar.xz"))
LOCOFORMER: dict[str, Any] = {"features": 8, "attention": 8, "heads": 2, "hidden": 8, "blocks": 1}
LOCOFORMER |= {"mel_bands": 8, "n_fft": 64, "hop": 32}
TASNET: dict[str, Any] = {"filters": 8, "frame": 40, "hop": 20, "bottleneck": 8, "hidden": 8, "repeats": 1, "blocks": 1}
SCORE: dict[str, Any] = {"channels": 4, "multipliers": [1], "blocks": 1, "attention_resolutions": []}
SCORE |= {"image_size": 8, "dropout": 0.0}
LANGEVIN: dict[str, Any] = {"num_levels": 2, "langevin_steps": 2}

MAKERS: dict[str, Callable[[], SeparationModule]] = {
    "image_mixit": lambda: MixIT(regression(4), selection="merged", ema_decay=0.9, optimizer=adam),
    "image_semisupervised": lambda: SemiSupervisedMixIT(regression(4), supervised_share=0.5, optimizer=adam),
    "image_scratch": lambda: Remixing(regression(), "self_remixing", mixit_checkpoint=None, optimizer=adam),
    "image_remixing": lambda: Remixing(
        regression(), 0.5, mixit_checkpoint="image_mixit.ckpt", shuffle="constrained", optimizer=adam
    ),
    "image_mixpit": lambda: MixPIT(regression(), optimizer=adam),
    "image_mixcycle": lambda: MixCycle(regression(), optimizer=adam),
    "image_surf": lambda: SURF(
        velocity(head=SourceHead(), time=LogSigma(0.1, 0.4)),
        "self_remixing",
        noise=ConstantNoise(2.0),
        sampling_noise=0.5,
        early_times=2.0,
        mixit_checkpoint="image_mixit.ckpt",
        optimizer=adam,
    ),
    "image_surf_scratch": lambda: SURF(
        velocity(head=VelocityHead()), num_steps=2, mixit_checkpoint=None, optimizer=adam
    ),
    "image_one_step": lambda: OneStep(velocity(), "image_surf_scratch.ckpt", optimizer=adam),
    "image_supervised_regression": lambda: SupervisedRegression(regression(), optimizer=adam),
    "image_supervised_flow": lambda: SupervisedFlow(velocity(), noise=GlobalRMSNoise(), optimizer=adam),
    "image_basis": lambda: BASIS(
        ScoreNCSNpp(image_channels=1, **SCORE), update=SequentialUpdate(), **LANGEVIN, optimizer=adam
    ),
    "image_basis_simultaneous": lambda: BASIS(
        ScoreNCSNpp(image_channels=1, **SCORE), update=SimultaneousUpdate(), **LANGEVIN, optimizer=adam
    ),
    "audio_mixit_locoformer": lambda: MixIT(RegressionLocoformer(4, 2, **LOCOFORMER), optimizer=adam),
    "audio_mixit_stft": lambda: MixIT(
        STFTConvTasNet(4, 64, 32, bottleneck=8, hidden=8, repeats=1, blocks=1), optimizer=adam
    ),
    "audio_mixit_tasnet": lambda: MixIT(ConvTasNet(4, 2, **TASNET), optimizer=adam),
    "audio_surf_locoformer": lambda: SURF(
        MBLocoformer(2, **LOCOFORMER), mixit_checkpoint="audio_mixit_locoformer.ckpt", optimizer=adam
    ),
    "audio_surf_stft": lambda: SURF(
        VelocitySTFTConvTasNet(2, 64, 32, bottleneck=8, hidden=8, repeats=1, blocks=1),
        mixit_checkpoint="audio_mixit_stft.ckpt",
        initialize_from_mixit=True,
        optimizer=adam,
    ),
    "audio_surf_tasnet": lambda: SURF(
        VelocityConvTasNet(2, **TASNET),
        noise=EnvelopeNoise(8000),
        mixit_checkpoint="audio_mixit_tasnet.ckpt",
        initialize_from_mixit=True,
        optimizer=adam,
    ),
}


def classes_of(description: Any) -> Iterator[str]:
    """The class paths in a description, nested ones too."""
    if isinstance(description, dict) and "class_path" in description:
        yield description["class_path"]
        for value in description["init_args"].values():
            yield from classes_of(value)
    elif isinstance(description, list):
        for value in description:
            yield from classes_of(value)


def held_by(folder: Path) -> set[str]:
    """The names of all classes, methods too, that the checkpoints in ``folder`` hold."""
    records = [read_checkpoint(path)[KEY] for path in folder.glob("*.ckpt")]
    paths = [path for record in records for path in classes_of(record["separator"])]
    return {path.rpartition(".")[2] for path in [*paths, *(record["method"] for record in records)]}


def wanted() -> set[str]:
    """The names of all methods and serializable classes that a checkpoint may hold."""
    import surf_lightning.networks as networks

    places = (surf_lightning.methods, networks, sys.modules[load_separator.__module__])
    classes = [each for place in places for each in vars(place).values() if isinstance(each, type)]
    methods = {
        cls
        for cls in classes
        if cls.__name__ in surf_lightning.methods.__all__ and issubclass(cls, SeparationModule) and not cls.is_oracle
    }
    return {cls.__name__ for cls in classes if "is_serializable" in vars(cls) or cls in methods}


def mixtures_of(signal: dict[str, Any]) -> torch.Tensor:
    """Two mixtures, always the same, for a separator of ``signal``."""
    mixtures = torch.randn(2, *signal.get("shape", [800]), generator=torch.Generator().manual_seed(0))
    return mixtures * (1 if signal["kind"] == "image" else 0.1)


def make(names: list[str], folder: Path) -> None:
    """Train two steps of each, into ``folder``, and note what they estimate."""
    os.chdir(folder)
    for number in range(6):
        trees.write(Path(f"recordings/{number}.wav"), trees.noise(1.0, number), 8000)
    estimates = {}
    for name in names:
        torch.manual_seed(0)
        options: dict[str, Any] = {
            "batch_size": 4,
            "batches_per_epoch": 2,
            "crop_seconds": 0.1,
            "sample_rate": 8000,
            "num_workers": 0,
        }
        data = digits() if name.startswith("image") else Folder("recordings", num_validation=4, **options)
        trainer(Path("run"), limit_val_batches=0).fit(MAKERS[name](), data)
        Path("run/checkpoints/last.ckpt").rename(f"{name}.ckpt")
        separator = load_separator(f"{name}.ckpt")
        found = separator.separate(mixtures_of(separator.signal), torch.Generator().manual_seed(1))
        estimates[name] = found[:1].numpy()
    np.savez_compressed("estimates.npz", **estimates)


def main() -> None:
    """Write the archive."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        make(list(MAKERS), Path(temporary))
        missing = wanted() - held_by(Path(temporary))
        assert not missing, f"add to MAKERS a module that holds {', '.join(sorted(missing))}"
        path = FOLDER / f"checkpoints_{datetime.date.today()}.tar.xz"
        with tarfile.open(path, "w:xz") as archive:
            for file in sorted([*Path(temporary).glob("*.ckpt"), Path(temporary, "estimates.npz")]):
                archive.add(file, file.name)
        os.chdir(here)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
