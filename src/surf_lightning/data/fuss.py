"""FUSS as it is published: {train,validation,eval}_example_list.txt and the files they list, paths relative to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchmetrics import Metric

from surf_lightning.data.audio import AudioMetrics, AudioMixtures, Part, find_folder
from surf_lightning.data.audio_examples import Examples
from surf_lightning.errors import UserError
from surf_lightning.files import is_inside, read_list
from surf_lightning.metrics.fuss import MAX_SOURCES, FUSSMetrics

NUM_EVAL = 1000
LISTS: dict[Part, str] = {"train": "train", "validation": "validation", "test": "eval"}


def fuss_folder(root: str, part: Part) -> Path:
    """The folder that holds the list of ``part``: ``root``, or ssdata in it. Raises UserError."""
    contents = f"{LISTS[part]}_example_list.txt"
    option = "--data.root FOLDER (--data.fuss_root FOLDER beside another set)"
    return find_folder(root, ("ssdata", "FUSS/ssdata"), contents, f"FUSS's {LISTS[part]} list", option)


def fuss_rows(folder: Path, part: Part) -> list[list[str]]:
    """A mixture, its background and its foregrounds, by example; paths relative to ``folder``. Raises UserError."""
    path = folder / f"{LISTS[part]}_example_list.txt"
    rows = [line.rstrip("\r").split("\t") for line in read_list(path).split("\n") if line.strip()]
    if not rows:
        raise UserError(f"{path} lists no examples")
    for row in rows:
        if not 2 <= len(row) <= 1 + MAX_SOURCES:
            raise UserError(f"{path} lists {row[0][:200]} with {len(row) - 1} sources: FUSS has 1 to {MAX_SOURCES}")
        if outside := [name for name in row if not is_inside(name)]:
            raise UserError(f"{path} lists {outside[0][:200]}, which lies outside of {folder}")
    return rows


class FUSS(AudioMixtures):
    """Mixtures of one to four sounds of any kind. Sources that are all zero count as none.

    Args:
        root: the folder of the lists, ssdata or ssdata_reverb, or the one that holds ssdata.
        with_sources: training batches hold the sources, cropped alike: for supervised methods.
        options: the arguments of ``AudioMixtures``.
    """

    monitor = "val/MSi"  # the SI-SDRi over all would be drowned by that of mixtures of one source, -80 dB and less
    num_sources = MAX_SOURCES

    def __init__(self, root: str = "data/FUSS/ssdata", with_sources: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.with_sources = root, with_sources

    def load(self, part: Part) -> Examples:
        folder = fuss_folder(self.root, part)
        rows = fuss_rows(folder, part)
        if part == "train" and not self.with_sources:
            return self._usable(folder, [row[:1] for row in rows])
        return self._usable(folder, rows, MAX_SOURCES)

    def metrics(self) -> Metric:
        return AudioMetrics({"fuss": FUSSMetrics()})

    def test_metrics(self) -> Metric:
        return self.metrics()

    def genuine(self) -> bool:
        """Whether the eval list has the published number of mixtures."""
        return len(self.examples("test")) == NUM_EVAL
