"""The card of an exported separator, read as the Hub reads it, without the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results

from surf_lightning.cli import main
from surf_lightning.data import Digits
from surf_lightning.engine.fit import fit
from surf_lightning.inference.export import record_of
from surf_lightning.methods import MixIT, SemiSupervisedMixIT
from tests import tiny
from tests.inference.test_export import separators
from tests.inference.test_separate import AUDIO, save

CONFIG = "# torch: 2.11\nseed_everything: 3\ntrainer: {max_steps: 2, logger: [secret]}\nmodel: {class_path: MixIT}\n"


def card(*options: str, checkpoint: str = "run/checkpoints/last.ckpt") -> ModelCard:
    assert main(["export", "--checkpoint", checkpoint, "--output", "model", *options]) == 0
    return ModelCard.load("model/README.md")


@pytest.fixture
def run() -> Digits:
    """A run of two steps in ``run``, trained and tested."""
    module, data = MixIT(tiny.regression(4), optimizer=tiny.adam), tiny.digits()
    fit(module, data, "run", max_steps=2, accelerator="cpu", enable_progress_bar=False)
    tiny.trainer(Path("run"), "test").test(module, data, ckpt_path="run/checkpoints/last.ckpt")
    Path("run/config.yaml").write_text(CONFIG)
    return data


def test_the_card_of_a_tested_run_is_whole_and_valid(run: Digits) -> None:
    found = card("--license", "cc-by-4.0", "--examples")
    results = json.loads(Path("run/metrics.json").read_text())
    assert found.data.license == "cc-by-4.0"
    assert found.data.library_name == "surf-lightning"
    assert found.data.pipeline_tag == "image-to-image"
    assert set(found.data.tags) >= {"source-separation", "unsupervised-learning", "image", "mixit"}
    evaluated = {each.metric_type: each for each in found.data.eval_results}
    assert all(isinstance(each, EvalResult) for each in evaluated.values())
    assert evaluated["psnr"].metric_value == round(results["metrics"]["psnr"], 4)
    assert (evaluated["psnr"].dataset_name, evaluated["psnr"].task_type) == ("Digits", "image-to-image")
    head = yaml.safe_load(found.content.split("---")[1])
    assert model_index_to_eval_results(head["model-index"])[0] == "MixIT separator"
    assert yaml.safe_load(found.data.to_yaml())["license"] == "cc-by-4.0"  # what the Hub's check is sent

    for said in (
        "| data: train images | 1347 |",
        "| data: genuine | False |",
        "| torch | 2.",
        "| seed | 3 |",
        "| steps | 2 |",
        f"| Average (m/K) | {results['average']['psnr']:.2f} |",
        "not known to be those of a published data set",
        results["protocol"],
        "into 2 sources",
        "under the licence cc-by-4.0",
        'load_separator("path/to/this/folder")',
        "max_steps: 2",
    ):
        assert said in found.text, said
    assert "secret" not in found.text
    (picture,) = Path("model/examples").iterdir()
    assert picture.read_bytes() == Path("run/media", picture.name).read_bytes()
    assert f"![{picture.stem}](examples/{picture.name})" in found.text


def test_pictures_of_the_data_are_shown_only_where_they_are_asked_for(run: Digits) -> None:
    assert "examples" not in card().content
    assert not Path("model/examples").exists()


def test_results_of_another_checkpoint_are_not_this_ones(run: Digits) -> None:
    assert record_of("run/checkpoints/last.ckpt", 2).results
    assert record_of("run/checkpoints/best.ckpt", 2).results == {}


def test_after_more_training_the_results_are_of_another_checkpoint(run: Digits) -> None:
    last = Path("run/checkpoints/last.ckpt")
    torch.save({**torch.load(last, weights_only=True), "global_step": 4}, last)
    assert card().data.eval_results is None


def test_a_file_beside_a_checkpoint_that_lies_in_no_run_is_not_shown() -> None:
    Path("models").mkdir()
    Path("models/a.ckpt").write_bytes(Path(save(separators()[0], AUDIO)).read_bytes())
    Path("config.yaml").write_text("password: mine\n")
    assert "password" not in card(checkpoint="models/a.ckpt").content


@pytest.mark.parametrize("method", [MixIT, SemiSupervisedMixIT])
def test_the_tags_say_what_has_learnt_without_true_sources(method: type[MixIT]) -> None:
    """Those of an export of an export as well."""
    tiny.trainer(Path("run")).fit(method(tiny.regression(4), optimizer=tiny.adam), tiny.digits())
    assert main(["export", "--checkpoint", "run/checkpoints/last.ckpt", "--output", "first"]) == 0
    assert ("unsupervised-learning" in card(checkpoint="first").data.tags) == (method is MixIT)


def test_without_a_run_the_card_says_what_is_known() -> None:
    separator = separators()[0]
    save(separator, AUDIO)
    found = card(checkpoint="a.ckpt")
    assert (found.data.license, found.data.pipeline_tag) == ("unknown", "audio-to-audio")
    assert f"{sum(parameter.numel() for parameter in separator.parameters()):,} parameters" in found.text
    assert found.data.eval_results is None
    assert "audio" in found.data.tags
    assert "sounds at 8000 Hz into 2 sources" in found.text
    assert "Nobody has said under which licence" in found.text
    assert "## Test" not in found.text
    assert "## How it was made" not in found.text


def test_the_card_gives_the_scale_of_arrays() -> None:
    save(separators()[0], {"kind": "image", "shape": [1, 8, 8], "values": [16.5, 12.25]})
    assert "# [B,C,H,W], 2 * (values - 16.5) / 12.25 -> [B,K,C,H,W]" in card(checkpoint="a.ckpt").text


def test_sounds_of_the_latest_validation_are_shown() -> None:
    save(separators()[0], AUDIO)
    for folder in ("run/checkpoints", "run/media"):
        Path(folder).mkdir(parents=True)
    Path("a.ckpt").rename("run/checkpoints/best.ckpt")
    for name in ("step_0000010_1_mixture.wav", "step_0000020_1.png", "step_0000020_1_mixture.wav"):
        Path("run/media", name).write_bytes(b"RIFF")
    found = card("--examples", checkpoint="run/checkpoints/best.ckpt")
    assert sorted(path.name for path in Path("model/examples").iterdir()) == [
        "step_0000020_1.png",
        "step_0000020_1_mixture.wav",
    ]
    assert "- [step_0000020_1_mixture](examples/step_0000020_1_mixture.wav)" in found.text


def test_a_damaged_run_is_one_line(run: Digits, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/metrics.json").write_text("{")
    assert main(["export", "--checkpoint", "run/checkpoints/last.ckpt", "--output", "model"]) == 2
    assert "the run of run/checkpoints/last.ckpt cannot be read" in capsys.readouterr().err
    assert not Path("model").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", '{"checkpoint": "a.ckpt", "metrics": 3}'),
        ("metrics.json", '{"checkpoint": "a.ckpt", "label": {}, "metrics": {"psnr": "x"}}'),
        ("metrics.json", "[" * 100_000),
        ("config.yaml", "trainer: [1]"),
        ("hparams.yaml", "provenance: 3"),
        ("config.yaml", Path("secret.yaml")),
        ("hparams.yaml", Path("secret.yaml")),
        ("media/step_0000020_1.png", Path("secret.yaml")),
    ],
)
def test_what_a_strangers_run_says_and_links_to_is_not_shown(
    file: str, content: str | Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(separators()[0], AUDIO)
    Path("run/checkpoints").mkdir(parents=True)
    Path("a.ckpt").rename("run/checkpoints/a.ckpt")
    Path("secret.yaml").write_text("password: mine\n")
    path = Path("run", file)
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, Path):
        path.symlink_to(content.absolute())
    else:
        path.write_text(content)
    command = ["export", "--checkpoint", "run/checkpoints/a.ckpt", "--output", "model", "--examples"]
    assert main(command) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("surf export: the run of run/checkpoints/a.ckpt cannot be read: ")
    assert not Path("model").exists()
