"""What a command line names: shipped configurations, and modules of the user's own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.resources import files
from pathlib import Path
from typing import Any

from surf_lightning.errors import UserError, did_you_mean
from surf_lightning.files import read_list, read_yaml


def config_folder() -> Path:
    """Where the shipped configurations lie: in a wheel beside the code, in a checkout in ``configs/``.

    Raises:
        UserError: this installation has none.
    """
    package = Path(str(files("surf_lightning")))
    for folder in (package / "configs", package.parents[1] / "configs"):
        if folder.is_dir():
            return folder.resolve()
    raise UserError("this installation of surf-lightning has no configurations: give the path of one")


def shipped_config(name: str) -> Path:
    """The shipped configuration ``name``.

    Raises:
        UserError: there is none of that name.
    """
    path = config_folder() / f"{name}.yaml"
    if not path.is_file():
        near = did_you_mean(Path(name).stem, summaries())
        raise UserError(
            f"there is no configuration {name}: neither a file nor one of those that `surf configs` lists{near}"
        )
    return path


def summaries() -> dict[str, str]:
    """The names of all shipped configurations, each with the first line of its head."""
    paths = sorted(config_folder().glob("*.yaml"))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in paths}


def data_of(name: str) -> str:
    """The class that the shipped configuration ``name`` takes its data from; raises UserError as ``shipped_config``."""
    path = shipped_config(name)
    data = read_yaml(path.read_text(encoding="utf-8"))["data"]
    if isinstance(data, str):
        data = read_yaml((path.parent / data).read_text(encoding="utf-8"))
    return str(data["class_path"])


def with_config_paths(args: Sequence[str]) -> list[str]:
    """``args`` with each ``--config NAME`` that is no file replaced by the path of the shipped configuration.

    A path to nothing is refused here as well, as its name may be near to that of a shipped one.

    Raises:
        UserError: there is neither, or a file is no configuration.
    """
    found = list(args)
    for index, argument in enumerate(args):
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c") and (equals or index + 1 < len(args)):
            name = value if equals else args[index + 1]
            path = str(shipped_config(name)) if _is_name(name) else name
            found[index if equals else index + 1] = f"{option}={path}" if equals else path
            check_config(Path(path))
    return found


def check_config(path: Path) -> None:
    """Raises UserError where ``path`` is a file and no configuration: what is below is for the parser to judge."""
    if not path.is_file():
        return
    try:
        config = read_yaml(read_list(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no configuration: {error}") from error
    for part in ("trainer", "checkpoints"):
        given = config.get(part, {})
        if not (isinstance(given, dict) or str(given).endswith((".yaml", ".yml", ".json"))):
            raise UserError(f"{path}: {part} is {str(given)[:40]}, where names and their values are expected")


def _is_name(value: str) -> bool:
    named = re.fullmatch(r"[A-Za-z0-9][\w-]*|[\w./~-]+\.ya?ml", value) is not None
    return named and not os.path.isfile(os.path.expanduser(value))


class OwnModules(MetaPathFinder):
    """Finds modules in the folder where surf runs, after everything that is installed.

    Only those that are ``named``, and once one is found, what it may import. Libraries look for optional modules when
    they are imported, and later: they must not find a stranger's files.
    """

    def __init__(self, named: set[str]) -> None:
        self.named, self.used = named, False

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if path is not None or not (self.used or name in self.named):
            return None
        spec = PathFinder.find_spec(name, [os.getcwd()])
        self.used = self.used or spec is not None
        return spec


@contextmanager
def own_modules(args: Sequence[str]) -> Iterator[OwnModules]:
    """While the command line ``args`` is parsed, the classes that it names may lie in the current folder."""
    finder = OwnModules(named_modules(args))
    sys.meta_path.append(finder)
    try:
        yield finder
    finally:
        sys.meta_path.remove(finder)


def named_modules(args: Sequence[str]) -> set[str]:
    """The first parts of all dotted names in ``args``, in the files of configuration that they name, and so on."""
    names: set[str] = set()
    texts, read = [("\n".join(args), Path())], set()
    while texts:
        text, folder = texts.pop()
        names |= set(re.findall(r"\b([A-Za-z_]\w*)\.\w", text))
        for path in re.findall(r"[^=:\n{}\[\],'\"#]+\.(?:ya?ml|json)\b", text):
            for file in (folder / path.strip(), Path(path.strip())):
                if file.is_file() and file not in read:
                    read.add(file)
                    texts.append((file.read_text(encoding="utf-8", errors="replace"), file.parent))
    return names
