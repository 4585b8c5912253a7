"""`surf report`: runs side by side, as one self-contained page and as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from surf_lightning.reporting.page import CAPTION, html_page
from surf_lightning.reporting.pictures import save
from surf_lightning.reporting.runs import Run
from surf_lightning.reporting.sections import Section, make_sections
from surf_lightning.reporting.tables import markdown


def run_report(args: Sequence[str]) -> None:
    """The command line of `surf report`."""
    parser = argparse.ArgumentParser(prog="surf report", description="Runs side by side: a page and a Markdown file.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, e.g. runs/digits_mixit")
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="folder for report.html, report.md and its pictures"
    )
    options = parser.parse_args(list(args))
    sections = make_sections([Run.read(folder) for folder in options.runs])
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
    for table in section.tables:
        notes = "".join(f"- {note}\n" for note in table.notes)
        parts += [f"{table.protocol}\n", markdown(table), *([notes] if notes else [])]
    parts += ["".join(f"- {item}\n" for item in section.missing)] if section.missing else []
    return "\n".join(parts)


def _pictures(section: Section, folder: Path, is_only: bool) -> str:
    """The section's pictures, written into ``folder``, and what was run, in Markdown."""
    lines, stem = [""], "report" if is_only else f"report_{section.data}"
    for suffix, figure, caption in (("", section.images, CAPTION), ("_curves", section.curves, "Learning curves")):
        if figure:
            path = folder / f"{stem}{suffix}.png"
            path.write_bytes(save(figure, "png"))
            lines += [f"![{caption}]({path.name})", ""]
    if section.sounds:
        lines += ["Examples to listen to are in report.html.", ""]
    names = [name for name in section.runs[0].facts if any(run.facts[name] for run in section.runs)]
    lines += ["| run | method | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for run in section.runs:
        lines.append("| " + " | ".join([str(run.folder), run.label, *(run.facts[name] for name in names)]) + " |")
    return "\n".join(lines) + "\n"
