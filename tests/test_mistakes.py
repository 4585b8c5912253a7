"""Bad arguments and bad configurations: one line that says what and where, exit status 2, nothing on disk."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from surf_lightning.cli import main
from surf_lightning.engine import lightning_cli
from surf_lightning.engine.fit import check
from tests.test_configs import ROOT


@pytest.fixture(autouse=True)
def _without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a fit up to where it would change something on disk."""
    monkeypatch.setattr(lightning_cli, "train", lambda *args: check(*args[:4]))


def mistake(args: list[str]) -> int:
    """The status of a command that may be wrong; a wrong one says why in one line and leaves nothing."""
    before = sorted(Path().rglob("*"))
    try:
        status = main(args)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    assert status in (0, 2)
    assert sorted(Path().rglob("*")) == before
    return status


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("fit --config digits_mixit --data.batch_sizes 4", "mean --data.batch_size?"),
        ("fit --config digits_mixit --trainer.max_stepz 4", "mean --trainer.max_steps"),
        ("fit --config nowhere.yaml", "nowhere.yaml"),
        ("fit --config digits_surf_rm", "surf fit --config <dataset>_mixit"),
        ("test --config digits_mixit", "train first"),
        ("fit --config digits_mixit --ckpt_path no.ckpt", "no.ckpt"),
        ("fit --config digits_mixit --data.batch_size 1", "data.batch_size"),
        ("fit --config digits_mixit --data.batch_size 0", "at least 1"),
        ("report runs/nothing", "surf test"),
        ("fit --config digits_mixit --seed_everything -1", "--seed_everything: -1"),
        ("report . --output /proc/report", "is no run"),
        ("separete", "there is no command 'separete'; did you mean separate?"),
        ("fit --config folder_mixit --data.rot x", "did you mean --data.root? --data.help Folder"),
        ("fit --config digits_mixit --data Digit", "did you mean Digits"),
        ("fit --config digits_mixit --optimizer.lr 1", "did you mean --model.optimizer.lr?"),
        ("separate a.wav --chekpoint c", "did you mean --checkpoint? --help"),
        ("predict", "no command 'predict'"),
        ("report", "name the folders of the runs"),
        ("separate --checkpoint c --output o", "name the files or folders"),
        (
            "fit --config digits_mixit --trainer.accumulate_grad_batches 0",
            "trainer.accumulate_grad_batches is 0, but must be positive",
        ),
        ("fit --config digits_mixit --trainer.accumulate_grad_batches -1", "trainer.accumulate_grad_batches is -1"),
        ("fit --config digits_mixit --trainer.gradient_clip_val -1", "trainer.gradient_clip_val is -1"),
        (
            "fit --config digits_mixit --trainer.val_check_interval 100 --data.batches_per_epoch 10",
            "trainer.val_check_interval is 100",
        ),
        ("fit --config digits_mixit --checkpoints.every_minutes 0", "must be positive, keep (1) at least 1"),
        ("fit --config digits_mixit --checkpoints.keep 0", "must be positive, keep (0) at least 1"),
        ("fit --config digits_mixit --trainer.devices abc", "`devices`"),
        ("fit --config digits_mixit --trainer.accelerator tpu", "torch_xla"),
        ("fit --config digits_mixit --model.network.blocks -1", "blocks (-1)"),
        ("fit --config digits_mixit --model.network.multipliers '[]'", "multipliers ([])"),
        ("fit --config digits_mixit --model.micro_batch 0", "micro_batch (0)"),
        ("fit --config digits_mixit --model.warmup_steps -1", "warmup_steps (-1)"),
        ("fit --config digits_mixit --model.seed 3", "--seed_everything sets"),
        ("fit --config digits_mixit --model.network.channels 0", "by zero"),
        ("fit --config digits_mixit --trainer.precision bf16-true", "bf16-mixed"),
        ("fit --config digits_mixit --trainer.overfit_batches 1", "batches_per_epoch"),
        ("fit --config digits_mixit --trainer.limit_train_batches 3", "batches_per_epoch"),
        ("fit --config digits_mixit --data.num_workers -1", "num_workers"),
        ("separate '' --checkpoint c --output o", "a name is empty"),
        ("separate a.wav --checkpoint c --output ''", "--output is empty"),
        ("export --checkpoint '' --output o", "--checkpoint is empty"),
        ("report ''", "a name is empty"),
        ("separate 'a\x1b[31m.wav' --checkpoint 'c\x1b[31m' --output o", "c\\x1b[31m"),
    ],
)
def test_a_mistake_ends_in_one_clear_line(command: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    args = shlex.split(command)
    assert mistake([*args, "--trainer.logger", "false"] if args[0] == "fit" else args) == 2
    captured = capfd.readouterr()
    said = captured.err.splitlines()[-1]
    assert said.startswith(f"surf {args[0]}: ")
    assert says in said
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG\r\n\x1a\n", "is not written in UTF-8"),
        (b"trainer: [1, 2]", "trainer is [1, 2], where names and their values are expected"),
        (b"trainer: 1.0e30", "trainer is 1.0e30"),
        (b"- a\n- b\n", "it is no mapping"),
        (b"a: &a [*a]", "its aliases unfold"),
        (b"a: [", "it is no YAML"),
        (b"", "it is no mapping"),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_bytes(content)
    assert mistake(["fit", "--config", "mine.yaml"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("surf fit: mine.yaml")
    assert says in said


# -- any configuration --

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**9), 1e300, float("nan"), float("inf"), "", "x", "../x", "null", [], {}, [1, [2]]]),
    st.text(max_size=5),
    st.dictionaries(st.sampled_from(["class_path", "init_args", "a"]), st.text(max_size=3), max_size=2),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(*at, key), *places(value[key], (*at, key))]]


def small_config() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "configs" / "digits_mixit.yaml").read_text())
    config["trainer"]["logger"] = False
    return config


def check_any_config(data: st.DataObject) -> None:
    """A configuration with up to three values replaced, removed or added."""
    config = copy.deepcopy(small_config())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(config)))
        part = config
        for key in place[:-1]:
            part = part[key]
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "remove" and isinstance(part, dict):
            del part[place[-1]]
        elif kind == "add" and isinstance(part, dict):
            part[
                data.draw(
                    st.sampled_from(["x", "num_workers", "seed", "micro_batch", "ema_decay", "devices", "precision"])
                )
            ] = data.draw(VALUES)
        else:
            part[place[-1]] = data.draw(VALUES)
        if not places(config):
            break
    Path("any.yaml").write_text(yaml.safe_dump(config))
    mistake(["fit", "--config", "any.yaml"])
