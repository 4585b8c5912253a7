"""MNIST in torchvision's on-disk layout, ROOT/MNIST/raw/*-ubyte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surf_lightning.data.images import ImageMixtures, ImageSplits, md5
from surf_lightning.errors import UserError

NUM_VALIDATION = 5000
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
}


class MNIST(ImageMixtures):
    """Mixtures of MNIST images, ``[1,28,28]``: 55,000 to train, 5,000 to validate, 10,000 to test.

    Args:
        root: the folder that holds MNIST/raw, or into which it is downloaded.
        options: the arguments of ``ImageMixtures``.
    """

    def __init__(self, root: str = "data", **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    def prepare_data(self) -> None:
        from torchvision import datasets

        try:
            datasets.MNIST(self.root, download=True)
        except Exception as error:
            raise UserError(
                f"MNIST is not in {self.root}/MNIST/raw and cannot be downloaded ({error}). Put its four IDX files "
                "there, or name the folder that holds MNIST/raw: --data.root FOLDER"
            ) from error

    def genuine(self) -> bool:
        """Whether the images have the published checksums."""
        raw = Path(self.root, "MNIST", "raw")
        return all(md5(raw / name) == expected for name, expected in MD5.items())

    def load(self) -> ImageSplits:
        from torchvision import datasets

        train, test = (datasets.MNIST(self.root, train=part).data.unsqueeze(1) for part in (True, False))
        return ImageSplits(train[:-NUM_VALIDATION], train[-NUM_VALIDATION:], test)
