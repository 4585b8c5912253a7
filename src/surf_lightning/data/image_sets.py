"""The sets of images. Axes: N images, C H W."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from surf_lightning.data.images import ImageMixtures, ImageSplits
from surf_lightning.errors import UserError
from surf_lightning.metrics.evaluation import PixelMetrics

NUM_VALIDATION = 5000  # of the training images of MNIST and of CIFAR-10
DIGITS_TEST, DIGITS_VALIDATION = 300, 150


class Digits(ImageMixtures):
    """Mixtures of scikit-learn's digits, ``[1,8,8]``: 1,347 to train, 150 to validate, 300 to test; no download."""

    usual_evaluation = PixelMetrics  # 8x8 pixels are far from what the perceptual networks know

    def load(self) -> ImageSplits:
        from sklearn.datasets import load_digits  # a second to import, and only this set needs it

        pixels = load_digits().images * (255 / 16)
        images = torch.as_tensor(np.rint(pixels).astype(np.uint8)).unsqueeze(1)
        # The set is ordered by writer: shuffled, so that all splits hold every hand.
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
        held_out = DIGITS_TEST + DIGITS_VALIDATION
        return ImageSplits(images[held_out:], images[DIGITS_TEST:held_out], images[:DIGITS_TEST])


class PublishedImages(ImageMixtures):
    """A set whose files have published checksums.

    Args:
        root: the folder that holds the set's own (MNIST/raw, cifar-10-batches-bin), or into which it is downloaded.
        options: the arguments of ``ImageMixtures``.
    """

    folder: str
    """The set's own, in ``root``."""
    checksums: ClassVar[dict[str, str]]
    """MD5, by the names of files in ``folder``."""
    missing: str
    """What to put into ``folder`` where it cannot be downloaded."""

    def __init__(self, root: str = "data", **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    @abstractmethod
    def download(self) -> None:
        """Fetch what is not there; raises an error of any type."""

    def prepare_data(self) -> None:
        try:
            self.download()
        except Exception as error:
            raise UserError(
                f"{type(self).__name__} is not in {Path(self.root, self.folder)} and cannot be downloaded ({error}). "
                f"Put {self.missing} there, or name the folder that holds {self.folder}: --data.root FOLDER"
            ) from error

    def is_published(self, name: str) -> bool:
        """Whether the file ``name`` has its checksum."""
        content = Path(self.root, self.folder, name).read_bytes()
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == self.checksums[name]

    def genuine(self) -> bool:
        """Whether all files have the published checksums."""
        return all(map(self.is_published, self.checksums))


class MNIST(PublishedImages):
    """Mixtures of MNIST images, ``[1,28,28]``: 55,000 to train, 5,000 to validate, 10,000 to test.

    On disk as torchvision has them, ROOT/MNIST/raw/*-ubyte.
    """

    folder, missing = "MNIST/raw", "its four IDX files"
    checksums: ClassVar = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    }

    def download(self) -> None:
        from torchvision import datasets

        datasets.MNIST(self.root, download=True)

    def load(self) -> ImageSplits:
        from torchvision import datasets

        train, test = (datasets.MNIST(self.root, train=part).data.unsqueeze(1) for part in (True, False))
        return ImageSplits(train[:-NUM_VALIDATION], train[-NUM_VALIDATION:], test)


class CIFAR10(PublishedImages):
    """Mixtures of CIFAR-10 images, ``[3,32,32]``: 45,000 to train, 5,000 to validate, 10,000 to test.

    The binary version, ROOT/cifar-10-batches-bin/*.bin: records of one label byte and 3,072 pixel bytes.
    """

    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    folder, missing = "cifar-10-batches-bin", f"the files of {url}"
    checksums: ClassVar = {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    }

    def download(self) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        if not all(Path(self.root, self.folder, name).is_file() for name in self.checksums):
            download_and_extract_archive(self.url, self.root, md5="c32a1d4ab5d03f1284b67883e8d87530")

    def prepare_data(self) -> None:
        super().prepare_data()
        for name, digest in self.checksums.items():
            if not self.is_published(name):
                path = Path(self.root, self.folder, name)
                raise UserError(f"{path} is damaged (its md5 is not {digest}): delete it and start again")

    def load(self) -> ImageSplits:
        *train, test = (self._read(name) for name in self.checksums)
        images = torch.cat(train)
        return ImageSplits(images[:-NUM_VALIDATION], images[-NUM_VALIDATION:], test)

    def _read(self, name: str) -> Tensor:
        records = np.fromfile(Path(self.root, self.folder, name), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
