"""Exported separators where a checkpoint is only evaluated."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from surf_lightning.data import Arrays
from surf_lightning.engine.run_folder import checkpoint_to_continue, trained_checkpoint
from surf_lightning.errors import UserError
from surf_lightning.inference import hub
from surf_lightning.inference.export import export
from surf_lightning.methods import SURF, MixIT, Remixing, SupervisedFlow
from tests.data.test_arrays import write_arrays
from tests.tiny import adam, digits, regression, trainer, velocity

LAST = "run/checkpoints/last.ckpt"


def build(method: str, mixit: str) -> Any:
    later = {"mixit_checkpoint": mixit, "optimizer": adam}
    return {
        "MixIT": functools.partial(MixIT, regression(4), optimizer=adam),
        "Remixing": functools.partial(Remixing, regression(), **later),
        "SURF": functools.partial(SURF, velocity(), **later),
        "SupervisedFlow": functools.partial(SupervisedFlow, velocity(), optimizer=adam),
    }[method]()


@pytest.mark.parametrize("method", ["MixIT", "Remixing", "SURF", "SupervisedFlow"])
def test_an_exported_folder_is_tested_as_the_checkpoint_that_it_was(method: str, mixit: str) -> None:
    trainer(Path("run")).fit(build(method, mixit), digits())
    export(LAST, "model")
    measured = []
    for path in (LAST, trained_checkpoint(Path("none"), "model")):
        measured.append(trainer(Path("run"), "test").test(build(method, mixit), digits(), ckpt_path=path))
    assert measured[0] == measured[1]
    assert json.loads(Path("run/metrics.json").read_text())["checkpoint"] == "model"
    other = "MixIT" if method == "SURF" else "SURF"
    with pytest.raises(UserError, match="but this run trains"):
        trainer(Path("run"), "test").test(build(other, mixit), digits(), ckpt_path="model")


def test_without_truth_an_exported_teacher_has_no_loss(mixit: str) -> None:
    trainer(Path("run")).fit(build("SURF", mixit), digits())
    export(LAST, "model")
    write_arrays(Path("sky"))
    for path, logged in ((LAST, {"val/loss", "val/momi", "val/momi_error"}), ("model", {"val/momi", "val/momi_error"})):
        (values,) = trainer(Path("run"), "validate").validate(
            build("SURF", mixit), Arrays("sky", batch_size=4, batches_per_epoch=2), ckpt_path=path
        )
        assert values.keys() == logged


def test_a_name_on_the_hub_and_a_shipped_one_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(hub.SHIPPED / "digits")
    monkeypatch.setattr(hub, "_downloaded", {"user/name": folder}.__getitem__)
    for given in ("hf://user/name", "user/name", "digits", folder):
        assert trained_checkpoint(Path("none"), given) == folder


def test_a_folder_that_holds_no_separator_is_refused_and_no_export_is_continued() -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no config\.json: give a checkpoint"):
        trained_checkpoint(Path("none"), "empty")
    for given in ("empty", "hf://user/name"):
        with pytest.raises(UserError, match=r"begin with its weights by --model\.initial_checkpoint"):
            checkpoint_to_continue(Path("none"), given)
