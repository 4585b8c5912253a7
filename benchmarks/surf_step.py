"""Our SURF step against the paper's Code Listing 1 written plainly, in examples/surf_minimal.py.

Axes: B batch, K sources, C H W.
"""

from __future__ import annotations

import copy
import functools
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from counting import count_flops
from machine import Machine, name
from rows import Timing
from timing import alone, compare
from torch import Tensor

from surf_lightning.callbacks.ema_teacher import ema_update
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator, compile_networks
from surf_lightning.methods import SURF
from surf_lightning.networks import RegressionNCSNpp, SharedNCSNpp

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import surf_minimal

STEPS, ALPHA = 5, 0.999
CIFAR: dict[str, Any] = {"image_size": 32, "image_channels": 3, "channels": 64, "blocks": 4, "dropout": 0.0}
DIGITS: dict[str, Any] = {
    "image_size": 8,
    "image_channels": 1,
    "channels": 32,
    "multipliers": (1,),
    "blocks": 2,
    "dropout": 0.0,
}


def plain_step(
    student: Any,
    teacher: Any,
    mixit: Any,
    optimizer: Any,
    mixtures: Tensor,
    k: int,
    beta: float,
    autocast: torch.autocast,
) -> None:
    """Code Listing 1 with the ReMixIT loss, as ``examples/surf_minimal.py`` has it."""
    noise = torch.randn(2, len(mixtures), k, *mixtures.shape[1:], device=mixtures.device)
    order = torch.randperm(len(mixtures) * k, device=mixtures.device)
    t = torch.rand(1, device=mixtures.device).expand(len(mixtures))
    with autocast:
        x0 = surf_minimal.prior(mixtures, noise[0])
        sources = surf_minimal.remix(surf_minimal.teacher_sample(teacher, mixit, mixtures, x0, beta, STEPS), order)
        mixed = sources.sum(1)
        residual, _ = surf_minimal.flow_residual(student, surf_minimal.prior(mixed, noise[1]), sources, mixed, t)
        loss = surf_minimal.rm_loss(residual)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.data.lerp_(new.data, 1 - ALPHA)


def our_step(module: SURF, optimizer: Any, mixtures: Tensor, autocast: torch.autocast) -> Callable[[], None]:
    """A step as Lightning takes it: loss, gradient, optimizer, teacher."""
    batches = itertools.count()

    def step() -> None:
        with autocast:
            loss = module.loss({"mixtures": mixtures}, BatchRandomness(0, next(batches), mixtures.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(module.separator, module.student, ALPHA)

    return step


def surf(network: Any, mixit: RegressionSeparator, device: torch.device, **options: Any) -> tuple[SURF, Any]:
    """A SURF module with its frozen teacher in place, and its optimizer."""
    make = functools.partial(torch.optim.Adam, lr=1e-4)
    module = SURF(network, "remixit", mixit_checkpoint="", optimizer=make, **options).to(device)
    module.frozen_teacher = mixit.to(device).requires_grad_(False).eval()
    return module.train(), make(module.student.parameters())


def run(machine: Machine) -> Iterator[Timing]:
    """At beta 1, 0.5 and 0: times, their ratio, and the ratio that the counts of network evaluations allow."""
    torch.manual_seed(0)
    device, k = machine.device, 2
    batch, sizes, label = (16, DIGITS, "digits") if machine.small else (64, CIFAR, "CIFAR")
    network = SharedNCSNpp(num_sources=k, **sizes).to(device)
    mixit = RegressionSeparator(RegressionNCSNpp(num_outputs=4, num_sources=k, **sizes), k).to(device).eval()
    mixtures = torch.randn(batch, sizes["image_channels"], sizes["image_size"], sizes["image_size"], device=device)
    module, fused = surf(network, mixit, device)
    student, teacher = copy.deepcopy(network), copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    x, t = torch.randn(batch, k, *mixtures.shape[1:], device=device), torch.rand(batch, device=device)

    for precision in [torch.float32] if machine.small else machine.precisions():
        autocast = machine.autocast(precision)

        def forward(call: Callable[..., Tensor], *inputs: Tensor, autocast: torch.autocast = autocast) -> None:
            with torch.no_grad(), autocast:
                call(*inputs)

        def backward(autocast: torch.autocast = autocast) -> None:
            with autocast:
                loss = student(x, t, mixtures).square().mean()
            loss.backward()

        flow_cost = alone(lambda: forward(student, x, t, mixtures), device)
        mixit_cost = alone(lambda: forward(mixit, mixtures), device)
        backward_cost = alone(backward, device)
        for beta in (1.0, 0.5, 0.0):
            module.beta = beta
            ours = our_step(module, fused, mixtures, autocast)
            theirs = functools.partial(plain_step, student, teacher, mixit, optimizer, mixtures, k, beta, autocast)
            flops = count_flops(ours)
            row = compare(ours, theirs, device)
            frozen = sum(step / STEPS < beta for step in range(STEPS))
            common = flow_cost * (STEPS - frozen + 1) + backward_cost
            bound = (common + frozen * mixit_cost) / (common + (frozen > 0) * mixit_cost)
            floor = machine.floor_ms(flops, precision=precision)
            case = f"SURF step, {label}, B = {batch}, beta = {beta:g}, {name(precision)}"
            yield Timing(case, **row, bound=bound, floor_ms=floor, remark=f"{flops / 1e9:.3g} GFLOP")
        yield from variants(machine, network, mixit, mixtures, precision)


def variants(
    machine: Machine, network: Any, mixit: RegressionSeparator, mixtures: Tensor, precision: torch.dtype
) -> Iterator[Timing]:
    """At beta = 0: what channels-last memory, a fused optimizer and, where there is a compiler, compilation give."""
    autocast = machine.autocast(precision)

    def fresh(memory_format: torch.memory_format = torch.contiguous_format) -> tuple[SURF, Any]:
        module, optimizer = surf(copy.deepcopy(network), copy.deepcopy(mixit), machine.device)
        module.beta = 0.0
        return module.to(memory_format=memory_format), optimizer

    def compiled() -> tuple[SURF, Any]:
        module, optimizer = fresh()
        compile_networks(module)
        return module, optimizer

    def fused() -> tuple[SURF, Any]:
        module, _ = fresh()
        return module, torch.optim.Adam(module.student.parameters(), lr=1e-4, fused=True)

    changes = {"channels-last": functools.partial(fresh, torch.channels_last), "fused Adam": fused}
    if machine.device.type == "cuda" or shutil.which("g++"):
        changes["compiled"] = compiled
    for label, make in changes.items():
        ours, theirs = (our_step(*pair, mixtures, autocast) for pair in (make(), fresh()))
        case = f"  the same, {label}, {name(precision)}"
        yield Timing(case, **compare(ours, theirs, machine.device), remark="plain: ours without")
