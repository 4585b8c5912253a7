"""Little audio sets on disk, in every layout, and files of every kind of badness."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000


def noise(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """``[T]`` or ``[T,C]``, below 0.4 in size, on the grid of 16 bits."""
    shape = (round(seconds * rate),) if channels == 1 else (round(seconds * rate), channels)
    return np.random.default_rng(seed).integers(-13000, 13000, shape) / 2**15


def write(path: Path, signal: np.ndarray, rate: int = RATE, **options: str) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].upper()
    # By bytes, for a name need not be UTF-8.
    soundfile.write(os.fsencode(path), signal, rate, **{"format": kind, **options})
    return signal


def libri2mix(root: Path, split: str, count: int, seconds: float = 1.0, metadata: bool = True) -> list[str]:
    """Each third mixture is 0.4 s longer than the others. Its metadata name another machine's files."""
    base = root / "wav16k" / "min"
    rows = ["mixture_ID,mixture_path,source_1_path,source_2_path,length"]
    names = [f"{split}-{number}_x" for number in range(count)]
    for number, name in enumerate(names):
        s1, s2 = (noise(seconds + 0.4 * (number % 3 == 2), 10 * number + k) for k in (1, 2))
        for kind, signal in (("mix_clean", s1 + s2), ("s1", s1), ("s2", s2)):
            write(base / split / kind / f"{name}.wav", signal)
        elsewhere = [f"/elsewhere/Libri2Mix/wav16k/min/{split}/{kind}/{name}.wav" for kind in ("mix_clean", "s1", "s2")]
        rows.append(",".join([name, *elsewhere, str(len(s1))]))
    if metadata:
        (base / "metadata").mkdir(exist_ok=True)
        (base / "metadata" / f"mixture_{split}_mix_clean.csv").write_text("\n".join(rows) + "\n")
        (base / "metadata" / f"metrics_{split}_mix_clean.csv").write_text("mixture_ID,source_1_SNR,source_2_SNR\n")
    return names


def fuss(root: Path, split: str, count: int, seconds: float = 1.0) -> None:
    """Example i has i % 4 foregrounds; the last foreground of three is all zero."""
    lines = []
    for number in range(count):
        name = f"example{number:04d}"
        sources = {"background0": 0.5 * noise(seconds, 100 * number)}
        sources |= {f"foreground{k}": 0.5 * noise(seconds, 100 * number + 1 + k) for k in range(number % 4)}
        if number % 4 == 3:
            sources["foreground2"] = np.zeros_like(sources["foreground2"])
        write(root / split / f"{name}.wav", np.sum(list(sources.values()), 0))
        files = [f"{split}/{name}_sources/{part}_sound.wav" for part in sources]
        for file, signal in zip(files, sources.values(), strict=True):
            write(root / file, signal)
        lines.append("\t".join([f"{split}/{name}.wav", *files]))
    (root / f"{split}_example_list.txt").write_text("\n".join(lines) + "\n")


def wsj0mix(root: Path, split: str, count: int, speakers: int = 2, version: str = "wav8k/min") -> None:
    with_truth(root / f"{speakers}speakers" / version / split, count, speakers, seed=ord(split[0]))


def with_truth(root: Path, count: int, sources: int = 2, seed: int = 0) -> None:
    """Mixtures in mix/ and, by the same names, their sources in s1/, s2/, ..."""
    for number in range(count):
        parts = [noise(1.0, seed + 10 * number + k) / sources for k in range(sources)]
        for name, signal in zip(("mix", *(f"s{k + 1}" for k in range(sources))), (sum(parts), *parts), strict=True):
            write(root / name / f"{number}.wav", signal)


def speech_commands(root: Path, speakers: int = 6) -> None:
    """Each speaker says zero and nine, and a word that is no digit, in 0.6 to 1 s; speakers 1 and 2 are held out."""
    for number in range(speakers):
        for place, word in enumerate(("zero", "nine", "bed")):
            signal = 0.1 + noise(1.0 - 0.1 * (number % 5), 40 * number + place)
            write(root / word / f"speaker{number}_nohash_0.wav", signal)
    for number, file in enumerate(("validation_list.txt", "testing_list.txt"), 1):
        words = ("bed", "nine", "zero")
        (root / file).write_text("".join(f"{word}/speaker{number}_nohash_0.wav\n" for word in words))


def librispeech(root: Path, count: int) -> None:
    for number in range(count):
        signal = noise(0.6 + 0.4 * number, 500 + number)
        write(root / "test-clean" / "1089" / "134686" / f"1089-134686-{number:04d}.flac", signal)


def audioset(root: Path, ids: list[str]) -> None:
    """Clips of 1 s at 44.1 and 48 kHz, each third in stereo, and the CSV that lists them."""
    for number, clip in enumerate(ids):
        rate, channels = (44100, 48000)[number % 2], 1 + (number % 3 == 0)
        write(root / "audio" / f"{clip}.flac", noise(1.0, number, rate, channels), rate)
    rows = [f'{clip}, 30.000, 40.000, "/m/09x0r,/m/05zppz"' for clip in ids]
    comments = ["# Segments csv", "# num_ytids=3", "# YTID, start_seconds, end_seconds, positive_labels"]
    (root / "balanced_train_segments.csv").write_text("\n".join([*comments, *rows]) + "\n")


def _cut(path: Path) -> int:
    return path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_length(path: Path) -> int:
    header = bytearray(path.read_bytes())
    header[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    header[22:26] = bytes(4)
    return path.write_bytes(header)


def _late_nan() -> np.ndarray:
    signal = noise(6.0, 7)
    signal[-20000] = np.nan
    return signal


# Name -> how to make it, and words of the reason why it is bad.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.flac": (lambda path: (write(path, noise(3.0, 1)), _cut(path)), "truncated"),
    "truncated.wav": (lambda path: (write(path, noise(3.0, 2)), _cut(path)), "truncated"),
    "truncated.aiff": (lambda path: (write(path, noise(3.0, 10)), _cut(path)), "truncated"),
    "truncated.ogg": (lambda path: (write(path, noise(3.0, 3)), _cut(path)), "truncated"),
    "truncated.mp3": (lambda path: (write(path, noise(3.0, 4)), _cut(path)), "truncated"),
    "empty.wav": (lambda path: path.write_bytes(b""), "empty file"),
    "no_samples.wav": (lambda path: write(path, np.zeros(0)), "holds no samples"),
    "text.wav": (lambda path: path.write_text("this is not audio\n"), "wrongly named"),
    "nan.wav": (lambda path: write(path, np.full(RATE, np.nan), subtype="FLOAT"), "NaN"),
    "late_nan.wav": (lambda path: write(path, _late_nan(), subtype="FLOAT"), "NaN"),
    "silent.wav": (lambda path: write(path, np.zeros(10 * RATE)), "silent"),
    "silent.flac": (lambda path: write(path, np.zeros((RATE, 2))), "silent"),
    "short.wav": (lambda path: write(path, noise(0.05, 5)), "shorter than 0.5 s: 0.050 s"),
    "endless.flac": (lambda path: (write(path, noise(1.0, 6)), _without_length(path)), "how long it is"),
    "loud.wav": (lambda path: write(path, 1e20 * noise(1.0, 9), subtype="FLOAT"), "times full scale"),
    "slow.wav": (lambda path: write(path, noise(1.0, 8), 100), "sample rate of 100 Hz"),
}


def broken(folder: Path) -> None:
    """All of ``BROKEN``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in BROKEN.items():
        make(folder / name)
