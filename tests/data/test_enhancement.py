"""Noisy speech and noise in turn; with clean speech, a known order. Real sounds where the shared folder has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from surf_lightning.data import Enhancement
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.methods import MixIT
from surf_lightning.metrics.audio import pairwise_si_sdr
from surf_lightning.networks import ConvTasNet
from tests.audio.trees import noise, write
from tests.tiny import adam, trainer

SMALL: dict[str, Any] = {"crop_seconds": 0.5, "batch_size": 4, "num_workers": 0, "batches_per_epoch": 2}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Ten recordings of a tone in noise, its tones alone, and six of noise, told apart by an offset."""
    for number in range(10):
        speech, background = 0.2 * noise(0.8, number), 0.1 * noise(0.8, 100 + number)
        write(tmp_path / "clean" / f"{number}.wav", speech)
        write(tmp_path / "noisy" / f"{number}.wav", speech + background)
    for number in range(6):
        write(tmp_path / "noise" / f"{number}.wav", 0.1 * noise(0.8, 200 + number) + 0.25)
    return {"root": str(tmp_path / "noisy"), "noise_root": str(tmp_path / "noise")}


def network() -> ConvTasNet:
    torch.manual_seed(0)
    return ConvTasNet(3, 2, filters=16, bottleneck=8, hidden=8, repeats=1, blocks=2)


def enhancer() -> MixIT:
    return MixIT(network(), assignments="enhancement", selection="first", optimizer=adam)


def test_even_rows_are_noisy_speech_and_odd_rows_noise(folders: dict[str, str]) -> None:
    data = Enhancement(**folders, **SMALL)
    for batches in (data.training_batches(Ranks()), data.validation_batches()):
        batch = batches[0]
        assert batch.keys() == {"mixtures"}
        means = batch["mixtures"].mean(1)
        assert (means[::2].abs() < 0.05).all()
        assert (means[1::2] > 0.2).all()
    whole = data.training_batches(Ranks())[1]["mixtures"]
    parts = [Enhancement(**folders, **{**SMALL, "batch_size": 2}).training_batches(Ranks(r, 2)) for r in range(2)]
    assert torch.equal(torch.cat([part[1]["mixtures"] for part in parts]), whole)
    with pytest.raises(ValueError, match="must be even"):
        Enhancement(**folders, **{**SMALL, "batch_size": 3})
    with pytest.raises(UserError, match="no true sources"):
        data.test_batches()


def test_clean_speech_measures_the_first_estimate_and_is_not_trained_on(
    folders: dict[str, str], tmp_path: Path
) -> None:
    options = {**SMALL, "validation_share": 0.3, "clean_root": str(tmp_path / "clean")}
    data = Enhancement(**folders, **options)
    splits = {
        part: {data.examples(part).path(i) for i in range(len(data.examples(part)))}
        for part in ("train", "validation", "test")
    }  # type: ignore[arg-type]
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 10
    assert data.training_batches(Ranks())[0].keys() == {"mixtures"}
    tested = data.test_batches()[0]
    path = Path(data.examples("test").path(0))
    clean, noisy = (
        torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in (tmp_path / "clean" / path.name, path)
    )
    torch.testing.assert_close(tested["sources"][0], torch.stack([clean, noisy - clean]))
    metric = data.metrics()
    estimates = torch.stack([noisy - clean, clean]).unsqueeze(0)  # in the wrong order, which no search mends
    metric.update(estimates, tested["sources"], tested["mixtures"])
    expected = pairwise_si_sdr(estimates[:, :1], tested["sources"][:, :1]).item()
    assert metric.compute()["si_sdr"].item() == pytest.approx(expected)
    assert expected < 0


@pytest.mark.parametrize("known", [False, True])
def test_it_trains(known: bool, folders: dict[str, str], tmp_path: Path) -> None:
    options = {**SMALL, "validation_share": 0.3, "clean_root": str(tmp_path / "clean") if known else None}
    module = enhancer()
    fitted = trainer(Path("run"))
    fitted.fit(module, Enhancement(**folders, **options))
    assert ("val/si_sdri" if known else "val/loss") in fitted.callback_metrics


def test_real_speech_in_real_sounds() -> None:
    """The recordings of the shared folder, mixed: the order of the outputs holds after a few steps."""
    shared = Path(os.environ.get("SURF_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "audio"
    if not shared.is_dir():
        pytest.skip("the shared folder has no recordings")
    speech, sounds = sorted(shared.glob("speech/*/*.flac"))[:40:4], sorted(shared.glob("sounds/*.flac"))[:12]
    for number, (clean_path, sound_path) in enumerate(zip(speech, sounds, strict=False)):
        clean = soundfile.read(clean_path, dtype="float32")[0][:32000]
        sound = torch.from_numpy(soundfile.read(sound_path, dtype="float32")[0]).repeat(40)[: len(clean)].numpy()
        write(Path("clean") / f"{number}.wav", clean * 0.5)
        write(Path("noisy") / f"{number}.wav", clean * 0.5 + 0.3 * sound)
        write(Path("noise") / f"{number}.wav", 0.3 * sound[::-1] + 1e-4)
    data = Enhancement("noisy", "noise", "clean", validation_share=0.3, num_validation=2, **SMALL)
    fitted = trainer(Path("run"))
    fitted.fit(enhancer(), data)
    assert fitted.callback_metrics["val/si_sdri"].isfinite()
