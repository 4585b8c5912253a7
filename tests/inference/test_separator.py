"""The trained model in a user's hands: what it computes, and that a checkpoint gives back the right weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import surf_lightning
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.checkpoint import KEY, PREFIX
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator, load_separator
from surf_lightning.methods import SURF, MixIT, SupervisedFlow, SupervisedRegression
from surf_lightning.methods.base import SeparationModule
from surf_lightning.networks import ConstantNoise, SourceHead
from tests.tiny import adam, digits, mixtures, regression, trainer, velocity


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- what separators compute --


def test_a_regression_keeps_the_most_energetic_outputs_and_shares_the_residual() -> None:
    network = regression(5, num_sources=2).double()
    m = mixtures()
    found = RegressionSeparator(network, 2).separate(m)
    for one, outputs, mixture in zip(found, network(m).detach(), m, strict=True):
        energies = [float((output**2).mean()) for output in outputs]
        kept = sorted(sorted(range(5), key=lambda index: -energies[index])[:2])
        residual = mixture - outputs[kept[0]] - outputs[kept[1]]
        torch.testing.assert_close(one, torch.stack([outputs[index] + residual / 2 for index in kept]))
    torch.testing.assert_close(found.sum(1), m, rtol=0, atol=1e-14)


def test_a_regression_needs_an_output_for_each_source() -> None:
    with pytest.raises(ValueError, match="2 outputs cannot separate 3 sources"):
        RegressionSeparator(regression(2), 3)


def test_outputs_too_many_to_be_merged_are_refused_before_a_training() -> None:
    with pytest.raises(ValueError, match="14 outputs are too many"):
        RegressionSeparator(regression(14, 3), 3, "merged")


@pytest.mark.parametrize(("num_sources", "num_steps"), [(2, 5), (3, 1), (3, 7)])
def test_a_flow_is_eulers_method_from_the_prior(num_sources: int, num_steps: int) -> None:
    network = velocity(num_sources, head=SourceHead()).double()
    m = mixtures()
    separator = FlowSeparator(network, num_steps, ConstantNoise(0.7))
    found = separator.separate(m, generator(3))
    z = torch.randn(6, num_sources, 1, 8, 8, generator=generator(3), dtype=torch.float64)
    x = torch.stack([m / num_sources + 0.7 * (z[:, k] - z.mean(1)) for k in range(num_sources)], 1)
    for step in range(num_steps):
        t = torch.full((6,), step / num_steps, dtype=torch.float64)
        with torch.no_grad():
            x = x + network(x, t, m) / num_steps
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.sum(1), m, rtol=0, atol=1e-12)


def test_estimates_of_a_flow_are_reproducible_by_a_generator() -> None:
    separator, m = FlowSeparator(velocity()), mixtures().float()
    first = separator.separate(m, generator(1))
    assert torch.equal(separator.separate(m, generator(1)), first)
    assert (separator.separate(m, generator(2)) - first).abs().max() > 1e-3
    assert (separator.separate(m) - separator.separate(m)).abs().max() > 1e-3


def test_a_flow_starts_from_the_noise_it_is_given_and_a_regression_has_no_use_for_it() -> None:
    m = mixtures().float()
    noise = torch.randn(6, 2, 1, 8, 8, generator=generator(1))
    flow = FlowSeparator(velocity(), noise=ConstantNoise(0.7))
    assert torch.equal(flow.separate_from(m, noise), flow.separate(m, generator(1)))
    assert not flow.separate_from(m, noise).requires_grad
    one = RegressionSeparator(regression(4), 2)
    assert torch.equal(one.separate_from(m, noise), one.separate(m))


def test_separate_keeps_no_gradients_and_forward_does() -> None:
    for separator in (FlowSeparator(velocity()), RegressionSeparator(regression(4), 2)):
        assert not separator.separate(mixtures().float()).requires_grad
        assert separator(mixtures().float()).requires_grad


def test_the_prior_of_training_has_the_mixture_for_its_sum_and_the_noise_given() -> None:
    separator, m = FlowSeparator(velocity(3), noise=ConstantNoise(0.5)), mixtures(400).float()
    noise = BatchRandomness(0, 0, torch.device("cpu")).normal((400, 3, *m.shape[1:]))
    x0 = separator.prior(m, noise)
    torch.testing.assert_close(x0.sum(1), m, rtol=0, atol=1e-5)
    deviations = x0 - m.unsqueeze(1) / 3
    assert float(deviations.var()) == pytest.approx(0.25 * 2 / 3, rel=0.02)  # the projection takes a third of it
    again = separator.prior(m, noise)
    assert torch.equal(x0, again)


# -- checkpoints --


def trained(module: SeparationModule, **options: Any) -> Path:
    trainer(Path("run"), limit_val_batches=0, **options).fit(module, digits())
    return Path("run", "checkpoints", "last.ckpt")


def check(path: Path | str, module: SeparationModule, kind: type[Any]) -> None:
    loaded: Any = load_separator(path)
    assert type(loaded) is kind
    assert not any(part.training for part in loaded.modules())
    assert loaded.signal == {"kind": "image", "shape": [1, 8, 8]}
    assert loaded.num_sources == 2
    for name, value in module.separator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    module.eval()
    m = mixtures().float()
    estimates = loaded.separate(m, generator())
    assert torch.equal(estimates, module.separator.separate(m, generator()))
    torch.testing.assert_close(estimates.sum(1), m, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (lambda: MixIT(regression(4, dropout=0.5), optimizer=adam), RegressionSeparator),
        (lambda: SupervisedRegression(regression(), optimizer=adam), RegressionSeparator),
        (lambda: SupervisedFlow(velocity(), noise=ConstantNoise(0.3), num_steps=3, optimizer=adam), FlowSeparator),
    ],
)
def test_the_trained_weights_of_a_single_network_are_loaded(method: Any, kind: type[Any]) -> None:
    module = method()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    path = trained(module)
    assert any(not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    check(path, module, kind)


def test_the_teacher_of_surf_is_loaded_not_its_student(mixit: str) -> None:
    module = SURF(velocity(dropout=0.2), "remixit", mixit_checkpoint=mixit, ema_decay=0.5, optimizer=adam)
    path = trained(module)
    check(path, module, FlowSeparator)
    loaded = load_separator(path).state_dict()
    assert any(not torch.equal(loaded[name], value) for name, value in module.student.state_dict().items())


def edited(path: str, **record: Any) -> str:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[KEY] |= record
    torch.save(checkpoint, "edited.ckpt")
    return "edited.ckpt"


def test_a_checkpoint_that_does_not_fit_is_refused_with_both_versions(mixit: str) -> None:
    record = torch.load(mixit, weights_only=True)[KEY]["separator"]
    network = record["init_args"]["network"]
    for changed in ({"new_argument": 1}, {"channels": 8}):
        altered = {**network, "init_args": {**network["init_args"], **changed}}
        separator = {**record, "init_args": {**record["init_args"], "network": altered}}
        with pytest.raises(UserError, match=r"of version 99\.0, does not fit this version"):
            load_separator(edited(mixit, version="99.0", separator=separator))


def test_networks_of_the_users_own_are_loaded_when_trusted(mixit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("the_users_own.py").write_text("from surf_lightning.networks import RegressionNCSNpp\n")
    monkeypatch.syspath_prepend(Path.cwd())
    record = torch.load(mixit, weights_only=True)[KEY]["separator"]
    network = {**record["init_args"]["network"], "class_path": "the_users_own.RegressionNCSNpp"}
    path = edited(mixit, separator={**record, "init_args": {**record["init_args"], "network": network}})
    with pytest.raises(UserError, match="trust=True"):
        load_separator(path)
    m = mixtures().float()
    assert torch.equal(load_separator(path, trust=True).separate(m), load_separator(mixit).separate(m))


def test_a_checkpoint_holds_what_a_reader_must_know(mixit: str) -> None:
    checkpoint = torch.load(mixit, weights_only=True)
    record = checkpoint[KEY]
    assert record["method"] == "surf_lightning.methods.mixit.MixIT"
    assert record["separator"]["class_path"] == "surf_lightning.inference.separator.RegressionSeparator"
    assert record["separator"]["init_args"]["network"]["init_args"]["num_outputs"] == 4
    assert 0 < record["seconds"] < 60
    assert any(name.startswith(PREFIX) for name in checkpoint["state_dict"])
    assert "hyper_parameters" not in checkpoint


@pytest.mark.parametrize(
    ("signal", "shape", "says"),
    [
        ({"kind": "image", "shape": [1, 8, 8]}, (4, 1, 16, 16), r"\[B, 1, 8, 8\], not \[4, 1, 16, 16\]"),
        ({"kind": "image", "shape": [1, 8, 8]}, (1, 8, 8), r"\[B, 1, 8, 8\], not \[1, 8, 8\]"),
        ({"kind": "audio", "sample_rate": 8000}, (8000,), r"\[B, T\], not \[8000\]"),
    ],
)
def test_mixtures_of_another_shape_are_refused(signal: dict[str, Any], shape: tuple[int, ...], says: str) -> None:
    separator = RegressionSeparator(regression(2), 2)
    separator.signal = signal
    with pytest.raises(ValueError, match=says):
        separator.separate(torch.zeros(shape))


def test_the_package_offers_the_separator() -> None:
    assert (surf_lightning.Separator, surf_lightning.load_separator) == (Separator, load_separator)
    assert not hasattr(surf_lightning, "nothing")
