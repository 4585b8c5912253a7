"""A separator on the Hugging Face Hub. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import rebuild
from surf_lightning.inference.export import RECORD, model_card
from surf_lightning.inference.separator import Separator


class HubSeparator(Separator, PyTorchModelHubMixin):
    """A separator with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of ``huggingface_hub``.

    ``from_pretrained`` takes a folder written by ``surf export`` or a repository with its files. The arguments are the
    content of ``config.json``; only classes of this package are imported.
    """

    def __init__(self, method: str, separator: dict[str, Any], signal: dict[str, Any], version: str) -> None:
        super().__init__()
        self.record = dict(zip(RECORD, (method, separator, signal, version), strict=True))
        self.separator = rebuild(separator)  # the name is the prefix of the weights, as in a checkpoint
        self.num_sources, self.signal = self.separator.num_sources, signal

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.separator(mixtures, generator)

    def separate_from(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        return self.separator.separate_from(mixtures, noise)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        return ModelCard(model_card(self.record, sum(parameter.numel() for parameter in self.parameters())))

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise UserError("that repository has no model.safetensors, and its pickled weights are not loaded")
