"""The command as a person uses it, mistakes included: one clear message, exit status not 0, no traceback."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from surf_lightning import data, methods, networks
from surf_lightning.cli import main
from surf_lightning.data.mixing import RandomMixtures
from surf_lightning.engine.run_folder import LOCK
from surf_lightning.errors import UserError
from surf_lightning.networks import SharedNCSNpp, serializable
from tests.test_configs import ROOT, arguments


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surf_lightning", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_help_comes_without_heavy_imports() -> None:
    code = "import sys, surf_lightning.cli as c; c.main(['--help']); print({'torch', 'lightning'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "surf fit --config" in done.stdout
    assert done.stdout.rstrip().endswith("set()")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fit", "--config", "CONFIGS/digits_mixit.yaml", "--data.batch_sizes", "4"], "batch_sizes"),
        (["fit", "--config", "CONFIGS/digits_mixit.yaml", "--trainer.max_stepz", "4"], "max_stepz"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--config", "CONFIGS/digits_surf_rm.yaml"], "surf fit --config configs/<dataset>_mixit.yaml"),
        (["test", "--config", "CONFIGS/digits_mixit.yaml"], "train first"),
        (["fit", "--config", "CONFIGS/digits_mixit.yaml", "--ckpt_path", "no.ckpt"], "no.ckpt"),
        (["fit", "--config", "CONFIGS/digits_mixit.yaml", "--data.batch_size", "1"], "data.batch_size"),
        (["fit", "--config", "CONFIGS/digits_mixit.yaml", "--data.batch_size", "0"], "at least 1"),
        (["report", "runs/nothing"], "surf test"),
        (["fit", "--config", "CONFIGS/digits_mixit.yaml", "--seed_everything", "-1"], "--seed_everything: -1"),
        (["report", ".", "--output", "/proc/report"], "is no run"),
        (["separete"], "separete"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(args: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    args = [arg.replace("CONFIGS", str(ROOT / "configs")) for arg in args]
    if args[0] == "fit":
        args += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    try:
        status = main(args)
    except SystemExit as stop:  # the argument parser's way
        status = int(stop.code or 0)
    assert status != 0
    captured = capfd.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err + captured.out


def test_missing_data_says_where_it_was_sought(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for family, folder in (("mnist", "MNIST/raw"), ("cifar", "cifar-10-batches-bin")):
        args = arguments(f"{family}_mixit", tmp_path / "empty")
        assert main(args) == 2
        assert f"{tmp_path}/empty/{folder}" in capfd.readouterr().err


def test_fit_test_and_report_leave_what_they_promise() -> None:
    shrunk = ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.enable_progress_bar", "false"]
    config = ["--config", str(ROOT / "configs" / "digits_mixit.yaml"), *shrunk]
    no_wandb = ["--trainer.logger", "surf_lightning.engine.loggers.MetricsCSV"]
    assert main(["fit", *config, *no_wandb]) == 0
    folder = Path("runs/digits_mixit")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"loss", "val/psnr", "val/ssim", "lr-Adam", "step"} <= rows[0].keys()
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"] == "surf_lightning.methods.MixIT"
    assert list((folder / "media").glob("step_*.png"))

    assert main(["test", *config, "--trainer.logger", "false"]) == 0
    record = json.loads((folder / "metrics.json").read_text())
    assert record["mixtures"] == 8
    assert record["steps"] == 2
    assert record["metrics"].keys() == record["average"].keys() == {"psnr", "ssim"}
    assert main(["report", str(folder), "--output", "report"]) == 0
    assert "| MixIT |" in Path("report/report.md").read_text()
    assert Path("report/report.png").stat().st_size > 1000


def test_a_fresh_fit_moves_the_old_run_aside() -> None:
    args = arguments("digits_mixit", Path())
    for _ in range(3):
        assert main(args) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"digits_mixit", "digits_mixit.1", "digits_mixit.2"}
    assert main([*args, "--name", "other", "--trainer.default_root_dir", "elsewhere"]) == 0
    assert Path("elsewhere/checkpoints/last.ckpt").is_file()
    assert main([*args, "--name", "other"]) == 0
    assert Path("runs/other/checkpoints/last.ckpt").is_file()


SGD = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.lr", "0.1"]


def test_a_run_that_cannot_go_on_as_configured_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    fit = arguments("digits_mixit", Path())
    assert main(fit) == 0
    wider = ["--model.network.init_args.channels", "8"]
    for args, says in [
        ([*fit, "--ckpt_path", "last", *wider], "network.channels is 4 there, 8 here"),
        (["test", *fit[1:], *wider], "network.channels is 4 there, 8 here"),
        ([*fit, "--ckpt_path", "last", "--trainer.max_steps", "4", *SGD], "optimizer is of another kind"),
        (["report", "runs/digits_mixit", "--output", "/proc/report"], "/proc/report: No such file"),
    ]:
        capfd.readouterr()
        assert main(args) == 2, args
        captured = capfd.readouterr()
        assert says in captured.err, args
        assert "Traceback" not in captured.err + captured.out


def test_help_offers_only_what_can_be_built(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "surf_lightning.methods.SURF"])
    shown = capfd.readouterr().out
    assert "surf_lightning.networks.SharedNCSNpp" in shown
    assert "surf_lightning.networks.ConstantNoise" in shown
    for base in ("networks.VelocityNetwork", "networks.PriorNoise"):
        assert f"surf_lightning.{base}" not in shown
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    shown = capfd.readouterr().out
    assert "surf_lightning.methods.SURF" in shown
    assert "surf_lightning.data.Digits" in shown
    for base in ("SeparationModule", "TeacherStudentModule", "SeparationData", "ImageMixtures", "AudioMixtures"):
        assert f".{base}" not in shown


@pytest.mark.parametrize("package", [data, methods, networks])
def test_every_argument_of_a_class_is_explained_in_its_help(package: ModuleType) -> None:
    for name in package.__all__:
        described = getattr(package, name)
        if isinstance(described, type):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(described, fail_untyped=False)
            silent = [action.dest for action in parser._actions if not (action.help or "").partition("(")[0].strip()]
            assert not silent, f"{name}: {silent}"


def test_a_network_of_the_users_own_is_found_in_the_folder_where_surf_runs(tmp_path: Path) -> None:
    Path("my_networks.py").write_text(
        "from surf_lightning.networks import RegressionNCSNpp, serializable\n\n\n"
        "@serializable\n"
        "class Mine(RegressionNCSNpp):\n"
        "    def __init__(self, num_outputs: int) -> None:\n"
        "        super().__init__(num_outputs, 2, 1, 8, channels=4, multipliers=(1,), blocks=1)\n"
    )
    command = ["fit", "--config", str(ROOT / "configs" / "digits_mixit.yaml"), "--trainer.fast_dev_run", "1"]
    command += ["--model.network", "my_networks.Mine", "--model.network.num_outputs", "4"]
    program = (
        f"import sys; sys.argv = ['surf', *{command!r}]; from surf_lightning.cli import entry_point; entry_point()"
    )
    # As the console script, which has its own folder in the path instead of the current one.
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class Unrecorded(SharedNCSNpp):
    def __init__(self) -> None:
        super().__init__(2, 1, 8, channels=4, multipliers=(1,), blocks=1)


@serializable
class NotZeroSum(Unrecorded):
    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        return x_t


@pytest.mark.parametrize(
    "mistake",
    [
        ["--data.batch_size", "-4"],
        ["--data.num_sources", "3"],
        ["--trainer.devices", "999"],
        ["--model.mixit_checkpoint", "text.ckpt"],
        ["--model.mixit_checkpoint", "none.ckpt"],
        ["--data", "Folder", "--data.root", "nowhere"],
        ["--model.network", "tests.test_cli.Unrecorded"],
        ["--model.network", "tests.test_cli.NotZeroSum"],
    ],
)
def test_a_fit_that_is_refused_leaves_the_run_that_is_there(mistake: list[str]) -> None:
    for name in ("digits_mixit", "digits_surf_rm"):
        assert main(arguments(name, Path())) == 0
    Path("text.ckpt").write_text("text")

    def files() -> dict[Path, int]:
        everything = (path for path in Path("runs").rglob("*") if path.is_file() and path.name != LOCK)
        return {path: path.stat().st_mtime_ns for path in everything}

    before = files()
    assert main([*arguments("digits_surf_rm", Path()), *mistake]) == 2
    assert files() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.precision", "bf16-true"], "bf16-mixed"),
        (["--trainer.overfit_batches", "1"], "batches_per_epoch"),
        (["--data.num_workers", "-1"], "num_workers"),
    ],
)
def test_what_lightning_offers_and_we_do_not_is_refused(
    options: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments("digits_mixit", Path()), *options]) == 2
    assert re.search(says, capfd.readouterr().err.splitlines()[-1])
    assert not Path("runs/digits_mixit/config.yaml").exists()


def test_a_trial_run_leaves_the_run_that_is_there() -> None:
    assert main(arguments("digits_mixit", Path())) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    assert main([*arguments("digits_mixit", Path()), "--trainer.fast_dev_run", "true"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_a_runs_own_configuration_given_again_means_that_run_and_no_checkpoint() -> None:
    assert main([*arguments("digits_mixit", Path()), "--name", "mine"]) == 0
    assert main([*arguments("digits_mixit", Path()), "--name", "mine", "--ckpt_path", "last"]) == 0
    saved = Path("runs/mine/config.yaml")
    config = yaml.safe_load(saved.read_text())
    assert (config["name"], config["ckpt_path"]) == ("mine", None)
    assert main(["test", "--config", str(saved)]) == 0
    assert Path("runs/mine/metrics.json").is_file()
    assert main(["fit", "--config", str(saved), "--name", "copy"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"mine", "copy"}
    copied = yaml.safe_load(Path("runs/copy/config.yaml").read_text())
    assert {**copied, "name": "mine"} == config


def test_a_fused_optimizer_is_clipped_in_bfloat16() -> None:
    options = [
        "--trainer.precision",
        "bf16-mixed",
        "--model.optimizer",
        "torch.optim.SGD",
        "--model.optimizer.lr",
        "1.0",
    ]
    weights = []
    for clip, fused in (("1e-3", "false"), ("1e-3", "true"), ("1e3", "true")):
        more = ["--trainer.gradient_clip_val", clip, "--model.optimizer.fused", fused]
        assert main([*arguments("digits_mixit", Path()), *options, *more]) == 0
        weights.append(torch.load("runs/digits_mixit/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    by_lightning, fused, unclipped = (torch.cat([w.flatten() for w in each.values()]) for each in weights)
    torch.testing.assert_close(fused, by_lightning, rtol=1e-5, atol=1e-7)
    assert (unclipped - by_lightning).norm() > 0.01


def test_what_a_worker_process_refuses_is_told_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("these cannot be used:\n  a.wav: silent") from KeyError("cause")

    monkeypatch.setattr(RandomMixtures, "__getitem__", refuse)
    assert main([*arguments("digits_mixit", Path()), "--data.num_workers", "1"]) == 2
    assert capfd.readouterr().err.endswith("surf fit: these cannot be used:\n  a.wav: silent\n")


def test_a_folder_that_cannot_be_written_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("no folder")
    assert main([*arguments("digits_mixit", Path()), "--trainer.default_root_dir", "file/run"]) == 2
    captured = capfd.readouterr()
    assert "surf fit: " in captured.err
    assert "file/run" in captured.err
    assert "Traceback" not in captured.err


def test_weights_and_biases_works_offline_without_an_account_and_resumes_the_same_run() -> None:
    args = ["fit", "--config", str(ROOT / "configs" / "digits_mixit.yaml")]
    args += ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.enable_progress_bar", "false"]
    first = run(*args)
    assert first.returncode == 0, first.stderr
    run_id = Path("runs/digits_mixit/wandb_id").read_text().strip()
    assert f"offline-run-*-{run_id}" in first.stderr + first.stdout
    again = run(*args, "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert again.returncode == 0, again.stderr
    segments = list(Path("runs/digits_mixit/wandb").glob("offline-run-*"))
    assert len(segments) == 2
    assert all(segment.name.endswith(run_id) for segment in segments)
