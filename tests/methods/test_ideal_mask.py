"""The ideal ratio mask against torch's own transforms, and tested by the command line without any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from surf_lightning.cli import main
from surf_lightning.data import SC09Mix
from surf_lightning.methods import IdealRatioMask
from surf_lightning.metrics.audio import SISDRi
from tests.test_configs import arguments


def test_each_source_has_its_share_of_the_magnitude_and_the_mixtures_phase() -> None:
    sources = torch.randn(2, 3, 3072, generator=torch.Generator().manual_seed(0))
    mixtures, window = sources.sum(1), torch.hann_window(512)
    found = IdealRatioMask().estimates({"sources": sources, "mixtures": mixtures}, 0)
    torch.testing.assert_close(found.sum(1), mixtures, rtol=0, atol=1e-5)
    for b in range(2):
        options = {"window": window, "pad_mode": "constant", "return_complex": True}
        spectra = torch.stft(sources[b], 512, 128, **options)
        mixture = torch.stft(mixtures[b], 512, 128, **options)
        for k in range(3):
            masked = spectra[k].abs() / spectra.abs().sum(0) * mixture
            expected = torch.istft(masked, 512, 128, window=window, length=3072)
            torch.testing.assert_close(found[b, k], expected, rtol=0, atol=1e-5)


def test_surf_test_scores_it_without_a_checkpoint(audio_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments("sc09mix_supervised_regression", audio_sets, "test")
    args += ["--model", "IdealRatioMask", "--name", "irm", "--trainer.limit_test_batches", "3"]
    assert main(args) == 0
    results = json.loads(Path("runs/irm/metrics.json").read_text())
    assert results["label"] == "Ideal ratio mask"
    data, metric = SC09Mix(str(audio_sets / "SpeechCommands"), num_workers=0), SISDRi()
    for number in range(3):
        batch = data.test_batches()[number]
        metric.update(IdealRatioMask().estimates(batch, 0), batch["sources"], batch["mixtures"])
    assert results["metrics"]["si_sdri"] == pytest.approx(metric.compute().item(), abs=1e-4)
    assert results["metrics"]["si_sdri"] > 3
    assert "Ideal ratio mask" in capsys.readouterr().out


def test_it_cannot_be_trained(audio_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments("sc09mix_supervised_regression", audio_sets)
    assert main([*args, "--model", "IdealRatioMask"]) == 2
    assert "nothing to train: use surf test" in capsys.readouterr().err
