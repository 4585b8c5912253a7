"""`surf separate`: files, folders and globs of recordings or images to one file per source."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from surf_lightning.audio.streams import NAMES
from surf_lightning.errors import UserError
from surf_lightning.files import make_writable
from surf_lightning.inference.crew import Crew, command_line
from surf_lightning.inference.events import event_formats
from surf_lightning.inference.hub import local_path
from surf_lightning.inference.inputs import find_inputs, output_stems, shown
from surf_lightning.inference.jobs import Container, Precision, Samples, Settings, Task
from surf_lightning.inference.journal import checkpoint_fingerprint
from surf_lightning.inference.separation_run import SeparationRun
from surf_lightning.inference.separator import (
    FlowSeparator,
    RegressionSeparator,
    Separator,
    compile_networks,
    load_separator,
)
from surf_lightning.inference.streaming import Channels
from surf_lightning.provenance import hardware

INTERRUPTED, TERMINATED = 130, 143  # the shell's status of a command stopped by Ctrl-C, and by SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine."""


def choose_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``mps`` or ``cuda:N``; of several tasks of SLURM on a node each has its own GPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        task = int(os.environ.get("SLURM_LOCALID", "0"))
        cuda = f"cuda:{task % max(1, torch.cuda.device_count())}"
        name = cuda if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch built without it
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); there is: auto, {', '.join(there)}") from error
    return device


def make_task(separator: Separator, settings: Settings) -> Task:
    """The task for the signals of ``separator``."""
    if separator.signal["kind"] == "image":
        from surf_lightning.inference.image_jobs import ImageTask

        return ImageTask(separator, settings)
    from surf_lightning.inference.sound_jobs import AudioTask

    return AudioTask(separator, settings)


def load(checkpoint: str, device: torch.device, num_steps: int | None, num_samples: int, trust: bool) -> Separator:
    """The separator, as the command wants it.

    Raises:
        UserError: it cannot be had so.
    """
    separator = load_separator(checkpoint, device, trust)
    if isinstance(separator, RegressionSeparator):
        if num_samples > 1:
            raise UserError("a regression has no posterior to sample: leave out --num_samples")
        if num_steps:
            raise UserError("a regression takes no steps: leave out --num_steps")
    if num_steps:
        if not isinstance(separator, FlowSeparator):
            raise UserError("--num_steps is for flows")
        separator.num_steps = num_steps
    return separator


def separate_inputs(
    inputs: Sequence[str],
    checkpoint: str,
    output: str | Path,
    channels: Channels = "each",
    num_samples: int = 1,
    device: str = "auto",
    *,
    num_steps: int | None = None,
    format: Container = "same",
    samples: Samples = "same",
    names: str = NAMES,
    events: str = "",
    batch: int | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    trust: bool = False,
) -> int:
    """Run `surf separate`, whose help explains the arguments; returns the exit status, 1 if a file failed.

    Raises:
        UserError: something is wrong with the command as a whole; nothing has been computed.
    """
    options = {name: value for name, value in locals().items() if name not in ("inputs", "device", "workers")}
    if not inputs:
        raise UserError("name the files or folders to separate")
    for name, number in (("batch", batch), ("workers", workers)):
        if number is not None and number < 1:
            raise UserError(f"--{name} must be at least 1")
    devices = device.split(",")
    chosen, *_ = map(choose_device, devices)
    folder = Path(output)
    print(f"device: {chosen} ({hardware(chosen)})")
    settings = Settings(
        channels, num_samples, format=format, samples=samples, names=names, events=event_formats(events),
        precision=precision, num_steps=num_steps,
    )  # fmt: skip
    local = local_path(checkpoint)
    separator = load(local, chosen, num_steps, num_samples, trust)
    task = make_task(separator, settings)
    stems = output_stems(find_inputs(inputs, task.extensions, folder))
    make_writable(folder)
    # A task of SLURM is one of many, or a requeued one: each goes on with what the others have done.
    resume = resume or "SLURM_JOB_ID" in os.environ
    identity = {"checkpoint": checkpoint_fingerprint(Path(local)), "settings": json.loads(json.dumps(asdict(settings)))}
    run = SeparationRun(task, folder, identity, resume, overwrite)
    try:
        run.plan(stems)
        run.check_outputs()
        if run.skipped:
            print(f"{run.skipped} files are done already.")
        for path in run.gone() if resume else ():
            print(f"{shown(Path(path))} is not there any more; its sources are left as they are.")
        if compile:
            compile_networks(separator)
        count = min(max(workers, len(devices)), len(run.jobs)) - 1
        crew = Crew(max(0, count), devices, command_line(inputs, options))
        status = -1
        try:
            with until_terminated():
                run.run(batch)
            status = 0
        except KeyboardInterrupt as signalled:
            status = TERMINATED if isinstance(signalled, Terminated) else INTERRUPTED
            print("\ninterrupted; the same command with --resume goes on", file=sys.stderr)
        finally:
            crew.end(at_once=status != 0)
        failed = run.report(checkpoint, chosen)
        return status or int(failed > 0)
    except BaseException:  # nothing has been done, or what has been done cannot be written down
        run.end()
        raise


@contextlib.contextmanager
def until_terminated() -> Iterator[None]:
    """In the block, SIGTERM is an exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
