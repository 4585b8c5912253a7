"""Mel-band split of spectra into tokens, and back.

Axes: N frames, J frequency bins, F bands, W bins of the widest band, P real numbers of all bands, D features; a last
axis of 2 holds real and imaginary parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from surf_lightning.functional.precision import at_least_float32, full_precision
from surf_lightning.networks.locoformer_layers import RMSGroupNorm

LARGEST = 50_000_000  # numbers in a table of filters


def mel_band_bins(n_fft: int, sample_rate: int, mel_bands: int) -> list[list[int]]:
    """The bins of each band: where Slaney's triangular filters from 0 Hz to half the sample rate are positive.

    Neighbours overlap. The bins at 0 Hz and at half the rate, where no filter is positive, join the first and the
    last band.

    Raises:
        ValueError: a band holds no bin, or the filters would fill the memory.
    """
    if not 0 < n_fft * mel_bands <= LARGEST:  # a checkpoint, perhaps a stranger's, may say so
        raise ValueError(f"n_fft ({n_fft}) times mel_bands ({mel_bands}) must be positive and at most {LARGEST:,}")
    last = n_fft // 2
    # At twice the rate: torchaudio rounds half the rate to whole Hz, which would stretch the bins of an odd rate.
    with torch.device("cpu"):  # the network may be built on any other, even on "meta"
        filters = melscale_fbanks(n_fft + 1, 0.0, sample_rate / 2, mel_bands, 2 * sample_rate, mel_scale="slaney")
    bands = [(1 + row.nonzero().flatten()).tolist() for row in filters[1:last].T]
    if not all(bands):
        raise ValueError(
            f"mel band {bands.index([])} of {mel_bands} has no bin: lower mel_bands, or raise n_fft {n_fft}"
        )
    bands[0].insert(0, 0)
    bands[-1].append(last)
    return bands


class BandLayout(nn.Module):
    """Index tables that pad all bands to the widest, so one product serves all bands."""

    bins: Tensor
    valid: Tensor
    coverage: Tensor

    def __init__(self, bands: list[list[int]]) -> None:
        super().__init__()
        self.num_bands, self.width = len(bands), max(map(len, bands))
        self.num_bins = 1 + max(map(max, bands))
        members = [j for band in bands for j in band]
        padded = [j for band in bands for j in band + [self.num_bins] * (self.width - len(band))]
        valid = [2 * self.width * f + i for f, band in enumerate(bands) for i in range(2 * len(band))]
        self.register_buffer("bins", torch.tensor(padded), persistent=False)  # [F*W], bin J is the padding
        self.register_buffer("valid", torch.tensor(valid), persistent=False)  # [P], places in F*2W
        coverage = [float(members.count(j)) for j in range(self.num_bins)]
        self.register_buffer("coverage", torch.tensor(coverage), persistent=False)  # [J]

    def split(self, spectrum: Tensor) -> Tensor:
        """Gather the real numbers of each band, padded with zeros, ``[*,J,2] -> [*,F,2W]``."""
        rows = F.pad(spectrum, (0, 0, 0, 1)).index_select(-2, self.bins)
        return rows.flatten(-2).unflatten(-1, (self.num_bands, -1))

    def merge(self, rows: Tensor) -> Tensor:
        """Average each bin over its bands, ``[*,F,2W] -> [*,J,2]``.

        A bin lies in at most two bands, so no order of the additions changes a sum, on any device.
        """
        numbers = rows.flatten(-2).unflatten(-1, (-1, 2))
        blank = _zeros_like(numbers, *numbers.shape[:-2], self.num_bins + 1, 2)
        summed = blank.index_add(-2, self.bins, numbers)
        return summed[..., :-1, :] / self.coverage[:, None]

    def pad(self, rows: Tensor) -> Tensor:
        """Pad parameters, one row per real number, with zeros, ``[P,*] -> [F,2W,*]``."""
        blank = _zeros_like(rows, 2 * self.num_bands * self.width, *rows.shape[1:])
        return blank.index_copy(0, self.valid, rows).unflatten(0, (self.num_bands, -1))


def _zeros_like(x: Tensor, *shape: int) -> Tensor:
    """As ``x.new_zeros(*shape)``, of which onnxruntime warns."""
    return torch.zeros(shape, dtype=x.dtype, device=x.device)


class BandEncoder(nn.Module):
    """Maps a spectrum to tokens: one linear map per band.

    MelBand-RoFormer normalizes each band by its RMS first. That would hide how loud each band of each frame is, and
    this network, without a mask on its input, could not recover it. ``bands``: of :func:`mel_band_bins`.
    """

    def __init__(self, bands: list[list[int]], features: int) -> None:
        super().__init__()
        self.layout = BandLayout(bands)
        bounds = [(2 * len(band)) ** -0.5 for band in bands]
        each = [bound for bound, band in zip(bounds, bands, strict=True) for _ in range(2 * len(band))]
        self.weight = nn.Parameter(_uniform(each, features))  # [P,D]
        self.bias = nn.Parameter(_uniform(bounds, features))  # [F,D]

    def forward(self, spectrum: Tensor) -> Tensor:
        """Map ``spectrum [*,N,J,2]`` to ``tokens [*,N,F,D]``, in float32 also under autocast."""
        with full_precision(spectrum):
            rows = self.layout.split(at_least_float32(spectrum))
            return torch.einsum("...fw,fwd->...fd", rows, self.layout.pad(self.weight)) + self.bias


class BandDecoder(nn.Module):
    """Maps tokens to a spectrum: RMSGroupNorm, a linear map and a GLU per band; averages a bin over its bands."""

    def __init__(self, bands: list[list[int]], features: int) -> None:
        super().__init__()
        self.layout, self.norm = BandLayout(bands), RMSGroupNorm(features)
        bounds = [features**-0.5] * sum(2 * len(band) for band in bands)
        self.weight = nn.Parameter(_uniform(bounds, 2 * features))  # [P,2D], for values and gates
        self.bias = nn.Parameter(_uniform(bounds, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``tokens [*,N,F,D]`` to ``spectrum [*,N,J,2]``, in float32 also under autocast."""
        with full_precision(tokens):
            weight = torch.cat(self.layout.pad(self.weight).chunk(2, -1), 1)  # [F,4W,D]
            bias = torch.cat(self.layout.pad(self.bias).unbind(-1), 1)  # [F,4W]
            rows = torch.einsum("...fd,fwd->...fw", self.norm(tokens), weight) + bias
            return self.layout.merge(F.glu(rows))


def _uniform(bounds: list[float], features: int) -> Tensor:
    """Draw one row within ± each bound, ``[len(bounds),features]``, as nn.Linear does."""
    return torch.tensor(bounds)[:, None] * (2 * torch.rand(len(bounds), features) - 1)
