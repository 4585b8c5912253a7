"""Which state last.ckpt and best.ckpt hold, and what callbacks a command has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surf_lightning import __version__
from surf_lightning.callbacks import results
from surf_lightning.callbacks.media import Media
from surf_lightning.callbacks.results import PrintedResult
from surf_lightning.engine.bookkeeping import (
    BestCheckpoint,
    LastCheckpoint,
    SaveConfig,
    standard_callbacks,
)
from surf_lightning.engine.loggers import ContinueTables
from surf_lightning.provenance import hardware

NAN = float("nan")


class Scored(L.LightningModule):
    """Logs the scores it is given, one a validation; notes which checkpoints lie there when the next epoch starts."""

    def __init__(self, scores: list[float], folder: Path) -> None:
        super().__init__()
        self.layer, self.scores, self.folder = nn.Linear(1, 1), scores, folder
        self.steps_saved: list[dict[str, int]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/score", self.scores[self.current_epoch])

    def on_train_epoch_start(self) -> None:
        self.note()

    def note(self) -> None:
        files = sorted((self.folder / "checkpoints").glob("*"))
        self.steps_saved.append({path.name: torch.load(path, weights_only=True)["global_step"] for path in files})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows(L.LightningDataModule):
    monitor = "val/score"

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.monitor_mode = mode

    def train_dataloader(self) -> DataLoader[Any]:
        rows: Any = torch.ones(2, 1)
        return DataLoader(rows)

    def val_dataloader(self) -> DataLoader[Any]:
        rows: Any = torch.ones(1, 1)
        return DataLoader(rows)


def fit(scores: list[float], mode: str = "max", ckpt_path: str | None = None, **options: Any) -> Scored:
    folder = Path("run")
    module = Scored(scores, folder)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fitter = L.Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[BestCheckpoint(folder), LastCheckpoint(folder)],
        **{"max_steps": 2 * len(scores), **quiet, **options},
    )
    fitter.fit(module, datamodule=Rows(mode), ckpt_path=ckpt_path)
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


def test_a_used_folder_holds_no_second_last_or_best() -> None:
    fit([5, 6])
    assert fit([1]).steps_saved[-1] == {"best.ckpt": 2, "last.ckpt": 2}


def test_the_end_of_a_fit_within_an_epoch_is_saved_too() -> None:
    assert fit([1, 2], max_steps=3).steps_saved[-1] == {"best.ckpt": 2, "last.ckpt": 3}


def test_a_trial_run_saves_nothing() -> None:
    assert fit([1], fast_dev_run=True).steps_saved[-1] == {}


def save_config(value: int, stage: str, rank_zero: bool = True) -> None:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--value", type=int)
    parser.add_argument("--nothing", type=int | None)
    callback = SaveConfig(parser, parser.parse_args(["--value", str(value)]))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    stub: Any = SimpleNamespace(is_global_zero=rank_zero, default_root_dir="run/of/mine", strategy=strategy)
    callback.setup(stub, L.LightningModule(), stage)


def test_only_a_fit_writes_its_configuration_over_an_earlier_one() -> None:
    save_config(1, "test")
    save_config(1, "fit", rank_zero=False)
    assert not Path("run").exists()
    save_config(2, "fit")
    save_config(3, "fit")
    save_config(4, "validate")
    lines = Path("run/of/mine/config.yaml").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["value: 3", "nothing: null"]
    assert lines[0] == f"# version: {__version__}"
    assert f"# hardware: {hardware(torch.device('cpu'))}" in lines


def test_each_command_has_its_callbacks() -> None:
    def types(subcommand: str, has_loggers: bool) -> list[type]:
        return [type(callback) for callback in standard_callbacks(Path("run"), subcommand, has_loggers)]

    assert types("fit", True) == [LearningRateMonitor, ContinueTables, Media, BestCheckpoint, LastCheckpoint]
    assert types("fit", False) == [Media, BestCheckpoint, LastCheckpoint]
    assert types("test", True) == [results.TestResults, PrintedResult]
    assert types("validate", True) == types("predict", True) == [PrintedResult]
