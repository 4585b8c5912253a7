"""A CSV file that resumes extend, and W&B that never asks."""

from __future__ import annotations

import builtins
import csv
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger

from surf_lightning.tracking import MetricsCSV, complete_loggers, remember, wandb_login_known

WANDB = "lightning.pytorch.loggers.WandbLogger"
CSV = "surf_lightning.tracking.MetricsCSV"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_KEY", "MODE", "BASE_URL", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    def refuse(*_: Any) -> str:
        raise AssertionError("nobody is there to answer")

    monkeypatch.setattr(builtins, "input", refuse)


# -- CSV --


def write(folder: str, rows: list[tuple[int, dict[str, float]]], flush: int = 100) -> list[dict[str, str]]:
    logger = MetricsCSV(folder, flush_logs_every_n_steps=flush)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    logger.finalize("success")
    with open(Path(folder, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_keeps_the_rows_of_its_first_part() -> None:
    first = write("run", [(0, {"loss": 3.0}), (1, {"loss": 2.0})])
    assert first == [{"loss": "3.0", "step": "0"}, {"loss": "2.0", "step": "1"}]
    assert write("run", [(2, {"loss": 1.5})]) == [*first, {"loss": "1.5", "step": "2"}]
    assert [path.name for path in Path("run").iterdir()] == ["metrics.csv"]


def test_new_columns_are_empty_in_the_rows_before_them() -> None:
    write("run", [(0, {"loss": 3.0})])
    rows = write("run", [(1, {"loss": 2.0, "val/psnr": 20.0}), (2, {"lr": 0.1})])
    empty = {"loss": "", "lr": "", "val/psnr": ""}
    assert rows == [
        {**empty, "loss": "3.0", "step": "0"},
        {**empty, "loss": "2.0", "val/psnr": "20.0", "step": "1"},
        {**empty, "lr": "0.1", "step": "2"},
    ]
    assert write("run", [(3, {"loss": 1.0})])[-1] == {**empty, "loss": "1.0", "step": "3"}


def test_rows_are_written_as_they_come() -> None:
    logger = MetricsCSV("run", flush_logs_every_n_steps=2)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"loss": 1.0}, 1)
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 3


def test_an_empty_file_of_a_run_that_died_at_once_is_no_hindrance() -> None:
    Path("run").mkdir()
    Path("run/metrics.csv").touch()
    assert write("run", [(0, {"loss": 1.0})]) == [{"loss": "1.0", "step": "0"}]


# -- W&B --


@pytest.mark.parametrize(
    ("environment", "netrc", "known"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": "k" * 40}, None, True),
        ({"WANDB_API_KEY": ""}, None, False),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, None, True),
        ({}, "machine api.wandb.ai login user password abc", True),
        ({}, "machine api.wandb.ai login user", False),
        ({}, "machine example.org login user password abc", False),
        ({}, "machine without sense", False),
        ({"WANDB_BASE_URL": "https://wandb.lab:8443"}, "machine wandb.lab:8443 login user password abc", True),
        ({"WANDB_BASE_URL": "https://wandb.lab:8443"}, "machine api.wandb.ai login user password abc", False),
    ],
)
def test_an_account_is_known_where_wandb_would_find_it(
    environment: dict[str, str], netrc: str | None, known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "home" / ".netrc").write_text(netrc + "\n")
    assert wandb_login_known() is known
    if netrc is not None:
        (tmp_path / "home" / ".netrc").rename("accounts")
        assert wandb_login_known() is bool(environment.keys() & {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"})
        monkeypatch.setenv("NETRC", "accounts")
        assert wandb_login_known() is known


def wandb(**given: Any) -> Namespace:
    arguments = Namespace(name=None, id=None, offline=False, save_dir=".", project="p")
    arguments.update(Namespace(**given))
    return Namespace(class_path=WANDB, init_args=arguments)


def complete(logger: Any, folder: str = "runs/a", is_new: bool = False) -> list[Namespace]:
    trainer = Namespace(logger=logger)
    complete_loggers(trainer, Path(folder), is_new)
    return trainer.logger


def test_without_an_account_a_run_is_tracked_offline_and_says_where(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        tracked, table = complete([wandb()])
    arguments = tracked.init_args
    assert arguments.offline is True
    assert (arguments.save_dir, arguments.name) == ("runs/a", "a")
    assert f"wandb sync runs/a/wandb/offline-run-*-{arguments.id}" in caplog.text
    assert (table.class_path, table.init_args.save_dir) == (CSV, "runs/a")


@pytest.mark.parametrize(
    ("environment", "given", "offline"),
    [
        ({"WANDB_API_KEY": "k" * 40}, {}, False),
        ({"WANDB_API_KEY": "k" * 40}, {"offline": True}, True),
        ({"WANDB_MODE": "online"}, {}, False),  # asked for by name
        ({"WANDB_MODE": "disabled"}, {}, False),
    ],
)
def test_who_has_an_account_or_a_wish_gets_it(
    environment: dict[str, str], given: dict[str, Any], offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert complete([wandb(**given)])[0].init_args.offline is offline


def test_a_resumed_run_is_the_same_run_of_wandb() -> None:
    first, other = complete([wandb()])[0].init_args, complete([wandb()], "runs/b")[0].init_args
    assert not Path("runs").exists()  # nothing is written before the fit begins
    remember([WandbLogger(id=first.id, save_dir="runs/a", offline=True)], Path("runs/a"))
    assert complete([wandb()])[0].init_args.id == first.id
    assert other.id != first.id
    assert Path("runs/a/wandb_id").read_text().strip() == first.id
    assert complete([wandb()], is_new=True)[0].init_args.id not in (first.id, other.id)
    assert complete([wandb(id="mine", name="named")])[0].init_args.id == "mine"
    assert complete([wandb(name="named")])[0].init_args.name == "named"


@pytest.mark.parametrize("logger", [None, True, []])
def test_a_table_is_always_written(logger: Any) -> None:
    (table,) = complete(logger)
    assert (table.class_path, table.init_args.save_dir) == (CSV, "runs/a")


def test_no_logger_is_no_logger() -> None:
    trainer = Namespace(logger=False)
    complete_loggers(trainer, Path("runs/a"), is_new=True)
    assert trainer.logger is False
    assert not Path("runs").exists()


def test_other_loggers_write_into_the_run_unless_told_otherwise() -> None:
    def completed(**arguments: Any) -> Any:
        return complete(Namespace(class_path="some.Logger", init_args=Namespace(**arguments)))[0].init_args

    assert completed(save_dir=".").save_dir == "runs/a"
    assert completed(save_dir=None).save_dir == "runs/a"
    assert completed(save_dir="mine").save_dir == "mine"
    assert "save_dir" not in completed(project="p")  # a service that has no such argument
    assert complete(Namespace(class_path="some.Logger"))[0] == Namespace(class_path="some.Logger")
    own = Namespace(class_path=CSV, init_args=Namespace(save_dir=".", flush_logs_every_n_steps=1))
    (table,) = complete(own)
    assert table.init_args.save_dir == "runs/a"
