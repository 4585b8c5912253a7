"""A folder is a floor: it imports only what stands before it in ``FLOORS``."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import surf_lightning

PACKAGE = "surf_lightning"
ROOT = Path(surf_lightning.__file__).parent
MAX_LINES = 330

FLOORS = [
    "functional",
    "networks",
    "audio",
    "metrics",
    "inference",
    "data",
    "callbacks",
    "methods",
    "engine",
    "reporting",
]
BESIDE = {"errors", "files", "provenance", ""}  # any floor may import them, "" is the package with its version
COMMANDS = {"cli", "__main__"}
TRAINING_FRAMEWORKS = {"lightning", "pytorch_lightning", "jsonargparse", "wandb"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module inside this package, "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, inside its functions too; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    """Names of the modules of this package that a module imports."""
    known = {name_of(other) for other in modules()}
    inside = {name.partition(".")[2] for name in imports(path) if name.partition(".")[0] == PACKAGE}
    return {name if name in known else name.rpartition(".")[0] for name in inside}


def outside(path: Path) -> set[str]:
    """Top-level packages from elsewhere."""
    return {name.partition(".")[0] for name in imports(path)} - {PACKAGE}


def part(name: str) -> str:
    return name.partition(".")[0]


each_module = pytest.mark.parametrize("path", modules(), ids=lambda path: name_of(path) or "__init__")


def test_every_folder_is_a_floor() -> None:
    """The tests below are of names: a folder renamed would escape them."""
    assert {part(name_of(path)) for path in modules()} == {*FLOORS, *BESIDE, *COMMANDS}
    assert imported_modules(ROOT / "inference" / "separator.py") >= {"functional.flow", "networks.base"}


@each_module
def test_a_floor_imports_only_those_before_it(path: Path) -> None:
    mine = part(name_of(path))
    allowed = {*FLOORS[: FLOORS.index(mine) + 1], *BESIDE} if mine in FLOORS else BESIDE
    if mine not in {*COMMANDS, ""}:  # the package offers the separator, which is imported when it is asked for
        forbidden = {name for name in imported_modules(path) if part(name) not in allowed}
        assert not forbidden, f"{name_of(path)} imports {forbidden}"


@each_module
def test_the_mathematics_imports_torch_and_scipy_only(path: Path) -> None:
    if part(name_of(path)) == "functional":
        assert outside(path) - sys.stdlib_module_names <= {"torch", "scipy"}
        assert {part(name) for name in imported_modules(path)} <= {"functional"}
    if part(name_of(path)) in ("errors", ""):
        assert outside(path) <= sys.stdlib_module_names


@each_module
def test_lightning_begins_at_the_data_modules(path: Path) -> None:
    if part(name_of(path)) in FLOORS[: FLOORS.index("inference")]:
        assert not outside(path) & TRAINING_FRAMEWORKS, "torchmetrics.utilities has rank_zero_warn as well"


def test_no_import_goes_in_a_circle() -> None:
    packages = {name_of(path) for path in modules() if path.name == "__init__.py"}
    graph = {name_of(path): imported_modules(path) - packages for path in modules() if name_of(path) not in packages}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@each_module
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_LINES


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)  # seconds alone, minutes on a busy machine


def test_the_mathematics_and_networks_work_without_lightning() -> None:
    blocked = [*sorted(TRAINING_FRAMEWORKS), "lightning_fabric", "torchmetrics"]
    python(f"""
import sys
for name in {blocked}:
    sys.modules[name] = None
import torch
from surf_lightning.functional import flow
from surf_lightning.functional import langevin
from surf_lightning.functional import losses
from surf_lightning.functional import permutation
from surf_lightning.functional import remixing
remixed = remixing.remix(torch.randn(3, 2, 4))
x0 = flow.sample_prior(remixed.mixtures, 2)
loss, order = losses.pit(flow.euler(lambda x, t, m: -x, x0, remixed.mixtures), remixed.sources, losses.squared_error)
losses.mixit(x0, remixed.sources)
assert permutation.invert(order).shape == (3, 2)
assert not [name for name in sys.modules if name.startswith("{PACKAGE}.net")]
import surf_lightning.networks
""")


def test_the_command_imports_nothing_heavy() -> None:
    """Help comes at once, whatever the arguments were."""
    python("""
import sys
import surf_lightning.cli
assert surf_lightning.cli.main(["--version"]) == 0
assert surf_lightning.cli.main(["--help"]) == 0
assert surf_lightning.cli.main(["no-such-command"]) == 2
heavy = {"torch", "lightning", "torchmetrics", "torchvision", "scipy", "numpy", "sklearn", "jsonargparse", "wandb"}
assert not heavy & set(sys.modules)
""")
