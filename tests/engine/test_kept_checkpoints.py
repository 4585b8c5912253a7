"""What last.ckpt and best.ckpt hold, that they are whole, and that no path is taken from a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surf_lightning.engine import run_folder
from surf_lightning.engine.checkpoint_io import AtomicCheckpointIO
from surf_lightning.engine.checkpoints import BestCheckpoint, LastCheckpoint
from surf_lightning.inference.checkpoint import KEY
from tests.tiny import full_disk

NAN, MISSING = float("nan"), float("-inf")


class Scored(L.LightningModule):
    """Logs the scores it is given, one a validation; notes which checkpoints lie there when the next epoch starts."""

    def __init__(self, scores: list[float], folder: Path) -> None:
        super().__init__()
        self.layer, self.scores, self.folder = nn.Linear(1, 1), scores, folder
        self.steps_saved: list[dict[str, int]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if (score := self.scores[self.current_epoch]) is not MISSING:
            self.log(data.monitor, score)

    def on_train_epoch_start(self) -> None:
        self.note()

    def note(self) -> None:
        files = sorted((self.folder / "checkpoints").glob("*"))
        self.steps_saved.append({path.name: torch.load(path, weights_only=True)["global_step"] for path in files})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PlainIO(AtomicCheckpointIO):
    """For a module that is none of ours."""

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = True) -> Any:
        self._is_ours = Path(path).resolve().is_relative_to(self._folder.resolve())
        return torch.load(path, map_location, weights_only=True)


class Rows(L.LightningDataModule):
    def __init__(self, mode: str, monitor: str) -> None:
        super().__init__()
        self.monitor_mode, self.monitor = mode, monitor

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(2, 1))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(1, 1))


def fit(
    scores: list[float],
    mode: str = "max",
    ckpt_path: str | None = None,
    further: list[L.Callback] | None = None,
    monitor: str = "val/score",
    **options: Any,
) -> Scored:
    folder = Path("run")
    module = Scored(scores, folder)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fitter = L.Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[*(further or []), BestCheckpoint(folder), LastCheckpoint(folder)],
        plugins=[PlainIO(folder)],
        **{"max_steps": 2 * len(scores), **quiet, **options},
    )
    fitter.fit(module, datamodule=Rows(mode, monitor), ckpt_path=ckpt_path)
    module.note()
    return module


@pytest.mark.parametrize(
    ("scores", "mode", "best"),
    [
        ([1, 3, 2, 0.5, 4], "max", [2, 4, 4, 4, 10]),
        ([1, 3, 2, 0.5, 4], "min", [2, 2, 2, 8, 8]),
        ([1, NAN, 2, NAN, 1], "max", [2, 2, 6, 6, 6]),
    ],
)
def test_last_is_the_last_validation_and_best_the_best(scores: list[float], mode: str, best: list[int]) -> None:
    seen = fit(scores, mode).steps_saved
    assert seen[0] == {}
    assert seen[1:] == [{"best.ckpt": step, "last.ckpt": 2 * n} for n, step in enumerate(best, 1)]


@pytest.mark.parametrize(("further", "best"), [([2.5, 2.9], 4), ([2.5, 3.5], 8)])
def test_a_resumed_run_knows_its_best_score(further: list[float], best: int) -> None:
    fit([1, 3])
    assert fit([1, 3, *further], ckpt_path="run/checkpoints/last.ckpt").steps_saved[-1] == {
        "best.ckpt": best,
        "last.ckpt": 8,
    }


def test_what_is_uncertain_is_smoothed_before_the_best_is_chosen() -> None:
    """Means of three validations: 0, 4.5, 3, 4, 2 and 4.33, where single ones would choose the second or the fifth."""
    scores: list[float] = [0, 9, 0, 3, 3, 7]
    steps = [checkpoints["best.ckpt"] for checkpoints in fit(scores, monitor="val/momi").steps_saved[1:]]
    assert steps == [2, 4, 4, 4, 4, 4]
    fit([0, 3, 0], monitor="val/momi")
    resumed = fit([0, 3, 0, 3, 3, 3], monitor="val/momi", ckpt_path="run/checkpoints/last.ckpt")
    assert [each["best.ckpt"] for each in resumed.steps_saved[1:]] == [8, 8, 12]
    unknown = fit([MISSING, MISSING], monitor="val/momi").steps_saved
    assert [each["best.ckpt"] for each in unknown[1:]] == [2, 4], "the newest"


def test_a_trial_run_saves_nothing_the_end_of_a_fit_is_saved_and_a_used_folder_has_no_second_last_or_best() -> None:
    assert fit([1], fast_dev_run=True).steps_saved[-1] == {}
    assert fit([5, 6], max_steps=3).steps_saved[-1] == {"best.ckpt": 2, "last.ckpt": 3}
    assert fit([1]).steps_saved[-1] == {"best.ckpt": 2, "last.ckpt": 2}


# -- a stranger's checkpoint --


def foreign(path: str) -> str:
    """The checkpoint of a run, as one that names ``path`` wherever Lightning keeps a path."""
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    paths = {"dirpath": os.path.abspath("run/checkpoints"), "best_model_path": path, "kth_best_model_path": path}
    paths |= {"last_model_path": path, "best_k_models": {path: torch.tensor(2.0)}, "kth_value": torch.tensor(2.0)}
    score = {"best_model_score": torch.tensor(2.0), "current_score": torch.tensor(2.0), "monitor": "val/score"}
    assert {key.partition("{")[0] for key in checkpoint["callbacks"]} == {
        "LastCheckpoint",
        "BestCheckpoint",
        "ModelCheckpoint",
    }
    for key, state in checkpoint["callbacks"].items():
        checkpoint["callbacks"][key] = state | paths | score
    torch.save(checkpoint, "foreign.ckpt")
    return "foreign.ckpt"


@pytest.mark.parametrize("name", ["local://{}/victim", "{}/run/checkpoints/../../victim/thesis.txt", "{}/victim"])
def test_a_foreign_checkpoint_removes_no_file_or_folder(name: str) -> None:
    """Whether one of our callbacks reads it or the user's own."""
    fit([1], further=[ModelCheckpoint("run/checkpoints", "mine")])
    Path("victim").mkdir()
    Path("victim/thesis.txt").write_text("years of work")
    checkpoint = foreign(name.format(os.getcwd()))
    fit([1, 3], ckpt_path=checkpoint, further=[ModelCheckpoint("run/checkpoints", "mine")])
    assert Path("victim/thesis.txt").read_text() == "years of work"
    assert torch.load("run/checkpoints/best.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("victim", ["theirs.ckpt", "best.ckpt", "mine.ckpt"])
def test_a_foreign_checkpoint_removes_no_other_checkpoint(victim: str) -> None:
    """Neither through a ``ModelCheckpoint`` of the user's, in whose folder the others lie."""
    fit([1], further=[ModelCheckpoint("run/checkpoints", "mine")])
    Path("run/checkpoints/theirs.ckpt").write_bytes(Path("run/checkpoints/last.ckpt").read_bytes())
    path = Path("run/checkpoints", victim).absolute()
    before = path.stat().st_ino
    fit([1], ckpt_path=foreign(str(path)), further=[ModelCheckpoint("run/checkpoints", "new")])
    fit([1, 3], ckpt_path=foreign(str(path)), further=[ModelCheckpoint("run/checkpoints", "new")])
    assert path.exists()
    assert path.stat().st_ino == before or victim == "best.ckpt"


def test_a_resumed_run_of_the_users_own_keeps_no_more_than_its_best() -> None:
    def mine() -> ModelCheckpoint:
        options: Any = {"monitor": "val/score", "mode": "max", "save_on_train_epoch_end": False}
        return ModelCheckpoint("run/checkpoints", "mine-{step}", **options)

    fit([1], further=[mine()])
    fit([1, 2, 3], further=[mine()], ckpt_path="run/checkpoints/last.ckpt")
    kept = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert kept == ["best.ckpt", "last.ckpt", "mine-step=6.ckpt"]


@pytest.mark.parametrize("state", [{}, {"best_model_score": "high", "validation_owed": [1]}])
def test_a_checkpoint_without_our_state_is_continued(state: dict[str, Any]) -> None:
    fit([1])
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    checkpoint["callbacks"] = dict.fromkeys(checkpoint["callbacks"], state)
    torch.save(checkpoint, "foreign.ckpt")
    assert fit([1, 3], ckpt_path="foreign.ckpt").steps_saved[-1] == {"best.ckpt": 4, "last.ckpt": 4}


# -- writing --


def test_a_checkpoint_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(Path()), Path("run/checkpoints/last.ckpt")
    io.save_checkpoint({KEY: {}, "global_step": 1}, path)
    complete = torch.save

    def interrupted(content: Any, file: Any) -> None:
        complete(content, file)
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", interrupted)
        for target in (path, path.with_name("best.ckpt")):
            with pytest.raises(OSError, match="no space"):
                io.save_checkpoint({KEY: {}, "global_step": 2}, target)
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert run_folder.trained_checkpoint(Path("run"), None) == str(path)  # what is left of best is not taken for it
    assert list(path.parent.glob("*.ckpt")) == [path]

    io.save_checkpoint({KEY: {}, "global_step": 3}, path)
    assert torch.load(path, weights_only=True)["global_step"] == 3
    assert not path.with_name(".last.ckpt.partial").exists()


def test_a_disk_that_is_full_is_named_and_keeps_the_old_checkpoint() -> None:
    io, path = AtomicCheckpointIO(Path()), Path("last.ckpt")
    io.save_checkpoint({KEY: {}, "global_step": 1}, path)
    with full_disk(20_000), pytest.raises(OSError, match=r"File too large: 'last\.ckpt'"):
        io.save_checkpoint({KEY: {}, "x": torch.zeros(100_000)}, path)
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert list(Path().iterdir()) == [path]  # no part of the new one takes up room


def test_the_bytes_are_on_disk_before_the_name_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace

    def fsync(file: int) -> None:
        done.append(("sync", os.fstat(file).st_size))
        sync(file)

    def replace(source: Any, target: Any) -> None:
        assert Path(source).parent == Path(target).parent  # of one file system, where renaming is atomic
        done.append(("rename", os.stat(source).st_size))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    AtomicCheckpointIO(Path()).save_checkpoint({KEY: {}, "x": torch.zeros(100)}, "a.ckpt")
    size = Path("a.ckpt").stat().st_size
    assert done == [("sync", size), ("rename", size)]
