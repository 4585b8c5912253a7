"""`surf report`: runs side by side, as one self-contained page and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from surf_lightning.errors import UserError
from surf_lightning.reporting.figures import save
from surf_lightning.reporting.page import CAPTION, html_page
from surf_lightning.reporting.runs import Run, facts_in_common
from surf_lightning.reporting.sections import Section, make_sections
from surf_lightning.reporting.tables import Table, markdown


def write_report(runs: Sequence[str | PathLike[str]], output: str | PathLike[str]) -> None:
    """`surf report`: compare the runs in the folders ``runs`` in ``output``/report.html and report.md.

    Raises:
        UserError: one of them is no run.
    """
    if not runs:
        raise UserError("name the folders of the runs to compare, e.g. runs/digits_mixit")
    folders = {
        folder.resolve(): folder for folder in map(Path, runs)
    }  # `runs/digits_mixit runs/digits_*` names one twice
    sections = make_sections([Run.read(folder) for folder in folders.values()])
    title = f"Separation of {' and '.join(section.data for section in sections)}"
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.html").write_text(html_page(title, sections), encoding="utf-8")
    numbers = "\n".join(_numbers(section) for section in sections)
    text = "\n".join(_numbers(section) + _pictures(section, output, len(sections) == 1) for section in sections)
    (output / "report.md").write_text(f"# {title}\n\n{text}", encoding="utf-8")
    print(f"{numbers}\nwritten to {output}/report.html and report.md")


def _numbers(section: Section) -> str:
    """The section's tables and what must be known of them, in Markdown."""
    parts = [f"## {section.data}\n"]
    parts += [_table(table) for table in section.tables]
    for sweep in section.sweeps:
        parts += [f"### {sweep.title}\n", *map(_table, sweep.tables)]
    parts += ["".join(f"- {item}\n" for item in section.missing)] if section.missing else []
    return "\n".join(parts)


def _table(table: Table) -> str:
    notes = "".join(f"- {note}\n" for note in table.notes)
    protocol = [f"{table.protocol}\n"] if table.protocol else []
    return "\n".join([*protocol, markdown(table), *([notes] if notes else [])])


def _pictures(section: Section, folder: Path, is_only: bool) -> str:
    """The section's pictures, written into ``folder``, and what was run, in Markdown."""
    lines, stem = [""], "report" if is_only else f"report_{section.data}"
    drawn = [("", section.images, CAPTION), ("_curves", section.curves, "Learning curves")]
    drawn += [(f"_sweep{n}", sweep.curves, sweep.title) for n, sweep in enumerate(section.sweeps, 1)]
    for suffix, figure, caption in drawn:
        if figure:
            path = folder / f"{stem}{suffix}.png"
            path.write_bytes(save(figure, "png"))
            lines += [f"![{caption}]({path.name})", ""]
    if section.sounds:
        lines += ["Examples to listen to are in report.html.", ""]
    common, names = facts_in_common(section.runs)
    if common:
        lines += ["Of all runs: " + " · ".join(f"{name} {value}" for name, value in common.items()) + ".", ""]
    lines += ["| run | method | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for run in section.runs:
        lines.append("| " + " | ".join([str(run.folder), run.label, *(run.facts[name] for name in names)]) + " |")
    return "\n".join(lines) + "\n"
