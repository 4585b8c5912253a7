"""Compiled networks compute the same, from and into the same checkpoints, in one graph each."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from surf_lightning.cli import main
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator, compile_networks
from surf_lightning.methods import SURF
from surf_lightning.networks import ConvTasNet, MBLocoformer, RegressionNetwork, VelocityNetwork
from tests.test_configs import arguments
from tests.tiny import adam, perturbed, regression, velocity

CPU = torch.device("cpu")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Traces as torch.compile does, and then runs the traced operations as they are; counts the graphs."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=counter))
    torch._dynamo.reset()
    counters.clear()
    return counter


SURF_SR = ["--model.micro_batch", "2", "--model.network.init_args.dropout", "0.3", "--model.beta_steps", "3"]


def fit(name: str, folder: str, *more: str) -> dict[str, Any]:
    assert main([*arguments(name, Path()), "--trainer.default_root_dir", folder, *more]) == 0
    return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)


def assert_same(found: dict[str, Any], expected: dict[str, Any], rtol: float = 0, atol: float = 0) -> None:
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.slow
def test_a_run_goes_on_compiled_or_not_whatever_it_was_before(backend: CompileCounterWithBackend) -> None:
    assert main(arguments("digits_mixit", Path())) == 0
    four = ["--trainer.max_steps", "4"]
    surf = functools.partial(fit, "digits_surf_sr")
    expected = surf("plain", *SURF_SR, *four)
    assert backend.frame_count == 0
    surf("compiled", *SURF_SR, "--model.compile", "true")
    # The frozen teacher; the teacher; the student without and with gradients. Validation adds no graph.
    assert backend.frame_count == 4
    assert not counters["graph_break"]
    assert_same(surf("compiled", *SURF_SR, *four, "--ckpt_path", "last"), expected)
    surf("half", *SURF_SR)
    assert_same(surf("half", *SURF_SR, *four, "--ckpt_path", "last", "--model.compile", "true"), expected)


def gradients(module: SURF, mixtures: Tensor) -> tuple[Tensor, list[Tensor]]:
    module.zero_grad()
    loss = module.loss({"mixtures": mixtures}, BatchRandomness(0, 0, CPU))
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in module.student.parameters()]  # type: ignore[union-attr]


def networks(family: str) -> tuple[VelocityNetwork, RegressionNetwork, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if family == "NCSN++":
        return velocity(), regression(4), 2 * torch.rand(6, 1, 8, 8, generator=generator) - 1
    flow = MBLocoformer(
        2, features=8, attention=8, heads=2, hidden=8, blocks=1, mel_bands=8, activation_checkpointing=True
    )
    mixit = ConvTasNet(4, 2, filters=8, bottleneck=8, hidden=8, repeats=1, blocks=2)
    return perturbed(flow), perturbed(mixit), torch.randn(6, 800, generator=generator)


@pytest.mark.parametrize("family", ["NCSN++", pytest.param("Locoformer and Conv-TasNet", marks=pytest.mark.slow)])
def test_each_network_is_one_graph_of_any_batch_size(family: str, backend: CompileCounterWithBackend) -> None:
    flow, mixit, mixtures = networks(family)
    plain = SURF(flow, "self_remixing", mixit_checkpoint="", optimizer=adam)
    plain._freeze(RegressionSeparator(mixit, 2))
    plain.beta = 0.5
    compiled = copy.deepcopy(plain)
    compile_networks(compiled)
    graphs = []
    for size in (6, 4, 3):
        loss, found = gradients(compiled, mixtures[:size])
        expected_loss, expected = gradients(plain, mixtures[:size])
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-7)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        graphs.append(backend.frame_count)
    assert graphs == [4, 8, 8]  # of one size, of any size
    assert not counters["graph_break"]


@pytest.mark.slow
def test_the_compiler_itself_computes_the_same() -> None:
    options = ["--model.network.init_args.dropout", "0.0", "--model.optimizer", "torch.optim.SGD"]
    options += ["--model.optimizer.lr", "1e-3"]
    compiled = fit("digits_mixit", "compiled", *options, "--model.compile", "true")
    assert_same(compiled, fit("digits_mixit", "plain", *options), rtol=1e-3, atol=1e-5)
