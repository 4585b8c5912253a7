"""What the final evaluation of each data set measures, how it says so, and whether its files are the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchmetrics import Metric

from surf_lightning.data import CIFAR10, FUSS, MNIST, AudioSet, Digits, Libri2Mix, LibriSpeechFUSS
from surf_lightning.data import audioset as audioset_module
from surf_lightning.data import fuss as fuss_module
from surf_lightning.data import libri2mix as libri2mix_module
from surf_lightning.data.base import SeparationData
from surf_lightning.data.images import ImageMixtures
from surf_lightning.metrics import evaluation
from surf_lightning.metrics.evaluation import ImageEvaluation, PerceptualMetrics, PixelMetrics, SampleMetrics
from surf_lightning.metrics.images import PSNR


class Recording(ImageEvaluation):
    """Notes what it is asked for."""

    results_name = "mine"
    protocol = "By me."

    def columns(self, training_images: Any, weights: str | None) -> dict[str, Metric]:
        self.asked = training_images(), weights
        return {"psnr": PSNR()}


def test_digits_are_tested_without_networks_and_the_other_sets_by_all_columns_of_table_1() -> None:
    assert isinstance(Digits().evaluation, PixelMetrics)
    assert [name for name, _ in Digits().test_metrics().columns.items()] == ["psnr", "ssim"]  # type: ignore[union-attr,operator]
    for cls in (MNIST, CIFAR10):
        assert isinstance(cls(root="nowhere").evaluation, PerceptualMetrics)
    assert (PixelMetrics.results_name, SampleMetrics.results_name) == ("metrics", "metrics_samples")


def test_an_evaluation_gets_the_whole_training_set_and_the_folder_of_weights(image_sets: Path) -> None:
    recording = Recording()
    data = MNIST(root=str(image_sets), evaluation=recording, weights="here")
    metrics = data.test_metrics()
    images, weights = recording.asked
    assert weights == "here"
    assert torch.equal(images, torch.cat([data.splits.train, data.splits.validation]))
    assert len(images) == 40
    sources = torch.rand(2, 2, 1, 28, 28)
    metrics.update(sources.flip(1), sources, sources.sum(1))
    assert metrics.compute()["psnr"].item() == pytest.approx(100)


def test_the_protocol_names_set_split_pairing_alignment_and_measures() -> None:
    text = Digits(num_test=1234, num_sources=3, evaluation=Recording()).protocol()
    said = ("1,234 mixtures", "3 images", "300 test images of Digits", "permutations", "least squared error", "By me.")
    assert all(part in text for part in said)


class Fixed(ImageMixtures):
    """Data of the user's own."""

    load = Digits.load


def test_images_are_known_by_their_checksums(image_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = image_sets / "MNIST" / "raw"
    assert not MNIST(root=str(image_sets)).genuine(), "random pixels are a stand-in"
    mine = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in MNIST.checksums}
    monkeypatch.setattr(MNIST, "checksums", mine)
    assert MNIST(root=str(image_sets)).genuine()


def test_stand_ins_are_not_genuine(audio_sets: Path) -> None:
    sets: list[SeparationData] = [
        Digits(),
        Fixed(),
        Libri2Mix(root=str(audio_sets / "Libri2Mix")),
        FUSS(root=str(audio_sets / "FUSS" / "ssdata")),
        AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=str(audio_sets / "FUSS" / "ssdata")),
    ]
    assert not any(data.genuine() for data in sets)


def test_audio_sets_are_known_by_their_sizes(audio_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libri2mix_module, "NUM_TEST", 3)
    monkeypatch.setattr(fuss_module, "NUM_EVAL", 4)
    fuss = str(audio_sets / "FUSS" / "ssdata")
    libri2mix = Libri2Mix(root=str(audio_sets / "Libri2Mix"))
    assert libri2mix.genuine()
    assert libri2mix.protocol().startswith("3 whole mixtures of Libri2Mix's test set")
    assert FUSS(root=fuss).genuine()
    assert not AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=fuss).genuine()
    monkeypatch.setattr(audioset_module, "SMALLEST_PART", 6)
    assert AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=fuss).genuine()


def test_noisy_speech_is_known_by_its_utterances_and_backgrounds() -> None:
    data = LibriSpeechFUSS()
    for sizes, genuine in (((2620, 1000), True), ((2619, 1000), False), ((2620, 999), False)):
        data.noisy_speech = SimpleNamespace(speech=range(sizes[0]), backgrounds=range(sizes[1]))  # type: ignore[assignment]
        assert data.genuine() == genuine


def test_weights_reach_the_networks_of_audio(audio_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuss = str(audio_sets / "FUSS" / "ssdata")
    data = AudioSet(root=str(audio_sets / "AudioSet"), fuss_root=fuss, librispeech_root="nowhere", weights="here")
    assert [test.weights for test in data.tests] == ["here", "here"]
    asked = []
    monkeypatch.setattr(evaluation, "DNSMOS", lambda *arguments: asked.append(arguments) or PSNR())
    Libri2Mix(root=str(audio_sets / "Libri2Mix"), weights="here").test_metrics()
    assert asked == [(16000, "here")]
