"""Files of numbers that are no sound: arrays and images of any values. Axes: K sources, C H W."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ARRAYS = (".npy", ".npz", ".tif", ".tiff", ".fits")
AVERAGES = (".png",)
MAX_VALUES = 1 << 26  # of a file: a header may say anything


def is_average(path: str | Path) -> bool:
    """Whether a file holds the average m/K of its sources, as an 8-bit image must, or else their sum m."""
    return str(path).lower().endswith(AVERAGES)


def scale_of(signal: dict[str, Any], path: str | Path, num_sources: int) -> tuple[float, float]:
    """Center and half width of the values in ``path``, by which a separator's ``signal`` maps them to about [-1, 1].

    A separator that was trained on ``Arrays`` knows those of its mixtures. For others a PNG has 8 bits, and an array is
    a sum of sources that lie in [-1, 1] as it is.
    """
    if "values" in signal:
        center, half = signal["values"]
        return center, half
    return (127.5, 127.5) if is_average(path) else (0.0, float(num_sources))


def read_array(path: Path) -> np.ndarray:
    """The values ``[C,H,W]`` (float32) of a file of one array ``[H,W]`` or ``[C,H,W]``, or of one image.

    Raises:
        ValueError: it cannot be read, holds no such array, or values that are not finite; one line says why.
    """
    read = {".npy": _from_npy, ".npz": _from_archive, ".fits": _from_fits}.get(path.suffix.lower(), _from_image)
    try:
        array = read(path)
    except ValueError:
        raise
    except Exception as error:  # of any type: the file may be anything
        raise ValueError(f"cannot be read ({str(error) or type(error).__name__})") from error
    _check_size(array.shape)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"holds {array.dtype}, not real numbers")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"is an array {list(array.shape)}: [H,W] or [C,H,W] is needed")
    with np.errstate(over="ignore"):
        values = np.array(array, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinity")
    return values if values.ndim == 3 else values[None]


def _from_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # a map checks the header's size
    if not isinstance(array, np.ndarray):
        raise ValueError("is no .npy file but an archive: name it .npz")
    return array


def _check_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"is an array {list(shape)}, of more than {MAX_VALUES:,} values")


def _from_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) != 1:
        raise ValueError(f"holds {len(members)} arrays: each file is one mixture, of one array")
    if members[0].file_size > 16 * MAX_VALUES:
        raise ValueError(f"unfolds to more than {16 * MAX_VALUES:,} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[arrays.files[0]]


def _from_fits(path: Path) -> np.ndarray:
    try:
        from astropy.io import fits
    except ImportError as error:
        raise ValueError("is FITS, which astropy reads: pip install astropy") from error
    with fits.open(path, memmap=False) as units:
        for unit in units:
            if unit.is_image and unit.header.get("NAXIS", 0) >= 2:
                _check_size(unit.shape)
                return np.array(unit.data)
    raise ValueError("has no image of two or three axes")


def _from_image(path: Path) -> np.ndarray:
    with Image.open(path, formats=["PNG", "TIFF"]) as image:
        _check_size((len(image.getbands()), image.height, image.width))
        if is_average(path) and image.mode not in ("L", "RGB", "P"):
            raise ValueError(f"is {image.mode}: a PNG here has 8 bits, grey or in colours; save it as TIFF or .npy")
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"holds {pages} pages: save it as .npy, [C,H,W]")
        pixels = np.array(image.convert("RGB") if image.mode == "P" else image)
    return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
