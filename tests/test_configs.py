"""Every shipped configuration trains, and the full networks have the sizes that the papers state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from surf_lightning.cli import main
from surf_lightning.inference.separator import load_separator

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
FAMILIES = sorted({name.split("_")[0] for name in CONFIGS})
UNSUPERVISED = ["mixit", "mixpit", "mixcycle", "remixit", "self_remixing", "surf_rm", "surf_sr"]
SUPERVISED = ["supervised_regression", "supervised_flow", "basis"]
# What only one method has, and two steps are to see: a short sampler, both phases of the training.
SHORTENED = {"basis": ["--model.langevin_steps", "1"], "mixcycle": ["--model.mixpit_steps", "1"]}


AUDIO = {"libri2mix": "Libri2Mix", "fuss": "FUSS/ssdata", "audioset": "AudioSet", "folder": "recordings"}
AUDIO["libri2mix-small"] = AUDIO["libri2mix"]


def arguments(name: str, root: Path, command: str = "fit") -> list[str]:
    """The command line of config ``name``, shrunk, on the sets in ``root``; the shipped trackers off."""
    family, method = name.split("_", 1)
    args = [command, "--config", str(ROOT / "configs" / f"{name}.yaml")]
    args += ["--config", str(ROOT / "tests" / f"tiny_{family}.yaml")]
    args += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    args += SHORTENED.get(method, [])
    if family in ("libri2mix", "fuss", "audioset") and method != "mixit":  # Conv-TasNet has no such arguments
        args += [f"--model.network.init_args.{key}" for key in ("features=8", "attention=8", "heads=2")]
    return args if family == "digits" else [*args, "--data.root", str(root / AUDIO.get(family, ""))]


@pytest.mark.parametrize("family", ["digits", "mnist", "cifar"])
def test_the_matrix_of_image_configs_is_complete(family: str) -> None:
    assert {f"{family}_{method}" for method in UNSUPERVISED + SUPERVISED} <= set(CONFIGS)


@pytest.mark.parametrize("family", ["libri2mix", "fuss", "audioset", "folder"])
def test_the_matrix_of_audio_configs_is_complete(family: str) -> None:
    methods = ["mixit", "remixit", "self_remixing", "surf_rm", "surf_sr"]
    if family in ("libri2mix", "fuss"):  # the others have no clean sources
        methods += ["supervised_regression", "supervised_flow"]
    assert {f"{family}_{method}" for method in methods} <= set(CONFIGS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_config_trains_two_steps_in_a_chain_without_a_path_typed(
    family: str, image_sets: Path, audio_sets: Path
) -> None:
    root = audio_sets if family in AUDIO else image_sets
    names = [name for name in CONFIGS if name.split("_")[0] == family]
    names.sort(key=lambda name: name != f"{family}_mixit")  # the earlier stage first
    for name in names:
        assert main(arguments(name, root)) == 0, name
        run = Path("runs", name)
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}, name
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2, name
        separator = load_separator(run / "checkpoints" / "best.ckpt")
        mixtures = torch.randn(2, *separator.signal.get("shape", [8000]))
        estimates = separator.separate(mixtures)
        if name == f"{family}_basis":  # bound to the mixture by a likelihood, not by construction
            assert estimates.shape[1] == separator.num_sources
            assert estimates.abs().max() <= 1
        else:
            torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-5, rtol=0)


PARAMETERS = {  # networks_and_metrics 1.3; MixIT has 4 outputs for 2
    "cifar_velocity": 15_839_692,
    "mnist_velocity": 15_828_036,
    "cifar_score": 15_837_004,
    "cifar_regression": 14_467_352,
    "mnist_regression": 14_449_416,
}


@pytest.mark.parametrize("part", PARAMETERS)
def test_the_full_networks_have_the_published_sizes(part: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(nn.Module, "network")
    with torch.device("meta"):
        network = parser.instantiate(parser.parse_args([f"--network={ROOT}/configs/network/{part}.yaml"])).network
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[part]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_dotted_key_silently_replaces_a_part(name: str) -> None:
    """`trainer: FILE` and `trainer.max_steps: 4` in one YAML drop all of FILE, trackers and clipping with it."""
    keys = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()).keys()
    assert keys == {"trainer", "data", "model"}
