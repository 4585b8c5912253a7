"""The notebooks run from beginning to end, and what is stored in them is fit to be read."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  builds its cache here, or it may say so in a notebook
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FEW_STEPS = {"separating_digits": {"mixit_steps": 6, "surf_steps": 6}, "separating_a_recording": {"training_steps": 3}}
IMPROVEMENTS = re.compile(r"^.*improve.* ([+-]\d+\.\d+) dB$", re.MULTILINE)
ABSOLUTE_PATH = re.compile(r"(?<![\w.:+<])/\w+/\w|\b[A-Z]:\\\\")
ENCODED = re.compile(r"base64,[\w+/=]+")


@pytest.fixture(autouse=True)
def _kernel_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels write into the user's home is kept out of it."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))


def stored(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def parameters(notebook: NotebookNode) -> NotebookNode:
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A copy executed in ``folder``; a cell that fails raises CellExecutionError."""
    notebook = copy.deepcopy(notebook)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=None, resources=place, coalesce_streams=True).execute()
    return notebook


def printed(notebook: NotebookNode) -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.output_type == "stream")


def improvements(notebook: NotebookNode) -> list[float]:
    return [float(found) for found in IMPROVEMENTS.findall(printed(notebook))]


def pictures(notebook: NotebookNode) -> int:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(FEW_STEPS)


@pytest.mark.parametrize("name", FEW_STEPS)
def test_the_stored_outputs_are_whole_and_clean(name: str) -> None:
    notebook = stored(name)
    nbformat.validate(notebook)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 400_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, from top to bottom"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [data for output in outputs for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    text = "\n".join([printed(notebook), *shown, json.dumps(notebook.metadata)])
    assert not ABSOLUTE_PATH.search(ENCODED.sub("", text))
    assert pictures(notebook) >= 1
    assert improvements(notebook)
    assert min(improvements(notebook)) > 0


@pytest.mark.parametrize("name", FEW_STEPS)
def test_a_notebook_runs_in_a_few_steps(name: str, tmp_path: Path) -> None:
    notebook = stored(name)
    names = [line.partition(" = ")[0] for line in parameters(notebook).source.splitlines()]
    assert names == list(FEW_STEPS[name])
    parameters(notebook).source = "\n".join(f"{key} = {value}" for key, value in FEW_STEPS[name].items())
    executed = execute(notebook, tmp_path)
    assert pictures(executed) == pictures(stored(name))
    assert len(improvements(executed)) == len(improvements(stored(name)))
    kinds = {output.get("name") for cell in executed.cells for output in cell.get("outputs", ())}
    assert "stderr" not in kinds, printed(executed)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_STEPS)
def test_a_notebook_separates(name: str, tmp_path: Path) -> None:
    assert min(improvements(execute(stored(name), tmp_path))) > 0
