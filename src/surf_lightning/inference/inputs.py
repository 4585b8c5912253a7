"""Which files a command names, and what stands for each in the names of its outputs."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from surf_lightning.errors import UserError
from surf_lightning.files import files_under, is_inside


def find_inputs(arguments: Sequence[str], extensions: tuple[str, ...], output: Path) -> dict[Path, Path]:
    """The files that ``arguments`` name: files, folders (recursively, files of ``extensions`` only) and glob patterns.

    Hidden files and what lies in the ``output`` folder are left out, and a file that is named twice counts once.

    Returns:
        For each file its path relative to the folder, or to the fixed part of the pattern, that named it.

    Raises:
        UserError: an argument names nothing, or a folder is the output folder.
    """
    missing = [name for name in arguments if not Path(name).exists() and not glob.has_magic(name)]
    if missing:
        raise UserError(f"there is no file or folder {', '.join(missing)}; nothing has been separated")
    found: dict[str, tuple[Path, Path]] = {}
    for argument in arguments:
        path, base = Path(argument), Path(argument)
        if path.is_dir():
            if path.resolve() == output.resolve():
                raise UserError(f"{path} is the output folder too: give another --output, e.g. {path / 'separated'}")
            files = [path / name for name in files_under(path, extensions, skip=output)]
            if not files:
                raise UserError(f"there is no file to separate in {path} ({', '.join(sorted(extensions))})")
        elif path.exists():
            base, files = path.parent, [path]
        else:
            base, files = _matches(argument, extensions, output)
        for file in files:
            name = file.relative_to(base)  # which a pattern such as x/*/../../*.wav leads out of the output folder
            found.setdefault(os.path.realpath(file), (file, name if is_inside(os.fspath(name)) else Path(file.name)))
    return dict(found.values())


def _matches(pattern: str, extensions: tuple[str, ...], output: Path) -> tuple[Path, list[Path]]:
    """The fixed part of a glob pattern, and the files that it names."""
    parts = Path(pattern).parts
    base = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    files: list[Path] = []
    for match in map(Path, sorted(glob.glob(pattern, recursive=True))):
        files += [match / name for name in files_under(match, extensions)] if match.is_dir() else [match]
    files = [file for file in files if output.resolve() not in Path(os.path.realpath(file)).parents]
    if not files:
        raise UserError(f"no file matches {pattern}")
    return base, files


def output_stems(inputs: dict[Path, Path]) -> dict[str, Path]:
    """The input of each stem: its relative path without the suffix, in posix form.

    If two inputs would share a stem, all get their paths from the folder that holds them all; if two differ in their
    suffixes only, those become part of the stem, repeated until no other input has it.
    """
    if len({path.with_suffix("") for path in inputs.values()}) < len(inputs):
        common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in inputs])
        inputs = {path: Path(os.path.abspath(path)).relative_to(common) for path in inputs}
    counts = Counter(path.with_suffix("") for path in inputs.values())
    stems: dict[str, Path] = {}
    for path, relative in inputs.items():
        stem = short = relative.with_suffix("")
        while counts[stem] > (stem == short) or stem.as_posix() in stems:
            stem = stem.with_name(f"{stem.name}_{relative.suffix.lstrip('.')}")
        stems[stem.as_posix()] = path
    return stems


def shown(path: Path) -> str:
    """For printing: a file name need not be valid UTF-8, and may hold codes that a terminal obeys."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def check_regular(path: Path) -> None:
    """Raises ValueError if ``path`` is a pipe or a device, which one would wait for, or a link that leads nowhere."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ValueError("missing" if isinstance(error, FileNotFoundError) else str(error.strerror)) from error
    if not stat.S_ISREG(mode):
        raise ValueError("is no regular file")


def check_length(stem: str) -> None:
    """Raises ValueError if the names of outputs, with what is added to them, would be too long for a file system."""
    if len(os.fsencode(Path(stem).name)) > 255 - len("._uncertainty.csv.integers.partial"):
        raise ValueError("its name is too long: its sources could not be named after it")
