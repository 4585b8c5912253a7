"""LPIPS, FID and Inception Score against independent computations; with the real weights, against the libraries."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from scipy.linalg import sqrtm
from surf_lightning.metrics.availability import unavailable_columns
from torch import Tensor, nn

from surf_lightning.metrics import perceptual
from surf_lightning.metrics.evaluation import PerceptualMetrics, SampleMetrics
from surf_lightning.metrics.images import ImageMetrics, to_unit_range
from surf_lightning.metrics.perceptual import (
    ALEXNET,
    FID,
    INCEPTION,
    LOGITS,
    LPIPS,
    POOL,
    InceptionLayer,
    InceptionScore,
    Reference,
    to_bytes,
)

FEATURES = 6


class Toy(nn.Module):
    """Features of uint8 images, linear in them."""

    num_features = FEATURES

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        self.seen += len(images)
        weights = torch.randn(3 * 5 * 5, FEATURES, generator=torch.Generator().manual_seed(0))
        return self.scale * (images.float() / 255).flatten(1) @ weights


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
    assert to_bytes(torch.tensor([0.0019, 0.0021, 0.5, 0.9979, 0.9981]).view(1, 1, 1, 5))[0, 2, 0].tolist() == [
        0,
        1,
        128,
        254,
        255,
    ]


def test_fid_is_the_distance_of_two_gaussians() -> None:
    found, truth = pictures(50), pictures(40, seed=1) ** 2
    metric = FID(Toy())
    metric.update(found, truth)
    expected = plain_fid(Toy()(to_bytes(found)), Toy()(to_bytes(truth)))
    assert expected > 1
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    assert metric.compute().item() == pytest.approx(metric.compute().item())


def test_fid_of_a_set_against_itself_is_zero_in_whatever_order() -> None:
    images = pictures(50)
    metric = FID(Toy())
    metric.update(images, images.flip(0))
    assert metric.compute().item() == pytest.approx(0, abs=1e-4)


def test_fid_of_two_ranks_is_that_of_the_union() -> None:
    found, truth = pictures(50), pictures(50, seed=1) ** 2
    whole, first, second = FID(Toy()), FID(Toy()), FID(Toy())
    whole.update(found, truth)
    first.update(found[:13], truth[:13])
    second.update(found[13:30], truth[13:30])
    second.update(found[30:], truth[30:])
    assert second.compute().item() != pytest.approx(whole.compute().item(), rel=0.01)
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)


def test_fid_against_a_set_measures_that_set_once() -> None:
    features, training = Toy(), to_bytes(pictures(90, seed=2))[:, :1]
    reference = Reference(lambda: training)
    metrics = FID(features, reference), FID(features, reference)
    for metric in metrics:
        for seed in (3, 4):
            metric.update(pictures(20, seed), torch.zeros(20, 1, 5, 5))
    assert features.seen == 90 + 2 * 40
    found = torch.cat([Toy()(to_bytes(pictures(20, seed))) for seed in (3, 4)])
    expected = plain_fid(found, Toy()(training.expand(-1, 3, -1, -1)))
    for metric in metrics:
        assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    metrics[0].reset()
    metrics[0].update(pictures(20, 3), torch.zeros(20, 1, 5, 5))
    assert metrics[0].compute().isfinite()
    assert features.seen == 90 + 2 * 40 + 20


@pytest.mark.parametrize("count", [0, 1])
def test_fid_of_too_few_images_is_no_number(count: int) -> None:
    metric = FID(Toy())
    metric.update(pictures(2)[:count], pictures(2)[:count])
    assert metric.compute().isnan()


def test_inception_score_is_mean_and_deviation_over_ten_splits() -> None:
    images = pictures(95)
    logits = Toy(scale=2.0)(to_bytes(images))
    ordered = logits[torch.from_numpy(np.lexsort(logits[:, :4].T.numpy()))]
    mean, deviation = plain_score(ordered[np.random.RandomState(2020).permutation(95)])
    metric = InceptionScore(Toy(scale=2.0))
    metric.update(images)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert 1.2 < mean < FEATURES
    assert deviation > 0.05
    assert values == {"is": pytest.approx(mean, rel=1e-6), "is_std": pytest.approx(deviation, rel=1e-6)}


def test_inception_score_of_two_ranks_is_that_of_the_union_in_whatever_order() -> None:
    images = pictures(60)
    whole, first, second = (InceptionScore(Toy()) for _ in range(3))
    whole.update(images)
    first.update(images[40:])
    second.update(images[:15])
    second.update(images[15:40].flip(0))
    first.merge_state(second)
    expected = {name: pytest.approx(value.item(), rel=1e-5) for name, value in whole.compute().items()}
    assert {name: value.item() for name, value in first.compute().items()} == expected


def measure_a_share(rank: int, found: Tensor, truth: Tensor, training: Tensor, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{Path('rendezvous').absolute()}", rank=rank, world_size=2
    )
    metrics = measured(found[rank::2] if rank else found[::2][:-3], truth[rank::2], training)  # of unequal sizes
    results[rank] = {name: value.item() for name, value in metrics.compute().items()}
    torch.distributed.destroy_process_group()


def measured(found: Tensor, truth: Tensor, training: Tensor) -> ImageMetrics:
    columns = {"fid": FID(Toy()), "to_training": FID(Toy(), Reference(lambda: training)), "is": InceptionScore(Toy())}
    metrics = ImageMetrics(columns)
    for rows in (slice(0, 4), slice(4, None)):
        sources = truth[: len(found)][rows].unsqueeze(1) * 2 - 1
        metrics.update(found[rows].unsqueeze(1) * 2 - 1, sources, sources.sum(1))
    return metrics


@pytest.mark.slow
def test_processes_measure_the_union_of_their_images_once() -> None:
    found, truth, training = pictures(40), pictures(40, seed=1) ** 2, to_bytes(pictures(31, seed=2))[:, :1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(measure_a_share, (found, truth, training, results), nprocs=2)
        first, second = dict(results)[0], dict(results)[1]
    share = [*range(0, 34, 2), *range(1, 40, 2)]
    expected = {name: value.item() for name, value in measured(found[share], truth[share], training).compute().items()}
    assert first == second == pytest.approx(expected, rel=1e-4)


class Constant(nn.Module):
    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 4)


class Certain(nn.Module):
    """Each image surely of the class that its first pixel names."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        return 100 * nn.functional.one_hot(images[:, 0, 0, 0].long(), 4).float()


def test_inception_score_is_one_of_equal_images_and_the_number_of_classes_at_best() -> None:
    metric = InceptionScore(Constant())
    metric.update(pictures(40))
    assert metric.compute()["is"].item() == pytest.approx(1)
    assert metric.compute()["is_std"].item() == pytest.approx(0, abs=1e-9)
    metric = InceptionScore(Certain())
    classes = torch.arange(4000) % 4
    metric.update((classes / 255).view(-1, 1, 1, 1).expand(-1, 1, 5, 5))
    assert metric.compute()["is"].item() == pytest.approx(4, rel=0.02)


def test_inception_score_of_fewer_images_than_splits_is_no_number() -> None:
    metric = InceptionScore(Toy())
    metric.update(pictures(9))
    assert metric.compute()["is"].isnan()


# -- where weights are missing --


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network here")

    from torch_fidelity import feature_extractor_inceptionv3 as extractor

    monkeypatch.setattr(extractor, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torchvision.models, "alexnet", unreachable)  # building it takes a second
    monkeypatch.setattr(extractor.FeatureExtractorInceptionV3, "__init__", unreachable)
    caches = perceptual.alexnet, perceptual.inception, perceptual.why_not_loaded
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("weights", [None, "nowhere"])
def test_without_weights_the_rest_of_the_table_stands(weights: str | None) -> None:
    with pytest.warns(UserWarning, match="is not available, because: "):
        metrics = ImageMetrics(PerceptualMetrics().columns(lambda: torch.zeros(0), weights))
    reasons = unavailable_columns(metrics)
    assert reasons.keys() == {"lpips", "fid"}
    named = "nowhere has no usable" if weights else "no folder that holds"
    assert reasons["fid"].startswith(f"not available, because: {named} {INCEPTION}")
    assert ALEXNET in reasons["lpips"]
    assert "no network here" in reasons["lpips"]
    sources = 2 * pictures(6, channels=1, size=8).view(3, 2, 1, 8, 8) - 1
    for _ in range(2):
        metrics.update(sources, sources, sources.sum(1))
    values = metrics.compute()
    assert values["psnr"].item() == pytest.approx(100)
    assert values["ssim"].item() == pytest.approx(1)
    assert values["lpips"].isnan()
    assert values["fid"].isnan()


@pytest.mark.usefixtures("_no_network")
def test_a_rank_without_weights_leaves_no_number_of_the_others_alone() -> None:
    class Missing(Toy):
        unavailable = "not available, because: only this rank lacks it"

    images = pictures(30)
    for make, key in ((lambda toy: FID(toy), None), (lambda toy: InceptionScore(toy), "is")):
        whole, partial = make(Toy()), make(Missing())
        for metric in (whole, partial):
            metric.update(images, images) if key is None else metric.update(images)
        whole.merge_state(partial) if key else whole.merge_state({**partial.metric_state})
        value = whole.compute()
        assert (value if key is None else value[key]).isnan()


def test_weights_without_a_classifier_give_features_but_no_inception_score(monkeypatch: pytest.MonkeyPatch) -> None:
    class Headless:
        has_logits = False

    monkeypatch.setattr(perceptual, "inception", lambda weights: Headless())
    monkeypatch.setattr(perceptual, "why_not_loaded", lambda load, weights, name: None)
    columns = SampleMetrics().columns(lambda: torch.zeros(0), "somewhere")
    reasons = unavailable_columns(ImageMetrics(columns))
    assert reasons == {
        "is": "not available, because: inception_fid.pth in somewhere has no classifier (its layer fc is zero)"
    }
    metric = columns["is"]
    metric.update(pictures(20))
    assert {name: value.isnan().item() for name, value in metric.compute().items()} == {"is": True}


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_file_of_weights_is_not_run() -> None:
    Path("weights").mkdir()
    for name in (INCEPTION, ALEXNET):
        torch.save({"features.0.weight": Payload()}, Path("weights", name))
    with pytest.warns(UserWarning, match="is not available"):
        assert LPIPS("weights").unavailable
    assert InceptionLayer(POOL, "weights").unavailable
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
    features = InceptionLayer(POOL, weights)
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


@pytest.mark.slow
def test_inception_answers_from_memory_what_it_was_just_asked() -> None:
    weights = weights_folder(INCEPTION)
    network = perceptual.inception(weights)
    images, others = (to_bytes(smooth(3, seed, 32)) for seed in (0, 1))
    first = network(images)
    network(others)
    assert network(images.clone())[POOL] is first[POOL]
    assert not torch.equal(network(others)[POOL], first[POOL])
    assert first[POOL].shape == (3, 2048)
    score = InceptionLayer(LOGITS, weights)
    assert (score.unavailable is None) == bool(network.network.fc.weight.any())
