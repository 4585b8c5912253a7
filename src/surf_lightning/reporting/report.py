"""The report: a section a data set, rendered as one HTML file that holds everything it shows, and as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from surf_lightning import __version__
from surf_lightning.files import write_together
from surf_lightning.metrics.tables import Table
from surf_lightning.reporting.figures import (
    SoundExample,
    curves,
    image_examples,
    same_mixtures,
    save,
    side_by_side,
    sweep_curves,
    validations,
)
from surf_lightning.reporting.runs import Run, facts_in_common, runs_in
from surf_lightning.reporting.sweeps import Sweep, find_sweeps, repetitions, sweep_table
from surf_lightning.reporting.tables import group_alike, make_table, markdown, momi_table, plain

CAPTION = "Each row: a test mixture, what each method makes of it, and its true sources."


@dataclass(frozen=True)
class Part:
    """Tables, and the learning curves below them."""

    title: str
    tables: tuple[Table, ...]
    curves: Figure | None


@dataclass(frozen=True)
class Section(Part):
    """All there is to say of the runs on one data set, the ``title``."""

    runs: tuple[Run, ...]
    images: Figure | None
    sounds: tuple[SoundExample, ...]
    sweeps: tuple[Part, ...]
    missing: tuple[str, ...]


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Compare the runs in ``folders``, or folders of runs: write a page and a Markdown file, and print the tables.

    Raises:
        UserError: a folder is no run.
    """
    found = [run for folder in folders for run in runs_in(folder) or [folder]]
    different = {folder.resolve(): folder for folder in found}  # `runs/digits_mixit runs/digits_*` names one twice
    sections = make_sections([Run.read(folder) for folder in different.values()])
    title = f"Separation of {' and '.join(section.title for section in sections)}"
    files = {"report.html": html_page(title, sections).encode()}
    numbers = [_numbers(section) for section in sections]
    pictures = [_pictures(section, files, len(sections) == 1) for section in sections]
    text = "\n".join(map("".join, zip(numbers, pictures, strict=True)))
    files["report.md"] = f"# {plain(title)}\n\n{text}".encode()
    write_together(output, files)
    print("\n".join([*numbers, f"written to {output}/report.html and report.md"]))


# -- sections --


def make_sections(runs: Sequence[Run]) -> list[Section]:
    """A section for each data set, in the order of the first run on it."""
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data, []).append(run)
    return [_section(data, group) for data, group in by_data.items()]


def _section(data: str, everything: Sequence[Run]) -> Section:
    again = repetitions(everything)
    runs = [run for run in everything if not any(run in group for group in again.values())]
    runs.sort(key=lambda run: run.needs_sources)  # as in the table
    sweeps = find_sweeps(runs)
    runs = [run for run in runs if not any(run in sweep.changed for sweep in sweeps)]
    with_examples = [run for run in runs if run.examples]
    shown = [run for run in with_examples if same_mixtures(run.examples, with_examples[0].examples)]
    is_image = bool(shown) and shown[0].examples["mixtures"][0].ndim == 3
    missing = [f"{run.folder}: {'; '.join(run.missing)}." for run in everything if run.missing]
    missing += [f"{run.folder}: {run.unfinished}." for run in everything if run.unfinished]
    if other := [str(run.folder) for run in with_examples if run not in shown]:
        missing.append(f"{', '.join(other)}: no examples, for its mixtures are not those of {shown[0].folder}.")
    tables = [make_table(name, group, again) for name, group in group_alike(runs)] + momi_table(runs)
    return Section(
        data,
        tuple(tables),
        curves(runs, again),
        tuple(everything),
        image_examples(shown) if is_image else None,
        tuple(side_by_side(shown, [run.examples for run in shown])) if shown and not is_image else (),
        tuple(_sweep(sweep, {table.protocol for table in tables}) for sweep in sweeps),
        tuple(missing),
    )


def _sweep(sweep: Sweep, said: set[str]) -> Part:
    """``said``: the protocols that need not be said again."""
    tables = [sweep_table(name, sweep, group) for name, group in group_alike(sweep.runs)]
    tables = [replace(table, protocol="") if table.protocol in said else table for table in tables]
    return Part(f"{sweep.label} with one setting changed", tuple(tables), sweep_curves(sweep.groups))


# -- the page --


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The whole page, from report.html.j2."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("surf_lightning.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"code": _code, "drawing": _drawing, "data": _data}
    tools = {"facts_in_common": facts_in_common, "validations": validations}
    template = environment.get_template("report.html.j2")
    return template.render(title=title, sections=sections, version=__version__, caption=CAPTION, **tools)


def _code(text: str) -> Markup:
    """``text``, in which backticks mark a command as in the Markdown file."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)))


def _data(content: bytes, kind: str) -> str:
    """A URI that holds ``content``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _drawing(figure: Figure, kind: str) -> str:
    """A URI that holds ``figure`` as svg or png."""
    return _data(save(figure, kind), "image/svg+xml" if kind == "svg" else f"image/{kind}")


# -- Markdown --


def _numbers(section: Section) -> str:
    """The section's tables and what is missing, in Markdown."""
    parts = [f"## {plain(section.title)}\n", *map(_table, section.tables)]
    for sweep in section.sweeps:
        parts += [f"### {plain(sweep.title)}\n", *map(_table, sweep.tables)]
    parts += ["".join(f"- {plain(item)}\n" for item in section.missing)] if section.missing else []
    return "\n".join(parts)


def _table(table: Table) -> str:
    notes = "".join(f"- {plain(note)}\n" for note in table.notes)
    return "\n".join(filter(None, [table.protocol and f"{plain(table.protocol)}\n", markdown(table), notes]))


def _pictures(section: Section, files: dict[str, bytes], is_only: bool) -> str:
    """The section's pictures, put into ``files``, and what was run, in Markdown."""
    lines, stem = [""], "report" if is_only else f"report_{re.sub(r'[^A-Za-z0-9-]', '_', section.title)[:100]}"
    drawn: list[tuple[str, Any, str]] = [("", section.images, CAPTION), ("_curves", section.curves, "Learning curves")]
    drawn += [(f"_sweep{n}", sweep.curves, sweep.title) for n, sweep in enumerate(section.sweeps, 1)]
    for suffix, figure, caption in drawn:
        if figure:
            name = f"{stem}{suffix}.png"
            files[name] = save(figure, "png")
            lines += [f"![{plain(caption)}]({name})", ""]
    if section.sounds:
        lines += ["Examples to listen to are in report.html.", ""]
    common, names = facts_in_common(section.runs)
    if common:
        lines += ["Of all runs: " + " · ".join(f"{name} {plain(value)}" for name, value in common.items()) + ".", ""]
    lines += ["| run | method | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for run in section.runs:
        cells = [str(run.folder), run.label, *(run.facts[name] for name in names)]
        lines.append("| " + " | ".join(map(plain, cells)) + " |")
    return "\n".join(lines) + "\n"
