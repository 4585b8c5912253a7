"""LPIPS, FID and Inception Score against independent computations; with the real weights, against the libraries."""

from __future__ import annotations

import hashlib
import math
import os
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from scipy.linalg import sqrtm
from torch import Tensor, nn

from surf_lightning.metrics import perceptual
from surf_lightning.metrics.evaluation import PerceptualMetrics, SampleMetrics, build_metrics
from surf_lightning.metrics.images import ImageMetrics, to_unit_range
from surf_lightning.metrics.perceptual import (
    ALEXNET,
    FID,
    INCEPTION,
    LPIPS,
    SampleQuality,
    inception,
    inception_score,
    to_bytes,
)

FEATURES = 6


class Toy:
    """Stands for Inception: features of uint8 images, linear in them, which are its logits as well."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.seen = scale, 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        self.seen += len(images)
        weights = torch.randn(3 * 5 * 5, FEATURES, generator=torch.Generator().manual_seed(0))
        features = self.scale * (images.float() / 255).flatten(1) @ weights
        return features, features


def features_of(images: Tensor, scale: float = 1.0) -> Tensor:
    return Toy(scale)(images)[0]


def fid() -> FID:
    return FID(Toy(), FEATURES)


def quality(training: Tensor | None = None, scale: float = 1.0) -> SampleQuality:
    images = to_bytes(pictures(4, seed=9))[:, :1] if training is None else training
    return SampleQuality(Toy(scale), lambda: images, FEATURES)


def values_of(metric: SampleQuality) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def pictures(count: int, seed: int = 0, channels: int = 1, size: int = 5) -> Tensor:
    """In [0,1], as an image file holds them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator) / 255


def plain_fid(found: Tensor, truth: Tensor) -> float:
    """Of two sets of features, by a matrix square root."""
    (a, b), (s, t) = zip(
        *((x.mean(0), np.cov(x, rowvar=False)) for x in (found.double().numpy(), truth.double().numpy())), strict=True
    )
    return float(((a - b) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real))


def plain_score(logits: Tensor) -> tuple[float, float]:
    """Inception Score of rows in order: exp of the mean divergence of p(y|x) from p(y), over 10 splits."""
    scores = []
    for part in range(10):
        rows = logits[part * len(logits) // 10 : (part + 1) * len(logits) // 10].double().softmax(1).numpy()
        marginal = rows.mean(0)
        scores.append(math.exp(np.mean([(p * np.log(p / marginal)).sum() for p in rows])))
    return float(np.mean(scores)), float(np.std(scores))


# -- with toy features --


def test_images_are_quantised_to_what_their_file_would_hold() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(to_unit_range(every.float() / 127.5 - 1)), every.expand(1, 3, 16, 16))
    levels = to_bytes(torch.tensor([0.0019, 0.0021, 0.5, 0.9979, 0.9981]).view(1, 1, 1, 5))
    assert levels[0, 2, 0].tolist() == [0, 1, 128, 254, 255]


def test_fid_is_the_distance_of_two_gaussians() -> None:
    found, truth = pictures(50), pictures(40, seed=1) ** 2
    metric = fid()
    metric.update(found, truth)
    expected = plain_fid(features_of(to_bytes(found)), features_of(to_bytes(truth)))
    assert expected > 1
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    assert metric.compute().item() == pytest.approx(metric.compute().item())


def test_fid_against_a_set_measures_that_set_once() -> None:
    """Copies and the same metric after a reset know it."""
    training = to_bytes(pictures(90, seed=2))[:, :1]
    metric = quality(training)
    features: Any = metric.features
    for seed in (3, 4):
        metric.update(pictures(20, seed))
    assert features.seen == 90 + 40
    found = torch.cat([features_of(to_bytes(pictures(20, seed))) for seed in (3, 4)])
    expected = plain_fid(found, features_of(training.expand(-1, 3, -1, -1)))
    assert values_of(metric)["fid"] == pytest.approx(expected, rel=1e-5)
    copy = metric.clone()
    for fresh in (copy, metric):
        fresh.reset()
        features = fresh.features
        before = features.seen
        for seed in (3, 4):
            fresh.update(pictures(20, seed))
        assert features.seen == before + 40
        assert values_of(fresh)["fid"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_fid_of_too_few_images_is_no_number(count: int) -> None:
    metric = fid()
    metric.update(pictures(2)[:count], pictures(2)[:count])
    assert metric.compute().isnan()


def test_inception_score_is_mean_and_deviation_over_ten_splits() -> None:
    images = pictures(95)
    logits = features_of(to_bytes(images), scale=2.0)
    ordered = logits[torch.from_numpy(np.lexsort(logits[:, :4].T.numpy()))]
    mean, deviation = plain_score(ordered[np.random.RandomState(2020).permutation(95)])
    metric = quality(scale=2.0)
    metric.update(images)
    assert 1.2 < mean < FEATURES
    assert deviation > 0.05
    expected = {"is": pytest.approx(mean, rel=1e-6), "is_std": pytest.approx(deviation, rel=1e-6)}
    values = values_of(metric)
    assert {name: values[name] for name in ("is", "is_std")} == expected


def test_sample_quality_of_two_ranks_is_that_of_the_union_in_whatever_order() -> None:
    images, training = pictures(60), to_bytes(pictures(31, seed=2))[:, :1]
    whole, first, second = quality(training), quality(training[::2]), quality(training[1::2])
    whole.update(images)
    first.update(images[40:])
    second.update(images[:15])
    second.update(images[15:40].flip(0))
    first.merge_state(second)
    assert values_of(first) == pytest.approx(values_of(whole), rel=1e-5)


def measure_a_share(rank: int, found: Tensor, truth: Tensor, training: Tensor, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{Path('rendezvous').absolute()}", rank=rank, world_size=2
    )
    metrics = measured(found[rank::2] if rank else found[::2][:-3], truth[rank::2], training)  # of unequal sizes
    values = {name: value.item() for name, value in metrics.compute().items()}

    def only_on_rank_0() -> FID:
        if rank:
            raise OSError("no weights here")
        return fid()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = build_metrics({"fid": only_on_rank_0, "other": fid})
    results[rank] = values, list(built), [str(warning.message) for warning in caught]
    torch.distributed.destroy_process_group()


def measured(found: Tensor, truth: Tensor, training: Tensor) -> ImageMetrics:
    metrics = ImageMetrics({"to_truth": fid(), "samples": quality(training)})
    for rows in (slice(0, 4), slice(4, None)):
        sources = truth[: len(found)][rows].unsqueeze(1) * 2 - 1
        metrics.update(found[rows].unsqueeze(1) * 2 - 1, sources, sources.sum(1))
    return metrics


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What each of two ranks has measured, which metrics it has built, and its warnings."""
    context = torch.multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch, context.Manager() as manager:
        patch.chdir(tmp_path_factory.mktemp("processes"))
        results = manager.dict()
        torch.multiprocessing.spawn(measure_a_share, (*sets(), results), nprocs=2)
        return dict(results)


def sets() -> tuple[Tensor, Tensor, Tensor]:
    return pictures(40), pictures(40, seed=1) ** 2, to_bytes(pictures(31, seed=2))[:, :1]


@pytest.mark.slow
def test_processes_measure_the_union_of_their_images_once(two_processes: dict[int, Any]) -> None:
    found, truth, training = sets()
    share = [*range(0, 34, 2), *range(1, 40, 2)]
    expected = {name: value.item() for name, value in measured(found[share], truth[share], training).compute().items()}
    assert two_processes[0][0] == two_processes[1][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_what_a_rank_cannot_build_is_left_out_by_all(two_processes: dict[int, Any]) -> None:
    """A value of the other ranks' images alone would mislead, and they would wait for the rank without end."""
    assert two_processes[0][1] == two_processes[1][1] == ["other"]
    assert two_processes[0][2] == ["the metric fid is left out: no weights here"]


def test_inception_score_is_one_of_equal_images_and_the_number_of_classes_at_best() -> None:
    assert inception_score(torch.ones(40, 4)) == {"is": pytest.approx(1), "is_std": pytest.approx(0, abs=1e-9)}
    certain = 100 * nn.functional.one_hot(torch.arange(4000) % 4, 4).float()
    assert inception_score(certain)["is"] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("count", [1, 9])
def test_inception_score_of_fewer_images_than_splits_is_no_number(count: int) -> None:
    metric = quality()
    metric.update(pictures(count))
    values = values_of(metric)
    assert values.keys() == {"is", "fid"}
    assert math.isnan(values["is"])
    assert math.isnan(values["fid"]) == (count == 1)


# -- where weights are missing --


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(perceptual, "_LPIPS", lambda **options: None)  # building it takes a second


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("weights", [None, "nowhere"])
def test_without_weights_the_rest_of_the_table_stands(weights: str | None) -> None:
    with pytest.warns(UserWarning, match="the metric samples is left out"):
        assert not SampleMetrics().columns(lambda: torch.zeros(0), weights)
    with pytest.warns(UserWarning, match="is left out: ") as caught:
        metrics = ImageMetrics(PerceptualMetrics().columns(lambda: torch.zeros(0), weights))
    named = "nowhere has no usable" if weights else "no folder that holds"
    for warning, metric, file in zip(caught, ("lpips", "fid"), (ALEXNET, INCEPTION), strict=True):
        assert str(warning.message).startswith(f"the metric {metric} is left out: {named} {file}")
        assert str(warning.message).endswith("no network here")
    sources = 2 * pictures(6, channels=1, size=8).view(3, 2, 1, 8, 8) - 1
    for _ in range(2):
        metrics.update(sources, sources, sources.sum(1))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == {"psnr": pytest.approx(100), "ssim": pytest.approx(1)}


class Headless(nn.Module):
    """Stands for Inception in a file without a classifier."""

    def __init__(self, *options: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)
        nn.init.zeros_(self.fc.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return features_of(images), features_of(images)


def test_weights_without_a_classifier_give_features_but_no_inception_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as extractor

    monkeypatch.setattr(extractor, "FeatureExtractorInceptionV3", Headless)
    Path("somewhere").mkdir()
    torch.save({}, Path("somewhere", INCEPTION))
    with pytest.warns(UserWarning, match="no Inception Score: inception_fid.pth in somewhere has no classifier"):
        features = inception("somewhere")
    metric = SampleQuality(features, lambda: to_bytes(pictures(30, seed=2)), FEATURES)
    metric.update(pictures(20))
    values = values_of(metric)
    assert values.keys() == {"is", "fid"}
    assert math.isnan(values["is"])
    assert values["fid"] > 0


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_file_of_weights_is_not_run() -> None:
    Path("weights").mkdir()
    for name in (INCEPTION, ALEXNET):
        torch.save({"features.0.weight": Payload()}, Path("weights", name))
    for load, name in ((LPIPS, ALEXNET), (inception, INCEPTION)):
        with pytest.raises(RuntimeError, match=f"weights has no usable {name}, and: Weights only load failed"):
            load("weights")
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", [INCEPTION, ALEXNET])
def test_a_download_is_used_only_if_it_has_the_published_hash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that lies in torch's cache, where a library would unpickle it."""
    monkeypatch.setenv("TORCH_HOME", "torch")
    torch.save({"features.0.weight": torch.ones(2)}, "genuine.pth")
    torch.save({"features.0.weight": Payload()}, "bomb.pth")
    url = f"https://example.org/{name}"
    digest = hashlib.sha256(Path("genuine.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(perceptual.DOWNLOADS, name, (url, digest))
    cached = Path("torch", "hub", "checkpoints", name)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(Path("bomb.pth").read_bytes())
    for delivered in ("bomb.pth", "genuine.pth"):
        place = Path(delivered).absolute().as_uri()
        monkeypatch.setattr(torch.hub, "urlopen", lambda _, place=place: urllib.request.urlopen(place))
        if delivered == "bomb.pth":
            with pytest.raises(RuntimeError, match="invalid hash value"):
                perceptual._weights(None, name)
        else:
            assert perceptual._weights(None, name) == Path(torch.hub.get_dir(), "checkpoints", name)
    assert cached.read_bytes() == Path("genuine.pth").read_bytes()
    assert not Path("executed").exists()


# -- with the real weights --


def weights_folder(name: str) -> str:
    shared = Path(os.environ.get("SURF_SHARED", "nowhere"))
    for place in (shared / "weights", shared / "data" / "weights", shared / "data"):
        if (place / name).is_file():
            return str(place)
    pytest.skip(f"SURF_SHARED names no folder with weights/{name}")


def smooth(count: int, seed: int, size: int) -> Tensor:
    """Something like pictures, in [0,1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def test_lpips_is_that_of_torchmetrics_and_zero_for_equal_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    weights = weights_folder(ALEXNET)
    trunk = torch.load(Path(weights, ALEXNET), weights_only=True)
    whole = {**torchvision.models.alexnet(weights=None).state_dict(), **trunk}
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: whole)
    library = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)

    for size in (32, 40):
        estimates, references = smooth(70, 0, size), smooth(70, 1, size)
        metric, same = LPIPS(weights), LPIPS(weights)
        metric.update(estimates, references)
        same.update(estimates, estimates)
        expected = library(estimates, references).item()
        assert expected > 0.1
        assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
        assert same.compute().item() == 0

    grey = smooth(5, 2, 28)[:, :1], smooth(5, 3, 28)[:, :1]
    padded = [nn.functional.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1) for images in grey]
    metric = LPIPS(weights)
    metric.update(*grey)
    assert metric.compute().item() == pytest.approx(library(*padded).item(), rel=1e-5)
    assert not metric.state_dict()


class AsDataset(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> Tensor:
        return self.images[item]


@pytest.mark.slow
def test_fid_is_that_of_torch_fidelity_and_zero_for_a_set_against_itself() -> None:
    import torch_fidelity

    weights = weights_folder(INCEPTION)
    found, truth = smooth(24, 0, 32), smooth(20, 1, 32)
    features = inception(weights)
    metric, same, grey = FID(features), FID(features), FID(features)
    metric.update(found, truth)
    same.update(found, found)
    library = torch_fidelity.calculate_metrics(
        input1=AsDataset(to_bytes(found)),
        input2=AsDataset(to_bytes(truth)),
        fid=True,
        feature_extractor_weights_path=str(Path(weights, INCEPTION)),
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    expected = library["frechet_inception_distance"]
    assert expected > 10
    assert metric.compute().item() == pytest.approx(expected, rel=1e-4)
    assert same.compute().item() == pytest.approx(0, abs=1e-3 * expected)
    grey.update(found[:2, :1, :28, :28], truth[:2, :1, :28, :28])
    assert grey.compute() > 0
    assert not ImageMetrics({"fid": metric}).state_dict(), "a checkpoint of a module that holds it would want it back"
