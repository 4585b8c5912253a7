"""What `surf validate` and `surf test` print, and what a test writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning import __version__
from surf_lightning.callbacks.results import results_text
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.methods import MixIT, SemiSupervisedMixIT, SupervisedFlow
from surf_lightning.metrics.evaluation import ImageEvaluation, PerceptualMetrics, SampleMetrics, build_metrics
from surf_lightning.metrics.images import PSNR, ImageMean, ImageMetrics
from surf_lightning.metrics.perceptual import FID, SampleQuality
from surf_lightning.metrics.tables import results_table
from tests.tiny import adam, digits, regression, trainer, velocity


def rows(printed: str) -> dict[str, list[str]]:
    """The lines of a printed table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}


def test_a_test_prints_the_row_of_the_table_and_where_it_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("run")
    trainer(folder, "test").test(MixIT(regression(4), optimizer=adam), digits(num_test=6))
    printed = capsys.readouterr().out
    record = json.loads((folder / "metrics.json").read_text())
    psnr, ssim = record["metrics"]["psnr"], record["metrics"]["ssim"]
    assert rows(printed)["MixIT"][:2] == [f"{psnr:.2f}", f"{ssim:.3f}"]
    assert rows(printed)["method"][:3] == ["PSNR", "(dB)", "↑"]
    assert rows(printed)["Average"][1] == f"{record['average']['psnr']:.2f}"
    assert record["protocol"] in printed
    assert f"written to {folder / 'metrics.json'}" in printed
    assert "test/psnr" not in printed, "Lightning's own list would say the same again, to 17 digits"


@pytest.mark.parametrize("method", [MixIT, SemiSupervisedMixIT])
def test_what_learns_from_true_sources_is_marked(method: type[MixIT]) -> None:
    trainer(Path("run"), "test").test(method(regression(4), optimizer=adam), digits(num_test=4))
    results = json.loads(Path("run/metrics.json").read_text())
    assert results["needs_sources"] == (method is SemiSupervisedMixIT)
    kind = "supervised" if results["needs_sources"] else "unsupervised"
    assert [row.kind for row in results_table([results], ["a"]).rows] == ["average", kind]


def test_a_validation_measures_the_columns_of_the_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = digits(num_validation=6), Path("run")
    monkeypatch.setattr(data, "metrics", lambda: pytest.fail("those are for looking at during fit"))
    validator = trainer(folder, "validate")
    measured = validator.validate(MixIT(regression(4), optimizer=adam), data)[0]
    printed = capsys.readouterr().out
    assert rows(printed)["MixIT"][:2] == [f"{measured['val/psnr']:.2f}", f"{measured['val/ssim']:.3f}"]
    assert "Digits: 6 held-out mixtures" in printed
    assert not (folder / "metrics.json").exists()


def test_a_part_of_the_test_set_is_not_passed_off_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = digits(num_test=8), Path("run")
    monkeypatch.setattr(data, "genuine", lambda: True)
    for limit, genuine, protocol in ((1.0, True, data.protocol()), (1, False, "Only the first 4 of: ")):
        trainer(folder, "test", limit_test_batches=limit).test(MixIT(regression(4), optimizer=adam), data)
        results = json.loads((folder / "metrics.json").read_text())
        assert results["genuine"] == genuine
        assert results["protocol"].startswith(protocol)


# -- the printed row --

RESULTS: dict[str, Any] = {
    "metrics": {"pesq": 2.5, "si_sdr": 12.3949, "estoi": 0.75, "si_sdri": 12.0},
    "average": {"pesq": 1.25, "si_sdr": 0.0, "estoi": 0.5, "si_sdri": 0.0},
    "protocol": "Three mixtures.",
    "data": "Libri2Mix",
    "genuine": True,
    "mixtures": 3000,
    "sample_rate": 16000,
    "label": "MixIT",
    "steps": 2000,
    "seconds": 90.0,
}


def test_the_row_has_the_papers_columns_digits_and_values() -> None:
    lines = [" ".join(line.split()) for line in results_text(RESULTS).splitlines()]
    assert lines == [
        "Three mixtures.",
        "",
        "method SI-SDR (dB) ↑ ESTOI ↑ PESQ ↑ DNSMOS ↑ steps minutes",
        "Average (m/K) 0.00 0.500 1.25 n/a",
        "MixIT 12.39 0.750 2.50 n/a 2,000 1.5",
        "in the paper 12.39 0.753 2.52 2.36",
        "",
        "SI-SDRi (dB): 12.00",
        "The paper's rows: Table 4.",
    ]


def test_columns_line_up_and_empty_ones_are_left_out() -> None:
    bare = {key: value for key, value in RESULTS.items() if key not in ("average", "steps", "seconds", "genuine")}
    lines = results_text(bare).splitlines()
    heading, row = lines[2:4]
    assert not heading.endswith("minutes")
    assert heading.index("↑") == row.index("12.39") + len("12.39") - 1
    assert len(heading) == len(row)


# -- what a test leaves --


def test_a_test_writes_what_it_measured_beside_the_mean_of_the_sources() -> None:
    module, data, folder = MixIT(regression(4), seed=3, optimizer=adam), digits(num_test=10), Path("run")
    trainer(folder, "test").test(module, data, verbose=False)
    results = json.loads((folder / "metrics.json").read_text())

    batches: Any = data.test_batches()
    measured, average = ImageMetrics(), ImageMetrics()
    for index in range(3):
        mixtures, sources = batches[index]["mixtures"], batches[index]["sources"]
        measured.update(module.separate(mixtures, index), sources, mixtures)
        average.update(torch.stack([mixtures / 2, mixtures / 2], 1), sources, mixtures)
    assert results["metrics"].pop("momi") < 0  # an untrained network rebuilds nothing
    for found, wanted in ((results["metrics"], measured), (results["average"], average)):
        assert found == pytest.approx({name: float(value) for name, value in wanted.compute().items()}, rel=1e-6)
    assert results["metrics"]["psnr"] != results["average"]["psnr"]
    named = {"method": "MixIT", "label": "MixIT", "seed": 3, "steps": 0}
    named |= {"data": "Digits", "mixtures": 10, "sources": 2, "evaluation": "PixelMetrics", "genuine": False}
    named |= {"kind": "image", "shape": [1, 8, 8]}
    assert {name: results[name] for name in named} == named

    examples = torch.load(folder / "test_examples.pt", weights_only=True)
    assert [len(examples[name]) for name in ("mixtures", "sources", "estimates")] == [8, 8, 8]
    assert torch.equal(torch.stack(examples["sources"][:4]), batches[0]["sources"])
    assert torch.equal(torch.stack(examples["estimates"][4:]), module.separate(batches[1]["mixtures"], 1))


class NoNumber(ImageMean):
    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        return torch.full((len(estimates),), torch.nan)


class Mine(ImageEvaluation):
    """PSNR, a metric that comes to no number, and one that lacks its weights."""

    results_name = "metrics_mine"
    protocol = "By hand."

    def columns(self, training_images: Any, weights: str | None) -> dict[str, Metric]:
        return build_metrics({"psnr": PSNR, "silent": NoNumber, "lpips": self.no_weights})

    def no_weights(self) -> Metric:
        raise OSError("there are no weights")


def test_a_value_that_is_no_number_is_null_and_a_metric_that_cannot_be_built_is_left_out() -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("# version: 0\nseed_everything: 5\n")
    module, data = MixIT(regression(4), seed=3, optimizer=adam), digits(num_test=4, evaluation=Mine())
    with pytest.warns(UserWarning, match="the metric lpips is left out: there are no weights"):
        trainer(Path("run"), "test").test(module, data, verbose=False)
    assert not Path("run/metrics.json").exists()
    text = Path("run/metrics_mine.json").read_text()
    assert "NaN" not in text
    results = json.loads(text)
    assert results["metrics"]["psnr"] > 0
    for values in (results["metrics"], results["average"]):
        assert values.keys() == {"psnr", "silent"}
        assert values["silent"] is None
    assert results["protocol"].endswith("By hand.")
    assert results["evaluation"] == "Mine"
    assert results["seed"] == 5, "a test need not be told again what seed the run was trained from"
    assert results["version"] == __version__


class Features:
    """Stands for Inception: 3 features of uint8 images. Counts the images."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        features = images.float().flatten(1)[:, 20:23] / 255
        return features, features

    def __deepcopy__(self, memo: Any) -> Features:
        return self


class SmallTable1(PerceptualMetrics):
    features = Features()

    def columns(self, training_images: Any, weights: str | None) -> dict[str, Metric]:
        return {"psnr": PSNR(), "fid": FID(self.features, num_features=3)}


class SmallTable2(SampleMetrics):
    features = Features()

    def columns(self, training_images: Any, weights: str | None) -> dict[str, Metric]:
        return {"samples": SampleQuality(self.features, training_images, num_features=3)}


def test_fid_of_the_mean_of_the_sources_stands_in_table_2_alone_and_no_image_is_measured_twice() -> None:
    columns: dict[Any, set[str]] = {SmallTable1(): {"psnr"}, SmallTable2(): {"is", "is_std", "fid"}}
    for evaluation, of_average in columns.items():
        data = digits(num_test=12, evaluation=evaluation)
        trainer(Path("run"), "test").test(MixIT(regression(4), optimizer=adam), data, verbose=False)
        results = json.loads(Path("run", f"{evaluation.results_name}.json").read_text())
        assert results["average"].keys() == of_average
        assert results["metrics"].keys() == of_average | {"fid", "momi"}
        assert results["metrics"]["fid"] > 0
    assert results["average"]["fid"] != results["metrics"]["fid"]
    assert SmallTable1.features.seen == 24 + 24  # sources and estimates
    assert SmallTable2.features.seen == 1347 + 150 + 24 + 24  # training images, estimates and m/K


def test_the_mean_of_samples_stands_beside_the_single_sample() -> None:
    module, data, folder = SupervisedFlow(velocity(), optimizer=adam), digits(num_test=6), Path("run")
    trainer(folder, "test", num_samples=3).test(module, data, verbose=False)
    results = json.loads((folder / "metrics.json").read_text())
    measured, single = ImageMetrics({"psnr": PSNR()}), ImageMetrics({"psnr": PSNR()})
    batches: Any = data.test_batches()
    for index in range(2):
        mixtures, sources = batches[index]["mixtures"], batches[index]["sources"]
        samples = [module.separate(mixtures, index)]
        single.update(samples[0], sources, mixtures)
        for number in (1, 2):
            generator = torch.Generator().manual_seed(mix_seed(0, index, number))
            sample = module.separator.separate(mixtures, generator)
            mean = torch.stack(samples).mean(0)
            apart = (mean - sample).flatten(2).square().sum((1, 2)) > (mean - sample.flip(1)).flatten(2).square().sum(
                (1, 2)
            )
            samples.append(torch.where(apart.view(-1, 1, 1, 1, 1), sample.flip(1), sample))
        measured.update(torch.stack(samples).mean(0), sources, mixtures)
    mean_of_samples = results["mean_of_samples"]
    assert mean_of_samples["num_samples"] == 3
    assert mean_of_samples["metrics"]["psnr"] == pytest.approx(float(measured.compute()["psnr"]), rel=1e-5)
    assert results["metrics"]["psnr"] == pytest.approx(float(single.compute()["psnr"]), rel=1e-5)
    printed = results_text(results)
    assert "Supervised Flow, mean of 3 samples" in printed
    with pytest.raises(ValueError, match="num_samples"):
        trainer(folder, "test", num_samples=0)
