"""`surf separate`: files, folders and globs of recordings or images to one file per source."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from surf_lightning.errors import UserError
from surf_lightning.files import make_writable
from surf_lightning.inference.events import event_formats
from surf_lightning.inference.hub import local_path
from surf_lightning.inference.inputs import find_inputs, output_stems
from surf_lightning.inference.jobs import Settings, Task
from surf_lightning.inference.journal import checkpoint_fingerprint
from surf_lightning.inference.separation_run import SeparationRun
from surf_lightning.inference.separator import (
    FlowSeparator,
    RegressionSeparator,
    Separator,
    compile_networks,
    load_separator,
)
from surf_lightning.provenance import hardware

INTERRUPTED, TERMINATED = 130, 143  # the shell's status of a command stopped by Ctrl-C, and by SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine."""


def choose_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``mps`` or ``cuda:N``; of several tasks of SLURM on a node each has its own GPU.

    Raises:
        UserError: there is no such device here.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    there = [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        name = there[int(os.environ.get("SLURM_LOCALID", "0")) % max(1, len(gpus))]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch built without it
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


def load(checkpoint: str, device: torch.device, settings: Settings, trust: bool) -> Separator:
    """The separator, as the command wants it; raises UserError if it cannot be had so."""
    separator = load_separator(checkpoint, device, trust)
    if settings.num_samples > 1 and isinstance(separator, RegressionSeparator):
        raise UserError("a regression has no posterior to sample: leave out --num_samples")
    if settings.num_steps:
        if not isinstance(separator, FlowSeparator):
            raise UserError("--num_steps is for flows, and this is none: leave it out")
        separator.num_steps = settings.num_steps
    return separator


def separate_inputs(
    inputs: Sequence[str],
    checkpoint: str,
    output: str,
    *,
    device: str,
    events: str,
    batch: int | None,
    compile: bool,
    workers: int,
    overwrite: bool,
    resume: bool,
    trust: bool,
    **chosen: Any,
) -> int:
    """Run `surf separate`, whose help explains the arguments; those ``chosen`` are of ``Settings``.

    Returns:
        The exit status, 1 if a file failed.

    Raises:
        UserError: something is wrong with the command as a whole; nothing has been computed.
    """
    options = {name: value for name, value in locals().items() if name not in ("inputs", "device", "workers", "chosen")}
    for name, number in (("batch", batch), ("workers", workers)):
        if number is not None and number < 1:
            raise UserError(f"--{name} must be at least 1")
    devices = device.split(",")
    own, *_ = map(choose_device, devices)
    folder = Path(output)
    print(f"device: {own} ({hardware(own)})")
    settings = Settings(events=event_formats(events), **chosen)
    local = local_path(checkpoint)
    separator = load(local, own, settings, trust)
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
        if compile:
            compile_networks(separator)
        count = min(max(workers, len(devices)), len(run.jobs)) - 1
        status = 0
        try:
            with crew(max(0, count), devices, command_line(inputs, options | chosen)), until_terminated():
                run.run(batch)
        except KeyboardInterrupt as signalled:
            status = TERMINATED if isinstance(signalled, Terminated) else INTERRUPTED
            print("\ninterrupted; the same command with --resume goes on", file=sys.stderr)
        failed = run.report(checkpoint, own)
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


@contextlib.contextmanager
def crew(count: int, devices: Sequence[str], arguments: Sequence[str]) -> Iterator[None]:
    """While the block runs, so do ``count`` further processes with the same command, each of them a worker.

    They take the ``devices`` in turn, of which the first is this process's own; ``arguments`` are the command's others.
    At its end they are waited for, and those that have not ended well are told of; an error in it ends them at once.
    """
    threads = max(1, torch.get_num_threads() // (1 + count))
    if count:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "surf_lightning", "separate", *arguments, "--device"]
    options: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    options["env"] = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with contextlib.ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        others = [
            subprocess.Popen([*command, devices[i % len(devices)]], stderr=file, **options)
            for i, file in enumerate(said, 1)
        ]
        try:
            yield
        except BaseException:
            for other in others:
                other.terminate()
            for other in others:
                other.wait()
            raise
        for other, file in zip(others, said, strict=True):
            if (status := other.wait()) not in (0, 1):
                file.seek(0)
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                print(f"worker {other.pid} {how}; others have done its files. {file.read().strip()}", file=sys.stderr)


def command_line(inputs: Sequence[str], options: dict[str, Any]) -> list[str]:
    """The words of a command with these inputs and options."""
    words = [os.fspath(name) for name in inputs]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words += [f"--{name}", str(value)]
    return words
