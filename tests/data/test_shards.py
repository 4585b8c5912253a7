"""Shards: what is packed, the order of the crops, and an S3 server that is slow, dies and damages. Axes: B T."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from surf_lightning.audio.storage import Chunks, LocalFolder
from surf_lightning.cli import main
from surf_lightning.data import Folder, Shards, shard_writer
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from tests.audio.trees import RATE, broken, noise, write
from tests.test_configs import arguments

SECONDS = 0.25  # of a crop


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shard_writer, "CHUNK_BYTES", 100_000)  # two or three recordings of a second
    monkeypatch.setattr(shard_writer, "PIECE_SECONDS", 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """20 of 1 s, one of 2.5 s at another rate."""
    root = tmp_path / "recordings"
    for number in range(20):
        write(root / f"{number}.wav", noise(1.0, number))
    write(root / "long.flac", noise(2.5, 99, 44100, 2), 44100)
    return root


def pack(root: Path, output: Any, **options: Any) -> str:
    return shard_writer.write_shards(root, str(output), RATE, **{"validation_share": 0.2, **options})


def shards(root: Any, **options: Any) -> Shards:
    return Shards(str(root), **{"crop_seconds": SECONDS, "window": 2, "batch_size": 4, "cache_gb": 0.001, **options})


def train(data: Shards) -> Any:
    return data.training_batches(Ranks())


def drawn(data: Shards, batches: range, rank: int = 0, world: int = 1) -> Tensor:
    crops = data.training_batches(Ranks(rank, world))
    return torch.cat([crops[batch]["mixtures"] for batch in batches])


# -- packing --


def test_pieces_are_the_recordings_at_the_models_rate(recordings: Path, tmp_path: Path) -> None:
    pack(recordings, tmp_path / "shards")
    data = shards(tmp_path / "shards")
    found: list[np.ndarray] = []
    for part in ("train", "validation"):
        pieces = data.examples(part)
        found += [pieces.read(number)[0].numpy() for number in range(len(pieces))]
    assert len(found) == 20 + 3
    assert sorted(map(len, found))[:3] == [13333, 13333, 13334]
    for number in range(20):
        whole = soundfile.read(recordings / f"{number}.wav", dtype="float32")[0]
        assert any(np.array_equal(whole, piece) for piece in found)
    part = data.examples("train").read(0, 100, 50)
    assert torch.equal(part, data.examples("train").read(0)[:, 100:150])
    listed = subprocess.run(["tar", "-tf", tmp_path / "shards" / "chunk-000000.tar"], capture_output=True, text=True)
    assert "000000000.flac" in listed.stdout


def test_the_same_files_are_held_out_as_in_the_folder(recordings: Path, tmp_path: Path) -> None:
    pack(recordings, tmp_path / "shards")
    folder = Folder(str(recordings), validation_share=0.2).examples("validation")
    pieces = shards(tmp_path / "shards").examples("validation")
    expected = {folder.read(number)[0, :1000].numpy().tobytes() for number in range(len(folder))}
    found = {pieces.read(number)[0, :1000].numpy().tobytes() for number in range(len(pieces))}
    assert len(expected - found) <= 1  # of the long one, resampled, the first samples may round otherwise


def test_bad_files_are_named_and_left_out(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken(recordings / "bad")
    assert main(["shard", str(recordings), "--output", "shards"]) == 0
    said = capsys.readouterr().out
    assert "16 bad files left out" in said
    assert "bad/truncated.flac: " in said
    with np.load("shards/index.npz") as index:
        assert len(index["fault_path"]) == 16
    assert main(["shard", str(recordings), "--output", "shards"]) == 2
    assert "holds shards already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [({"root": "nowhere"}, "holds no shards"), ({"sample_rate": 8000}, "--data.sample_rate 16000")],
)
def test_mistakes(change: dict[str, Any], words: str, recordings: Path) -> None:
    pack(recordings, "shards")
    with pytest.raises(UserError, match=words):
        shards(**{"root": "shards", **change}).examples("train")
    with pytest.raises(UserError, match="no usable recordings"):
        pack(Path("shards"), "others")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("chunk_name", b"../secret.tar", "is no file of its own"),
        ("chunk_name", b"/root/secret.tar", "is no file of its own"),
        ("chunk_name", b".bashrc", "is no file of its own"),
        ("chunk", 99, "out of bounds"),
        ("chunk", -1, "do not lie in its chunks"),
        ("offset", 1 << 62, "do not lie in its chunks"),
        ("size", -5, "do not lie in its chunks"),
        ("lengths", np.zeros(3, int), "unequal lengths"),
        ("lengths", np.zeros((3, 3), int), "unequal lengths"),
        ("lengths", np.array([{}]), "allow_pickle=False"),
        ("chunk_size", np.zeros(10**7), "unfolds to more than"),
        ("chunk_held_out", None, "chunk_held_out"),
    ],
)
def test_an_index_of_a_stranger_leads_nowhere(column: str, value: Any, words: str, recordings: Path) -> None:
    pack(recordings, "shards")
    with np.load("shards/index.npz") as file:
        index = dict(file)
    if isinstance(value, int | bytes):
        changed = index[column].astype("S40" if isinstance(value, bytes) else np.int64)
        changed[0] = value
        value = changed
    index[column] = value
    if value is None:
        del index[column]
    np.savez_compressed("shards/index.npz", **index)
    with pytest.raises(UserError, match=words):
        shards("shards").examples("train")


def test_a_cut_index_is_named(recordings: Path) -> None:
    pack(recordings, "shards")
    index = Path("shards/index.npz")
    index.write_bytes(index.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"^shards/index\.npz is damaged, or no index of shards \("):
        shards("shards").examples("train")


# -- the order --


def test_batches_are_a_function_of_their_number_for_any_ranks_and_workers(recordings: Path) -> None:
    pack(recordings, "shards")
    one = drawn(shards("shards", batch_size=8), range(6)).unflatten(0, (6, 8))
    two = [drawn(shards("shards", batch_size=4), range(6), rank, 2).unflatten(0, (6, 4)) for rank in (0, 1)]
    assert torch.equal(one, torch.cat(two, 1))
    assert torch.equal(drawn(shards("shards", batch_size=8), range(5, 6)), one[5])  # resumed there
    loader = DataLoader(train(shards("shards", batch_size=8)), batch_size=None, sampler=range(6), num_workers=2)
    assert torch.equal(torch.stack([batch["mixtures"] for batch in loader]), one)
    assert not torch.equal(drawn(shards("shards", batch_size=8, seed=1), range(6)), one.flatten(0, 1))


def test_a_round_visits_all_by_their_length_and_few_chunks_at_a_time(recordings: Path) -> None:
    pack(recordings, "shards")
    crops = train(shards("shards"))
    length = len(crops.visits)
    pieces = crops.pieces
    rounds = [[crops._visited(number * length + place) for place in range(length)] for number in range(2)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(crops.visits.tolist())
    assert rounds[0] != rounds[1]
    chunks = [list(dict.fromkeys(pieces.chunk[each].tolist())) for each in rounds]
    assert len(chunks[0]) > 4
    for visited, order in zip(rounds, chunks, strict=True):
        of = [order.index(chunk) // 2 for chunk in pieces.chunk[visited].tolist()]
        assert of == sorted(of)  # a window of two chunks is done before the next begins
    assert chunks[0] != chunks[1]


def test_a_damaged_piece_is_named_skipped_and_counted(recordings: Path) -> None:
    pack(recordings, "shards")
    before = drawn(shards("shards"), range(30))
    pieces: Any = shards("shards").examples("train")
    path = Path("shards", pieces.chunks.names[int(pieces.chunk[3])])
    data = bytearray(path.read_bytes())
    data[int(pieces.offset[3]) + 200] ^= 1
    path.write_bytes(data)
    crops = train(shards("shards"))
    with pytest.warns(UserWarning, match=f"{path}: damaged at byte {pieces.offset[3]}") as said:
        after = torch.cat([crops[batch]["mixtures"] for batch in range(30)])
    assert len(said) == 1
    assert crops.failed.nonzero().flatten().tolist() == [3]
    others = (before == after).all(1)
    assert 0.7 < others.float().mean() < 1
    assert after.square().mean(1).min() > 0


def test_fit_trains_on_them(recordings: Path) -> None:
    pack(recordings, "shards")
    args = [*arguments("folder_mixit", recordings.parent), "--data", "Shards", "--data.root", "shards"]
    assert main([*args, "--data.window", "2"]) == 0
    assert Path("runs/folder_mixit/checkpoints/last.ckpt").is_file()


# -- S3 --

needs_server = pytest.mark.skipif(
    find_spec("moto") is None or find_spec("boto3") is None, reason="moto[server] and boto3 are not installed"
)


class Server:
    """A process that serves S3 from this machine, and a door before it that can be slow or shut.

    The server holds its objects in memory: a server that dies is a door that closes amid the answers it was giving.
    """

    def __init__(self) -> None:
        self.bytes_per_second = float("inf")
        self.sent = 0
        self.open, self.connections = True, list[socket.socket]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.behind = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-p", str(self.behind)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def make_bucket(self) -> None:
        """Wait for the server first."""
        import boto3

        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.behind)).close()
                break
            except OSError:
                time.sleep(0.1)
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.behind}").create_bucket(Bucket="sounds")

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.door.accept()
            except OSError:
                return
            if not self.open:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.behind))
            self.connections += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(8192):
                self.sent += len(data)
                time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)
        except OSError:
            pass
        source.close()
        target.close()

    def die(self) -> None:
        self.open = False
        for connection in self.connections:
            with suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)  # wakes who waits for it; closing alone would not
            connection.close()
        self.connections.clear()

    def close(self) -> None:
        self.door.close()
        self.die()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_ENDPOINT_URL", started.url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        started.make_bucket()
        yield started
    started.close()


@pytest.fixture
def stored(server: Server, recordings: Path, tmp_path: Path) -> str:
    """The same shards in the folder ``shards`` and on the server."""
    import boto3

    server.open, server.bytes_per_second = True, float("inf")
    url = f"s3://sounds/{tmp_path.name}"
    pack(recordings, url)
    pack(recordings, "shards")
    names = boto3.client("s3").list_objects_v2(Bucket="sounds", Prefix=f"{tmp_path.name}/")["Contents"]
    assert {Path(each["Key"]).name for each in names} == set(os.listdir("shards"))
    return url


def kept(cache: Path) -> int:
    """Bytes of the chunks in ``cache``, from which one that was fetched ahead may still push others out."""
    total = 0
    for path in cache.glob("*.tar"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@needs_server
def test_from_s3_come_the_same_batches_through_a_cache_of_bounded_size(stored: str) -> None:
    data = shards(stored, window=1, cache_gb=0.0004)  # three chunks, where a round has more
    expected = drawn(shards("shards", window=1), range(60))
    assert torch.equal(drawn(data, range(60)), expected)
    assert 0 < kept(data.cache) <= 400_000
    with pytest.raises(UserError, match=r"cache_gb 0.0001 is too little"):
        shards(stored, cache_gb=0.0001).examples("train")


@needs_server
def test_a_round_fetches_each_chunk_once(stored: str, server: Server) -> None:
    data = shards(stored, batch_size=1)
    crops = train(data)
    size = sum(data.index["chunk_size"][crops.numbers].tolist())
    before = server.sent
    for position in range(len(crops.visits)):
        crops.draw(position)
    assert 1 < (server.sent - before) / size < 1.2


@needs_server
def test_a_server_that_is_slow_and_dies_amid_an_answer_changes_no_batch(stored: str, server: Server) -> None:
    expected = drawn(shards("shards"), range(60))
    server.bytes_per_second = 400_000.0

    def restart() -> None:
        time.sleep(0.5)
        server.die()
        time.sleep(1.5)
        server.open, server.bytes_per_second = True, float("inf")

    threading.Thread(target=restart).start()
    assert torch.equal(drawn(shards(stored), range(60)), expected)
    assert server.open


@needs_server
def test_a_damaged_chunk_is_named_skipped_and_counted(stored: str) -> None:
    import boto3

    bucket, _, folder = stored.removeprefix("s3://").partition("/")
    key = f"{folder}/chunk-000001.tar"
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"not what it was")
    crops = train(shards(stored, max_bad_share=0.5))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        batches = torch.cat([crops[batch]["mixtures"] for batch in range(30)])
    assert [str(each.message) for each in said if "hash" in str(each.message)] == [
        f"{stored}/chunk-000001.tar: its hash is not that of the index. Other crops replace those of this file."
    ]
    assert crops.failed.sum() == (crops.pieces.chunk == 1).sum() > 1
    assert batches.square().mean(1).min() > 0
    warnings.simplefilter("ignore")
    with pytest.raises(UserError, match="cannot be read now"):
        drawn(shards(stored, max_bad_share=0.0, cache="other"), range(30))


@needs_server
def test_without_a_server_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surf_lightning.audio.storage.ATTEMPTS", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached"):
        shards("s3://sounds/nothing").examples("train")


def test_chunks_that_are_missing_are_bad(tmp_path: Path) -> None:
    chunks = Chunks(str(tmp_path), ["a.tar"], [1], [""], tmp_path, 1)
    with pytest.raises(ValueError, match=r"a.tar: missing"):
        chunks.read(0, 0, 1)


def test_a_set_that_was_made_again_is_not_read_from_the_old_ones_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("surf_lightning.audio.storage.storage", lambda _: LocalFolder(tmp_path))
    for content in (b"old", b"new"):
        Path(tmp_path, "a.tar").write_bytes(content)
        chunks = Chunks("s3://b/f", ["a.tar"], [3], [hashlib.sha256(content).hexdigest()], tmp_path / "cache", 1000)
        assert chunks.read(0, 0, 3) == content
    with pytest.raises(UserError, match="no file of its own"):
        Chunks("s3://b/f", ["a.tar"], [3], ["../../secret"], tmp_path / "cache", 1000)
