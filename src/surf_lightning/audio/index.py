"""Which files are usable audio, and how long: each is examined once, and again when it has changed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import soundfile
from torchmetrics.utilities import rank_zero_warn
from tqdm import tqdm

from surf_lightning.audio.files import FASTEST, NO_FILE, BadAudio, file_state, is_cut_short, open_audio, read_frames
from surf_lightning.errors import UserError
from surf_lightning.files import replacing

CACHE_NAME = ".surf-audio-index.npz"
VERSION = 2  # of the cache: raised when `examine` changes, so that old caches are not used
THREADS = min(32, 4 * (os.cpu_count() or 1))  # they wait for the disk, or decode without holding Python's lock
CHUNK = 64  # files a task
BLOCK = 1 << 16  # frames decoded at a time
MIN_SECONDS = 0.5
RATES = range(1000, FASTEST + 1)  # Hz
SILENCE = 1e-8
LOUDEST = 1e6  # of full scale, 120 dB: far more is no sound, and its square soon no float32
SILENT = "silent"
UNPACKED, PACKING = 1 << 26, 200  # bytes, and times its own size, to which a cache may unfold: it may be a stranger's
MAX_LISTED = 50
BAR_DELAY = 2.0  # seconds: what is done sooner needs no progress bar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Examined(NamedTuple):
    """What is known of a file: its ``file_state``, its length, and why it cannot be used ("" if it can)."""

    size: int
    mtime: int  # ns
    frames: int
    rate: int  # Hz
    reason: str


MISSING = Examined(-1, -1, 0, 0, "missing")


# -- one file --


def examine(path: str | Path) -> tuple[int, int]:
    """Frames and rate (Hz) of a file, from its header, its beginning and its end.

    Only a silent file, or one of floating-point samples, is decoded as a whole.

    Raises:
        BadAudio: it is unreadable, truncated, empty, silent, too short, or holds NaN.
    """
    if not os.path.isfile(path):
        raise BadAudio(NO_FILE)
    _prefetch_ends(path)
    with open_audio(path) as file:
        frames, rate = file.frames, file.samplerate
        if rate not in RATES:
            raise BadAudio(f"a sample rate of {rate} Hz")
        if frames < MIN_SECONDS * rate:
            raise BadAudio(f"shorter than {MIN_SECONDS} s: {frames / rate:.3f} s")
        _check_truncation(path, file)
        _check_levels(file)
    return frames, rate


def _prefetch_ends(path: str | Path) -> None:
    """Read both ends into the system's cache while other threads go on: soundfile opens one file at a time."""
    with open(path, "rb", buffering=0) as file:
        file.read(BLOCK)
        file.seek(-min(BLOCK, os.fstat(file.fileno()).st_size), os.SEEK_END)
        file.read(BLOCK)


def _check_truncation(path: str | Path, file: soundfile.SoundFile) -> None:
    tail = min(file.frames, BLOCK // 16)
    is_cut = is_cut_short(path) or (file.format == "OGG" and _ogg_is_truncated(path))
    if is_cut or len(read_frames(file, file.frames - tail, tail)) < tail:
        raise BadAudio("truncated: the file ends before its audio does")


def _check_levels(file: soundfile.SoundFile) -> None:
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


def index_audio(root: Path, paths: Sequence[str]) -> list[Examined]:
    """What is known of each of ``paths`` (relative to ``root``), after examining those that are not in the cache.

    The cache lies in ``root``, or in the user's cache folder where that cannot be written.
    """
    known = _read_cache(root)
    states = _in_parallel(lambda path: _state(root, path), paths)
    files = [MISSING if state is None else known.get(path, MISSING) for path, state in zip(paths, states, strict=True)]
    changed = [(i, state) for i, state in enumerate(states) if state is not None and files[i][:2] != state]
    with tqdm(total=len(changed), desc=f"Indexing {root}", unit="file", delay=BAR_DELAY, disable=not changed) as bar:
        examined = _in_parallel(lambda each: _examined(root, paths[each[0]], each[1]), changed, bar.update)
    for (i, _), result in zip(changed, examined, strict=True):
        files[i] = result
    if changed:
        _write_cache(root, known | {path: file for path, file in zip(paths, files, strict=True) if file != MISSING})
    return files


def _state(root: Path, path: str) -> tuple[int, int] | None:
    try:
        return file_state(os.path.join(root, path))
    except OSError:
        return None


def _examined(root: Path, path: str, state: tuple[int, int]) -> Examined:
    try:
        return Examined(*state, *examine(os.path.join(root, path)), "")
    except BadAudio as error:
        return Examined(*state, 0, 0, str(error))
    except OSError as error:
        return Examined(*state, 0, 0, f"unreadable ({error.strerror})")


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
    """Where the cache of ``root`` may lie: in it, or else in the user's cache folder."""
    yield root / CACHE_NAME
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surf-lightning"
    yield folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"


def _read_cache(root: Path) -> dict[str, Examined]:
    known: dict[str, Examined] = {}
    for path in reversed(list(_cache_files(root))):
        # Whatever is wrong with a cache, its files are examined again.
        with suppress(Exception), np.load(path, allow_pickle=False) as cache:
            unpacked = sum(member.file_size for member in cache.zip.infolist())
            if unpacked > max(UNPACKED, PACKING * path.stat().st_size) or cache["version"] != VERSION:
                continue
            columns = (cache[name].tolist() for name in ("path", "numbers", "reason"))
            for name, row, reason in zip(*columns, strict=True):
                known[os.fsdecode(name)] = Examined._make((*row, os.fsdecode(reason)))
    return known


def _write_cache(root: Path, files: dict[str, Examined]) -> None:
    paths = np.array([os.fsencode(path) for path in files])
    reasons = np.array([os.fsencode(file.reason) for file in files.values()])
    numbers = np.array([file[:4] for file in files.values()], np.int64)
    content = io.BytesIO()
    np.savez_compressed(content, version=VERSION, path=paths, reason=reasons, numbers=numbers)
    if not _write(root, ".npz", content.getvalue()):
        rank_zero_warn(f"the index of {root} cannot be saved, there or in the cache folder: it will be made again")


def _write(root: Path, suffix: str, content: bytes) -> Path | None:
    """Write a file of the index of ``root``; returns its path, None where nothing can be written."""
    for cache in _cache_files(root):
        path = cache.with_suffix(suffix)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, shared=True) as file:
                file.write(content)
            return path
    return None


# -- what is wrong --


def most_skipped(max_bad_share: float, count: int) -> int:
    """How many of ``count`` items of a set may be unusable; one never is too many."""
    return max(1, int(max_bad_share * count))


def report_skipped(
    root: Path, reasons: dict[str, str], skipped: str, bad: int, count: int, max_bad_share: float
) -> None:
    """Warn of what is ``skipped``; raises UserError if that is all of a set's ``count`` items, or too many."""
    said = f"{root}: {skipped}: {bad} of {count}"
    if bad == count or bad > most_skipped(max_bad_share, count):
        limit = f"more than the share data.max_bad_share = {max_bad_share} allows"
        raise UserError(f"{said}, {limit}:\n{format_skipped(root, reasons)}")
    rank_zero_warn(f"{said}:\n{format_skipped(root, reasons)}")


def format_skipped(root: Path, reasons: dict[str, str]) -> str:
    """``reasons`` by path, a line each; of very many all go to a file, which the last line names."""
    lines = [f"  {path}: {reason}" for path, reason in reasons.items()]
    if len(lines) > MAX_LISTED:
        where = _write(root, ".skipped.txt", os.fsencode("\n".join(lines) + "\n"))
        lines[MAX_LISTED:] = [f"  and {len(lines) - MAX_LISTED} more" + (f", all listed in {where}" if where else "")]
    return "\n".join(lines)
