"""The MixCycle paper's audio half: what its training does, on little sets and beside the original's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from surf_lightning.data import SC09Mix
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.methods import MixCycle, MixPIT
from surf_lightning.networks import STFTConvTasNet
from tests.test_configs import ROOT
from tests.tiny import adam, trainer

TINY: dict[str, Any] = {"n_fft": 64, "hop": 16, "bottleneck": 6, "hidden": 8, "repeats": 1, "blocks": 2}


def network() -> STFTConvTasNet:
    torch.manual_seed(0)
    return STFTConvTasNet(2, **TINY).double()


def steps(mixtures: Tensor, summed: bool, config: dict[str, Any]) -> list[Tensor]:
    """Weights after three steps of Adam: on the sum clipped at 5, as the original, or as our configuration does."""
    net = network()
    module, count = MixPIT(net, optimizer=adam).double(), len(mixtures) // 2
    given = config["model"]["init_args"]["optimizer"]["init_args"]
    eps = 1e-8 if summed else given["eps"] * 128 / count  # the configuration's is for 128 examples
    clip = 5.0 if summed else config["trainer"]["gradient_clip_val"] * 128 / count
    optimizer = torch.optim.Adam(net.parameters(), lr=given["lr"], eps=eps)
    for number in range(3):
        optimizer.zero_grad()
        loss = module.loss({"mixtures": mixtures * (1 + number)}, BatchRandomness(0, 0, torch.device("cpu")))
        (100 * loss * (count if summed else 1)).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        assert norm > clip  # it is clipped
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


def test_our_clipping_of_the_mean_is_the_originals_of_the_sum() -> None:
    config = yaml.safe_load((ROOT / "configs" / "sc09mix_mixpit.yaml").read_text())
    mixtures = torch.randn(12, 500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for ours, originals in zip(*(steps(mixtures, summed, config) for summed in (False, True)), strict=True):
        torch.testing.assert_close(ours, originals, rtol=1e-7, atol=1e-9)


def test_mixcycle_trains_on_spoken_digits(audio_sets: Path) -> None:
    root, options = str(audio_sets / "SpeechCommands"), {"batch_size": 4, "num_workers": 0, "num_validation": 4}
    module = MixCycle(network().float(), mixpit_steps=1, optimizer=adam)
    before = [parameter.clone() for parameter in module.parameters()]
    fitted = trainer(Path("run"))
    fitted.fit(module, SC09Mix(root, batches_per_epoch=2, **options))
    assert not any(map(torch.equal, before, module.parameters()))
    assert fitted.callback_metrics["val/si_sdri"].isfinite()


@pytest.mark.parametrize("name", ["sc09mix_mixcycle", "libri2mix8k_supervised_regression"])
def test_a_run_shorter_than_an_epoch_ends_without_a_validation(name: str, audio_sets: Path) -> None:
    given = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["trainer"]["callbacks"]
    stops = [EarlyStopping(**callback["init_args"]) for callback in given]
    data = SC09Mix(str(audio_sets / "SpeechCommands"), batch_size=4, num_workers=0, num_validation=4)
    fitted = trainer(Path("run"), max_steps=1, callbacks=stops)
    fitted.fit(MixCycle(network().float(), optimizer=adam), data)
    assert fitted.global_step == 1
