"""`surf export`: a trained separator as safetensors, a JSON config and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from surf_lightning.errors import UserError
from surf_lightning.files import new_folder
from surf_lightning.inference.checkpoint import PREFIX
from surf_lightning.inference.hub import CARD, CONFIG, METADATA, WEIGHTS
from surf_lightning.inference.model_card import UNKNOWN, copy_examples, model_card, record_of
from surf_lightning.inference.separator import read_separator

Beside = Callable[[nn.Module, dict[str, Any], Path], Any]
"""Writes more into a folder: it is given the separator, its ``signal`` and the folder."""


def export(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    trust: bool = False,
    beside: Beside | None = None,
    licence: str = UNKNOWN,
    examples: bool = False,
) -> None:
    """Write the separator of ``checkpoint`` to the folder ``output``, complete or not at all.

    ``trust`` is as of ``load_separator``, ``licence`` as the Hub names it; with ``examples`` the folder and its card
    show the pictures and sounds of the run's latest validation.

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
        run = record_of(checkpoint)
    except (ValueError, OSError) as error:
        raise UserError(f"the run of {checkpoint} cannot be read: {error}") from error
    run = run if examples else replace(run, media=())
    try:
        with new_folder(output) as folder:
            (folder / WEIGHTS).write_bytes(save(weights))  # save_file would make it readable for its owner alone
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            card = model_card(metadata, parameters, separator.num_sources, run, licence)
            (folder / CARD).write_text(card, encoding="utf-8")
            copy_examples(run, folder)
            if beside is not None:
                beside(separator.eval(), metadata["signal"], folder)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from error
