"""What is read from a run's folder, and what is said of that which cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning.errors import UserError
from surf_lightning.reporting.runs import Run, read_curves, runs_in
from tests.reporting.fabricate import CURVES, image_examples, results, write


def run(name: str = "digits_mixit", **parts: str) -> Run:
    return Run.read(Path(write(name, results("MixIT", {"psnr": 18.0}), image_examples(), **parts)))


def test_a_whole_run_misses_nothing() -> None:
    whole = run()
    assert whole.missing == ()
    assert (whole.label, whole.data, whole.seed) == ("MixIT", "Digits", 7)
    assert whole.facts == {
        "seed": "7",  # the one it was trained from, whatever the test was told
        "steps": "4,000",
        "minutes": "1.5",
        "hardware": "one fast <GPU>",
        "commit": "0123456789abcdef0123456789abcdef01234567 with changes",
        "version": "0.1.0",
        "checkpoint": "runs/x/checkpoints/best.ckpt",
    }


def test_curves_of_a_resumed_run_that_was_killed() -> None:
    Path("metrics.csv").write_text(CURVES)
    curves = read_curves(Path("metrics.csv"))
    assert curves["loss"] == {49: 0.5, 99: 0.2, 199: 0.125}  # the later of two at step 99; no nan, no half a line
    assert curves["beta"] == {49: 1.0, 99: 0.5, 149: 0.0, 199: 0.0}
    assert curves["val/psnr"] == {99: 15.5, 199: 17.5}
    assert curves.keys() == {"beta", "loss", "lr-Adam", "val/psnr", "val/ssim"}


def test_a_run_that_was_never_tested_is_known_by_its_folder_and_its_configuration() -> None:
    untested = Run.read(Path(write("mine", None, None)))
    assert untested.missing == ("no metrics.json: surf test writes it", "no test_examples.pt: surf test writes it")
    assert (untested.label, untested.data) == ("mine", "Digits")
    assert (untested.facts["steps"], untested.facts["minutes"], untested.facts["seed"]) == ("200", "", "7")


def test_a_configuration_tells_whether_a_method_learns_from_true_sources() -> None:
    for method, needed in (("SemiSupervisedMixIT", True), ("MixIT", False), ("Stranger", False)):
        config = f"model:\n  class_path: surf_lightning.methods.{method}\n"
        assert Run.read(Path(write(method, None, None, config=config))).needs_sources == needed


def test_what_was_validated_without_truth_lacks_no_test() -> None:
    for data in ("Folder", "Shards", "Stranger"):
        folder = Path(write(data, None, None, config=f"data:\n  class_path: surf_lightning.data.{data}\n"))
        (folder / "metrics.csv").write_text("step,epoch,name,value\n99,0,val/momi,1.5\n")
        assert (Run.read(folder).missing, Run.read(folder).data) == ((), data)


def test_a_test_alone_is_a_run_as_well() -> None:
    folder = write("digits_mixit", results("MixIT", {"psnr": 18.0}), None, config="")
    assert Run.read(Path(folder)).missing == (
        "no config.yaml: surf fit writes it",
        "no metrics.csv: the run was not logged to it",
        "no test_examples.pt: surf test writes it",
    )
    assert Run.read(Path(folder)).facts["hardware"] == "a CPU, 2 threads"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.json", '{"metrics": {', "metrics.json cannot be read"),
        ("metrics.json", '{"metrics": {}}', "it has no data, label"),
        ("test_examples.pt", "no tensors", "test_examples.pt cannot be read"),
        ("metrics.csv", "loss,step\n0.5,3\n", "its columns are loss, step, not step, epoch, name, value"),
        ("metrics.csv", "step,epoch,name,value\n1,0," + 200_000 * "x" + ",1\n", "metrics.csv cannot be read"),
        ("metrics.json", "[]", "it is no object"),
        ("metrics.json", "null", "it is no object"),
        ("metrics.json", 5000 * "[", "metrics.json cannot be read"),
        ("metrics.json", '{"metrics": {"psnr": "18"}, "label": "a", "data": "b"}', "not all numbers"),
        ("metrics.json", '{"metrics": {"psnr": NaN}, "label": "a", "data": "b"}', "not all numbers"),
        ("metrics.json", '{"metrics": {}, "label": ["a"], "data": "b"}', "its label is"),
        ("metrics.json", '{"metrics": {}, "label": "a", "data": "b", "steps": 1e300}', "its steps is"),
        ("config.yaml", "a: &a [*a]", "its aliases unfold"),
        ("config.yaml", "- a list", "it is no mapping"),
        ("config.yaml", "a: [", "it is no YAML"),
    ],
)
def test_a_damaged_part_is_missing_and_the_rest_is_there(name: str, content: str, says: str) -> None:
    folder = run().folder
    (folder / name).write_text(content)
    damaged = Run.read(folder)
    assert len(damaged.missing) == 1
    assert says in damaged.missing[0]
    assert sum(map(bool, (damaged.results, damaged.examples, damaged.curves, damaged.config))) == 3


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_without_any_part_is_no_run(empty: bool) -> None:
    if empty:
        Path("runs/nothing").mkdir(parents=True)
    with pytest.raises(UserError, match="runs/nothing is no run: there is nothing in it that surf fit or surf test"):
        Run.read(Path("runs/nothing"))


def test_the_second_protocol_of_a_run_is_read_beside_the_first() -> None:
    folder = run().folder
    (folder / "metrics.json").rename(folder / "metrics_samples.json")
    assert Run.read(folder).results.keys() == {"metrics_samples"}
    assert Run.read(folder).missing == ()


def test_the_pictures_of_the_latest_validation_are_found() -> None:
    folder = run().folder
    (folder / "media").mkdir()
    for name in ("step_0000500.png", "step_0001000_1.png", "step_0001000_1_mixture.wav"):
        (folder / "media" / name).touch()
    assert [path.name for path in Run.read(folder).media] == ["step_0001000_1.png", "step_0001000_1_mixture.wav"]


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("surf_lightning.methods.MixIT", "MixIT"),
        ("surf_lightning.methods.SURF", "SURF (Self-Remixing)"),
        ("my_methods.Mine", "Mine"),
    ],
)
def test_a_run_that_was_never_tested_has_the_name_of_its_method(method: str, label: str) -> None:
    config = f"model:\n  class_path: {method}\n  init_args: {{objective: self_remixing}}\n"
    assert Run.read(Path(write("mine", None, None, config=config))).label == label


def test_a_run_whose_beta_has_not_fallen_says_so() -> None:
    model = "model:\n  class_path: surf_lightning.methods.SURF\n  init_args: {beta_end: 0.0}\n"
    short = Run.read(Path(write("short", None, None, config=model)))
    assert short.unfinished == ""
    (short.folder / "metrics.csv").write_text(CURVES.replace("beta,0.0", "beta,0.75"))
    says = "beta has fallen to 0.75 only, not to 0: MixIT still led the student"
    assert Run.read(short.folder).unfinished == says


def test_a_folder_of_runs_stands_for_them() -> None:
    for name in ("a", "b.1", "demo/c", "demo/.hidden", "b"):
        write(name, None, None)
    Path("runs/demo/media").mkdir()
    assert [path.as_posix() for path in runs_in(Path("runs"))] == ["runs/a", "runs/b", "runs/demo/c"]
    assert runs_in(Path("runs/b.1")) == [Path("runs/b.1")]
    assert runs_in(Path("nowhere")) == []


def test_a_link_out_of_the_folder_shows_nothing() -> None:
    folder = run().folder
    Path("secret").write_text("data: {class_path: x.Secret}")
    (folder / "media").mkdir()
    for name in ("config.yaml", "media/step_0000001.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path("secret").absolute())
    linked = Run.read(folder)
    assert (linked.config, linked.media) == ("", ())
    assert "config.yaml cannot be read: it is a link to a file outside" in linked.missing[0]


@pytest.mark.parametrize(
    "change",
    [
        {"mixtures": []},
        {"sources": [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 9, 9)]},
        {"estimates": 4 * [torch.zeros(1, 1, 8, 8)]},
        {"mixtures": 4 * [torch.zeros(8, 8)]},
        {"mixtures": 4 * [torch.full((1, 8, 8), torch.nan)]},
        {"mixtures": 4 * ["a"]},
        {"kind": "video"},
        {"kind": "audio"},
    ],
)
def test_examples_of_another_structure_are_missing(change: dict[str, Any]) -> None:
    folder = run().folder
    torch.save({**image_examples(), **change}, folder / "test_examples.pt")
    assert "test_examples.pt cannot be read" in Run.read(folder).missing[0]


def test_no_more_examples_are_shown_than_a_test_leaves() -> None:
    folder = run().folder
    torch.save(image_examples(count=1000), folder / "test_examples.pt")
    assert len(Run.read(folder).examples["mixtures"]) == 8
