"""`surf separate`: files, folders and globs of recordings or images to one file per source."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from surf_lightning import __version__
from surf_lightning.errors import UserError
from surf_lightning.files import files_under, make_writable
from surf_lightning.inference.hub import local_path
from surf_lightning.inference.jobs import Job, Settings, Task, make_task
from surf_lightning.inference.journal import (
    MANIFESTS,
    SUMMARY,
    Entry,
    Journal,
    checkpoint_fingerprint,
    input_fingerprint,
)
from surf_lightning.inference.separator import RegressionSeparator, load_separator
from surf_lightning.inference.streaming import Channels
from surf_lightning.provenance import hardware

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


# -- which files --


def find_inputs(arguments: Sequence[str], extensions: tuple[str, ...], output: Path) -> dict[Path, Path]:
    """The files that ``arguments`` name: files, folders (recursively, files of ``extensions`` only) and glob patterns.

    Hidden files and what lies in the ``output`` folder are left out, and a file that is named twice counts once.

    Returns:
        For each file its path relative to the folder, or to the fixed part of the pattern, that named it.

    Raises:
        UserError: an argument names nothing, or a folder is the output folder.
    """
    missing = [name for name in arguments if not Path(name).exists() and not glob.has_magic(name)]
    if missing:
        raise UserError(f"there is no file or folder {', '.join(missing)}; nothing has been separated")
    found: dict[Path, tuple[Path, Path]] = {}
    for argument in arguments:
        path, base = Path(argument), Path(argument)
        if path.is_dir():
            if path.resolve() == output.resolve():
                raise UserError(f"{path} is the output folder too: give another --output, e.g. {path / 'separated'}")
            files = [path / name for name in files_under(path, extensions, skip=output)]
            if not files:
                raise UserError(f"there is no file to separate in {path} ({', '.join(sorted(extensions))})")
        elif path.exists():
            base, files = path.parent, [path]
        else:
            base, files = _matches(argument, extensions, output)
        for file in files:
            found.setdefault(file.resolve(), (file, file.relative_to(base)))
    return dict(found.values())


def _matches(pattern: str, extensions: tuple[str, ...], output: Path) -> tuple[Path, list[Path]]:
    """The fixed part of a glob pattern, and the files that it names."""
    parts = Path(pattern).parts
    base = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    files: list[Path] = []
    for match in map(Path, sorted(glob.glob(pattern, recursive=True))):
        files += [match / name for name in files_under(match, extensions)] if match.is_dir() else [match]
    files = [file for file in files if output.resolve() not in file.resolve().parents]
    if not files:
        raise UserError(f"no file matches {pattern}")
    return base, files


def output_stems(inputs: dict[Path, Path]) -> dict[str, Path]:
    """The input of each stem: its relative path without the suffix, in posix form.

    If two inputs would share a stem, all get their paths from the folder that holds them all; if two differ in their
    suffixes only, those become part of the stem, repeated until no other input has it.
    """
    if len({path.with_suffix("") for path in inputs.values()}) < len(inputs):
        common = os.path.commonpath([path.absolute().parent for path in inputs])
        inputs = {path: path.absolute().relative_to(common) for path in inputs}
    counts = Counter(path.with_suffix("") for path in inputs.values())
    stems: dict[str, Path] = {}
    for path, relative in inputs.items():
        stem = short = relative.with_suffix("")
        while counts[stem] > (stem == short) or stem.as_posix() in stems:
            stem = stem.with_name(f"{stem.name}_{relative.suffix.lstrip('.')}")
        stems[stem.as_posix()] = path
    return stems


# -- separating them --


@dataclass
class SeparationRun:
    """What a command has to do and has done. The journal knows an input by its stem.

    Args:
        task: separates a file.
        journal: of the output folder.
        identity: what the outputs depend on besides the input: a hash of the checkpoint, and the settings.
    """

    task: Task
    journal: Journal
    identity: Entry
    jobs: dict[str, Job] = field(default_factory=dict)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    skipped: int = 0
    done: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def fingerprint(self, path: Path) -> Entry:
        """All that the outputs of ``path`` depend on."""
        return {"input": input_fingerprint(path), **self.identity}

    def fail(self, path: Path, error: Exception) -> None:
        """Record a file that cannot be separated; an error that no input should cause is given its type."""
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        self.failed.append((path, reason))
        print(f"{shown(path)} FAILED: {reason}", file=sys.stderr)

    def plan(self, stems: dict[str, Path], resume: bool) -> None:
        """Read the headers of all inputs that are not done; one that cannot be read does not stop the others."""
        for stem, path in stems.items():
            try:
                if resume and self.journal.is_done(stem, self.fingerprint(path)):
                    self.skipped += 1
                else:
                    self.jobs[stem] = self.task.plan(path, self.journal.folder / stem)
            except (ValueError, OSError) as error:
                self.fail(path, error)

    def check_outputs(self, overwrite: bool, resume: bool) -> None:
        """Raises UserError if a file would be overwritten, or the disk would be full."""
        inputs = {job.path.resolve() for job in self.jobs.values()}
        taken: list[Path] = []
        for stem, job in self.jobs.items():
            if inputs & {path.resolve() for path in job.outputs}:
                raise UserError(f"the sources of {job.path} would overwrite an input: give another --output")
            own = self.journal.unfinished(stem) if resume else set()
            taken += [path for path in job.outputs if path.exists() and path not in own]
        if not self.journal.path.exists():
            taken += [path for name in (*MANIFESTS, SUMMARY) if (path := self.journal.folder / name).exists()]
        if taken and not overwrite:
            known = "--resume goes on with an interrupted batch, --overwrite replaces them"
            if resume:
                known = "they are not of the same input, checkpoint and settings; --overwrite replaces them"
            raise UserError(f"{len(taken)} output files are there already, {taken[0]} for one: {known}")
        needed = sum(job.size for job in self.jobs.values())
        free = shutil.disk_usage(self.journal.folder).free
        if needed > free:
            raise UserError(
                f"the outputs need {needed / 1e9:.1f} GB, but {self.journal.folder} has {free / 1e9:.1f} GB free"
            )

    def run(self) -> None:
        """Separate what is planned, file by file; whatever is wrong with one, the others are done."""
        began = time.perf_counter()
        try:
            for number, (stem, job) in enumerate(self.jobs.items(), 1):
                start = time.perf_counter()
                try:
                    remarks = self._separate(stem, job)
                except Exception as error:
                    self.fail(job.path, error)
                    continue
                finally:
                    _remove_partials(job)
                self.done += 1
                self.audio_seconds += job.seconds
                speed = _speed(job.seconds, time.perf_counter() - start)
                print(f"[{number}/{len(self.jobs)}] {shown(job.path)}: {speed}", flush=True)
                for remark in remarks:
                    print(f"    {remark}")
        finally:
            self.seconds = time.perf_counter() - began

    def _separate(self, stem: str, job: Job) -> list[str]:
        job.stem.parent.mkdir(parents=True, exist_ok=True)
        _remove_partials(job)
        fingerprint = self.fingerprint(job.path)
        paths, rows, remarks = self.task.run(job)
        self.journal.publish(stem, fingerprint, paths, rows)
        return remarks

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
                "device": f"{device}: {hardware(device)}",
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


def _remove_partials(job: Job) -> None:
    """Remove what a killed or failed run has left."""
    for partial in job.stem.parent.glob(f".{glob.escape(job.stem.name)}_source*.partial"):
        partial.unlink()


def shown(path: Path) -> str:
    """For printing: a file name need not be valid UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _speed(audio_seconds: float, seconds: float) -> str:
    if audio_seconds == 0:
        return f"{seconds:.1f} s"
    return f"{audio_seconds:.1f} s of audio in {seconds:.1f} s (real-time factor {seconds / audio_seconds:.3f})"


# -- the command --


def separate_inputs(
    inputs: Sequence[str],
    checkpoint: str,
    output: str | Path,
    channels: Channels = "each",
    num_samples: int = 1,
    device: str = "auto",
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust: bool = False,
) -> int:
    """Run `surf separate`, whose help explains the arguments; returns the exit status, 1 if a file failed.

    Raises:
        UserError: something is wrong with the command as a whole; nothing has been computed.
    """
    if not inputs:
        raise UserError("name the files or folders to separate")
    chosen, folder = choose_device(device), Path(output)
    print(f"device: {chosen} ({hardware(chosen)})")
    local = local_path(checkpoint)
    separator = load_separator(local, chosen, trust)
    if num_samples < 1:
        raise UserError("--num_samples must be at least 1")
    if num_samples > 1 and isinstance(separator, RegressionSeparator):
        raise UserError("this checkpoint is of a regression, which has no posterior to sample: leave out --num_samples")
    settings = Settings(channels, num_samples)
    task = make_task(separator, settings)
    stems = output_stems(find_inputs(inputs, task.extensions, folder))
    make_writable(folder)
    identity = {"checkpoint": checkpoint_fingerprint(Path(local)), "settings": asdict(settings)}
    run = SeparationRun(task, Journal(folder), identity)
    run.plan(stems, resume)
    run.check_outputs(overwrite, resume)
    if run.skipped:
        print(f"{run.skipped} files are done already.")
    interrupted = False
    try:
        run.run()
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted; the same command with --resume goes on", file=sys.stderr)
    run.report(checkpoint, chosen)
    return INTERRUPTED if interrupted else int(bool(run.failed))
