"""A CSV file that resumes extend, and W&B that never asks."""

from __future__ import annotations

import builtins
import copy
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb as service
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from surf_lightning.cli import main
from surf_lightning.engine import loggers
from surf_lightning.engine.loggers import MetricsCSV, go_on_without, resolve_loggers, start_loggers
from surf_lightning.engine.weights_and_biases import is_wandb_error, why_offline
from surf_lightning.errors import UserError
from surf_lightning.reporting.runs import read_curves
from tests import tiny
from tests.test_configs import ROOT

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
    service.finish()
    service.teardown()


# -- CSV --


def write(folder: str, rows: list[tuple[int, dict[str, float]]]) -> list[str]:
    logger = MetricsCSV(folder)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    return Path(folder, "metrics.csv").read_text().splitlines()


def test_every_number_is_a_line_with_its_step_epoch_and_name() -> None:
    rows = [(0, {"loss": 3.0, "epoch": 0}), (1, {"loss": 2.0, "val/psnr": 20.5, "epoch": 1})]
    assert write("run", rows) == ["step,epoch,name,value", "0,0,loss,3.0", "1,1,loss,2.0", "1,1,val/psnr,20.5"]


def test_lines_are_written_as_they_come() -> None:
    logger = MetricsCSV("run")
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
        assert len(Path("run/metrics.csv").read_text().splitlines()) == step + 2


@pytest.mark.parametrize("rest", ["", "0,3.25,2,", "3,0,loss,0.12", "4,0,val/ps", "\x00\xff"])
def test_readers_of_a_killed_and_resumed_run_see_each_step_once(rest: str) -> None:
    rows = [(step, {"loss": 1 / (step + 1)} | ({"val/psnr": 9.0} if step % 2 else {})) for step in range(7)]
    write("whole", rows)
    write("parts", rows[:5])
    with open("parts/metrics.csv", "a", newline="") as file:
        file.write(rest)  # what a kill has left of a line
    whole, part = read_curves(Path("whole/metrics.csv")), read_curves(Path("parts/metrics.csv"))
    assert part == {name: {step: curve[step] for step in curve if step < 5} for name, curve in whole.items()}
    write("parts", rows[3:])  # from a checkpoint before the kill
    assert read_curves(Path("parts/metrics.csv")) == whole


@pytest.mark.parametrize("left", ["", "step,ep"])
def test_a_table_of_a_run_that_was_killed_in_its_header_begins_with_one(left: str) -> None:
    Path("run").mkdir()
    Path("run/metrics.csv").write_text(left)
    assert write("run", [(0, {"loss": 1.0})]) == ["step,epoch,name,value", "0,,loss,1.0"]


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    MetricsCSV("run").log_metrics({"loss": 1.0}, 0)
    assert not Path("run").exists()


# -- W&B --


KEY = "k" * 40
NOBODY = "127.0.0.1:9"  # no server listens there: to ask it would be an error, after a while
NO_ACCOUNT, CHOSEN = "no account is logged in", "offline mode is chosen"


@pytest.mark.parametrize(
    ("environment", "netrc", "settings", "reason"),
    [
        ({}, "", "", NO_ACCOUNT),
        ({}, "machine api.wandb.ai login user", "", NO_ACCOUNT),
        ({}, "machine without sense", "", NO_ACCOUNT),
        ({}, f"machine example.org login user password {KEY}", f"base_url = http://{NOBODY}", NO_ACCOUNT),
        ({}, f"machine {NOBODY} login user password {KEY}", f"base_url = http://{NOBODY}", None),
        ({"WANDB_API_KEY": "abc"}, "", "", "has 3"),
        *(({}, "", f"mode = {mode}", CHOSEN) for mode in ("offline", "dryrun")),
        *(({"WANDB_MODE": mode}, "", "", CHOSEN) for mode in ("offline", "dryrun")),
        *(({"WANDB_MODE": mode}, "", "", None) for mode in ("online", "disabled")),  # left to W&B
    ],
)
def test_without_an_account_or_where_it_is_chosen_a_run_is_offline_and_nobody_is_asked(
    environment: dict[str, str], netrc: str, settings: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for path, left in (("~/.netrc", netrc), ("~/.config/wandb/settings", settings and f"[default]\n{settings}")):
        if left:  # by `wandb login` and `wandb offline`
            file = Path(path).expanduser()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{left}\n")
    found = why_offline()
    assert found is None if reason is None else reason in str(found)
    assert service.run is None


def test_an_account_is_known_where_the_environment_names_it_and_no_server_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert why_offline() == NO_ACCOUNT
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert why_offline() is None
        with pytest.raises(TimeoutError):  # nobody has called
            server.accept()


def account_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server that does not answer."""
    for name, value in (("INIT_TIMEOUT", "1"), ("BASE_URL", f"http://{NOBODY}"), ("API_KEY", KEY)):
        monkeypatch.setenv(f"WANDB_{name}", value)


def tracked(**options: Any) -> WandbLogger:
    logger = WandbLogger(save_dir="runs/a", id="abc123", **options)
    start_loggers([logger], Path("runs/a"))
    return logger


def test_a_server_that_does_not_answer_leaves_the_run_offline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    account_elsewhere(monkeypatch)
    with caplog.at_level("INFO"):
        logger = tracked()
    logger.log_metrics({"loss": 1.0}, 0)
    logger.experiment.finish()
    assert "W&B: its server cannot be used (" in caplog.text
    assert "wandb sync runs/a/wandb/offline-run-*-abc123" in caplog.text
    assert list(Path("runs/a/wandb").glob("offline-run-*-abc123"))
    assert Path("runs/a/wandb_id").read_text() == "abc123\n"


def test_the_configuration_reaches_wandb() -> None:
    logger = WandbLogger(save_dir="runs/a", offline=True)
    for rate in (0.1, 0.2):  # as a resumed run may be given
        start_loggers([logger], Path("runs/a"), {"model": {"class_path": "SURF", "init_args": {"lr": rate}}})
    assert dict(logger.experiment.config)["model"]["init_args"] == {"lr": 0.2}


def test_a_server_that_is_asked_for_by_name_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    account_elsewhere(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(service.errors.CommError) as raised:
        tracked()
    assert is_wandb_error(raised.value)


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
    NOTES[:] = resolve_loggers(trainer, Path(folder), subcommand, is_new)
    return trainer.logger


NOTES: list[str] = []
"""What the latest ``complete`` would say when the run begins."""


def test_without_an_account_a_run_is_tracked_offline_and_says_where() -> None:
    tracked, table = complete([wandb()])
    (note,) = NOTES
    arguments = tracked.init_args
    assert arguments.offline is True
    assert (arguments.save_dir, arguments.name) == ("runs/a", "a")
    assert "no account is logged in" in note
    assert f"wandb sync runs/a/wandb/offline-run-*-{arguments.id}" in note
    assert (table.class_path, table.init_args.save_dir) == (CSV, "runs/a")


def test_who_has_chosen_offline_is_told_of_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (wandb(offline=True), wandb()):
        assert complete([given])[0].init_args.offline is True
        (note,) = NOTES
        assert note.startswith("W&B: offline mode is chosen, so run")
        assert "account" not in note
        monkeypatch.setenv("WANDB_MODE", "offline")


def test_who_can_be_tracked_online_is(monkeypatch: pytest.MonkeyPatch) -> None:
    account_elsewhere(monkeypatch)
    assert complete([wandb()])[0].init_args.offline is False


def test_a_resumed_run_is_the_same_run_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, other = complete([wandb()])[0].init_args, complete([wandb()], "runs/b")[0].init_args
    assert not Path("runs").exists()  # nothing is written before the fit begins
    start_loggers([WandbLogger(id=first.id, save_dir="runs/a", offline=True)], Path("runs/a"))
    assert complete([wandb()])[0].init_args.id == first.id
    assert other.id != first.id
    assert Path("runs/a/wandb_id").read_text().strip() == first.id
    assert complete([wandb()], is_new=True)[0].init_args.id not in (first.id, other.id)
    assert complete([wandb(id="mine", name="named")])[0].init_args.id == "mine"
    assert complete([wandb(name="named")])[0].init_args.name == "named"


TABLE = Namespace(class_path=CSV, init_args=Namespace(save_dir="."))


@pytest.mark.parametrize(
    ("subcommand", "given", "kept"),
    [
        *(("fit", given, [CSV]) for given in (None, True, [], False)),
        *((subcommand, False, False) for subcommand in ("validate", "test")),
        ("validate", [wandb(), TABLE], False),  # its numbers are no part of the run's course
        ("test", [wandb(offline=True), TABLE], [WANDB]),  # the table is of the training
        ("test", None, []),
    ],
)
def test_a_table_is_written_of_each_training_and_of_nothing_else(subcommand: str, given: Any, kept: Any) -> None:
    found = complete(given, subcommand=subcommand)
    assert (found and [logger.class_path for logger in found]) == kept
    if subcommand == "fit":
        assert found[0].init_args.save_dir == "runs/a"
    assert not Path("runs").exists()


def test_a_refused_fit_advertises_nothing_and_leaves_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fit = ["fit", "--config", "digits_mixit", "--trainer.logger=WandbLogger", "--trainer.enable_progress_bar=false"]
    for wrong in (["--data", "Folder", "--data.root", "nowhere"], ["--data.batch_size", "1"]):
        assert main([*fit, *wrong]) == 2
        assert "W&B" not in caplog.text
        assert "wandb" not in "".join(capfd.readouterr())
        assert not list(Path().glob("runs/*"))
    small = ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.accelerator", "cpu"]
    assert main([*fit, *small]) == 0
    assert caplog.text.count("W&B") == 1, "one line"
    assert "wandb" not in "".join(capfd.readouterr())
    assert list(Path("runs/digits_mixit/wandb").glob("offline-run-*"))


def test_without_wandb_a_run_is_recorded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert [logger.class_path for logger in complete(None)] == [CSV]
    assert "pip install 'surf-lightning[wandb]'" in NOTES[0]
    assert complete(False)
    assert NOTES == []
    with pytest.raises(UserError, match="WandbLogger needs W&B: pip install"):
        complete([wandb()])


def test_other_loggers_write_into_the_run_unless_told_otherwise() -> None:
    def completed(**arguments: Any) -> Any:
        return complete(Namespace(class_path="some.Logger", init_args=Namespace(**arguments)))[0].init_args

    assert completed(save_dir=".").save_dir == "runs/a"
    assert completed(save_dir=None).save_dir == "runs/a"
    assert completed(save_dir="mine").save_dir == "mine"
    assert "save_dir" not in completed(project="p")  # a service that has no such argument
    assert complete(Namespace(class_path="some.Logger"))[0] == Namespace(class_path="some.Logger")
    (table,) = complete(copy.deepcopy(TABLE))
    assert table.init_args.save_dir == "runs/a"


def test_wandb_is_not_given_what_it_warns_of(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SILENT")
    logger = tracked(offline=True)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.experiment.finish()
    shown = capfd.readouterr().err
    assert "Run data is saved locally" in shown
    assert "anonymous" not in shown


# -- trackers that fail --


def test_on_a_full_disk_lines_wait_for_room() -> None:
    logger = MetricsCSV("run")
    with warnings.catch_warnings(record=True) as told, tiny.full_disk(400):
        warnings.simplefilter("always")
        for step in range(60):
            logger.log_metrics({"loss": step / 7}, step)
        logger.finalize("success")
    table = Path("run/metrics.csv").read_text()
    assert len(table) <= 400
    assert table.endswith("\n"), "the last line is whole"
    lost = 61 - table.count("\n")
    assert [str(warning.message) for warning in told] == [
        "run/metrics.csv: File too large. The training goes on, its metrics are kept and tried again.",
        f"run/metrics.csv: the last {lost} lines could not be written.",
    ]
    logger.log_metrics({"loss": 1.0}, 60)
    assert list(read_curves(Path("run/metrics.csv"))["loss"]) == list(range(61))


def test_a_folder_that_cannot_be_written_stops_no_training() -> None:
    Path("run").write_text("no folder")
    with pytest.warns(UserWarning, match="The training goes on"):
        MetricsCSV("run").log_metrics({"loss": 1.0}, 0)


class Failing(Logger):
    """As a tracker whose server is gone, or whose disk is full."""

    name, version = "failing", ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    log_image = save = finalize = after_save_checkpoint = log_metrics


def test_a_tracker_that_fails_in_mid_run_stops_no_training() -> None:
    table = MetricsCSV("run")
    fitted = tiny.trainer(Path("run"), logger=[Failing(), table], max_steps=4, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"Failing has failed \(.*Broken pipe\)\. The training goes on") as told:
        fitted.fit(tiny.mixit(), tiny.digits())
    assert sum("has failed" in str(warning.message) for warning in told) == 1
    assert fitted.global_step == 4
    assert list(read_curves(Path("run/metrics.csv"))["loss"]) == [0, 1, 2, 3]


def test_what_a_signal_ends_is_no_failure(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    tracker = Failing()
    go_on_without(tracker)
    monkeypatch.setattr(loggers, "ending", threading.Event())
    loggers.ending.set()
    tracker.log_metrics({})
    assert not recwarn


def test_a_table_that_leads_out_of_a_strangers_run_is_not_written_to() -> None:
    Path("mine.txt").write_text("mine")
    Path("runs/foreign").mkdir(parents=True)
    Path("runs/foreign/metrics.csv").symlink_to(Path("mine.txt").resolve())
    config = [f"--config={ROOT}/configs/digits_mixit.yaml", f"--config={ROOT}/tests/tiny_images.yaml"]
    args = ["fit", *config, "--name", "foreign", "--trainer.logger", "false", "--ckpt_path", "last"]
    with pytest.warns(UserWarning, match=r"metrics\.csv: it is a link to a file outside .* The training goes on"):
        assert main([*args, "--trainer.enable_progress_bar", "false"]) == 0
    assert Path("mine.txt").read_text() == "mine"
