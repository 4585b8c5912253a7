"""No gradient that is not finite reaches a weight, in any method."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surf_lightning.callbacks import FiniteSteps
from surf_lightning.data import Folder
from surf_lightning.data.base import batches_done
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.methods import BASIS, SURF, MixCycle, MixIT, MixPIT, Remixing, SupervisedFlow, SupervisedRegression
from surf_lightning.methods.base import SeparationModule
from surf_lightning.networks import ConvTasNet, ScoreNCSNpp
from tests.tiny import NCSNPP, adam, digits, regression, trainer, velocity


def methods(mixit: str) -> dict[str, SeparationModule]:
    earlier = {"mixit_checkpoint": mixit, "optimizer": adam}
    return {
        "MixIT": MixIT(regression(4), optimizer=adam),
        "MixPIT": MixPIT(regression(), optimizer=adam),
        "MixCycle": MixCycle(regression(), mixpit_steps=1, optimizer=adam),
        "ReMixIT": Remixing(regression(), "remixit", teacher_steps=1, **earlier),
        "Self-Remixing": Remixing(regression(), "self_remixing", teacher_steps=1, **earlier),
        "SURF, ReMixIT": SURF(velocity(), "remixit", beta_steps=2, **earlier),
        "SURF, Self-Remixing": SURF(velocity(), "self_remixing", beta_steps=2, **earlier),
        "supervised flow": SupervisedFlow(velocity(), optimizer=adam),
        "supervised regression": SupervisedRegression(regression(), optimizer=adam, ema_decay=0.9),
        "BASIS": BASIS(ScoreNCSNpp(1, 8, **NCSNPP), langevin_steps=1, optimizer=adam),
    }


class OneBrokenPixel:
    """Puts a NaN into the training batches of the given numbers."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches

    def __call__(self, module: SeparationModule) -> None:
        whole = module.on_before_batch_transfer

        def broken(batch: Any, index: int) -> Any:
            if module.trainer.training and module.trainer.global_step in self.batches:
                batch["mixtures"][1, 0, 3, 3] = batch["sources"][1, 0, 0, 3, 3] = float("nan")
            return whole(batch, index)

        module.on_before_batch_transfer = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("name", methods(""))
def test_a_broken_pixel_reaches_no_weight(name: str, mixit: str, tmp_path: Path) -> None:
    module = methods(mixit)[name]
    OneBrokenPixel(1)(module)
    seen: list[Tensor] = []

    def weights() -> Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])

    module.on_train_batch_start, before = (  # type: ignore[method-assign]
        lambda batch, index: (seen.append(weights().clone()), before(batch, index))[1],
        module.on_train_batch_start,
    )
    with pytest.warns(
        UserWarning,
        match=r"batch 1: the gradient is not finite \(mixtures 1 of batch 1, training images \d+ and \d+, hold NaN.*"
        r"step skipped, 1 so far",
    ):
        trainer(tmp_path / "run", max_steps=4, limit_val_batches=0).fit(module, digits(batches_per_epoch=4))
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    tensors = [*checkpoint["state_dict"].values()]
    tensors += [value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_too_many_in_a_row_end_the_run_with_a_report(tmp_path: Path) -> None:
    module = MixIT(regression(4), optimizer=adam, max_skipped_steps=3)
    OneBrokenPixel(*range(1, 20))(module)
    with pytest.raises(UserError, match=r"batch 3: .*mixtures 1 of batch 3.* 3 steps in a row.*--ckpt_path last"):
        trainer(tmp_path / "run", max_steps=9).fit(module, digits(batches_per_epoch=9))


def test_a_step_that_is_skipped_leaves_the_optimizer_as_it_was() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = [layer.weight.clone(), *(value.clone() for value in optimizer.state[layer.weight].values())]
    layer.weight.grad = torch.full((2, 2), float("inf"))
    plain: Any = SimpleNamespace(precision="32-true", train_dataloader=None)
    with pytest.warns(UserWarning, match="step skipped"):
        FiniteSteps().on_before_optimizer_step(plain, None, optimizer)
    optimizer.step()
    after = [layer.weight, *optimizer.state[layer.weight].values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_fused_optimizer_skips_on_the_device_and_says_so_later() -> None:
    """As on CUDA; fused optimizers of the CPU skip in the same way."""
    layer, guard = nn.Linear(2, 2), FiniteSteps(patience=50)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    for step in range(1, 100):
        layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
        broken = step in (3, 4, 9)
        if broken:
            layer.bias.grad[0] = float("nan")
        before = layer.weight.clone()
        fake: Any = SimpleNamespace(global_step=step, train_dataloader=None)
        if step == 99:
            with pytest.warns(UserWarning, match="3 so far"):
                guard._skip_on_device(fake, optimizer, ~layer.bias.grad.isfinite().all())
        else:
            guard._skip_on_device(fake, optimizer, ~layer.bias.grad.isfinite().all())
        optimizer.step()
        assert torch.equal(layer.weight, before) == broken
    assert guard.skipped == 3
    fake.global_step = 120
    guard._skip_on_device(fake, optimizer, torch.tensor(True))
    with pytest.warns(UserWarning, match="4 so far"):  # what came since the last look is told in the end
        guard.on_train_end(fake, fake)


def test_the_file_of_a_broken_mixture_is_named(audio_sets: Path) -> None:
    """Of accumulated batches too: the second of the step's is whole."""
    data = Folder(str(audio_sets / "recordings"), batch_size=2, batches_per_epoch=4, num_workers=0, crop_seconds=0.25)
    network = ConvTasNet(4, 2, filters=8, bottleneck=8, hidden=8, repeats=1, blocks=1)
    module = MixIT(network, optimizer=adam)

    def broken(batch: Any, index: int) -> Any:
        if batches_done(module.trainer) == 2:
            batch["mixtures"][0, 5] = float("inf")
        return batch

    module.on_before_batch_transfer = broken  # type: ignore[method-assign]
    fitter = trainer(Path("run"), max_steps=2, limit_val_batches=0, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match=r"mixtures 0 of batch 2, .*recordings/\d\.wav, hold NaN or infinity"):
        fitter.fit(module, data)
    dataset = data.training_batches(Ranks())
    (crop,) = [dataset.names(2, row) for row in [0]]  # type: ignore[attr-defined]
    assert Path(crop).is_file()


def test_where_all_mixtures_are_finite_the_loudest_is_named() -> None:
    module = MixIT(regression(4), optimizer=adam)

    def loud(batch: Any, index: int) -> Any:
        batch["mixtures"][3] *= 1e25
        return batch

    module.on_before_batch_transfer = loud  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"all mixtures are finite; the loudest, 3 of batch 0, training .*e\+25"):
        trainer(Path("run"), max_steps=1, limit_val_batches=0).fit(module, digits())


@pytest.mark.parametrize("name", methods(""))
def test_silence_and_identical_and_opposite_sources_have_finite_gradients(
    name: str, mixit: str, tmp_path: Path
) -> None:
    module = methods(mixit)[name]
    image = torch.rand(1, 1, 1, 8, 8)
    pairs = [torch.cat([image, factor * image], 1) for factor in (0.0, 1.0, -1.0)]
    silence = torch.zeros(4, 2, 1, 8, 8)

    def replaced(batch: Any, index: int) -> Any:
        if not module.trainer.training:
            return batch
        sources = silence if module.trainer.global_step == 0 else torch.cat([silence[:1], *pairs])
        return {"sources": sources, "mixtures": sources.sum(1)}

    module.on_before_batch_transfer = replaced  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not finite.*")
        trainer(tmp_path / "run", max_steps=2, limit_val_batches=0).fit(module, digits())
