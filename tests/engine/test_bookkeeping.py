"""What a test run writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning import __version__
from surf_lightning.engine import bookkeeping
from surf_lightning.methods import MixIT
from surf_lightning.metrics.evaluation import ImageEvaluation
from surf_lightning.metrics.images import PSNR, ImageMean, ImageMetrics
from tests.tiny import adam, digits, regression, trainer

NAN = float("nan")


def test_a_test_records_what_it_measured_beside_the_mean_of_the_sources() -> None:
    module, data, folder = MixIT(regression(4), seed=3, optimizer=adam), digits(num_test=10), Path("run")
    trainer(folder, "test").test(module, data, verbose=False)
    record = json.loads((folder / "metrics.json").read_text())

    batches: Any = data.test_batches()
    measured, average = ImageMetrics(), ImageMetrics()
    for index in range(3):
        mixtures, sources = batches[index]["mixtures"], batches[index]["sources"]
        measured.update(module.separate(mixtures, index), sources, mixtures)
        average.update(torch.stack([mixtures / 2, mixtures / 2], 1), sources, mixtures)
    for found, wanted in ((record["metrics"], measured), (record["average"], average)):
        assert found == pytest.approx({name: float(value) for name, value in wanted.compute().items()}, rel=1e-6)
    assert record["metrics"]["psnr"] != record["average"]["psnr"]
    named = {"mixtures": 10, "method": "MixIT", "label": "MixIT", "data": "Digits", "seed": 3, "steps": 0}
    assert {name: record[name] for name in named} == named

    examples = torch.load(folder / "test_examples.pt", weights_only=True)
    assert [len(examples[name]) for name in ("mixtures", "sources", "estimates")] == [8, 8, 8]
    assert torch.equal(torch.stack(examples["sources"][:4]), batches[0]["sources"])
    assert torch.equal(torch.stack(examples["estimates"][4:]), module.separate(batches[1]["mixtures"], 1))


class Unmeasurable(ImageMean):
    unavailable = "not available, because: there are no weights"

    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        return torch.full((len(estimates),), torch.nan)


class Partial(ImageEvaluation):
    """PSNR, a metric that lacks its weights, and one that comes to nothing."""

    record = "metrics_mine"

    def columns(self, training_images: Any, weights: str | None) -> dict[str, Metric]:
        silent = Unmeasurable()
        silent.unavailable = None
        return {"psnr": PSNR(), "lpips": Unmeasurable(), "silent": silent}

    def protocol(self) -> str:
        return "By hand."


def test_a_value_that_cannot_be_had_is_null_with_its_reason() -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("# version: 0\nseed_everything: 5\n")
    module, data = MixIT(regression(4), seed=3, optimizer=adam), digits(num_test=4, evaluation=Partial())
    trainer(Path("run"), "test").test(module, data, verbose=False)
    assert not Path("run/metrics.json").exists()
    text = Path("run/metrics_mine.json").read_text()
    assert "NaN" not in text
    record = json.loads(text)
    assert record["metrics"]["psnr"] > 0
    for values in (record["metrics"], record["average"]):
        assert values["lpips"] is values["silent"] is None
    assert record["unavailable"] == {"lpips": Unmeasurable.unavailable, "silent": bookkeeping.NOTHING}
    assert record["protocol"].endswith("By hand.")
    assert record["published"] is None
    assert record["seed"] == 5, "a test need not be told again what seed the run was trained from"
    assert record["version"] == __version__
