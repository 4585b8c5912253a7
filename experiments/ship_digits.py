"""Makes src/surf_lightning/models/digits from a tested run: python experiments/ship_digits.py runs/digits_surf_rm.

The run: `surf fit --config digits_mixit`, `surf fit --config digits_surf_rm`, `surf test --config digits_surf_rm`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import yaml
from torchvision.transforms.functional import to_pil_image

from surf_lightning.data import Digits
from surf_lightning.inference.export import CARD, WEIGHTS, export
from surf_lightning.metrics.images import to_unit_range

MODEL = Path(__file__).parents[1] / "src" / "surf_lightning" / "models" / "digits"
EXAMPLES = 6
CARD_TEXT = """\
---
library_name: surf-lightning
pipeline_tag: image-to-image
license: apache-2.0
tags:
- source-separation
- unsupervised-learning
---

# Digits, by SURF

Separates the average of two handwritten digits, a grey image of 8x8 pixels, into the two. It was trained on mixtures
alone, and is small enough to come with the package, so that everything can be tried without training.

```
surf app --checkpoint digits
surf separate examples --checkpoint digits --output separated
```

```python
from surf_lightning import load_separator

separator = load_separator("digits")
estimates = separator.separate(mixtures)  # [B,1,8,8], sums of two images in [-1,1] -> [B,2,1,8,8]
```

How it was made, in a clone of the repository (seed {seed}, step {step:,} of {steps:,}, tested at commit {commit}):

```
surf fit --config digits_mixit
surf fit --config digits_surf_rm
surf test --config digits_surf_rm
python experiments/ship_digits.py runs/digits_surf_rm
```

| {count:,} mixtures of two test images | PSNR (dB) | SSIM |
|---|---:|---:|
| half of the mixture, twice | {average_psnr:.2f} | {average_ssim:.3f} |
| one sample | {psnr:.2f} | {ssim:.3f} |
{mean}
The images are scikit-learn's digits (Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI,
CC BY 4.0): 1,347 to train, 150 to choose the checkpoint, 300 to test. `examples` holds mixtures of test images. The
weights are {size:,} bytes of float32.

## Limits

It knows 8x8 digits, bright on black, in pairs. Where two digits cover one another it guesses: draw several samples.
"""


def main(run: Path) -> None:
    """Replace the shipped folder by the best checkpoint of ``run``, its card and some mixtures."""
    measured = json.loads((run / "metrics.json").read_text())
    shutil.rmtree(MODEL, ignore_errors=True)
    export(run / "checkpoints" / "best.ckpt", MODEL)
    facts = {
        "mean": "",
        "seed": measured["seed"],
        "step": measured["steps"],
        "steps": yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"],
        "commit": (measured["commit"] or "unknown")[:7],
        "count": measured["mixtures"],
        "size": (MODEL / WEIGHTS).stat().st_size,
        **{name: measured["metrics"][name] for name in ("psnr", "ssim")},
        **{f"average_{name}": measured["average"][name] for name in ("psnr", "ssim")},
    }
    if mean := measured.get("mean_of_samples"):
        scores = "| mean of {num_samples} samples | {metrics[psnr]:.2f} | {metrics[ssim]:.3f} |\n"
        facts["mean"] = scores.format(**mean)
    (MODEL / CARD).write_text(CARD_TEXT.format(**facts), encoding="utf-8")
    (MODEL / "examples").mkdir()
    data = Digits(num_test=EXAMPLES, batch_size=EXAMPLES)
    data.setup("test")
    for number, mixture in enumerate(next(iter(data.test_dataloader()))["mixtures"]):
        to_pil_image(to_unit_range(mixture / 2)).save(MODEL / "examples" / f"mixture{number + 1}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
