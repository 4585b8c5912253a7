"""The sweeps of the Makefile: the grid of the paper's Table 9, each run the shipped one with one setting changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from surf_lightning.cli import main
from surf_lightning.metrics.tables import paper_tables
from surf_lightning.reporting.sweeps import SETTINGS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(target: str, *done: str) -> str:
    """What ``make target`` would run in this folder, of whose runs ``done`` are finished."""
    for run in done:
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "metrics.json").touch()
    for name in ("Makefile", "configs", "pyproject.toml", "constraints.txt"):
        Path(name).symlink_to(ROOT / name)
    Path("installed").touch()
    os.utime("installed", (4e9, 4e9))  # newer than pyproject.toml: nothing is to be installed
    command = ["make", "--dry-run", target, "STAMP=installed", "BIN=bin"]
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    return re.sub(r"[ \t]+", " ", output.replace("\\\n", " "))  # a command a line


def fits(output: str) -> dict[str, list[str]]:
    """The names of the runs that are trained, and their configuration files."""
    lines = [line for line in output.splitlines() if " fit --config" in line]
    fit = [line.partition(" && ")[0] for line in lines]
    return {re.findall(r"--name (\S+)", line)[0]: re.findall(r"--config configs/(\S+)\.yaml", line) for line in fit}


def merged(paths: list[str]) -> dict[str, Any]:
    """The arguments that ``paths`` give, by dotted name; a part in a file of its own is left as its name."""
    flat: dict[str, Any] = {}

    def add(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                add(each, f"{name}.{key}" if name else key)
        else:
            flat[name] = value

    for path in paths:
        add(yaml.safe_load((ROOT / "configs" / f"{path}.yaml").read_text()), "")
    return flat


@pytest.mark.parametrize("data", ["cifar", "mnist"])
def test_the_grid_is_that_of_table_9(data: str) -> None:
    """Both losses; the row that stands in all three groups is the shipped configuration itself."""
    trained = fits(make(f"ablation-{data}"))
    assert next(iter(trained)) == f"{data}_mixit"  # the others' teacher
    assert len(trained) == 1 + 2 * (1 + 4 + 4 + 3)
    for method, label in (("surf_rm", "SURF (ReMixIT)"), ("surf_sr", "SURF (Self-Remixing)")):
        base = f"{data}_{method}"
        usual = merged([base]) | {"data.init_args.batch_size": 256}  # in the file of the data
        usual |= {"model.init_args.beta_start": 1.0, "model.init_args.beta_end": 0.0}  # by default
        for setting in SETTINGS:
            found = {setting.say(usual)}
            for name, files in trained.items():
                changed = usual | merged(files)
                if name.startswith(f"{base}_") and setting.say(changed) != setting.say(usual):
                    different = {key for key in changed if changed[key] != usual.get(key)}
                    assert different <= set(setting.keys)
                    assert files[0] == base
                    found.add(setting.say(changed))
            table_9 = next(table["sweeps"] for table in paper_tables() if "sweeps" in table)
            assert found == set(table_9["rows"][label][setting.title])


def test_a_run_is_named_by_what_it_changes() -> None:
    trained = fits(make("ablation-cifar"))
    assert trained["cifar_surf_rm_alpha_0.99"] == ["cifar_surf_rm", "ablation/alpha_0.99"]
    for name, (base, *changes) in trained.items():
        assert name == "_".join([base, *(change.removeprefix("ablation/") for change in changes)])


def test_the_teacher_of_a_changed_run_is_unchanged() -> None:
    trained = fits(make("runs/cifar_surf_sr_batch_4/metrics.json"))
    assert trained == {
        "cifar_mixit": ["cifar_mixit"],
        "cifar_surf_sr_batch_4": ["cifar_surf_sr", "ablation/batch_4"],
    }


def test_the_digits_sweep_is_short_and_runs_in_pairs() -> None:
    output = make("ablation-digits")
    assert "make --no-print-directory -j2 runs/digits_mixit/metrics.json" in output
    trained = fits(output)
    assert len(trained) == 1 + 1 + 4 + 3 + 3
    for name, files in trained.items():
        assert files[:2] == ["digits_surf_rm", "ablation/short"] or name == "digits_mixit"
        assert merged(files)["model.init_args.warmup_steps"] == 100
        assert name == "digits_mixit" or merged(files)["trainer.max_steps"] == 2000
    tested = re.findall(r"surf test --config (\S+) --name (\S+)", output)
    assert ("configs/digits_surf_rm.yaml", "digits_surf_rm_short_batch_1") in tested  # in batches of the usual size


def test_finished_runs_are_skipped_and_all_are_reported() -> None:
    done = ["cifar_mixit", "cifar_surf_rm", "cifar_surf_rm_batch_4"]
    output = make("ablation-cifar", *done)
    trained = fits(output)
    assert len(trained) == 25 - 3
    assert not set(done) & set(trained)
    (reported,) = re.findall(r"surf report (.*) --output runs/cifar_ablation", output)
    assert set(reported.split()) == {f"runs/{name}" for name in [*trained, *done]}
    assert output.count("--ckpt_path last") == len(trained)  # an interrupted one goes on


def test_table_2_measures_the_runs_of_table_1_anew() -> None:
    output = make("table2-cifar", "cifar_mixit", "cifar_basis", "cifar_surf_rm")
    assert list(fits(output)) == ["cifar_surf_sr"]
    measured = re.findall(r"surf test (.*?) --trainer", output)
    options = "--data.evaluation SampleMetrics --data.num_test 25000"
    assert [line for line in measured if "SampleMetrics" in line] == [
        f"--config configs/{name}.yaml --name {name} {options}"
        for name in ("cifar_mixit", "cifar_basis", "cifar_surf_rm", "cifar_surf_sr")
    ]


def test_every_change_trains() -> None:
    """Also a batch of one, of which Self-Remixing learns nothing."""
    tiny = ["--config", str(ROOT / "tests" / "tiny_images.yaml"), "--trainer.logger", "false"]
    tiny += ["--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", str(ROOT / "configs" / "digits_mixit.yaml"), *tiny]) == 0
    for method, change, expected in (
        ("surf_rm", "short", {"beta_steps": 800, "ema_decay": 0.99}),
        ("surf_rm", "alpha_0", {"ema_decay": 0.0}),
        ("surf_sr", "batch_1", {"batch_size": 1}),
        ("surf_rm", "beta_0.5", {"beta_start": 0.5, "beta_end": 0.5, "beta_steps": 3000}),
    ):
        files = [str(ROOT / "configs" / part) for part in (f"digits_{method}.yaml", f"ablation/{change}.yaml")]
        overlaid = ["--config", files[0], *tiny, "--config", files[1], "--trainer.max_steps", "2"]
        assert main(["fit", *overlaid, "--name", change]) == 0
        saved = yaml.safe_load(Path("runs", change, "config.yaml").read_text())
        arguments = saved["model"]["init_args"] | saved["data"]["init_args"]
        assert {key: arguments[key] for key in expected} == expected
        assert arguments["warmup_steps"] == 100  # of the file before


@pytest.mark.parametrize("target", ["ablation-fuss", "reproduce-nothing"])
def test_an_unknown_sweep_says_which_there_are(target: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        make(target)
    assert "cifar" in error.value.stderr
