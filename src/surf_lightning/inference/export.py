"""`surf export`: a trained separator as safetensors, a JSON config and a model card, and reading that back."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from surf_lightning.errors import UserError
from surf_lightning.files import new_folder
from surf_lightning.inference.checkpoint import PREFIX, load_separator_checkpoint, rebuild

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"  # named as the Hugging Face Hub has them
Beside = Callable[[nn.Module, dict[str, Any], Path], Any]
METADATA = ("method", "separator", "signal", "version")  # of a checkpoint's metadata, what a separator needs

CARD_TEMPLATE = """\
---
library_name: surf-lightning
pipeline_tag: {pipeline}
tags:
- source-separation
- unsupervised-learning
---

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


def model_card(metadata: dict[str, Any], parameters: int) -> str:
    """The README of an exported separator."""
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
    metadata, state = load_separator_checkpoint(checkpoint)
    separator = rebuild(metadata["separator"], trust)
    separator.load_state_dict(state)  # raises if the weights do not fit
    weights = {PREFIX + key: value.clone().contiguous() for key, value in state.items()}
    config = {key: metadata[key] for key in METADATA}
    parameters = sum(parameter.numel() for parameter in separator.parameters())
    try:
        with new_folder(output) as folder:
            (folder / WEIGHTS).write_bytes(save(weights))  # save_file would make it readable for its owner alone
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (folder / CARD).write_text(model_card(metadata, parameters), encoding="utf-8")
            if beside is not None:
                beside(separator.eval(), metadata["signal"], folder)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from error


def read_export(folder: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the separator's weights of a folder written by ``surf export``; nothing in it is unpickled.

    Raises:
        UserError: it is no such folder, or is damaged.
    """
    config, weights = Path(folder, CONFIG), Path(folder, WEIGHTS)
    for path in (config, weights):
        if not path.is_file():
            raise UserError(
                f"{folder} holds no {path.name}: give a checkpoint (of a run {folder}/checkpoints/best.ckpt), or a "
                "folder written by surf export"
            )
    try:
        metadata = json.loads(config.read_text(encoding="utf-8"))
        state = load_file(weights)
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read as an exported separator; it is damaged: {error}") from error
    if not isinstance(metadata, dict) or not set(METADATA) <= metadata.keys():
        raise UserError(f"{config} was not written by surf export")
    return metadata, {key[len(PREFIX) :]: value for key, value in state.items() if key.startswith(PREFIX)}
