"""Composes voices over music on hold, all free recordings of Debian: python experiments/phone.py data/phone.

120 MB of Asterisk's voice prompts and music on hold (CC BY-SA and CC BY 3.0, 8 kHz) are downloaded and checked. Of
them come mixtures of six seconds with both sources, 350 MB, in the layout of `FolderWithTruth`: train/, validation/ and
test/ of prompts in five languages by four voices over four tracks, no prompt and no second of music in two of them, and
unheard/test/ of another voice over another track. The configurations `phone_*` train on them.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import soundfile

from surf_lightning.files import new_folder

DEBIAN = "https://deb.debian.org/debian/pool/main/a"
PACKAGES = {  # and their SHA-256
    "asterisk-core-sounds/asterisk-core-sounds-en-wav_1.6.1-1_all.deb":
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "asterisk-core-sounds/asterisk-core-sounds-es-wav_1.6.1-1_all.deb":
        "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "asterisk-core-sounds/asterisk-core-sounds-fr-wav_1.6.1-1_all.deb":
        "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "asterisk-core-sounds/asterisk-core-sounds-it-wav_1.6.1-1_all.deb":
        "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "asterisk-core-sounds/asterisk-core-sounds-ru-wav_1.6.1-1_all.deb":
        "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
    "asterisk-prompt-it/asterisk-prompt-it-menardi-wav_1.4.22+mm20110907-3.1_all.deb":
        "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
    "asterisk-moh-opsound/asterisk-moh-opsound-wav_2.03-1.1_all.deb":
        "8f9d808a729d305c2d3343993f21ca5e6829e411682618dc8ea7aa8bc24a566c",
}  # fmt: skip
UNHEARD_VOICE, UNHEARD_TRACK = "it_IT_f_Menardi", "manolo_camp-morning_coffee"
RATE, SECONDS, PAUSE = 8000, 6, 0.3
PARTS = {  # mixtures, and the share of prompts and of each track's time where the part begins and ends
    "train": (1500, 0.0, 0.8),
    "validation": (60, 0.8, 0.9),
    "test": (200, 0.9, 1.0),
}


def recordings(package: str, digest: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and samples of a Debian package's wav files.

    Raises:
        SystemExit: what was downloaded is not what was published.
    """
    with urlopen(f"{DEBIAN}/{package}") as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise SystemExit(f"{package} is not the file that was published: its SHA-256 differs")
    # An `ar` archive: after 8 bytes, members of a header of 60 and their content, padded to an even length.
    place = 8
    while not data[place:].startswith(b"data.tar"):
        place += 60 + (int(data[place + 48 : place + 58]) + 1) // 2 * 2
    with tarfile.open(fileobj=io.BytesIO(data[place + 60 :][: int(data[place + 48 : place + 58])])) as files:
        for member in files:
            if member.isfile() and member.name.endswith(".wav"):
                content = files.extractfile(member)
                assert content is not None
                yield member.name, soundfile.read(io.BytesIO(content.read()), dtype="float32")[0]


def level(signal: np.ndarray, decibels: float) -> np.ndarray:
    """``signal`` with this RMS, in dB of full scale."""
    return signal * 10 ** (decibels / 20) / max(float(np.sqrt(np.mean(signal**2))), 1e-5)


def speak(prompts: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Prompts of one voice in random order with pauses between them, ``SECONDS`` long."""
    spoken: list[np.ndarray] = []
    while sum(map(len, spoken)) < SECONDS * RATE:
        spoken += [prompts[random.integers(len(prompts))], np.zeros(int(PAUSE * RATE), np.float32)]
    return np.concatenate(spoken)[: SECONDS * RATE]


def compose(folder: Path, voices: list[list[np.ndarray]], tracks: list[np.ndarray], count: int, seed: int) -> None:
    """Write ``count`` mixtures with their sources into ``folder``."""
    random = np.random.default_rng(seed)
    for name in ("mix", "s1", "s2"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        loudness = random.uniform(-29, -23)
        voice = level(speak(voices[random.integers(len(voices))], random), loudness)
        track = tracks[random.integers(len(tracks))]
        start = random.integers(len(track) - SECONDS * RATE)
        music = level(track[start : start + SECONDS * RATE], loudness + random.uniform(-5, 5))
        gain = min(1.0, 0.9 / float(np.abs(voice + music).max()))
        for name, signal in (("mix", voice + music), ("s1", voice), ("s2", music)):
            soundfile.write(folder / name / f"{number:04d}.flac", gain * signal, RATE)


def main(root: Path) -> None:
    """Make all sets in ``root``, whole or not at all.

    Raises:
        SystemExit: ``root`` is there already, or what was downloaded is not what was published.
    """
    if root.exists():
        raise SystemExit(f"{root} is there already: remove it first, or name another folder")
    voices: dict[str, dict[str, np.ndarray]] = {}
    tracks: dict[str, np.ndarray] = {}
    for package, digest in PACKAGES.items():
        for name, samples in recordings(package, digest):
            *_, kind, voice = Path(name).parts[:5]
            if kind == "moh":
                tracks[Path(name).stem] = samples
            elif len(samples) > RATE and "silence" not in name:
                voices.setdefault(voice, {})[name] = samples
    stranger = list(voices.pop(UNHEARD_VOICE).values())
    unheard = tracks.pop(UNHEARD_TRACK)
    print(f"{len(voices)} languages, {sum(map(len, voices.values())):,} prompts, {len(tracks)} tracks")
    with new_folder(root) as made:
        for seed, (part, (count, begin, end)) in enumerate(PARTS.items()):
            spoken = [
                [samples for name, samples in prompts.items() if begin <= zlib.crc32(name.encode()) / 2**32 < end]
                for prompts in voices.values()
            ]
            played = [track[int(begin * len(track)) : int(end * len(track))] for track in tracks.values()]
            compose(made / part, spoken, played, count, seed)
        compose(made / "unheard" / "test", [stranger], [unheard], 100, len(PARTS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
