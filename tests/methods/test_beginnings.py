"""Runs that begin with an earlier separator: its weights, an exported folder, a supervised teacher of another set."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surf_lightning.data import Arrays
from surf_lightning.errors import UserError
from surf_lightning.inference.export import export
from surf_lightning.inference.separator import load_separator
from surf_lightning.methods import SURF, Remixing, SupervisedFlow, SupervisedRegression
from tests.data.test_arrays import write_arrays
from tests.tiny import adam, digits, perturbed, regression, trainer, velocity


@pytest.mark.parametrize("exported", [False, True])
def test_supervised_training_begins_with_the_weights_of_mixit(mixit: str, exported: bool) -> None:
    if exported:
        export(mixit, "model")
    module = supervised("model" if exported else mixit)
    assert not _alike(module, mixit)
    trainer(Path("run"), max_steps=1).fit(module, digits())
    assert _alike(module, mixit)
    resumed = supervised("gone.ckpt")
    with pytest.raises(UserError, match=r"there is no checkpoint gone\.ckpt"):
        resumed.check_earlier_stage()
    trainer(Path("run"), max_steps=2).fit(resumed, digits(), ckpt_path="run/checkpoints/last.ckpt")  # it has its own


def supervised(checkpoint: str) -> SupervisedRegression:
    """With an average of its weights, and a learning rate of zero."""
    still = functools.partial(torch.optim.SGD, lr=0.0)
    return SupervisedRegression(
        perturbed(regression(4), seed=9), optimizer=still, initial_checkpoint=checkpoint, ema_decay=0.9
    )


def _alike(module: SupervisedRegression, checkpoint: str) -> bool:
    theirs = load_separator(checkpoint).network.state_dict().items()
    parts = (module.student.network.state_dict(), module.separator.network.state_dict())
    return all(torch.equal(part[key], value) for key, value in theirs for part in parts)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("flow_teaches", [False, True])
def test_a_supervised_separator_of_another_set_teaches_as_a_checkpoint_or_as_an_exported_folder(
    flow: bool, flow_teaches: bool
) -> None:
    """Of digits, whose values lie elsewhere; the mixtures to adapt to have no truth."""
    supervised = (
        SupervisedFlow(velocity(), optimizer=adam)
        if flow_teaches
        else SupervisedRegression(regression(), optimizer=adam)
    )
    trainer(Path("supervised")).fit(supervised, digits())
    export("supervised/checkpoints/last.ckpt", "model")
    write_arrays(Path("sky"))
    teacher = load_separator("model")
    for path in ("supervised/checkpoints/last.ckpt", "model"):
        module: Any = (SURF if flow else Remixing)(
            velocity() if flow else regression(), mixit_checkpoint=path, optimizer=adam, ema_decay=0.9
        )
        trainer(Path("run")).fit(module, Arrays("sky", batch_size=4, batches_per_epoch=2))
        mixtures = torch.from_numpy(np.random.default_rng(0).random((2, 1, 8, 8), np.float32))
        noise = torch.randn(2, 2, 1, 8, 8)
        assert torch.equal(module.frozen_teacher.separate_from(mixtures, noise), teacher.separate_from(mixtures, noise))
        separator = load_separator("run/checkpoints/last.ckpt")
        assert "values" in separator.signal
