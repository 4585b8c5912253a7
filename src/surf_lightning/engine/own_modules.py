"""Modules of the user's in the folder where surf runs: found where a configuration names them, and nowhere else.

Libraries look for optional modules when they are imported, and later. They must not find a stranger's files.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


class OwnModules(MetaPathFinder):
    """Finds the modules ``named``, after everything that is installed; once one is found, all that it may import."""

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
