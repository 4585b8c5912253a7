"""The spectral front-end against explicit transforms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from surf_lightning.networks.stft import COMPRESSION, STFT, compress, expand, rms


def signals(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("n_fft", "hop"), [(320, 160), (64, 16), (10, 3)])
@pytest.mark.parametrize("length", [1, 7, 160, 161, 1000])
def test_round_trip(n_fft: int, hop: int, length: int) -> None:
    x = signals(2, 3, length, dtype=torch.float32)
    stft = STFT(n_fft, hop)
    torch.testing.assert_close(stft.inverse(stft(x), length), x, atol=2e-6, rtol=0)


def test_round_trip_of_audio_at_its_own_precision() -> None:
    x, stft = signals(1, 1, 16000, dtype=torch.float32), STFT(320, 160)
    assert (stft.inverse(stft(x), 16000) - x).abs().mean() < 1e-6
    assert (stft.inverse(stft(x.double()), 16000) - x).abs().max() < 1e-12


def test_frames_are_windowed_fourier_sums() -> None:
    x, n_fft, hop = signals(1, 1, 23), 8, 4
    stft = STFT(n_fft, hop).double()
    window = torch.tensor([0.54 - 0.46 * math.cos(2 * math.pi * i / n_fft) for i in range(n_fft)], dtype=torch.float64)
    window /= window.square().sum().sqrt()
    padded = torch.cat([torch.zeros(4), x[0, 0], torch.zeros(1 + 4)])
    spectrum = torch.view_as_complex(stft(x))[0, 0]
    assert spectrum.shape == (7, 5)
    for n in range(7):
        for j in range(5):
            wave = [complex(math.cos(a), -math.sin(a)) for a in (2 * math.pi * i * j / n_fft for i in range(n_fft))]
            expected = sum(w * s * e for w, s, e in zip(window, padded[n * hop : n * hop + n_fft], wave, strict=True))
            assert abs(spectrum[n, j] - expected) < 1e-6  # the window is kept in float32


def test_white_signal_keeps_its_power_in_every_bin() -> None:
    stft = STFT(320, 160)
    assert stft.window.double().square().sum() == pytest.approx(1, abs=1e-6)
    power = stft(3 * signals(1, 1, 160000, dtype=torch.float32)).square().sum(-1)[..., 1:-1].mean()
    assert power == pytest.approx(9, rel=0.01)


def test_compression_raises_magnitudes_and_keeps_phases() -> None:
    spectrum = signals(5, 7, 2)
    before, after = torch.view_as_complex(spectrum), torch.view_as_complex(compress(spectrum, eps=0))
    torch.testing.assert_close(after.abs(), before.abs() ** COMPRESSION, atol=1e-12, rtol=0)
    torch.testing.assert_close(after.angle(), before.angle(), atol=1e-12, rtol=0)


def test_expansion_inverts_compression() -> None:
    spectrum = signals(50, 40, 2)
    torch.testing.assert_close(expand(compress(spectrum, eps=0)), spectrum, atol=1e-12, rtol=0)
    # The floor matters only close to silence.
    torch.testing.assert_close(expand(compress(spectrum)), spectrum, atol=1e-6, rtol=1e-6)
    faint = 1e-6 * spectrum
    assert (expand(compress(faint)) - faint).abs().max() < 1e-5


def test_silence_has_finite_gradients() -> None:
    x = torch.zeros(1, 1, 40, requires_grad=True)
    stft = STFT(16, 8)
    out = stft.inverse(expand(compress(stft(x))), 40) + rms(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()
    assert (out == rms(x)).all()


def test_level_is_the_root_mean_square() -> None:
    x = signals(4, 100)
    torch.testing.assert_close(rms(x)[:, 0], x.pow(2).mean(1).sqrt(), atol=1e-12, rtol=0)
    torch.testing.assert_close(rms(torch.zeros(2, 5)), torch.full((2, 1), 1e-8), atol=0, rtol=1e-5)
    assert rms(x.bfloat16()).dtype == torch.float32


def test_float32_under_autocast() -> None:
    x, stft = signals(2, 3, 100, dtype=torch.float32), STFT(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        spectrum = stft(x.bfloat16())
        back = stft.inverse(spectrum, 100)
    assert spectrum.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, x.bfloat16().float(), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("n_fft", "hop"), [(15, 5), (16, 0), (16, 9)])
def test_unusable_frames_are_refused(n_fft: int, hop: int) -> None:
    with pytest.raises(ValueError, match="n_fft must be even"):
        STFT(n_fft, hop)
