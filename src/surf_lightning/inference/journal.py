"""The records in an output folder: what is done, from which input, checkpoint and settings; its manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from surf_lightning.audio.files import file_state
from surf_lightning.files import is_inside, replacing
from surf_lightning.inference.workers import FOLDER, Worker, journals, parse

JOURNAL = "journal.jsonl"
MANIFESTS = ("manifest.csv", "manifest.json", "manifest.raven.txt")
BEGIN = "Begin Time (s)"  # the column that only sounds fill
SUMMARY = "summary.json"
HEAD = 65536  # bytes of an input that its fingerprint covers: hours of audio are not read twice

Entry = dict[str, Any]
"""One line of JSON."""


def input_fingerprint(path: Path) -> Entry:
    """Tells whether an input is still the same file: its state, and a hash of its head."""
    size, mtime = file_state(path)
    with open(path, "rb") as file:
        head = hashlib.sha256(file.read(HEAD)).hexdigest()
    return {"size": size, "mtime_ns": mtime, "head": head}


def checkpoint_fingerprint(path: Path) -> str:
    """A hash of a checkpoint's content, or of the files of an exported folder."""
    digest = hashlib.sha256()
    for part in [*sorted(path.glob("*.safetensors")), path / "config.json"] if path.is_dir() else [path]:
        with open(part, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


class Journal:
    """Lines of JSON in the output folder, each on disk before the work goes on; the last line on an input counts.

    A line ``writing`` comes before the outputs get their names, a line ``done`` after. An input is known by its
    ``stem``, the common part of its outputs' names in the folder, so that moved recordings are recognised. Each worker
    writes a journal of its own; the last one merges them. A line on a stem has a higher ``turn`` than those that its
    writer, who holds the claim, has read.

    Attributes:
        entries: the latest on each stem.
        recent: the stems whose latest is in a worker's journal: this batch's, not an earlier one's.
        failures: of this batch, by input.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.entries: dict[str, Entry] = {}
        self.failures: dict[str, Entry] = {}
        self.recent: set[str] = set()
        self._read_to: dict[Path, tuple[int, int]] = {}  # inode and bytes
        self.refresh()

    def refresh(self) -> None:
        """Read what has been written since the last time, by others too."""
        for path in (*([self.path] if self.path.is_file() else []), *journals(self.folder / FOLDER)):
            for entry in self._new_lines(path):
                stem = str(entry["stem"])
                if entry.get("state") == "failed":
                    self.failures[str(entry["input"])] = entry
                elif entry.get("turn", 0) >= self.entries.get(stem, entry).get("turn", 0):
                    self.entries[stem] = entry
                    (self.recent.discard if path == self.path else self.recent.add)(stem)

    def _new_lines(self, path: Path) -> list[Entry]:
        try:
            with open(path, "rb") as file:
                inode, (before, position) = os.fstat(file.fileno()).st_ino, self._read_to.get(path, (0, 0))
                file.seek(position if before == inode else 0)
                lines = file.read().splitlines(keepends=True)
                end = file.tell()
        except FileNotFoundError:  # merged
            return []
        if lines and not lines[-1].endswith(b"\n"):  # still being written, or cut off by a kill
            end -= len(lines.pop())
        self._read_to[path] = inode, end
        return [entry for line in lines if _is_entry(entry := parse(line))]

    def is_done(self, stem: str, fingerprint: Entry, recently: bool = False) -> bool:
        """Whether the outputs are there, complete, from the same input, checkpoint and settings.

        ``recently``: and were made in this batch, not in an earlier one.
        """
        if (stem not in self.recent and recently) or (entry := self.entries.get(stem)) is None:
            return False
        return entry["state"] == "done" and entry["fingerprint"] == fingerprint and self._present(entry)

    def replaceable(self, stem: str, unfinished: bool) -> set[Path]:
        """The outputs of this batch; with ``unfinished`` also of an interrupted one, which may be there in part."""
        entry = self.entries.get(stem, {})
        ours = stem in self.recent or (unfinished and entry.get("state") == "writing")
        return set(self._paths(entry)) if ours else set()

    def other_input(self, stem: str, path: Path, fingerprint: Entry) -> str | None:
        """The input, not the one at ``path``, whose outputs have in this batch got the names of those of ``stem``."""
        entry = self.entries[stem] if stem in self.recent else {}
        other = str(entry.get("input", path))
        return other if other != os.fsdecode(path) and entry["fingerprint"] != fingerprint else None

    def publish(self, worker: Worker, stem: str, entry: Entry, moves: dict[Path, Path]) -> None:
        """Give complete files their names, and remove older outputs of the same stem, whose claim ``worker`` holds.

        ``entry`` is the fingerprint, the rows of the manifest and what else is told; ``moves`` says where each file is,
        and its name, a path in the folder.
        """
        old = self.entries.get(stem)
        outputs = {path.relative_to(self.folder).as_posix(): part.stat().st_size for part, path in moves.items()}
        turn = 1 + (old or {}).get("turn", 0)
        entry = {"stem": stem, **entry, "outputs": outputs, "turn": turn}
        self._record(worker, {**entry, "state": "writing"})
        for part, path in moves.items():
            os.replace(part, path)
        for stale in set(self._paths(old) if old else ()) - set(moves.values()):
            stale.unlink(missing_ok=True)
        self._record(worker, {**entry, "state": "done"})

    def fail(self, worker: Worker, stem: str, path: Path, reason: str) -> None:
        """Record that a file cannot be separated."""
        entry = {"stem": stem, "state": "failed", "input": os.fsdecode(path), "reason": reason}
        worker.write(entry)
        self.failures[entry["input"]] = entry

    def _record(self, worker: Worker, entry: Entry) -> None:
        worker.write(entry)
        self.entries[entry["stem"]] = entry
        self.recent.add(entry["stem"])

    def merge(self) -> None:
        """Write all that is known into one journal."""
        with replacing(self.path) as file:
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in self.entries.values())

    def write_manifest(self) -> int:
        """Write a row for each output that is there, of this run and of earlier ones; returns how many."""
        done = (entry for entry in self.entries.values() if entry["state"] == "done" and self._present(entry))
        rows = [row for entry in done for row in entry["rows"]]
        rows = [{"Selection": number, **row} for number, row in enumerate(rows, 1)]
        self._write_table(MANIFESTS[0], rows, ",")
        self.write_json(MANIFESTS[1], rows)
        if sounds := [row for row in rows if row.get(BEGIN, "") != ""]:
            self._write_table(MANIFESTS[2], sounds, "\t")
        else:  # Raven knows no pictures
            (self.folder / MANIFESTS[2]).unlink(missing_ok=True)
        return len(rows)

    def _write_table(self, name: str, rows: list[Entry], delimiter: str) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row)) or ["Selection"]
        path = self.folder / name
        with replacing(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.DictWriter(file, columns, delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)

    def write_json(self, name: str, content: Any) -> None:
        """Write a file of the output folder, such as the summary of this run."""
        with replacing(self.folder / name, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    def _paths(self, entry: Entry) -> list[Path]:
        return [self.folder / name for name in entry["outputs"]]

    def _present(self, entry: Entry) -> bool:
        sizes = entry["outputs"].items()
        return all((path := self.folder / name).is_file() and path.stat().st_size == size for name, size in sizes)


def _is_entry(line: Entry) -> bool:
    """Whether a line of a journal, which may be a stranger's, is one of ours and names nothing outside its folder."""
    if line.get("state") == "failed":
        return {"stem", "input", "reason"} <= line.keys()
    outputs, rows = line.get("outputs"), line.get("rows")
    known = {"stem", "state", "fingerprint"} <= line.keys() and isinstance(line.get("turn", 0), int)
    if not (known and isinstance(outputs, dict) and isinstance(rows, list)):
        return False
    return all(map(is_inside, outputs)) and all(isinstance(row, dict) for row in rows)
