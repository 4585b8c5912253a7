"""`surf shard`: recordings cut into pieces, packed into chunks, with an index. Axes: T samples."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from surf_lightning.audio.files import EXTENSIONS, BadAudio, Resampler, read_crop
from surf_lightning.audio.index import RATES, SILENT, format_skipped, index_audio
from surf_lightning.audio.storage import Bucket, LocalFolder, storage
from surf_lightning.data.folder import are_held_out, path_hashes
from surf_lightning.data.shards import INDEX, VERSION
from surf_lightning.errors import UserError
from surf_lightning.files import files_under
from surf_lightning.metrics.audio import is_active

CHUNK_BYTES = 128 << 20  # a chunk is closed when it has as many
PIECE_SECONDS = 60.0  # at most: what is read from a chunk for one crop
GROUP = 256  # pieces that are in memory together
HEADER = 512  # bytes before a file in a tar archive


class Piece(NamedTuple):
    """Samples ``[start, start + length)`` of a recording."""

    path: str
    start: int
    length: int


def write_shards(root: Path, output: str, sample_rate: int, validation_share: float) -> str:
    """Pack the usable recordings under ``root``; returns a summary.

    Recordings are packed in a random order, so that a few chunks hold a mixture of all; those held out to validate on,
    by the hash that ``Folder`` uses, go to chunks of their own. The index is written last: without it, there are no
    shards.

    Raises:
        UserError: there are no usable recordings, or the output holds shards already or cannot be written.
    """
    if sample_rate not in RATES:
        raise UserError(f"sample_rate is in Hz, {RATES[0]} to {RATES[-1]}, not {sample_rate}")
    if not 0 < validation_share < 1:
        raise UserError(f"validation_share must lie between 0 and 1, not {validation_share}")
    place = storage(output)
    if place.has(INDEX):
        raise UserError(f"{output} holds shards already: name a new place, or remove {INDEX} there first")
    paths = files_under(root, EXTENSIONS)
    examined = dict(zip(paths, index_audio(root, paths), strict=True))
    faults = {path: file.reason for path, file in examined.items() if file.reason}
    usable = [path for path in paths if path not in faults]
    if not usable:
        raise UserError(f"{root} holds no usable recordings\n{format_skipped(root, faults)}".rstrip())
    lengths = {p: Resampler(examined[p].rate, sample_rate).length(examined[p].frames) for p in usable}
    shuffled = [usable[i] for i in np.random.default_rng(0).permutation(len(usable))]
    held_out = are_held_out(path_hashes([os.fsencode(path) for path in shuffled]), validation_share)
    if len(usable) == 1:
        held_out[:] = False

    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), place)
        progress = tqdm(total=sum(lengths.values()) / sample_rate / 3600, unit="h", desc=f"Packing {root}", delay=2.0)
        with progress, ThreadPoolExecutor(os.cpu_count()) as pool:
            for held in (False, True):
                chosen = [path for path, is_held in zip(shuffled, held_out, strict=True) if is_held == held]
                pieces = cut(chosen, lengths, round(PIECE_SECONDS * sample_rate))
                while group := list(islice(pieces, GROUP)):
                    for piece, data in zip(group, pool.map(lambda p: encode(root, p, sample_rate), group), strict=True):
                        progress.update(piece.length / sample_rate / 3600)
                        if isinstance(data, str):
                            faults |= {piece.path: data} if data != SILENT else {}
                        else:
                            writer.add(data, piece.length, held)
                writer.close_chunk(held)
        index = writer.index() | {"version": VERSION, "sample_rate": sample_rate}
        index["fault_path"] = np.array([os.fsencode(path) for path in faults] or [b""])
        index["fault_reason"] = np.array([os.fsencode(reason) for reason in faults.values()] or [b""])
        np.savez_compressed(Path(folder, INDEX), **index)
        place.put(Path(folder, INDEX), INDEX)
    hours = index["lengths"].sum() / sample_rate / 3600
    size = index["chunk_size"].sum() / 1e6
    said = (
        f"{output}: {hours:,.2f} h of {len(usable):,} recordings in {len(index['chunk_size']):,} chunks, {size:,.1f} MB"
    )
    return f"{said}; {len(faults)} bad files left out\n{format_skipped(root, faults)}" if faults else said


def cut(paths: list[str], lengths: dict[str, int], longest: int) -> Iterator[Piece]:
    """Equal pieces of each recording, none longer than ``longest`` samples."""
    for path in paths:
        ends = np.linspace(0, lengths[path], -(-lengths[path] // longest) + 1).round().astype(int).tolist()
        yield from (Piece(path, start, end - start) for start, end in pairwise(ends))


def encode(root: Path, piece: Piece, sample_rate: int) -> bytes | str:
    """A piece as FLAC of 16 bits, or why it is left out. What exceeds full scale is scaled down to it."""
    try:
        signal = read_crop(os.path.join(root, piece.path), piece.start, piece.length, sample_rate)
    except BadAudio as error:
        return str(error)
    if len(signal) < piece.length:
        return "it ends sooner than when it was indexed"
    if not is_active(signal):
        return SILENT
    data = io.BytesIO()
    scaled = (signal * (2**15 / max(1.0, float(signal.abs().max())))).round().clamp(max=2**15 - 1)
    soundfile.write(data, scaled.numpy().astype(np.int16), sample_rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


class Writer:
    """Appends pieces to tar archives of about ``CHUNK_BYTES``, and moves those to their place."""

    def __init__(self, folder: Path, place: LocalFolder | Bucket) -> None:
        self.folder, self.place = folder, place
        self.rows: list[tuple[int, int, int, int, int]] = []  # of the pieces: the columns of ``index``
        self.chunks: list[tuple[bytes, int, bytes, bool]] = []
        self.archive: tarfile.TarFile | None = None

    def add(self, data: bytes, length: int, held_out: bool) -> None:
        """Append a piece of ``length`` samples; ``held_out`` pieces and others do not share a chunk."""
        name = f"chunk-{len(self.chunks):06}.tar"
        if self.archive is None:
            self.archive = tarfile.open(self.folder / name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        member = tarfile.TarInfo(f"{len(self.rows):09}.flac")
        member.size = len(data)
        offset = self.archive.offset + HEADER
        self.archive.addfile(member, io.BytesIO(data))
        self.rows.append((len(self.chunks), offset, len(data), zlib.crc32(data), length))
        if self.archive.offset >= CHUNK_BYTES:
            self.close_chunk(held_out)

    def close_chunk(self, held_out: bool) -> None:
        """Put the chunk that is open, if any, to its place."""
        if self.archive is None:
            return
        self.archive.close()
        self.archive = None
        path = self.folder / f"chunk-{len(self.chunks):06}.tar"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.chunks.append((path.name.encode(), path.stat().st_size, digest.encode(), held_out))
        self.place.put(path, path.name)

    def index(self) -> dict[str, Any]:
        """The columns of pieces and of chunks."""
        if not self.rows:
            raise UserError("no recording could be read: nothing is written")
        types = {"chunk": np.int32, "offset": np.int64, "size": np.int32, "checksum": np.uint32, "lengths": np.int32}
        columns = zip(types.items(), zip(*self.rows, strict=True), strict=True)
        index: dict[str, Any] = {name: np.array(column, dtype) for (name, dtype), column in columns}
        names = ("chunk_name", "chunk_size", "chunk_hash", "chunk_held_out")
        return index | dict(zip(names, map(np.array, zip(*self.chunks, strict=True)), strict=True))
