"""ONNX graphs against PyTorch, through the script that is written beside them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from surf_lightning.cli import main
from surf_lightning.errors import UserError
from surf_lightning.inference import onnx
from surf_lightning.inference.array_files import read_array
from surf_lightning.inference.onnx import ConvolutionalSTFT, write_onnx
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator
from surf_lightning.networks.base import EnvelopeNoise, RegressionNetwork
from surf_lightning.networks.conv_tasnet import ConvTasNet, VelocityConvTasNet
from surf_lightning.networks.locoformer import MBLocoformer, RegressionLocoformer
from surf_lightning.networks.stft import STFT
from surf_lightning.networks.stft_conv_tasnet import STFTConvTasNet, VelocitySTFTConvTasNet
from tests.inference.test_separate import AUDIO, Halves, save, separate
from tests.tiny import perturbed, regression, velocity

SMALL: dict[str, Any] = {"filters": 8, "frame": 8, "hop": 4, "bottleneck": 4, "hidden": 8, "repeats": 1, "blocks": 1}
SPECTRAL: dict[str, Any] = {"bottleneck": 4, "hidden": 8, "repeats": 1, "blocks": 1}
TOKENS: dict[str, Any] = {"features": 8, "attention": 8, "heads": 2, "hidden": 8, "blocks": 1, "mel_bands": 8}
TOKENS |= {"n_fft": 64, "hop": 32, "sample_rate": 8000}
IMAGES = {"kind": "image", "shape": [1, 8, 8]}


def script(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("separate", folder / "separate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(separator: Separator, folder: Path, *shapes: tuple[int, ...], atol: float = 1e-5) -> None:
    runs = script(folder)
    for batch, *shape in shapes:
        mixtures, noise = torch.randn(batch, *shape), torch.randn(batch, separator.num_sources, *shape)
        mixtures[..., shape[-1] // 2 :] = 0  # what is added to a divisor must have come along
        if hasattr(runs, "solve"):
            found = runs.solve(mixtures.numpy(), noise.numpy())
        else:
            found = runs.separate(mixtures.numpy())
        torch.testing.assert_close(torch.from_numpy(found), separator.separate_from(mixtures, noise), atol=atol, rtol=0)


@pytest.mark.slow
def test_a_flow_on_audio_of_any_length() -> None:
    flow = FlowSeparator(perturbed(VelocityConvTasNet(2, **SMALL)), 3, EnvelopeNoise(8000), 0.5).eval()
    save(flow, AUDIO)
    assert main(["export", "--checkpoint", "a.ckpt", "--output", "model", "--onnx"]) == 0
    check(flow, Path("model"), (1, 801), (3, 1200))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("separator", "signal", "shapes"),
    [
        (RegressionSeparator(perturbed(ConvTasNet(4, 2, **SMALL)), 2), AUDIO, [(1, 801), (3, 1200)]),
        (RegressionSeparator(perturbed(ConvTasNet(4, 2, **SMALL)), 2, "merged"), AUDIO, [(1, 801), (3, 1200)]),
        (RegressionSeparator(perturbed(STFTConvTasNet(2, 64, 16, **SPECTRAL)), 2), AUDIO, [(1, 801), (3, 1200)]),
        (FlowSeparator(perturbed(VelocitySTFTConvTasNet(2, 64, 16, **SPECTRAL)), 2), AUDIO, [(1, 801), (3, 1200)]),
        (RegressionSeparator(regression(4), 2), IMAGES, [(1, 1, 8, 8), (5, 1, 8, 8)]),
        (FlowSeparator(velocity(), 3), IMAGES, [(1, 1, 8, 8), (5, 1, 8, 8)]),
    ],
    ids=["loudest", "merged", "spectra", "a flow of spectra", "images", "a flow of images"],
)
def test_each_kind(separator: Separator, signal: dict[str, Any], shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    write_onnx(separator.eval(), signal, tmp_path)
    check(separator, tmp_path, *shapes)


@pytest.mark.parametrize("values", [None, [100.0, 300.0]])
@pytest.mark.parametrize("shape", [[1, 6, 5], [3, 6, 5]])
@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_the_script_maps_the_values_of_a_file_as_surf_separate_does(
    values: list[float] | None, shape: list[int], suffix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    signal = {"kind": "image", "shape": shape, **({"values": values} if values else {})}
    separator = RegressionSeparator(Halves(0.7), 2)
    save(separator, signal)
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save("a.npy", array.squeeze())
    Image.fromarray(np.moveaxis(array, 0, -1).squeeze()).save("a.png")
    assert separate(f"a{suffix}") == 0

    monkeypatch.setattr(onnx, "_graph", lambda *_: None)
    write_onnx(separator, signal, tmp_path)
    text, call = (tmp_path / "separate.py").read_text(), 'load("separator.onnx").run(None, {"mixtures": mixtures})[0]'
    assert call in text
    monkeypatch.setattr("sys.argv", ["separate.py", f"a{suffix}"])
    network = lambda mixtures: separator(torch.from_numpy(mixtures)).detach().numpy()  # noqa: E731
    exec(text.replace(call, "network(mixtures)"), {"__name__": "__main__", "network": network})
    atol = 1.0 if suffix == ".png" else 1e-4  # where a source is 0, a pixel is 127.5, and rounded to either side
    for name in (f"a_source1{suffix}", f"a_source2{suffix}"):
        np.testing.assert_allclose(read_array(Path(name)), read_array(Path("out", name)), rtol=1e-5, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    "separator",
    [
        RegressionSeparator(perturbed(RegressionLocoformer(3, 2, **TOKENS)), 2),
        FlowSeparator(perturbed(MBLocoformer(2, **TOKENS)), 2),
    ],
    ids=["regression", "flow"],
)
def test_compressed_spectra(separator: Separator, tmp_path: Path) -> None:
    write_onnx(separator.eval(), AUDIO, tmp_path)
    # The compression raises the rounding errors of all but silent bins, up to 500 times.
    check(separator, tmp_path, (1, 801), (3, 1200), atol=1e-4)


class Bessel(RegressionNetwork):
    """ONNX has no Bessel functions."""

    num_outputs = 2

    def forward(self, mixtures: Tensor) -> Tensor:
        return torch.stack([torch.special.bessel_j0(mixtures)] * 2, 1)


@pytest.mark.slow
def test_a_network_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RegressionSeparator cannot be written as ONNX"):
        write_onnx(RegressionSeparator(Bessel(), 2).eval(), AUDIO, tmp_path)


@pytest.mark.parametrize(("n_fft", "hop", "length"), [(64, 16, 1001), (32, 8, 20), (16, 8, 64)])
def test_the_transform_by_convolutions_is_the_transform(n_fft: int, hop: int, length: int) -> None:
    stft, signals = STFT(n_fft, hop), torch.randn(2, 3, length)
    convolutions = ConvolutionalSTFT(stft)
    spectra = stft(signals)
    torch.testing.assert_close(convolutions(signals), spectra, atol=1e-5, rtol=0)
    torch.testing.assert_close(convolutions.inverse(spectra, length), stft.inverse(spectra, length), atol=1e-5, rtol=0)
