"""The site: `make docs`. Pages of commands and configurations are written here, from the code that they describe."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import surf_lightning
from surf_lightning.cli import COMMANDS, help_text
from surf_lightning.engine.configs import summaries

HERE = Path(__file__).parent

project = "surf-lightning"
author = copyright = "The surf-lightning authors"
release = version = surf_lightning.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
exclude_patterns = ["**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # the tests execute the notebooks; their stored outputs are shown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False  # Lightning's are long, and of another markup
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"surf-lightning {release}"
html_math_renderer = "mathml"
html_show_sphinx = False


def math_visitor(as_block: bool) -> Any:
    """Formulas become MathML, which browsers draw themselves: the site asks nothing of the network."""

    def visit(translator: Any, node: nodes.Element) -> None:
        mathml = tex2mathml(node.astext(), as_block=as_block)
        translator.body.append(f'<div class="math">{mathml}</div>' if as_block else mathml)
        raise nodes.SkipNode

    return visit


def plain_text(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, in which |x| is a norm and *S the axes of a signal."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(part if part.startswith("``") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def write_commands(app: Any) -> None:
    """Writes the pages of the commands and of the configurations."""
    parts = ["# Commands", "", "```text", help_text().rstrip(), "```"]
    for name, function in COMMANDS.items():
        parts += ["", f"## surf {name}", "", "```text", inspect.cleandoc(function.__doc__ or ""), "```"]
    parts += ["", "`surf fit`, `surf validate` and `surf test` take the options of [a run](runs.md)."]
    replace(HERE / "reference" / "commands.md", parts)
    rows = [f"| `{name}` | {text} |" for name, text in summaries().items()]
    start = "`surf fit --config NAME` trains one; `surf configs NAME` prints one to start from."
    replace(
        HERE / "reference" / "configs.md", ["# Configurations", "", start, "", "| name | what |", "|---|---|", *rows]
    )


def replace(path: Path, lines: list[str]) -> None:
    """Write ``lines`` if they are not there already: an unchanged page is not built again."""
    text = "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (math_visitor(False), None), (math_visitor(True), None))
    app.connect("builder-inited", write_commands)
    app.connect("autodoc-process-docstring", plain_text, priority=100)
