"""The number of sources and the sample rate: said once, or by the files, and followed by networks and later stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from surf_lightning.cli import main
from surf_lightning.engine.sizes import fill_in_sizes
from surf_lightning.inference.separator import load_separator
from tests.audio.test_band import limited
from tests.audio.trees import write
from tests.test_configs import ROOT


def config(method: str, outputs: int, sources: int, **data: int | None) -> Namespace:
    network = Namespace(class_path="N", init_args=Namespace(num_outputs=outputs, num_sources=sources))
    model = Namespace(class_path=f"m.{method}", init_args=Namespace(num_sources=sources, network=network))
    return Namespace(model=model, data=Namespace(class_path="d.D", init_args=Namespace(**data)))


@pytest.mark.parametrize(
    ("method", "configured", "wanted", "outputs"),
    [
        ("MixIT", (4, 4), 2, 3),  # the least with which MixIT separates anything
        ("MixIT", (4, 2), 3, 6),
        ("MixIT", (4, 4), 6, 6),
        ("Remixing", (4, 4), 2, 2),
        ("MixIT", (8, 4), 4, 8),
    ],
)
def test_a_network_has_the_sources_of_its_data(
    method: str, configured: tuple[int, int], wanted: int, outputs: int
) -> None:
    given = config(method, *configured, num_sources=wanted)
    fill_in_sizes(given, None)
    network = given.model.init_args.network.init_args
    assert (network.num_outputs, network.num_sources, given.model.init_args.num_sources) == (outputs, wanted, wanted)


def test_networks_scale_with_the_sample_rate_once() -> None:
    given = config("SURF", 2, 2, num_sources=2, sample_rate=24000)
    network = given.model.init_args.network.init_args
    network.update(Namespace(sample_rate=16000, frame=40, hop=20, filters=256, n_fft=320))
    given.model.init_args.noise = Namespace(class_path="E", init_args=Namespace(sample_rate=16000))
    for _ in range(2):  # as the run's own config.yaml gives it again
        fill_in_sizes(given, None)
        assert (network.frame, network.hop, network.filters, network.n_fft) == (60, 30, 384, 480)
        assert network.sample_rate == given.model.init_args.noise.init_args.sample_rate == 24000
    given.data.init_args.sample_rate = 22050
    fill_in_sizes(given, None)
    assert (network.frame, network.hop, network.n_fft % 2) == (56, 28, 0)


def arguments(command: str, name: str) -> list[str]:
    small = ["--config", str(ROOT / "tests" / "tiny_audio.yaml"), "--data.root", "recordings"]
    return [command, "--config", name, *small, "--trainer.logger", "false", "--trainer.accelerator", "cpu"]


def test_two_sources_are_one_flag_and_the_rate_is_that_of_the_files(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write(Path("recordings", f"{number}.wav"), limited(11000, seconds=1.0), 48000)
    caplog.set_level("INFO")
    assert main([*arguments("fit", "folder_mixit"), "--data.num_sources", "2"]) == 0
    for said in (
        "so the sample rate is 24,000 Hz",
        "recordings: 4 recordings, 0.1 min (4 of 48,000 Hz), used at 24,000 Hz; ",
        "Network: STFTConvTasNet, 0.",
        "The best val/momi was ",
        "  next: surf fit --config folder_surf_rm --data.root recordings\n",
        "  next: surf separate recordings --checkpoint runs/folder_mixit/checkpoints/best.ckpt --output separated",
    ):
        assert said in caplog.text, said
    assert Path("runs/folder_mixit/metrics.csv").is_file()
    assert not Path("runs/folder_mixit/wandb").exists()
    mixit = load_separator("runs/folder_mixit/checkpoints/last.ckpt")
    assert (mixit.num_sources, mixit.network.num_outputs, mixit.signal["sample_rate"]) == (2, 3, 24000)
    assert (mixit.network.stft.n_fft, mixit.network.stft.hop) == (1536, 384)

    caplog.clear()
    write(Path("recordings/none.wav"), limited(2000, seconds=1.0), 48000)  # would make it 16 kHz
    assert main(arguments("fit", "folder_surf_rm")) == 0
    assert "2 sources at 24,000 Hz, as in runs/folder_mixit/checkpoints/last.ckpt." in caplog.text
    surf = load_separator("runs/folder_surf_rm/checkpoints/last.ckpt")
    assert surf.separate(torch.randn(1, 4000)).shape == (1, 2, 4000)
    assert main(arguments("validate", "folder_mixit")) == 0  # without saying it again

    capfd.readouterr()
    assert main([*arguments("fit", "folder_surf_rm"), "--data.num_sources", "3", "--data.sample_rate", "16000"]) == 2
    says = "separates 2 sources in sounds at 24,000 Hz, this run 3 sources in sounds at 16,000 Hz: give "
    says += "--data.num_sources 2 --data.sample_rate 24000, or another --model.mixit_checkpoint"
    assert says in capfd.readouterr().err


def test_shards_have_sources_and_a_rate_as_a_folder_has(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        write(Path("recordings", f"{number}.wav"), limited(11000, seconds=1.0), 24000)
    assert main(["shard", "recordings", "--output", "shards", "--sample_rate", "24000"]) == 0
    shards = ["--data", "Shards", "--data.root", "shards"]
    caplog.set_level("INFO")
    assert main([*arguments("fit", "folder_mixit"), *shards, "--data.num_sources", "2"]) == 0
    assert "  next: surf fit --config folder_surf_rm --data Shards --data.root shards\n" in caplog.text
    assert "  next: surf separate FILES --checkpoint" in caplog.text
    mixit = load_separator("runs/folder_mixit/checkpoints/last.ckpt")
    assert (mixit.num_sources, mixit.network.num_outputs, mixit.signal["sample_rate"]) == (2, 3, 24000)
    assert (mixit.network.stft.n_fft, mixit.network.stft.hop) == (1536, 384)
    assert main([*arguments("fit", "folder_surf_rm"), *shards]) == 0
    assert load_separator("runs/folder_surf_rm/checkpoints/last.ckpt").num_sources == 2


def test_what_is_next_names_the_data_of_another_class(audio_sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    truth = ["--data", "FolderWithTruth", "--data.root", str(audio_sets / "phone")]
    assert main([*arguments("fit", "folder_mixit"), *truth]) == 0
    assert f"  next: surf fit --config folder_surf_rm --data FolderWithTruth --data.root {truth[-1]}\n" in caplog.text
