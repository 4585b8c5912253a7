"""Where each picture lies in the grid, pixel by pixel."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchvision.io import read_image

from surf_lightning.callbacks.media import Media, image_grid, send_image, send_to_all, spectrogram_grid


def example(batch: int, sources: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.rand(batch, sources, *shape, generator=generator) - 1
    estimates = truth + 0.01 * torch.rand(truth.shape, generator=generator)
    return truth.sum(1), estimates, truth


@pytest.mark.parametrize(("shape", "zoom"), [((1, 8, 8), 8), ((3, 32, 32), 2), ((1, 28, 28), 2), ((1, 70, 70), 1)])
def test_every_row_shows_mixture_estimates_and_sources(shape: tuple[int, int, int], zoom: int) -> None:
    mixtures, estimates, sources = example(3, 2, *shape)
    grid = image_grid(mixtures, estimates.flip(1), sources)  # the estimates in the other order
    side = zoom * shape[-1]
    assert grid.shape == (3, 3 * (side + 2) + 2, 5 * (side + 2) + 2)
    expected = torch.full_like(grid, 0.5)
    for row in range(3):
        pictures = [mixtures[row] / 2, *estimates[row], *sources[row]]
        for column, picture in enumerate(pictures):
            top, left = 2 + row * (side + 2), 2 + column * (side + 2)
            for y in range(side):
                line = ((picture[:, y // zoom] + 1) / 2).clamp(0, 1).repeat_interleave(zoom, 1)
                expected[:, top + y, left : left + side] = line
    torch.testing.assert_close(grid, expected)


class ImageLogger:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Tensor, int]] = []

    def log_image(self, key: str, images: list[Tensor], step: int) -> None:
        self.calls.append((key, images[0], step))


def validate(batch_idx: int = 0, zero: bool = True) -> ImageLogger:
    mixtures, estimates, sources = example(10, 2, 1, 8, 8)
    logger = ImageLogger()
    trainer: Any = SimpleNamespace(is_global_zero=zero, fast_dev_run=False, global_step=123, loggers=[object(), logger])
    module: Any = SimpleNamespace(signal={"kind": "image"})
    batch = {"mixtures": mixtures, "sources": sources}
    Media(Path("run")).on_validation_batch_end(trainer, module, estimates, batch, batch_idx)
    return logger


def test_the_first_eight_mixtures_of_a_validation_become_a_file_and_an_image_of_the_loggers() -> None:
    ((key, grid, step),) = validate().calls
    mixtures, estimates, sources = example(10, 2, 1, 8, 8)
    assert (key, step) == ("separated", 123)
    assert torch.equal(grid, image_grid(mixtures[:8], estimates[:8], sources[:8]))
    (path,) = Path("run", "media").iterdir()
    assert path.name == "step_0000123.png"
    torch.testing.assert_close(read_image(str(path)).float() / 255, grid, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"batch_idx": 1}, {"zero": False}])
def test_nothing_else_is_drawn(options: dict[str, Any]) -> None:
    assert validate(**options).calls == []
    assert not Path("run").exists()


class AudioLogger(ImageLogger):
    def log_audio(self, key: str, audios: list[Any], step: int, sample_rate: list[int]) -> None:
        assert sample_rate == [16000]
        self.calls.append((key, torch.as_tensor(audios[0]), step))


@pytest.mark.parametrize("with_truth", [True, False])
def test_audio_becomes_players_and_spectrograms(with_truth: bool) -> None:
    mixtures, estimates, sources = example(3, 3, 4000)
    sources[:, 2] = 0  # a silent slot is not shown
    logger = AudioLogger()
    trainer: Any = SimpleNamespace(is_global_zero=True, fast_dev_run=False, global_step=7, loggers=[logger])
    signal = {"kind": "audio", "sample_rate": 16000}
    module: Any = SimpleNamespace(signal=signal, separate=lambda mixtures, batch: estimates[: len(mixtures)])
    batch = {"mixtures": mixtures, "sources": sources} if with_truth else {"mixtures": mixtures}
    shuffled = estimates.flip(1) if with_truth else None
    Media(Path("run")).on_validation_batch_end(trainer, module, shuffled, batch, 0)
    written = {path.name for path in Path("run", "media").iterdir()}
    names = (
        {"mixture", "estimate1", "estimate2", "reference1", "reference2"}
        if with_truth
        else {"mixture", "estimate1", "estimate2", "estimate3"}
    )
    assert written == {f"step_0000007_{n}_{name}.wav" for n in (1, 2) for name in names} | {
        "step_0000007_1.png",
        "step_0000007_2.png",
    }
    samples, rate = soundfile.read("run/media/step_0000007_2_estimate2.wav", dtype="float32")
    assert rate == 16000
    torch.testing.assert_close(torch.from_numpy(samples), estimates[1, 1])  # in the order of the references
    assert {key for key, _, _ in logger.calls} == {f"audio{n}/{name}" for n in (1, 2) for name in names} | {
        "spectrograms1",
        "spectrograms2",
    }


def test_tensorboard_and_mlflow_get_pictures_and_sounds_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    board, mlflow = TensorBoardLogger("board", "", ""), MLFlowLogger(tracking_uri="file:flow")
    mixtures, estimates, _ = example(1, 2, 4000)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, global_step=7, loggers=[board, mlflow, object()]
    )
    module: Any = SimpleNamespace(signal={"kind": "audio", "sample_rate": 16000})
    Media(Path("run")).on_validation_batch_end(trainer, module, estimates, {"mixtures": mixtures}, 0)
    board.experiment.flush()
    events = EventAccumulator("board").Reload()
    names = {"mixture", "estimate1", "estimate2"}
    assert events.Tags()["images"] == ["spectrograms1"]
    assert set(events.Tags()["audio"]) == {f"audio1/{name}" for name in names}
    assert events.Audio("audio1/mixture")[0].sample_rate == 16000
    sent = [artifact.path for artifact in mlflow.experiment.list_artifacts(mlflow.run_id, "audio1")]
    assert set(sent) == {f"audio1/step_0000007_1_{name}.wav" for name in names}
    pictures = [artifact.path for artifact in mlflow.experiment.list_artifacts(mlflow.run_id, "images")]
    assert any("spectrograms1" in path for path in pictures)


def test_the_spectrogram_of_a_tone_is_brightest_at_its_frequency() -> None:
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(16000) / 16000)
    picture = spectrogram_grid(torch.stack([tone, tone / 100]))
    loud, quiet = picture[0, 2 : 2 + 257], picture[0, 4 + 257 : 4 + 2 * 257]
    assert picture.shape[1] == 2 * 257 + 3 * 2
    assert int(256 - loud[:, 30].argmax()) == round(2000 / 16000 * 512)
    torch.testing.assert_close(loud.max() - quiet.max(), torch.tensor(40 / 80), atol=1e-3, rtol=0)


def test_a_tracker_that_takes_no_picture_is_told_of_and_stops_nothing() -> None:
    class Gone:
        def log_image(self, *_: object, **__: object) -> None:
            raise BrokenPipeError("its server is gone")

    with pytest.warns(UserWarning, match=r"Gone has failed \(its server is gone\)\. The training goes on"):
        send_to_all([Gone()], send_image, "separated", torch.zeros(3, 2, 2), 1)  # type: ignore[list-item]


def test_a_full_disk_costs_a_picture_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.warns(UserWarning, match=r"^run/media/step_0000123\.png is left out: No space left on device$"):
        logger = validate()
    assert logger.calls
    assert list(Path("run/media").iterdir()) == []
