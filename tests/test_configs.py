"""Every shipped configuration trains and says each thing once; the full networks have the published sizes."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from surf_lightning.cli import main
from surf_lightning.inference.separator import load_separator
from surf_lightning.metrics.tables import paper_tables
from surf_lightning.networks import RegressionNetwork, ScoreNetwork, VelocityNetwork
from tests.data.test_arrays import write_arrays

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
PARTS = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").glob("*/*.yaml"))
REMIXED = ["remixit", "self_remixing", "surf_rm", "surf_sr"]
SUPERVISED = ["supervised_regression", "supervised_flow"]
MIXCYCLE_PAPER = ["mixit", "mixpit", "mixcycle", "supervised_regression"]
IMAGES = ["mixit", "mixpit", "mixcycle", *REMIXED, *SUPERVISED, "basis"]
METHODS = {
    "arrays": ["mixit", "surf_rm"],
    "digits": [*IMAGES, "semisupervised", "scratch", "one_step"],
    "digits3": ["mixit", "self_remixing", "surf_sr"],
    "digits4": ["mixit", "self_remixing", "surf_sr"],
    "mnist": IMAGES,
    "cifar": IMAGES,
    "mnist-half-hour": ["mixit", "remixit", "self_remixing", "surf_rm", *SUPERVISED],
    "mnist-small": ["mixit", "remixit", "self_remixing", "surf_rm", *SUPERVISED],
    "libri2mix": ["mixit", "semisupervised", *REMIXED, *SUPERVISED],
    "libri2mix-small": ["mixit", "remixit", "self_remixing", "surf_rm", "one_step", "supervised_flow"],
    "libri2mix8k": MIXCYCLE_PAPER,
    "wsj0mix": ["mixit", "semisupervised"],
    "sc09mix": MIXCYCLE_PAPER,
    "fuss": ["mixit", "semisupervised", "adapted", *REMIXED, *SUPERVISED],
    "audioset": ["mixit", "semisupervised", *REMIXED],  # there are no clean sources here
    "folder": ["mixit", "mixit_16", "semisupervised", *REMIXED, "one_step"],
    "enhancement": ["mixit"],
    "phone": ["mixit", "self_remixing", "surf_rm", "one_step", *SUPERVISED],
}
AUDIO = {"libri2mix": "Libri2Mix", "fuss": "FUSS/ssdata", "audioset": "AudioSet", "folder": "recordings"}
AUDIO["libri2mix-small"] = AUDIO["libri2mix8k"] = AUDIO["libri2mix"]
AUDIO |= {"sc09mix": "SpeechCommands", "wsj0mix": "wsj0-mix", "enhancement": "recordings", "phone": "phone"}
FOLDERS = {**AUDIO, "arrays": "arrays"}
LATE = ("adapted", "one_step")  # whose earlier stage is not MixIT
# What only one method has, and two steps are to see: a short sampler, both phases of the training.
SHORTENED = {"basis": ["--model.langevin_steps", "1"], "mixcycle": ["--model.mixpit_steps", "1"]}
# Sets without sources learn from those of another.
SUPERVISED_BY = {"audioset_semisupervised": "FUSS/ssdata", "folder_semisupervised": "phone"}
LEARNED_FILTERS = ("mixit", "semisupervised")  # Conv-TasNets, on every audio set


def arguments(name: str, root: Path, command: str = "fit") -> list[str]:
    """The command line of config ``name``, shrunk, on the sets in ``root``; the shipped trackers off."""
    family, method = name.split("_", 1)
    args = [command, "--config", str(ROOT / "configs" / f"{name}.yaml")]
    kind = "audio" if family in AUDIO else "arrays" if family == "arrays" else "images"
    args += ["--config", str(ROOT / "tests" / f"tiny_{kind}.yaml")]
    args += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    args += SHORTENED.get(method, [])
    if family == "arrays":
        write_arrays(root / "arrays")
    if name in SUPERVISED_BY:
        args += ["--data.supervised.root", str(root / SUPERVISED_BY[name])]
    if family == "enhancement":
        args += ["--data.noise_root", str(root / "AudioSet")]
    if family in ("libri2mix", "fuss", "audioset") and method not in LEARNED_FILTERS:
        args += [f"--model.network.init_args.{key}" for key in ("features=8", "attention=8", "heads=2")]
    return args if family.startswith("digits") else [*args, "--data.root", str(root / FOLDERS.get(family, ""))]


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / "configs" / path).read_text())


def resolved(*args: str) -> Any:
    """The whole configuration that ``surf fit`` would run with."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        main(["fit", *args, "--print_config"])
    return yaml.safe_load(output.getvalue())


def test_the_matrix_of_configs_is_complete() -> None:
    assert {f"{family}_{method}" for family, methods in METHODS.items() for method in methods} == set(CONFIGS)


@pytest.mark.parametrize("family", METHODS)
def test_every_config_trains_two_steps_in_a_chain_without_a_path_typed(
    family: str, image_sets: Path, audio_sets: Path
) -> None:
    root = audio_sets if family in AUDIO else image_sets
    names = [name for name in CONFIGS if name.split("_")[0] == family]
    names.sort(key=lambda name: (name.endswith(LATE), name != f"{family}_mixit"))  # earlier stages first
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
    "cifar_surf_rm": 15_839_692,
    "mnist_surf_rm": 15_828_036,
    "cifar_basis": 15_837_004,
    "cifar_remixit": 14_467_352,
    "mnist_remixit": 14_449_416,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_full_networks_have_the_published_sizes(name: str) -> None:
    network = loaded(f"{name}.yaml")["model"]["init_args"]["network"]
    parser = ArgumentParser()
    parser.add_subclass_arguments((RegressionNetwork, VelocityNetwork, ScoreNetwork), "network")
    described = loaded(network) if isinstance(network, str) else network
    with torch.device("meta"):
        built = parser.instantiate(parser.parse_object({"network": described})).network
    assert sum(parameter.numel() for parameter in built.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_dotted_key_silently_replaces_a_part(name: str) -> None:
    """`trainer: FILE` and `trainer.max_steps: 4` in one YAML drop all of FILE, clipping with it."""
    config = loaded(f"{name}.yaml")
    assert config.keys() == {"trainer", "data", "model"}
    assert isinstance(config["trainer"], dict)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_gives_the_command_and_what_to_expect(name: str) -> None:
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert re.search(rf"surf fit --config {name}( |$)", "\n".join(head[:2]), re.MULTILINE)
    assert sum(line.startswith("# Expected: ") for line in head) == 1
    assert any(source in line for line in head for source in ("From the ", "Chosen here: "))


LABELS = {
    "mixit": "MixIT",
    "remixit": "Regression (ReMixIT)",
    "self_remixing": "Regression (Self-Remixing)",
    "surf_rm": "SURF (ReMixIT)",
    "surf_sr": "SURF (Self-Remixing)",
    "supervised_flow": "Supervised Flow",
    "supervised_regression": "Supervised Regression",
    "mixpit": "MixPIT",
    "mixcycle": "MixCycle",
    "basis": "BASIS",
}
METRICS = {"PSNR": "psnr", "SI-SDR": "si_sdr", "SI-SDR of single sources": "1S", "SI-SNRi": "si_sdri"}
PUBLISHED = {  # the data and the rate of their tables
    "mnist": ("MNIST", None),
    "cifar": ("CIFAR10", None),
    "audioset": ("AudioSet", 16000),
    "libri2mix": ("Libri2Mix", 16000),
    "libri2mix8k": ("Libri2Mix", 8000),
    "sc09mix": ("SC09Mix", 8000),
}


def test_what_a_paper_reached_is_what_its_table_has() -> None:
    said = re.compile(r"# Expected: ([^0-9]+) ([0-9.]+) dB, by the (?:MixCycle )?paper's Table")
    checked = 0
    for name in CONFIGS:
        family, method = name.split("_", 1)
        for metric, value in said.findall((ROOT / "configs" / f"{name}.yaml").read_text()):
            published = {
                table["rows"][LABELS[method]][table["metrics"].index(METRICS[metric])]
                for table in paper_tables()
                if (table["facts"]["data"], table["facts"].get("sample_rate")) == PUBLISHED[family]
                and METRICS[metric] in table["metrics"]
            }
            assert published == {float(value)}, name
            checked += 1
    assert checked > 30


def test_class_names_are_short_and_lightnings_defaults_are_not_repeated() -> None:
    for path in (*(f"{name}.yaml" for name in CONFIGS), *PARTS):
        text = (ROOT / "configs" / path).read_text()
        assert "surf_lightning." not in text, path
        assert "class_path: torch." not in text, path
        assert "logger" not in text, path
    for name in CONFIGS:
        given = loaded(f"{name}.yaml")["trainer"]
        defaults = {"accelerator": "auto", "devices": "auto", "log_every_n_steps": 50}
        assert not [key for key, value in defaults.items() if given.get(key) == value], name


def test_a_part_has_a_file_where_several_runs_share_it_and_no_file_is_anothers_copy() -> None:
    uses: dict[str, int] = {}
    for name in CONFIGS:
        config = loaded(f"{name}.yaml")
        for part in (config["data"], config["model"]["init_args"]["network"]):
            if isinstance(part, str):
                uses[part] = uses.get(part, 0) + 1
    assert sorted(uses) == PARTS
    assert min(uses.values()) > 1
    contents = [str(loaded(path)) for path in (*(f"{name}.yaml" for name in CONFIGS), *PARTS)]
    assert len(set(contents)) == len(contents)


def test_weights_and_biases_tracks_every_run_unless_told_otherwise() -> None:
    config = f"--config={ROOT}/configs/digits_mixit.yaml"
    logger = resolved(config)["trainer"]["logger"]
    assert logger["class_path"] == "lightning.pytorch.loggers.WandbLogger"
    assert logger["init_args"]["project"] == "surf-lightning"
    assert resolved(config, "--trainer.logger.project", "mine")["trainer"]["logger"]["init_args"]["project"] == "mine"
    assert resolved(config, "--trainer.logger", "false")["trainer"]["logger"] is False


def test_losses_of_signals_go_by_their_names() -> None:
    config = f"--config={ROOT}/configs/folder_remixit.yaml"
    for name in ("signal_snr", "multi_resolution_l1"):
        assert resolved(config, "--model.error", name)["model"]["init_args"]["error"] == name


def test_the_package_holds_the_configs() -> None:
    shipped = Path(str(files("surf_lightning"))) / "configs"
    assert {path.stem for path in shipped.glob("*.yaml")} == set(CONFIGS)
    assert (shipped / PARTS[0]).is_file()
