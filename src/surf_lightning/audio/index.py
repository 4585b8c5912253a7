"""Which files are usable audio, and how long: examined once, cached, and again only what changed. Axes: N files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
import soundfile
from torchmetrics.utilities import rank_zero_warn
from tqdm import tqdm

from surf_lightning.audio.files import EXTENSIONS, BadAudio, is_cut_short, open_audio, read_frames

CACHE_NAME = ".surf-audio-index.npz"
VERSION = 2  # of the cache: a change in what is examined makes old ones void
THREADS = min(32, 4 * (os.cpu_count() or 1))  # they wait for the disk, or decode without holding Python's lock
CHUNK = 64  # files a task
BLOCK = 1 << 16  # frames decoded at a time
MIN_SECONDS = 0.5
RATES = range(1000, 10_000_001)  # Hz
UNKNOWN_LENGTH = 1 << 40  # frames: libsndfile's way of saying that the header gives none
SILENCE = 1e-8
LOUDEST = 1e6  # of full scale, 120 dB: far more is no sound, and its square soon no float32
SILENT = "silent"
MAX_LISTED = 50
BAR_DELAY = 2.0  # seconds: what is done sooner needs no progress bar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Examined(NamedTuple):
    """What is known of a file: its state on disk, its length, and why it is no usable audio, "" where it is."""

    size: int
    mtime: int  # ns
    frames: int
    rate: int  # Hz
    reason: str


MISSING = Examined(-1, -1, 0, 0, "missing")


@dataclass(frozen=True)
class AudioIndex:
    """Files under ``root``, in the order they were asked for."""

    paths: Sequence[str]
    files: Sequence[Examined]


def audio_under(root: Path) -> list[str]:
    """Paths, relative to ``root`` and sorted, of all files in its tree that are named like audio, hidden ones left out.

    Hidden are also the ``._name.wav`` that macOS leaves beside files on foreign disks.
    """
    found, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else [name for name in subfolders if not name.startswith(".")]
        if real not in seen:
            inside = os.path.relpath(folder, root)
            found += [
                os.path.normpath(os.path.join(inside, name))
                for name in names
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            ]
        seen.add(real)
    return sorted(found)


# -- one file --


def examine(path: str | Path) -> tuple[int, int]:
    """Frames and rate of a file, after a look at its header, its beginning and its end.

    Only a silent file, or one of floating-point samples, is decoded as a whole.

    Raises:
        BadAudio: it is unreadable, truncated, empty, silent, too short, or holds NaN.
    """
    _fetch_ends(path)
    with open_audio(path) as file:
        frames, rate = file.frames, file.samplerate
        if frames == 0:
            raise BadAudio("empty: it has no samples")
        if frames >= UNKNOWN_LENGTH:
            raise BadAudio("its header does not say how long it is: encode it again")
        if rate not in RATES:
            raise BadAudio(f"a sample rate of {rate} Hz")
        if frames < MIN_SECONDS * rate:
            raise BadAudio(f"shorter than {MIN_SECONDS} s: {frames / rate:.3f} s")
        _look_for_truncation(path, file)
        _look_at_levels(file)
    return frames, rate


def _fetch_ends(path: str | Path) -> None:
    """Have the disk deliver both ends while other threads go on: soundfile opens one file at a time."""
    with open(path, "rb", buffering=0) as file:
        file.read(BLOCK)
        file.seek(-min(BLOCK, os.fstat(file.fileno()).st_size), os.SEEK_END)
        file.read(BLOCK)


def _look_for_truncation(path: str | Path, file: soundfile.SoundFile) -> None:
    if is_cut_short(path) or (file.format == "OGG" and _ogg_is_truncated(path)):
        raise BadAudio("truncated: the file ends before its audio does")
    tail = min(file.frames, BLOCK // 16)
    if len(read_frames(file, file.frames - tail, tail)) < tail:
        raise BadAudio("truncated: the file ends before its audio does")


def _look_at_levels(file: soundfile.SoundFile) -> None:
    decode_all = file.subtype in ("FLOAT", "DOUBLE")  # only these can hold NaN, or what is far beyond full scale
    loudest = 0.0
    for start in range(0, file.frames, BLOCK):
        loudest = max(loudest, float(read_frames(file, start, BLOCK).abs().max()))
        if loudest > SILENCE and not decode_all:
            return
    if loudest <= SILENCE:
        raise BadAudio(SILENT)
    if loudest > LOUDEST:
        raise BadAudio(f"no sound: it reaches {loudest:.0e} times full scale")


def _ogg_is_truncated(path: str | Path) -> bool:
    """Whether the last page is not marked as the end of its stream."""
    with open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - BLOCK, 0))  # a page has less than 64 KiB
        page = file.read().rpartition(b"OggS")[2]
    return len(page) < 2 or not page[1] & 4


# -- all files --


def index_audio(root: Path, paths: Sequence[str]) -> AudioIndex:
    """Examine those of ``paths`` (relative to ``root``) that the cache does not know as they are now.

    The cache lies in ``root``, or in the user's cache folder where that cannot be written.
    """
    known = _read_cache(root)
    states = _in_parallel(lambda path: _state(root, path), paths)
    files = [known.get(path, MISSING) for path in paths]
    changed = [i for i, state in enumerate(states) if state is not None and files[i][:2] != state]
    bar = tqdm(total=len(changed), desc=f"Indexing {root}", unit="file", delay=BAR_DELAY, disable=not changed)
    with bar:
        examined = _in_parallel(lambda i: _examined(root, paths[i], states[i]), changed, bar.update)
    for i, result in zip(changed, examined, strict=True):
        files[i] = result
    files = [MISSING if state is None else file for state, file in zip(states, files, strict=True)]
    if changed:
        _write_cache(root, known | {path: file for path, file in zip(paths, files, strict=True) if file != MISSING})
    return AudioIndex(paths, files)


def _state(root: Path, path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(os.path.join(root, path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _examined(root: Path, path: str, state: tuple[int, int] | None) -> Examined:
    assert state is not None
    size, mtime = state
    try:
        frames, rate = examine(os.path.join(root, path))
    except BadAudio as error:
        return Examined(size, mtime, 0, 0, str(error))
    except OSError as error:
        return Examined(size, mtime, 0, 0, f"unreadable ({error.strerror})")
    return Examined(size, mtime, frames, rate, "")


def _in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Callable[[int], object] = lambda count: None
) -> list[Result]:
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    results: list[Result] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
            results += part
            progress(len(part))
    return results


# -- the cache --


def _cache_files(root: Path) -> Iterator[Path]:
    """Where the cache of ``root`` may be, the better place first."""
    yield root / CACHE_NAME
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surf-lightning"
    yield folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"


def _read_cache(root: Path) -> dict[str, Examined]:
    known: dict[str, Examined] = {}
    for path in reversed(list(_cache_files(root))):
        # Whatever is wrong with it, it is only a cache.
        with suppress(Exception), np.load(path, allow_pickle=False) as cache:
            if cache["version"] != VERSION:
                continue
            names, reasons = ([os.fsdecode(text) for text in cache[column].tolist()] for column in ("path", "reason"))
            numbers = cache["numbers"].tolist()
            known |= {
                name: Examined._make((*row, reason)) for name, row, reason in zip(names, numbers, reasons, strict=True)
            }
    return known


def _write_cache(root: Path, files: dict[str, Examined]) -> None:
    paths = np.array([os.fsencode(path) for path in files])
    reasons = np.array([os.fsencode(file.reason) for file in files.values()])
    numbers = np.array([file[:4] for file in files.values()], np.int64)

    def save(file: IO[bytes]) -> None:
        np.savez_compressed(file, version=VERSION, path=paths, reason=reasons, numbers=numbers)

    if not _write(root, ".npz", save):
        rank_zero_warn(f"the index of {root} cannot be kept, neither there nor in the cache folder: it is made anew")


def _write(root: Path, suffix: str, write: Callable[[IO[bytes]], object]) -> Path | None:
    """Where a file was written whole that belongs to the index of ``root``; None where nothing can be written."""
    for cache in _cache_files(root):
        path = cache.with_suffix(suffix)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    write(file)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            return path
    return None


# -- what is wrong --


def listed(root: Path, reasons: dict[str, str]) -> str:
    """``reasons`` by path, a line each; where they are very many, the rest in a file that the last line names."""
    lines = [f"  {path}: {reason}" for path, reason in reasons.items()]
    if len(lines) > MAX_LISTED:
        text = os.fsencode("\n".join(lines) + "\n")
        where = _write(root, ".skipped.txt", lambda file: file.write(text))
        lines[MAX_LISTED:] = [f"  and {len(lines) - MAX_LISTED} more" + (f", all listed in {where}" if where else "")]
    return "\n".join(lines)
