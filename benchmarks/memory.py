"""The memory that a training step takes, counted: for the choice of micro-batch and checkpointing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from counting import LiveBytes, empty_weights, gigabytes, without_data
from machine import Machine
from rows import Memory
from shipped import RATE, build, training_bytes
from surf_step import our_step, surf

from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.networks import GlobalRMSNoise

TEN_SECONDS = 10 * RATE


def surf_step_bytes(
    data: str, batch: int, *shape: int, micro_batch: int, bf16: bool = False, checkpointing: bool = False
) -> int:
    """A whole SURF step at beta = 0.5 with the networks of a data set's configs, ReMixIT loss, Adam's state included.

    Student, EMA teacher and frozen_teacher, sampling, gradient, optimizer and EMA; not what a device's kernels work in.
    """
    network = build(f"{data}_velocity", **({"activation_checkpointing": True} if checkpointing else {}))
    frozen_teacher = RegressionSeparator(build(f"{data}_mixit"), network.num_sources)
    noise = GlobalRMSNoise() if len(shape) == 1 else None
    module, _ = surf(network, frozen_teacher, torch.device("cpu"), noise=noise, micro_batch=micro_batch)
    module.beta = 0.5
    with without_data(), LiveBytes() as live:
        empty_weights(module)
        optimizer = torch.optim.Adam(module.student.parameters())
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        step = our_step(module, optimizer, torch.empty(batch, *shape), autocast)
        step()
        step()  # with the optimizer's state there from the beginning
        return live.peak


def run(machine: Machine) -> Iterator[Memory]:
    """The same on every machine."""
    for config in ("audioset_velocity", "libri2mix_velocity"):
        for checkpointing in (False, True):
            size = training_bytes(config, 1, TEN_SECONDS, bf16=True, activation_checkpointing=checkpointing)
            again = ", checkpointed" if checkpointing else ""
            yield Memory(f"{config}, 1 clip of 10 s, bfloat16{again}", gigabytes(size))
    yield Memory("audioset_mixit, 1 clip of 10 s, float32", gigabytes(training_bytes("audioset_mixit", 1, TEN_SECONDS)))
    for batch in (32, 256):
        size = training_bytes("cifar_velocity", batch, 3, 32, 32)
        yield Memory(f"cifar_velocity, {batch} images, float32", gigabytes(size))
    size = surf_step_bytes("cifar", 256, 3, 32, 32, micro_batch=32)
    yield Memory("SURF step, cifar, B = 256 in micro-batches of 32, float32", gigabytes(size))
    for data in ("libri2mix", "audioset"):
        size = surf_step_bytes(data, 4, TEN_SECONDS, micro_batch=1, bf16=True, checkpointing=True)
        yield Memory(f"SURF step, {data}, 4 clips of 10 s one at a time, bfloat16, checkpointed", gigabytes(size))
