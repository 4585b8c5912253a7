"""Where a run lies on disk, and which of its checkpoints a command takes."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from surf_lightning.errors import UserError
from surf_lightning.files import partial_path
from surf_lightning.inference.checkpoint import checkpoints_near, read_checkpoint
from surf_lightning.inference.hub import SCHEME, local_path, read_trained

CHECKPOINTS = "checkpoints"
LOCK = ".lock"
LEASE = 120.0  # seconds that a network's disk keeps the locks of a machine that is gone


def default_folder(name: str | None, config: str | None) -> Path:
    """runs/<name>, by default the name of the first --config without its ending."""
    if name is None and config is None:
        raise UserError("give a configuration, e.g. --config digits_mixit, or a --name for the run")
    return Path("runs", name or Path(str(config)).stem)


def folder_of(config: str | None) -> Path | None:
    """The folder of the run whose own configuration ``config`` is: what that says itself was true before a move."""
    path = Path(config or "")
    folder = path.parent
    if path.name != "config.yaml" or not (folder / CHECKPOINTS).is_dir():
        return None
    return folder if folder.name.strip(".") else folder.resolve()


def checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint ``name`` (last or best) of the run in ``folder``."""
    return folder / CHECKPOINTS / f"{name}.ckpt"


def checkpoint_to_continue(folder: Path, ckpt_path: str | None) -> str | None:
    """The checkpoint that a fit in ``folder`` continues from, or None for a fresh start.

    ``last`` and ``best`` mean the folder's own; where that is missing or unreadable, the newest that can be read. Where
    there is none at all, the fit starts from the beginning and says so, so that one command both starts a job and
    restarts it.

    Raises:
        UserError: ``ckpt_path`` is a path, and there is no such file; or no checkpoint of the folder can be read.
    """
    if ckpt_path is None:
        return None
    if ckpt_path not in ("last", "best"):
        if os.path.isdir(ckpt_path) or ckpt_path.startswith(SCHEME):
            raise UserError(
                f"{ckpt_path} is no checkpoint to continue from: begin with its weights by --model.initial_checkpoint"
            )
        if not os.path.isfile(ckpt_path):
            raise UserError(f"there is no checkpoint {ckpt_path} to continue from")
        return ckpt_path
    named = checkpoint(folder, ckpt_path)
    written = sorted(named.parent.glob("*.ckpt"), key=lambda path: path.lstat().st_mtime_ns, reverse=True)
    if not written:
        rank_zero_info(f"There is no {named} to continue from: training starts from the beginning.")
        return None
    return str(_readable(list(dict.fromkeys([named, *written]))))


def _readable(candidates: list[Path]) -> Path:
    """The first of the checkpoints that is whole; a warning says why it is not the very first."""
    reasons = []
    for path in candidates:
        try:
            read_checkpoint(path)
        except UserError as error:
            reasons.append(str(error))
            continue
        if reasons:
            rank_zero_warn(f"{'; '.join(reasons)}. The run goes on from {path}, the newest that can be read.")
        return path
    raise UserError(f"no checkpoint can be read: {'; '.join(reasons)}. To begin anew, leave out --ckpt_path")


def begins_run(folder: Path, ckpt_path: str | None) -> bool:
    """Whether a fit in ``folder`` goes on from no checkpoint of the run that is there, but from none or another's."""
    if ckpt_path is None or ckpt_path in ("last", "best"):
        return ckpt_path is None
    path = Path(ckpt_path)  # of which any part may be a link
    return folder.absolute() not in path.absolute().parents and folder.resolve() not in path.resolve().parents


def move_aside(folder: Path) -> Path | None:
    """Move an earlier run that is in the way of a fresh one to <folder>.1, .2, ..., and say where."""
    if not any((folder / part).exists() for part in (CHECKPOINTS, "config.yaml", "metrics.csv")):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    rank_zero_info(f"{folder} holds an earlier run: moved to {aside} (--ckpt_path last would have continued it).")
    return aside


@contextmanager
def claimed(folder: Path, fresh: bool) -> Iterator[None]:
    """The folder belongs to this fit while the block runs. Only the first rank does anything.

    Where the fit is ``fresh``, an earlier run is moved aside. If the block fails before it has written a checkpoint or
    metrics, what it has written is removed, and the earlier run comes back.

    Raises:
        UserError: another fit runs in the folder.
    """
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    with ExitStack() as locks:
        aside, is_new = None, not folder.exists()
        if fresh and not is_new:
            locks.enter_context(_locked(folder))
            aside = move_aside(folder)
        locks.enter_context(_locked(folder))  # if this fails, another fit owns the folder: leave it
        try:
            yield
        except BaseException:
            if (is_new or aside) and not any((folder / part).exists() for part in (CHECKPOINTS, "metrics.csv")):
                _remove(folder)
                if aside:
                    aside.rename(folder)
                    rank_zero_info(f"The fit has failed before it left anything: the earlier run is in {folder} again.")
            raise


def _remove(folder: Path) -> None:
    """Remove ``folder``. Its name is free at once, even where a file in it is still open on a network's disk."""
    failed = partial_path(folder)
    shutil.rmtree(failed, ignore_errors=True)
    folder.rename(failed)
    shutil.rmtree(failed, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when this process ends, however that happens."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, on_acquired=_sign)
    try:
        _acquire(lock, folder)
    except OSError as error:
        if error.filename is not None:  # the file cannot be opened; without, its file system has no locks
            raise
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    # A machine that is gone keeps its locks on a network's disk for a while.
    for timeout in (0.0, LEASE):
        try:
            lock.acquire(timeout=timeout, poll_interval=1)
            return
        except Timeout:
            holder = (folder / LOCK).read_text().strip()
        if timeout or holder.endswith(f" on {platform.node()}"):
            raise UserError(f"a fit is running in {folder} ({holder}): give this one another --name, or end that one")
        rank_zero_info(f"Waiting up to {LEASE:.0f} s for {holder or 'another fit'}, which holds {folder}.")


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


def trained_checkpoint(folder: Path, ckpt_path: str | None) -> str:
    """The checkpoint to evaluate: ``ckpt_path``, else the run's best, else its last.

    ``ckpt_path`` may be whatever ``load_separator`` takes: a checkpoint, an exported folder, a name on the Hub.

    Raises:
        UserError: there is no such checkpoint.
    """
    if ckpt_path not in (None, "last", "best"):
        given = local_path(str(ckpt_path))
        if os.path.isdir(given):
            read_trained(given)  # says what is wrong with it, which amid Lightning's restoration is not told
        elif not os.path.isfile(given):
            raise UserError(f"there is no checkpoint {ckpt_path}{checkpoints_near(str(ckpt_path))}")
        return given
    candidates = [checkpoint(folder, name) for name in ([ckpt_path] if ckpt_path else ["best", "last"])]
    for path in candidates:
        if path.is_file():
            return str(path)
    raise UserError(f"there is no checkpoint {' or '.join(map(str, candidates))}: train first, by surf fit")
