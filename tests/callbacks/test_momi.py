"""MoMi of a whole validation or test against MixIT's assignment by enumeration."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.data import Folder, Libri2Mix
from surf_lightning.functional.losses import log_energy
from surf_lightning.methods import SURF, MixIT, Remixing
from surf_lightning.methods.base import SeparationModule
from surf_lightning.networks import GlobalRMSNoise, MBLocoformer
from tests.methods.test_bfloat16 import LOCOFORMER, conv_tasnet
from tests.tiny import adam, digits, perturbed, regression, trainer

OPTIONS: dict[str, Any] = {"num_workers": 0, "batch_size": 2, "crop_seconds": 0.2, "num_validation": 4}


class Quick(Libri2Mix):
    def test_metrics(self) -> Metric:
        return self.metrics()


def built(method: str) -> SeparationModule:
    if method == "MixIT":
        return MixIT(conv_tasnet(4), optimizer=adam)
    if method == "Remixing":
        return Remixing(conv_tasnet(), "remixit", log_energy, mixit_checkpoint=None, optimizer=adam)
    network, options = perturbed(MBLocoformer(2, **LOCOFORMER)), {"noise": GlobalRMSNoise(), "mixit_checkpoint": None}
    return SURF(network, "remixit", log_energy, optimizer=adam, **options)


def si_sdr(estimate: Tensor, reference: Tensor) -> float:
    if not estimate.any():  # all outputs were dealt to the other mixture
        return -80.0
    scaled = (estimate @ reference) / (reference @ reference) * reference
    return float(10 * torch.log10(scaled.square().sum() / (scaled - estimate).square().sum()))


def improvement(outputs: Tensor, one: Tensor, other: Tensor) -> float:
    """The mean over ``one [T]`` and ``other``, of the sums of ``outputs [M,T]`` that have the least error of MixIT."""

    def error(found: Tensor, truth: Tensor) -> float:
        return float(torch.log10((found - truth).square().sum() + 1e-3 * truth.square().sum()))

    ways = []
    for deal in itertools.product([0.0, 1.0], repeat=len(outputs)):
        first = torch.tensor(deal, dtype=torch.float64)
        ways.append((first @ outputs, (1 - first) @ outputs))
    best = min(ways, key=lambda way: error(way[0], one) + error(way[1], other))
    pairs = zip(best, (one, other), strict=True)
    return sum(si_sdr(found, truth) - si_sdr(one + other, truth) for found, truth in pairs) / 2


def expected(module: SeparationModule, pairs: list[tuple[Tensor, Tensor]], numbers: list[int]) -> float:
    values = []
    for (one, other), number in zip(pairs, numbers, strict=True):
        mixture = (one + other).unsqueeze(0)
        outputs = module.separator.network(mixture) if isinstance(module, MixIT) else module.separate(mixture, number)
        values.append(improvement(outputs[0].detach().double(), one.double(), other.double()))
    return sum(values) / len(values)


@pytest.mark.parametrize("method", ["MixIT", "Remixing", "SURF"])
def test_recordings_without_truth_are_validated_by_momi(method: str, audio_sets: Path) -> None:
    module, data = built(method), Folder(root=str(audio_sets / "recordings"), **OPTIONS)
    fitter = trainer(Path("run"), "validate")
    fitter.validate(module, data)
    held_out: Any = data.validation_batches()
    batches = [held_out[index]["mixtures"] for index in range(len(held_out))]
    pairs = [(batch[0], batch[1]) for batch in batches]
    assert float(fitter.callback_metrics["val/momi"]) == pytest.approx(
        expected(module, pairs, list(range(len(pairs)))), abs=1e-3
    )


@pytest.mark.parametrize("method", ["MixIT", "Remixing", "SURF"])
def test_a_test_has_momi_beside_its_other_metrics(method: str, audio_sets: Path) -> None:
    module, data = built(method), Quick(root=str(audio_sets / "Libri2Mix"), **OPTIONS)
    tester = trainer(Path("run"), "test")
    tester.test(module, data)
    one, other = (data.test_batches()[index]["mixtures"][0] for index in range(2))  # the third has no mate
    shared = min(len(one), len(other))
    wanted = expected(module, [(one[:shared], other[:shared])], [1])
    assert float(tester.callback_metrics["test/momi"]) == pytest.approx(wanted, abs=1e-3)
    assert "test/si_sdr" in tester.callback_metrics
    tester = trainer(Path("run"), "test", limit_test_batches=1)
    tester.test(module, data)
    assert "test/momi" not in tester.callback_metrics


def test_with_truth_a_validation_has_momi_beside_it_but_none_amid_a_fit(audio_sets: Path) -> None:
    module, data = built("MixIT"), Quick(root=str(audio_sets / "Libri2Mix"), batches_per_epoch=1, **OPTIONS)
    fitter = trainer(Path("run"), max_steps=1)
    fitter.fit(module, data)
    assert "val/si_sdri" in fitter.callback_metrics
    assert "val/momi" not in fitter.callback_metrics
    validator = trainer(Path("run"), "validate")
    validator.validate(module, data)
    held_out: Any = data.validation_batches()
    batches = [held_out[index]["mixtures"] for index in range(len(held_out))]
    pairs = [(batch[0], batch[1]) for batch in batches if len(batch) > 1]
    wanted = expected(module, pairs, list(range(len(pairs))))
    assert float(validator.callback_metrics["val/momi"]) == pytest.approx(wanted, abs=1e-3)
    assert "val/si_sdri" in validator.callback_metrics


def test_images_have_it_as_sounds_do() -> None:
    module, data = MixIT(regression(4), optimizer=adam), digits(num_test=12)
    tester = trainer(Path("run"), "test")
    tester.test(module, data)
    held_out: Any = data.test_batches()
    batches = [held_out[index]["mixtures"] for index in range(len(held_out) // 2 * 2)]
    with torch.no_grad():
        values = [
            improvement(module.separator.network((one + other)[None])[0].flatten(1).double(), *flat(one, other))
            for first, second in zip(batches[::2], batches[1::2], strict=True)
            for one, other in zip(first, second, strict=False)
        ]
    assert len(values) > 1
    assert float(tester.callback_metrics["test/momi"]) == pytest.approx(sum(values) / len(values), abs=1e-3)


def flat(*images: Tensor) -> list[Tensor]:
    return [image.flatten().double() for image in images]
