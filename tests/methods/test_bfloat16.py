"""One training step under bf16-mixed of every method on every network it may have. Axes: B batch, K sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surf_lightning.functional.losses import log_energy, log_mse
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.functional.remixing import Remix, remix_over_ranks
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.methods import (
    BASIS,
    SURF,
    MixCycle,
    MixIT,
    MixPIT,
    Remixing,
    SemiSupervisedMixIT,
    SupervisedFlow,
    SupervisedRegression,
)
from surf_lightning.methods.base import SeparationModule
from surf_lightning.methods.remixing import TeacherStudentModule
from surf_lightning.networks import ConvTasNet, GlobalRMSNoise, MBLocoformer, RegressionLocoformer, ScoreNCSNpp
from surf_lightning.networks.stft import STFT
from tests.tiny import adam, perturbed, regression, velocity

CPU = torch.device("cpu")
LOCOFORMER: dict[str, Any] = {"features": 16, "attention": 16, "heads": 2, "hidden": 16, "blocks": 1, "mel_bands": 8}
IMAGE: dict[str, Any] = {"image_channels": 1, "image_size": 8, "channels": 4, "multipliers": [1], "blocks": 1}
IMAGE |= {"attention_resolutions": [8], "dropout": 0.0}


def conv_tasnet(num_outputs: int = 2) -> ConvTasNet:
    return perturbed(ConvTasNet(num_outputs, 2, filters=8, bottleneck=8, hidden=8, repeats=1, blocks=2))


def locoformer(num_outputs: int = 2) -> RegressionLocoformer:
    return perturbed(RegressionLocoformer(num_outputs, 2, **LOCOFORMER))


def remixing(
    method: Callable[..., TeacherStudentModule], network: nn.Module, frozen_teacher: Any, *more: Any
) -> SeparationModule:
    module = method(network, *more, mixit_checkpoint="", optimizer=adam)
    module._freeze(RegressionSeparator(frozen_teacher, 2))
    return module


def log_surf(*args: Any, **options: Any) -> SURF:
    return SURF(*args, noise=GlobalRMSNoise(), **options)


RM, SR = "remixit", "self_remixing"
CASES: dict[str, Callable[[], SeparationModule]] = {
    "mixit ncsnpp": lambda: MixIT(regression(4), optimizer=adam),
    "mixit conv_tasnet": lambda: MixIT(conv_tasnet(4), optimizer=adam),
    "mixit locoformer": lambda: MixIT(locoformer(4), optimizer=adam),
    "semisupervised ncsnpp": lambda: SemiSupervisedMixIT(regression(4), supervised_share=0.5, optimizer=adam),
    "mixpit ncsnpp": lambda: MixPIT(regression(), optimizer=adam),
    "mixcycle ncsnpp": lambda: MixCycle(regression(), mixpit_steps=0, optimizer=adam),
    "basis ncsnpp": lambda: BASIS(perturbed(ScoreNCSNpp(**IMAGE)), langevin_steps=2, optimizer=adam),
    "supervised ncsnpp": lambda: SupervisedRegression(regression(), optimizer=adam),
    "supervised locoformer": lambda: SupervisedRegression(locoformer(), error=log_mse, optimizer=adam),
    "flow ncsnpp": lambda: SupervisedFlow(velocity(attention_resolutions=[8]), optimizer=adam),
    "flow locoformer": lambda: SupervisedFlow(perturbed(MBLocoformer(2, **LOCOFORMER)), log_energy, optimizer=adam),
    "remixit ncsnpp": lambda: remixing(Remixing, regression(), regression(4), RM),
    "remixit locoformer": lambda: remixing(Remixing, locoformer(), conv_tasnet(4), RM, log_energy),
    "self_remixing conv_tasnet": lambda: remixing(Remixing, conv_tasnet(), conv_tasnet(4), SR, log_energy),
    "surf_rm ncsnpp": lambda: remixing(SURF, velocity(), regression(4), RM),
    "surf_sr ncsnpp": lambda: remixing(SURF, velocity(), regression(4), SR),
    "surf_rm locoformer": lambda: remixing(
        log_surf, perturbed(MBLocoformer(2, **LOCOFORMER)), conv_tasnet(4), RM, log_energy
    ),
    "surf_sr locoformer": lambda: remixing(
        log_surf, perturbed(MBLocoformer(2, **LOCOFORMER)), conv_tasnet(4), SR, log_energy
    ),
}


def batch(audio: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (6, 2, 1600) if audio else (6, 2, 1, 8, 8)
    sources = torch.rand(shape, generator=generator) * 2 - 1
    return {"sources": sources, "mixtures": sources.sum(1)}


def step(module: SeparationModule, examples: dict[str, Tensor], enabled: bool) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):  # as Lightning's bf16-mixed
        loss = module.loss(examples, BatchRandomness(0, 0, CPU))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1% of the loss, or 0.05 dB of one in dB; the gradients point the same way."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = CASES[case]()
    module.beta = 0.5  # type: ignore[assignment]
    examples = batch(audio=case.split()[1] in ("locoformer", "conv_tasnet"))
    expected, wanted = step(module, examples, enabled=False)

    spectra: list[torch.dtype] = []
    low: list[torch.dtype] = []
    for part in module.modules():
        if isinstance(part, STFT):
            part.register_forward_hook(lambda _, args, output: spectra.append(output.dtype))
        elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):
            part.register_forward_hook(lambda _, args, output: low.append(output.dtype))
    remixes: list[Remix] = []

    def watch(*args: Any) -> Remix:
        remixes.append(remix_over_ranks(*args))
        return remixes[-1]

    for place in ("remixing", "surf"):
        monkeypatch.setattr(f"surf_lightning.methods.{place}.remix_over_ranks", watch)
    found, gradient = step(module, examples, enabled=True)

    assert torch.bfloat16 in low  # the step was one in bfloat16
    assert found.dtype == torch.float32
    assert set(spectra) <= {torch.float32}
    assert bool(spectra) == ("locoformer" in case)
    for remixed in remixes:
        assert remixed.sources.dtype == remixed.mixtures.dtype == torch.float32
        total = remixed.mixtures.double().sum(0)
        torch.testing.assert_close(total, examples["mixtures"].double().sum(0), rtol=0, atol=1e-4)
    assert bool(remixes) == isinstance(module, TeacherStudentModule)

    in_decibels = case.split()[1] in ("locoformer", "conv_tasnet") or case.startswith("mix")
    tolerance = 0.05 if in_decibels else 0.01 * float(expected)
    assert abs(float(found - expected)) < tolerance
    assert gradient.keys() == wanted.keys()
    ours, theirs = (torch.cat([g[name].flatten() for name in wanted]) for g in (gradient, wanted))
    assert ours.isfinite().all()
    assert torch.cosine_similarity(ours, theirs, 0) > 0.9
