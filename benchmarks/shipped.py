"""The networks of the shipped configs: built, and what an evaluation of them costs, counted. Axes: B K *S T."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import yaml
from counting import LiveBytes, count_flops, without_data
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from surf_lightning.networks import RegressionNetwork, ScoreNetwork, VelocityNetwork

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
RATE = 16_000


def build(config: str, **changes: Any) -> nn.Module:
    """The network ``config``, or the network of the run ``config``, some of its arguments changed."""
    network = _described(config)
    network["init_args"] |= changes
    parser = ArgumentParser()
    parser.add_subclass_arguments((RegressionNetwork, VelocityNetwork, ScoreNetwork), "network")
    return parser.instantiate(parser.parse_object({"network": network})).network


def _described(config: str) -> dict[str, Any]:
    for folder in (CONFIGS / "network", HERE):
        if (file := folder / f"{config}.yaml").is_file():
            return yaml.safe_load(file.read_text())
    network = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["model"]["init_args"]["network"]
    return _described(Path(network).stem) if isinstance(network, str) else network


def inputs(network: nn.Module, batch: int, *shape: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Noise of signals ``shape`` as the network takes it: x_t, t and mixtures, or mixtures alone."""
    mixtures = torch.randn(batch, *shape, device=device)
    if not isinstance(network, VelocityNetwork):
        return (mixtures,)
    x = torch.randn(batch, network.num_sources, *shape, device=device)
    return x, torch.rand(batch, device=device), mixtures


@functools.cache
def operations(config: str, *shape: int, gradient: bool = False) -> int:
    """Of one evaluation of one signal of ``shape``, with its gradient or without; counted, not run."""
    with without_data():
        network = build(config)
        given = inputs(network, 1, *shape)

        def evaluate() -> None:
            with torch.set_grad_enabled(gradient):
                loss = network(*given).square().mean()
            if gradient:
                loss.backward()

        return count_flops(evaluate)


def training_bytes(config: str, batch: int, *shape: int, bf16: bool = False, **changes: Any) -> int:
    """Weights, gradients and activations of a forward and backward, at most alive together; counted, not run.

    The optimizer's state, a teacher and an frozen_teacher come on top, and what a device's kernels work in.
    """
    with without_data(), LiveBytes() as live:
        network = build(config, **changes)
        given = inputs(network, batch, *shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network(*given).square().mean()
        loss.backward()
        return live.peak
