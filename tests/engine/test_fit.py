"""`fit` from Python leaves the run that `surf fit` leaves."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from surf_lightning import __version__
from surf_lightning.cli import main
from surf_lightning.engine.fit import TRAINER_DEFAULTS, check, fit, make_trainer
from surf_lightning.engine.progress import Progress
from surf_lightning.errors import UserError
from surf_lightning.methods import SURF
from surf_lightning.provenance import hardware
from surf_lightning.reporting.runs import read_curves
from tests import tiny
from tests.test_configs import arguments

ROOT = Path(__file__).parents[2]
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def step_of(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_only_one_device_and_ddp_are_supported() -> None:
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(UserError, match="FSDPStrategy is not supported"):
        check(trainer, tiny.mixit(), tiny.digits(), None)


def test_a_run_holds_what_that_of_the_command_line_does() -> None:
    paths = (ROOT / "configs" / "digits_mixit.yaml", ROOT / "tests" / "tiny_images.yaml")
    assert main(["fit", *(f"--config={path}" for path in paths), "--name", "command", "--trainer.logger", "true"]) == 0
    trainer = fit(tiny.mixit(), tiny.digits(), "runs/python", 2, **QUIET)
    assert trainer.global_step == 2
    assert files(Path("runs/python")) == files(Path("runs/command")) - {"config.yaml"}  # there is none
    curves = [read_curves(Path("runs", name, "metrics.csv")) for name in ("python", "command")]
    assert curves[0].keys() == curves[1].keys()


def test_a_thread_trains_as_well() -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(fit, tiny.mixit(), tiny.digits(), "run", max_steps=1, **QUIET).result()
    assert step_of(Path("run")) == 1


def test_an_earlier_run_is_moved_aside_or_continued() -> None:
    fit(tiny.mixit(), tiny.digits(), "run", 2, **QUIET)
    fit(tiny.mixit(), tiny.digits(), "run", 3, ckpt_path="last", **QUIET)
    assert step_of(Path("run")) == 3
    assert not Path("run.1").exists()
    fit(tiny.mixit(), tiny.digits(), "run", 2, **QUIET)
    assert (step_of(Path("run")), step_of(Path("run.1"))) == (2, 3)


def test_a_run_that_goes_on_from_another_leaves_the_one_in_its_folder_alone() -> None:
    for folder in ("a", "b"):
        fit(tiny.mixit(), tiny.digits(), folder, 2, **QUIET)
    state = torch.load("b/checkpoints/last.ckpt", weights_only=True)
    for callback in state["callbacks"].values():
        callback["best_model_score"] = torch.tensor(1e6)  # of b's best.ckpt, which is not here
    torch.save(state, "b/checkpoints/last.ckpt")
    before = files(Path("a"))
    fit(tiny.mixit(), tiny.digits(), "a", 4, ckpt_path="b/checkpoints/last.ckpt", **QUIET)
    assert files(Path("a.1")) == before
    assert step_of(Path("a.1")) == 2
    assert {step for curve in read_curves(Path("a", "metrics.csv")).values() for step in curve} == {3}
    assert torch.load("a/checkpoints/best.ckpt", weights_only=True)["global_step"] == 4
    Path("link").symlink_to("a")
    fit(tiny.mixit(), tiny.digits(), "a", 5, ckpt_path="link/checkpoints/best.ckpt", **QUIET)
    assert step_of(Path("a")) == 5
    assert not Path("a.2").exists()


def test_a_stage_without_its_earlier_one_leaves_the_folder_alone() -> None:
    fit(tiny.mixit(), tiny.digits(), "run", 2, **QUIET)
    surf = SURF(tiny.velocity(), objective="remixit", mixit_checkpoint="nowhere.ckpt", optimizer=tiny.adam)
    with pytest.raises(UserError, match=r"nowhere\.ckpt of the earlier stage"):
        fit(surf, tiny.digits(), "run", 2, **QUIET)
    with pytest.raises(UserError, match="have 3 sources"):
        fit(tiny.mixit(), tiny.digits(num_sources=3), "run", 2, **QUIET)
    assert step_of(Path("run")) == 2
    with pytest.raises(UserError, match="there is no checkpoint"):
        fit(tiny.mixit(), tiny.digits(), "run", 2, ckpt_path="nowhere.ckpt", **QUIET)


def test_options_of_the_trainer_replace_the_defaults() -> None:
    trainer = fit(tiny.mixit(), tiny.digits(), "run", 2, logger=False, log_every_n_steps=7, **QUIET)
    assert (trainer.loggers, trainer.log_every_n_steps) == ([], 7)
    assert not Path("run", "metrics.csv").exists()
    assert trainer.max_epochs == TRAINER_DEFAULTS["max_epochs"]


def test_nothing_is_advertised_or_warned_of(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(tiny.mixit(), tiny.digits(), "run", 1, **QUIET)
        rank_zero_info("TPU available: True, using: 8 TPU cores")
    for said, is_shown in (("Tip", False), ("TPU available: F", False), ("TPU available: T", True), ("GPU a", True)):
        assert (said in caplog.text) == is_shown, said
    warned = [str(warning.message) for warning in recwarn]
    assert [message for message in warned if "`srun` command" not in message] == []  # on a cluster


class Remembering(Logger):
    """A logger of the user's."""

    name, version = "remembering", 0
    seen: ClassVar[list[Any]] = []

    def log_hyperparams(self, params: Any) -> None:
        self.seen.append(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass


def test_a_logger_gets_the_whole_configuration_of_the_command_line() -> None:
    mine = ["--trainer.logger", "tests.engine.test_fit.Remembering"]
    assert main([*arguments("digits_mixit", Path()), *mine]) == 0
    assert main([*arguments("digits_mixit", Path(), "test"), *mine]) == 0
    (params,) = Remembering.seen
    text = Path("runs/digits_mixit/config.yaml").read_text()
    assert text.startswith(f"# version: {__version__}\n")
    assert f"\n# hardware: {hardware(torch.device('cpu'))}\n" in text
    config = yaml.safe_load(text)
    assert params == config | {name: params[name] for name in ("provenance", "dataset")}
    assert params["model"]["init_args"]["network"]["init_args"]["channels"] == 4


def test_a_bar_of_the_users_is_the_only_one() -> None:
    for wanted, mine, expected in (
        (None, [], [Progress]),
        (False, [], []),
        (True, [TQDMProgressBar()], [TQDMProgressBar]),
    ):
        made: Any = make_trainer(Path("run"), "fit", False, mine, enable_progress_bar=wanted)
        assert [type(each) for each in made.callbacks if isinstance(each, ProgressBar)] == expected
