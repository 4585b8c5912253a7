"""The terms of remixing of a separator that teaches itself, beside the other metrics and only by request."""

from __future__ import annotations

from pathlib import Path

import pytest

from surf_lightning.callbacks import MeasureRemixing
from surf_lightning.data import Folder
from surf_lightning.errors import UserError
from surf_lightning.functional.losses import log_energy
from surf_lightning.methods import SURF, Remixing
from tests.methods.test_bfloat16 import conv_tasnet
from tests.tiny import adam, digits, regression, trainer, velocity

TERMS = {"pseudo_supervised", "inherited", "coupled"}


@pytest.mark.parametrize("stage", ["test", "val"])
def test_they_stand_beside_the_metrics(stage: str) -> None:
    flow = SURF(velocity(), mixit_checkpoint=None, optimizer=adam)
    subcommand = {"test": "test", "val": "validate"}[stage]
    tester = trainer(Path("run"), subcommand, callbacks=[MeasureRemixing()])
    measure = getattr(tester, subcommand)
    measure(flow, digits(num_test=8, num_validation=8))
    first = {name: float(tester.callback_metrics[f"{stage}/{name}"]) for name in TERMS}
    assert first["pseudo_supervised"] > 0
    assert f"{stage}/psnr" in tester.callback_metrics
    measure(flow, digits(num_test=8, num_validation=8))
    assert first == {name: float(tester.callback_metrics[f"{stage}/{name}"]) for name in TERMS}


def test_a_flow_has_them_at_times_of_its_path() -> None:
    """At t = 0 those of one Euler step from the prior; near the end the path shows the teacher's estimates."""
    flow = SURF(velocity(), mixit_checkpoint=None, num_steps=1, optimizer=adam)
    tester = trainer(Path("run"), "test", callbacks=[MeasureRemixing([0.0, 0.999])])
    tester.test(flow, digits(num_test=64))
    found = {name: float(value) for name, value in tester.callback_metrics.items()}
    assert found["test/inherited_0"] == pytest.approx(found["test/inherited"], rel=0.1)
    assert found["test/pseudo_supervised_0"] == pytest.approx(found["test/pseudo_supervised"], rel=0.1)
    assert found["test/inherited_0.999"] == pytest.approx(1, abs=0.05)
    assert found["test/pseudo_supervised_0.999"] == pytest.approx(1, abs=0.05)


def test_times_are_of_flows() -> None:
    with pytest.raises(ValueError, match="times of a path"):
        MeasureRemixing([1.0])
    module = Remixing(regression(), mixit_checkpoint=None, optimizer=adam)
    with pytest.raises(UserError, match="only a flow has times"):
        trainer(Path("run"), "test", callbacks=[MeasureRemixing([0.5])]).test(module, digits(num_test=8))


def test_without_it_a_test_has_none() -> None:
    module = Remixing(regression(), mixit_checkpoint=None, optimizer=adam)
    tester = trainer(Path("run"), "test")
    tester.test(module, digits())
    assert not {f"test/{name}" for name in TERMS} & tester.callback_metrics.keys()


def test_recordings_without_truth_have_none(audio_sets: Path) -> None:
    options = {"num_workers": 0, "batch_size": 2, "crop_seconds": 0.2, "num_validation": 4}
    module = Remixing(conv_tasnet(), "remixit", log_energy, mixit_checkpoint=None, optimizer=adam)
    validator = trainer(Path("run"), "validate", callbacks=[MeasureRemixing()])
    validator.validate(module, Folder(root=str(audio_sets / "recordings"), **options))
    assert "val/inherited" not in validator.callback_metrics
