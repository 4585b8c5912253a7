"""`surf export`: a trained separator as safetensors, a JSON config and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import nn

from surf_lightning.errors import UserError
from surf_lightning.files import new_folder
from surf_lightning.inference.checkpoint import PREFIX
from surf_lightning.inference.hub import CARD, CONFIG, METADATA, WEIGHTS
from surf_lightning.inference.separator import read_separator

Beside = Callable[[nn.Module, dict[str, Any], Path], Any]

CARD_TEMPLATE = """\
---
library_name: surf-lightning
pipeline_tag: {pipeline}
tags:
- source-separation
- unsupervised-learning
{index}---

# {name}

Separates mixtures of {what}. Trained by `{method}` of surf-lightning {version}; {parameters:,} parameters.
The estimated sources sum to the mixture.

```python
from surf_lightning import load_separator

separator = load_separator("path/to/this/folder")  # or "user/name" on the Hugging Face Hub
estimates = separator.separate(mixtures)  # {shapes}
```

The same from the command line: `surf separate {example} --checkpoint path/to/this/folder --output separated/`.
The weights are safetensors and the configuration is JSON: loading them runs no code.

## Limits

It knows what it was trained on. Say here which recordings or images those were, how well it does on held-out ones, and
under which licence the weights may be used.
"""


def measured(checkpoint: str | PathLike[str]) -> dict[str, Any]:
    """What `surf test` wrote into the run of ``checkpoint``, if it was this checkpoint that was tested."""
    path = Path(checkpoint).parent.parent / "metrics.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return results if Path(str(results.get("checkpoint"))).name == Path(checkpoint).name else {}


def model_index(results: dict[str, Any], name: str, pipeline: str) -> str:
    """``results`` as the Hub's pages read them: YAML for the head of a model card."""
    if not results:
        return ""
    metrics = [
        {"type": key, "value": round(value, 4)} for key, value in results["metrics"].items() if value is not None
    ]
    tested = {
        "task": {"type": pipeline, "name": "source separation"},
        "dataset": {"name": results["data"], "type": results["data"].lower()},
        "metrics": metrics,
    }
    return yaml.safe_dump({"model-index": [{"name": name, "results": [tested]}]}, sort_keys=False)


def model_card(metadata: dict[str, Any], parameters: int, results: dict[str, Any] | None = None) -> str:
    """The README of an exported separator; ``results`` are those of `surf test`."""
    signal = metadata["signal"]
    if signal["kind"] == "audio":
        words = {
            "pipeline": "audio-to-audio",
            "what": f"sounds at {signal['sample_rate']} Hz",
            "shapes": "[B,T] -> [B,K,T]",
            "example": "field/",
        }
    else:
        words = {
            "pipeline": "image-to-image",
            "what": f"images of shape {signal['shape']} (channels, height, width)",
            "shapes": "[B,C,H,W], sums of K sources in [-1,1] -> [B,K,C,H,W]",
            "example": "mixtures/*.png",
        }
    method, version = metadata["method"], metadata["version"]
    name = f"{method.rpartition('.')[2]} separator"
    words["index"] = model_index(results or {}, name, words["pipeline"])
    return CARD_TEMPLATE.format(name=name, method=method, version=version, parameters=parameters, **words)


def export(
    checkpoint: str | PathLike[str], output: str | PathLike[str], trust: bool = False, beside: Beside | None = None
) -> None:
    """Write the separator of ``checkpoint`` to the folder ``output``, complete or not at all.

    Args:
        checkpoint: a run's.
        output: a new or an empty folder.
        trust: import classes from outside this package, if it needs any.
        beside: writes more into the folder: it is given the separator, its ``signal`` and the folder.

    Raises:
        UserError: there is no such checkpoint, or ``output`` is there already and not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already: give the name of a new folder by --output")
    metadata, separator = read_separator(checkpoint, trust)
    weights = {PREFIX + key: value.clone().contiguous() for key, value in separator.state_dict().items()}
    config = {key: metadata[key] for key in METADATA}
    parameters = sum(parameter.numel() for parameter in separator.parameters())
    try:
        with new_folder(output) as folder:
            (folder / WEIGHTS).write_bytes(save(weights))  # save_file would make it readable for its owner alone
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (folder / CARD).write_text(model_card(metadata, parameters, measured(checkpoint)), encoding="utf-8")
            if beside is not None:
                beside(separator.eval(), metadata["signal"], folder)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from error
