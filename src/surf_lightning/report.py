"""`surf report`: tested runs side by side, as a table and a picture."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.metrics.images import align, to_unit_range

TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
SEED = re.compile(r"_seed\d+$")  # runs/digits_mixit_seed1 repeats runs/digits_mixit


@dataclass(frozen=True)
class Run:
    """A tested run: its folder, what `surf test` wrote and the examples it kept."""

    folder: Path
    record: dict[str, Any]
    examples: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises UserError where the run has not been tested."""
        for name in ("metrics.json", "test_examples.pt"):
            if not (folder / name).is_file():
                raise UserError(f"{folder} has no {name}: run surf test for it first, with the arguments of its fit")
        examples = torch.load(folder / "test_examples.pt", weights_only=True)
        return cls(folder, json.loads((folder / "metrics.json").read_text()), examples)

    @property
    def name(self) -> str:
        """The folder's name without the suffix of a repetition with another seed."""
        return SEED.sub("", self.folder.name)

    @property
    def is_repetition(self) -> bool:
        return self.name != self.folder.name


def table(runs: Sequence[Run]) -> str:
    """A Markdown table: the mean of the sources m/K, then a row a run; the best value of a column in bold."""
    names = list(runs[0].record["metrics"])
    rows = [runs[0].record["average"], *(run.record["metrics"] for run in runs)]
    best = {name: max(row[name] for row in rows) for name in names}

    def cell(name: str, value: float) -> str:
        text = f"{value:.3f}" if name == "ssim" else f"{value:.2f}"
        return f"**{text}**" if value == best[name] else text

    lines = [
        "| method | " + " | ".join(TITLES[name] for name in names) + " | steps | minutes |",
        "|---|" + "---|" * (len(names) + 2),
        "| Average (m/K) | " + " | ".join(cell(name, runs[0].record["average"][name]) for name in names) + " | | |",
    ]
    for run in runs:
        values = " | ".join(cell(name, run.record["metrics"][name]) for name in names)
        cost = f"{run.record['steps']} | {run.record['seconds'] / 60:.1f}"
        lines.append(f"| {run.record['label']} | {values} | {cost} |")
    return "\n".join(lines) + "\n"


def remarks(runs: Sequence[Run], repetitions: Sequence[Run]) -> list[str]:
    """What a reader of the table must know: the data, the spread over seeds, a student below its teacher."""
    first = runs[0].record
    notes = [f"{first['mixtures']} held-out mixtures of {first['data']}, {first['hardware']}, seed {first['seed']}."]
    for run in runs:
        group = [run, *(other for other in repetitions if other.name == run.name)]
        values = [other.record["metrics"]["psnr"] for other in group]
        if len(group) > 1:
            seeds = ", ".join(
                f"seed {other.record['seed']}: {value:.2f}" for value, other in zip(values, group, strict=True)
            )
            spread = f"{mean(values):.2f} ± {stdev(values):.2f} dB"
            note = f"{run.record['label']} over {len(group)} seeds: {spread} ({seeds})."
            if run.record["method"] == "MixIT":
                note += f" The other rows start from seed {run.record['seed']}."
            notes.append(note)
    teacher = max((run.record["metrics"]["psnr"] for run in runs if run.record["method"] == "MixIT"), default=0.0)
    for run in runs:
        if run.record["method"] == "SURF" and run.record["metrics"]["psnr"] <= teacher:
            notes.append(
                f"{run.record['label']} has not overtaken its MixIT teacher after {run.record['steps']} steps. "
                "It needs longer training: `make digits` gives it that."
            )
    return notes


def picture(runs: Sequence[Run], path: Path) -> None:
    """A row an example; columns: mixture, the estimates of each run, truth."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    mixtures, sources = runs[0].examples["mixtures"], runs[0].examples["sources"]
    columns = [("mixture", (mixtures / sources.shape[1]).unsqueeze(1))]
    columns += [(run.record["label"], align(run.examples["estimates"], sources)) for run in runs]
    columns.append(("truth", sources))
    figure, axes = plt.subplots(
        len(mixtures),
        len(columns),
        figsize=(1.9 * len(columns), 1.05 * len(mixtures) + 0.4),
        gridspec_kw={"width_ratios": [images.shape[1] for _, images in columns], "wspace": 0.08, "hspace": 0.08},
        squeeze=False,
    )
    for column, (title, images) in enumerate(columns):
        for row, example in enumerate(to_unit_range(images)):
            beside = example.permute(2, 0, 3, 1).flatten(1, 2)  # [K,C,H,W] -> [H,K*W,C]
            axes[row, column].imshow(beside.expand(-1, -1, 3), vmin=0, vmax=1, interpolation="nearest")
            axes[row, column].axis("off")
        axes[0, column].set_title(title, fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def run_report(args: Sequence[str]) -> None:
    """The command line of `surf report`."""
    parser = argparse.ArgumentParser(prog="surf report", description="Tested runs side by side: a table and a picture.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, e.g. runs/digits_mixit")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder for report.md and report.png")
    options = parser.parse_args(list(args))
    everything = [Run.read(folder) for folder in options.runs]
    firsts = {run.name for run in everything if not run.is_repetition}
    runs = [run for run in everything if not (run.is_repetition and run.name in firsts)]
    repetitions = [run for run in everything if run.is_repetition and run.name in firsts]
    options.output.mkdir(parents=True, exist_ok=True)
    picture(runs, options.output / "report.png")
    text = table(runs) + "\n" + "\n".join(f"- {note}" for note in remarks(runs, repetitions)) + "\n"
    (options.output / "report.md").write_text(f"# Separation of {runs[0].record['data']}\n\n{text}\n![](report.png)\n")
    print(f"{text}\nwritten to {options.output}/report.md and report.png")
