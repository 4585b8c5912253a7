"""Run folders as `surf fit` and `surf test` leave them, without either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from surf_lightning.reporting.runs import Run

AVERAGE = {"psnr": 13.456, "ssim": 0.5114}
TABLE_1 = {"genuine": True, "mixtures": 5000, "evaluation": "PerceptualMetrics"}
"""The facts of Table 1, beside the data set."""


def results(label: str, metrics: dict[str, float | None], **more: Any) -> dict[str, Any]:
    """The contents of metrics.json."""
    return {
        "metrics": metrics,
        "average": AVERAGE,
        "mixtures": 1000,
        "sources": 2,
        "evaluation": "PixelMetrics",
        "genuine": False,
        "protocol": "1,000 mixtures of 2 digits.",
        "method": label.split(" (")[0].replace(" ", ""),
        "label": label,
        "data": "Digits",
        "seed": 0,
        "steps": 4000,
        "seconds": 90.0,
        "hardware": "a CPU, 2 threads",
        "checkpoint": "runs/x/checkpoints/best.ckpt",
        "version": "0.1.0",
        "commit": None,
        **more,
    }


def measured(label: str, metrics: dict[str, float | None], folder: str = "", **more: Any) -> Run:
    """A run of which nothing but its results are known."""
    return Run(Path("runs", folder or label), {"metrics": results(label, metrics, **more)})


def image_examples(
    count: int = 4, sources: int = 2, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0
) -> dict[str, Any]:
    truth = 2 * torch.rand(count, sources, *shape, generator=torch.Generator().manual_seed(seed)) - 1
    estimates = truth.flip(1) + 0.01
    return {"mixtures": list(truth.sum(1)), "sources": list(truth), "estimates": list(estimates), "kind": "image"}


def audio_examples(seconds: float = 0.5, rate: int = 8000) -> dict[str, Any]:
    """Two mixtures of two tones, a third source being silent; four estimates, in another order."""
    time = torch.arange(round(seconds * rate)) / rate
    tones = [torch.sin(2 * torch.pi * hertz * time) for hertz in (300, 500, 700, 1100)]
    silence = torch.zeros_like(time)
    sources = [torch.stack([tones[0], tones[1], silence]), torch.stack([tones[2], 0.5 * tones[3], silence])]
    estimates = [torch.stack([silence, x[1], x[0] - x[1], x[0]]) for x in sources]
    mixtures = [x.sum(0) for x in sources]
    return {"mixtures": mixtures, "sources": sources, "estimates": estimates, "kind": "audio", "sample_rate": rate}


CONFIG = """\
# version: 0.1.0
# commit: 0123456789abcdef0123456789abcdef01234567 with changes
# hardware: one fast <GPU>
seed_everything: 7
data:
  class_path: surf_lightning.data.Digits
"""
CURVES = """\
step,epoch,name,value
49,0,lr-Adam,0.001
49,0,beta,1.0
49,0,loss,0.5
99,0,beta,0.5
99,0,loss,0.25
99,0,val/psnr,15.5
99,0,val/ssim,0.75
99,0,beta,0.5
99,0,loss,0.2
149,0,beta,0.0
149,0,loss,nan
199,1,beta,0.0
199,1,loss,0.125
199,1,val/psnr,17.5
199,1,val/ssim,0.875
199,1,loss,0.1"""  # resumed at step 99, killed in a line


def write(name: str, written: dict[str, Any] | None, examples: dict[str, Any] | None, config: str = CONFIG) -> str:
    """The folder of a run; None leaves a part out."""
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    if written is not None:
        (folder / "metrics.json").write_text(json.dumps(written))
    if examples is not None:
        torch.save(examples, folder / "test_examples.pt")
    if config:
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.csv").write_text(CURVES)
    return str(folder)
