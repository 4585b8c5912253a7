"""What a command has to do and has done, among the workers of its output folder."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from surf_lightning import __version__
from surf_lightning.errors import UserError
from surf_lightning.inference.inputs import check_length, check_regular, shown
from surf_lightning.inference.jobs import Done, Job, Task
from surf_lightning.inference.journal import MANIFESTS, SUMMARY, Entry, Journal, input_fingerprint
from surf_lightning.inference.pipeline import Course, Pipeline
from surf_lightning.inference.progress import Progress, speed
from surf_lightning.inference.workers import POLL, Worker
from surf_lightning.provenance import hardware


class SeparationRun:
    """What a command has to do and has done, among other workers. The journal knows an input by its stem.

    The outputs depend on the input and the ``identity``: a hash of the checkpoint, and the settings.

    Raises:
        UserError: a process with another checkpoint or other settings is at work in the folder.
    """

    def __init__(self, task: Task, folder: Path, identity: Entry, resume: bool, overwrite: bool) -> None:
        self.task, self.identity, self.overwrite = task, identity, overwrite
        self.jobs: dict[str, Job] = {}
        self.prints: dict[str, Entry] = {}
        self.broken: dict[str, tuple[Path, str]] = {}
        self.resumes, self.began = resume, time.time()
        self.worker = Worker(folder, {"identity": identity, "redo": not resume, "began": self.began})
        others = self.worker.others()
        peers = [header for name in others if self.worker.alive(name) and (header := self.worker.read(name))]
        if any(header.get("identity") != identity for header in peers):
            self.worker.end([])
            raise UserError(f"{folder} is being written by a process with another checkpoint or other settings")
        self.joins = bool(peers)
        self.redo = any(header["redo"] for header in peers) if peers else not resume
        self.began = min([self.began, *(header["began"] for header in peers)])
        if others and not peers:  # merge what killed workers of an earlier run have left
            with self.worker.alone():
                Journal(folder).merge()
            self.worker.forget(others)
        self.journal = Journal(folder)

    def plan(self, stems: dict[str, Path]) -> None:
        """Read the headers of all inputs that are not done; one that cannot be read does not stop the others.

        What was done before is told, and, of a batch that goes on, which of its inputs are not there any more.
        """
        skipped = 0
        for stem, path in stems.items():
            try:
                check_length(stem)
                self.prints[stem] = self._fingerprint(path)
                if self.journal.is_done(stem, self.prints[stem], recently=self.redo):
                    skipped += 1
                else:
                    self.jobs[stem] = self.task.plan(path, self.journal.folder / stem)
            except (ValueError, OSError, MemoryError) as error:
                self.broken[stem] = path, reason_of(error)
        # Long files first: at the end no worker waits long for another. Those of one length share batches.
        self.jobs = dict(sorted(self.jobs.items(), key=lambda item: -item[1].seconds))
        if skipped:
            print(f"{skipped} files are done already.")
        for stem, entry in self.journal.entries.items() if self.resumes else ():
            if stem not in self.prints and "input" in entry and not os.path.exists(entry["input"]):
                print(f"{shown(Path(entry['input']))} is not there any more; its sources are left as they are.")

    def check_outputs(self) -> None:
        """Raises UserError if a file would be overwritten, or the disk would be full."""
        inputs = {job.path.resolve() for job in self.jobs.values()}
        there: dict[str, list[Path]] = {}
        for stem, job in self.jobs.items():
            if inputs & {path.resolve() for path in job.outputs}:
                raise UserError(f"the sources of {job.path} would overwrite an input: give another --output")
            there[stem] = [path for path in job.outputs if path.exists()]
        self.journal.refresh()  # after the look: it has all that others have named until then
        if not self.overwrite:
            own = {stem: self.journal.replaceable(stem, unfinished=not self.redo) for stem in there}
            self._check_taken(
                {path: self.jobs[stem].path for stem in there for path in there[stem] if path not in own[stem]}
            )
        self._check_room(shutil.disk_usage(self.journal.folder).free)

    def _check_room(self, free: int) -> None:
        """A file that alone needs more than there is, maybe by a header that lies, does not stop the others."""
        size = partial(tqdm.format_sizeof, suffix="B")
        there = f"but {self.journal.folder} has {size(free)} free"
        for stem, job in [*self.jobs.items()]:
            if job.size > free and len(self.jobs) > 1:
                self.broken[stem] = job.path, f"its sources need {size(job.size)}, {there}"
                del self.jobs[stem]
        needed = sum(job.size for job in self.jobs.values())
        if needed > free:
            raise UserError(f"the outputs need {size(needed)}, {there}")

    def _check_taken(self, taken: dict[Path, Path]) -> None:
        if not (self.joins or self.journal.path.exists()):
            books = [path for name in (*MANIFESTS, SUMMARY) if (path := self.journal.folder / name).exists()]
            taken |= dict.fromkeys(books, self.journal.folder)
        if not taken:
            return
        first = next(iter(taken))
        if self.redo:
            known = "--resume goes on with an interrupted batch, --overwrite replaces them"
            raise UserError(f"{len(taken)} output files are there already, {first} for one: {known}")
        changed = ", ".join(dict.fromkeys(shown(path) for path in taken.values()))
        raise UserError(
            f"{len(taken)} output files are there already, {first} for one: they are not of the same input, checkpoint "
            f"and settings; --overwrite replaces them. They are of {changed}"
        )

    # -- the work --

    def run(self, batch: int | None) -> None:
        """Separate what is planned; whatever is wrong with one file, the others are done."""
        self.progress = Progress(len(self.jobs), sum(job.seconds for job in self.jobs.values()))
        with self.progress.bar:
            for stem, (path, reason) in self.broken.items():
                self._fail(stem, path, reason)
            Pipeline(self.task, self, batch).run(self._claimed())

    def _claimed(self) -> Iterator[Course | None]:
        """The files that are this worker's, as it claims them; ends when all are settled by someone."""
        left, numbers = list(self.jobs), itertools.count()
        while left:
            busy: list[str] = []
            for stem in left:
                job = self.jobs[stem]
                taken = self.worker.take(stem, partial(self._is_settled, stem))
                if taken == "settled":
                    self.progress.file_done(job.seconds)
                elif other := self.journal.other_input(stem, job.path, self.prints[stem]):
                    self._fail(
                        stem,
                        job.path,
                        f"the names of its outputs are taken by {shown(Path(other))}: give another --output",
                    )
                    self.progress.file_done(job.seconds)
                elif taken == "busy":
                    busy.append(stem)
                else:
                    yield Course(job, self.worker.work / str(next(numbers)))
            left = busy
            if busy:
                yield None
                time.sleep(POLL)

    def _is_settled(self, stem: str) -> bool:
        self.journal.refresh()
        done = self.journal.is_done(stem, self.prints[stem], recently=self.redo)
        return done or os.fsdecode(self.jobs[stem].path) in self.journal.failures

    def finished(self, course: Course, done: Done) -> None:
        """The outputs of a file are complete in its own folder: publish them."""
        job, stem = course.job, self._stem(course)
        try:
            now = self._fingerprint(job.path)
        except (OSError, ValueError) as error:
            raise ValueError("vanished, or cannot be read any more") from error
        if now != self.prints[stem]:
            raise ValueError("has changed since the start")
        job.stem.parent.mkdir(parents=True, exist_ok=True)
        moves = {path: job.stem.parent / path.name for path in done.paths}
        entry = {"fingerprint": now, "rows": done.rows, "seconds": job.seconds, "input": os.fsdecode(job.path)}
        self.journal.publish(self.worker, stem, entry, moves)
        shutil.rmtree(course.folder, ignore_errors=True)
        self.progress.file_done(job.seconds, course, done.remarks)

    def failed(self, course: Course, error: Exception) -> None:
        """A file cannot be separated; nothing of it is left."""
        shutil.rmtree(course.folder, ignore_errors=True)
        self._fail(self._stem(course), course.job.path, reason_of(error))
        self.progress.file_done(course.job.seconds, course)

    def advanced(self, course: Course, seconds: float) -> None:
        """So many seconds more of a file are done."""
        self.progress.advance(course, seconds)

    def _fingerprint(self, path: Path) -> Entry:
        check_regular(path)
        return {"input": input_fingerprint(path), **self.identity}

    def _stem(self, course: Course) -> str:
        return course.job.stem.relative_to(self.journal.folder).as_posix()

    def _fail(self, stem: str, path: Path, reason: str) -> None:
        self.journal.fail(self.worker, stem, path, reason)
        self.progress.say(f"{shown(path)} FAILED: {reason}", sys.stderr)

    # -- the end --

    def end(self) -> None:
        """Leave without a word: nothing has been done, or what has been done cannot be written down."""
        self.worker.end([] if not self.journal.recent else None)

    def report(self, checkpoint: str, device: torch.device) -> int:
        """Write the manifest and the summary, tell the user, and leave; returns how many files have failed."""
        with self.worker.alone():
            self.journal.refresh()
            others = self.worker.others()
            last = not any(map(self.worker.alive, others))
            if last:
                self.journal.merge()
            rows = self.journal.write_manifest()
            summary = self._summary(checkpoint, device)
            self.journal.write_json(SUMMARY, summary)
            self.worker.end(others if last else None)  # before another looks who is here: one must be the last
        done, before, failed = summary["separated"], summary["done_before"], len(summary["failed"])
        print(f"{done} file{'' if done == 1 else 's'} separated, {before} done before, {failed} failed.")
        for failure in summary["failed"]:
            print(f"    {shown(Path(failure['input']))}: {failure['reason']}")
        if summary["audio_seconds"]:
            print(f"In all {speed(summary['audio_seconds'], summary['seconds'])}.")
        print(f"{self.journal.folder / MANIFESTS[0]} lists {rows} output file{'' if rows == 1 else 's'}.")
        return failed

    def _summary(self, checkpoint: str, device: torch.device) -> Entry:
        """Of the batch, by all its workers."""
        entries = (self.journal.entries[stem] for stem in self.journal.recent)
        done = [entry for entry in entries if entry["state"] == "done"]
        audio_seconds = sum(entry.get("seconds", 0.0) for entry in done)
        seconds = time.time() - self.began
        failures, recent = self.journal.failures.values(), self.journal.recent
        before = [stem for stem, made in self.prints.items() if stem not in recent and self.journal.is_done(stem, made)]
        return {
            "version": __version__,
            "checkpoint": checkpoint,
            "checkpoint_sha256": self.identity["checkpoint"],
            "settings": self.identity["settings"],
            "device": f"{device}: {hardware(device)}",
            "separated": len(done),
            "done_before": len(before),
            "failed": [{"input": entry["input"], "reason": entry["reason"]} for entry in failures],
            "seconds": seconds,
            "audio_seconds": audio_seconds,
            "real_time_factor": seconds / audio_seconds if audio_seconds else None,
        }


def reason_of(error: Exception) -> str:
    """For the user; an error that no input should cause is given its type."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}"
