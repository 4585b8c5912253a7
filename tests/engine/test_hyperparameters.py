"""What a run was made with and trained on reaches every logger, offline, beside the configuration."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from surf_lightning import __version__
from surf_lightning.cli import main
from surf_lightning.data import MNIST, Digits, Folder, Libri2Mix
from surf_lightning.data.base import SeparationData
from surf_lightning.engine.fit import fit
from surf_lightning.engine.loggers import StartLoggers
from tests import tiny
from tests.test_configs import ROOT

LOGGERS = """
trainer:
  logger:
  - {class_path: WandbLogger, init_args: {offline: true}}
  - {class_path: TensorBoardLogger, init_args: {save_dir: board, name: '', version: ''}}
  - {class_path: MLFlowLogger, init_args: {tracking_uri: 'file:flow', run_name: here}}
"""
PARTS = ("model/class_path", "provenance/torch", "provenance/lightning", "provenance/version", "provenance/commit")
DATASET = {"name": "Digits", "train_images": 1347, "validation_images": 150, "genuine": False}


def test_every_logger_has_the_configuration_the_versions_and_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    flows = Path("flow").absolute().as_uri()  # MLflow keeps a store by its name: another test's of a relative one
    Path("loggers.yaml").write_text(LOGGERS.replace("file:flow", flows))
    small = ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--config", "loggers.yaml"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", "digits_mixit", *small, *quiet]) == 0
    table = yaml.safe_load(Path("runs/digits_mixit/hparams.yaml").read_text())
    assert table["dataset"] == DATASET
    made_with = table["provenance"]
    assert made_with["torch"] == torch.__version__
    assert (made_with["version"], made_with["processes"]) == (__version__, 1)
    assert "thread" in made_with["hardware"]
    assert table["model"]["class_path"].endswith("MixIT")
    assert "# lightning: " in Path("runs/digits_mixit/config.yaml").read_text()
    wanted = {name: str(_at(table, name)) for name in PARTS}
    wanted |= {f"dataset/{name}": str(value) for name, value in DATASET.items()}

    assert wandb.run is not None
    tracked = dict(wandb.run.config)
    wandb.finish()
    assert {name: str(_at(tracked, name)) for name in wanted} == wanted
    flow = MlflowClient(flows)
    (found,) = flow.search_runs([each.experiment_id for each in flow.search_experiments()])
    assert {name: found.data.params[name] for name in wanted} == wanted
    board = EventAccumulator("board").Reload().SummaryMetadata("_hparams_/session_start_info")
    started = HParamsPluginData.FromString(board.plugin_data.content).session_start_info.hparams
    assert {name for name in wanted if name not in started} == set()
    assert started["dataset/train_images"].number_value == 1347


def _at(nested: Any, path: str) -> Any:
    for name in path.split("/"):
        nested = nested[name]
    return nested


def test_a_fit_from_python_is_told_of_as_well() -> None:
    fit(tiny.mixit(), tiny.digits(), "run", max_steps=2, accelerator="cpu")
    assert yaml.safe_load(Path("run/hparams.yaml").read_text())["dataset"] == DATASET


def test_who_wants_no_hyper_parameters_gets_none() -> None:
    run: Any = type("Run", (), {"loggers": [], "is_global_zero": True})
    StartLoggers(Path("run"), None, []).on_train_start(run, tiny.regression())  # type: ignore[arg-type]
    assert not Path("run").exists()


def test_facts_of_data(audio_sets: Path, image_sets: Path) -> None:
    sets: list[tuple[SeparationData, dict[str, Any]]] = [
        (Folder(str(audio_sets / "recordings"), validation_share=0.4), {"train_files": 5, "validation_files": 1}),
        (Libri2Mix(str(audio_sets), train_share=0.5), {"train_files": 3, "validation_files": 4}),
        (MNIST(str(image_sets)), {"train_images": 30, "validation_images": 10}),
        (Digits(), DATASET),
    ]
    for data, expected in sets:
        facts = data.facts()
        hours = {name: facts.pop(name) for name in list(facts) if name.endswith("_hours")}
        assert facts == {"name": type(data).__name__, "genuine": False, **expected}
        assert hours.keys() == {name.replace("files", "hours") for name in expected if name.endswith("_files")}
        assert all(0 < value < 0.01 for value in hours.values())


def test_a_set_whose_test_part_is_not_here_is_not_known_to_be_genuine(audio_sets: Path) -> None:
    shutil.rmtree(audio_sets / "Libri2Mix" / "wav16k" / "min" / "test")
    assert Libri2Mix(str(audio_sets)).facts()["genuine"] is False
