"""Mel bands against Slaney's formula; encoder and decoder against loops over bands, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from surf_lightning.networks.band_split import BandDecoder, BandEncoder, BandLayout, mel_band_bins
from tests.networks.test_locoformer import perturbed, randn

BANDS = mel_band_bins(64, 16000, 8)


def test_bands_of_the_paper() -> None:
    bands = mel_band_bins(320, 16000, 80)
    sizes = [len(band) for band in bands]
    sizes[0], sizes[-1] = sizes[0] - 1, sizes[-1] - 1  # without the bins at 0 Hz and at half the rate
    assert len(bands) == 80
    assert (min(sizes), max(sizes), sum(sizes)) == (1, 11, 312)
    assert sorted({j for band in bands for j in band}) == list(range(161))
    assert bands[0][0] == 0
    assert bands[-1][-1] == 160
    assert max(sum(j in band for band in bands) for j in range(161)) == 2


def slaney_hertz(mel: float) -> float:
    """Slaney's mel scale: 66.7 Hz a mel up to 1 kHz, then a factor of 6.4 every 27 mels."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


@pytest.mark.parametrize(
    ("n_fft", "rate", "count"),
    [(320, 16000, 80), (320, 16000, 40), (64, 16000, 8), (512, 8000, 60), (882, 44100, 60), (320, 11025, 40)],
)
def test_bands_are_where_slaney_filters_are_positive(n_fft: int, rate: int, count: int) -> None:
    """Band f reaches from edge f to edge f + 2 of edges evenly spaced in mel."""
    top = 15 + 27 * math.log(rate / 2000) / math.log(6.4)
    edges = [slaney_hertz(top * edge / (count + 1)) for edge in range(count + 2)]
    inside = range(1, n_fft // 2)
    expected = [[j for j in inside if edges[f] < j * rate / n_fft < edges[f + 2]] for f in range(count)]
    expected[0].insert(0, 0)
    expected[-1].append(n_fft // 2)
    assert mel_band_bins(n_fft, rate, count) == expected


def test_bands_do_not_depend_on_the_device_that_a_network_is_built_on() -> None:
    with torch.device("meta"):
        assert mel_band_bins(64, 16000, 8) == BANDS


def test_a_band_without_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="lower mel_bands"):
        mel_band_bins(320, 16000, 128)


def test_split_and_merge_keep_the_spectrum() -> None:
    spectrum = randn(2, 3, 33, 2)
    layout = BandLayout(BANDS).double()
    rows = layout.split(spectrum)
    for f, band in enumerate(BANDS):
        assert torch.equal(rows[:, :, f, : 2 * len(band)], spectrum[:, :, band].flatten(-2))
        assert (rows[:, :, f, 2 * len(band) :] == 0).all()
    torch.testing.assert_close(layout.merge(rows), spectrum, atol=1e-15, rtol=0)


def test_encoder_is_a_linear_map_of_each_band() -> None:
    spectrum, encoder = randn(2, 3, 33, 2), perturbed(BandEncoder(BANDS, 12))
    weights = encoder.weight.split([2 * len(band) for band in BANDS])
    tokens = encoder(spectrum)
    for f, band in enumerate(BANDS):
        expected = spectrum[:, :, band].flatten(-2) @ weights[f] + encoder.bias[f]
        torch.testing.assert_close(tokens[:, :, f], expected, atol=1e-12, rtol=0)


def test_decoder_is_a_gated_linear_map_averaged_where_bands_overlap() -> None:
    tokens, decoder = randn(2, 3, 8, 12), perturbed(BandDecoder(BANDS, 12))
    sizes = [2 * len(band) for band in BANDS]
    weights, biases = decoder.weight.split(sizes), decoder.bias.split(sizes)
    grouped = tokens.reshape(2, 3, 8, 4, 3)
    normed = (grouped / (grouped.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5)).reshape(tokens.shape) * decoder.norm.gain
    total, count = torch.zeros(2, 3, 33, 2, dtype=torch.float64), torch.zeros(33, 1, dtype=torch.float64)
    for f, band in enumerate(BANDS):
        values = F.linear(normed[:, :, f], weights[f][:, :12], biases[f][:, 0])
        gates = F.linear(normed[:, :, f], weights[f][:, 12:], biases[f][:, 1])
        pairs = (values / (1 + (-gates).exp())).unflatten(-1, (-1, 2))
        for i, j in enumerate(band):
            total[:, :, j] += pairs[:, :, i]
            count[j] += 1
    torch.testing.assert_close(decoder(tokens), total / count, atol=1e-12, rtol=0)


def test_maps_are_drawn_as_linear_layers_are() -> None:
    bands = mel_band_bins(320, 16000, 80)
    encoder, decoder = BandEncoder(bands, 192), BandDecoder(bands, 192)
    for weight, band in zip(encoder.weight.split([2 * len(band) for band in bands]), bands, strict=True):
        bound = (2 * len(band)) ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
    assert 0.99 * 192**-0.5 < decoder.weight.abs().max() <= 192**-0.5


def test_float32_under_autocast() -> None:
    spectrum = randn(1, 2, 33, 2).float()
    encoder, decoder = BandEncoder(BANDS, 12), BandDecoder(BANDS, 12)
    expected = decoder(encoder(spectrum))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(spectrum)
        decoded = decoder(tokens)
    assert tokens.dtype == torch.float32
    assert torch.equal(decoded, expected)


@pytest.mark.parametrize(("n_fft", "mel_bands"), [(10**7, 10**7), (320, 10**6), (0, 80), (320, -1)])
def test_a_table_of_filters_that_would_fill_the_memory_is_not_begun(n_fft: int, mel_bands: int) -> None:
    with pytest.raises(ValueError, match="must be positive and at most"):
        mel_band_bins(n_fft, 16000, mel_bands)
