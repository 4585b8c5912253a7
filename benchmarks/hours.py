"""Hours of the papers' full runs: operations counted, hours calculated from a peak and an assumed share of it.

python benchmarks/hours.py      prints the table of docs/scaling.md
"""

from __future__ import annotations

from typing import Any

import yaml
from epoch import evaluations
from shipped import CONFIGS, RATE, operations

from surf_lightning.callbacks.beta_schedule import BetaSchedule

SHAPES = {"mnist": (1, 28, 28), "cifar": (3, 32, 32)}  # the others are crops of 10 s
METHODS = ("mixit", "remixit", "surf_rm", "supervised_flow")
H100, SHARE = 989e12, 0.4  # FLOP/s in bfloat16 by the data sheet, and what is assumed to be reached of them


def operations_of(run: str) -> tuple[int, int, float]:
    """Steps of the run, mixtures in a step, and operations of a mixture in the mean step."""
    config = yaml.safe_load((CONFIGS / f"{run}.yaml").read_text())
    data, model = config["data"], config["model"]["init_args"]
    if isinstance(data, str):
        data = yaml.safe_load((CONFIGS / data).read_text())
    batch, steps = data["init_args"]["batch_size"], config["trainer"]["max_steps"]
    shape = SHAPES.get(run.partition("_")[0], (10 * RATE,))
    alone, train = operations(run, *shape), operations(run, *shape, gradient=True)
    frozen = operations(run.partition("_")[0] + "_mixit", *shape)
    again = alone if model.get("micro_batch", batch) < batch else 0
    each = {
        "MixIT": lambda: train / 2,  # two of the batch are one mixture of mixtures
        "Remixing": lambda: train + share(model, steps) * frozen + (1 - share(model, steps)) * alone + again,
        "SURF": lambda: surf(model, steps, alone, frozen) + train + again,
        "SupervisedFlow": lambda: alone + train + again,  # the order of PIT
    }[config["model"]["class_path"]]()
    return steps, batch, each


def share(model: dict[str, Any], steps: int) -> float:
    """The part of the run in which MixIT is the teacher."""
    return min(1.0, model["teacher_steps"] / steps)


def surf(model: dict[str, Any], steps: int, alone: int, frozen: int, points: int = 400) -> float:
    """Operations of sampler and PIT's order for a mixture, the mean over the schedule of beta."""
    schedule = BetaSchedule(steps=model["beta_steps"])
    counts = [evaluations(schedule.beta(steps * point // points)) for point in range(points)]
    return sum(sampled * alone + frozen_too * frozen for sampled, frozen_too in counts) / points


def three(value: float) -> str:
    """``value`` in its first three digits, at most one of them after the point."""
    return f"{value:,.1f}" if value < 10 else f"{float(f'{value:.3g}'):,.0f}"


def main() -> None:
    print(f"| hours of 8 H100 | {' | '.join(METHODS)} |\n|---|{'---:|' * len(METHODS)}")
    for data in ("mnist", "cifar", "libri2mix", "fuss", "audioset"):
        cells = [data]
        for method in METHODS:
            if (CONFIGS / f"{data}_{method}.yaml").is_file():
                steps, batch, each = operations_of(f"{data}_{method}")
                total = steps * batch * each
                cells.append(f"{three(total / (8 * SHARE * H100) / 3600)} ({three(total / 1e18)} EFLOP)")
            else:
                cells.append("")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
