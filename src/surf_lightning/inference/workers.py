"""Processes on any machines that share the work on one output folder: who is there, and who does which file.

All that they know of one another lies in a hidden folder there, made by calls that shared file systems do in one step:
a journal for each worker, and a claim for each file that one works on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

FOLDER = ".surf"
LEASE = 60.0  # seconds without a sign of life after which a worker on another machine is taken for dead
POLL = 0.5  # seconds between two looks at the files that others work on
Taken = Literal["mine", "settled", "busy"]


def machine() -> str:
    """Names the running kernel: within it, locks tell at once who is alive."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class Worker:
    """This process among the workers of an output folder.

    A worker is alive while it holds the lock of its journal; on another machine, where a lock may not be seen, while
    the journal's time of change moves. It is compared with itself over a lease by the observer's own clock: the clocks
    of two machines may differ. ``header`` is what others should know of it.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = folder / FOLDER
        self.name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}"
        self.header = {**header, "worker": self.name, "machine": machine()}
        self.work = self.folder / "work" / self.name
        self._seen: dict[str, tuple[int, float]] = {}
        self._made = Path()  # the latest claim
        self._ended = threading.Event()
        while not self.journal(self.name).exists():
            with suppress(FileNotFoundError):  # one that ended just now took the folder, or the file, for what is left
                self._begin(self.folder / f".{self.name}.partial")
        threading.Thread(target=self._beat, daemon=True).start()

    def _begin(self, partial: Path) -> None:
        for path in (self.folder / "claims", self.work):
            path.mkdir(parents=True, exist_ok=True)
        self._file = open(partial, "ab")  # noqa: SIM115  held, with its lock, as long as the worker lives
        with suppress(OSError):  # a file system without locks: the lease tells
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.write(self.header)
        os.replace(partial, self.journal(self.name))  # not seen before it is locked

    def journal(self, name: str) -> Path:
        """Of a worker."""
        return self.folder / f"{name}.jsonl"

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to this worker's journal; it is on disk when the call returns."""
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self.journal(self.name))) from error

    def read(self, name: str) -> dict[str, Any]:
        """The header of a worker; empty if it has gone."""
        try:
            with open(self.journal(name), "rb") as file:
                return parse(file.readline())
        except FileNotFoundError:
            return {}

    def others(self) -> list[str]:
        """Names of the other workers, alive or not, whose journals are here."""
        return [path.stem for path in journals(self.folder) if path.stem != self.name]

    def alive(self, name: str) -> bool:
        """Whether a worker is at work. One on another machine is until it has shown no sign of life for a lease."""
        try:
            with open(self.journal(name), "rb") as file:
                beat = os.fstat(file.fileno()).st_mtime_ns
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    if parse(file.readline()).get("machine") == machine():
                        return False
                except BlockingIOError:
                    return True
                except OSError:
                    pass
        except FileNotFoundError:
            return False
        return self._within_lease(name, beat)

    def _within_lease(self, name: str, beat: int) -> bool:
        before, since = self._seen.get(name, (None, 0.0))
        if beat != before:
            self._seen[name] = beat, time.monotonic()
            return True
        return time.monotonic() - since < LEASE

    def take(self, stem: str, settled: Callable[[], bool]) -> Taken:
        """Claim a file: it is this worker's, or settled already, or another's who is alive.

        Claims are numbered: who takes over from a dead worker makes the next one, so that only one can. None is removed
        while the work goes on, so that a dead worker's claim is never mistaken for that of its successor.
        """
        for number in range(1_000_000):
            claim = self._claim(stem, number)
            try:
                self._make(claim, stem)
            except FileExistsError:
                with suppress(FileNotFoundError):  # released in between
                    owner = parse(_content(claim)).get("worker", "")
                    if owner and owner != self.name and not self.alive(owner):
                        if settled():
                            return "settled"
                        continue
                    if not owner and not self._within_lease(claim.name, claim.stat().st_mtime_ns):
                        continue  # its maker died between making and writing it
                return "settled" if settled() else "busy"
            return "settled" if settled() else "mine"
        raise AssertionError("a million workers died of one file")

    def _claim(self, stem: str, number: int) -> Path:
        return self.folder / "claims" / f"{hashlib.sha256(os.fsencode(stem)).hexdigest()}.{number}"

    def _make(self, claim: Path, stem: str) -> None:
        content = {"worker": self.name, "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        claim.parent.mkdir(exist_ok=True)  # one who left may have found it empty
        file = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            os.write(file, json.dumps({**content, "stem": stem}).encode())
        except OSError:  # a full disk: nobody must wait until an empty claim's lease is over
            claim.unlink()
            raise
        finally:
            os.close(file)
        self._made = claim

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Only one worker at a time is in the block."""
        while self.take("", lambda: False) != "mine":
            time.sleep(POLL / 10)
        claim = self._made
        try:
            yield
        finally:
            claim.unlink(missing_ok=True)  # one who has ended in the block may have been forgotten

    def forget(self, names: Iterable[str]) -> None:
        """Remove all traces of workers whose work is recorded elsewhere."""
        gone = {*names}
        for claim in (self.folder / "claims").glob("*"):
            with suppress(FileNotFoundError):
                if parse(_content(claim)).get("worker") in gone:
                    claim.unlink()
        for name in gone:  # the journal last: where a kill comes between, the next one finds what is left by it
            shutil.rmtree(self.folder / "work" / name, ignore_errors=True)
            self.journal(name).unlink(missing_ok=True)

    def end(self, merged: Iterable[str] | None) -> None:
        """Leave; the last one takes the traces of the others along, whose work has been ``merged`` elsewhere.

        ``None``: others go on, and still need the journal and the claims of this one.
        """
        self._ended.set()
        shutil.rmtree(self.work, ignore_errors=True)
        if merged is not None:
            self.forget([*merged, self.name])
            for partial in filter(Path.is_file, self.folder.glob(".*.partial")):
                # Of one killed as it began: while it lives it holds the lock.
                with suppress(OSError), open(partial, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    partial.unlink()
                    shutil.rmtree(self.folder / "work" / partial.stem[1:], ignore_errors=True)
        with suppress(OSError):  # a full disk has been told of before
            self._file.close()
        for path in (self.folder / "claims", self.folder / "work", self.folder):
            with suppress(OSError):  # another worker has just begun
                path.rmdir()

    def _beat(self) -> None:
        while not self._ended.wait(LEASE / 6):
            with suppress(OSError):
                os.utime(self.journal(self.name))


def journals(folder: Path) -> list[Path]:
    """Those in ``folder``: files. A stranger may have left pipes and devices, which end nowhere, under their names."""
    return [path for path in sorted(folder.glob("*.jsonl")) if path.is_file()]


def _content(claim: Path) -> bytes:
    return claim.read_bytes() if claim.is_file() else b""


def parse(line: bytes) -> dict[str, Any]:
    """An object in JSON; empty for anything else, e.g. a line that a kill has cut off."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
