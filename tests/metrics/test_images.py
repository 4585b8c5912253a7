"""PSNR, SSIM and their alignment against computations of their own in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from surf_lightning.metrics.images import PSNR, SSIM, ImageMetrics, align_by_mse, to_unit_range

psnr, ssim = PSNR().score, SSIM().score


def plain_psnr(estimate: Tensor, reference: Tensor) -> float:
    error = float(((estimate.double() - reference.double()) ** 2).mean())
    return 10 * math.log10(1 / max(error, 1e-10))


def plain_ssim(estimate: Tensor, reference: Tensor, size: int, sigma: float) -> float:
    """Of one image ``[C,H,W]``: the mean over channels and windows, around every pixel of the mirrored image."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets**2) / (2 * sigma**2))
    window /= window.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = correlate1d(image, window, axis, mode="mirror")
        return image

    values = []
    for x, y in zip(estimate.double().numpy(), reference.double().numpy(), strict=True):
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
        c1, c2 = 0.01**2, 0.03**2
        similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
        values.append((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
    return float(np.mean(values))


def plain_align(estimates: Tensor, sources: Tensor) -> Tensor:
    aligned = []
    for found, truth in zip(estimates, sources, strict=True):
        orders = itertools.permutations(range(len(truth)))
        best = min(orders, key=lambda order: float(((found[list(order)] - truth).double() ** 2).sum()))
        aligned.append(found[list(best)])
    return torch.stack(aligned)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_the_mean_square_error_in_decibels_of_each_image() -> None:
    estimates, references = pictures(5, 3, 9, 7), pictures(5, 3, 9, 7, seed=1)
    expected = [plain_psnr(*pair) for pair in zip(estimates, references, strict=True)]
    torch.testing.assert_close(psnr(estimates, references), torch.tensor(expected), rtol=1e-5, atol=0)
    known = torch.full((1, 1, 4, 4), 0.1)
    assert psnr(known, torch.zeros_like(known)).item() == pytest.approx(20)
    assert psnr(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item() == 0


def test_a_pixel_exact_image_counts_as_100_decibels() -> None:
    images = pictures(2, 1, 8, 8)
    assert psnr(images, images).tolist() == [100, 100]
    assert psnr(images + 1e-6, images).tolist() == [100, 100]


@pytest.mark.parametrize(
    ("shape", "size", "sigma"),
    [
        ((1, 28, 28), 11, 1.5),
        ((3, 32, 32), 11, 1.5),
        ((1, 16, 20), 11, 1.5),
        ((1, 15, 40), 5, 0.5),
        ((2, 8, 8), 5, 0.5),
    ],
)
def test_ssim_is_the_mean_over_gaussian_windows_and_channels(shape: tuple[int, ...], size: int, sigma: float) -> None:
    references = pictures(4, *shape)
    estimates = (references + 0.3 * (pictures(4, *shape, seed=1) - 0.5)).clamp(0, 1)
    expected = [plain_ssim(*pair, size, sigma) for pair in zip(estimates, references, strict=True)]
    assert 0.2 < min(expected) < max(expected) < 0.99
    torch.testing.assert_close(ssim(estimates, references), torch.tensor(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [5, 8, 28, 32])
def test_ssim_is_finite_on_flat_images_and_one_on_equal_ones(size: int) -> None:
    flat, images = torch.zeros(2, 1, size, size), pictures(2, 1, size, size)
    torch.testing.assert_close(ssim(flat, flat), torch.ones(2))
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    assert ssim(flat, images).isfinite().all()


@pytest.mark.parametrize("num_sources", [2, 3])
def test_alignment_makes_the_squared_error_least(num_sources: int) -> None:
    sources = 2 * pictures(20, num_sources, 1, 8, 8) - 1
    shuffled = torch.stack([row[torch.randperm(num_sources)] for row in sources])
    noisy = shuffled + 2 * torch.randn(shuffled.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(align_by_mse(shuffled, sources), sources)
    assert torch.equal(align_by_mse(noisy, sources), plain_align(noisy, sources))


def test_estimates_outside_the_range_are_clamped() -> None:
    values = torch.tensor([-3.0, -1.0, -0.5, 0.0, 1.0, 1.5])
    assert to_unit_range(values).tolist() == [0, 0, 0.25, 0.5, 1, 1]
    assert to_unit_range(values.bfloat16()).dtype == torch.float32
    metrics = ImageMetrics()
    sources = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    metrics.update(3 * sources, sources, sources.sum(1))
    assert metrics.compute()["psnr"].item() == pytest.approx(100)


def test_the_metric_is_the_mean_over_all_separated_images() -> None:
    sources = 2 * pictures(7, 2, 1, 8, 8) - 1
    estimates = (sources + 0.5 * (pictures(7, 2, 1, 8, 8, seed=1) - 0.5)).flip(1)
    pairs = [
        (to_unit_range(found), to_unit_range(truth))
        for row in zip(plain_align(estimates, sources), sources, strict=True)
        for found, truth in zip(*row, strict=True)
    ]
    expected = {
        "psnr": sum(plain_psnr(*pair) for pair in pairs) / 14,
        "ssim": sum(plain_ssim(*pair, 5, 0.5) for pair in pairs) / 14,
    }
    whole, first, second = ImageMetrics(), ImageMetrics(), ImageMetrics()
    whole.update(estimates, sources, sources.sum(1))
    for metrics, rows in ((first, slice(0, 3)), (second, slice(3, 7))):  # of unequal sizes, as on two ranks
        metrics.update(estimates[rows], sources[rows], sources[rows].sum(1))
    first.merge_state(second)
    for metrics in (whole, first):
        measured = {name: value.item() for name, value in metrics.compute().items()}
        assert measured == pytest.approx(expected, rel=1e-5)
    whole.reset()
    whole.update(sources, sources, sources.sum(1))
    assert whole.compute()["psnr"].item() == pytest.approx(100)
