"""scikit-learn's 1,797 handwritten digits, 8x8: real images that need no download."""

from __future__ import annotations

import numpy as np
import torch

from surf_lightning.data.images import ImageMixtures, ImageSplits
from surf_lightning.metrics.evaluation import PixelMetrics

NUM_TEST, NUM_VALIDATION = 300, 150


class Digits(ImageMixtures):
    """Mixtures of scikit-learn's digits, ``[1,8,8]``: 1,347 to train, 150 to validate, 300 to test."""

    usual_evaluation = PixelMetrics  # 8x8 pixels are far from what the perceptual networks know

    def load(self) -> ImageSplits:
        from sklearn.datasets import load_digits  # a second to import, and only this set needs it

        pixels = load_digits().images * (255 / 16)
        images = torch.as_tensor(np.rint(pixels).astype(np.uint8)).unsqueeze(1)
        # The set is ordered by writer: shuffled, so that all splits hold every hand.
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
        held_out = NUM_TEST + NUM_VALIDATION
        return ImageSplits(images[held_out:], images[NUM_TEST:held_out], images[:NUM_TEST])
