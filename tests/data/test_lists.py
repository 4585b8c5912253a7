"""Lists of data sets, as a spreadsheet, another system or a stranger may leave them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from surf_lightning.audio.files import BadAudio, open_audio
from surf_lightning.audio.index import index_audio
from surf_lightning.data.audioset import listed_ids
from surf_lightning.data.fuss import fuss_rows
from surf_lightning.data.libri2mix import COLUMNS, _listed
from surf_lightning.errors import UserError
from surf_lightning.files import is_inside

HEAD = ",".join(["mixture_ID", *COLUMNS.values(), "length"])
LIST = Path("eval_example_list.txt")


def fuss(content: bytes) -> list[list[str]]:
    LIST.write_bytes(content)
    return fuss_rows(Path(), "test")


def libri2mix(content: bytes) -> list[list[str]]:
    Path("metadata.csv").write_bytes(content)
    return _listed(Path("metadata.csv"), list(COLUMNS))


def audioset(content: bytes) -> set[str]:
    Path("segments.csv").write_bytes(content)
    return listed_ids(Path("segments.csv"))


READERS: dict[Any, str] = {
    fuss: "eval/ä.wav\teval/ä_sources/background0.wav\n",
    libri2mix: f"{HEAD}\n1,/x/mix_clean/ä.wav,/x/s1/ä.wav,/x/s2/ä.wav,1\n",
    audioset: '# head\n-äbcdefghij, 30.000, 40.000, "/m/09x0r"\n',
}


@pytest.mark.parametrize("read", READERS)
def test_a_mark_at_the_beginning_and_line_ends_of_windows_change_nothing(read: Any) -> None:
    text = READERS[read]
    expected = read(text.encode())
    assert expected
    assert read(text.encode("utf-8-sig")) == expected
    assert read(text.replace("\n", "\r\n").encode()) == expected


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_list_that_is_not_utf_8_is_named(read: Any, encoding: str) -> None:
    with pytest.raises(UserError, match=r"\.(txt|csv) is not written in UTF-8 \(byte \d+\): save it as UTF-8 text$"):
        read(READERS[read].encode(encoding))
    with pytest.raises(UserError, match="zero bytes"):
        read(READERS[read].encode() + b"\0")


def test_a_list_or_a_field_that_cannot_be_read_is_named() -> None:
    with pytest.raises(UserError, match=r"^no\.csv cannot be read: No such file"):
        listed_ids(Path("no.csv"))
    with pytest.raises(UserError, match=r"^metadata\.csv: field larger than field limit"):
        libri2mix(f"{HEAD}\n{'x' * 200_000}\n".encode())


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.wav", "a/../../x.wav", ".."])
def test_a_list_names_no_file_outside_of_its_folder(name: str) -> None:
    assert not is_inside(name)
    for row in (f"{name}\tbackground.wav", f"mixture.wav\t{name}"):
        with pytest.raises(UserError, match="lies outside"):
            fuss(row.encode())
    rows = libri2mix(f"{HEAD}\n1,{name},{name},{name},1\n".encode())
    assert all(is_inside(path) for row in rows for path in row)


def test_names_inside_are_good() -> None:
    assert all(map(is_inside, ["a.wav", "a/b.wav", "a/../b.wav", "..a/b.wav", "./a"]))


def test_a_named_pipe_and_a_folder_are_no_recordings() -> None:
    os.mkfifo("pipe.wav")
    Path("folder.wav").mkdir()
    Path("loop.wav").symlink_to("loop.wav")
    reasons = [file.reason for file in index_audio(Path(), ["pipe.wav", "folder.wav", "loop.wav"])]
    assert reasons == [*2 * ["unreadable (no file, but a folder, a named pipe or a device)"], "missing"]
    for name in ("pipe.wav", "folder.wav"):
        with pytest.raises(BadAudio, match="no file"):
            open_audio(name)


LINES = st.lists(
    st.sampled_from([*"\t,\"'#/.\\\n\r", "..", "a.wav", HEAD, "ÿ", "\ufeff"]) | st.text(max_size=3), max_size=30
)
CONTENTS = st.binary(max_size=60) | LINES.map(lambda parts: "".join(parts).encode(errors="surrogatepass"))


def check_any_list(data: st.DataObject) -> None:
    """Whatever a list holds, its reader gives names inside of the folder or one line."""
    content = data.draw(CONTENTS)
    for read in READERS:
        try:
            found = read(content)
        except UserError as error:
            if "\n" in str(error):
                raise AssertionError(str(error)) from error
            continue
        assert read is audioset or all(is_inside(name) for row in found for name in row)
