"""The set that experiments/phone.py composes, of packages that hold noise."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import phone
import pytest
import soundfile

from surf_lightning.data import FolderWithTruth
from surf_lightning.files import partial_path
from tests.audio.trees import noise

SOUNDS = "./usr/share/asterisk/sounds"


def package(files: dict[str, np.ndarray]) -> bytes:
    """A Debian package that holds them, as an `ar` archive whose first member has an odd length."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for name, signal in files.items():
            sound = io.BytesIO()
            soundfile.write(sound, signal, phone.RATE, format="WAV")
            member = tarfile.TarInfo(name)
            member.size = sound.tell()
            sound.seek(0)
            archive.addfile(member, sound)
    made = b"!<arch>\n"
    for name, data in (("control.tar.xz", b"odd"), ("data.tar.xz", content.getvalue())):
        head = f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(data):<10}`\n"
        made += head.encode() + data + b"\n" * (len(data) % 2)
    return made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Packages by address: two voices and two tracks, of which one each is unheard in training."""
    voices = {
        # Repeated noise is packed fast.
        f"{SOUNDS}/{voice}/{number}.wav": np.tile(noise(0.15, 100 * place + number, phone.RATE), 10)
        for place, voice in enumerate(("one", phone.UNHEARD_VOICE))
        for number in range(40)
    }
    tracks = {
        f"./usr/share/asterisk/moh/{track}.wav": np.tile(noise(1.0, place, phone.RATE), 90)
        for place, track in enumerate(("track", phone.UNHEARD_TRACK))
    }
    packages = {"voices.deb": package(voices), "music.deb": package(tracks)}
    monkeypatch.setattr(phone, "PACKAGES", {name: hashlib.sha256(data).hexdigest() for name, data in packages.items()})
    monkeypatch.setattr(phone, "PARTS", {"train": (3, 0.0, 0.8), "validation": (2, 0.8, 0.9), "test": (2, 0.9, 1.0)})
    monkeypatch.setattr(phone, "urlopen", lambda address: io.BytesIO(packages[address.rpartition("/")[2]]))
    return packages


def test_mixtures_are_sums_of_one_voice_and_one_track(served: dict[str, bytes]) -> None:
    left = partial_path(Path("set"))
    Path(left, "train").mkdir(parents=True)  # of a run that was interrupted
    phone.main(Path("set"))
    assert not left.exists()
    with pytest.raises(SystemExit, match="set is there already"):
        phone.main(Path("set"))
    counts = {part: len(list(Path("set", part, "mix").iterdir())) for part in ("train", "validation", "test")}
    assert counts == {"train": 3, "validation": 2, "test": 2}
    assert len(list(Path("set/unheard/test/mix").iterdir())) == 100
    for mixture in Path("set").rglob("mix/*.flac"):
        mix, s1, s2 = (soundfile.read(mixture.parents[1] / kind / mixture.name)[0] for kind in ("mix", "s1", "s2"))
        assert len(mix) == phone.SECONDS * phone.RATE
        assert np.abs(mix).max() <= 0.9
        np.testing.assert_allclose(mix, s1 + s2, atol=2 * 2**-15)
        assert abs(10 * np.log10(np.mean(s1**2) / np.mean(s2**2))) < 5.01
    data = FolderWithTruth("set", sample_rate=phone.RATE, crop_seconds=1.0)
    assert [len(data.examples(part)) for part in ("train", "validation", "test")] == [3, 2, 2]


def test_a_package_that_is_not_the_published_one_is_refused(served: dict[str, bytes]) -> None:
    served["music.deb"] += b"\n"
    with pytest.raises(SystemExit, match=r"music\.deb is not the file that was published"):
        phone.main(Path("set"))
    assert not Path("set").exists()
