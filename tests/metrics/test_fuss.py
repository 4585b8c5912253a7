"""Axes: B batch, M rows, T samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from surf_lightning.metrics.fuss import FUSSMetrics
from tests.metrics.test_audio import fuss_form

E = torch.eye(16)
NOISE = E[15]
NOTHING = 0 * E[0]
MIXTURE_OF = {1: 80.0, 2: 0.0, 3: -10 * math.log10(2), 4: -10 * math.log10(3)}  # SI-SDR of a sum of K equal sources


def rows(*signals: Tensor, size: int = 4) -> Tensor:
    """One example ``[1,size,T]``, padded with silence."""
    return torch.stack([*signals, *[NOTHING] * (size - len(signals))])[None]


def result(*examples: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = FUSSMetrics()
    for estimates, references in examples:
        metric.update(estimates, references)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_equal_separation_by_hand(count: int) -> None:
    """Every source with noise of -20 dB: 20 dB for one source, else what that is above the mixture."""
    references = rows(*E[:count])
    estimates = rows(*(3 * (E[k] + 0.1 * NOISE) for k in reversed(range(count))))
    scores = result((estimates, references))
    expected = 20.0 if count == 1 else 20 - MIXTURE_OF[count]
    key = {1: "1S", 2: "2Si", 3: "3Si", 4: "4Si"}[count]
    assert scores[key] == pytest.approx(expected, abs=1e-4)
    assert (scores["under"], scores["equal"], scores["over"]) == (0, 1, 0)
    others = {"1S", "2Si", "3Si", "4Si"} - {key}
    assert all(math.isnan(scores[other]) for other in others)
    assert math.isnan(scores["MSi"]) if count == 1 else scores["MSi"] == scores[key]


def test_pools_over_sources_not_mixtures() -> None:
    two = rows(E[0] + 0.1 * NOISE, E[1] + 0.1 * NOISE), rows(E[0], E[1])
    three = rows(*(E[k] + 10**-0.5 * NOISE for k in range(3))), rows(*E[:3])
    scores = result(two, three)
    assert scores["MSi"] == pytest.approx((2 * 20 + 3 * (10 - MIXTURE_OF[3])) / 5, abs=1e-4)


def test_a_missed_source_is_under_separation_and_nothing_else() -> None:
    scores = result((rows(E[0] + 0.1 * NOISE), rows(E[0], E[1])))
    assert scores["2Si"] == pytest.approx(20, abs=1e-4)
    assert (scores["under"], scores["equal"], scores["over"]) == (1, 0, 0)


def test_all_silent_estimates() -> None:
    scores = result((rows(NOTHING), rows(E[0])), (rows(NOTHING), rows(E[0], E[1])))
    assert math.isnan(scores["1S"])
    assert math.isnan(scores["2Si"])
    assert (scores["under"], scores["equal"], scores["over"]) == (1, 0, 0)


@pytest.mark.parametrize(("amplitude", "name"), [(0.099, "equal"), (0.101, "over")])
def test_an_output_counts_above_20_db_below_the_source(amplitude: float, name: str) -> None:
    scores = result((rows(E[0], amplitude * E[1]), rows(E[0])))
    assert scores[name] == 1
    assert scores["1S"] == pytest.approx(80, abs=1e-3)


@pytest.mark.parametrize(("amplitude", "name"), [(0.0099, "under"), (0.0101, "equal")])
def test_the_threshold_is_that_of_the_quietest_source(amplitude: float, name: str) -> None:
    scores = result((rows(E[0], amplitude * E[1]), rows(E[0], 0.1 * E[1])))
    assert scores[name] == 1
    # Where the second is not counted, only the first one's improvement is left: 80 dB less the mixture's 20.
    both = 80 - (20 - 20) / 2
    assert scores["2Si"] == pytest.approx(60 if name == "under" else both, abs=1e-3)


def test_examples_without_sources_are_left_out() -> None:
    example = rows(E[0] + 0.1 * NOISE, E[1]), rows(E[0], E[1])
    empty = rows(E[0], E[1], E[2]), rows(NOTHING)
    inaudible = rows(E[0]), rows(1e-9 * E[0])
    assert result(example, empty, inaudible) == pytest.approx(result(example), nan_ok=True)
    assert all(math.isnan(value) for value in result(empty).values())


@pytest.mark.parametrize(("outputs", "sources"), [(2, 4), (3, 2), (8, 3)])
def test_pads_the_fewer_with_silence(outputs: int, sources: int) -> None:
    torch.manual_seed(0)
    references = torch.randn(3, sources, 64)
    estimates = torch.randn(3, outputs, 64)
    padded = [torch.cat([x, torch.zeros(3, 8 - x.shape[1], 64)], 1) for x in (estimates, references)]
    assert result((estimates, references)) == pytest.approx(result((padded[0], padded[1])), nan_ok=True)


def test_refuses_more_than_four_sources() -> None:
    with pytest.raises(ValueError, match="1 to 4 sources, got 5"):
        FUSSMetrics().update(torch.randn(1, 5, 16), torch.randn(1, 5, 16))


# -- against a second implementation, one example and one source at a time --


def independent(estimates: np.ndarray, references: np.ndarray) -> dict[str, float]:
    pooled: dict[int, list[float]] = {1: [], 2: [], 3: [], 4: []}
    surplus = []
    for outputs, sources in zip(estimates, references, strict=True):
        order = max(
            itertools.permutations(range(len(outputs))),
            key=lambda order: sum(fuss_form(outputs[m], source) for m, source in zip(order, sources, strict=True)),
        )
        outputs = outputs[list(order)]
        audible = np.sqrt((sources**2).mean(-1)) > 1e-8
        if not audible.any():
            continue
        gate = (outputs**2).mean(-1) > 0.01 * (sources**2).mean(-1)[audible].min()
        surplus.append(int(gate.sum() - audible.sum()))
        for m in np.flatnonzero(gate & audible):
            baseline = 0 if audible.sum() == 1 else fuss_form(sources.sum(0), sources[m])
            pooled[int(audible.sum())].append(fuss_form(outputs[m], sources[m]) - baseline)
    sign = np.sign(surplus)
    return {
        "1S": np.mean(pooled[1]),
        **{f"{k}Si": np.mean(pooled[k]) for k in (2, 3, 4)},
        "MSi": np.mean(pooled[2] + pooled[3] + pooled[4]),
        "under": (sign < 0).mean(),
        "equal": (sign == 0).mean(),
        "over": (sign > 0).mean(),
    }


def examples(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    references = torch.randn(count, 4, 300, generator=generator) * torch.rand(count, 4, 1, generator=generator)
    num_sources = torch.arange(count) % 5  # none, too
    references *= (torch.arange(4) < num_sources[:, None])[..., None]
    estimates = references.roll(1, dims=1) + 0.2 * torch.randn(count, 4, 300, generator=generator)
    return estimates * torch.rand(count, 4, 1, generator=generator) ** 2, references


def test_agrees_with_a_second_implementation() -> None:
    estimates, references = examples(60)
    expected = independent(estimates.double().numpy(), references.double().numpy())
    scores = result((estimates, references))
    assert list(scores) == ["1S", "2Si", "3Si", "4Si", "MSi", "under", "equal", "over"]
    assert min(scores["under"], scores["equal"], scores["over"]) > 0
    assert scores == pytest.approx(expected, abs=1e-6)


def test_instances_merge_into_one() -> None:
    estimates, references = examples(30)
    part, rest = FUSSMetrics(), FUSSMetrics()
    part.update(estimates[:7], references[:7])
    rest.update(estimates[7:], references[7:])
    part.merge_state(rest)
    merged = {name: value.item() for name, value in part.compute().items()}
    assert merged == pytest.approx(result((estimates, references)), rel=1e-12)
    part.reset()
    assert all(value.isnan() for value in part.compute().values())
