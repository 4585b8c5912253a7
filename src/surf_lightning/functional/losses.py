"""Training losses. Axes: B batch, K sources, M outputs, N references, P subsets, *S the signal.

Every loss returns one number an example, ``[B]``; the methods average them.
"""

from __future__ import annotations

import functools
import itertools
from typing import Literal, Protocol

import torch
from torch import Tensor

from surf_lightning.functional.permutation import best_permutation, invert, reorder
from surf_lightning.functional.precision import at_least_float32, full_precision
from surf_lightning.functional.randomness import Ranks
from surf_lightning.functional.remixing import unremix

EPSILON = 1e-8  # keeps the logarithm of an exactly reproduced silence finite

Objective = Literal["remixit", "self_remixing"]


class EnergyLoss(Protocol):
    """``loss(|y - y^|^2, |y|^2)``: maps error energy and reference energy (same shape) to a loss, elementwise."""

    def __call__(self, error_energy: Tensor, reference_energy: Tensor, /) -> Tensor: ...


class Reduction(Protocol):
    """Maps a residual ``[B,...]`` to one number for each example, ``[B]``."""

    def __call__(self, residual: Tensor, /) -> Tensor: ...


def squared_error(error_energy: Tensor, reference_energy: Tensor) -> Tensor:
    """|y - y^|^2."""
    return error_energy


def log_mse(error_energy: Tensor, reference_energy: Tensor) -> Tensor:
    """10 log10 |y - y^|^2 in dB, the log-SNR loss of Section 5.1."""
    return 10 * torch.log10(error_energy + EPSILON)


def thresholded_snr(error_energy: Tensor, reference_energy: Tensor, snr_max: float = 30.0) -> Tensor:
    """10 log10(|y - y^|^2 + tau |y|^2) in dB, tau = 10^(-snr_max/10): MixIT's loss, flat beyond ``snr_max`` dB."""
    return 10 * torch.log10(error_energy + 10 ** (-snr_max / 10) * reference_energy + EPSILON)


def squared_norm(x: Tensor, keep: int) -> Tensor:
    """The sum of squares over all axes but the first ``keep``, in float32 at least."""
    return at_least_float32(x).flatten(keep).square().sum(-1)


def pairwise_error_energy(estimates: Tensor, references: Tensor) -> Tensor:
    """|e_i - r_j|^2 for all pairs, ``[B,M,N]``, in one product of matrices.

    Takes ``estimates [B,M,*S]`` and ``references [B,N,*S]``. In float64, because the energies cancel where an
    estimate is close to a reference; without gradients, because it is only searched.
    """
    e, r = (x.detach().flatten(2).double() for x in (estimates, references))
    return (squared_norm(e, 2).unsqueeze(2) + squared_norm(r, 2).unsqueeze(1) - 2 * e @ r.mT).clamp_min_(0)


def reference_energy(sources: Tensor, mixtures: Tensor | None = None) -> Tensor:
    """|y|^2 of ``sources [B,K,*S]`` as an error is told it, ``[B,K]``; the zero-source loss where y is silence.

    An error relative to silence has no floor: it would reward the last bit of an estimate of nothing. Where the
    ``mixtures [B,*S]`` are given, silence counts as 10 |x|^2 of its mixture x, so that ``thresholded_snr`` becomes
    10 log10(|y^|^2 + tau |x|^2) with a tau 10 dB above that of the other sources: 20 dB below the mixture, as in the
    FUSS baseline of the MixIT paper's authors.
    """
    energies = squared_norm(sources, 2)
    if mixtures is None:
        return energies
    return torch.where(energies > 0, energies, 10 * squared_norm(mixtures, 1).unsqueeze(1))


def pit_permutation(
    estimates: Tensor, sources: Tensor, error: EnergyLoss = squared_error, mixtures: Tensor | None = None
) -> Tensor:
    """The order [B,K] of ``sources [B,K,*S]`` that fits ``estimates [B,K,*S]`` best, Eq. (3), (21) and (22).

    ``mixtures [B,*S]`` as of ``reference_energy``.
    """
    if error is squared_error:  # the energies are the same in every order: only the correlations decide
        dtype = torch.promote_types(torch.promote_types(estimates.dtype, sources.dtype), torch.float32)
        e, r = (x.detach().flatten(2).to(dtype) for x in (estimates, sources))
        with full_precision(e):
            return best_permutation(-(e @ r.mT))
    energies = pairwise_error_energy(estimates, sources)
    references = reference_energy(sources.detach().double(), mixtures)
    return best_permutation(error(energies, references.unsqueeze(1).expand_as(energies)))


def with_silence(sources: Tensor, count: int) -> Tensor:
    """``sources [B,K,*S]`` and slots of silence behind them, ``[B,count,*S]``."""
    silent = sources.new_zeros(len(sources), count - sources.shape[1], *sources.shape[2:])
    return torch.cat([sources, silent], 1)


def pit(estimates: Tensor, sources: Tensor, error: EnergyLoss, mixtures: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Permutation-invariant error, Eq. (3), averaged over the sources: ``loss [B]`` and the order [B,K] of ``sources``.

    Of ``estimates`` and ``sources [B,K,*S]``; ``mixtures [B,*S]`` where some sources are silent, see
    ``reference_energy``.

    Raises:
        ValueError: estimates and sources differ in shape.
    """
    if estimates.shape != sources.shape:
        raise ValueError(f"estimates {list(estimates.shape)} and sources {list(sources.shape)} differ in shape")
    order = pit_permutation(estimates, sources, error, mixtures)
    aligned = reorder(sources, order)
    return error(squared_norm(estimates - aligned, 2), reference_energy(aligned, mixtures)).mean(1), order


# -- MixIT --


@functools.lru_cache(maxsize=64)
def subsets(num_outputs: int, device: torch.device) -> Tensor:
    """All subsets of the outputs as 0/1 rows ``[2^M,M]``: bit m of the row's number is output m."""
    numbers = torch.arange(2**num_outputs, device=device)
    return (numbers.unsqueeze(1) >> torch.arange(num_outputs, device=device) & 1).double()


@functools.lru_cache(maxsize=64)
def partitions(num_outputs: int, num_references: int, device: torch.device) -> Tensor:
    """Every way to deal the outputs to N references, ``[N^M,N]``: for each reference its subset's number."""
    if num_references == 2:
        numbers = torch.arange(2**num_outputs, device=device)
        return torch.stack([numbers, 2**num_outputs - 1 - numbers], 1)
    deals = torch.tensor(list(itertools.product(range(num_references), repeat=num_outputs)), device=device)
    return _subset_numbers(torch.stack([deals == n for n in range(num_references)], 1))


def _subset_numbers(assignments: Tensor) -> Tensor:
    """For each reference of ``assignments [...,N,M]`` its subset's number, ``[...,N]``."""
    return (assignments * 2 ** torch.arange(assignments.shape[-1], device=assignments.device)).sum(-1)


def enhancement_assignments(num_outputs: int = 3) -> Tensor:
    """MixIT's constraint for speech enhancement (MixIT paper, Section 4.2), ``[A,2,M]`` of bool.

    The first reference is speech and noise, the second is noise. The first output, speech, goes to the first; of the
    others each reference gets at least one. Three outputs have the paper's two assignments: 1 and 2 to the first
    reference and 3 to the second, or 1 and 3 to the first and 2 to the second.
    """
    second = torch.tensor(list(itertools.product([False, True], repeat=num_outputs - 1))[1:-1])
    second = torch.cat([torch.zeros(len(second), 1, dtype=torch.bool), second], 1)
    return torch.stack([~second, second], 1)


def best_assignment(estimates: Tensor, references: Tensor, error: EnergyLoss, allowed: Tensor | None = None) -> Tensor:
    """MixIT's search: which estimates to sum for which reference, ``[B,N,M]`` of 0 and 1, each column with a single 1.

    It is among ``allowed [A,N,M]`` of 0 and 1 (such as ``enhancement_assignments``); among all N^M where that is None.

    |y - A s|^2 = |y|^2 - 2 A (S y) + A (S S^T) A^T is a quadratic form in the Gram matrix of the estimates, so the
    signals are read once, O(M^2 T), and each of the 2^M subsets costs O(M^2). In float64, see
    ``pairwise_error_energy``.
    """
    s, y = (x.detach().flatten(2).double() for x in (estimates, references))
    all_subsets = subsets(s.shape[1], s.device)
    gram, correlation = s @ s.mT, s @ y.mT
    subset_energy = ((all_subsets @ gram) * all_subsets).sum(-1)
    y_energy = squared_norm(y, 2)
    error_energy = subset_energy.unsqueeze(2) - 2 * all_subsets @ correlation + y_energy.unsqueeze(1)
    errors = error(error_energy.clamp_min_(0), y_energy.unsqueeze(1).expand_as(error_energy))
    deals = partitions(s.shape[1], y.shape[1], s.device) if allowed is None else _subset_numbers(allowed)
    total = torch.stack([errors[:, subset, n] for n, subset in enumerate(deals.T)]).sum(0)
    return all_subsets[deals[total.argmin(1)]].to(estimates.dtype)


def check_deals(outputs: int, heaps: int) -> None:
    """Raises ValueError where there are more than 2^20 ways to deal the outputs to so many heaps."""
    if max(heaps, 2) ** outputs > 2**20:
        raise ValueError(f"{outputs} outputs are too many to be dealt to {heaps}: more than 2^20 ways")


def mixit(
    estimates: Tensor,
    references: Tensor,
    snr_max: float = 30.0,
    error: EnergyLoss | None = None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mixture-invariant training (MixIT paper, Eq. (3)): the error of the best sums of estimates.

    Args:
        estimates: ``[B,M,*S]``, M at most 20.
        references: ``[B,N,*S]``, the mixtures that were summed to the mixture of mixtures.
        snr_max: the loss is 10 log10(|y - y^|^2 + tau |y|^2) with tau = 10^(-snr_max/10).
        error: another error of the energies in its place, e.g. ``squared_error``.
        allowed: the assignments ``[A,N,M]`` to choose from, as of ``best_assignment``.

    Returns:
        ``loss [B]`` averaged over the N references, where Eq. (3) sums, with the gradient of the best assignment alone,
        and that ``assignment [B,N,M]``.

    Raises:
        ValueError: shapes do not match, or there are more than 2^20 assignments.
    """
    if estimates.shape[0] != references.shape[0] or estimates.shape[2:] != references.shape[2:]:
        raise ValueError(f"estimates {list(estimates.shape)} and references {list(references.shape)} do not match")
    check_deals(estimates.shape[1], references.shape[1])
    error = error or functools.partial(thresholded_snr, snr_max=snr_max)
    assignment = best_assignment(estimates, references, error, allowed)
    with full_precision(estimates):  # an error of -30 dB is below bfloat16's resolution
        rows = at_least_float32(estimates.flatten(2))
        remixed = (assignment.to(rows.dtype) @ rows).view_as(references)
    return error(squared_norm(references - remixed, 2), squared_norm(references, 2)).mean(1), assignment


# -- remixing: functions of the residual R, the student's error on each remixed source --
#
# Regression and flow differ in R alone: estimates less their sources in Eq. (16), Eq. (23) in a flow. The teacher is
# mixture-consistent, so Eq. (17) is the regrouped R as well, by Eq. (26)-(27).


def mean_square(residual: Tensor) -> Tensor:
    """The mean of squares over the elements of each example, ``[B,...] -> [B]``."""
    return residual.flatten(1).square().mean(1)


def log_energy(residual: Tensor) -> Tensor:
    """FLOSS's log-loss: 10 log10 of each example's sum of squares in dB, ``[B,...] -> [B]``.

    That the squares of all sources are summed is our reading of Appendix D.5.
    """
    energies = squared_norm(residual, 1)
    return log_mse(energies, energies)


def remixit(residual: Tensor, reduction: Reduction = mean_square) -> Tensor:
    """ReMixIT, Eq. (16) and (24): the student finds the teacher's sources.

    ``reduction``, ``mean_square`` (the paper's on images) or ``log_energy`` (FLOSS's on audio), makes of the residual
    R ``[B,K,*S]`` one number for each remixed mixture, ``[B]``.
    """
    return reduction(residual)


def self_remixing(
    residual: Tensor, pit_permutation: Tensor, remix_order: Tensor, reduction: Reduction = mean_square
) -> Tensor:
    """Self-Remixing, Eq. (17) and (30): the student's sources, put back, give the original mixtures.

    Identically zero where all K sources of a mixture met again in one new mixture. Given (1-t) R for R it is Eq. (29).

    Args:
        residual: R ``[B,K,*S]``; row i belongs to remixed source ``pit_permutation[b,i]``.
        pit_permutation: ``[B,K]``.
        remix_order: ``[B*K]``, the ``order`` of ``remixing.Remix``.
        reduction: as of ``remixit``.

    Returns:
        One number for each ORIGINAL mixture, ``[B]``.
    """
    return reduction(regrouped(residual, pit_permutation, remix_order))


def remixing_loss(
    objective: Objective | float,
    residual: Tensor,
    pit_permutation: Tensor,
    remix_order: Tensor,
    ranks: Ranks,
    reduction: Reduction = mean_square,
) -> Tensor:
    """``remixit``, ``self_remixing`` or a sum of both, of this rank's part ``[B]`` of a batch that ``ranks`` remixed.

    ``objective`` says which, or is the weight of ``remixit``, that of ``self_remixing`` being the rest of 1.
    ``residual`` and ``pit_permutation`` are this rank's, ``remix_order [world*B*K]`` is that of all ranks.
    """
    if objective == "remixit":
        return remixit(residual, reduction)
    put_back = self_remixing(ranks.gather(residual), ranks.gather(pit_permutation), remix_order, reduction)
    if objective == "self_remixing":
        return ranks.local(put_back)
    return objective * remixit(residual, reduction) + (1 - objective) * ranks.local(put_back)


def regrouped(residual: Tensor, pit_permutation: Tensor, remix_order: Tensor) -> Tensor:
    """(I ⊗ 1ᵀ) Π⁻¹ Υ⁻¹ R of Eq. (17) and (30): ``R [B,K,*S]`` in the original places, summed to ``[B,*S]``."""
    return unremix(reorder(residual, invert(pit_permutation)), remix_order).sum(1)
