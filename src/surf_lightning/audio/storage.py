"""Where chunks of audio lie: a folder, or storage that speaks S3 with a cache of bounded size before it.

S3 by boto3, Amazon's own client: it finds address and keys where every program of theirs does, repeats what fails, and
every S3-compatible storage is tested with it. Chunks are whole files, so that no file system needs to be imitated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from surf_lightning.audio.files import BadAudio, file_state
from surf_lightning.errors import UserError
from surf_lightning.files import make_writable, partial_path

ATTEMPTS = 12  # of a request, with pauses that double up to 20 s: minutes in which a server may be down


class BadChunk(BadAudio):
    """A chunk is not what the index says, however often it is fetched."""


def storage(url: str) -> LocalFolder | Bucket:
    """The storage at ``s3://BUCKET/FOLDER``, or the folder ``url``."""
    return Bucket(url) if url.startswith("s3://") else LocalFolder(Path(url).expanduser())


class LocalFolder:
    """Files in a folder of this machine, by their names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str, target: Path) -> None:
        """Copy a file to ``target``."""
        shutil.copyfile(self.root / name, target)

    def put(self, source: Path, name: str) -> None:
        """Move a file there; raises UserError."""
        make_writable(self.root)
        shutil.copyfile(source, partial_path(self.root / name))
        os.replace(partial_path(self.root / name), self.root / name)
        source.unlink()

    def has(self, name: str) -> bool:
        """Whether there is a file."""
        return (self.root / name).is_file()


class Bucket:
    """The same of a folder of a bucket; what fails is a UserError.

    A client a request: processes that fork cannot share one, and a chunk costs far more.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.bucket, _, folder = self.url.removeprefix("s3://").partition("/")
        self.prefix = f"{folder}/" if folder else ""

    def get(self, name: str, target: Path) -> None:
        self._ask("download_file", name, Filename=str(target))

    def put(self, source: Path, name: str) -> None:
        self._ask("upload_file", name, Filename=str(source))
        source.unlink()

    def has(self, name: str) -> bool:
        return self._ask("head_object", name, or_none=True) is not None

    def _ask(self, request: str, name: str, or_none: bool = False, **arguments: Any) -> Any:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise UserError(f"{self.url} needs boto3: pip install 'surf-lightning[stream]'") from error
        config = Config(retries={"total_max_attempts": ATTEMPTS, "mode": "standard"}, connect_timeout=10)
        try:
            client = boto3.session.Session().client("s3", config=config)
            return getattr(client, request)(Bucket=self.bucket, Key=self.prefix + name, **arguments) or name
        except (BotoCoreError, ClientError, boto3.exceptions.Boto3Error, OSError) as error:
            if or_none and getattr(error, "response", {}).get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                return None
            raise UserError(f"{self.url}/{name} cannot be reached: {error}") from error


class Chunks:
    """A set's chunks on this machine, fetched when they are first asked for; each must have its SHA-256 in ``hashes``.

    All processes of a machine share the folder of the ``cache``, which storage that is a folder itself does not need.
    Beyond its ``limit``, in bytes, those chunks go that were touched longest ago. One that goes while it is read is
    fetched again.

    Raises:
        UserError: a name is not that of a chunk: it would be read, or written, elsewhere.
    """

    def __init__(
        self, url: str, names: Sequence[str], sizes: Sequence[int], hashes: Sequence[str], cache: Path, limit: int
    ) -> None:
        self.remote = url.startswith("s3://")
        # In the cache the hash is part of the name: a set that was made again has other chunks of the same names.
        self.local = [f"{sha[:16]}-{name}" for sha, name in zip(hashes, names, strict=True)] if self.remote else names
        if strange := [name for name in self.local if os.path.basename(name) != name or not name.endswith(".tar")]:
            raise UserError(f"{url} names a chunk {strange[0]!r}, which is no file of its own")
        self.url, self.names, self.sizes, self.hashes = url, names, sizes, hashes
        self.folder = cache if self.remote else Path(url).expanduser()
        self.limit = limit
        self.bad: set[int] = set()

    def read(self, chunk: int, offset: int, size: int) -> bytes:
        """A part of a chunk.

        Raises:
            BadAudio: it is not there or too short; BadChunk if the whole chunk is damaged.
            UserError: the storage cannot be reached.
        """
        for _ in range(3 if self.remote else 1):
            if self.remote:
                self._fetch(chunk)
            with suppress(FileNotFoundError), open(self.folder / self.local[chunk], "rb") as file:
                file.seek(offset)
                return file.read(size)
        raise BadChunk(f"{self.url}/{self.names[chunk]}: missing")

    def prefetch(self, chunks: Sequence[int]) -> None:
        """Fetch chunks in the background."""
        if self.remote:
            threading.Thread(target=self._fetch_all, args=(chunks,), daemon=True).start()

    def _fetch_all(self, chunks: Sequence[int]) -> None:
        for chunk in chunks:
            with suppress(UserError, BadChunk, OSError):  # who needs it will say so
                self._fetch(chunk)

    def _fetch(self, chunk: int) -> None:
        path = self.folder / self.local[chunk]
        if not path.exists() and chunk not in self.bad:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{path.name}.lock"):
                if not path.exists():
                    self._download(chunk, path)
        if chunk in self.bad:
            raise BadChunk(f"{self.url}/{self.names[chunk]}: its hash is not that of the index")
        with suppress(FileNotFoundError):
            os.utime(path)

    def _download(self, chunk: int, path: Path) -> None:
        self._make_room(self.sizes[chunk])
        partial = partial_path(path)
        for _ in range(2):
            storage(self.url).get(self.names[chunk], partial)
            with partial.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == self.hashes[chunk]:
                os.replace(partial, path)
                return
        partial.unlink()
        self.bad.add(chunk)

    def _make_room(self, size: int) -> None:
        files = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                files.append((*file_state(path)[::-1], path))
        total = sum(freed for _, freed, _ in files) + size
        for _, freed, path in sorted(files):
            if total > self.limit:
                path.unlink(missing_ok=True)
                total -= freed
