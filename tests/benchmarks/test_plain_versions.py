"""What the benchmarks compare with computes the same. Axes: B batch, M outputs, N C H W, T samples."""

from __future__ import annotations

from pathlib import Path

import assignment
import blocks
import loaders
import pytest
import resampling
import scipy.signal
import torch
from torch import Tensor, nn

from surf_lightning.data import Folder
from surf_lightning.networks.image_layers import FIRDown, FIRResample, FIRUp
from tests.tiny import velocity

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]).double()


def along_both_axes(x: Tensor, up: int, down: int, gain: float) -> Tensor:
    """scipy's upfirdn of ``x [H,W]``, zeros outside, with the separable kernel."""
    taps = gain * TAPS / 8
    for axis in (0, 1):
        rows = scipy.signal.upfirdn(taps.numpy(), x.numpy(), up, 1, axis=axis)
        x = torch.from_numpy(rows)
    return x


def test_upfirdn_is_that_of_scipy() -> None:
    x = torch.randn(1, 1, 6, 8).double()
    kernel = torch.outer(TAPS, TAPS)[None, None] / 64
    filtered = along_both_axes(x[0, 0], 1, 1, 1.0)  # full: 3 samples longer in each axis
    torch.testing.assert_close(resampling.upfirdn(x, kernel, 1, 2, (1, 1))[0, 0], filtered[2:-2:2, 2:-2:2])
    raised = along_both_axes(x[0, 0], 2, 1, 2.0)
    torch.testing.assert_close(resampling.upfirdn(x, 4 * kernel, 2, 1, (2, 1))[0, 0], raised[1:-1, 1:-1])


@pytest.mark.parametrize(("ours", "plain"), [(FIRDown, resampling.PlainDown), (FIRUp, resampling.PlainUp)])
def test_plain_resampling_is_ours(ours: type[nn.Module], plain: type[nn.Module]) -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(plain()(x), ours()(x))


def test_every_resampler_of_a_network_is_replaced() -> None:
    network = velocity(multipliers=[1, 1])
    plain = resampling.with_plain_resampling(network)
    kinds = {type(module) for module in plain.modules() if isinstance(module, FIRResample)}
    assert kinds == {resampling.PlainDown, resampling.PlainUp}
    assert not any(type(module) in kinds for module in network.modules())
    x = torch.randn(2, 2, 1, 8, 8)
    torch.testing.assert_close(
        plain(x, torch.rand(2).fill_(0.3), x.sum(1)), network(x, torch.full((2,), 0.3), x.sum(1))
    )


def test_enumeration_gives_our_loss_and_gradient() -> None:
    signals, pairs = torch.randn(3, 4, 50).requires_grad_(), torch.randn(3, 2, 50)
    gradients = []
    for loss in (assignment.our_mixit, assignment.plain_mixit):
        assignment.with_gradient(loss, signals, pairs)
        gradients.append(signals.grad)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(assignment.our_mixit(signals, pairs), assignment.plain_mixit(signals, pairs))


def test_asteroid_gives_our_loss() -> None:
    pytest.importorskip("asteroid.losses")
    signals, pairs = torch.randn(3, 4, 50), torch.randn(3, 2, 50)
    torch.testing.assert_close(assignment.asteroid_mixit()(signals, pairs), assignment.our_mixit(signals, pairs))


def test_whole_files_cut_are_our_crops(tmp_path: Path) -> None:
    kind = loaders.Kind("flac", 44_100, 2, 12, 2)
    assert kind.label == "12 s of flac, 44.1 kHz, stereo"
    loaders.write(tmp_path / "files", kind)
    examples = Folder(str(tmp_path / "files"), sample_rate=16_000).recordings
    assert len(examples) == 2
    for example, start in loaders.crops(examples, 3):
        expected = loaders.whole_then_cut(examples.path(example), start, 16_000)
        assert expected.abs().max() > 0.05
        torch.testing.assert_close(examples.read(example, start, 16_000)[0], expected, atol=1e-5, rtol=0)


def test_plain_blocks_compute_what_ours_do() -> None:
    for _, block, ours, plain, x in blocks.cases(small=True):
        blocks.perturb(block)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)
