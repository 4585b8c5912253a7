"""The memory that a training step of the student takes, counted: for the choice of micro-batch and checkpointing."""

from __future__ import annotations

from collections.abc import Iterator

from counting import gigabytes
from machine import Machine
from rows import Memory
from shipped import RATE, training_bytes

TEN_SECONDS = 10 * RATE


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
