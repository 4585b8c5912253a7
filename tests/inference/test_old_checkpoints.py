"""Checkpoints of earlier versions load, separate as they did, and go on.

``checkpoints_0.1.tar.xz`` is of version 0.1 before its folders moved, the others are named by their days. Each holds
checkpoints of every method and kind of network there was, and the estimates they gave.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from surf_lightning.inference.separator import load_separator
from surf_lightning.methods import SURF, MixIT, Remixing
from tests.inference.make_checkpoints import ARCHIVES, held_by, mixtures_of, wanted
from tests.tiny import adam, digits, regression, trainer, velocity

OLDEST = "checkpoints_0.1.tar.xz"


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(Path(__file__).with_name(name)) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return unpacked(OLDEST, tmp_path)


@pytest.mark.parametrize("name", [path.name for path in ARCHIVES])
def test_every_old_checkpoint_separates_as_it_did(name: str, tmp_path: Path) -> None:
    folder = unpacked(name, tmp_path)
    expected = np.load(folder / "estimates.npz")
    assert len(expected.files) == len(list(folder.glob("*.ckpt"))) >= 14
    for name in expected.files:
        separator = load_separator(folder / f"{name}.ckpt")
        estimates = separator.separate(mixtures_of(separator.signal), torch.Generator().manual_seed(1))[:1]
        torch.testing.assert_close(estimates.numpy(), expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_newest_archive_has_every_method_and_network_of_today(tmp_path: Path) -> None:
    """Where this fails, add one to ``make_checkpoints.MAKERS`` and run it."""
    assert wanted() - held_by(unpacked(ARCHIVES[-1].name, tmp_path)) == set()


@pytest.mark.parametrize("name", ["digits_mixit", "digits_remixit", "digits_surf_rm"])
def test_an_old_run_goes_on(old: Path, name: str) -> None:
    modules = {
        "digits_mixit": lambda: MixIT(regression(4), optimizer=adam),
        "digits_remixit": lambda: Remixing(regression(), mixit_checkpoint="", optimizer=adam),
        "digits_surf_rm": lambda: SURF(velocity(), mixit_checkpoint="", optimizer=adam),
    }
    weights = torch.load(old / f"{name}.ckpt", weights_only=True)["state_dict"]
    module = modules[name]()
    trainer(old / "run", max_steps=4, limit_val_batches=0).fit(module, digits(), ckpt_path=str(old / f"{name}.ckpt"))
    assert module.global_step == 4
    if name != "digits_mixit":  # what was called anchor
        for key, value in module.frozen_teacher.state_dict().items():
            assert torch.equal(value, weights[f"anchor.{key}"])
