"""The report as one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from surf_lightning import __version__
from surf_lightning.reporting.figures import save
from surf_lightning.reporting.runs import Run, facts_in_common
from surf_lightning.reporting.sections import Section
from surf_lightning.reporting.sounds import Sound, SoundExample, validation_examples
from surf_lightning.reporting.style import POLICY, STYLE
from surf_lightning.reporting.tables import Cell, Row, Table

CAPTION = "Each row: a test mixture, what each method makes of it, and its true sources."
SOUNDS = (
    "Each column: a source, in the order of the truth. All sounds of a mixture play at one gain; its spectrograms go "
    "up to half the sample rate, and from the mixture's loudest bin down to 80 dB below, which is black."
)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    contents = ""
    if len(sections) > 1:
        links = " · ".join(f'<a href="#{escape(section.data)}">{escape(section.data)}</a>' for section in sections)
        contents = f"<nav>{links}</nav>"
    body = "\n".join(_section(section, len(sections) > 1) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{contents}
{body}
<footer>Written by surf report, surf-lightning {escape(__version__)}.</footer>
</body>
</html>
"""


def _section(section: Section, headed: bool) -> str:
    parts = [f'<h2 id="{escape(section.data)}">{escape(section.data)}</h2>'] if headed else []
    parts += [_table(table) for table in section.tables]
    if section.curves:
        drawing = save(section.curves, "svg")
        parts += ["<h3>Learning curves</h3>", _image(drawing, "svg+xml", "curves", "Learning curves")]
        if any("beta" in run.curves for run in section.runs):
            parts.append('<p class="quiet">Grey: beta, the share of the teacher\'s path along the frozen MixIT.</p>')
    if section.images:
        parts += ["<h3>Examples</h3>", _image(save(section.images, "png"), "png", "examples", CAPTION, CAPTION)]
    if section.sounds:
        parts += ["<h3>Examples</h3>", f'<p class="quiet">{SOUNDS}</p>']
        parts += [_sounds(number, example) for number, example in enumerate(section.sounds, 1)]
    for sweep in section.sweeps:
        parts += [f"<h3>{escape(sweep.title)}</h3>", *map(_table, sweep.tables)]
        if sweep.curves:
            parts.append(_image(save(sweep.curves, "svg"), "svg+xml", "curves", f"Learning curves: {sweep.title}"))
    parts += [_validation(run) for run in section.runs if not run.examples and run.media]
    if section.missing:
        items = "".join(f"<li>{_text(item)}</li>" for item in section.missing)
        parts.append(f'<h3>What is missing</h3><ul class="missing">{items}</ul>')
    parts.append(_what_was_run(section.runs))
    return "\n".join(parts)


def _text(said: str) -> str:
    """Words that stand in the Markdown file as well, where backticks mark a command."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(said))


# -- tables --


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows, seen_supervised = [], False
    for row in table.rows:
        first = row.kind == "supervised" and not seen_supervised
        seen_supervised |= row.kind == "supervised"
        rows.append(_row(row, f"{row.kind} first-supervised" if first else row.kind))
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    protocol = f"<p>{escape(table.protocol)}</p>" if table.protocol else ""
    legend = "Best in bold, second underlined"
    legend = f"Of each setting, {legend.lower()}" if any(row.kind == "group" for row in table.rows) else legend
    legend += "; methods that need clean sources stand below the line, unranked." if seen_supervised else "."
    return (
        f'{protocol}<div class="scroll"><table class="values"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="quiet">{legend}</p>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _row(row: Row, kind: str) -> str:
    wrap = {"best": "<b>{}</b>", "second": "<u>{}</u>", "": "{}"}

    def cell(value: Cell) -> str:
        return f"<td>{wrap[value.mark].format(escape(value.text))}</td>"

    if row.kind == "group":
        return f'<tr class="group"><th scope="rowgroup" colspan="{len(row.cells) + 3}">{escape(row.label)}</th></tr>'
    cost = "".join(f'<td class="cost">{escape(value)}</td>' for value in (row.steps, row.minutes))
    cells = "".join(map(cell, row.cells))
    return f'<tr class="{kind}"><th scope="row">{escape(row.label)}</th>{cells}{cost}</tr>'


def _what_was_run(runs: Sequence[Run]) -> str:
    common, names = facts_in_common(runs)
    said = " · ".join(f"{name} {_short(name, value)}" for name, value in common.items())
    said = f'<p class="quiet">Of all runs: {escape(said)}.</p>' if said else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ["run", "method", *names])
    rows = ""
    for run in runs:
        values = [str(run.folder), run.label, *(_short(name, run.facts[name]) for name in names)]
        rows += "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>"
    configs = "".join(
        f"<details><summary>{escape(str(run.folder))}/config.yaml</summary><pre>{escape(run.config)}</pre></details>"
        for run in runs
        if run.config
    )
    return (
        f'<h3>What was run</h3>{said}<div class="scroll"><table class="facts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{configs}"
    )


def _short(name: str, value: str) -> str:
    commit, _, rest = value.partition(" ")
    return f"{commit[:10]} {rest}".strip() if name == "commit" else value


# -- pictures and sounds --


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _image(data: bytes, kind: str, style: str, alternative: str, caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    source = _uri(data, f"image/{kind}")
    return f'<figure class="scroll {style}"><img src="{source}" alt="{escape(alternative)}">{below}</figure>'


def _player(data: bytes) -> str:
    return f'<audio controls preload="metadata" src="{_uri(data, "audio/flac")}"></audio>'


def _sounds(number: int, example: SoundExample) -> str:
    def cell(sound: Sound) -> str:
        return f'<td><img src="{_uri(sound.png, "image/png")}" alt="spectrogram">{_player(sound.flac)}</td>'

    columns = max((len(sounds) for sounds in example.rows.values()), default=1)
    head = "".join(f'<th scope="col">source {k + 1}</th>' for k in range(columns))
    rows = f"<tr><th>mixture</th>{cell(example.mixture)}</tr><tr><th></th>{head}</tr>"
    for name, sounds in example.rows.items():
        rows += f'<tr><th scope="row">{escape(name)}</th>{"".join(map(cell, sounds))}</tr>'
    return f'<p class="quiet">Mixture {number}</p><div class="scroll"><table class="sounds">{rows}</table></div>'


def _validation(run: Run) -> str:
    """What the latest validation left, for a run that was not tested."""

    examples = validation_examples(run)
    shown = "".join(_sounds(number, example) for number, example in enumerate(examples, 1))
    if not examples:
        pictures = (path for path in run.media if path.suffix == ".png")
        shown = "".join(_image(path.read_bytes(), "png", "validation", path.stem) for path in pictures)
    return f"<h3>{escape(run.label)}: its latest validation</h3>{shown}"
