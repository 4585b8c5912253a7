"""`surf separate`: files, folders and globs of recordings or images to one file a source."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from surf_lightning import __version__
from surf_lightning.errors import UserError
from surf_lightning.files import make_writable
from surf_lightning.inference.inputs import find_inputs, place
from surf_lightning.inference.jobs import Plan, Settings, Task, make_task
from surf_lightning.inference.journal import (
    MANIFESTS,
    SUMMARY,
    Entry,
    Journal,
    checkpoint_fingerprint,
    input_fingerprint,
)
from surf_lightning.inference.separator import RegressionSeparator, Separator, load_separator

INTERRUPTED = 130  # the shell's status of a command stopped by Ctrl-C


def choose_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``mps`` or ``cuda:N``.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch built without it
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); there is: auto, {', '.join(there)}") from error
    return device


def describe_device(device: torch.device) -> str:
    """For the user."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


@dataclass
class Batch:
    """What a run has to do and has done. ``plans`` are by place; the journal knows inputs by it.

    ``identity`` is what the outputs depend on besides the input: a hash of the checkpoint, and the settings.
    """

    task: Task
    journal: Journal
    identity: Entry
    plans: dict[str, Plan] = field(default_factory=dict)
    fingerprints: dict[str, Entry] = field(default_factory=dict)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    skipped: int = 0
    done: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def fail(self, path: Path, error: Exception) -> None:
        """Note it; an error that no input should cause is named."""
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        self.failed.append((path, reason))
        print(f"{shown(path)} FAILED: {reason}", file=sys.stderr)

    def read_headers(self, places: dict[str, Path], resume: bool) -> None:
        """Plan all that is not done; what cannot be read is a failure that stops nothing else."""
        for name, path in places.items():
            try:
                fingerprint = {"input": input_fingerprint(path), **self.identity}
                if resume and self.journal.is_done(name, fingerprint):
                    self.skipped += 1
                    continue
                self.plans[name] = self.task.plan(path, self.journal.folder / name)
                self.fingerprints[name] = fingerprint
            except (ValueError, OSError) as error:
                self.fail(path, error)

    def check_outputs(self, overwrite: bool, resume: bool) -> None:
        """Raises UserError where a file would be overwritten, or the disk would be full."""
        inputs = {plan.path.resolve() for plan in self.plans.values()}
        taken: list[Path] = []
        for name, plan in self.plans.items():
            if inputs & {path.resolve() for path in plan.outputs}:
                raise UserError(f"the sources of {plan.path} would overwrite an input: give another --output")
            own = self.journal.unfinished(name) if resume else set()
            taken += [path for path in plan.outputs if path.exists() and path not in own]
        if not self.journal.path.exists():
            taken += [path for name in (*MANIFESTS, SUMMARY) if (path := self.journal.folder / name).exists()]
        if taken and not overwrite:
            known = "--resume goes on with an interrupted batch, --overwrite replaces them"
            if resume:
                known = "they are not of the same input, checkpoint and settings; --overwrite replaces them"
            raise UserError(f"{len(taken)} output files are there already, {taken[0]} for one: {known}")
        needed = sum(plan.size for plan in self.plans.values())
        free = shutil.disk_usage(self.journal.folder).free
        if needed > free:
            raise UserError(
                f"the outputs need {needed / 1e9:.1f} GB, but {self.journal.folder} has {free / 1e9:.1f} GB free"
            )

    def run(self) -> None:
        """Separate what is planned, file by file."""
        began = time.perf_counter()
        try:
            for number, (name, plan) in enumerate(self.plans.items(), 1):
                start = time.perf_counter()
                try:
                    plan.stem.parent.mkdir(parents=True, exist_ok=True)
                    for stale in plan.stem.parent.glob(f".{glob.escape(plan.stem.name)}_source*.partial"):
                        stale.unlink()  # of a killed run
                    outcome = self.task.run(plan)
                    self.journal.publish(name, self.fingerprints[name], outcome.paths, outcome.rows)
                except Exception as error:  # whatever is wrong with one file, the others are done
                    self.fail(plan.path, error)
                    continue
                self.done += 1
                self.audio_seconds += plan.seconds
                speed = _speed(plan.seconds, time.perf_counter() - start)
                print(f"[{number}/{len(self.plans)}] {shown(plan.path)}: {speed}", flush=True)
                for remark in outcome.remarks:
                    print(f"    {remark}")
        finally:
            self.seconds = time.perf_counter() - began

    def report(self, checkpoint: str, device: torch.device) -> None:
        """Write the manifest and the summary, and tell the user."""
        rows = self.journal.write_manifest()
        factor = self.seconds / self.audio_seconds if self.audio_seconds else None
        self.journal.write_summary(
            {
                "version": __version__,
                "checkpoint": checkpoint,
                "checkpoint_sha256": self.identity["checkpoint"],
                "settings": self.identity["settings"],
                "device": describe_device(device),
                "separated": self.done,
                "done_before": self.skipped,
                "failed": [{"input": str(path), "reason": reason} for path, reason in self.failed],
                "seconds": self.seconds,
                "audio_seconds": self.audio_seconds,
                "real_time_factor": factor,
            }
        )
        print(f"{self.done} files separated, {self.skipped} done before, {len(self.failed)} failed.")
        for path, reason in self.failed:
            print(f"    {shown(path)}: {reason}")
        if factor is not None:
            print(f"In all {_speed(self.audio_seconds, self.seconds)}.")
        print(f"{self.journal.folder / MANIFESTS[0]} lists {rows} output files.")


def shown(path: Path) -> str:
    """For printing: a file name need not be valid UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _speed(audio_seconds: float, seconds: float) -> str:
    if audio_seconds == 0:
        return f"{seconds:.1f} s"
    return f"{audio_seconds:.1f} s of audio in {seconds:.1f} s (real-time factor {seconds / audio_seconds:.3f})"


def _load(checkpoint: str, num_samples: int, device: torch.device, trust: bool) -> Separator:
    separator = load_separator(checkpoint, device, trust)
    if num_samples < 1:
        raise UserError("--num_samples must be at least 1")
    if num_samples > 1 and isinstance(separator, RegressionSeparator):
        raise UserError("this checkpoint is of a regression, which has no posterior to sample: leave out --num_samples")
    return separator


def separate_inputs(
    inputs: Sequence[str],
    checkpoint: str,
    output: str | Path,
    channels: str = "each",
    num_samples: int = 1,
    device: str = "auto",
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust: bool = False,
) -> int:
    """`surf separate`, whose help explains the arguments; returns the exit status, 1 if a file failed.

    Raises:
        UserError: before anything is computed, for what is wrong with the command as a whole.
    """
    if not inputs:
        raise UserError("name the files or folders to separate")
    chosen, folder = choose_device(device), Path(output)
    print(f"device: {describe_device(chosen)}")
    separator = _load(checkpoint, num_samples, chosen, trust)
    settings = Settings(channels, num_samples)
    task = make_task(separator, settings)
    places = place(find_inputs(inputs, task.extensions, folder))
    make_writable(folder)
    identity: dict[str, Any] = {
        "checkpoint": checkpoint_fingerprint(Path(checkpoint)),
        "settings": settings.record(),
    }
    batch = Batch(task, Journal(folder), identity)
    batch.read_headers(places, resume)
    batch.check_outputs(overwrite, resume)
    if batch.skipped:
        print(f"{batch.skipped} files are done already.")
    interrupted = False
    try:
        batch.run()
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted; the same command with --resume goes on", file=sys.stderr)
    batch.report(checkpoint, chosen)
    return INTERRUPTED if interrupted else int(bool(batch.failed))
