"""Batches of windows of many files give the samples of one at a time; one bad file leaves the others alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surf_lightning.inference.jobs import Job
from surf_lightning.inference.pipeline import MOST, Course, windows_that_fit
from surf_lightning.inference.progress import Progress
from surf_lightning.inference.sampling import separate_windows
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator
from surf_lightning.inference.streaming import separate_file
from surf_lightning.networks.conv_tasnet import ConvTasNet
from tests.inference.test_separate import AUDIO, IMAGE, Halves, failures, image, made, read, record, save, separate
from tests.inference.test_streaming import Filters, LocalVelocity, joined, sound

pytestmark = pytest.mark.usefixtures("toy")
LENGTHS = [0.3, 21.0, 0.3, 12.5, 0.7, 0.3, 10.0]  # seconds; a window has 10


@pytest.fixture
def recordings() -> list[np.ndarray]:
    return [record(f"in/{i}.wav", seconds, channels=1 + i % 2) for i, seconds in enumerate(LENGTHS)]


def counted(monkeypatch: pytest.MonkeyPatch, cls: type) -> list[int]:
    """The numbers of rows that go through ``cls`` together."""
    rows: list[int] = []
    forward = cls.forward  # type: ignore[attr-defined]

    def count(self: Any, mixtures: Tensor, *args: Any) -> Tensor:
        rows.append(len(mixtures))
        return forward(self, mixtures, *args)

    monkeypatch.setattr(cls, "forward", count)
    return rows


@pytest.mark.parametrize("batch", ["1", "3", "50"])
def test_any_batch_gives_the_same_samples(
    batch: str, recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    separator = Filters()
    rows = counted(monkeypatch, Filters)
    assert separate("in", "--batch", batch) == 0
    assert (max(rows) > 2) == (batch != "1")
    for i, samples in enumerate(recordings):
        expected = separator.separate(torch.from_numpy(samples.T.copy())).detach().numpy()
        for k in (1, 2):
            np.testing.assert_allclose(read(f"out/{i}_source{k}.wav").T, expected[:, k - 1], atol=2.0**-14)
    assert len(made()) == 2 * len(LENGTHS)


def test_a_flow_starts_each_window_from_its_own_noise_in_any_batch() -> None:
    separator = FlowSeparator(LocalVelocity(2), num_steps=2)
    windows = [(start, sound(1.0, 2)[:, start : start + 4000]) for start in (0, 1600, 4000)]
    together = separate_windows(separator, windows, 3, seed=7)
    for window, planes in zip(windows, together, strict=True):
        torch.testing.assert_close(planes, separate_windows(separator, [window], 3, seed=7)[0], atol=1e-5, rtol=1e-5)


def test_images_of_a_batch_are_those_of_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    save(RegressionSeparator(Halves(0.5), 2), IMAGE)
    for i in range(5):
        image(f"in/{i}.png")
    rows = counted(monkeypatch, Halves)
    assert separate("in") == 0
    assert rows == [5]
    batched = {name: Path("out", name).read_bytes() for name in made()}
    assert separate("in", "--batch", "1", "--overwrite") == 0
    assert batched == {name: Path("out", name).read_bytes() for name in made()}


def test_nan_in_one_file_of_a_batch_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        record(f"in/{name}.wav", 1.0)
    forward = Filters.forward

    def spoil(self: Filters, mixtures: Tensor, *args: Any) -> Tensor:
        estimates = forward(self, mixtures, *args)
        assert len(mixtures) == 3
        estimates[1, :, 5] = float("nan")
        return estimates

    monkeypatch.setattr(Filters, "forward", spoil)
    assert separate("in", "--batch", "4") == 1
    assert len(made()) == 4
    assert "NaN" in failures()["b.wav"]


def test_a_batch_that_does_not_fit_is_halved(recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Filters.forward

    def small(self: Filters, mixtures: Tensor, *args: Any) -> Tensor:
        if len(mixtures) > 2:
            raise torch.OutOfMemoryError
        return forward(self, mixtures, *args)

    monkeypatch.setattr(Filters, "forward", small)
    assert separate("in", "--batch", "8") == 0
    assert len(made()) == 2 * len(recordings)


def test_a_file_that_fails_half_way_counts_once() -> None:
    progress, course = Progress(2, 20.0), Course(Job(Path("a.wav"), Path("out/a"), (), 0, 10.0), Path("work"))
    progress.advance(course, 6.0)
    progress.file_done(10.0, course)
    assert (progress.done, progress.finished) == (10.0, 1)


def test_the_batch_that_a_device_holds() -> None:
    assert windows_that_fit(free=100, peak=10) == 5
    assert windows_that_fit(free=1, peak=10) == 1
    assert windows_that_fit(free=10**12, peak=10) == MOST


def test_bfloat16_and_fewer_steps_change_the_samples_a_little() -> None:
    torch.manual_seed(0)
    network = ConvTasNet(2, 2, filters=16, bottleneck=8, hidden=16, repeats=1, blocks=2)
    save(RegressionSeparator(network, 2), AUDIO)
    samples = record("in/a.wav", 2.0, subtype="FLOAT")
    assert separate("in") == 0
    exact = [read(f"out/{name}") for name in made()]
    assert separate("in", "--overwrite", "--precision", "bf16") == 0
    rough = [read(f"out/{name}") for name in made()]
    np.testing.assert_allclose(sum(rough), samples, atol=1e-6)
    error = sum(((a - b) ** 2).sum() for a, b in zip(exact, rough, strict=True)) / (samples**2).sum()
    assert 0 < error < 1e-3
    assert separate("in", "--overwrite", "--num_steps", "2") == 2  # a regression takes none
    save(FlowSeparator(LocalVelocity(2), num_steps=8), AUDIO)
    assert separate("in", "--overwrite") == 0
    eight = read("out/a_source1.wav")
    assert separate("in", "--overwrite", "--num_steps", "2") == 0
    assert not np.array_equal(eight, read("out/a_source1.wav"))
    assert separate("in", "--overwrite", "--num_steps", "0") == 2


def test_a_file_in_chunks_is_the_same_in_any_batch() -> None:
    samples = record("field.wav", 25.0, rate=16000)
    one, two = (joined(separate_file(Filters(), "field.wav", batch=batch)) for batch in (1, 2))
    assert one.shape == (1, 2, len(samples))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=0)
