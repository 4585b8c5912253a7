"""The records in an output folder: what is done, from which input, checkpoint and settings; its manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from surf_lightning.audio.files import file_state
from surf_lightning.files import partial_path, replacing

JOURNAL = "journal.jsonl"
MANIFESTS = ("manifest.csv", "manifest.json", "manifest.raven.txt")
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
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class Journal:
    """Lines of JSON in the output folder, each on disk before the work goes on; the last line on an input counts.

    A line ``writing`` comes before the outputs get their names, a line ``done`` after. An input is known by its
    ``stem``, the common part of its outputs' names in the folder, so that moved recordings are recognised.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.entries: dict[str, Entry] = {entry["stem"]: entry for entry in self._read() if "stem" in entry}

    def is_done(self, stem: str, fingerprint: Entry) -> bool:
        """Whether the outputs are there, complete, from the same input, checkpoint and settings."""
        entry = self.entries.get(stem)
        return (
            entry is not None
            and entry["state"] == "done"
            and entry["fingerprint"] == fingerprint
            and self._present(entry)
        )

    def unfinished(self, stem: str) -> set[Path]:
        """The outputs of an interrupted run, some of which may have their names already."""
        entry = self.entries.get(stem)
        return set(self._paths(entry)) if entry is not None and entry["state"] == "writing" else set()

    def publish(self, stem: str, fingerprint: Entry, paths: list[Path], rows: list[Entry]) -> None:
        """Give the complete partial files of ``paths`` their names, and remove older outputs of the same stem.

        Args:
            stem: of the input.
            fingerprint: of input, checkpoint and settings.
            paths: the outputs.
            rows: of the manifest.
        """
        old = self.entries.get(stem)
        outputs = {str(path.relative_to(self.folder)): partial_path(path).stat().st_size for path in paths}
        entry = {"stem": stem, "fingerprint": fingerprint, "outputs": outputs, "rows": rows}
        self._append({**entry, "state": "writing"})
        for path in paths:
            os.replace(partial_path(path), path)
        for stale in set(self._paths(old) if old else ()) - set(paths):
            stale.unlink(missing_ok=True)
        self._append({**entry, "state": "done"})

    def write_manifest(self) -> int:
        """Write a row for each output that is there, of this run and of earlier ones; returns how many."""
        done = (entry for entry in self.entries.values() if entry["state"] == "done" and self._present(entry))
        rows = [row for entry in done for row in entry["rows"]]
        rows = [{"Selection": number, **row} for number, row in enumerate(rows, 1)]
        for name, delimiter in ((MANIFESTS[0], ","), (MANIFESTS[2], "\t")):
            path = self.folder / name
            with replacing(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                table = csv.DictWriter(file, list(rows[0]) if rows else ["Selection"], delimiter=delimiter)
                table.writeheader()
                table.writerows(rows)
        self._write(MANIFESTS[1], rows)
        return len(rows)

    def write_summary(self, summary: Entry) -> None:
        """Write what this run did, with failures and their reasons."""
        self._write(SUMMARY, summary)

    def _write(self, name: str, content: Any) -> None:
        with replacing(self.folder / name, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    def _paths(self, entry: Entry) -> list[Path]:
        return [self.folder / name for name in entry["outputs"]]

    def _present(self, entry: Entry) -> bool:
        sizes = entry["outputs"].items()
        return all((path := self.folder / name).is_file() and path.stat().st_size == size for name, size in sizes)

    def _append(self, entry: Entry) -> None:
        self.entries[entry["stem"]] = entry
        with open(self.path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if size := file.tell():
                file.seek(size - 1)
                if file.read(1) != b"\n":  # a line cut off by a kill
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> Iterator[Entry]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # a line cut off by a kill
                yield json.loads(line)
