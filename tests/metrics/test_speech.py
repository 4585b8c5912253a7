"""Axes: B batch, K references, M estimates, T samples."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.metrics.audio import SISDR, align_by_si_sdr
from surf_lightning.metrics.evaluation import speech_metrics
from surf_lightning.metrics.speech import DNSMOS, ESTOI, PESQ, SpeechMetric

RATE = 16000


def speech(seed: int, seconds: float = 1.2, rate: int = RATE) -> Tensor:
    """Syllables: a gliding harmonic tone, four to the second, with a little breath. 1.2 s are one window of DNSMOS."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * rate)) / rate
    phase = 2 * math.pi * (110 + 17 * seed) * (t + 0.02 * torch.sin(2 * math.pi * 1.3 * t + seed))
    voice = torch.stack([torch.sin(h * phase) / h for h in range(1, 25)]).sum(0)
    breath = 0.02 * torch.randn(len(t), generator=generator)
    return 0.1 * (torch.sin(2 * math.pi * 2 * t + seed).square() * voice + breath)


def pairs() -> tuple[Tensor, Tensor]:
    """Estimates and references ``[1,2,T]``, in the same order."""
    references = torch.stack([speech(0), speech(1)])[None]
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(9))
    return references + noise * torch.tensor([0.01, 0.03]).view(1, 2, 1), references


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


ESTOI_ = pytest.param(ESTOI, marks=needs("pystoi"))
PESQ_ = pytest.param(PESQ, marks=needs("pesq"))
DNSMOS_ = pytest.param(DNSMOS, marks=needs("onnxruntime", "speechmos"))


def value(metric: Metric, estimates: Tensor, references: Tensor) -> float:
    metric.reset()
    metric.update(estimates, references)
    return metric.compute().item()


@needs("pystoi")
def test_estoi_is_torchmetrics_extended_stoi() -> None:
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    estimates, references = pairs()
    expected = short_time_objective_intelligibility(estimates.double(), references.double(), RATE, extended=True)
    assert expected.std() > 0.01
    assert value(ESTOI(), estimates, references) == pytest.approx(expected.mean().item(), abs=1e-6)


@needs("pystoi")
def test_estoi_at_8_khz() -> None:
    clean = speech(0, rate=8000)[None, None]
    assert value(ESTOI(8000), clean, clean) == pytest.approx(1, abs=1e-6)


@needs("pesq")
def test_pesq_is_torchmetrics_wide_band_pesq() -> None:
    from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality

    estimates, references = pairs()
    expected = perceptual_evaluation_speech_quality(estimates, references, RATE, "wb")
    assert expected.std() > 0.05
    assert value(PESQ(), estimates, references) == pytest.approx(expected.mean().item(), abs=1e-5)
    assert value(PESQ(), references, references) == pytest.approx(4.644, abs=1e-3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """speechmos's networks as torchmetrics lays them out."""
    package = importlib.util.find_spec("speechmos")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs speechmos")
    source = Path(package.submodule_search_locations[0])
    root = tmp_path_factory.mktemp("weights")
    for kind, model in (("DNSMOS", "model_v8"), ("DNSMOS", "sig_bak_ovr"), ("pDNSMOS", "sig_bak_ovr")):
        target = root / "DNSMOS" / kind / f"{model}.onnx"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{kind.lower()}_models" / target.name, target)
    return root


@pytest.mark.slow  # librosa takes its time to import
@needs("onnxruntime", "librosa", "requests")
@pytest.mark.parametrize("seconds", [1.2, 11.2, 18.5])
def test_dnsmos_is_torchmetrics_overall_quality(seconds: float, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.audio import dnsmos

    monkeypatch.setattr(dnsmos, "DNSMOS_DIR", str(weights / "DNSMOS"))
    estimate = speech(3, seconds) + 0.02 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(0))
    expected = dnsmos.deep_noise_suppression_mean_opinion_score(
        estimate, RATE, personalized=False, num_threads=1, cache_session=False
    )
    value_here = value(DNSMOS(weights=weights), estimate[None, None], speech(3, seconds)[None, None])
    assert value_here == pytest.approx(expected[3].item(), abs=1e-4)
    assert value_here > 1


@needs("onnxruntime", "speechmos")
def test_dnsmos_finds_its_network(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = speech(0)[None, None]
    packaged = DNSMOS()
    assert "dnsmos_models" in str(packaged.network)
    given = DNSMOS(weights=str(weights))
    assert given.network == weights / "DNSMOS/DNSMOS/sig_bak_ovr.onnx"
    assert value(packaged, estimates, estimates) == value(given, estimates, estimates)
    assert DNSMOS(weights=tmp_path).network == packaged.network  # the folder may hold other networks only

    monkeypatch.setitem(sys.modules, "speechmos", None)
    with pytest.raises(FileNotFoundError, match=f"sig_bak_ovr.onnx in {tmp_path} and no package speechmos"):
        DNSMOS(weights=tmp_path)
    broken = tmp_path / "DNSMOS/DNSMOS/sig_bak_ovr.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RuntimeError, match=f"{broken} cannot be loaded: "):
        DNSMOS(weights=tmp_path)


@pytest.mark.parametrize("kind", [ESTOI_, PESQ_, DNSMOS_])
def test_aligns_like_all_the_others(kind: type[SpeechMetric]) -> None:
    estimates, references = pairs()
    more = torch.cat([estimates, 0.1 * torch.randn(1, 1, estimates.shape[-1])], 1)[:, [1, 2, 0]]
    aligned = align_by_si_sdr(more, references)
    assert torch.equal(aligned, estimates)
    first = value(kind(), aligned[:, :1], references[:, :1])
    second = value(kind(), aligned[:, 1:], references[:, 1:])
    assert value(kind(), more, references) == pytest.approx((first + second) / 2, rel=1e-12)


@pytest.mark.parametrize("kind", [ESTOI_, PESQ_, DNSMOS_])
def test_silent_references_are_left_out(kind: type[SpeechMetric]) -> None:
    estimates, references = pairs()
    expected = value(kind(), estimates[:, :1], references[:, :1])
    metric = kind()
    assert value(metric, estimates, references * torch.tensor([1.0, 0.0]).view(1, 2, 1)) == expected
    assert metric.count == 1
    assert math.isnan(value(metric, estimates, 0 * references))


@pytest.mark.parametrize(
    ("kind", "expected", "tolerance"),
    [
        pytest.param(ESTOI, 0, 0, marks=needs("pystoi")),
        pytest.param(PESQ, 1, 0, marks=needs("pesq")),
        pytest.param(DNSMOS, 1.84, 0.01, marks=needs("onnxruntime", "speechmos")),
    ],
)
def test_silent_estimates(kind: type[SpeechMetric], expected: float, tolerance: float) -> None:
    _, references = pairs()
    assert value(kind(), 0 * references[:, :1], references[:, :1]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("kind", [ESTOI_, PESQ_])
@pytest.mark.parametrize("samples", [200, 3000])
def test_pairs_that_are_too_short_are_left_out(kind: type[SpeechMetric], samples: int) -> None:
    estimates, references = pairs()
    metric = kind()
    metric.update(estimates, references)
    expected = metric.compute().item()
    with pytest.warns(UserWarning, match=f"{kind.__name__} left out 2 of 2 pairs"):
        metric.update(estimates[..., :samples], references[..., :samples])
    assert metric.count == 2
    assert metric.compute().item() == expected


@needs("pystoi")
def test_estoi_leaves_out_references_with_little_speech() -> None:
    click = torch.zeros(1, 1, RATE)
    click[..., 5000:7000] = speech(0)[5000:7000]
    with pytest.warns(UserWarning, match="left out 1 of 1"):
        assert math.isnan(value(ESTOI(), click, click))


@needs("pystoi")
def test_estoi_is_the_same_each_time_and_leaves_numpy_alone() -> None:
    """An estimate that is digital silence in part is scored by pystoi's dither there."""
    _, references = pairs()
    estimates = references.clone()
    estimates[..., RATE // 2 :] = 0
    np.random.seed(5)  # noqa: NPY002
    expected_draw = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = value(ESTOI(), estimates, references)
    assert np.random.random() == expected_draw  # noqa: NPY002
    assert value(ESTOI(), estimates, references) == first


@pytest.mark.parametrize("kind", [ESTOI_, PESQ_, DNSMOS_])
def test_instances_merge_into_one_and_can_be_copied(kind: type[SpeechMetric]) -> None:
    estimates, references = pairs()
    part, rest = kind(), copy.deepcopy(kind())
    part.update(estimates[:, :1], references[:, :1])
    rest.update(estimates[:, 1:], references[:, 1:])
    part.merge_state(pickle.loads(pickle.dumps(rest)))
    assert part.compute().item() == pytest.approx(value(kind(), estimates, references), rel=1e-12)
    assert part.count == 2


def test_a_missing_package_leaves_out_its_column_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pesq", "pystoi", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    match = "the metric pesq is left out: .*pesq.*pip install surf-lightning"
    with pytest.warns(UserWarning, match=match) as warnings:
        metrics = speech_metrics()
    assert len(warnings) == 3
    estimates, references = pairs()
    for _ in range(2):
        metrics.update(estimates=estimates, references=references, mixtures=references.sum(1))
    scores = {name: score.item() for name, score in metrics.compute().items()}
    assert set(scores) == {"si_sdr", "si_sdri"}
    assert scores["si_sdr"] == pytest.approx(value(SISDR(), estimates, references), rel=1e-12)
    mixture = references.sum(1, keepdim=True).expand_as(references)
    improvement = scores["si_sdr"] - value(SISDR(), mixture, references)
    assert scores["si_sdri"] == pytest.approx(improvement, rel=1e-12)


@needs("pystoi")
def test_other_rates_have_no_wide_band_columns() -> None:
    with pytest.warns(UserWarning, match="PESQ is defined at 16000 Hz, and this audio is at 8000 Hz"):
        metrics = speech_metrics(8000)
    assert set(metrics) == {"si_sdr", "si_sdri", "estoi"}
