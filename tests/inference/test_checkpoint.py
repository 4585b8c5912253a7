"""What a checkpoint says, and what reading and writing one can and cannot do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from surf_lightning import __version__
from surf_lightning.engine.checkpoint_io import AtomicCheckpointIO
from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import (
    KEY,
    check_fits,
    describe,
    read_checkpoint,
    rebuild,
)
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator
from surf_lightning.networks import ConstantNoise, ConvTasNet, LogSigma, SourceHead, VelocityConvTasNet
from tests.tiny import regression, velocity

NETWORKS = "surf_lightning.networks"
OUTSIDE = """
from pathlib import Path
from torch import nn
from surf_lightning.networks import serializable

Path("imported").touch()

@serializable
class Mine(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = size
"""


class Touch:
    """Unpickling it creates a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def saved(content: Any, path: str = "some.ckpt") -> str:
    torch.save(content, path)
    return path


def valid() -> dict[str, Any]:
    separator = RegressionSeparator(regression(), 2)
    state = {f"separator.{name}": value for name, value in separator.state_dict().items()}
    record = {"version": __version__, "method": "surf_lightning.methods.mixit.MixIT", "separator": describe(separator)}
    record["signal"] = {"kind": "image", "shape": [1, 8, 8]}
    return {KEY: record, "state_dict": state | {"student.x": torch.zeros(1)}}


# -- descriptions --


def test_a_nested_separator_is_rebuilt_from_plain_values() -> None:
    network = velocity(head=SourceHead(), time=LogSigma(0.1, 0.4), channels=8)
    separator = FlowSeparator(network, num_steps=3, noise=ConstantNoise(0.5))
    description = describe(separator)
    twin = rebuild(json.loads(json.dumps(description)))
    assert describe(twin) == description
    twin.load_state_dict(separator.state_dict())
    mixtures = torch.randn(2, 1, 8, 8)
    found, expected = (s.separate(mixtures, torch.Generator().manual_seed(0)) for s in (twin, separator))
    assert torch.equal(found, expected)
    assert (twin.num_steps, twin.noise.scale, twin.network.time.log_max) == (3, 0.5, LogSigma(0.1, 0.4).log_max)


def test_an_argument_that_is_no_plain_value_is_refused_when_written() -> None:
    network = velocity()
    network.init_args["head"] = torch.zeros(1)
    with pytest.raises(UserError, match="plain value"):
        describe(network)


def test_a_class_from_outside_is_imported_only_when_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("an_outside_module.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(Path.cwd())
    description = {"class_path": "an_outside_module.Mine", "init_args": {"size": 7}}
    with pytest.raises(UserError, match=r"an_outside_module\.Mine, from outside surf_lightning.*trust=True"):
        rebuild(description)
    nested = {"class_path": "surf_lightning.inference.separator.FlowSeparator", "init_args": {"network": [description]}}
    with pytest.raises(UserError, match="an_outside_module"):
        rebuild(nested)
    assert not Path("imported").exists()
    mine = rebuild(description, trust=True)
    assert mine.size == 7
    assert describe(mine) == description


@pytest.mark.parametrize("path", ["surf_lightning.networks.NoSuch", "surf_lightning.no_such.Network", "surf_lightning"])
def test_a_class_that_does_not_exist_is_named(path: str) -> None:
    with pytest.raises(UserError, match=path.rpartition(".")[2]):
        rebuild({"class_path": path, "init_args": {}})


# -- reading --


@pytest.mark.parametrize("unsafe", [None, False, True])
def test_code_in_a_checkpoint_is_not_run(unsafe: bool | None) -> None:
    path = saved(valid() | {"callbacks": Touch()})
    with pytest.raises(UserError, match=r"some\.ckpt holds code \(.*\), which is not run: .* has not written it$"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="holds code"):
        AtomicCheckpointIO(Path()).load_checkpoint(path, weights_only=unsafe)
    assert not Path("executed").exists()
    torch.load(path, weights_only=False)
    assert Path("executed").exists()  # it would have run


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_a_truncated_checkpoint_is_refused(kept: int) -> None:
    path = Path(saved(valid()))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"^some\.ckpt is no checkpoint, or a damaged one$"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"hello\n", b"", b"seed_everything: 0\n", b"PK\x03\x04 and no zip", random.Random(0).randbytes(999)]
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(content: bytes) -> None:
    Path("a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"^a\.ckpt is no checkpoint, or a damaged one$"):
        read_checkpoint("a.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, [1], torch.zeros(3)])
def test_another_programs_checkpoint_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match="was not written by surf_lightning"):
        read_checkpoint(saved(content))


@pytest.mark.parametrize("path", ["missing.ckpt", "."])
def test_a_missing_checkpoint_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(path)


def test_a_mistyped_checkpoint_is_answered_with_those_that_are_there() -> None:
    last = Path("runs/digits_mixit/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.touch()
    for given in (last.parent / "best.ckpt", last.parent.parent, "runs/digits_mixit/last.ckpt"):
        with pytest.raises(UserError, match=f"there is no checkpoint {given}; there is {last}."):
            read_checkpoint(given)
    with pytest.raises(UserError, match=rf"did you mean {last}\\?"):
        read_checkpoint("runs/digit_mixit/checkpoints/last.ckpt")


def test_what_differs_from_the_network_of_a_checkpoint_is_named() -> None:
    checkpoint = valid()
    check_fits(checkpoint, RegressionSeparator(regression(), 2))
    check_fits(checkpoint, RegressionSeparator(regression(dropout=0.5), 2))  # the weights are alike
    with pytest.raises(UserError, match=r"of another network: network\.channels is 4 there, 8 here$"):
        check_fits(checkpoint, RegressionSeparator(regression(channels=8), 2))
    with pytest.raises(UserError, match=r"class is .*RegressionSeparator there, .*FlowSeparator here;"):
        check_fits(checkpoint, FlowSeparator(velocity()))


@pytest.mark.parametrize("consistency", [None, {"class_path": f"{NETWORKS}.PredictedSourceWeights", "init_args": {}}])
def test_a_conv_tasnet_of_an_earlier_version_loads(consistency: Any) -> None:
    """Its module and one of its arguments are gone."""
    arguments: dict[str, Any] = {"filters": 8, "bottleneck": 8, "hidden": 8, "repeats": 1, "blocks": 1}
    flow = {"class_path": f"{NETWORKS}.velocity_conv_tasnet.VelocityConvTasNet"}
    assert isinstance(rebuild({**flow, "init_args": {"num_sources": 2, **arguments}}), VelocityConvTasNet)
    recorded = {"num_outputs": 3, "num_sources": 2, **arguments, "consistency": consistency}
    network = rebuild({"class_path": f"{NETWORKS}.conv_tasnet.ConvTasNet", "init_args": recorded})
    assert isinstance(network, ConvTasNet)
    assert {"consistency.linear.weight", "consistency.linear.bias"} <= set(network.state_dict())
