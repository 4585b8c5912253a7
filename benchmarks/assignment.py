"""MixIT's search against a plain enumeration over signals; PIT against torchmetrics. Axes: B M T."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from timing import alone, compare
from torch import Tensor
from torchmetrics.functional.audio import permutation_invariant_training

from surf_lightning.losses import mixit, pit_order

SAMPLES = 160_000  # 10 s at 16 kHz


def plain_mixit(estimates: Tensor, references: Tensor, snr_max: float = 30.0) -> Tensor:
    """Every assignment summed and measured on the signals; the best of each example."""
    tau, losses = 10 ** (-snr_max / 10), []
    for columns in itertools.product((0, 1), repeat=estimates.shape[1]):
        first = torch.tensor(columns, dtype=estimates.dtype, device=estimates.device)
        remixed = torch.einsum("nm,bmt->bnt", torch.stack([first, 1 - first]), estimates)
        error = (references - remixed).square().sum(-1) + tau * references.square().sum(-1)
        losses.append(10 * torch.log10(error).mean(1))
    return torch.stack(losses).min(0).values


def run(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """Loss with gradient for M = 4, 8 against the enumeration, M = 16 alone; PIT for K = 2, 4, 8."""
    rows: list[dict[str, Any]] = []
    generator = torch.Generator(device).manual_seed(0)
    for outputs in (4, 8, 16):
        signals = torch.randn(4, outputs, SAMPLES, generator=generator, device=device).requires_grad_()
        pairs = torch.randn(4, 2, SAMPLES, generator=generator, device=device)

        def ours(signals: Tensor = signals, pairs: Tensor = pairs) -> None:
            mixit(signals, pairs)[0].mean().backward()

        def theirs(signals: Tensor = signals, pairs: Tensor = pairs) -> None:
            plain_mixit(signals, pairs).mean().backward()

        case = {"case": f"MixIT loss and gradient, M = {outputs}, B = 4, T = {SAMPLES}"}
        if outputs == 16:  # 65,536 sums of signals with gradient fit in no memory
            rows.append({**case, "ours_ms": alone(ours, device, 3)})
        else:
            rows.append({**case, **compare(ours, theirs, device, 3)})
    for sources in (2, 4, 8):
        estimates, truth = torch.randn(2, 8, sources, 16_000, generator=generator, device=device)

        def ordered(estimates: Tensor = estimates, truth: Tensor = truth) -> None:
            pit_order(estimates, truth)

        def reference(estimates: Tensor = estimates, truth: Tensor = truth) -> None:
            permutation_invariant_training(estimates, truth, lambda e, t: (e - t).square().sum(-1), eval_func="min")

        rows.append({"case": f"PIT, K = {sources}, B = 8, T = 16000", **compare(ordered, reference, device, 5)})
    return rows
