"""Our SURF step against the paper's Code Listing 1 written plainly, its `separate` being Appendix D.3 step by step.

Axes: B batch, K sources, C H W.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import torch
from timing import alone, compare
from torch import Tensor

from surf_lightning.callbacks.ema_teacher import ema_update
from surf_lightning.flow import project_zero_sum
from surf_lightning.methods import SURF, ReMixITLoss
from surf_lightning.networks import RegressionNCSNpp, SharedNCSNpp
from surf_lightning.remixing import BatchRandomness
from surf_lightning.separator import RegressionSeparator

STEPS, ALPHA = 5, 0.999


def plain_separate(teacher: Any, mixit: Any, mixtures: Tensor, num_sources: int, beta: float) -> Tensor:
    """D.3: five Euler steps, the MixIT network called in each with t < beta."""
    noise = torch.randn(len(mixtures), num_sources, *mixtures.shape[1:], device=mixtures.device)
    x0 = x = (mixtures / num_sources)[:, None] + project_zero_sum(noise)
    for step in range(STEPS):
        t = step / STEPS
        times = torch.full((len(x),), t, device=x.device)
        x = x + (mixit(mixtures) - x0 if t < beta else teacher(x, times, mixtures)) / STEPS
    return x


def plain_pit(prediction: Tensor, sources: Tensor) -> Tensor:
    """The best of all K! orders of each example, one after another."""
    aligned = []
    for estimate, truth in zip(prediction, sources, strict=True):
        orders = itertools.permutations(range(len(truth)))
        aligned.append(
            truth[list(min(orders, key=lambda order: (estimate - truth[list(order)]).square().sum().item()))]
        )
    return torch.stack(aligned)


def plain_step(student: Any, teacher: Any, mixit: Any, optimizer: Any, mixtures: Tensor, k: int, beta: float) -> None:
    """Code Listing 1 with the ReMixIT loss."""
    with torch.no_grad():
        estimates = plain_separate(teacher, mixit, mixtures, k, beta)
        flat = estimates.flatten(0, 1)
        x1 = flat[torch.randperm(len(flat), device=flat.device)].view_as(estimates)
        mixed = x1.sum(1)
    t = torch.rand(1, device=mixtures.device).expand(len(mixtures))
    x0 = (mixed / k)[:, None] + project_zero_sum(torch.randn_like(x1))
    with torch.no_grad():
        v0 = student(x0, torch.zeros_like(t), mixed)
        x1 = plain_pit(x0 + v0, x1)
    weight = t.view(-1, 1, 1, 1, 1)
    residual = student((1 - weight) * x0 + weight * x1, t, mixed) - (x1 - x0)
    optimizer.zero_grad()
    residual.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        for s, e in zip(student.parameters(), teacher.parameters(), strict=True):
            e.data.mul_(ALPHA).add_(s.data, alpha=1 - ALPHA)


def run(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """At beta 1, 0.5 and 0: times, their ratio, and the ratio that the counts of network evaluations allow."""
    torch.manual_seed(0)
    batch = 16 if small else 64
    sizes: dict[str, Any] = {"image_size": 32, "image_channels": 3, "channels": 64, "blocks": 4, "dropout": 0.0}
    if small:
        sizes = {"image_size": 8, "image_channels": 1, "channels": 32, "multipliers": (1,), "blocks": 2, "dropout": 0.0}
    network = SharedNCSNpp(num_sources=2, **sizes).to(device)
    mixit = RegressionSeparator(RegressionNCSNpp(num_outputs=4, num_sources=2, **sizes), 2).to(device).eval()
    mixtures = torch.randn(batch, sizes["image_channels"], sizes["image_size"], sizes["image_size"], device=device)

    make = functools.partial(torch.optim.Adam, lr=1e-4)
    module = SURF(network, ReMixITLoss(), mixit_checkpoint="", optimizer=make).to(device)
    module.anchor = mixit.requires_grad_(False)
    fused = torch.optim.Adam(module.student.parameters(), lr=1e-4)
    batches = itertools.count()

    def ours() -> None:
        random = BatchRandomness(0, next(batches), device)
        loss = module.loss({"mixtures": mixtures}, random)
        fused.zero_grad()
        loss.backward()
        fused.step()
        ema_update(module.separator, module.student, ALPHA)

    student, teacher = copy.deepcopy(network), copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    x, t = torch.randn(batch, 2, *mixtures.shape[1:], device=device), torch.rand(batch, device=device)

    def backward() -> None:
        student(x, t, mixtures).square().mean().backward()

    with torch.no_grad():
        flow_cost, mixit_cost = alone(lambda: student(x, t, mixtures), device), alone(lambda: mixit(mixtures), device)
    backward_cost = alone(backward, device)
    rows = []
    for beta in (1.0, 0.5, 0.0):
        module.beta = beta
        anchored = sum(step / STEPS < beta for step in range(STEPS))
        common = flow_cost * (STEPS - anchored + 1) + backward_cost
        row = compare(ours, lambda: plain_step(student, teacher, mixit, optimizer, mixtures, 2, beta), device)  # noqa: B023
        bound = (common + anchored * mixit_cost) / (common + (anchored > 0) * mixit_cost)
        rows.append({"case": f"SURF step, beta = {beta:g}", **row, "bound": bound})
    return rows
