"""Axes: B batch, K sources, M outputs, N references, T samples. Everything in float64 unless said otherwise."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from surf_lightning.functional import losses
from surf_lightning.functional.flow import (
    interpolate,
    mixture_consistent,
    prior_from_noise,
    project_zero_sum,
    sources_from_velocity,
)
from surf_lightning.functional.losses import (
    EnergyLoss,
    best_assignment,
    enhancement_assignments,
    log_energy,
    log_mse,
    mean_square,
    mixit,
    pairwise_error_energy,
    pit,
    pit_permutation,
    regrouped,
    remixit,
    self_remixing,
    squared_error,
    squared_norm,
    thresholded_snr,
)
from surf_lightning.functional.permutation import invert, reorder
from surf_lightning.functional.remixing import remix
from tests.functional.test_permutation import matrix

SNR_MAX = 30.0
Definition = Callable[[Tensor, Tensor], float]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# -- the errors, from signals and in Python's floats --


def squared_of(reference: Tensor, estimate: Tensor) -> float:
    return math.fsum(
        (a - b) ** 2 for a, b in zip(reference.flatten().tolist(), estimate.flatten().tolist(), strict=True)
    )


def log_of(reference: Tensor, estimate: Tensor) -> float:
    return 10 * math.log10(squared_of(reference, estimate))


def thresholded_of(reference: Tensor, estimate: Tensor, snr_max: float = SNR_MAX) -> float:
    tau = 10 ** (-snr_max / 10)
    return 10 * math.log10(squared_of(reference, estimate) + tau * squared_of(reference, 0 * reference))


ERRORS: list[tuple[EnergyLoss, Definition]] = [
    (squared_error, squared_of),
    (log_mse, log_of),
    (thresholded_snr, thresholded_of),
    (functools.partial(thresholded_snr, snr_max=0.0), functools.partial(thresholded_of, snr_max=0.0)),
]
NAMES = ["squared", "log", "thresholded", "thresholded at 0 dB"]
error_and_its_definition = pytest.mark.parametrize(("error", "of"), ERRORS, ids=NAMES)


@error_and_its_definition
def test_errors_are_what_they_say(error: EnergyLoss, of: Definition) -> None:
    y, estimate = normal(1, 1, 3, 4), normal(1, 1, 3, 4)
    value = error(squared_norm(y - estimate, 2), squared_norm(y, 2))
    assert value.item() == pytest.approx(of(y, estimate), rel=1e-8)


def test_a_reproduced_silence_has_a_finite_error_and_gradient() -> None:
    silence = torch.zeros(1, 1, 4, requires_grad=True)
    for error in (log_mse, thresholded_snr):
        value = error(squared_norm(silence, 2), squared_norm(torch.zeros(1, 1, 4), 2)).sum()
        value.backward()
        assert value.item() == pytest.approx(-80)
    assert silence.grad is not None
    assert silence.grad.abs().max() == 0


def test_pairwise_error_energy_survives_cancellation() -> None:
    """At errors of -120 dB of float32 signals; the order of the axes is [B,M,N]."""
    references = torch.randn(2, 3, 50)
    estimates = torch.cat([references * (1 + 1e-6), torch.randn(2, 2, 50)], 1)
    energies = pairwise_error_energy(estimates, references)
    for b, m, n in itertools.product(range(2), range(5), range(3)):
        assert energies[b, m, n].item() == pytest.approx(squared_of(references[b, n], estimates[b, m]), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_energy_neither_rounds_nor_overflows(dtype: torch.dtype) -> None:
    x = torch.full((2, 3, 3000), 10.0, dtype=dtype)
    assert squared_norm(x, 2).dtype == torch.float32
    assert squared_norm(x, 2).tolist() == [[3e5] * 3] * 2
    assert squared_norm(x, 1).tolist() == [9e5] * 2


# -- PIT, Eq. (3) --


@error_and_its_definition
@pytest.mark.parametrize("signal", [(6,), (1, 2, 3)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_pit_is_brute_force(count: int, signal: tuple[int, ...], error: EnergyLoss, of: Definition) -> None:
    loudness = 3 ** torch.randn(12, count, *[1] * len(signal))
    estimates, sources = normal(12, count, *signal), loudness * normal(12, count, *signal)
    loss, order = pit(estimates, sources, error)
    assert torch.equal(order, pit_permutation(estimates, sources, error))
    for b in range(12):
        totals = {
            sigma: sum(of(sources[b, j], estimates[b, i]) for i, j in enumerate(sigma)) / count
            for sigma in itertools.permutations(range(count))
        }
        best = min(totals, key=totals.__getitem__)
        assert order[b].tolist() == list(best)  # estimate i belongs to source order[i]
        assert loss[b].item() == pytest.approx(totals[best], rel=1e-8)


def test_pit_order_aligns_the_sources_with_the_estimates() -> None:
    sources = normal(4, 5, 7)
    order = torch.rand(4, 5).argsort(1)
    estimates = reorder(sources, order) + 0.01 * normal(4, 5, 7)
    assert torch.equal(pit_permutation(estimates, sources), order)
    assert torch.equal(pit_permutation(sources, estimates), invert(order))


def test_pit_order_of_the_velocity_is_that_of_the_estimates() -> None:
    """Eq. (21) by brute force over Gamma, Eq. (22) from x0 + v."""
    x0, x1, velocity = normal(5, 3, 4), normal(5, 3, 4), normal(5, 3, 4)
    order = pit_permutation(x0 + velocity, x1)
    for b in range(5):
        costs = {g: squared_of(velocity[b], x1[b, list(g)] - x0[b]) for g in itertools.permutations(range(3))}
        assert tuple(order[b].tolist()) == min(costs, key=costs.__getitem__)


def test_pit_has_the_gradient_of_the_best_order_alone() -> None:
    estimates, sources = normal(3, 4, 6).requires_grad_(), normal(3, 4, 6)
    loss, order = pit(estimates, sources, thresholded_snr)
    (gradient,) = torch.autograd.grad(loss.sum(), estimates)
    for b, i in itertools.product(range(3), range(4)):
        source = sources[b, order[b, i]]
        residual = estimates.detach()[b, i] - source
        slope = 10 / math.log(10) / (residual.square().sum() + 1e-3 * source.square().sum()) / 4
        assert torch.allclose(gradient[b, i], 2 * slope * residual, rtol=1e-7)


def test_pit_of_silent_sources_is_the_zero_source_loss_by_brute_force() -> None:
    """10 log10(|y - s|^2 + 1e-3 |y|^2) of the active sources, 10 log10(|s|^2 + 1e-2 |x|^2) of the silent ones."""
    estimates, sources = normal(6, 4, 5), normal(6, 4, 5)
    estimates[1, :2] *= 1e-9
    sources[0, 1], sources[1, 2:], sources[2, 1:] = 0, 0, 0
    mixtures = sources.sum(1)

    def of(source: Tensor, estimate: Tensor, mixture: Tensor) -> float:
        silent = not source.any()
        floor = 1e-2 * squared_of(mixture, 0 * mixture) if silent else 1e-3 * squared_of(source, 0 * source)
        return 10 * math.log10(squared_of(source, estimate) + floor)

    loss, order = pit(estimates, sources, thresholded_snr, mixtures)
    for b in range(6):
        totals = {
            sigma: sum(of(sources[b, j], estimates[b, i], mixtures[b]) for i, j in enumerate(sigma)) / 4
            for sigma in itertools.permutations(range(4))
        }
        assert loss[b].item() == pytest.approx(min(totals.values()), rel=1e-6)
        assert totals[tuple(order[b].tolist())] == pytest.approx(min(totals.values()), rel=1e-12)


def test_pit_refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        pit(normal(2, 3, 4), normal(2, 2, 4), squared_error)


# -- MixIT --


def deal(assignment: tuple[int, ...], estimates: Tensor, references: Tensor, of: Definition) -> float:
    """The mean error over the references when output m goes to reference ``assignment[m]``; [M,*S] and [N,*S]."""
    total = 0.0
    for n, reference in enumerate(references.double()):
        mine = [estimate for estimate, to in zip(estimates.double(), assignment, strict=True) if to == n]
        total += of(reference, sum(mine, 0 * reference))
    return total / len(references)


def brute_force(estimates: Tensor, references: Tensor, of: Definition) -> dict[tuple[int, ...], float]:
    """The loss of each of the N^M assignments of one example."""
    deals = itertools.product(range(len(references)), repeat=len(estimates))
    return {assignment: deal(assignment, estimates, references, of) for assignment in deals}


def dealt(assignment: Tensor) -> tuple[int, ...]:
    """``[N,M]`` of 0 and 1 with one 1 a column, as the tuple of where each output goes."""
    assert set(assignment.flatten().tolist()) <= {0, 1}
    assert assignment.sum(0).tolist() == [1] * assignment.shape[1]
    return tuple(assignment.argmax(0).tolist())


def separated(batch: int, outputs: int, references: int, noise: float, *signal: int) -> tuple[Tensor, Tensor]:
    """Estimates, and references that are sums of them up to noise."""
    estimates = normal(batch, outputs, *signal) * torch.rand(batch, outputs, *[1] * len(signal))
    to = torch.randint(references, (batch, outputs))
    y = torch.zeros(batch, references, *signal, dtype=torch.float64)
    for b, m in itertools.product(range(batch), range(outputs)):
        y[b, to[b, m]] += estimates[b, m]
    return estimates, y + noise * normal(*y.shape)


MIXIT_ERRORS: list[tuple[EnergyLoss | None, Definition]] = [(None, thresholded_of), ERRORS[0], ERRORS[3]]


@pytest.mark.parametrize(("error", "of"), MIXIT_ERRORS, ids=["thresholded", "squared", "thresholded at 0 dB"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("outputs", [2, 3, 4, 5, 6])
def test_mixit_is_brute_force(outputs: int, count: int, error: EnergyLoss | None, of: Definition) -> None:
    related = separated(2, outputs, count, 0.3, 1, 2, 2)
    for estimates, references in [related, (normal(1, outputs, 3), normal(1, count, 3))]:
        loss, assignment = mixit(estimates, references, error=error)
        for b in range(len(estimates)):
            totals = brute_force(estimates[b], references[b], of)
            assert loss[b].item() == pytest.approx(min(totals.values()), rel=1e-7, abs=1e-5)
            assert dealt(assignment[b]) == min(totals, key=totals.__getitem__)


@pytest.mark.parametrize("count", [1, 4])
def test_mixit_with_one_reference_and_with_four(count: int) -> None:
    estimates, references = separated(2, 4, count, 0.3, 5)
    loss, assignment = mixit(estimates, references)
    for b in range(2):
        totals = brute_force(estimates[b], references[b], thresholded_of)
        assert dealt(assignment[b]) == min(totals, key=totals.__getitem__)
        assert loss[b].item() == pytest.approx(min(totals.values()), rel=1e-7, abs=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_mixit_chooses_the_best_of_the_allowed_assignments_by_brute_force(count: int) -> None:
    estimates, references = normal(8, 4, 6), normal(8, count, 6)
    allowed = [to for to in itertools.product(range(count), repeat=4) if to[0] == 0 and to[3] != 0]
    masks = torch.tensor([[[to[m] == n for m in range(4)] for n in range(count)] for to in allowed])
    loss, assignment = mixit(estimates, references, allowed=masks)
    for b in range(8):
        totals = {to: deal(to, estimates[b], references[b], thresholded_of) for to in allowed}
        assert dealt(assignment[b]) == min(totals, key=totals.__getitem__)
        assert loss[b].item() == pytest.approx(min(totals.values()), rel=1e-7)
    assert not torch.equal(assignment, mixit(estimates, references)[1])


def test_the_constraint_of_enhancement_is_the_papers_two_assignments() -> None:
    expected = [[[1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 1, 0]]]
    assert enhancement_assignments().long().tolist() == expected
    for assignment in enhancement_assignments(5):
        speech_and_noise, noise = assignment.tolist()
        assert speech_and_noise[0]
        assert any(speech_and_noise[1:])
        assert any(noise)
        assert [a ^ b for a, b in zip(speech_and_noise, noise, strict=True)] == [True] * 5
    assert len(enhancement_assignments(5)) == 2**4 - 2


@pytest.mark.parametrize("snr_max", [0.0, 20.0, 60.0])
def test_mixit_obeys_snr_max(snr_max: float) -> None:
    estimates, references = separated(2, 4, 2, 0.01, 20)
    loss, _ = mixit(estimates, references, snr_max)
    of = functools.partial(thresholded_of, snr_max=snr_max)
    for b in range(2):
        least = min(brute_force(estimates[b], references[b], of).values())
        assert loss[b].item() == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("snr_max", [10.0, 30.0])
def test_mixit_is_bounded_by_its_threshold_and_reaches_it(snr_max: float) -> None:
    for noise in (0.0, 1e-3, 1.0):
        estimates, references = separated(4, 4, 2, noise, 20)
        floor = (10 * references.square().sum(-1).log10() - snr_max).mean(1)
        floor = torch.where(floor.isfinite(), floor, -math.inf)
        loss, _ = mixit(estimates, references, snr_max)
        assert (loss >= floor).all()
        if noise == 0:
            assert torch.allclose(loss[floor.isfinite()], floor[floor.isfinite()], rtol=0, atol=1e-4)


@pytest.mark.parametrize("error", [None, squared_error], ids=["thresholded", "squared"])
def test_all_outputs_may_go_to_one_reference(error: EnergyLoss | None) -> None:
    estimates = normal(2, 4, 30)
    references = torch.stack([estimates.sum(1), torch.zeros(2, 30, dtype=torch.float64)], 1)
    references[1] = references[1].flip(0)
    estimates = estimates.requires_grad_()
    loss, assignment = mixit(estimates, references, error=error)
    assert [dealt(a) for a in assignment] == [(0, 0, 0, 0), (1, 1, 1, 1)]
    loss.sum().backward()
    assert estimates.grad is not None
    assert estimates.grad.isfinite().all()


def near_perfect(error_db: float) -> tuple[Tensor, Tensor]:
    """float32 references, found up to ``error_db`` by two outputs; two more hold errors of that size."""
    references = torch.randn(64, 2, 40)
    size = 10 ** (error_db / 20)
    junk = size * torch.randn(64, 2, 40)
    missing = size * torch.randn(64, 2, 40)
    return torch.cat([references - missing, junk], 1), references


def float32_gram_assignment(estimates: Tensor, references: Tensor) -> list[tuple[int, ...]]:
    """MixIT by squared error from float32 energies and products: what must not be done."""
    deals = list(itertools.product(range(2), repeat=4))
    gram, products = estimates @ estimates.mT, references @ estimates.mT
    totals = []
    for to in deals:
        total = references.square().sum((1, 2))
        for n in range(2):
            a = torch.tensor([float(m == n) for m in to])
            total = total - 2 * products[:, n] @ a + torch.einsum("m,bmn,n->b", a, gram, a)
        totals.append(total)
    return [deals[i] for i in torch.stack(totals).argmin(0).tolist()]


DEALS = list(itertools.product(range(2), repeat=4))


def true_energies(estimates: Tensor, references: Tensor) -> Tensor:
    """|y_n - y^_n|^2 of every deal from float64 differences, ``[16,2,B]``."""
    y, s = references.double(), estimates.double()
    deals = []
    for to in DEALS:
        dealt_to = [sum(s[:, m] for m in range(4) if to[m] == n) for n in range(2)]
        deals.append(torch.stack([(y[:, n] - dealt_to[n]).square().sum(-1) for n in range(2)]))
    return torch.stack(deals)


@pytest.mark.parametrize("error_db", [-70, -90, -110])
def test_mixit_of_near_perfect_float32_estimates(error_db: float) -> None:
    """Where the energies of float32 signals cancel: the same assignment as float64 differences give."""
    estimates, references = near_perfect(error_db)
    assert estimates.dtype == torch.float32
    energies = true_energies(estimates, references)
    floor = 1e-3 * references.double().square().sum(-1).T
    for error, totals in [(squared_error, energies.sum(1)), (thresholded_snr, (energies + floor).log10().sum(1))]:
        best = [DEALS[i] for i in totals.argmin(0).tolist()]
        assert [dealt(a) for a in best_assignment(estimates, references, error)] == best
    if error_db <= -90:  # or this test would have no power
        best = [DEALS[i] for i in energies.sum(1).argmin(0).tolist()]
        assert float32_gram_assignment(estimates, references) != best
    loss, _ = mixit(estimates, references, error=squared_error)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), energies.mean(1).min(0).values, rtol=0.03)


def test_mixit_near_the_resolution_of_float32() -> None:
    """At -120 dB float64 energies leave the last 1e-4 of the error open: choices closer than that are as good."""
    estimates, references = near_perfect(-120)
    totals = true_energies(estimates, references).sum(1)
    chosen = [DEALS.index(dealt(a)) for a in best_assignment(estimates, references, squared_error)]
    reached = totals[chosen, torch.arange(64)]
    assert torch.allclose(reached, totals.min(0).values, rtol=2e-4, atol=0)


def test_mixit_with_ties() -> None:
    """Equal outputs, silent outputs, silent references: some assignment of the least loss."""
    estimates, references = separated(4, 4, 2, 0.1, 8)
    estimates[0, 1] = estimates[0, 0]
    estimates[1, 2:] = 0
    references[2, 1] = references[2, 0]
    estimates[3] = 0
    loss, assignment = mixit(estimates, references)
    for b in range(4):
        totals = brute_force(estimates[b], references[b], thresholded_of)
        assert loss[b].item() == pytest.approx(min(totals.values()), rel=1e-7, abs=1e-5)
        assert totals[dealt(assignment[b])] == pytest.approx(min(totals.values()), rel=1e-9)


@pytest.mark.parametrize("error", [None, squared_error], ids=["thresholded", "squared"])
def test_mixit_has_the_gradient_of_the_best_assignment_alone(error: EnergyLoss | None) -> None:
    estimates, references = separated(3, 5, 2, 0.5, 2, 3)
    estimates = estimates.requires_grad_()
    loss, assignment = mixit(estimates, references, error=error)
    (gradient,) = torch.autograd.grad(loss.sum(), estimates)
    assert not assignment.requires_grad
    for b in range(3):
        leaf = estimates.detach()[b].clone().requires_grad_()
        to = dealt(assignment[b])
        expected = torch.zeros((), dtype=torch.float64)
        for n, y in enumerate(references[b]):
            total = torch.zeros_like(y)
            for m in range(5):
                if to[m] == n:
                    total = total + leaf[m]
            difference = (y - total).pow(2).sum()
            expected = expected + (difference if error else 10 * torch.log10(difference + 1e-3 * y.pow(2).sum())) / 2
        expected.backward()
        assert leaf.grad is not None
        assert torch.allclose(gradient[b], leaf.grad, rtol=1e-6)


def test_mixit_of_sixteen_outputs() -> None:
    """65536 assignments, found among them the one that was made."""
    estimates, references = separated(2, 16, 2, 0.0, 2000)
    loss, assignment = mixit(estimates.float(), references.float())
    for b in range(2):
        remade = torch.stack(
            [estimates[b][[m for m, to in enumerate(dealt(assignment[b])) if to == n]].sum(0) for n in (0, 1)]
        )
        assert torch.allclose(remade, references[b], atol=1e-9)
        assert loss[b].item() == pytest.approx(
            sum(thresholded_of(y, x) for y, x in zip(references[b], remade, strict=True)) / 2, rel=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixit_keeps_the_precision_of_its_estimates(dtype: torch.dtype) -> None:
    loss, assignment = mixit(normal(2, 3, 5).to(dtype), normal(2, 2, 5).to(dtype))
    assert loss.dtype == assignment.dtype == dtype
    estimates = normal(1, 2, 5)  # an error of -240 dB is nothing in float32
    loss, _ = mixit(estimates * (1 + 1e-12), estimates, error=squared_error)
    assert loss.item() == pytest.approx(1e-24 * estimates.square().sum().item() / 2, rel=1e-2)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mixit_computes_in_float32_at_least(dtype: torch.dtype, autocast: bool) -> None:
    estimates, references = (x.to(dtype) for x in separated(2, 4, 2, 0.05, 3000))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, assignment = mixit(20 * estimates, 20 * references)
    assert loss.dtype == torch.float32
    for b in range(2):
        totals = brute_force(20 * estimates[b], 20 * references[b], thresholded_of)
        assert dealt(assignment[b]) == min(totals, key=totals.__getitem__)
        assert loss[b].item() == pytest.approx(min(totals.values()), abs=1e-4)


def test_mixit_in_training_after_validation() -> None:
    """What a first call in inference mode leaves in the caches is usable with gradients."""
    losses.subsets.cache_clear()
    losses.partitions.cache_clear()
    estimates, references = separated(2, 3, 3, 0.1, 5)
    with torch.inference_mode():
        expected, _ = mixit(estimates, references)
    loss, _ = mixit(estimates.requires_grad_(), references)
    loss.sum().backward()
    assert torch.equal(loss.detach(), expected.clone())
    assert estimates.grad is not None
    assert estimates.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("estimates", "references", "message"),
    [
        ((2, 4, 5), (3, 2, 5), "do not match"),
        ((2, 4, 5), (2, 2, 6), "do not match"),
        ((2, 4, 5), (2, 2, 5, 1), "do not match"),
        ((1, 21, 3), (1, 2, 3), "21 outputs are too many"),
        ((1, 13, 3), (1, 3, 3), "13 outputs are too many"),
        ((1, 40, 3), (1, 1, 3), "40 outputs are too many"),
    ],
)
def test_mixit_refuses(estimates: tuple[int, ...], references: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixit(torch.zeros(estimates), torch.zeros(references))


# -- remixing, in the paper's matrices --


def blkdiag(orders: Tensor) -> Tensor:
    """Upsilon = blkdiag(sigma_1, ..., sigma_B) of orders [B,K]."""
    batch, count = orders.shape
    upsilon = torch.zeros(batch * count, batch * count, dtype=torch.float64)
    for b in range(batch):
        upsilon[b * count : (b + 1) * count, b * count : (b + 1) * count] = matrix(orders[b])
    return upsilon


def collapse(batch: int, count: int) -> Tensor:
    """I_B kron 1^T."""
    return torch.kron(torch.eye(batch, dtype=torch.float64), torch.ones(1, count, dtype=torch.float64))


def squares(rows: Tensor, batch: int) -> list[float]:
    """The mean of squares of each of ``batch`` equal blocks of rows."""
    blocks = rows.reshape(batch, -1).tolist()
    return [math.fsum(v * v for v in block) / len(block) for block in blocks]


def random_orders(batch: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, count).argsort(1), torch.randperm(batch * count)


SIZES = [(1, 1), (1, 3), (4, 1), (3, 2), (5, 3)]


@pytest.mark.parametrize("signal", [(4,), (1, 2, 3)])
@pytest.mark.parametrize(("batch", "count"), SIZES)
def test_rm_fm_and_sr_fm_in_matrices(batch: int, count: int, signal: tuple[int, ...]) -> None:
    """Eq. (24), (30), and (29) where each example has its own t."""
    residual = normal(batch, count, *signal)
    sigma, order = random_orders(batch, count)
    r, upsilon, pi = residual.reshape(batch * count, -1), blkdiag(sigma), matrix(order)
    assert remixit(residual).tolist() == pytest.approx(squares(r, batch), rel=1e-13)
    original = collapse(batch, count) @ pi.inverse() @ upsilon.inverse() @ r
    mine = regrouped(residual, sigma, order)
    assert mine.shape == (batch, *signal)
    assert torch.allclose(mine.reshape(batch, -1), original, rtol=0, atol=1e-12)
    assert self_remixing(residual, sigma, order).tolist() == pytest.approx(squares(original, batch), rel=1e-12)

    t = torch.rand(batch, dtype=torch.float64)
    weight = torch.diag(torch.kron(1 - t, torch.ones(count, dtype=torch.float64)))
    auxiliary = collapse(batch, count) @ pi.inverse() @ upsilon.inverse() @ weight @ r
    weighted = (1 - t).view(-1, *[1] * (1 + len(signal))) * residual
    assert self_remixing(weighted, sigma, order).tolist() == pytest.approx(squares(auxiliary, batch), rel=1e-12)
    common = self_remixing(0.7 * residual, sigma, order)  # one t for all: the factor (1-t)^2 of Eq. (29)
    assert common.tolist() == pytest.approx([0.49 * s for s in squares(original, batch)], rel=1e-12)


def zero_sum_residual(batch: int, count: int) -> Tensor:
    return project_zero_sum(normal(batch, count, 5))


@pytest.mark.parametrize(("batch", "count"), [(1, 2), (1, 5), (4, 3)])
def test_sr_is_zero_and_rm_is_not_without_a_shuffle(batch: int, count: int) -> None:
    residual = zero_sum_residual(batch, count)
    sigma, _ = random_orders(batch, count)
    assert self_remixing(residual, sigma, torch.arange(batch * count)).max() < 1e-28
    assert remixit(residual).min() > 0.1


def test_sr_is_zero_in_a_batch_of_one() -> None:
    residual = zero_sum_residual(1, 4)
    for order in itertools.permutations(range(4)):
        sigma, _ = random_orders(1, 4)
        assert self_remixing(residual, sigma, torch.tensor(order)).item() < 1e-28
    assert remixit(residual).item() > 0.1


def test_sr_is_zero_wherever_all_mates_meet_again() -> None:
    """Original mixtures 0 and 3 arrive whole, as new mixtures 2 and 1; the mates of 1 and 2 are mixed up."""
    residual = zero_sum_residual(4, 2)
    order = torch.tensor([2, 4, 7, 6, 0, 1, 5, 3])
    sigma, _ = random_orders(4, 2)
    loss = self_remixing(residual, sigma, order)
    assert (loss < 1e-28).tolist() == [True, False, False, True]
    assert loss[[1, 2]].min() > 1e-3
    assert remixit(residual).min() > 1e-3


def test_sr_is_indexed_by_original_mixture() -> None:
    """One residual that is not zero counts only for the mixture its source came from."""
    for new, place, original in itertools.product(range(3), range(2), range(6)):
        sigma, order = random_orders(3, 2)
        row = 2 * new + int(sigma[new, place])  # the remixed source to which residual ``place`` belongs
        where = order.tolist().index(original)
        order[where], order[row] = order[row].item(), original
        residual = torch.zeros(3, 2, 4, dtype=torch.float64)
        residual[new, place] = 2.0
        expected = [0.0, 0.0, 0.0]
        expected[original // 2] = 4.0
        assert self_remixing(residual, sigma, order).tolist() == expected


def test_remixing_losses_keep_gradients() -> None:
    residual = normal(4, 2, 3).requires_grad_()
    sigma, order = random_orders(4, 2)
    (gradient,) = torch.autograd.grad(self_remixing(residual, sigma, order).sum(), residual)
    s = collapse(4, 2) @ matrix(order).T @ blkdiag(sigma).T
    expected = 2 / 3 * s.T @ s @ residual.detach().reshape(8, 3)
    assert torch.allclose(gradient.reshape(8, 3), expected, rtol=0, atol=1e-13)


class Remixed:
    """A batch remixed from a mixture-consistent teacher, as the paper's matrices."""

    def __init__(self, batch: int = 4, count: int = 3, length: int = 5) -> None:
        self.batch, self.count = batch, count
        self.mixtures = normal(batch, length)  # M
        teacher = mixture_consistent(normal(batch, count, length), self.mixtures)
        self.remixed = remix(teacher)
        self.sources = self.remixed.sources
        self.pi = matrix(self.remixed.order)

    def self_remixing(self, student: Tensor, order: Tensor) -> list[float]:
        """Eq. (17) as it stands: from the student's rows [BK,d] and the observed mixtures."""
        upsilon, ones = blkdiag(order), collapse(self.batch, self.count)
        return squares(ones @ self.pi.inverse() @ upsilon.inverse() @ student - self.mixtures, self.batch)


def test_regression_self_remixing_needs_only_the_observed_mixtures() -> None:
    """Eq. (17), by way of (26)-(27): the regrouped residual of a mixture-consistent teacher."""
    case = Remixed()
    estimates = normal(4, 3, 5)  # the student owes nobody consistency
    order = pit_permutation(estimates, case.sources)
    loss = mean_square(regrouped(estimates - reorder(case.sources, order), order, case.remixed.order))
    assert loss.tolist() == pytest.approx(case.self_remixing(estimates.reshape(12, -1), order), rel=1e-11)


def test_regression_remixit_in_both_forms() -> None:
    """Eq. (16): |X^ - Upsilon X~|^2 = |Upsilon^-1 X^ - X~|^2, Upsilon found by brute force."""
    case = Remixed()
    estimates = normal(4, 3, 5)
    order = pit_permutation(estimates, case.sources)
    for b in range(4):
        costs = {
            sigma: squared_of(estimates[b], case.sources[b, list(sigma)]) for sigma in itertools.permutations(range(3))
        }
        assert tuple(order[b].tolist()) == min(costs, key=costs.__getitem__)
    student, targets, upsilon = estimates.reshape(12, -1), case.sources.reshape(12, -1), blkdiag(order)
    loss = mean_square(estimates - reorder(case.sources, order))
    assert loss.tolist() == pytest.approx(squares(student - upsilon @ targets, 4), rel=1e-12)
    assert loss.tolist() == pytest.approx(squares(upsilon.inverse() @ student - targets, 4), rel=1e-12)


def test_flow_self_remixing_needs_only_the_observed_mixtures() -> None:
    """Eq. (25)-(29): the denoised student put into Eq. (17) is the regrouped (1-t) R_t."""
    case = Remixed()
    order, t = random_orders(4, 3)[0], torch.rand(4, dtype=torch.float64)
    x0 = prior_from_noise(case.remixed.mixtures, normal(4, 3, 5))
    x1 = reorder(case.sources, order)
    x_t = interpolate(x0, x1, t)
    velocity = normal(4, 3, 5)
    residual = velocity - (x1 - x0)
    denoised = sources_from_velocity(x_t, t, velocity)
    weight = (1 - t).view(4, 1, 1)
    left = blkdiag(order).inverse() @ denoised.reshape(12, -1) - case.sources.reshape(12, -1)  # Eq. (28)
    assert torch.allclose(left, blkdiag(order).inverse() @ (weight * residual).reshape(12, -1), rtol=0, atol=1e-12)
    loss = self_remixing(weight * residual, order, case.remixed.order)
    assert loss.tolist() == pytest.approx(case.self_remixing(denoised.reshape(12, -1), order), rel=1e-11)
    endpoint = x0 + velocity  # Eq. (96): without the weight, Eq. (30)
    loss = self_remixing(residual, order, case.remixed.order)
    assert loss.tolist() == pytest.approx(case.self_remixing(endpoint.reshape(12, -1), order), rel=1e-11)


# -- the small ones --


def test_mean_square_and_log_energy() -> None:
    residual = normal(3, 2, 4, 5)
    for b in range(3):
        total = squared_of(residual[b], 0 * residual[b])
        assert mean_square(residual)[b].item() == pytest.approx(total / 40, rel=1e-13)
        assert log_energy(residual)[b].item() == pytest.approx(10 * math.log10(total), rel=1e-9)
    assert log_energy(torch.zeros(1, 2, 4)).item() == pytest.approx(-80)


def test_log_energy_of_regrouped_residuals_is_the_log_of_eq_30() -> None:
    residual = normal(4, 2, 6)
    sigma, order = random_orders(4, 2)
    original = collapse(4, 2) @ matrix(order).T @ blkdiag(sigma).T @ residual.reshape(8, 6)
    expected = [10 * math.log10(6 * square) for square in squares(original, 4)]
    assert log_energy(regrouped(residual, sigma, order)).tolist() == pytest.approx(expected, rel=1e-8)


# -- what has no energy --


def degenerate(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Signals ``[2,count,8]`` that a logarithm or a division may stumble over."""
    noise = torch.randn(2, count, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return {
        "silence": torch.zeros(2, count, 8, dtype=dtype),
        "one silent": torch.cat([torch.zeros(2, 1, 8, dtype=dtype), noise[:, 1:]], 1),
        "identical": noise[:, :1].expand(-1, count, -1).clone(),
        "opposite": noise[:, :1] * torch.tensor([1.0, -1.0] * count)[:count, None].to(dtype),
        "faint": 1e-22 * noise,
        "loud": 1e9 * noise,
    }


@pytest.mark.parametrize("sources", degenerate(2))
@pytest.mark.parametrize("estimates", degenerate(2))
def test_every_loss_has_finite_gradients_where_there_is_no_energy(estimates: str, sources: str) -> None:
    references, order = degenerate(2)[sources], torch.tensor([2, 1, 0, 3])

    def finite(loss: Callable[[Tensor], Tensor], count: int = 2) -> None:
        outputs = degenerate(count)[estimates].requires_grad_()
        value = loss(outputs)
        value.sum().backward()
        assert value.isfinite().all()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()

    for error in (squared_error, log_mse, thresholded_snr):
        finite(lambda x, error=error: mixit(x, references, error=error)[0], count=4)
        finite(lambda x, error=error: pit(x, references, error)[0])
        finite(lambda x, error=error: pit(x, references, error, references.sum(1))[0])
    for reduction in (mean_square, log_energy):
        finite(lambda x, reduction=reduction: remixit(x - references, reduction))
        finite(
            lambda x, reduction=reduction: self_remixing(
                x - references, pit_permutation(x, references), order, reduction
            )
        )
