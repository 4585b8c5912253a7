"""What one epoch of AudioSet costs: operations counted, hours calculated from the shares of the peak measured here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from audio import share_of_peak
from machine import Machine, name
from rows import Cost, Timing
from shipped import RATE, build, operations
from surf_step import STEPS, our_step, surf
from timing import alone

from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.networks import GlobalRMSNoise

HOURS, CLIP = 731, 10.0  # of audio in the SURF paper's AudioSet; seconds of a crop
CLIPS = HOURS * 3600 / CLIP
MIXIT, REGRESSION, VELOCITY = "audioset_mixit", "audioset_regression", "audioset_velocity"


def evaluations(beta: float) -> tuple[int, int]:
    """Of the velocity network without gradient, and of the frozen teacher, in one SURF step: sampler and PIT order."""
    frozen = sum(step / STEPS < beta for step in range(STEPS))
    return STEPS - frozen + 1, int(frozen > 0)


def step_operations() -> dict[str, Counter[str]]:
    """Operations of a training step for each clip in it, by network; nothing computed twice."""
    samples = round(CLIP * RATE)
    run = {config: operations(config, samples) for config in (MIXIT, REGRESSION, VELOCITY)}
    train = {config: operations(config, samples, gradient=True) for config in run}
    steps = {
        "MixIT": Counter({MIXIT: train[MIXIT] // 2}),  # two clips are one mixture of mixtures
        "regression remixing, MixIT as teacher": Counter({MIXIT: run[MIXIT], REGRESSION: train[REGRESSION]}),
        "regression remixing, EMA teacher": Counter({REGRESSION: run[REGRESSION] + train[REGRESSION]}),
    }
    for beta in (1.0, 0.5, 0.0):
        sampled, frozen_teacher = evaluations(beta)
        velocity = sampled * run[VELOCITY] + train[VELOCITY]
        steps[f"SURF, beta = {beta:g}"] = Counter({VELOCITY: velocity, MIXIT: frozen_teacher * run[MIXIT]})
    return steps


def clip_seconds(machine: Machine, precision: torch.dtype, step: Counter[str]) -> float:
    """Of a step on this device, for each clip in it: every network at its measured share of the peak."""
    return sum(
        count
        / machine.peaks[precision]
        / share_of_peak(machine, VELOCITY if config == REGRESSION else config, precision)
        for config, count in step.items()
        if count
    )


def surf_step_ms(
    machine: Machine, data: str, seconds: float, batch: int, precision: torch.dtype, checkpointing: bool
) -> float:
    """The measured time of a SURF step at beta = 0 with the networks of a data set's configs.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    network = build(f"{data}_velocity", **({"activation_checkpointing": True} if checkpointing else {}))
    frozen_teacher = RegressionSeparator(build(f"{data}_mixit"), network.num_sources)
    module, optimizer = surf(network, frozen_teacher, machine.device, noise=GlobalRMSNoise())
    module.beta = 0.0
    mixtures = torch.randn(batch, round(seconds * RATE), device=machine.device)
    step = our_step(module, optimizer, mixtures, machine.autocast(precision))
    return alone(step, machine.device, 1 if machine.small else 3)


def run(machine: Machine) -> Iterator[Cost | Timing]:
    """Of every method, in the faster precision; on CUDA also a SURF step as it is trained, measured."""
    precision = machine.precisions()[-1]
    for label, step in step_operations().items():
        hours = clip_seconds(machine, precision, step) * CLIPS / 3600
        at_most = {str(devices): hours / devices for devices in (1, 8, 64)}
        yield Cost(label, sum(step.values()) / 1e12, at_most, f"{name(precision)}, communication not counted")
    if not machine.small:
        batch = 2
        case = f"SURF step, audioset_surf_rm, {batch} clips of 10 s, beta = 0, checkpointed, {name(precision)}"
        try:
            time = surf_step_ms(machine, "audioset", CLIP, batch, precision, checkpointing=True)
        except torch.OutOfMemoryError:
            yield Timing(case, remark="does not fit into memory")
        else:
            hours = time * CLIPS / batch / 3.6e6
            yield Timing(case, time, remark=f"measured: an epoch in {hours:.1f} h on this device")
