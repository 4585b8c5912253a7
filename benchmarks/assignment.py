"""MixIT's search against a plain enumeration over signals and asteroid's; PIT against torchmetrics. Axes: B M T."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from machine import Machine
from rows import Timing
from timing import alone, compare
from torch import Tensor
from torchmetrics.functional.audio import permutation_invariant_training

from surf_lightning.functional.losses import mixit, pit_permutation
from surf_lightning.functional.permutation import reorder

SAMPLES = 160_000  # 10 s at 16 kHz
BATCH = 4

Loss = Callable[[Tensor, Tensor], Tensor]


def summed_error(remixed: Tensor, references: Tensor, snr_max: float = 30.0) -> Tensor:
    """MixIT's loss of sums ``[B,2,T]`` of estimates, on the signals: ``[B]``."""
    tau = 10 ** (-snr_max / 10)
    error = (references - remixed).square().sum(-1) + tau * references.square().sum(-1)
    return 10 * torch.log10(error).mean(1)


def plain_mixit(estimates: Tensor, references: Tensor) -> Tensor:
    """Every assignment summed and measured on the signals; the best of each example, their mean."""
    losses = []
    for columns in itertools.product((0, 1), repeat=estimates.shape[1]):
        first = torch.tensor(columns, dtype=estimates.dtype, device=estimates.device)
        losses.append(summed_error(torch.einsum("nm,bmt->bnt", torch.stack([first, 1 - first]), estimates), references))
    return torch.stack(losses).min(0).values.mean()


def our_mixit(estimates: Tensor, references: Tensor) -> Tensor:
    """The package's."""
    return mixit(estimates, references)[0].mean()


def asteroid_mixit() -> Loss:
    """asteroid's wrapper around the same loss; raises ImportError where asteroid is not installed."""
    from asteroid.losses import MixITLossWrapper

    return MixITLossWrapper(summed_error, generalized=True)


def with_gradient(loss: Loss, signals: Tensor, pairs: Tensor) -> None:
    """One evaluation of a loss and its gradient, thrown away."""
    signals.grad = None
    loss(signals, pairs).backward()


def run(machine: Machine) -> Iterator[Timing]:
    """Loss with gradient for M = 4, 8 against both, M = 16 alone; PIT for K = 2, 4, 8."""
    device = machine.device
    generator = torch.Generator(device).manual_seed(0)
    for outputs in (4, 8, 16):
        signals = torch.randn(BATCH, outputs, SAMPLES, generator=generator, device=device).requires_grad_()
        pairs = torch.randn(BATCH, 2, SAMPLES, generator=generator, device=device)
        case = f"MixIT loss and gradient, M = {outputs}, B = {BATCH}, T = {SAMPLES}"
        ours = functools.partial(with_gradient, our_mixit, signals, pairs)
        # Estimates and references are read, the gradient is written.
        floor = machine.floor_ms(bytes_moved=2 * signals.nbytes + pairs.nbytes)
        if outputs == 16:  # 65,536 sums of signals with gradient fit in no memory
            yield Timing(case, ours_ms=alone(ours, device, 3), floor_ms=floor, remark="65,536 sums fit in no memory")
            continue
        yield _against("enumeration", plain_mixit, case, ours, signals, pairs, machine, floor)
        try:
            asteroid = asteroid_mixit()
        except ImportError as error:
            yield Timing(f"{case}, asteroid", remark=f"asteroid: not available, because {error}")
        else:
            yield _against("asteroid", asteroid, f"{case}, asteroid", ours, signals, pairs, machine, floor)

    for sources in (2, 4, 8):
        estimates, truth = torch.randn(2, 8, sources, 16_000, generator=generator, device=device)

        def ordered(estimates: Tensor = estimates, truth: Tensor = truth) -> Tensor:
            return pit_permutation(estimates, truth)

        def reference(estimates: Tensor = estimates, truth: Tensor = truth) -> Tensor:
            return permutation_invariant_training(
                estimates, truth, lambda e, t: (e - t).square().sum(-1), eval_func="min"
            )[1]

        # torchmetrics' order is one of the estimates.
        ours = (estimates - reorder(truth, ordered())).square().sum((1, 2))
        theirs = (reorder(estimates, reference()) - truth).square().sum((1, 2))
        torch.testing.assert_close(ours, theirs)
        floor = machine.floor_ms(bytes_moved=estimates.nbytes + truth.nbytes)
        case = f"PIT, K = {sources}, B = 8, T = 16000"
        yield Timing(case, **compare(ordered, reference, device, 5), floor_ms=floor, remark="plain: torchmetrics")


def _against(
    whom: str,
    theirs: Loss,
    case: str,
    ours: Callable[[], None],
    signals: Tensor,
    pairs: Tensor,
    machine: Machine,
    floor: float,
) -> Timing:
    ours()
    gradient = signals.grad
    plain = functools.partial(with_gradient, theirs, signals, pairs)
    plain()
    torch.testing.assert_close(gradient, signals.grad, rtol=1e-3, atol=1e-9)
    return Timing(case, **compare(ours, plain, machine.device, 3), floor_ms=floor, remark=f"plain: {whom}")
