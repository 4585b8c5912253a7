"""Every kind of bad file is found, and a file is examined again only when it changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from surf_lightning.audio import index as audio_index
from surf_lightning.audio.files import EXTENSIONS
from surf_lightning.audio.index import CACHE_NAME, MAX_LISTED, Examined, format_skipped, index_audio
from surf_lightning.files import files_under
from tests.audio.trees import BROKEN, RATE, broken, noise, write


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that were examined."""
    names: list[str] = []
    examine = audio_index.examine

    def spy(path: str) -> tuple[int, int]:
        names.append(os.path.basename(path))
        return examine(path)

    monkeypatch.setattr(audio_index, "examine", spy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def audio_under(root: Path) -> list[str]:
    return files_under(root, EXTENSIONS)


def reasons(root: Path, paths: list[str]) -> dict[str, str]:
    return {path: file.reason for path, file in zip(paths, index_audio(root, paths), strict=True)}


def test_good_files_and_their_length(tmp_path: Path) -> None:
    sizes = {
        "a.wav": (1.0, 16000, 1),
        "b/c.flac": (1.5, 44100, 2),
        "b/d.ogg": (2.0, 22050, 1),
        "e.mp3": (1.2, 48000, 2),
    }
    for name, (seconds, rate, channels) in sizes.items():
        write(tmp_path / name, noise(seconds, 0, rate, channels), rate)
    paths = audio_under(tmp_path)
    assert paths == sorted(sizes)
    for path, file in zip(paths, index_audio(tmp_path, paths), strict=True):
        seconds, rate, _ = sizes[path]
        assert (file.frames, file.rate, file.reason) == (round(seconds * rate), rate, "")
        assert file.size == (tmp_path / path).stat().st_size


def test_every_kind_of_bad_file(tmp_path: Path) -> None:
    broken(tmp_path)
    found = reasons(tmp_path, audio_under(tmp_path))
    assert found.keys() == BROKEN.keys()
    for name, (_, words) in BROKEN.items():
        assert words in found[name], (name, found[name])
    assert reasons(tmp_path, ["not_there.wav"]) == {"not_there.wav": "missing"}


def test_a_file_half_silent_is_good(tmp_path: Path) -> None:
    signal = noise(20.0, 0)
    signal[: 19 * RATE] = 0
    write(tmp_path / "a.flac", signal)
    write(tmp_path / "b.wav", signal, subtype="FLOAT")
    assert set(reasons(tmp_path, ["a.flac", "b.wav"]).values()) == {""}


def test_only_what_changed_is_examined_again(tmp_path: Path, examined: list[str]) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.wav", noise(1.0, number))
    broken(tmp_path / "broken")
    before = audio_under(tmp_path)
    first = index_audio(tmp_path, before)
    assert len(examined) == 4 + len(BROKEN)
    assert (tmp_path / CACHE_NAME).is_file()

    examined.clear()
    assert index_audio(tmp_path, before) == first
    assert not examined, "bad files are kept in mind as well"

    state = (tmp_path / "1.wav").stat()
    write(tmp_path / "0.wav", noise(2.0, 9))  # another size
    write(tmp_path / "1.wav", np.zeros(RATE))  # the same size, another time
    os.utime(tmp_path / "1.wav", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    write(tmp_path / "new.wav", noise(1.0, 11))
    (tmp_path / "2.wav").unlink()
    paths = [*audio_under(tmp_path), "2.wav"]
    again = dict(zip(paths, index_audio(tmp_path, paths), strict=True))
    assert sorted(examined) == ["0.wav", "1.wav", "new.wav"]
    assert again["0.wav"].frames == 2 * RATE
    assert (again["1.wav"].reason, again["2.wav"].reason) == ("silent", "missing")
    assert again["3.wav"] == first[before.index("3.wav")]


def test_files_of_other_lists_stay_in_the_cache(tmp_path: Path, examined: list[str]) -> None:
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, noise(1.0, 0))
        index_audio(tmp_path, [name])
    examined.clear()
    index_audio(tmp_path, ["a.wav", "b.wav"])
    assert not examined


def test_the_cache_goes_elsewhere_where_the_data_cannot_be_written(tmp_path: Path, examined: list[str]) -> None:
    root = tmp_path / "data"
    write(root / "a.wav", noise(1.0, 0))
    (root / CACHE_NAME).mkdir()  # as good as a folder without permission to write, even for root
    index_audio(root, ["a.wav"])
    assert [path.suffix for path in (tmp_path / "cache" / "surf-lightning").iterdir()] == [".npz"]
    index_audio(root, ["a.wav"])
    assert examined == ["a.wav"]
    assert sorted(path.name for path in root.iterdir()) == sorted([CACHE_NAME, "a.wav"]), "nothing is left behind"


def test_without_any_place_for_the_cache_the_index_still_works(tmp_path: Path, examined: list[str]) -> None:
    root = tmp_path / "data"
    write(root / "a.wav", noise(1.0, 0))
    (root / CACHE_NAME).mkdir()
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    with pytest.warns(UserWarning, match="cannot be saved"):
        assert index_audio(root, ["a.wav"])[0].frames == RATE


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, examined: list[str], content: bytes) -> None:
    write(tmp_path / "a.wav", noise(1.0, 0))
    (tmp_path / CACHE_NAME).write_bytes(content)
    for _ in range(2):
        assert index_audio(tmp_path, ["a.wav"])[0].frames == RATE
    assert examined == ["a.wav"]


def test_a_cache_that_unfolds_far_beyond_its_size_is_made_anew(tmp_path: Path, examined: list[str]) -> None:
    write(tmp_path / "a.wav", noise(1.0, 0))
    first = index_audio(tmp_path, ["a.wav"])
    with np.load(tmp_path / CACHE_NAME) as cache:
        bomb = {**cache, "zeros": np.zeros(1 << 24)}
    np.savez_compressed(tmp_path / CACHE_NAME, **bomb)
    examined.clear()
    assert index_audio(tmp_path, ["a.wav"]) == first
    assert examined == ["a.wav"]


def test_a_cache_of_another_version_is_void(
    tmp_path: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.wav", noise(1.0, 0))
    index_audio(tmp_path, ["a.wav"])
    monkeypatch.setattr(audio_index, "VERSION", audio_index.VERSION + 1)
    index_audio(tmp_path, ["a.wav"])
    assert examined == ["a.wav", "a.wav"]


def test_names_need_not_be_utf8(tmp_path: Path, examined: list[str]) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    write(tmp_path / name, noise(1.0, 0))
    for _ in range(2):
        assert index_audio(tmp_path, audio_under(tmp_path))[0].frames == RATE
    assert examined == [name]


def test_the_progress_bar_counts_what_is_examined(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.wav", noise(1.0, number))
    index_audio(tmp_path, audio_under(tmp_path))
    assert not capfd.readouterr().err, "it was done at once"
    monkeypatch.setattr(audio_index, "BAR_DELAY", 0)
    for number in range(3):
        write(tmp_path / f"{number}.wav", noise(1.5, number))
    index_audio(tmp_path, audio_under(tmp_path))
    assert "3/3" in capfd.readouterr().err
    index_audio(tmp_path, audio_under(tmp_path))
    assert not capfd.readouterr().err


def test_a_long_list_of_bad_files_is_kept_in_a_file(tmp_path: Path, examined: list[str]) -> None:
    bad = {f"{number}.wav": "silent" for number in range(MAX_LISTED + 7)}
    *lines, last = format_skipped(tmp_path, bad).splitlines()
    assert lines == [f"  {number}.wav: silent" for number in range(MAX_LISTED)]
    path = tmp_path / ".surf-audio-index.skipped.txt"
    assert last == f"  and 7 more, all listed in {path}"
    assert path.read_text().splitlines() == [f"  {name}: silent" for name in bad]


def test_many_files_are_indexed_in_order(tmp_path: Path) -> None:
    """More than a task of the pool takes at once."""
    write(tmp_path / "one.wav", noise(1.0, 0))
    names = [f"{number}.wav" for number in range(200)]
    for number, name in enumerate(names):
        (tmp_path / name).symlink_to("one.wav") if number % 7 else (tmp_path / name).touch()
    files = index_audio(tmp_path, names)
    assert [isinstance(file, Examined) and file.frames for file in files] == [RATE * bool(n % 7) for n in range(200)]
