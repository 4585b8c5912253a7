"""The workflow of the papers' tables: what each table trains, tests and reports, and that a killed one goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plan
import pytest
import yaml

from surf_lightning.cli import main
from surf_lightning.metrics.tables import paper_tables
from surf_lightning.reporting.sweeps import SETTINGS
from tests.test_configs import ROOT, arguments, resolved

TINY = f"--config {ROOT}/tests/tiny_images.yaml --trainer.logger false"
snakemade = pytest.mark.skipif(find_spec("snakemake") is None, reason="snakemake is not installed")


def snakemake(*args: str) -> str:
    """What the workflow says in this folder."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "experiments" / "Snakefile"), "-j1", *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def commands(*args: str) -> list[str]:
    """Those of surf that the workflow would run."""
    return re.findall(r"-m surf_lightning (.*) >", snakemake("--dry-run", "--printshellcmds", *args))


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix[:-1]: config}
    return {name: value for key in config for name, value in flat(config[key], f"{prefix}{key}.").items()}


def configured(name: str) -> dict[str, Any]:
    """The whole configuration of the run ``name``, by dotted names."""
    run = plan.run(name)
    return flat(resolved(f"--config={run.config}", *run.changes.split()))


def test_the_grid_is_that_of_table_9() -> None:
    """Both losses; the row that stands in all three groups is the shipped configuration itself."""
    rows = plan.rows("ablation-cifar")
    assert rows[:3] == ["cifar_mixit", "cifar_surf_rm", "cifar_surf_sr"]
    assert plan.rows("ablation-mnist") == [name.replace("cifar", "mnist") for name in rows]
    table_9 = next(table["sweeps"] for table in paper_tables() if "sweeps" in table)
    for base, label in (("cifar_surf_rm", "SURF (ReMixIT)"), ("cifar_surf_sr", "SURF (Self-Remixing)")):
        usual = configured(base)
        found = {setting: {setting.say(usual)} for setting in SETTINGS}
        for name in rows[3:]:
            if name.startswith(f"{base}_"):
                changed = configured(name)
                different = {key for key in changed if changed[key] != usual[key]}
                (setting,) = (setting for setting in SETTINGS if different & set(setting.keys))
                assert different <= set(setting.keys)
                found[setting].add(setting.say(changed))
        assert {setting.title: values for setting, values in found.items()} == {
            title: set(values) for title, values in table_9["rows"][label].items()
        }
    assert len(rows) == 1 + 2 * (1 + 4 + 4 + 3)


def test_a_runs_name_says_what_it_trains() -> None:
    run = plan.run("digits_surf_rm_short_alpha_0.9_seed2")
    assert (run.config.stem, run.first) == ("digits_surf_rm", "digits_mixit")  # the teacher is an unchanged one
    assert run.changes.split()[-4:] == ["--model.ema_decay", "0.9", "--seed_everything", "2"]
    assert "--trainer.max_steps 2000" in run.changes
    assert plan.run("mnist-small_mixit") == plan.Run(ROOT / "configs" / "mnist-small_mixit.yaml", "", None)
    for name in ("cifar_surf", "cifar_surf_rm_gamma_2"):
        with pytest.raises(ValueError, match=name):
            plan.run(name)


@pytest.mark.parametrize("table", plan.PLAN["tables"])
def test_every_row_of_a_table_is_a_shipped_config_after_its_teacher(table: str) -> None:
    rows = plan.rows(table)
    assert len(set(rows)) == len(rows) > 2
    for name in rows:
        run = plan.run(plan.tested(name)[0])
        assert run.config.is_file()
        assert run.first in (None, *rows)
        assert name.partition("_")[0] in plan.PLAN["resources"]


def test_an_unknown_table_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"no table nothing: the tables are digits, .*cifar"):
        plan.rows("nothing")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits_surf_rm_short", {"beta_steps": 1200, "frozen_steps": 600, "ema_decay": 0.99}),
        ("digits_surf_rm_alpha_0", {"ema_decay": 0.0}),
        ("digits_surf_sr_batch_1", {"batch_size": 1}),  # of which Self-Remixing learns nothing
        ("digits_surf_rm_beta_0.5", {"beta_start": 0.5, "beta_end": 0.5, "beta_steps": 0.25}),
    ],
)
def test_every_change_trains(name: str, expected: dict[str, float]) -> None:
    assert main(arguments("digits_mixit", Path())) == 0
    run = plan.run(name)
    args = [*arguments(run.config.stem, Path()), *run.changes.split(), "--trainer.max_steps", "2", "--name", name]
    assert main(args) == 0
    saved = yaml.safe_load(Path("runs", name, "config.yaml").read_text())
    given = saved["model"]["init_args"] | saved["data"]["init_args"]
    assert {key: given[key] for key in expected} == expected
    assert given["warmup_steps"] == 100  # of the config


@snakemade
def test_arguments_that_make_leaves_empty_add_nothing() -> None:
    assert sorted(commands("digits", "--config", "args=", "args_fuss=")) == sorted(commands("digits"))


@snakemade
def test_finished_runs_are_skipped_and_all_are_reported() -> None:
    done = ["cifar_mixit", "cifar_surf_rm", "cifar_surf_rm_batch_4"]
    for name in done:
        Path("runs", name).mkdir(parents=True)
        for file in ("trained", "metrics.json"):
            Path("runs", name, file).touch()
    said = commands("ablation-cifar", "--config", "args=--trainer.precision bf16-mixed")
    fits = [command for command in said if command.startswith("fit ")]
    trained = [re.findall(r"--name (\S+)", command)[0] for command in fits]
    assert sorted([*trained, *done]) == sorted(plan.rows("ablation-cifar"))
    assert all("--ckpt_path last --trainer.precision bf16-mixed" in command for command in fits)  # it goes on
    tests = [command for command in said if command.startswith("test ")]
    assert len(tests) == len(fits)
    assert not any("--model" in command or "--data" in command for command in tests)  # all are tested alike
    report = re.findall(r"surf_lightning report (.*) --output (\S+)", snakemake("--dry-run", "-p", "ablation-cifar"))
    assert report == [(" ".join(f"runs/{name}" for name in plan.rows("ablation-cifar")), "runs/ablation-cifar")]


@snakemade
def test_a_table_may_test_a_run_in_another_way_and_on_other_data() -> None:
    for name in ("mixit", "basis", "surf_rm", "surf_sr"):
        Path("runs", f"cifar_{name}").mkdir(parents=True)
        Path("runs", f"cifar_{name}", "trained").touch()
    said = commands("table2-cifar")
    assert len(said) == 4
    assert all("--data.evaluation SampleMetrics --data.num_test 25000" in command for command in said)
    said = commands("runs/audioset_supervised_flow/metrics.json", "--config", "args=--x 1", "args_fuss=--x 2")
    assert [re.findall(r"--name (\S+).* --x (\d)", command)[0] for command in said] == [
        ("fuss_supervised_flow", "2"),
        ("audioset_supervised_flow", "1"),
    ]
    assert "--data " + str(ROOT / "configs/data/audioset.yaml") in said[1]
    assert "--ckpt_path runs/fuss_supervised_flow/checkpoints/best.ckpt" in said[1]


@pytest.mark.slow
@snakemade
def test_the_workflow_trains_tests_and_goes_on_where_it_was_killed() -> None:
    results = "runs/digits_surf_rm/metrics.json"
    args = [results, "--config", f"args={TINY}"]
    snakemake(*args)
    assert Path(results).is_file()
    assert "Nothing to be done" in snakemake(*args)
    for file in (results, "runs/digits_surf_rm/trained"):  # as if killed after the last checkpoint
        Path(file).unlink()
    snakemake(*args)
    assert "Restored all states" in Path("runs/logs/digits_surf_rm.log").read_text()
    assert not Path("runs/digits_surf_rm.1").exists()
