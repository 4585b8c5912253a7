"""Which folder a run has, and which of its checkpoints a command takes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from surf_lightning.engine import run_folder
from surf_lightning.engine.checkpoint_io import AtomicCheckpointIO
from surf_lightning.engine.run_folder import (
    checkpoint,
    checkpoint_to_continue,
    claimed,
    default_folder,
    move_aside,
    trained_checkpoint,
)
from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import KEY


def run(path: str, *parts: str) -> Path:
    folder = Path(path)
    for part in parts:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(path)
    return folder


LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
FORK = multiprocessing.get_context("fork")  # a process that has imported everything already


@pytest.mark.parametrize(
    ("name", "config", "folder"),
    [
        (None, "configs/digits_mixit.yaml", "runs/digits_mixit"),
        (None, "/some/where/else.v2.yaml", "runs/else.v2"),
        ("mine", "configs/digits_mixit.yaml", "runs/mine"),
        ("mine", None, "runs/mine"),
    ],
)
def test_a_run_is_named_after_its_first_config(name: str | None, config: str | None, folder: str) -> None:
    assert default_folder(name, config) == Path(folder)
    with pytest.raises(UserError, match=r"--config digits_mixit.*--name"):
        default_folder(None, None)


@pytest.mark.parametrize("part", [LAST, "config.yaml", "metrics.csv"])
def test_a_fresh_fit_moves_earlier_runs_aside_and_loses_none(part: str, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        run("runs/a", part).joinpath(part).write_text(str(number))
        move_aside(Path("runs/a"))
        assert not Path("runs/a").exists()
    assert [Path(f"runs/a.{number + 1}", part).read_text() for number in range(3)] == ["0", "1", "2"]
    run("runs/a", part)
    with caplog.at_level("INFO"):
        move_aside(Path("runs/a"))
    assert "runs/a holds an earlier run: moved to runs/a.4" in caplog.text


def test_a_run_moved_aside_comes_back_unless_the_fresh_one_has_left_something() -> None:
    for left, comes_back in (("config.yaml", True), ("wandb_id", True), ("metrics.csv", False), (LAST, False)):
        run("runs/a", LAST).joinpath(LAST).write_text("the earlier one")
        with pytest.raises(UserError), claimed(Path("runs/a"), fresh=True):
            checkpoint_to_continue(run("runs/a", left), "none.ckpt")  # something that fails
        assert Path("runs/a" if comes_back else "runs/a.1", LAST).read_text() == "the earlier one"
        assert not Path("runs/a", "wandb_id").exists()
        shutil.rmtree("runs")
    for folder, stays in ((run("runs/b", "config.yaml"), True), (Path("runs/new"), False)):
        with pytest.raises(UserError), claimed(folder, fresh=False):
            checkpoint_to_continue(folder, "none.ckpt")
        assert folder.exists() == stays


def hold(begun: Connection, seconds: float) -> None:
    with claimed(Path("runs/a"), fresh=False):
        begun.send(os.getpid())
        time.sleep(seconds)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_belongs_to_one_fit(fresh: bool) -> None:
    run("runs/a", LAST)
    here, there = FORK.Pipe()
    other = FORK.Process(target=hold, args=(there, 20))
    other.start()
    holder = here.recv()
    said = rf"a fit is running in runs/a \(process {holder} on"
    with pytest.raises(UserError, match=said), claimed(Path("runs/a"), fresh):
        pass
    assert Path("runs/a", LAST).exists()
    other.kill()
    other.join()
    with claimed(Path("runs/a"), fresh):
        assert Path("runs/a.1" if fresh else "runs/a", LAST).exists()


def test_of_two_fits_that_begin_at_once_one_leaves_the_others_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that there was no folder yet."""
    with claimed(Path("runs/a"), fresh=True), monkeypatch.context() as patched:
        Path("runs/a/wandb_id").write_text("mine")
        patched.setattr(Path, "exists", lambda path: False)
        with pytest.raises(UserError, match="a fit is running"), claimed(Path("runs/a"), fresh=True):
            pass
        assert os.listdir("runs") == ["a"]
        assert Path("runs/a/wandb_id").read_text() == "mine"


def leave_a_worker(begun: Connection) -> None:
    with claimed(Path("runs/a"), fresh=False):
        worker = FORK.Process(target=time.sleep, args=(20,))
        worker.start()
        begun.send(worker.pid)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_outlives_its_fit_holds_nothing() -> None:
    """Killed, a fit leaves its loader's workers for some seconds."""
    here, there = FORK.Pipe()
    killed = FORK.Process(target=leave_a_worker, args=(there,))
    killed.start()
    worker = here.recv()
    killed.join()
    with claimed(Path("runs/a"), fresh=False):
        os.kill(worker, signal.SIGKILL)  # it has been there all the time


def test_a_lock_held_elsewhere_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A network's disk may hold the lock of a machine that is gone for a while."""
    monkeypatch.setattr(run_folder, "LEASE", 1.5)
    with claimed(Path("runs/a"), fresh=False):
        with monkeypatch.context() as patched, caplog.at_level("INFO"):
            patched.setattr(run_folder.platform, "node", lambda: "elsewhere")
            began = time.monotonic()
            with pytest.raises(UserError, match="a fit is running"), claimed(Path("runs/a"), fresh=False):
                pass
            assert time.monotonic() - began >= 1.5
        assert f"Waiting up to 2 s for process {os.getpid()} on" in caplog.text
        began = time.monotonic()
        with pytest.raises(UserError, match="a fit is running"), claimed(Path("runs/a"), fresh=False):
            pass
        assert time.monotonic() - began < 1, "on the same machine nothing is to be waited for"


def test_a_lock_that_is_released_while_it_is_waited_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = FORK.Pipe()
    other = FORK.Process(target=hold, args=(there, 1))
    other.start()
    here.recv()
    monkeypatch.setattr(run_folder.platform, "node", lambda: "elsewhere")
    with claimed(Path("runs/a"), fresh=False):
        assert Path("runs/a", run_folder.LOCK).read_text() == f"process {os.getpid()} on elsewhere"
    other.join()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_hindrance(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(run("runs/a", LAST), fresh=True):
        assert Path("runs/a.1", LAST).is_file()
    with pytest.raises(NotADirectoryError), claimed(Path("runs/a.1", LAST, "run"), fresh=False):
        pass


def test_what_is_no_run_stays() -> None:
    folder = run("runs/a", "notes.txt")
    move_aside(folder)
    assert (folder / "notes.txt").is_file()
    move_aside(Path("runs/new"))
    assert {path.name for path in Path("runs").iterdir()} == {"a"}


RECORD = {"version": "0", "method": "MixIT", "separator": {}, "signal": {"kind": "image", "shape": [1, 8, 8]}}


def written(folder: Path, *names: str) -> Path:
    """Checkpoints, each a second newer than the one before."""
    content = {KEY: RECORD, "state_dict": {"weight": torch.ones(300)}}
    for age, name in enumerate(names):
        AtomicCheckpointIO(Path()).save_checkpoint(content, folder / name)
        os.utime(folder / name, (age, age))
    return folder


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "a byte of its weights": lambda data: data.replace(b"\x80\x3f", b"\x81\x3f", 1),
    "a bit of its hash": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_in_place_of_an_unreadable_checkpoint_the_newest_readable_is_taken_and_said(
    damage: Callable[[bytes], bytes],
) -> None:
    names = [f"checkpoints/{name}.ckpt" for name in ("best", "step_0000020", "step_0000030", "last")]
    folder = written(Path("runs/a"), *names)
    for name in reversed(names[2:]):
        path = folder / name
        path.write_bytes(damage(path.read_bytes()))
    said = r"last\.ckpt is no .*step_0000030\.ckpt is no .*goes on from .*step_0000020\.ckpt"
    with pytest.warns(UserWarning, match=said):
        assert checkpoint_to_continue(folder, "last") == str(folder / names[1])
    for name in names[:2]:
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*last\.ckpt.*best\.ckpt is no checkpoint"):
        checkpoint_to_continue(folder, "last")


def test_a_run_without_its_last_checkpoint_does_not_begin_anew() -> None:
    folder = written(Path("runs/a"), BEST)
    with pytest.warns(UserWarning, match=r"no checkpoint runs/a/checkpoints/last\.ckpt.* goes on from .*best\.ckpt"):
        assert checkpoint_to_continue(folder, "last") == str(folder / BEST)
    (folder / BEST).rename("elsewhere.ckpt")
    (folder / LAST).symlink_to("gone.ckpt")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        checkpoint_to_continue(folder, "last")


def test_a_diverged_checkpoint_is_passed_over() -> None:
    folder = written(Path("runs/a"), BEST)
    broken = {KEY: RECORD, "state_dict": {"weight": torch.tensor([1.0, float("nan")])}}
    AtomicCheckpointIO(Path()).save_checkpoint(broken, folder / LAST)
    with pytest.warns(UserWarning, match=r"last\.ckpt holds NaN or infinity.* goes on from"):
        assert checkpoint_to_continue(folder, "last") == str(folder / BEST)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_fit_goes_on_from_its_own_checkpoint_in_the_same_folder(name: str) -> None:
    folder = written(run("runs/a", "metrics.csv"), LAST, BEST)
    assert checkpoint_to_continue(folder, name) == str(checkpoint(folder, name)) == f"runs/a/checkpoints/{name}.ckpt"
    assert (folder / "metrics.csv").is_file()
    assert not Path("runs/a.1").exists()


def test_the_command_that_restarts_a_run_also_starts_it(caplog: pytest.LogCaptureFixture) -> None:
    folder = run("runs/a", "metrics.csv")  # died before its first checkpoint
    with caplog.at_level("INFO"):
        assert checkpoint_to_continue(folder, "last") is None
    assert "no runs/a/checkpoints/last.ckpt to continue from: training starts from the beginning" in caplog.text
    assert (folder / "metrics.csv").is_file()
    assert checkpoint_to_continue(folder, None) is None


def test_a_fit_goes_on_from_any_checkpoint_that_exists() -> None:
    folder = run("runs/a", LAST)
    run("elsewhere", "x.ckpt")
    assert checkpoint_to_continue(folder, "elsewhere/x.ckpt") == "elsewhere/x.ckpt"
    assert (folder / LAST).is_file()
    with pytest.raises(UserError, match=r"no checkpoint elsewhere/y\.ckpt"):
        checkpoint_to_continue(folder, "elsewhere/y.ckpt")


def test_evaluation_takes_the_best_else_the_last_checkpoint() -> None:
    folder = run("runs/a", LAST)
    assert trained_checkpoint(folder, None) == f"runs/a/{LAST}"
    run("runs/a", BEST)
    assert trained_checkpoint(folder, None) == trained_checkpoint(folder, "best") == f"runs/a/{BEST}"
    assert trained_checkpoint(folder, "last") == f"runs/a/{LAST}"
    run("elsewhere", "x.ckpt")
    assert trained_checkpoint(folder, "elsewhere/x.ckpt") == "elsewhere/x.ckpt"


@pytest.mark.parametrize("given", [None, "best", "last", "no.ckpt"])
def test_evaluation_of_an_untrained_run_is_refused(given: str | None) -> None:
    run("runs/a", "checkpoints/.last.ckpt.partial")
    with pytest.raises(UserError, match="there is no checkpoint"):
        trained_checkpoint(Path("runs/a"), given)
