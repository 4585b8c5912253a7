"""Recordings in chunks, on a disk or in object storage. Axes: N pieces, C chunks, T samples."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from surf_lightning.audio.files import BadAudio, read_frames
from surf_lightning.audio.index import most_skipped
from surf_lightning.audio.storage import BadChunk, Chunks, storage
from surf_lightning.data.audio import AudioMixtures, Part
from surf_lightning.data.audio_examples import RandomCrops, Readable
from surf_lightning.errors import UserError, first_line
from surf_lightning.functional.randomness import mix_seed

INDEX = "index.npz"
VERSION = 1  # of the index
COLUMNS = ("chunk", "offset", "size", "checksum", "lengths")  # of the pieces
CHUNKS = ("chunk_name", "chunk_size", "chunk_hash", "chunk_held_out")  # columns of the chunks
UNFOLDS = 100  # times the size of the file: what the columns that are read may grow to at most


def read_index(path: Path) -> dict[str, np.ndarray]:
    """The columns of an index, which a stranger may have written: its numbers lead to no place outside the chunks.

    Raises:
        Exception: of any type; it is no such index.
    """
    wanted = ("version", "sample_rate", *COLUMNS, *CHUNKS)
    with zipfile.ZipFile(path) as archive:
        if sum(archive.getinfo(f"{name}.npy").file_size for name in wanted) > UNFOLDS * path.stat().st_size:
            raise ValueError(f"it unfolds to more than {UNFOLDS} times its size")
    with np.load(path, allow_pickle=False) as file:
        index = {name: file[name] for name in wanted}
    ends = index["offset"].astype(np.int64) + index["size"]
    lengths = [{index[name].shape for name in names} for names in (COLUMNS, CHUNKS)]
    if [len(shape) for each in lengths for shape in each] != [1, 1] or not len(ends):
        raise ValueError("its columns are of unequal lengths")
    if min(index[name].min() for name in COLUMNS) < 0 or not (ends <= index["chunk_size"][index["chunk"]]).all():
        raise ValueError("its pieces do not lie in its chunks")
    return index


@dataclass(frozen=True)
class Pieces(Readable):
    """The pieces of some chunks, in their order.

    Columns ``[N]``: ``chunk`` its number, ``offset`` and ``size`` in bytes, ``checksum`` (CRC-32) and ``lengths`` in
    samples at ``sample_rate``. ``checked [N]``: which checksums a process has compared, known to all workers.
    """

    chunks: Chunks
    chunk: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    checksum: np.ndarray
    window: int
    checked: Tensor = field(init=False)
    columns = COLUMNS

    def __post_init__(self) -> None:
        object.__setattr__(self, "checked", torch.zeros(len(self), dtype=torch.bool).share_memory_())

    def path(self, example: int) -> str:
        """The chunk of a piece, and the piece's first byte in it."""
        return f"{self.root}/{self.chunks.names[int(self.chunk[example])]} at byte {self.offset[example]}"

    def read(self, example: int, start: int = 0, count: int | None = None) -> Tensor:
        chunk, offset = int(self.chunk[example]), int(self.offset[example])
        data = self.chunks.read(chunk, offset, int(self.size[example]))
        if not self.checked[example]:  # a long piece is read for many crops, and a checksum takes a tenth of the time
            if zlib.crc32(data) != int(self.checksum[example]):
                raise BadAudio(f"{self.root}/{self.chunks.names[chunk]}: damaged at byte {offset}")
            self.checked[example] = True
        count = int(self.lengths[example]) - start if count is None else count
        signal = torch.zeros(1, count)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            part = read_frames(file, start, count)
        signal[0, : len(part)] = part
        return signal


class WindowedCrops(RandomCrops):
    """Random crops in an order that stays with few chunks at a time, a function of (seed, position) all the same.

    A round visits the chunks in a new order, in windows of ``examples.window`` chunks; within a window, its pieces are
    visited in a random order, and what is silent or damaged is replaced by crops of the same window.
    """

    def __init__(self, examples: Readable, *arguments: Any, **options: Any) -> None:
        super().__init__(examples, *arguments, **options)
        assert isinstance(examples, Pieces)
        self.pieces = examples
        self.numbers, self.counts = np.unique(examples.chunk[self.visits], return_counts=True)
        self.ends = np.cumsum(self.counts)  # of the visits, which are in the order of the chunks
        self._window = (-1, -1)

    def _visited(self, position: int) -> int:
        number, place = divmod(position, len(self.visits))
        first = self._enter(number, place)
        return int(self._order[place - first])

    def _instead(self, position: int, generator: torch.Generator) -> int:
        self._enter(*divmod(position, len(self.visits)))
        return int(self._order[int(torch.randint(len(self._order), (), generator=generator))])

    def _enter(self, number: int, place: int) -> int:
        """Make ``_order`` the visits of the window around a round's ``place``; returns the window's first place."""
        if number != self._round:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, number, 1))
            self._chunks = torch.randperm(len(self.counts), generator=generator).numpy()
            self._places = np.cumsum(self.counts[self._chunks])  # where each chunk of the round ends
            self._round = number
        window = int(np.searchsorted(self._places, place, side="right")) // self.pieces.window
        if (number, window) != self._window:
            self._window = number, window
            chunks = self._in_window(window)
            generator = torch.Generator().manual_seed(mix_seed(self.seed, number, 2, window))
            visits = np.concatenate([self.visits[self.ends[c] - self.counts[c] : self.ends[c]] for c in chunks])
            self._order = torch.from_numpy(visits)[torch.randperm(len(visits), generator=generator)]
            self.pieces.chunks.prefetch([int(self.numbers[c]) for c in (*chunks, *self._in_window(window + 1))])
        first = window * self.pieces.window
        return int(self._places[first - 1]) if first else 0

    def _in_window(self, window: int) -> np.ndarray:
        return self._chunks[window * self.pieces.window : (window + 1) * self.pieces.window]

    def _report(self, example: int, error: BadAudio) -> None:
        super()._report(example, error)
        if isinstance(error, BadChunk):  # said once, counted as all of its pieces
            self.failed |= torch.from_numpy(self.pieces.chunk == self.pieces.chunk[example])


class Shards(AudioMixtures):
    """What ``surf shard`` made of a folder of recordings: pieces of up to a minute, in chunks.

    A training batch is a function of (seed, batch number) for any number of processes, and touches few chunks.

    Args:
        root: a folder, or s3://BUCKET/FOLDER of any storage that speaks S3 (AWS_ENDPOINT_URL names its address).
        window: so many chunks are mixed with one another at a time.
        cache: the folder in which all processes of a machine keep what they fetched; by default in the user's cache.
        cache_gb: its size at most.
        num_sources: as of ``Folder``.
        sample_rate: in Hz; by default that of the shards.
        options: the arguments of ``AudioMixtures``.
    """

    monitor = "val/momi"
    crops = WindowedCrops

    def __init__(
        self,
        root: str = "data/shards",
        window: int = 8,
        cache: str | None = None,
        cache_gb: float = 16.0,
        num_sources: int | None = None,
        sample_rate: int | None = None,
        **options: Any,
    ) -> None:
        if window < 1 or cache_gb <= 0:
            raise ValueError(f"window ({window}) must be at least 1, cache_gb ({cache_gb}) positive")
        self.root, self.window, self.cache_gb = root.rstrip("/"), window, cache_gb
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "surf-lightning")
        # Absolute: a thread fetches, whatever the current folder is by then.
        self.cache = Path(cache or usual / f"shards-{hashlib.sha256(self.root.encode()).hexdigest()[:16]}").absolute()
        super().__init__(sample_rate=sample_rate or int(self.index["sample_rate"]), **options)
        self.num_sources = num_sources

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """The columns that ``write_shards`` wrote; raises UserError where there are none, or others."""
        place = storage(self.root)
        if not place.has(INDEX):
            raise UserError(f"{self.root} holds no shards ({INDEX}): surf shard FOLDER --output {self.root} makes them")
        with tempfile.TemporaryDirectory() as folder:
            place.get(INDEX, Path(folder, INDEX))
            try:
                index = read_index(Path(folder, INDEX))
            except Exception as error:  # of any type: the file may be anything
                said = f"{self.root}/{INDEX} is damaged, or no index of shards ({first_line(error)})"
                raise UserError(said) from error
        if index["version"] != VERSION:
            raise UserError(f"{self.root} was written by another version of surf shard: make the shards again")
        return index

    def load(self, part: Part) -> Readable:
        if part == "test":
            raise UserError(f"{self.root} has no true sources to test against: see its held-out loss, surf validate")
        index = self.index
        if (rate := int(index["sample_rate"])) != self.sample_rate:
            raise UserError(f"{self.root} holds audio at {rate} Hz: train at that, --data.sample_rate {rate}")
        held_out = index["chunk_held_out"][index["chunk"]] == (part == "validation")
        if not held_out.any():
            rank_zero_warn(f"{self.root} holds one recording: it is both trained and validated on")
            held_out[:] = True
        columns = {name: index[name][held_out] for name in COLUMNS}
        failures = most_skipped(self.max_bad_share, held_out.sum())
        return Pieces(self.root, failures_left=failures, chunks=self._chunks(), window=self.window, **columns)

    def _chunks(self) -> Chunks:
        names, hashes = (
            [os.fsdecode(text) for text in self.index[key].tolist()] for key in ("chunk_name", "chunk_hash")
        )
        sizes = self.index["chunk_size"].tolist()
        # The window in use, the one that is fetched meanwhile, and one of the held-out recordings.
        least, limit = 3 * self.window * max(sizes), round(self.cache_gb * 1e9)
        if self.root.startswith("s3://") and min(least, sum(sizes)) > limit:
            raise UserError(
                f"data.cache_gb {self.cache_gb:g} is too little for windows of {self.window} chunks: give it "
                f"{least / 1e9:.1f}, or make data.window smaller"
            )
        return Chunks(self.root, names, sizes, hashes, self.cache, limit)
