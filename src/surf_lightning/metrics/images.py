"""Image metrics by the protocol of Table 1: aligned by least squares, mapped to [0,1] and clamped. Axes: B K C H W."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from surf_lightning.losses import pit_order
from surf_lightning.permutation import invert, permute

MSE_FLOOR = 1e-10  # a pixel-exact image counts as 100 dB


def align(estimates: Tensor, sources: Tensor) -> Tensor:
    """``estimates [B,K,*S]`` in the order of ``sources [B,K,*S]`` that makes the squared error least."""
    return permute(estimates, invert(pit_order(estimates, sources)))


def to_unit_range(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped."""
    return (images.float() / 2 + 0.5).clamp(0, 1)


def psnr(estimates: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image: ``[N,C,H,W]`` in [0,1] -> ``[N]``."""
    mse = (estimates - references).square().flatten(1).mean(1)
    return -10 * mse.clamp_min(MSE_FLOOR).log10()


def ssim(estimates: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image: ``[N,C,H,W]`` in [0,1] -> ``[N]``.

    An 11x11 Gaussian window of deviation 1.5; in images below 16 pixels, where that does not fit, 5x5 of 0.5.
    """
    sigma = 1.5 if min(references.shape[-2:]) >= 16 else 0.5
    values = structural_similarity_index_measure(
        estimates, references, data_range=1.0, sigma=sigma, k1=0.01, k2=0.03, reduction="none"
    )
    assert isinstance(values, Tensor)
    return values.view(-1)


class ImageMetrics(Metric):
    """Mean PSNR (dB) and SSIM over the separated images, after alignment. ``compute`` gives ``psnr`` and ``ssim``."""

    full_state_update = False
    psnr_sum: Tensor
    ssim_sum: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("psnr_sum", "ssim_sum", "images"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, estimates: Tensor, sources: Tensor, mixtures: Tensor) -> None:
        """``estimates`` and ``sources [B,K,C,H,W]`` in [-1,1], ``mixtures [B,C,H,W]`` their sums."""
        found, truth = (to_unit_range(x).flatten(0, 1) for x in (align(estimates, sources), sources))
        self.psnr_sum += psnr(found, truth).double().sum()
        self.ssim_sum += ssim(found, truth).double().sum()
        self.images += len(truth)

    def compute(self) -> dict[str, Tensor]:
        return {"psnr": (self.psnr_sum / self.images).float(), "ssim": (self.ssim_sum / self.images).float()}
