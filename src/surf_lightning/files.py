"""Finding files, and writing them so that a kill leaves the old or the new, whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from surf_lightning.errors import UserError

SEAL = b"sha256:"
SEALED = len(SEAL) + 64  # bytes of a seal
END = struct.Struct("<4s4H2LH")  # a zip file's last record; the length of the comment behind it is its last number
MAX_NODES = 100_000  # of a YAML text
MAX_TEXT = 10_000_000  # bytes of a JSON or YAML file


def files_under(root: Path, suffixes: tuple[str, ...], skip: Path | None = None) -> list[str]:
    """Files of some ``suffixes`` in a folder and its subfolders, links followed: paths relative to ``root``, sorted.

    Hidden files and folders are left out, also the ``._name.wav`` that macOS leaves on other disks, and the folder
    ``skip``.
    """
    found: list[str] = []
    seen = {os.path.realpath(skip)} if skip else set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may go in a circle
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        names = [name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
        found += [os.path.normpath(os.path.join(inside, name)) for name in names]
    return sorted(found)


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it is complete and moved to ``path``."""
    return path.with_name(f".{path.name}.partial")


def make_writable(folder: Path) -> None:
    """Make ``folder`` if it does not exist; raises UserError if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with writing(folder / ".probe"):
            pass
        partial_path(folder / ".probe").unlink()
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``path``, which is not there or empty, when the block ends without error.

    Raises:
        OSError: it cannot be written, or another process is writing it.
    """
    partial = partial_path(path.absolute())
    partial.mkdir(parents=True, exist_ok=True)
    with _alone(partial, path):
        try:
            for left in partial.iterdir():  # by a kill
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield partial
            os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _alone(folder: Path, path: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, which is to become ``path``; the system releases it when this process ends."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = os.path.samestat(os.fstat(held), os.stat(folder))  # not yet moved to its name, or removed
        except (BlockingIOError, FileNotFoundError):
            is_mine = False
        except OSError:  # a file system without locks
            is_mine = True
        if not is_mine:
            raise FileExistsError(errno.EEXIST, "another process is writing it", os.fspath(path))
        yield
    finally:
        os.close(held)


def read_list(path: Path) -> str:
    """The text of a data set's list, UTF-8 with or without a mark at its beginning.

    Raises:
        UserError: it cannot be read, or is no such text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not written in UTF-8 (byte {error.start + 1}): save it as UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise UserError(f"{path} is no text: it holds zero bytes")
    return text


def is_inside(name: str) -> bool:
    """Whether a relative name, whatever its ``..``, stays in the folder that it is relative to."""
    return not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] != os.pardir


def own_file(folder: Path, path: Path) -> Path:
    """``path`` itself; raises ValueError where it is a link that leads out of ``folder``, or no file."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it is a link to a file outside of the run's folder")
    if not path.is_file():
        raise ValueError("it is no file")
    return path


def read_text(path: Path) -> str:
    """A text of bearable size."""
    if path.stat().st_size > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT:,} bytes")
    return path.read_text(encoding="utf-8")


def write_together(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files into ``folder``, which is made, by their names: after an error nothing in it or of it has changed."""
    is_new = not folder.exists()
    try:
        make_writable(folder)
        for name, content in contents.items():
            with writing(folder / name) as file:
                file.write(content)
        for name in contents:
            os.replace(partial_path(folder / name), folder / name)
    finally:
        for name in contents:
            partial_path(folder / name).unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it is empty after an error alone
                folder.rmdir()


def read_yaml(text: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; it runs no code, and its aliases may not unfold without end.

    Raises:
        ValueError: it is no such text; one line says why.
    """
    import yaml

    try:
        if _unfolded(yaml.compose(text, yaml.SafeLoader), {}) > MAX_NODES:
            raise ValueError(f"its aliases unfold to more than {MAX_NODES:,} values")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise ValueError("it is no mapping of names to values")
    return content


def _unfolded(node: Any, known: dict[int, float]) -> float:
    """How many nodes a tree of YAML has with every alias written out."""
    if id(node) not in known:
        known[id(node)] = math.inf  # of one that holds itself
        parts = node.value if isinstance(getattr(node, "value", None), list) else []
        parts = [part for each in parts for part in (each if isinstance(each, tuple) else [each])]
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(node)]


def sync(path: Path) -> None:
    """Flush a closed file to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """An open file at ``partial_path(path)``: on disk when the block ends, removed after an error in it.

    ``mode`` (``w`` or ``wb``) and ``options`` are those of ``open``. The caller moves the file to ``path``. A
    file that is there already is replaced, never written into: it may be a stranger's link to another.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    partial = partial_path(path)
    try:
        partial.unlink(missing_ok=True)
        with open(partial, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)  # on a full disk its room is needed
        if isinstance(error, OSError) and error.errno and error.filename in (None, os.fspath(partial)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


@contextmanager
def replacing(path: Path, mode: str = "wb", shared: bool = False, **options: Any) -> Iterator[Any]:
    """As ``writing``, and the file replaces ``path`` in one step when the block ends: a kill leaves the old or the new.

    ``shared``: other processes may write the same file at the same time; the last one to end wins.
    """
    own = path.with_name(f"{path.name}.{os.getpid()}") if shared else path
    with writing(own, mode, **options) as file:
        yield file
    try:
        os.replace(partial_path(own), path)
    except OSError as error:
        partial_path(own).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def seal(file: Any) -> None:
    """Put the SHA-256 of a zip file, open and just written, into its comment, which readers pass over."""
    file.seek(0)
    comment = SEAL + hashlib.file_digest(file, "sha256").hexdigest().encode()
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", len(comment)) + comment)


def is_damaged(path: str | os.PathLike[str]) -> bool:
    """Whether any byte of a zip file is lost or other than ``seal`` saw it; of one without seal, of its contents."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - END.size - SEALED, 0))
        tail = file.read()
        start = tail.rfind(b"PK\5\6")
        end, comment = tail[max(start, 0) :][: END.size], tail[start + END.size :]
        if start < 0 or len(end) < END.size or END.unpack(end)[-1] != len(comment):
            return True
        if comment:
            file.seek(0)
            whole = hashlib.sha256()
            left = size - len(comment) - 2
            while left and (block := file.read(min(left, 1 << 20))):
                whole.update(block)
                left -= len(block)
            whole.update(bytes(2))  # the length of the comment that was not there yet
            return comment != SEAL + whole.hexdigest().encode()
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None  # torch checks no sums
    except (zipfile.BadZipFile, EOFError, NotImplementedError):
        return True
