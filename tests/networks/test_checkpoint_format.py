"""Checkpoints of earlier versions hold the arguments and the weights of these networks by name.

Neither may change, but an argument with a default may come.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from surf_lightning.networks import (
    ConvTasNet,
    MBLocoformer,
    RegressionLocoformer,
    RegressionNCSNpp,
    ScoreNCSNpp,
    SharedNCSNpp,
    STFTConvTasNet,
    VelocityConvTasNet,
    VelocitySTFTConvTasNet,
)

AUDIO: dict[str, Any] = {"filters": 8, "bottleneck": 8, "hidden": 8, "repeats": 2, "blocks": 2, "skip_residuals": True}
SPECTRAL: dict[str, Any] = {"bottleneck": 8, "hidden": 8, "repeats": 2, "blocks": 2}
MEL: dict[str, Any] = {"features": 8, "attention": 8, "heads": 2, "hidden": 8, "blocks": 2, "mel_bands": 8}
IMAGE: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_resolutions": [8]}
FORMATS = [
    (lambda: ConvTasNet(3, 2, **AUDIO), "42a2654844ee"),
    (lambda: VelocityConvTasNet(2, **AUDIO), "8b6540acaade"),
    (lambda: STFTConvTasNet(4, **SPECTRAL), "c88aa3e184e1"),
    (lambda: VelocitySTFTConvTasNet(2, **SPECTRAL), "fb2c352b5d34"),
    (lambda: MBLocoformer(2, **MEL), "dbdf6242c7dd"),
    (lambda: RegressionLocoformer(3, 2, **MEL), "18db90070513"),
    (lambda: SharedNCSNpp(2, 1, 8, **IMAGE), "5eb98ae45c79"),
    (lambda: RegressionNCSNpp(3, 2, 1, 8, **IMAGE), "cdf76e25c5d0"),
    (lambda: ScoreNCSNpp(1, 8, **IMAGE), "399512f8fcd7"),
]


@pytest.mark.parametrize(("make", "digest"), FORMATS)
def test_arguments_and_weights_keep_names_and_order(make: Any, digest: str) -> None:
    """The order too: optimizers number the parameters."""
    network = make()
    lines = [*sorted(network.init_args), *(f"{key} {list(value.shape)}" for key, value in network.state_dict().items())]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith(digest)
