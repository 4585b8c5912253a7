"""What the final evaluation of each data set measures, how it says so, and whether it is the paper's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchmetrics import Metric

from surf_lightning.data import CIFAR10, FUSS, MNIST, AudioSet, Digits, Libri2Mix, LibriSpeechFUSS, mnist
from surf_lightning.data import audioset as audioset_module
from surf_lightning.data import fuss as fuss_module
from surf_lightning.data import libri2mix as libri2mix_module
from surf_lightning.data import librispeech_fuss as librispeech_module
from surf_lightning.data.base import SeparationData
from surf_lightning.data.images import ImageMixtures, md5
from surf_lightning.metrics.evaluation import ImageEvaluation, PerceptualMetrics, PixelMetrics, SampleMetrics
from surf_lightning.metrics.images import PSNR


class Recording(ImageEvaluation):
    """Notes what it is asked for."""

    record = "mine"

    def columns(self, training_images: Any, weights: str | None) -> dict[str, Metric]:
        self.asked = training_images(), weights
        return {"psnr": PSNR()}

    def protocol(self) -> str:
        return "By me."


def test_digits_are_tested_without_networks_and_the_other_sets_by_all_columns_of_table_1() -> None:
    assert isinstance(Digits().evaluation, PixelMetrics)
    assert [name for name, _ in Digits().test_metrics().columns.items()] == ["psnr", "ssim"]  # type: ignore[union-attr,operator]
    for cls in (MNIST, CIFAR10):
        assert isinstance(cls(root="nowhere").evaluation, PerceptualMetrics)
    assert (Digits().results_name, Digits(evaluation=SampleMetrics()).results_name) == ("metrics", "metrics_samples")


def test_an_evaluation_gets_the_whole_training_set_and_the_folder_of_weights(image_sets: Path) -> None:
    evaluation = Recording()
    data = MNIST(root=str(image_sets), evaluation=evaluation, weights="here")
    metrics = data.test_metrics()
    images, weights = evaluation.asked
    assert weights == "here"
    assert torch.equal(images, torch.cat([data.splits.train, data.splits.validation]))
    assert len(images) == 40
    sources = torch.rand(2, 2, 1, 28, 28)
    metrics.update(sources.flip(1), sources, sources.sum(1))
    assert metrics.compute()["psnr"].item() == pytest.approx(100)


def test_the_protocol_names_set_split_pairing_alignment_and_measures() -> None:
    text = Digits(num_test=1234, num_sources=3, evaluation=Recording()).protocol()
    for part in (
        "1,234 mixtures",
        "3 images",
        "300 test images of Digits",
        "permutations",
        "least squared error",
        "By me.",
    ):
        assert part in text


class Fixed(ImageMixtures):
    """Data of the user's own."""

    load = Digits.load


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({}, "mnist"),
        ({"num_test": 4999}, None),
        ({"num_sources": 3}, None),
        ({"num_test": 25_000}, None),
        ({"num_test": 25_000, "evaluation": SampleMetrics()}, "mnist_samples"),
        ({"evaluation": SampleMetrics()}, None),
        ({"evaluation": Recording()}, None),
    ],
)
def test_the_papers_table_is_claimed_for_its_protocol_alone(
    options: dict[str, Any], table: str | None, image_sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = image_sets / "MNIST" / "raw"
    assert MNIST(root=str(image_sets)).published() is None, "random pixels are a stand-in"
    monkeypatch.setattr(mnist, "MD5", {name: md5(raw / name) for name in mnist.MD5})
    assert MNIST(root=str(image_sets), **options).published() == table


def test_stand_ins_claim_no_table_of_the_paper(audio_sets: Path) -> None:
    assert Digits().published() is None
    assert Fixed().published() is None
    sets: list[SeparationData] = [
        Libri2Mix(root=str(audio_sets / "Libri2Mix")),
        FUSS(root=str(audio_sets / "FUSS" / "ssdata")),
        AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=str(audio_sets / "FUSS" / "ssdata")),
    ]
    assert [data.published() for data in sets] == [None, None, None]


def test_audio_sets_of_the_published_sizes_claim_theirs(audio_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libri2mix_module, "NUM_TEST", 3)
    monkeypatch.setattr(fuss_module, "NUM_EVAL", 4)
    fuss = str(audio_sets / "FUSS" / "ssdata")
    assert Libri2Mix(root=str(audio_sets / "Libri2Mix")).published() == "libri2mix"
    assert (
        Libri2Mix(root=str(audio_sets / "Libri2Mix")).protocol().startswith("3 whole mixtures of Libri2Mix's test set")
    )
    assert FUSS(root=fuss).published() == "fuss"
    assert AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=fuss).published() is None
    monkeypatch.setattr(audioset_module, "SMALLEST_PART", 6)
    assert AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=fuss).published() == "audioset"


def test_noisy_speech_is_known_by_its_utterances_and_backgrounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = LibriSpeechFUSS()
    for sizes, table in (((2620, 1000), "librispeech_fuss"), ((2619, 1000), None), ((2620, 999), None)):
        data.noisy_speech = SimpleNamespace(speech=range(sizes[0]), backgrounds=range(sizes[1]))  # type: ignore[assignment]
        assert data.published() == table
    assert librispeech_module.NUM_UTTERANCES == 2620


def test_weights_reach_the_networks_of_audio(audio_sets: Path) -> None:
    fuss = str(audio_sets / "FUSS" / "ssdata")
    data = AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=fuss, librispeech_root="nowhere", weights="here")
    assert [test.weights for test in data.tests] == ["here", "here"]
    metrics = Libri2Mix(root=str(audio_sets / "Libri2Mix"), weights="here").test_metrics()
    assert metrics.columns["dnsmos"].weights == "here"  # type: ignore[union-attr,operator,index]
