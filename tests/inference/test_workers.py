"""Several processes on one output folder: who claims what, who is alive, and what kills leave."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from surf_lightning.cli import main
from surf_lightning.inference import separation_run, workers
from surf_lightning.inference.journal import Journal
from surf_lightning.inference.workers import Worker
from tests.inference.test_separate import files, made, manifest, read, record, summary

LOG = Path("published.txt")
pytestmark = pytest.mark.usefixtures("toy")


def start(run: Callable[[], object]) -> int:
    """A process of its own, silent; returns its number."""
    if child := os.fork():
        return child
    tqdm.set_lock(threading.RLock())  # its own is shared by all forks, of which one may be killed while it holds it
    with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        os._exit(int(run() or 0))  # type: ignore[call-overload]
    os._exit(9)


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def another(run: Callable[[], object]) -> Iterator[int]:
    child = start(run)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def separate(*args: str, output: str = "out") -> int:
    return main(["separate", "in", "--checkpoint", "a.ckpt", "--output", output, "--trust", "--device", "cpu", *args])


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file published leaves its stem in ``LOG``."""
    publish = Journal.publish

    def and_log(self: Journal, worker: Worker, stem: str, *args: Any) -> None:
        publish(self, worker, stem, *args)
        with LOG.open("a") as file:
            file.write(f"{stem}\n")

    monkeypatch.setattr(Journal, "publish", and_log)


def same_as_undisturbed(count: int) -> None:
    separate(output="whole")
    assert made() == made("whole")
    assert len(made()) == 2 * count
    for name in made():
        assert (read(f"out/{name}") == read(f"whole/{name}")).all()
    assert len(manifest()) == 2 * count
    assert not [name for name in files() if ".surf" in name or ".partial" in name]


def kill_workers(number: int, count: int, kills: int, rng: random.Random, pause: float) -> None:
    """``number`` workers on ``count`` files, one of which is killed ``kills`` times; each is followed by a new one."""
    for i in range(count):
        record(f"in/{i}.wav", 0.1 + 0.2 * rng.random())
    running = [start(lambda: separate("--resume")) for _ in range(number)]
    for _ in range(kills):
        time.sleep(rng.random() * pause)
        victim = running.pop(rng.randrange(len(running)))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        running.append(start(lambda: separate("--resume")))
    assert [status(child) for child in running] == [0] * number
    repeated = {stem: times for stem, times in Counter(LOG.read_text().split()).items() if times > 1}
    assert not repeated
    same_as_undisturbed(count)


@pytest.mark.usefixtures("logged")
def test_killed_workers_lose_nothing_and_repeat_nothing() -> None:
    kill_workers(2, 12, 3, random.Random(0), 0.3)


@pytest.mark.slow
@pytest.mark.usefixtures("logged")
def test_eight_workers_400_files_and_20_kills() -> None:
    kill_workers(8, 400, 20, random.Random(os.environ.get("TORTURE_SEED", "1")), 1.0)


def test_workers_started_here_share_the_files_and_one_manifest_is_written() -> None:
    for i in range(4):
        record(f"in/{i}.wav", 0.2)
    assert separate("--workers", "2") == 0
    assert (summary()["separated"], summary()["failed"]) == (4, [])
    same_as_undisturbed(4)


def test_tasks_of_slurm_need_no_word_more(monkeypatch: pytest.MonkeyPatch) -> None:
    record("in/a.wav", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert separate() == 0
    assert separate() == 0  # a task that begins when all is done
    assert summary()["done_before"] == 1


def test_one_who_comes_later_joins_and_waits_for_what_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        record(f"in/{name}.wav", 0.2)
    finished = separation_run.SeparationRun.finished

    def slowly(self: Any, *args: Any) -> None:
        Path("begun").touch()
        time.sleep(1.0)
        finished(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(separation_run.SeparationRun, "finished", slowly)
        patch.setattr(separation_run, "POLL", 0.05)
        with another(separate) as child:
            while not Path("begun").exists():
                time.sleep(0.01)
            patch.setattr(separation_run.SeparationRun, "finished", finished)
            assert separate() == 0  # without --resume
            assert status(child) == 0
            assert len(manifest()) == 4


def test_one_who_joins_replaces_neither_the_sources_of_another_recording_nor_what_was_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1/x", "2/x", "c"):
        record(f"in/{name}.wav", 0.2)
    finished = separation_run.SeparationRun.finished

    def slowly(self: Any, *args: Any) -> None:
        Path("begun").touch()
        time.sleep(0.3)
        finished(self, *args)
        while not Path("end").exists():
            time.sleep(0.01)

    def one(path: str) -> int:
        return main(["separate", path, "--checkpoint", "a.ckpt", "--output", "out", "--trust", "--device", "cpu"])

    with monkeypatch.context() as patch:
        patch.setattr(separation_run.SeparationRun, "finished", slowly)
        patch.setattr(separation_run, "POLL", 0.05)
        with another(lambda: one("in/1/x.wav")) as child:
            while not Path("begun").exists():
                time.sleep(0.01)
            patch.setattr(separation_run.SeparationRun, "finished", finished)
            for _ in range(2):  # while the other is at it, and after it
                assert one("in/2/x.wav") == 1
                assert "in/2/x.wav: the names of its outputs are taken by in/1/x.wav" in capsys.readouterr().out
            Path("out/c_source2.wav").write_text("mine")
            assert one("in/c.wav") == 2
            assert "there already, out/c_source2.wav for one" in capsys.readouterr().err
            Path("end").touch()
            status(child)
    assert {row["Input"] for row in manifest()} == {"in/1/x.wav"}
    assert Path("out/c_source2.wav").read_text() == "mine"


def test_another_checkpoint_at_work_in_the_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    record("in/a.wav", 0.2)
    at_work = Worker(Path("out"), {"identity": "another", "redo": True, "began": 0.0})
    assert separate() == 2
    assert "another checkpoint or other settings" in capsys.readouterr().err
    at_work.end([])
    assert separate() == 0


def test_who_ends_is_gone_before_another_may_look_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    record("in/a.wav", 0.2)
    alone, seen = Worker.alone, []

    @contextlib.contextmanager
    def watched(self: Worker) -> Iterator[None]:
        with alone(self):
            yield
        seen.append((Path("out/.surf") / f"{self.name}.jsonl").exists())

    monkeypatch.setattr(Worker, "alone", watched)
    assert separate() == 0
    assert seen == [False]


# -- claims --


def test_a_file_has_one_owner(tmp_path: Path) -> None:
    a, b = Worker(tmp_path, {}), Worker(tmp_path, {})
    assert a.take("x", lambda: False) == "mine"
    assert b.take("x", lambda: False) == "busy"
    assert b.take("x", lambda: True) == "settled"
    (claim,) = (tmp_path / ".surf" / "claims").iterdir()
    assert json.loads(claim.read_text())["process"] == os.getpid()
    assert {"host", "time", "worker"} <= json.loads(claim.read_text()).keys()
    a.end(None)  # ended, as a killed one has: its lock is free
    assert b.take("x", lambda: False) == "mine"
    b.end([a.name])
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_worker_on_another_machine_is_dead_after_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(workers, "machine", lambda: "elsewhere")
        far = Worker(tmp_path, {})
        far.take("x", lambda: False)
        far.end(None)
    near, now = Worker(tmp_path, {}), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert near.take("x", lambda: False) == "busy"
    now += workers.LEASE - 1
    assert near.take("x", lambda: False) == "busy"
    os.utime(near.journal(far.name), (5, 5))  # a sign of life, by whatever clock
    now += 2
    assert near.take("x", lambda: False) == "busy"
    now += workers.LEASE + 1
    assert near.take("x", lambda: False) == "mine"


def test_a_claim_without_a_word_in_it_holds_for_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, now = Worker(tmp_path, {}), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    worker._claim("x", 0).touch()  # its maker was killed before it wrote
    assert worker.take("x", lambda: False) == "busy"
    now += workers.LEASE + 1
    assert worker.take("x", lambda: False) == "mine"


def test_a_journal_of_a_stranger_names_nothing_outside_the_folder(tmp_path: Path) -> None:
    Path("precious.txt").write_text("mine")
    entry = {"stem": "a", "state": "done", "fingerprint": {}, "rows": []}
    lines = [{**entry, "outputs": {name: 4}} for name in ("../precious.txt", str(Path("precious.txt").absolute()))]
    odd = ["[]", "3", '{"stem": "a"}', '{"stem": 1, "state": "failed"}', json.dumps({**entry, "outputs": [1]}), "\0\0"]
    Path("out").mkdir()
    Path("out/journal.jsonl").write_text("\n".join([*map(json.dumps, lines), *odd, ""]))
    assert Journal(Path("out")).entries == {}


@pytest.mark.parametrize("way", [os.mkfifo, os.mkdir, functools.partial(os.symlink, "/dev/zero")])
def test_pipes_and_devices_in_a_strangers_folder_are_passed_over(way: Callable[[Path], None]) -> None:
    Path("out/.surf/claims").mkdir(parents=True)
    for name in ("journal.jsonl", ".surf/other.jsonl", ".surf/claims/any"):
        way(Path("out", name))
    worker = Worker(Path("out"), {})
    assert Journal(Path("out")).entries == {}
    assert worker.others() == []
    claim = worker._claim("a", 0)
    way(claim)
    assert worker.take("a", lambda: False) == "busy"  # until its lease is over
    worker.forget([worker.name])


def test_a_line_of_a_journal_that_is_too_deep_is_no_entry() -> None:
    Path("out").mkdir()
    Path("out/journal.jsonl").write_text("[" * 100_000 + "\n")
    assert Journal(Path("out")).entries == {}


def test_what_is_left_of_a_worker_killed_as_it_began_goes_with_the_last_one_and_of_a_living_one_stays() -> None:
    folder = Path("out")
    worker = Worker(folder, {})
    for name in ("killed", "living"):
        (folder / ".surf" / "work" / name).mkdir()
        (folder / ".surf" / f".{name}.partial").touch()
    with open(folder / ".surf" / ".living.partial", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        worker.end(merged=[])
    assert sorted(path.name for path in (folder / ".surf").rglob("*")) == [".living.partial", "living", "work"]
    Worker(folder, {}).end(merged=[])
    assert not (folder / ".surf").exists()


def test_who_is_killed_while_it_removes_the_traces_of_another_leaves_none_that_nobody_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed, worker = Worker(Path("out"), {}), Worker(Path("out"), {})
    (killed.work / "partial").touch()

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workers.shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            worker.forget([killed.name])
    assert worker.others() == [killed.name]
    worker.end(worker.others())
    assert not Path("out/.surf").exists()


def test_a_worker_begins_though_another_takes_the_folder_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    replace, refused = os.replace, []

    def gone(source: Path, target: Path) -> None:
        if not refused:
            refused.append(source)
            source.unlink()
        replace(source, target)

    monkeypatch.setattr(workers.os, "replace", gone)
    worker = Worker(Path("out"), {})
    assert refused
    assert worker.alive(worker.name)
    worker.end(merged=[])
    assert not Path("out/.surf").exists()
