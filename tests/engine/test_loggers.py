"""A CSV file that resumes extend, and W&B that never asks."""

from __future__ import annotations

import builtins
import csv
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import wandb as service
from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger

from surf_lightning.engine.loggers import (
    ContinueTables,
    MetricsCSV,
    complete_loggers,
    mend,
    remember,
    silence_adverts,
    why_offline,
)
from surf_lightning.errors import UserError

WANDB = "lightning.pytorch.loggers.WandbLogger"
CSV = "surf_lightning.engine.loggers.MetricsCSV"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("API_KEY", "MODE", "BASE_URL", "IDENTITY_TOKEN_FILE", "CONFIG_DIR", "SERVICE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    def refuse(*_: Any) -> str:
        raise AssertionError("nobody is there to answer")

    monkeypatch.setattr(builtins, "input", refuse)
    yield
    service.teardown()


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


def test_a_header_is_rewritten_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first = write("run", [(0, {"loss": 3.0})])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", killed)
        with pytest.raises(KeyboardInterrupt):
            write("run", [(1, {"val/psnr": 20.0})])
    with open("run/metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == first
    assert [path.name for path in Path("run").iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("rest", ["", "0,3.25,2,", "0,3.25,1", "7,1.0,1,2,3,4\r\n", "\x00\xff\n"])
def test_a_resumed_run_writes_what_one_that_was_never_killed_writes(rest: str) -> None:
    rows = [(step, {"loss": 1 / (step + 1)} | ({"val/psnr": 9.0} if step % 2 else {})) for step in range(7)]
    write("whole", rows)
    write("parts", rows[:5])
    with open("parts/metrics.csv", "a", newline="") as file:
        file.write(rest)
    logger = MetricsCSV("parts")
    logger.keep_before(3)
    for step, metrics in rows[3:]:
        logger.log_metrics(metrics, step)
    logger.finalize("success")
    assert Path("parts/metrics.csv").read_bytes() == Path("whole/metrics.csv").read_bytes()


def test_a_table_of_a_run_that_was_killed_in_its_header_begins_anew() -> None:
    Path("run").mkdir()
    Path("run/metrics.csv").write_text("loss,st")
    logger = MetricsCSV("run")
    logger.keep_before(0)
    assert write("run", [(0, {"loss": 1.0})]) == [{"loss": "1.0", "step": "0"}]


def test_a_run_is_resumed_from_the_trainers_step() -> None:
    first = write("run", [(step, {"loss": 1.0}) for step in range(6)])
    trainer = L.Trainer(logger=MetricsCSV("run"), enable_progress_bar=False, accelerator="cpu")
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 4
    ContinueTables().on_train_start(trainer, L.LightningModule())
    with open("run/metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == first[:4]


# -- W&B --


class Account(BaseHTTPRequestHandler):
    """Answers as W&B's server does to who has an account."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        person = {"id": "i", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        known = self.headers.get("Authorization") is not None
        answer = json.dumps({"data": {"viewer": person if known else None}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Account) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{listening.server_port}"
        listening.shutdown()


def home(netrc: str | None = None, settings: str | None = None) -> None:
    """What ``wandb login`` and ``wandb offline`` leave."""
    if netrc is not None:
        Path("~/.netrc").expanduser().write_text(netrc + "\n")
    if settings is not None:
        path = Path("~/.config/wandb/settings").expanduser()
        path.parent.mkdir(parents=True)
        path.write_text(f"[default]\n{settings}\n")


KEY = "k" * 40


def test_a_login_at_a_host_of_ones_own_is_found(server: str) -> None:
    home(f"machine {server} login user password {KEY}", f"base_url = http://{server}")
    assert why_offline() is None
    service.teardown()
    home(f"machine example.org login user password {KEY}")
    assert why_offline() == "no account is logged in"


def test_an_account_is_known_where_the_environment_names_it(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{server}")
    assert why_offline() == "no account is logged in"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert why_offline() is None


@pytest.mark.parametrize("netrc", [None, "machine api.wandb.ai login user", "machine without sense"])
def test_without_an_account_nobody_is_asked(netrc: str | None) -> None:
    home(netrc)
    assert why_offline() == "no account is logged in"
    assert service.run is None


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_offline_mode_may_be_chosen_by_the_environment_or_by_a_file(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home(settings=f"mode = {mode}")
    assert why_offline() == "offline mode is chosen"
    home(settings=None)
    Path("~/.config/wandb/settings").expanduser().unlink()
    monkeypatch.setenv("WANDB_MODE", mode)
    assert why_offline() == "offline mode is chosen"


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_another_mode_asked_for_by_name_is_left_to_wandb(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert why_offline() is None


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_its_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    reason = why_offline()
    assert reason is not None
    assert reason.startswith("its server does not answer, or knows no such account (")
    assert "http://127.0.0.1:9" in reason


def test_a_key_that_cannot_be_one_is_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert "has 3" in str(why_offline())


def test_a_mode_that_does_not_exist_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"(?s)W&B: .*mode.*'offline'.*sometimes"):
        why_offline()


def wandb(**given: Any) -> Namespace:
    arguments = Namespace(name=None, id=None, offline=False, save_dir=".", project="p")
    arguments.update(Namespace(**given))
    return Namespace(class_path=WANDB, init_args=arguments)


def complete(logger: Any, folder: str = "runs/a", is_new: bool = False, subcommand: str = "fit") -> list[Namespace]:
    trainer = Namespace(logger=logger)
    complete_loggers(trainer, Path(folder), subcommand, is_new)
    return trainer.logger


def test_without_an_account_a_run_is_tracked_offline_and_says_where(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        tracked, table = complete([wandb()])
    arguments = tracked.init_args
    assert arguments.offline is True
    assert (arguments.save_dir, arguments.name) == ("runs/a", "a")
    assert "no account is logged in" in caplog.text
    assert f"wandb sync runs/a/wandb/offline-run-*-{arguments.id}" in caplog.text
    assert (table.class_path, table.init_args.save_dir) == (CSV, "runs/a")


def test_who_has_chosen_offline_is_told_of_no_account(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level("INFO"):
        assert complete([wandb(offline=True)])[0].init_args.offline is True
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert complete([wandb()])[0].init_args.offline is True
    assert caplog.text.count("W&B: offline mode is chosen, so run") == 2
    assert "account" not in caplog.text


def test_who_can_be_tracked_online_is(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{server}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert complete([wandb()])[0].init_args.offline is False


def test_a_resumed_run_is_the_same_run_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
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
    complete_loggers(trainer, Path("runs/a"), "fit", is_new=True)
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


@pytest.mark.parametrize("subcommand", ["validate", "predict"])
def test_what_is_no_part_of_a_runs_course_is_not_logged(subcommand: str) -> None:
    table = Namespace(class_path=CSV, init_args=Namespace(save_dir=".", flush_logs_every_n_steps=1))
    assert complete([wandb(), table], subcommand=subcommand) is False


def test_a_test_leaves_the_table_of_the_training_alone() -> None:
    table = Namespace(class_path=CSV, init_args=Namespace(save_dir=".", flush_logs_every_n_steps=1))
    assert [logger.class_path for logger in complete([wandb(offline=True), table], subcommand="test")] == [WANDB]
    assert complete(None, subcommand="test") == []


def test_adverts_are_not_shown_and_all_else_is(caplog: pytest.LogCaptureFixture) -> None:
    silence_adverts()
    with caplog.at_level("INFO"):
        L.Trainer(logger=False, accelerator="cpu")
        logging.getLogger("lightning.pytorch.utilities.rank_zero").warning("TPU available: True, using: 8 TPU cores")
    assert "GPU available" in caplog.text
    assert "TPU available: False" not in caplog.text
    assert "TPU available: True" in caplog.text
    assert "litlogger" not in caplog.text


def test_wandb_is_not_given_what_it_warns_of(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SILENT")
    logger = WandbLogger(save_dir="run", offline=True)
    mend([logger])
    logger.log_metrics({"loss": 1.0}, 0)
    logger.experiment.finish()
    shown = capfd.readouterr().err
    assert "Run data is saved locally" in shown
    assert "anonymous" not in shown
