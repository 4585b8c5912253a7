"""The metrics of the FUSS evaluation (Wisdom et al., 2021; SURF paper D.2). Axes: B batch, M rows, T samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.metrics.audio import align, is_active, pairwise_si_sdr

MAX_SOURCES = 4
ACTIVE_POWER = 0.01
"""An estimate is active if its power is above this share of that of the mixture's quietest source: 20 dB below it."""


class FUSSMetrics(Metric):
    """Separation of mixtures of one to four sources.

    ``compute`` returns a dict of scalars:

    - ``1S``: mean SI-SDR in dB of the sources of one-source mixtures;
    - ``2Si``, ``3Si``, ``4Si``: mean SI-SDR improvement in dB over the mixture, for mixtures of so many sources;
      ``MSi`` pools the three;
    - ``under``, ``equal``, ``over``: the share of mixtures with fewer, as many, and more active estimates than sources.

    Means are over the sources of all mixtures together, and only over those with an active aligned estimate: a missed
    source shows as ``under`` alone. All active estimates are counted, also those without a source. Mixtures without
    any active source are left out. A mean over nothing is NaN.
    """

    full_state_update = False
    is_differentiable = False
    totals: Tensor
    pairs: Tensor
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("totals", torch.zeros(MAX_SOURCES, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros(MAX_SOURCES, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, estimates: Tensor, references: Tensor) -> None:
        """Count a batch. The mixture is the sum of its references.

        Args:
            estimates: ``[B,M,T]``, in any order; padded with silence where there are fewer than references.
            references: ``[B,K,T]``; rows of silence are no sources.

        Raises:
            ValueError: shapes do not match, the estimates are not finite, or a mixture has more than four sources.
        """
        aligned = align(estimates, references)
        active = is_active(aligned.references)
        num_sources = active.sum(1)
        if num_sources.max() > MAX_SOURCES:
            raise ValueError(f"the FUSS metrics are for 1 to {MAX_SOURCES} sources, got {int(num_sources.max())}")

        power, source_power = (x.square().mean(-1) for x in aligned[:2])
        quietest = source_power.where(active, torch.inf).amin(1, keepdim=True)
        separated = power > ACTIVE_POWER * quietest
        mixtures = aligned.references.sum(1, keepdim=True)
        baseline = pairwise_si_sdr(mixtures, aligned.references).squeeze(2)
        baseline = baseline.where(num_sources.unsqueeze(1) > 1, 0)

        sizes = torch.arange(1, MAX_SOURCES + 1, device=active.device)
        of_size = num_sources == sizes.unsqueeze(1)  # [4,B]
        counted = (active & separated & of_size.unsqueeze(2)).flatten(1)
        self.totals += torch.where(counted, (aligned.scores - baseline).flatten(), 0).sum(1)
        self.pairs += counted.sum(1)

        surplus = (separated.sum(1) - num_sources)[num_sources > 0]
        self.counts += torch.stack([(surplus < 0).sum(), (surplus == 0).sum(), (surplus > 0).sum()])

    def compute(self) -> dict[str, Tensor]:
        means = dict(zip(("1S", "2Si", "3Si", "4Si"), self.totals / self.pairs, strict=True))
        means["MSi"] = self.totals[1:].sum() / self.pairs[1:].sum()
        shares = dict(zip(("under", "equal", "over"), self.counts / self.counts.sum(), strict=True))
        return means | shares
