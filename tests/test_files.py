"""Files are whole at every moment, and trees are walked the same everywhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from surf_lightning.files import (
    files_under,
    make_writable,
    new_folder,
    partial_path,
    read_yaml,
    replacing,
    write_together,
    writing,
)

LAUGHS = "a: &a0 [1]\n" + "".join(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


def tree(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_of_a_tree() -> None:
    wanted = ["A.WAV", "b/c/d.Flac", "b/e.flac", "f.wav"]
    tree(*wanted, "notes.txt", "._A.WAV", ".hidden/g.wav", "b/h.wav.part", "wav", "other.png")
    assert files_under(Path(), (".wav", ".flac")) == wanted
    assert files_under(Path("b").absolute(), (".flac",)) == ["c/d.Flac", "e.flac"]
    assert files_under(Path("nowhere"), (".wav",)) == []


def test_links_are_followed_once_and_a_folder_can_be_skipped() -> None:
    tree("root/a.wav", "root/out/b.wav", "elsewhere/c.wav")
    Path("root/up").symlink_to(Path("root").absolute())
    Path("root/link").symlink_to(Path("elsewhere").absolute())
    assert files_under(Path("root"), (".wav",)) == ["a.wav", "link/c.wav", "out/b.wav"]
    assert files_under(Path("root"), (".wav",), skip=Path("root/out").absolute()) == ["a.wav", "link/c.wav"]
    assert files_under(Path("root"), (".wav",), skip=Path("root")) == []


def test_a_file_is_replaced_as_a_whole_or_not_at_all() -> None:
    path = Path("a.txt")
    path.write_text("old")
    with replacing(path, "w", encoding="utf-8") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path, "w"):
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert os.listdir() == ["a.txt"]


def test_two_processes_may_write_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("a.txt")
    with replacing(path, "w", shared=True) as first:
        first.write("first, and longer")
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 0)
            with replacing(path, "w", shared=True) as second:
                second.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first, and longer"
    assert os.listdir() == ["a.txt"]


def test_a_written_file_waits_for_its_name() -> None:
    path = Path("a.txt")
    with writing(path, "w") as file:
        file.write("all")
    assert os.listdir() == [".a.txt.partial"]
    assert partial_path(path).read_text() == "all"
    partial_path(path).unlink()
    with pytest.raises(ValueError, match="stop"), writing(path, "w"):
        raise ValueError("stop")
    assert os.listdir() == []


def test_a_link_in_place_of_the_partial_file_is_not_written_through() -> None:
    Path("victim").write_text("precious")
    Path(".a.txt.partial").symlink_to("victim")
    with replacing(Path("a.txt"), "w") as file:
        file.write("new")
    assert (Path("victim").read_text(), Path("a.txt").read_text()) == ("precious", "new")
    Path("folder").mkdir()
    Path("folder/..probe.partial").symlink_to("../victim")
    make_writable(Path("folder"))
    assert Path("victim").read_text() == "precious"
    assert os.listdir("folder") == []


def test_files_are_written_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    write_together(Path("out"), {"a": b"1", "b": b"1"})
    written = iter(range(3))

    def full_disk(descriptor: int) -> None:
        if next(written) == 2:  # after the probe of the folder
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space") as caught:
        write_together(Path("out"), {"a": b"2", "b": b"2"})
    assert caught.value.filename == "out/b"
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "a: [", "a: &a [*a]", "!!python/object/apply:os.system ['touch executed']", "a: " + 500 * "[", LAUGHS],
)
def test_a_yaml_text_that_is_no_plain_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        read_yaml(text)
    assert not Path("executed").exists()


def test_an_error_names_the_file_itself() -> None:
    Path("folder").mkdir()
    for path in (Path("folder"), Path("no/such/folder.txt")):
        with pytest.raises(OSError, match="directory") as caught, replacing(path, "w"):
            pass
        assert caught.value.filename == str(path)
    assert os.listdir() == ["folder"]


def test_of_two_that_write_one_folder_the_second_is_refused_and_the_first_is_whole() -> None:
    Path(".model.partial/left").mkdir(parents=True)  # by a kill
    with new_folder(Path("model")) as first:
        (first / "a").write_text("first")
        with pytest.raises(FileExistsError, match="another process"), new_folder(Path("model")):
            pass
    assert os.listdir() == ["model"]
    assert os.listdir("model") == ["a"]
    with pytest.raises(OSError), new_folder(Path("model")) as second:  # noqa: PT011  of any kind
        (second / "b").touch()
    assert os.listdir() == ["model"]
    assert os.listdir("model") == ["a"]


def test_a_link_in_place_of_the_partial_folder_is_not_emptied() -> None:
    Path("victim").mkdir()
    Path("victim/precious").touch()
    Path(".model.partial").symlink_to("victim")
    with pytest.raises(OSError), new_folder(Path("model")):  # noqa: PT011  of any kind
        pass
    assert Path("victim/precious").exists()
