"""The command as a person uses it, mistakes included: one clear message, exit status not 0, no traceback."""

from __future__ import annotations

import inspect
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from torch import Tensor

from surf_lightning import data, methods, metrics, networks
from surf_lightning.cli import COMMANDS, main
from surf_lightning.data.mixing import RandomMixtures
from surf_lightning.engine import configs, lightning_cli
from surf_lightning.engine.arguments import NOISE, call, readable
from surf_lightning.engine.configs import named_modules, with_config_paths
from surf_lightning.engine.run_folder import LOCK
from surf_lightning.errors import UserError
from surf_lightning.inference.journal import JOURNAL, MANIFESTS, SUMMARY
from surf_lightning.inference.streaming import CHANNELS
from surf_lightning.networks import SharedNCSNpp, serializable
from surf_lightning.reporting.runs import read_curves
from tests.test_configs import CONFIGS, ROOT, arguments

MODULE = ["-m", "surf_lightning"]
# -P: the path of an installed script has no current folder.
CONSOLE_SCRIPT = ["-P", "-c", "from surf_lightning.cli import entry_point as e; e()"]


def surf(*command: str, start: list[str] = CONSOLE_SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *start, *command], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("command", ["", "report", "separate", "app", "export", "configs"])
def test_help_comes_without_heavy_imports(command: str) -> None:
    heavy = {"torch", "lightning", "numpy", "wandb"} | ({"jsonargparse"} if not command else set())
    code = f"import sys, surf_lightning.cli as c\ntry: c.main({[*command.split(), '--help']})\n"
    code += f"finally: print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"": "surf fit --config"}.get(command, f"usage: surf {command}") in done.stdout
    assert done.stdout.rstrip().endswith("set()")


def test_the_help_of_a_command_is_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command, function in COMMANDS.items():
        assert f"{command:10} {str(function.__doc__).partition(chr(10))[0]}" in shown
    with pytest.raises(SystemExit, match="0"):
        main(["separate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in (*MANIFESTS, SUMMARY, JOURNAL, "--trust", "--num_samples", "--num-samples"):
        assert name in shown
    channels = shown.partition("--channels {")[2].partition("}")[0]
    assert set(channels.split(",")) == set(CHANNELS)


def test_options_may_be_spelled_with_hyphens_and_flags_take_no_value() -> None:
    def command(*words: str, num_samples: int = 1, some_flag: bool = False) -> Any:
        """Do it.

        Args:
            num_samples: How many.
            some_flag: Whether.
        """
        return words, num_samples, some_flag

    assert call(command, []) == ((), 1, False)
    assert call(command, ["a", "b", "--num-samples", "3"]) == (("a", "b"), 3, False)
    assert call(command, ["--num_samples=3", "--some_flag"]) == ((), 3, True)
    for wrong in (["--num_samples", "x"], ["--some_flag", "--other"], ["--num_samples"]):
        with pytest.raises(UserError):
            call(command, wrong)


@pytest.mark.parametrize("noise", NOISE)
def test_a_message_of_jsonargparse_is_shown_without_its_internals(
    noise: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake, shown = ["--data.batch_size", "x"], "--data.batch_size: Expected a <class 'int'>. Got value: x"
    if noise == "Given value: Namespace(":
        mistake, shown = ["--model", "SURF"], "--model: the following arguments are required: network"
    said: list[str] = []
    monkeypatch.setattr(lightning_cli, "readable", lambda message: said.append(message) or readable(message))
    assert main(["fit", "--config", str(ROOT / "configs" / "digits_mixit.yaml"), *mistake]) == 2
    (message,) = said
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    assert any(line.startswith(noise) for line in lines), "jsonargparse says it otherwise now"
    assert capsys.readouterr().err == f"surf fit: {shown}\n"


def test_a_shipped_configuration_is_found_by_its_name_and_one_that_is_there_wins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "-c", "digits_mixit", *arguments("digits_mixit", Path())[3:]]) == 0
    assert Path("runs/digits_mixit/checkpoints/last.ckpt").is_file()
    shipped = str(ROOT / "configs" / "digits_mixit.yaml")
    for option in ("--config", "-c"):
        assert with_config_paths(["fit", option, "digits_mixit", "--name", "cifar_mixit"]) == [
            *("fit", option, shipped, "--name", "cifar_mixit")
        ]
    Path("digits_mixit").mkdir()  # a folder is no configuration
    assert with_config_paths(["fit", "--config=digits_mixit"]) == ["fit", f"--config={shipped}"]
    Path("digits_mixit").rmdir()
    Path("digits_mixit").write_text("mine: 1\n")
    for given in ("digits_mixit", '{"data": 1}', "--help"):
        assert with_config_paths(["fit", "--config", given]) == ["fit", "--config", given]
    for given in ("digits_mixi", "configs/digits_mixi.yaml"):
        assert main(["fit", "--config", given]) == 2
        assert f"no configuration {given}: neither a file nor" in (said := capsys.readouterr().err)
        assert "; did you mean digits_mixit" in said


def test_the_shipped_configurations_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(listed) == CONFIGS
    assert listed["digits_mixit"].startswith("MixIT on 8x8 digits")
    assert main(["configs", "digits_mixit"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "digits_mixit.yaml").read_text()
    assert main(["configs", "nothing"]) == 2
    assert "neither a file nor" in capsys.readouterr().err


def test_in_a_wheel_the_configurations_lie_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "surf_lightning"
    package.mkdir(parents=True)
    monkeypatch.setattr(configs, "files", lambda _: package)
    with pytest.raises(UserError, match="no configurations"):
        configs.config_folder()
    (package / "configs").mkdir()
    (package / "configs" / "mine.yaml").write_text("# What it is.\n# More.\ndata: 1\n")
    assert configs.summaries() == {"mine": "What it is."}
    assert configs.shipped_config("mine") == package / "configs" / "mine.yaml"


def test_fit_test_and_report_leave_what_they_promise() -> None:
    shrunk = ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.enable_progress_bar", "false"]
    config = ["--config", str(ROOT / "configs" / "digits_mixit.yaml"), *shrunk]
    no_wandb = ["--trainer.logger", "MetricsCSV"]
    assert main(["fit", *config, *no_wandb]) == 0
    folder = Path("runs/digits_mixit")
    assert read_curves(folder / "metrics.csv").keys() == {"loss", "val/psnr", "val/ssim", "lr-Adam"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"] == "surf_lightning.methods.MixIT"
    assert list((folder / "media").glob("step_*.png"))

    assert main(["test", *config, "--trainer.logger", "false"]) == 0
    record = json.loads((folder / "metrics.json").read_text())
    assert record["mixtures"] == 8
    assert record["steps"] == 2
    assert record["metrics"].keys() - {"momi"} == record["average"].keys() == {"psnr", "ssim"}
    assert main(["report", str(folder), "--output", "report"]) == 0
    assert "| MixIT |" in Path("report/report.md").read_text()
    assert Path("report/report.png").stat().st_size > 1000


def test_a_run_lies_where_it_is_told_to() -> None:
    args = [*arguments("digits_mixit", Path()), "--name", "other"]
    for _ in range(2):
        assert main(args) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"other", "other.1"}
    assert main([*args, "--trainer.default_root_dir", "elsewhere"]) == 0
    assert Path("elsewhere/checkpoints/last.ckpt").is_file()


SGD = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.lr", "0.1"]


def test_a_run_that_cannot_go_on_as_configured_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    fit = arguments("digits_mixit", Path())
    assert main(fit) == 0
    wider = ["--model.network.init_args.channels", "8"]
    for args, says in [
        ([*fit, "--ckpt_path", "last", *wider], "network.channels is 4 there, 8 here"),
        (["test", *fit[1:], *wider], "network.channels is 4 there, 8 here"),
        ([*fit, "--ckpt_path", "last", "--trainer.max_steps", "4", *SGD], "optimizer is of another kind"),
        (["report", "runs/digits_mixit", "--output", "/proc/report"], "the folder /proc/report cannot be written"),
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


def test_a_network_of_the_users_own_is_found_in_the_folder_where_surf_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("my_networks.py").write_text(
        "from my_helpers import CHANNELS\n"
        "from surf_lightning.networks import RegressionNCSNpp, serializable\n\n\n"
        "@serializable\n"
        "class Mine(RegressionNCSNpp):\n"
        "    def __init__(self, num_outputs: int) -> None:\n"
        "        super().__init__(num_outputs, 2, 1, 8, channels=CHANNELS, multipliers=(1,), blocks=1)\n"
    )
    Path("my_helpers.py").write_text("CHANNELS = 4\n")
    command = ["fit", "--config", "digits_mixit", "--trainer.max_steps", "1", "--trainer.logger", "false"]
    command += ["--data.batches_per_epoch", "1", "--data.num_validation", "8"]
    done = surf(*command, "--model.network", "my_networks.Mine", "--model.network.num_outputs", "4")
    assert done.returncode == 0, done.stderr
    export = ["export", "--checkpoint", "runs/digits_mixit/checkpoints/last.ckpt", "--output", "exported"]
    assert main(export) == 2
    assert "would import my_networks.Mine, from outside" in capsys.readouterr().err
    done = surf(*export, "--trust")
    assert done.returncode == 0, done.stderr


# Optional modules that our libraries, or theirs, look for, at their import or later; and such as are installed.
STRANGERS = ["accimage", "argcomplete", "defusedxml", "gmpy2", "isal", "lz4", "pynvml", "regex", "snappy", "zstandard"]
STRANGERS += ["lightning", "numpy", "torch", "wandb"]


def test_no_file_of_the_current_folder_is_imported() -> None:
    """It may be a stranger's: a folder of recordings from somewhere."""
    for name in STRANGERS:
        Path(f"{name}.py").write_text(f"open('imported', 'a').write('{name} ')")
    Image.new("L", (8, 8), 100).save("a.png")
    fit = [*arguments("digits_mixit", Path()), "--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    checkpoint = ["--checkpoint", "runs/digits_mixit/checkpoints/last.ckpt", "--output"]
    several = "from surf_lightning.cli import main; import json, sys; print(*map(main, json.loads(sys.argv[1])))"
    commands = [
        ["report", "runs/digits_mixit"],
        ["separate", "a.png", *checkpoint, "separated"],
        ["export", *checkpoint, "exported"],
    ]
    for start, command in (
        (CONSOLE_SCRIPT, ["--help"]),
        (MODULE, fit),
        (["-P", "-c", several], [json.dumps(commands)]),  # in one process, which imports all that they import
    ):
        done = surf(*command, start=start)
        assert not Path("imported").exists(), (command, Path("imported").read_text())
        assert done.returncode == 0, (command, done.stderr)
    assert done.stdout.endswith("0 0 0\n")


def test_modules_are_known_by_the_names_in_nested_configurations() -> None:
    Path("parts").mkdir()
    Path("parts/net.yaml").write_text("class_path: my_networks.Mine\n")
    Path("parts/flow.yaml").write_text("{model: {network: net.yaml}, loss: my_losses.f}\n")
    Path("main.yaml").write_text("model: parts/flow.yaml  # a comment\ndata: parts/none.yaml\n")
    assert named_modules(["fit", "--config", "main.yaml", "--data=my_data.Mine"]) >= {
        "my_networks",
        "my_losses",
        "my_data",
    }
    assert not named_modules(["fit", "--config=main.yaml"]) & {"my_data", "argcomplete"}


@pytest.mark.parametrize("package", [data, methods, metrics, networks])
def test_every_class_is_known_by_its_short_name(package: ModuleType) -> None:
    for name in package.__all__:
        described = getattr(package, name)
        if isinstance(described, type) and not inspect.isabstract(described):
            base = next(cls for cls in reversed(described.__mro__) if cls.__module__.startswith("surf_lightning"))
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(base, "it", required=False)
            with suppress(ArgumentError):  # it may need arguments
                parser.parse_args([f"--it={name}"])
            shown = io.StringIO()
            with redirect_stdout(shown), suppress(SystemExit):
                parser.parse_args([f"--it.help={name}"])
            assert f"surf_lightning.{package.__name__.rpartition('.')[2]}" in shown.getvalue(), name


SHORT = """\
trainer:
  max_steps: 1
  accelerator: cpu
  logger: {class_path: CSVLogger, init_args: {save_dir: .}}
  callbacks: ModelSummary
data:
  class_path: Digits
  init_args: {batch_size: 2, batches_per_epoch: 1, num_validation: 2}
model:
  class_path: SupervisedFlow
  init_args:
    network:
      class_path: SharedNCSNpp
      init_args: {num_sources: 2, image_channels: 1, image_size: 8, channels: 4, multipliers: [1], blocks: 1,
        attention_resolutions: [], scale_by_sigma: false, head: SourceHead}
    noise: ConstantNoise
    reduction: log_energy
    optimizer: {class_path: AdamW, init_args: {lr: 1.0e-3}}
"""


def test_a_whole_run_is_configured_by_short_names() -> None:
    Path("mine.yaml").write_text(SHORT)
    assert main(["fit", "--config", "mine.yaml", "--data.evaluation", "PixelMetrics"]) == 0
    saved = yaml.safe_load(Path("runs/mine/config.yaml").read_text())["model"]["init_args"]
    assert saved["network"]["class_path"] == "surf_lightning.networks.SharedNCSNpp"
    assert saved["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert saved["reduction"] == "log_energy"
    assert main(["fit", "--config", "runs/mine/config.yaml", "--name", "again"]) == 0


def test_a_loss_is_named_or_imported(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_losses.py").write_text("def halved(error, reference):\n    return error / 2\n")
    fit = arguments("digits_mixit", Path())
    for given, saved in (("squared_error", "squared_error"), ("my_losses.halved", "my_losses.halved")):
        assert main([*fit, "--model.error", given]) == 0
        assert yaml.safe_load(Path("runs/digits_mixit/config.yaml").read_text())["model"]["init_args"]["error"] == saved
    sys.modules.pop("my_losses")
    for wrong in ("square_error", "my_losses.none", "no_losses.halved"):
        assert main([*fit, "--model.error", wrong]) == 2
        assert wrong.rpartition(".")[2] in capsys.readouterr().err


class Unrecorded(SharedNCSNpp):
    def __init__(self) -> None:
        super().__init__(2, 1, 8, channels=4, multipliers=(1,), blocks=1)


@serializable
class NotZeroSum(Unrecorded):
    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        return x_t


MISTAKES = [
    ["--data.batch_size", "-4"],
    ["--data.num_sources", "3"],
    ["--trainer.devices", "999"],
    ["--model.mixit_checkpoint", "text.ckpt"],
    ["--model.mixit_checkpoint", "none.ckpt"],
    ["--data", "Folder", "--data.root", "nowhere"],
    ["--model.network", "tests.test_cli.Unrecorded"],
    ["--model.network", "tests.test_cli.NotZeroSum"],
]


def test_a_fit_that_is_refused_or_but_a_trial_leaves_the_run_that_is_there() -> None:
    for name in ("digits_mixit", "digits_surf_rm"):
        assert main(arguments(name, Path())) == 0
    Path("text.ckpt").write_text("text")

    def files() -> dict[Path, int]:
        everything = (path for path in Path("runs").rglob("*") if path.is_file() and path.name != LOCK)
        return {path: path.stat().st_mtime_ns for path in everything}

    before = files()
    for options, status in [(["--trainer.fast_dev_run", "true"], 0), *((mistake, 2) for mistake in MISTAKES)]:
        assert main([*arguments("digits_surf_rm", Path()), *options]) == status, options
        assert files() == before, options


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


def test_a_runs_own_configuration_means_the_folder_in_which_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert main([*arguments("digits_mixit", Path()), "--name", "mine"]) == 0
    moved = Path("runs/mine.1/config.yaml")
    assert main(["test", "--config", str(moved)]) == 0
    assert moved.with_name("metrics.json").is_file()
    assert not Path("runs/mine/metrics.json").exists()
    Path("archive").mkdir()
    moved = moved.parent.rename("archive/kept") / moved.name
    assert main(["fit", "--config", str(moved), "--ckpt_path", "last", "--trainer.max_steps", "3"]) == 0
    with monkeypatch.context() as patched:
        patched.chdir(moved.parent)
        assert main(["fit", "--config", "config.yaml", "--trainer.max_steps", "1"]) == 0
    lasts = {run: Path(run, "checkpoints/last.ckpt") for run in ("runs/mine", "archive/kept", "archive/kept.1")}
    steps = {run: torch.load(path, weights_only=True)["global_step"] for run, path in lasts.items()}
    assert steps == {"runs/mine": 2, "archive/kept": 1, "archive/kept.1": 3}


def test_a_fused_optimizer_is_clipped_in_bfloat16() -> None:
    options = ["--trainer.precision=bf16-mixed", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1.0"]
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


def test_weights_and_biases_works_offline_without_an_account_and_resumes_the_same_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_SILENT", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    args = ["fit", "--config", str(ROOT / "configs" / "digits_mixit.yaml")]
    args += ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.enable_progress_bar", "false"]
    first = surf(*args)
    assert first.returncode == 0, first.stderr
    run_id = Path("runs/digits_mixit/wandb_id").read_text().strip()
    (line,) = [line for line in (first.stderr + first.stdout).splitlines() if "wandb" in line or "W&B" in line]
    assert f"offline-run-*-{run_id}" in line
    again = surf(*args, "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert again.returncode == 0, again.stderr
    segments = list(Path("runs/digits_mixit/wandb").glob("offline-run-*"))
    assert len(segments) == 2
    assert all(segment.name.endswith(run_id) for segment in segments)


def test_a_mistake_has_its_status_where_it_cannot_be_said() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [sys.executable, *CONSOLE_SCRIPT, "report", "nothing"]
        assert subprocess.run(command, stdout=full, stderr=full, env=buffered, timeout=300, check=False).returncode == 2
