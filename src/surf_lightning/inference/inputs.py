"""Which files a command line means, and where the outputs of each go."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surf_lightning.errors import UserError


@dataclass(frozen=True)
class Input:
    """A file, and its path relative to what the user named: its place in the mirrored tree."""

    path: Path
    relative: Path


def find_inputs(arguments: Sequence[str], extensions: frozenset[str], output: Path) -> list[Input]:
    """The files of ``arguments``: files, folders (recursively, files of ``extensions`` alone) and glob patterns.

    Hidden files and what lies in the ``output`` folder are passed over.

    Raises:
        UserError: an argument names nothing, or a folder is the output folder.
    """
    missing = [name for name in arguments if not Path(name).exists() and not glob.has_magic(name)]
    if missing:
        raise UserError(f"there is no file or folder {', '.join(missing)}; nothing has been separated")
    found: dict[Path, Input] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            if path.resolve() == output.resolve():
                raise UserError(f"{path} is the output folder too: give another --output, e.g. {path / 'separated'}")
            items = [Input(file, file.relative_to(path)) for file in _walk(path, extensions, output.resolve())]
            if not items:
                raise UserError(f"there is no file to separate in {path} ({', '.join(sorted(extensions))})")
        elif path.exists():
            items = [Input(path, Path(path.name))]
        else:
            items = _matches(argument, extensions, output)
        for item in items:
            found.setdefault(item.path.resolve(), item)
    return list(found.values())


def _walk(folder: Path, extensions: frozenset[str], output: Path) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(root, name).resolve() != output
        )
        files += [
            Path(root, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in extensions
        ]
    return files


def _matches(pattern: str, extensions: frozenset[str], output: Path) -> list[Input]:
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    files = [match for match in matches if match.is_file() and output.resolve() not in match.resolve().parents]
    for folder in (match for match in matches if match.is_dir()):
        files += _walk(folder, extensions, output.resolve())
    if not files:
        raise UserError(f"no file matches {pattern}")
    return [Input(file, file.relative_to(fixed)) for file in files]


def place(inputs: Sequence[Input]) -> dict[str, Path]:
    """The input of each place: its relative path without the suffix, in posix form.

    Where two inputs would share a place, all are placed by their paths from the folder that holds them all; where two
    differ in their suffixes alone, those are part of the place, as often as it takes to be no other's.
    """
    relative = {item.path: item.relative for item in inputs}
    if len({path.with_suffix("") for path in relative.values()}) < len(relative):
        common = os.path.commonpath([path.absolute().parent for path in relative])
        relative = {path: path.absolute().relative_to(common) for path in relative}
    stems = Counter(path.with_suffix("") for path in relative.values())
    places: dict[str, Path] = {}
    for path, rest in relative.items():
        place = stem = rest.with_suffix("")
        while stems[place] > (place == stem) or place.as_posix() in places:
            place = place.with_name(f"{place.name}_{rest.suffix.lstrip('.')}")
        places[place.as_posix()] = path
    return places
