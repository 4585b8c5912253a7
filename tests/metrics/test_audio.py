"""Axes: B batch, K references, M estimates, T samples."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from surf_lightning.metrics.audio import SISDR, MoMi, SISDRi, align, align_by_si_sdr, is_active, pairwise_si_sdr
from surf_lightning.metrics.fuss import FUSSMetrics

E = torch.eye(8)  # orthogonal signals: SI-SDRs by hand


def textbook(estimate: np.ndarray, reference: np.ndarray) -> float:
    """SURF paper D.2, in float64."""
    estimate, reference = estimate.astype(np.float64), reference.astype(np.float64)
    projection = estimate @ reference / (reference @ reference) * reference
    return 10 * np.log10((projection**2).sum() / ((projection - estimate) ** 2).sum())


def fuss_form(estimate: np.ndarray, reference: np.ndarray) -> float:
    """The robust cosine form, its residual computed sample by sample."""
    unit = [x / np.sqrt(max((x**2).sum(), 1e-16)) for x in (estimate, reference)]
    rho = unit[0] @ unit[1]
    noise = 1 - rho**2 if 1 - rho**2 >= 0.01 else ((unit[0] - rho * unit[1]) ** 2).sum()
    return 10 * np.log10((rho**2 + 1e-8) / (noise + 1e-8))


def noisy(reference: Tensor, decibel: float) -> Tensor:
    """``reference`` with orthogonal noise that makes its SI-SDR ``decibel``, at some other gain."""
    noise = torch.randn_like(reference)
    noise -= (noise * reference).sum() / reference.square().sum() * reference
    return -0.3 * (reference + noise * reference.norm() / noise.norm() * 10 ** (-decibel / 20))


@pytest.mark.parametrize("decibel", [-40.0, -10.0, 0.0, 19.9, 20.1, 40.0])
def test_is_the_textbook_si_sdr_between_minus_40_and_40_db(decibel: float) -> None:
    torch.manual_seed(0)
    reference = torch.randn(4000, dtype=torch.float64) + 0.5  # a mean, which is not removed
    estimate = noisy(reference, decibel)
    value = pairwise_si_sdr(estimate.view(1, 1, -1), reference.view(1, 1, -1)).item()
    assert value == pytest.approx(decibel, abs=1e-3)
    assert value == pytest.approx(textbook(estimate.numpy(), reference.numpy()), abs=1e-3)
    assert value == pytest.approx(scale_invariant_signal_distortion_ratio(estimate, reference).item(), abs=1e-3)


@pytest.mark.parametrize("amplitude", [1e-9, 0.996e-8, 3e-8, 1.0, 1e4])
@pytest.mark.parametrize("mix", [0.0, 1e-5, 0.02, 0.3, 1.0])
def test_is_the_fuss_form_at_any_amplitude(amplitude: float, mix: float) -> None:
    rng = np.random.default_rng(0)
    reference, noise = rng.standard_normal((2, 500))
    estimate = amplitude * (reference + mix * noise) / np.linalg.norm(reference)
    value = pairwise_si_sdr(torch.tensor(estimate).view(1, 1, -1), torch.tensor(reference).view(1, 1, -1)).item()
    assert value == pytest.approx(fuss_form(estimate, reference), abs=1e-5)


def test_stays_within_80_db() -> None:
    signals = torch.stack([torch.randn(16000), torch.zeros(16000), 1e-30 * torch.randn(16000), 1e5 * torch.ones(16000)])
    scores = pairwise_si_sdr(signals.unsqueeze(0), signals.unsqueeze(0)).squeeze(0)
    assert scores.isfinite().all()
    assert (scores.abs() < 80.0001).all()
    torch.testing.assert_close(scores.diag(), torch.tensor([80.0, -80, -80, 80]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(scores[1:3], torch.full((2, 4), -80.0).double(), atol=1e-6, rtol=0)
    orthogonal = pairwise_si_sdr(E[None, :1], E[None, 1:2])
    torch.testing.assert_close(orthogonal.item(), -80.0, atol=1e-6, rtol=0)


def test_does_not_depend_on_the_dtype() -> None:
    torch.manual_seed(0)
    references = torch.randn(2, 2, 3000)
    estimates = references.flip(1) + 1e-4 * torch.randn_like(references)
    exact = align(estimates.double(), references.double())
    single = align(estimates, references)
    assert single.scores.dtype == torch.float64
    assert torch.equal(single.scores, exact.scores)
    assert (single.scores > 75).all()  # where float32 arithmetic would have lost two digits
    assert align_by_si_sdr(estimates, references).dtype == torch.float32


@pytest.mark.parametrize(("num_estimates", "num_references"), [(4, 2), (5, 3), (3, 3), (8, 2)])
def test_align_finds_the_best_of_all_choices(num_estimates: int, num_references: int) -> None:
    torch.manual_seed(num_estimates)
    references = torch.randn(6, num_references, 50)
    estimates = torch.randn(6, num_estimates, num_references) @ references + torch.randn(6, num_estimates, 50)
    scores = pairwise_si_sdr(estimates, references)
    aligned = align(estimates, references)
    picked = align_by_si_sdr(estimates, references)
    for b in range(6):
        choices = itertools.permutations(range(num_estimates), num_references)
        best = max(choices, key=lambda choice: sum(scores[b, k, m].item() for k, m in enumerate(choice)))
        assert torch.equal(picked[b], estimates[b, list(best)])
        expected = [textbook(estimates[b, m].numpy(), references[b, k].numpy()) for k, m in enumerate(best)]
        np.testing.assert_allclose(aligned.scores[b, :num_references].numpy(), expected, atol=1e-3)
    assert sorted(aligned.estimates[0, :, 0].tolist()) == sorted(estimates[0, :, 0].tolist())
    assert torch.equal(align_by_si_sdr(picked, references), picked)


def test_align_gives_silence_where_estimates_run_out() -> None:
    references = E[None, :3]
    estimates = torch.stack([E[2] + 0.1 * E[5], E[0] + 0.1 * E[5]])[None]
    picked = align_by_si_sdr(estimates, references)
    assert torch.equal(picked, torch.stack([estimates[0, 1], torch.zeros(8), estimates[0, 0]])[None])


def test_a_silent_reference_claims_no_estimate() -> None:
    references = torch.stack([E[0], torch.zeros(8), E[1]])[None]
    estimates = torch.stack([E[1] + 0.2 * E[5], E[0] + 0.1 * E[5], E[3]])[None]
    assert torch.equal(align_by_si_sdr(estimates, references), estimates[:, [1, 2, 0]])


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"must share B and T, got \[1, 2, 8\] and \[1, 2, 7\]"):
        align(E[None, :2], E[None, :2, :7])
    with pytest.raises(ValueError, match="must share B and T"):
        align(E[:2], E[:2])
    with pytest.raises(ValueError, match="diverged"):
        align(E[None, :2] * torch.nan, E[None, :2])


def test_is_active() -> None:
    signals = torch.stack([torch.zeros(9), torch.full((9,), 0.9e-8), torch.full((9,), 1.1e-8)])
    assert is_active(signals).tolist() == [False, False, True]


def test_si_sdr_by_hand() -> None:
    metric = SISDR()
    references = torch.stack([E[0], E[1]])[None]
    estimates = torch.stack([E[3], E[1] + 0.1 * E[4], E[2], -2 * E[0] + 2 * E[5]])[None]  # 4 outputs: 20 dB and 0 dB
    metric.update(estimates, references)
    assert metric.compute().item() == pytest.approx(10, abs=1e-4)
    metric.update(torch.stack([E[0] + 10**-0.5 * E[3], E[1]])[None], torch.stack([E[0], 0 * E[0]])[None])
    assert metric.count == 3  # the silent reference is none
    assert metric.compute().item() == pytest.approx((20 + 0 + 10) / 3, abs=1e-4)
    metric.update(torch.zeros(1, 1, 8), E[None, :1])
    assert metric.compute().item() == pytest.approx((20 + 0 + 10 - 80) / 4, abs=1e-4)
    metric.reset()
    metric.update(E[None, :2], torch.zeros(1, 2, 8))
    assert metric.compute().isnan()


def test_si_sdr_improvement_by_hand() -> None:
    metric = SISDRi()
    references = torch.stack([E[0], 2 * E[1]])[None]  # the mixture scores -6.02 and 6.02 dB
    estimates = torch.stack([E[1] + 10**-0.5 * E[4], E[0] + 0.1 * E[4]])[None]
    metric.update(estimates, references, references.sum(1))
    assert metric.compute().item() == pytest.approx((20 + 6.0206 + 10 - 6.0206) / 2, abs=1e-4)
    # A part of the mixture may have no reference; a silent reference counts nothing.
    metric.reset()
    metric.update(estimates, torch.stack([E[0], 0 * E[0]])[None], E[None, 0] + E[None, 6])
    assert metric.compute().item() == pytest.approx(20 - 0, abs=1e-4)
    # So does one that is alone in its mixture: any estimate but itself would be tens of dB worse.
    metric.update(estimates, torch.stack([E[0], 0 * E[0]])[None], E[None, 0] + 1e-4 * E[None, 6])
    assert metric.count == 1
    # Silence for an estimate is as bad as can be.
    metric.reset()
    metric.update(0 * estimates, references, references.sum(1))
    assert metric.compute().item() == pytest.approx(-80, abs=1e-4)


def test_momi_by_hand() -> None:
    mixtures = torch.stack([E[0] + E[1], E[2] + E[3]])[None]  # the mixture of mixtures scores 0 dB for either
    estimates = torch.stack([E[2] + 0.1 * E[6], E[0] + 0.1 * E[5], E[3], E[1] + 0.1 * E[5]])[None]
    metric = MoMi()
    metric.update(estimates, mixtures)
    first, second = 10 * np.log10(2 / 0.2**2), 10 * np.log10(2 / 0.1**2)
    assert metric.compute().item() == pytest.approx((first + second) / 2, abs=1e-4)
    # With a silent mixture the mixture of mixtures is the other one: nothing to improve, nothing counted.
    metric.update(estimates, torch.stack([E[0] + E[1], 0 * E[0]])[None])
    assert metric.count == 2


def test_momi_is_that_of_the_best_assignment() -> None:
    """MixIT's loss (30 dB), searched over all 16 assignments in numpy."""
    torch.manual_seed(0)
    sources = torch.randn(3, 4, 200)
    mixtures = torch.stack([sources[:, :2].sum(1), sources[:, 2:].sum(1)], 1)
    estimates = (sources + 0.4 * torch.randn_like(sources)).flip(1)
    expected = []
    for e, y in zip(estimates.double().numpy(), mixtures.double().numpy(), strict=True):
        ways = [np.array([way, [1 - w for w in way]]) @ e for way in itertools.product((0, 1), repeat=4)]
        power = (y**2).sum(-1)
        best = min(ways, key=lambda rebuilt: np.log10(((y - rebuilt) ** 2).sum(-1) + 1e-3 * power).sum())
        expected += [textbook(best[n], y[n]) - textbook(y.sum(0), y[n]) for n in range(2)]
    metric = MoMi()
    metric.update(estimates, mixtures)
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-3)


def batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(3, 2, 200, generator=generator)
    references[0, 1] = 0
    estimates = references.flip(1) + 0.1 * torch.randn(3, 2, 200, generator=generator)
    return {"estimates": estimates, "references": references, "mixtures": references.sum(1)}


def feed(metric: Metric, seeds: range) -> Metric:
    for seed in seeds:
        metric.update(**metric._filter_kwargs(**batch(seed)))
    return metric


@pytest.mark.parametrize(("kind", "count"), [(SISDR, 25), (SISDRi, 20)])  # in each batch a source is alone
def test_instances_merge_into_one(kind: type[Metric], count: int) -> None:
    whole, part, rest = feed(kind(), range(5)), feed(kind(), range(4)), feed(kind(), range(4, 5))
    part.merge_state(rest)
    assert part.compute().item() == pytest.approx(whole.compute().item(), rel=1e-12)
    assert part.count == whole.count == count


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    share = range(1) if rank == 0 else range(1, 5)
    torch.save([feed(SISDR(), share).compute(), feed(FUSSMetrics(), share).compute()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_agree_with_one(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        si_sdr, fuss = torch.load(tmp_path / f"{rank}.pt")
        assert si_sdr.item() == pytest.approx(feed(SISDR(), range(5)).compute().item(), rel=1e-12)
        torch.testing.assert_close(fuss, feed(FUSSMetrics(), range(5)).compute(), equal_nan=True)
