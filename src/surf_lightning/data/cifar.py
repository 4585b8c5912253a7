"""CIFAR-10's binary version: records of one label byte and 3,072 pixel bytes, ROOT/cifar-10-batches-bin/*.bin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surf_lightning.data.images import ImageMixtures, ImageSplits, md5
from surf_lightning.errors import UserError

NUM_VALIDATION = 5000
FOLDER = "cifar-10-batches-bin"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


class CIFAR10(ImageMixtures):
    """Mixtures of CIFAR-10 images, ``[3,32,32]``: 45,000 to train, 5,000 to validate, 10,000 to test.

    Args:
        root: the folder that holds cifar-10-batches-bin, or into which it is downloaded.
        options: the arguments of ``ImageMixtures``.
    """

    def __init__(self, root: str = "data", **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    def prepare_data(self) -> None:
        folder = Path(self.root, FOLDER)
        if not all((folder / name).is_file() for name in MD5):
            self._download()
        for name, expected in MD5.items():
            if md5(folder / name) != expected:
                raise UserError(f"{folder / name} is damaged (its md5 is not {expected}): delete it and start again")

    def _download(self) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        try:
            download_and_extract_archive(URL, self.root, md5=ARCHIVE_MD5)
        except Exception as error:
            raise UserError(
                f"CIFAR-10 is not in {Path(self.root, FOLDER)} and cannot be downloaded from {URL} ({error}). Unpack "
                f"its binary version into {self.root}, or name the folder that holds {FOLDER}: --data.root FOLDER"
            ) from error

    def genuine(self) -> bool:
        """True: ``prepare_data`` accepts files of the published checksums only."""
        return True

    def load(self) -> ImageSplits:
        *train, test = (self._read(name) for name in MD5)
        images = torch.cat(train)
        return ImageSplits(images[:-NUM_VALIDATION], images[-NUM_VALIDATION:], test)

    def _read(self, name: str) -> Tensor:
        records = np.fromfile(Path(self.root, FOLDER, name), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
