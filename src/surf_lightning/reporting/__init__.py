"""`surf report`: runs side by side, as one self-contained page and as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from surf_lightning.reporting.figures import save
from surf_lightning.reporting.page import CAPTION, html_page
from surf_lightning.reporting.runs import Run, facts_in_common
from surf_lightning.reporting.sections import Section, make_sections
from surf_lightning.reporting.tables import Table, markdown


def run_report(args: Sequence[str]) -> None:
    """The command line of `surf report`."""
    parser = argparse.ArgumentParser(prog="surf report", description="Runs side by side: a page and a Markdown file.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, e.g. runs/digits_mixit")
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="folder for report.html, report.md and its pictures"
    )
    options = parser.parse_args(list(args))
    folders = {folder.resolve(): folder for folder in options.runs}  # `runs/digits_mixit runs/digits_*` names one twice
    sections = make_sections([Run.read(folder) for folder in folders.values()])
    title = f"Separation of {' and '.join(section.data for section in sections)}"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.html").write_text(html_page(title, sections), encoding="utf-8")
    numbers = "\n".join(_numbers(section) for section in sections)
    text = "\n".join(_numbers(section) + _pictures(section, options.output, len(sections) == 1) for section in sections)
    (options.output / "report.md").write_text(f"# {title}\n\n{text}", encoding="utf-8")
    print(f"{numbers}\nwritten to {options.output}/report.html and report.md")


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
