"""Checkpoints of version 0.1 before its folders moved load, separate as they did, and go on.

``checkpoints_0.1.tar.xz`` holds one for every method and kind of network, and the estimates they gave.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from surf_lightning.inference.separator import load_separator
from surf_lightning.methods import SURF, MixIT, Remixing
from tests.tiny import adam, digits, regression, trainer, velocity

ARCHIVE = Path(__file__).with_name("checkpoints_0.1.tar.xz")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_every_old_checkpoint_separates_as_it_did(old: Path) -> None:
    expected = np.load(old / "estimates.npz")
    assert len(expected.files) == len(list(old.glob("*.ckpt"))) == 14
    for name in expected.files:
        separator = load_separator(old / f"{name}.ckpt")
        shape = separator.signal.get("shape", [800])
        mixtures = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        mixtures *= 1 if separator.signal["kind"] == "image" else 0.1
        estimates = separator.separate(mixtures, torch.Generator().manual_seed(1))[:1]
        torch.testing.assert_close(estimates.numpy(), expected[name], rtol=1e-4, atol=1e-5, msg=name)


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
