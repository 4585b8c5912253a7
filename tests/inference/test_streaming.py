"""Windows, overlap-add and resampling against whole-signal computations. Axes: C channels, K sources, T samples."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from surf_lightning.audio.files import BadAudio, StreamResampler
from surf_lightning.audio.streams import AudioFile, SampleFormat, SourceWriter, quantise
from surf_lightning.functional.randomness import mix_seed
from surf_lightning.inference.overlap_add import Windows, split_windows
from surf_lightning.inference.sampling import draw, noise_at, posterior
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator
from surf_lightning.inference.streaming import Chunk, separate_file, separate_stream
from surf_lightning.networks.base import VelocityNetwork, serializable
from surf_lightning.networks.conv_tasnet import ConvTasNet
from tests.audio.trees import BROKEN

RATE = 8000
SHORT = Windows(length=1.0, margin=0.1, crossfade=0.1)


@serializable
class Filters(Separator):
    """A local toy: source 1 is a moving average of ``taps`` samples, source 2 the rest, each times its gain."""

    def __init__(self, sample_rate: int = RATE, taps: int = 41, gain: float = 1.0) -> None:
        super().__init__()
        self.num_sources, self.signal = 2, {"kind": "audio", "sample_rate": sample_rate}
        self.gain, self.kernel = gain, torch.nn.Parameter(torch.full((1, 1, taps), 1 / taps))

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        kernel = self.kernel.to(mixtures.dtype)
        low = self.gain * F.conv1d(mixtures[:, None], kernel, padding=kernel.shape[-1] // 2)[:, 0]
        return torch.stack([low, mixtures - low], 1)


class Toy(Separator):
    """Computes ``function(mixtures, call)``; calls count from 1."""

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.num_sources, self.signal = 2, {"kind": "audio", "sample_rate": RATE}
        self.function, self.calls = function, 0

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.calls += 1
        return self.function(mixtures, self.calls)


def swapping(split: Callable[[Tensor], Tensor]) -> Toy:
    """Swaps the sources of ``split`` on every second call."""
    return Toy(lambda mixtures, call: split(mixtures).flip(1) if call % 2 == 0 else split(mixtures))


@serializable
class LocalVelocity(VelocityNetwork):
    """A nonlinear velocity that looks 8 samples to each side."""

    def __init__(self, num_sources: int = 3) -> None:
        super().__init__()
        self.num_sources, self.kernel = num_sources, torch.nn.Parameter(torch.full((1, 1, 17), 1 / 17))

    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        smooth = F.conv1d(x_t.flatten(0, 1)[:, None], self.kernel, padding=8).view_as(x_t)
        raw = torch.tanh(3 * smooth + mixtures[:, None]) * (1 + t[:, None, None])
        return raw - raw.mean(1, keepdim=True)

    def residual_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


def joined(chunks: Iterable[Chunk]) -> Tensor:
    parts = list(chunks)
    starts = list(itertools.accumulate((chunk.estimates.shape[-1] for chunk in parts), initial=0))
    assert [chunk.start for chunk in parts] == starts[:-1]
    return torch.cat([chunk.estimates for chunk in parts], -1)


def sound(seconds: float, channels: int = 1, rate: int = RATE) -> Tensor:
    """Slow and fast noise of changing level, ``[C,T]`` float64 within ±0.5."""
    generator = torch.Generator().manual_seed(1)
    count = round(seconds * rate)
    noise = torch.randn(channels, count, generator=generator, dtype=torch.float64)
    slow = F.avg_pool1d(F.pad(noise, (100, 99)), 200, 1)[..., :count] * 8
    x = slow + 0.2 * torch.randn(channels, count, generator=generator, dtype=torch.float64)
    x = x * (1.5 + torch.sin(torch.arange(count) / rate * 3))
    return x / (2 * x.abs().amax().clamp_min(1e-9))


# -- windows --


@pytest.mark.parametrize("count", [1, 7, 1599, 7999, 8000, 8001, 8160, 8161, 13600, 13601, 20000, 56013])
def test_chunked_equals_whole_everywhere_for_a_local_separator(count: int) -> None:
    mixtures = sound(count / RATE, channels=2)
    separator = Filters()
    blocks = itertools.chain([mixtures[:, :0]], mixtures.split(777, 1))
    estimates = joined(separate_stream(separator, blocks, SHORT))
    assert estimates.shape == (2, 2, count)
    torch.testing.assert_close(estimates, separator.separate(mixtures), atol=1e-6, rtol=0)


def test_windows_cover_the_stream_start_on_a_grid_and_overlap_enough() -> None:
    sizes = SHORT.samples(RATE)
    for count in range(sizes.length, 4 * sizes.length, 997):
        windows = list(split_windows(sound(count / RATE).split(500, 1), sizes))
        starts, ends = [start for start, _ in windows], [start + window.shape[1] for start, window in windows]
        assert starts[0] == 0
        assert ends[-1] == count
        assert all(start % 160 == 0 for start in starts)  # 20 ms: the same frames for every network
        assert all(end - start >= sizes.overlap for start, end in zip(starts[1:], ends, strict=False))
        assert max(end - start for start, end in zip(starts, ends, strict=True)) <= sizes.length


def test_no_more_than_two_windows_are_held() -> None:
    sizes, fed = SHORT.samples(RATE), 0

    def blocks() -> Iterator[Tensor]:
        nonlocal fed
        for block in sound(20).split(400, 1):
            fed += block.shape[1]
            yield block

    for start, window in split_windows(blocks(), sizes):
        assert fed - start <= 2 * sizes.length + 400
        assert window._base is None or window._base.shape[1] <= 2 * sizes.length + 400


@pytest.mark.parametrize("windows", [(1.0, 0.4, 0.1), (0.0, 0.0, 0.0), (1.0, -0.1, 0.1)])
def test_windows_that_are_all_overlap_are_refused(windows: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        Windows(*windows)


def test_a_real_network_agrees_with_itself_on_the_whole_away_from_the_seams() -> None:
    torch.manual_seed(0)
    network = ConvTasNet(2, 2, filters=16, bottleneck=8, hidden=16, repeats=1, blocks=3)
    separator = RegressionSeparator(network, 2).eval()
    separator.signal = {"kind": "audio", "sample_rate": 16000}
    mixtures = sound(6, rate=16000)
    # Its norms are over the window, so that different windows differ a little everywhere: a stationary signal keeps
    # that small, and the seams may be no worse than the rest.
    mixtures = mixtures / F.avg_pool1d(F.pad(mixtures.abs(), (4000, 3999), mode="reflect"), 8000, 1)
    estimates = joined(separate_stream(separator, [mixtures], Windows(2.0, 0.2, 0.2)))
    whole = separator.separate(mixtures.float()).double()
    error = (estimates - whole).square().sum((0, 1)) / whole.square().sum((0, 1)).mean()
    assert error.mean() < 1e-4
    assert error.view(-1, 800).mean(1).max() < 1e-3


# -- order --


def test_swapped_windows_are_put_in_order_again() -> None:
    mixtures = sound(12, channels=2)
    toy = swapping(Filters())
    estimates = joined(separate_stream(toy, [mixtures], SHORT))
    assert toy.calls > 10
    torch.testing.assert_close(estimates, Filters().separate(mixtures), atol=1e-6, rtol=0)


def test_a_source_that_is_silent_where_windows_overlap_is_known_by_the_other_one() -> None:
    def signs(mixtures: Tensor) -> Tensor:
        """Source 1 is what is positive, source 2 what is negative."""
        return torch.stack([mixtures.clamp_min(0), mixtures.clamp_max(0)], 1)

    mixtures, windows = sound(6), SHORT.samples(RATE)
    hop = windows.length - windows.overlap
    for seam in range(hop, mixtures.shape[1], hop):
        mixtures[:, seam : seam + windows.overlap].abs_()
    toy = swapping(signs)
    found = joined(separate_stream(toy, [mixtures], SHORT))
    assert toy.calls > 5
    torch.testing.assert_close(found, signs(mixtures), atol=1e-6, rtol=0)


def test_channels_agree_on_the_order_though_one_is_in_opposite_phase_and_one_was_silent() -> None:
    source = sound(9, channels=1)
    mixtures = torch.cat([source, -0.5 * source, 0.2 * source])
    mixtures[2, : 3 * RATE] = 0
    expected = Filters().separate(mixtures)

    def swaps_some_channels(mixtures: Tensor, call: int) -> Tensor:
        channels = Filters()(mixtures).split(1)
        return torch.cat([rows.flip(1) if (i + call) % 2 else rows for i, rows in enumerate(channels)])

    estimates = joined(separate_stream(Toy(swaps_some_channels), [mixtures], SHORT))
    in_order = (estimates - expected).abs().amax() < 1e-5
    assert in_order or (estimates - expected.flip(1)).abs().amax() < 1e-5


def test_windows_that_disagree_are_faded_into_one_another() -> None:
    def drifting(mixtures: Tensor, call: int) -> Tensor:
        return Filters()(mixtures) + 0.01 * call * torch.tensor([[1.0], [-1.0]])

    mixtures = sound(6)
    drift = joined(separate_stream(Toy(drifting), [mixtures], SHORT)) - Filters().separate(mixtures)
    steps = drift[0, 0].diff()
    assert drift[0, 0, -1] - drift[0, 0, 0] > 0.05
    assert steps.min() > -1e-6
    assert steps.max() < 0.01 * (torch.pi / 2) / 800 + 1e-6  # no faster than the raised cosine of the 0.1 s they share


def test_digital_silence_never_reaches_the_network() -> None:
    mixtures = sound(8, channels=2)
    mixtures[:, 2 * RATE : 6 * RATE] = 0
    mixtures[1] = 0
    seen: list[int] = []

    def watched(mixtures: Tensor, call: int) -> Tensor:
        assert mixtures.any(1).all()
        seen.append(len(mixtures))
        return Filters()(mixtures)

    estimates = joined(separate_stream(Toy(watched), [mixtures], SHORT))
    assert set(seen) == {1}
    assert len(seen) < 8
    assert not estimates[1].any()
    assert not estimates[0, :, 2 * RATE + 100 : 6 * RATE - 100].any()
    torch.testing.assert_close(estimates.sum(1), mixtures, atol=1e-6, rtol=0)


# -- flows --


def flow() -> FlowSeparator:
    separator = FlowSeparator(LocalVelocity(), num_steps=4)
    separator.signal = {"kind": "audio", "sample_rate": RATE}
    return separator


def test_noise_is_a_function_of_the_position() -> None:
    whole = noise_at(0, 60000, 3, seed=5)
    assert torch.equal(noise_at(20001, 30000, 3, seed=5), whole[:, 20001:50001])
    assert abs(whole.std() - 1) < 0.01
    assert abs(whole.mean()) < 0.01
    assert not torch.equal(noise_at(0, 60000, 3, seed=6), whole)


def test_a_flow_gives_one_posterior_sample_across_all_windows() -> None:
    mixtures = sound(5, channels=2)
    chunked = joined(separate_stream(flow(), [mixtures], SHORT))
    whole = joined(separate_stream(flow(), [mixtures], Windows(6.0, 0.1, 0.1)))
    # Rows may be in another order: the sources of this flow are exchangeable.
    found = min((chunked - whole[:, list(order)]).abs().max() for order in itertools.permutations(range(3)))
    assert found < 1e-5
    torch.testing.assert_close(chunked.sum(1), mixtures, atol=1e-5, rtol=0)
    assert torch.equal(chunked, joined(separate_stream(flow(), mixtures.split(123, 1), SHORT)))


def test_posterior_is_mean_and_variance_of_aligned_samples() -> None:
    torch.manual_seed(0)
    base = torch.randn(1, 3, 500, dtype=torch.float64)
    samples = [base + 0.1 * torch.randn_like(base) for _ in range(6)]
    shuffled = [sample[:, torch.randperm(3)] if i else sample for i, sample in enumerate(samples)]
    mean, variance = posterior(shuffled)
    torch.testing.assert_close(mean, torch.stack(samples).mean(0))
    torch.testing.assert_close(variance, torch.stack(samples).var(0))
    assert not posterior(samples[:1])[1].any()


def test_uncertainty_is_the_deviation_of_the_samples_in_tenths_of_a_second() -> None:
    mixtures = sound(2.05)
    chunks = list(separate_stream(flow(), [mixtures], SHORT, num_samples=8, seed=3))
    curve = torch.cat([chunk.curve for chunk in chunks])
    assert curve[:, 0].tolist() == pytest.approx([*(0.05 + 0.1 * i for i in range(20)), 2.025])
    # In one window the samples can be drawn here as well; windows differ from it by what they see beyond their ends.
    seeds = [mix_seed(3, number) for number in range(8)]
    _, variance = posterior(draw(flow(), mixtures.float(), [0], seed).double() for seed in seeds)
    expected = torch.stack([part.mean(-1).sqrt() for part in variance[0].split(RATE // 10, -1)])
    whole = list(separate_stream(flow(), [mixtures], Windows(3.0, 0.1, 0.1), num_samples=8, seed=3))
    torch.testing.assert_close(torch.cat([chunk.curve for chunk in whole])[:, 1:], expected)
    found = curve[:, 1:].sort(1).values  # the sources may be in another order
    torch.testing.assert_close(found, expected.sort(1).values, rtol=0.1, atol=0)
    assert all(len(chunk.curve) == 0 for chunk in separate_stream(flow(), [mixtures], SHORT))
    torch.testing.assert_close(joined(chunks).sum(1), mixtures, atol=1e-5, rtol=0)


def test_no_samples_and_no_audio_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        list(separate_stream(flow(), [sound(1)], SHORT, num_samples=0))
    separator = flow()
    separator.signal = {"kind": "image", "shape": [1, 2, 3]}
    with pytest.raises(ValueError, match="audio"):
        list(separate_stream(separator, [sound(1)], SHORT))


def test_nan_from_a_network_is_an_error() -> None:
    separator = Filters(gain=float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        list(separate_stream(separator, [sound(1)], SHORT))


# -- files --


def resampled(rows: Tensor, old: int, new: int) -> Tensor:
    """``[R,T]`` as a whole."""
    return rows if old == new else torch.from_numpy(soxr.resample(rows.T.numpy(), old, new).T.copy())


@pytest.mark.parametrize(
    ("old", "new"), [(44100, 16000), (16000, 48000), (8000, 16000), (22050, 16001), (16000, 16000)]
)
def test_resampled_blocks_joined_are_the_resampled_whole(old: int, new: int) -> None:
    signal = sound(1.3, channels=3, rate=old)
    resample, blocks = StreamResampler(old, new, 3), signal.split(1111, 1)
    parts = [resample(block) for block in blocks] + [resample(signal[:, :0], last=True)]
    torch.testing.assert_close(torch.cat(parts, 1), resampled(signal, old, new), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_of_any_rate_gives_chunks_that_sum_to_it(rate: int, channels: int) -> None:
    samples = sound(3.21, channels, rate)
    soundfile.write("in.wav", samples.T.numpy(), rate, "DOUBLE")
    separator = Filters(16000)
    estimates = joined(separate_file(separator, "in.wav", windows=SHORT))
    assert estimates.shape == (channels, 2, samples.shape[1])
    torch.testing.assert_close(estimates.sum(1), samples, atol=1e-12, rtol=0)
    # What the separator gets is the resampled whole; what it gives is resampled back; the rest is shared equally.
    low = separator.separate(resampled(samples, rate, 16000))
    back = resampled(low.flatten(0, 1), 16000, rate).unflatten(0, (channels, 2))[..., : samples.shape[1]]
    share = (samples[:, : back.shape[-1]] - back.sum(1)) / 2
    torch.testing.assert_close(estimates[..., : back.shape[-1]], back + share[:, None], atol=1e-6, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 50])
def test_files_of_a_few_samples_are_separated(frames: int) -> None:
    samples = np.linspace(-0.5, 0.5, frames + 2)[1:-1] + 0.25
    soundfile.write("in.wav", samples, 96000, "DOUBLE")
    np.testing.assert_allclose(joined(separate_file(Filters(), "in.wav")).sum(1)[0].numpy(), samples, atol=1e-12)


def test_of_channels_there_are_three_choices() -> None:
    soundfile.write("in.wav", sound(1.0, channels=2).T.numpy(), RATE)
    with pytest.raises(ValueError, match="one of each, mix, first"):
        list(separate_file(Filters(), "in.wav", "last"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["truncated.flac", "nan.wav", "empty.wav", "text.wav", "no_samples.wav"])
def test_a_bad_file_is_refused_with_its_reason(name: str) -> None:
    make, reason = BROKEN[name]
    make(Path(name))
    with pytest.raises(BadAudio, match=reason):
        list(separate_file(Filters(), name))


# -- writing --


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_written_sources_sum_to_the_input_exactly(subtype: str) -> None:
    soundfile.write("in.wav", sound(1.0).T.numpy(), RATE, subtype)
    samples, _ = soundfile.read("in.wav", dtype="float64")
    file = AudioFile.open("in.wav")
    estimates = joined(separate_file(Filters(), file))
    writer = SourceWriter(Path("out"), 2, RATE, 1, len(samples), file.source_format())
    for chunk in estimates.split(999, -1):
        writer.write(chunk)
    writer.close(complete=True)
    read = [soundfile.read(path, dtype="float64")[0] for path in writer.paths]
    bits = {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}.get(subtype)
    np.testing.assert_allclose(sum(read), samples, atol=1e-15 if bits or subtype == "DOUBLE" else 1e-7)
    for written, estimate in zip(read, estimates[0], strict=True):
        np.testing.assert_allclose(written, estimate.numpy(), atol=2.0 ** (1 - bits) if bits else 1e-7)
    assert soundfile.info(writer.paths[0]).subtype == subtype


def test_rounding_to_a_grid_keeps_the_sum() -> None:
    sources = torch.randn(2, 5, 1000, dtype=torch.float64)
    rounded = quantise(sources, 0.01)
    torch.testing.assert_close(rounded / 0.01, (rounded / 0.01).round(), atol=1e-9, rtol=0)
    torch.testing.assert_close(rounded.sum(1), (sources.sum(1) / 0.01).round() * 0.01, atol=1e-12, rtol=0)
    assert (rounded - sources).abs().max() <= 0.01 + 1e-12


@pytest.mark.parametrize(("container", "suffix"), [("WAV", ".wav"), ("FLAC", ".flac"), ("AIFF", ".aiff")])
@pytest.mark.parametrize("clips_at", [0, 2])
def test_a_source_that_would_clip_makes_all_float_without_loss(container: str, suffix: str, clips_at: int) -> None:
    chunks = [torch.full((2, 2, 100), 0.25 * (-1) ** i, dtype=torch.float64) for i in range(4)]
    chunks[clips_at] = chunks[clips_at] + torch.tensor([2.0, -2.0])[:, None]
    writer = SourceWriter(Path("out"), 2, RATE, 2, 800, SampleFormat(container, "PCM_16", "FILE", suffix))
    for chunk in chunks:
        writer.write(chunk)
    writer.close(complete=True)
    assert writer.clipped
    assert [path.name for path in writer.paths] == [
        f"out_source{k}{'.wav' if container == 'FLAC' else suffix}" for k in (1, 2)
    ]
    expected = torch.cat(chunks, -1)
    for k, path in enumerate(writer.paths):
        read, _ = soundfile.read(path)
        np.testing.assert_array_equal(read.T, expected[:, k].numpy())
        assert soundfile.info(path).subtype == "FLOAT"
    assert len(os.listdir()) == 2


def test_an_interrupted_writer_leaves_nothing() -> None:
    writer = SourceWriter(Path("out"), 2, RATE, 1, 100, SampleFormat("WAV", "PCM_16", "FILE", ".wav"))
    writer.write(torch.zeros(1, 2, 10, dtype=torch.float64))
    writer.close(complete=False)
    assert os.listdir() == []


def test_files_beyond_four_gigabytes_get_a_format_without_that_limit() -> None:
    wav = SampleFormat("WAV", "PCM_16", "FILE", ".wav")
    assert wav.for_size(10**9) == wav
    assert wav.for_size(3 * 10**9).container == "RF64"
    assert wav.as_float().for_size(1100 * 10**6).container == "RF64"
    assert SampleFormat("FLAC", "PCM_16", "FILE", ".flac").for_size(10**10).container == "FLAC"
