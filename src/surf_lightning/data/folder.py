"""Any folder of recordings, and any of mixtures whose true sources lie beside them: mix/, s1/, s2/, ..."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torchmetrics.utilities import rank_zero_warn

from surf_lightning.audio.band import common_band, exceeds, usual_rate
from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.audio.index import index_audio
from surf_lightning.data.audio import AudioMixtures, Part
from surf_lightning.data.audio_examples import Examples, Readable, num_crops
from surf_lightning.errors import UserError
from surf_lightning.files import files_under

SHARE, LARGEST_SHARE = 0.1, 0.25  # of the files, that are held out by default: the larger one in small folders,
HELD_OUT_SECONDS = 300.0  # until what is held out lasts so long
MIXTURES = "mix"
PARTS: tuple[Part, ...] = ("train", "validation", "test")


class Folder(AudioMixtures):
    """Recordings without true sources: all audio files in a folder and its subfolders.

    Whole files are held out to validate on, chosen by a hash of their paths.

    Args:
        root: the folder.
        validation_share: of the files, in (0, 1): then always the same ones are held out, whatever is added. By default
            a tenth, and in a small folder up to a quarter, until those held out last 5 minutes.
        num_sources: sources in a mixture (K). The command line sizes the networks for it, and takes it from the stage
            before where it is not given.
        sample_rate: in Hz, that all recordings are brought to. By default the lowest of 16, 24, 32 and 48 kHz that
            holds the band that 90% of them fill; the command line takes that of the stage before.
        options: the arguments of ``AudioMixtures``.
    """

    monitor = "val/momi"

    def __init__(
        self,
        root: str = "data/recordings",
        validation_share: float | None = None,
        num_sources: int | None = None,
        sample_rate: int | None = None,
        **options: Any,
    ) -> None:
        if validation_share is not None and not 0 < validation_share < 1:
            raise ValueError(f"validation_share must lie between 0 and 1, not {validation_share}")
        self.root, self.validation_share = root, validation_share
        super().__init__(sample_rate=sample_rate or self._usual_rate(), **options)
        self.num_sources = num_sources

    @property
    def _folder(self) -> Path:
        return Path(self.root).expanduser()

    def _usual_rate(self) -> int:
        paths = self.mixtures()
        band = common_band([self._folder / path for path in paths])
        rate = usual_rate(band)
        if paths:
            above = ", and what lies above is left out" if exceeds(band, rate) else ""
            rank_zero_info(
                f"90% of the recordings reach {band / 1000:.1f} kHz, so the sample rate is {rate:,} Hz{above} "
                "(--data.sample_rate chooses another)."
            )
        return rate

    @cached_property
    def recordings(self) -> Examples:
        """All recordings, indexed."""
        return self._usable(self._folder, [[path] for path in self.found()])

    def mixtures(self) -> list[str]:
        """All files named like audio, relative to ``root``."""
        return files_under(self._folder, EXTENSIONS)

    def found(self) -> list[str]:
        """All ``mixtures``; raises UserError where there are none."""
        paths = self.mixtures()
        if not paths:
            kinds = ", ".join(sorted(EXTENSIONS))
            why = f"holds no recordings ({kinds})" if self._folder.is_dir() else "is no folder"
            raise UserError(f"{self._folder} {why}: name the folder of your recordings, --data.root FOLDER")
        return paths

    def prepare_data(self) -> None:
        super().prepare_data()
        if self.trainer is not None and self.trainer.state.fn == "fit":
            rank_zero_info(self.summary())

    def summary(self) -> str:
        """What was found, in a line: recordings, hours, rates, held-out files, and files of other kinds by suffix."""
        files = [file for file in index_audio(self._folder, self.mixtures()) if not file.reason]
        seconds = sum(file.frames / file.rate for file in files)
        rates = "; ".join(
            f"{count:,} of {rate:,} Hz" for rate, count in Counter(file.rate for file in files).most_common()
        )
        trained, held_out = self.examples("train"), self.examples("validation")
        lasting = _duration(held_out.lengths.sum() / self.sample_rate)
        others = Counter(Path(path).suffix.lower() or "without suffix" for path in files_under(self._folder, ("",)))
        ignored = [f"{count:,} {kind}" for kind, count in others.most_common() if kind not in EXTENSIONS]
        return (
            f"{self._folder}: {len(files):,} recordings, {_duration(seconds)} ({rates}), used at {self.sample_rate:,} "
            f"Hz; {len(trained):,} to train on, {len(held_out):,} held out ({lasting})"
            + (f"; ignored: {', '.join(ignored)}" if ignored else "")
        )

    def load(self, part: Part) -> Examples:
        if part == "test":
            raise UserError(
                f"{self.root} has no true sources to test against: look at its held-out MoMi by surf validate, or "
                "listen to what surf separate makes of it. Where you have true sources: --data FolderWithTruth"
            )
        recordings = self.recordings
        if len(recordings) == 1:
            rank_zero_warn(f"{self.root} holds one recording: it is both trained and validated on")
            return recordings
        hashes = self.hashes()
        held_out = are_held_out(hashes, self.validation_share or self._enough(hashes))
        return recordings.select(held_out == (part == "validation"))

    def hashes(self) -> np.ndarray:
        """A number in [0, 1) of each recording, by its path alone."""
        return path_hashes(self.recordings.files[:, 0].tolist())

    def _enough(self, hashes: np.ndarray) -> float:
        """The bound of the hashes below which the files last long enough, within the two shares."""
        order = np.argsort(hashes)
        lasting = np.cumsum(self.recordings.lengths[order]) / self.sample_rate
        place = min(int(np.searchsorted(lasting, HELD_OUT_SECONDS)), len(order) - 1)
        return float(np.clip(np.nextafter(hashes[order][place], 1), SHARE, LARGEST_SHARE))

    def _num_crops(self, examples: Readable) -> int:
        return int(num_crops(examples, self.crop).sum())  # of a long recording more than one


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"


def path_hashes(names: list[bytes]) -> np.ndarray:
    """A number in [0, 1) of each path, ``[N]``."""
    paths = (name.replace(os.fsencode(os.sep), b"/") for name in names)
    return np.array([zlib.crc32(path) / 2**32 for path in paths])


def are_held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which of two or more files are validated on, by their ``hashes [N]``: some, but not all."""
    held_out = hashes < share
    return held_out if 0 < held_out.sum() < len(held_out) else hashes == hashes.min()


class FolderWithTruth(Folder):
    """Mixtures in ``mix/`` and, by the same names, their true sources in ``s1/``, ``s2/``, ...

    These folders lie in ``train/``, ``validation/`` and ``test/`` of ``root``, of which each command needs its own: a
    ``test/`` is enough to score a separator. Where they lie in ``root`` itself, a tenth of the mixtures is held out to
    validate and another tenth to test on, chosen by a hash of their names.

    Args:
        root: the folder.
        num_sources: sources in a mixture (K); by default as many as there are folders of sources.
        options: the arguments of ``Folder``; ``validation_share`` has no effect.
    """

    monitor = "val/si_sdri"

    def __init__(self, root: str = "data/mixtures", num_sources: int | None = None, **options: Any) -> None:
        super().__init__(root=root, **options)
        found = max((len(sources_in(folder)) for folder in self._folders()), default=0)
        self.num_sources = num_sources or found or None

    def _folders(self) -> list[Path]:
        """Those that hold ``mix/``."""
        folders = [self._folder, *(self._folder / part for part in PARTS)]
        return [folder for folder in folders if (folder / MIXTURES).is_dir()]

    def mixtures(self) -> list[str]:
        found = []
        for folder in self._folders():
            inside = (folder / MIXTURES).relative_to(self._folder)
            found += [os.path.join(inside, name) for name in files_under(self._folder / inside, EXTENSIONS)]
        return found

    def load(self, part: Part) -> Examples:
        folder = self._folder / part if (self._folder / part / MIXTURES).is_dir() else self._folder
        names = files_under(folder / MIXTURES, EXTENSIONS)
        sources = sources_in(folder)
        if not names or not sources:
            raise UserError(
                f"there are no mixtures with their sources in {self._folder / part}: put them into mix/ and, by the "
                f"same names, into s1/, s2/, ... there, or in {self._folder} (--data.root FOLDER)"
            )
        if folder == self._folder:
            names = _share(names, part, self._folder)
        kinds = [MIXTURES, *(sources if part != "train" or self.with_sources else [])]
        return self._usable(folder, [[os.path.join(kind, name) for kind in kinds] for name in names], len(kinds) - 1)


def sources_in(folder: Path) -> list[str]:
    """The names of its folders of sources, in order."""
    names = [path.name for path in folder.glob("s*") if re.fullmatch(r"s\d+", path.name) and path.is_dir()]
    return sorted(names, key=lambda name: int(name[1:]))


def _share(names: list[str], part: Part, folder: Path) -> list[str]:
    """The mixtures of ``part``: a tenth to validate, the next to test, the others to train, in the order of hashes."""
    count = max(1, round(SHARE * len(names)))
    if len(names) < 3:
        raise UserError(f"{folder} holds {len(names)} mixtures: to train, validate and test on them takes 3 at least")
    order = np.argsort([zlib.crc32(os.fsencode(name)) for name in names], kind="stable").tolist()
    chosen = {"validation": order[:count], "test": order[count : 2 * count], "train": order[2 * count :]}[part]
    return [names[number] for number in sorted(chosen)]
