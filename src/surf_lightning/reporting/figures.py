"""What a report shows: learning curves, images, sounds. Axes: B examples, K sources, C H W, T samples."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor
from torch.nn.functional import pad

from surf_lightning.audio.band import DYNAMIC_RANGE, log_spectrogram
from surf_lightning.metrics.audio import align_by_si_sdr, is_active
from surf_lightning.metrics.images import align_by_mse, to_unit_range
from surf_lightning.reporting.parts import read_sound
from surf_lightning.reporting.runs import Run, names_of

POINTS = 300  # of a curve: more cannot be told apart
PANELS = 4  # in a row
SECONDS, PEAK = 10, 0.99  # of a sound: longest, and loudest of full scale
WATCHED = {  # on held-out mixtures; the first two that were logged are drawn
    "val/psnr": "PSNR (dB)",
    "val/ssim": "SSIM",
    "val/si_sdri": "SI-SDRi (dB)",
    "val/MSi": "MSi (dB)",
    "val/momi": "MoMi (dB)",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7a3b9c", "#444444", "#b22222", "#6b8e23")
STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "svg.hashsalt": "surf-lightning",
    "text.parse_math": False,  # a name may hold a dollar
}


def save(figure: Figure, kind: str, dpi: int = 150) -> bytes:
    """``figure`` as a file of ``kind`` png or svg."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.04, metadata=metadata)
    return buffer.getvalue()


# -- learning curves --


def thinned(curve: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; means over blocks where there are more than ``POINTS``."""
    points = np.array(list(curve.items()), dtype=np.float64)
    blocks = np.array_split(points, min(POINTS, len(points)))
    steps, values = np.array([block.mean(0) for block in blocks]).T
    return steps, values


def curves(runs: Sequence[Run], repetitions: Mapping[Path, Sequence[Run]]) -> Figure | None:
    """What all runs score on held-out mixtures, and below it the loss of each; None if neither was logged.

    The first score is drawn against minutes as well, where every run's pace is known. Losses of different methods are
    of different kinds: each has axes of its own. ``repetitions`` are given by the folder of the first of them.
    """
    watched = [(name, "step") for name in WATCHED if any(name in run.curves for run in runs)][:2]
    if watched and all(run.pace for run in runs if watched[0][0] in run.curves):
        watched.append((watched[0][0], "minute"))
    trained = [run for run in runs if "loss" in run.curves]
    if not watched and not trained:
        return None
    colours = {run.folder: COLOURS[place % len(COLOURS)] for place, run in enumerate(runs)}  # repetitions share theirs
    names = {run.folder: name for run, name in zip(runs, names_of(runs), strict=True)}
    rows = math.ceil(len(trained) / PANELS)
    heights = ([2.6] if watched else []) + ([1.5 * rows] if trained else [])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, sum(heights) + 0.4), layout="constrained")
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.06, squeeze=False).flat)
        panels = _panels(parts[0], 1, max(2, len(watched)), len(watched)) if watched else []
        for panel, (name, unit) in zip(panels, watched, strict=True):
            for run in runs:
                for again in repetitions.get(run.folder, ()):
                    _line(panel, again, name, unit, color=colours[run.folder], alpha=0.45, linewidth=0.8)
                _line(panel, run, name, unit, color=colours[run.folder], label=names[run.folder], linewidth=1.4)
            panel.set_title(f"Held-out mixtures: {WATCHED[name]}")
            _along(panel, unit)
            if panel is panels[0]:
                panel.legend(fontsize=7.5, frameon=False, ncols=2 if len(runs) > 4 and len(watched) < 3 else 1)
        for panel, run in zip(_panels(parts[-1], rows, PANELS, len(trained)) if trained else (), trained, strict=True):
            _loss(panel, run, colours[run.folder], names[run.folder])
    return figure


def _panels(figure: FigureBase, rows: int, columns: int, count: int, **options: Any) -> list[Axes]:
    """The first ``count`` panels of a grid; the others stay empty."""
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return panels[:count]


def _line(panel: Axes, run: Run, name: str, unit: str = "step", **looks: Any) -> None:
    pace = run.pace if unit == "minute" else 1.0
    if pace and (curve := run.curves.get(name)):
        markers: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve) < 3 else {}  # too few for a line
        steps, values = thinned(curve)
        panel.plot(pace * steps, values, **markers, **looks)


def _loss(panel: Axes, run: Run, colour: str, name: str) -> None:
    if beta := run.curves.get("beta"):
        shade = panel.twinx()
        shade.fill_between(*thinned(beta), color="#000000", alpha=0.07, linewidth=0)
        shade.set_ylim(0, 1)
        shade.set_axis_off()
    _line(panel, run, "loss", color=colour, linewidth=1)
    _line(panel, run, "val/loss", color=colour, linewidth=1, linestyle="--")
    held_out = " (dashed: held out)" if "val/loss" in run.curves else ""
    panel.set_title(f"{name}: loss{held_out}", fontsize=8)
    panel.tick_params(labelsize=7)
    _along(panel, "step")


def sweep_curves(groups: dict[str, dict[str, Run]]) -> Figure | None:
    """A panel a setting, a line a value, on held-out mixtures; None where nothing was logged."""
    runs = [run for group in groups.values() for run in group.values()]
    name = next((name for name in WATCHED if any(name in run.curves for run in runs)), None)
    if name is None:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        panels = _panels(figure, 1, max(3, len(groups)), len(groups), sharey=True)
        for panel, (title, group) in zip(panels, groups.items(), strict=True):
            shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(group)))
            for (value, run), shade in zip(group.items(), shades, strict=True):
                _line(panel, run, name, color=shade, linewidth=1.4, label=value)
            panel.set_title(title)
            panel.legend(fontsize=7.5, frameon=False)
            _along(panel, "step")
        panels[0].set_ylabel(f"held-out {WATCHED[name]}")
    return figure


def _along(panel: Axes, unit: str) -> None:
    panel.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
    panel.set_xlim(left=0)
    panel.set_xlabel(unit, fontsize=7.5)


# -- images --


def image_examples(runs: Sequence[Run]) -> Figure:
    """A row an example; columns: mixture, the estimates of each run, truth. ``runs`` have the same mixtures."""
    mixtures, sources = (torch.stack(runs[0].examples[name]) for name in ("mixtures", "sources"))
    columns = [("mixture", (mixtures / sources.shape[1]).unsqueeze(1))]
    for name, run in zip(names_of(runs), runs, strict=True):
        columns.append((name, align_by_mse(torch.stack(run.examples["estimates"]), sources)))
    columns.append(("truth", sources))
    with matplotlib.rc_context({**STYLE, "axes.titlelocation": "center"}):
        widths = [images.shape[1] for _, images in columns]
        figure = Figure(figsize=(0.62 * sum(widths) + 0.1 * len(columns), 0.64 * len(mixtures) + 0.5))
        spaces = {"width_ratios": widths, "wspace": 0.1, "hspace": 0.06}
        grid = figure.subplots(len(mixtures), len(columns), gridspec_kw=spaces, squeeze=False)
        for column, (title, images) in enumerate(columns):
            for row, example in enumerate(to_unit_range(images)):
                gap = example.shape[-1] // 16 + 1
                apart = pad(example.expand(-1, 3, -1, -1), (0, gap), value=1)  # white
                beside = apart.permute(2, 0, 3, 1).flatten(1, 2)[:, :-gap]  # [K,C,H,W] -> [H,K*W,C]
                grid[row, column].imshow(beside, interpolation="nearest")
                grid[row, column].axis("off")
            for space in ("Supervised ", " (", ", "):
                title = title.replace(space, space.replace(" ", "\n"))
            grid[0, column].set_title(title, fontsize=7.5)
    return figure


# -- sounds --


class Sound(NamedTuple):
    """A recording as a FLAC file, and its spectrogram as a png file."""

    flac: bytes
    png: bytes


SoundExample = dict[str, list[Sound]]
"""The ``mixture`` alone, then by name its sources: the truth and what each run found, in the same order."""


class Validation(NamedTuple):
    """What the latest validations of ``runs``, which had the same mixtures, left of them."""

    runs: list[Run]
    sounds: list[SoundExample]


def validations(runs: Sequence[Run]) -> Iterator[Validation]:
    """Those of ``runs``, side by side where they are of the same mixtures; each source is in the first run's order."""
    groups: list[list[tuple[Run, dict[str, Any]]]] = []
    for run in runs:
        mine = _validated(run)
        alike = (group for group in groups if mine["mixtures"] and same_mixtures(mine, group[0][1]))
        if (group := next(alike, None)) is None:
            groups.append(group := [])
        group.append((run, mine))
    for group in groups:
        members = [run for run, _ in group]
        yield Validation(members, side_by_side(members, [sounds for _, sounds in group]))


def same_mixtures(some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether two runs' examples can stand side by side."""
    mine, theirs = some["mixtures"], others["mixtures"]
    return len(mine) == len(theirs) and all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def _validated(run: Run) -> dict[str, Any]:
    """The sounds of the latest validation, in the form of ``Run.examples``; sources are None where unknown."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    rate = 0
    for path in run.media:
        if name := re.fullmatch(r"step_\d+_(\d+)_([a-z]+)\d*", path.stem):
            try:
                signal, rate = read_sound(path, SECONDS)
            except ValueError:  # an example without it cannot be shown: the run's folder was changed
                continue
            found.setdefault(name[1], {}).setdefault(name[2], []).append(signal)
    whole = [kept for kept in found.values() if _is_whole(kept)]
    return {
        "mixtures": [kept["mixture"][0] for kept in whole],
        "sources": [torch.stack(kept["reference"]) if "reference" in kept else None for kept in whole],
        "estimates": [torch.stack(kept["estimate"]) for kept in whole],
        "sample_rate": rate,
    }


def _is_whole(kept: dict[str, list[Tensor]]) -> bool:
    """Whether a mixture has estimates, all of its length, and nothing unknown."""
    lengths = {len(signal) for signals in kept.values() for signal in signals}
    return {"mixture", "estimate"} <= kept.keys() <= {"mixture", "estimate", "reference"} and (
        len(kept["mixture"]) == len(lengths) == 1
    )


def side_by_side(runs: Sequence[Run], found: Sequence[dict[str, Any]]) -> list[SoundExample]:
    """What was ``found`` of the same mixtures by each of ``runs``; silent sources are left out."""
    examples = []
    for number, (mixture, sources) in enumerate(zip(found[0]["mixtures"], found[0]["sources"], strict=True)):
        rows = {} if sources is None else {"truth": sources[is_active(sources)].float()}
        for name, each in zip(names_of(runs), found, strict=True):
            estimates = each["estimates"][number].float()
            if estimates.isfinite().all():  # a diverged separator gives nothing to listen to
                ordered = next(iter(rows.values()), estimates)
                rows[name] = align_by_si_sdr(estimates[None], ordered[None])[0] if rows else estimates
        examples.append(_example(mixture, rows, int(found[0]["sample_rate"])))
    return examples


def _example(mixture: Tensor, rows: dict[str, Tensor], rate: int) -> SoundExample:
    """At most 10 s of ``mixture [T]`` and ``rows [K,T]``, at one gain and one scale of colours, for comparison."""
    clips = {name: signals[:, : SECONDS * rate] for name, signals in {"mixture": mixture[None], **rows}.items()}
    gain = min(1.0, PEAK / max(float(signals.abs().max()) for signals in clips.values()))
    loudest = float(log_spectrogram(clips["mixture"]).max())

    def sound(signal: Tensor) -> Sound:
        file = io.BytesIO()
        soundfile.write(file, (signal * gain).numpy(), rate, format="FLAC", subtype="PCM_16")
        return Sound(file.getvalue(), spectrogram(signal, loudest))

    return {name: [sound(signal) for signal in signals] for name, signals in clips.items()}


def spectrogram(signal: Tensor, loudest: float) -> bytes:
    """A png of ``signal [T]``: frequency upwards, 80 dB below ``loudest`` black."""
    figure = Figure(figsize=(2.6, 0.9))
    panel = figure.add_axes((0, 0, 1, 1))
    looks: Any = {"cmap": "magma", "vmin": loudest - DYNAMIC_RANGE, "vmax": loudest}
    panel.imshow(log_spectrogram(signal).numpy(), origin="lower", aspect="auto", **looks)
    panel.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
