"""SI-SDR, SI-SDRi and MoMi. Axes: B batch, K references, M estimates, N = max(K,M), T samples.

Every metric here and in ``speech`` aligns its estimates by ``align``, which leaves aligned estimates as they are. So an
evaluation may align once by ``align_by_si_sdr``, keep the rows it wants (say, of speech and noise the speech) and give
those to all metrics. Everything is computed in float64, whatever the dtype of the signals.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from surf_lightning.audio.index import SILENCE
from surf_lightning.functional.losses import mixit
from surf_lightning.functional.permutation import best_permutation, reorder
from surf_lightning.metrics.base import ScoreMean

ALONE = 60.0
"""SI-SDR in dB of a mixture from which on it is its source."""


def is_active(signals: Tensor) -> Tensor:
    """Whether the RMS of each of ``signals [...,T]`` is above silence: bool ``[...]``."""
    return signals.double().square().mean(-1).sqrt() > SILENCE


def pairwise_si_sdr(estimates: Tensor, references: Tensor) -> Tensor:
    """SI-SDR in dB of each of ``estimates [B,M,T]`` against each of ``references [B,K,T]``: ``[B,K,M]``, float64.

    The cosine form of the FUSS evaluation (Wisdom et al., 2021; SURF paper D.2), without removal of the mean:
    10 log10((ρ² + 1e-8) / (1 - ρ² + 1e-8)). Between -40 and 40 dB it equals the textbook SI-SDR to 0.001 dB. It
    saturates at ±80 dB, and is exactly -80 dB where either signal is silence, for which the textbook form is undefined.
    """
    estimates, references = estimates.double(), references.double()
    estimate_energy = estimates.square().sum(-1).unsqueeze(1)
    reference_energy = references.square().sum(-1).unsqueeze(2)
    # Signals with an energy below 1e-16 are not scaled to unit norm: they fade towards -80 dB.
    estimate_scale, reference_scale = estimate_energy.clamp_min(1e-16), reference_energy.clamp_min(1e-16)
    signal = (references @ estimates.mT).square() / (estimate_scale * reference_scale)
    residual = estimate_energy / estimate_scale + signal * (reference_energy / reference_scale - 2)  # |u - ρ w|^2
    noise = torch.where(signal <= 0.99, 1 - signal, residual.clamp_min(0))
    return 10 * torch.log10((signal + 1e-8) / (noise + 1e-8))


class Aligned(NamedTuple):
    """Estimates in the order of their references, both padded with silence to N rows."""

    estimates: Tensor
    """``[B,N,T]``; rows from K on are estimates without a reference."""
    references: Tensor
    """``[B,N,T]``."""
    scores: Tensor
    """Their SI-SDR in dB, ``[B,N]``."""


def align(estimates: Tensor, references: Tensor) -> Aligned:
    """Assign estimates to references so that the sum of their SI-SDRs is highest, in float64.

    A silent reference scores -80 dB with any estimate, as does the silence that pads the fewer of the two, so neither
    takes an estimate from another. A reference without an estimate gets silence. For ``estimates [B,M,T]`` and
    ``references [B,K,T]``.

    Raises:
        ValueError: shapes do not match, or the estimates are not finite.
    """
    if estimates.ndim != 3 or references.ndim != 3 or estimates.shape[::2] != references.shape[::2]:
        shapes = f"{list(estimates.shape)} and {list(references.shape)}"
        raise ValueError(f"estimates [B,M,T] and references [B,K,T] must share B and T, got {shapes}")
    if not estimates.isfinite().all():
        raise ValueError("the estimates hold NaN or infinity: the separator that made them has diverged")
    size = max(estimates.shape[1], references.shape[1])
    estimates, references = (pad(x.double(), (0, 0, 0, size - x.shape[1])) for x in (estimates, references))
    scores = pairwise_si_sdr(estimates, references)
    order = best_permutation(-scores)
    return Aligned(reorder(estimates, order), references, scores.gather(2, order.unsqueeze(2)).squeeze(2))


def align_by_si_sdr(estimates: Tensor, references: Tensor) -> Tensor:
    """The estimates ``[B,K,T]`` of ``estimates [B,M,T]`` that ``align`` assigns to ``references [B,K,T]``."""
    return align(estimates, references).estimates[:, : references.shape[1]].to(estimates.dtype)


class SISDR(ScoreMean):
    """Mean SI-SDR in dB (SURF paper D.2, ``pairwise_si_sdr``) over the references that are not silent.

    Of more estimates than references the best are taken; a silent or missing estimate counts as -80 dB.
    """

    def update(self, estimates: Tensor, references: Tensor) -> None:
        """Count ``estimates [B,M,T]``, in any order, against ``references [B,K,T]``."""
        aligned = align(estimates, references)
        self._add(aligned.scores, is_active(aligned.references))


class SISDRi(ScoreMean):
    """Mean SI-SDR improvement in dB: the SI-SDR of the estimate minus that of the mixture.

    A source that is alone in its mixture is left out: there is nothing to improve, and any estimate but the mixture
    would be tens of dB worse.
    """

    def update(self, estimates: Tensor, references: Tensor, mixtures: Tensor) -> None:
        """Count ``estimates [B,M,T]``, in any order, against ``references [B,K,T]`` and ``mixtures [B,T]``."""
        aligned = align(estimates, references)
        baseline = pairwise_si_sdr(mixtures.unsqueeze(1), aligned.references).squeeze(2)
        self._add(aligned.scores - baseline, is_active(aligned.references) & (baseline < ALONE))


class MoMi(ScoreMean):
    """SI-SDR improvement in dB of mixtures rebuilt from a separated mixture of mixtures (MixIT paper, Section 4.3).

    The estimates are summed by the assignment of MixIT's Eq. (3); the baseline is the mixture of mixtures. An example
    with a silent mixture is left out: it is no mixture of mixtures.
    """

    squares: Tensor
    error: Tensor
    """The standard error of the mean in dB, over examples, once it is computed; NaN of fewer than two."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, estimates: Tensor, mixtures: Tensor) -> None:
        """Count the ``estimates [B,M,T]`` of ``mixtures.sum(1)`` against ``mixtures [B,2,T]``."""
        estimates, mixtures = estimates.double(), mixtures.double()
        remixed = mixit(estimates, mixtures)[1].to(estimates) @ estimates
        rebuilt = pairwise_si_sdr(remixed, mixtures).diagonal(dim1=1, dim2=2)
        baseline = pairwise_si_sdr(mixtures.sum(1, keepdim=True), mixtures).squeeze(2)
        counted = is_active(mixtures).all(1, keepdim=True)
        self._add(rebuilt - baseline, counted.expand_as(rebuilt))
        self.squares += torch.where(counted[:, 0], (rebuilt - baseline).mean(1), 0).square().sum()

    def compute(self) -> Tensor:
        mean, count = super().compute(), self.count / 2
        self.error = ((self.squares / count - mean.square()).clamp_min(0) / (count - 1)).sqrt()
        return mean
