"""A trained separator for onnxruntime: graphs of its network, and a numpy script that runs them.

Axes: B batch, K sources, *S the signal, T samples, N frames, J frequency bins.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.exc
import torch.nn.functional as F
from torch import Tensor, nn

from surf_lightning.errors import UserError
from surf_lightning.inference.array_files import scale_of
from surf_lightning.inference.separator import FlowSeparator, Separator
from surf_lightning.networks.stft import STFT, pad_to_hops

SCRIPT = "separate.py"


class ConvolutionalSTFT(nn.Module):
    """``STFT`` in real numbers: ONNX has no complex ones. Two convolutions hold the windowed cosines and sines."""

    analysis: Tensor
    synthesis: Tensor
    energy: Tensor

    def __init__(self, stft: STFT) -> None:
        super().__init__()
        size, window = stft.n_fft, stft.window.double()
        self.n_fft, self.hop = size, stft.hop
        bins, samples = torch.arange(size // 2 + 1.0), torch.arange(float(size))
        angles = 2 * math.pi * (bins[:, None].double() * samples.double() % size) / size
        waves = torch.cat([angles.cos(), -angles.sin()])  # [2J,n_fft]
        weights = torch.full((size // 2 + 1, 1), 2.0 / size, dtype=torch.float64)  # of irfft: a bin stands for two
        weights[[0, -1]] /= 2
        self.register_buffer("analysis", (waves * window).float()[:, None])
        self.register_buffer("synthesis", (weights.repeat(2, 1) * waves * window).float()[:, None])
        self.register_buffer("energy", window.square().float()[None, None])

    def forward(self, signals: Tensor) -> Tensor:
        """As ``STFT.forward``: ``signals [*,T]`` to spectra ``[*,N,J,2]``."""
        rows = pad_to_hops(signals.flatten(0, -2), self.hop)[:, None]
        spectrum = F.conv1d(rows, self.analysis, stride=self.hop, padding=self.n_fft // 2)
        return spectrum.unflatten(1, (2, -1)).movedim((3, 2, 1), (1, 2, 3)).unflatten(0, signals.shape[:-1])

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """As ``STFT.inverse``: ``spectrum [*,N,J,2]`` to signals ``[*,length]``."""
        rows = spectrum.flatten(0, -4).movedim((3, 2, 1), (1, 2, 3)).flatten(1, 2)
        signals = F.conv_transpose1d(rows, self.synthesis, stride=self.hop)
        energy = F.conv_transpose1d(torch.ones_like(rows[:1, :1]), self.energy, stride=self.hop)
        inside = (signals / energy)[:, 0, self.n_fft // 2 :][:, :length]
        return inside.unflatten(0, spectrum.shape[:-3])


class Prior(nn.Module):
    """x0 of a flow from mixtures and standard normal noise."""

    def __init__(self, separator: FlowSeparator) -> None:
        super().__init__()
        self.separator = separator

    def forward(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        return self.separator.prior(mixtures, self.separator.sampling_noise * noise)


def write_onnx(separator: Separator, signal: dict[str, Any], folder: Path) -> list[str]:
    """Write the graphs of ``separator`` and the script that runs them to ``folder``.

    A regression is one graph, ``separator.onnx``. A flow is two, ``prior.onnx`` and ``velocity.onnx``: the script
    takes the Euler steps. Batch and length are free; images keep the shape that they were trained on.

    Returns:
        The names of the files.

    Raises:
        UserError: a library is missing, or the network holds what ONNX has no operator for.
    """
    separator = _in_real_numbers(copy.deepcopy(separator).float().eval())
    is_audio = signal["kind"] == "audio"
    mixtures = torch.randn(3, *([signal["sample_rate"] + 1] if is_audio else signal["shape"]))
    rows = torch.randn(3, separator.num_sources, *mixtures.shape[1:])
    if isinstance(separator, FlowSeparator):
        times = torch.full((3,), 0.5)
        _graph(folder / "prior.onnx", Prior(separator), {"mixtures": mixtures, "noise": rows}, is_audio)
        _graph(folder / "velocity.onnx", separator.network, {"x_t": rows, "t": times, "mixtures": mixtures}, is_audio)
        loop = FLOW.format(sources=separator.num_sources, steps=separator.num_steps)
        names = ["prior.onnx", "velocity.onnx"]
    else:
        _graph(folder / "separator.onnx", separator, {"mixtures": mixtures}, is_audio)
        loop, names = REGRESSION, ["separator.onnx"]
    if is_audio:
        files = AUDIO.format(rate=signal["sample_rate"])
    else:
        array, picture = (scale_of(signal, name, separator.num_sources) for name in (".npy", ".png"))
        files = IMAGES.format(sources=separator.num_sources, array=array, picture=picture)
    (folder / SCRIPT).write_text(HEAD + loop + files, encoding="utf-8")
    return [*names, SCRIPT]


def _in_real_numbers(separator: Separator) -> Separator:
    for module in list(separator.modules()):
        for name, child in module.named_children():
            if isinstance(child, STFT):
                setattr(module, name, ConvolutionalSTFT(child))
    return separator


def _graph(path: Path, module: nn.Module, inputs: dict[str, Tensor], is_audio: bool) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=16)
    free = {name: {0: batch, **({x.ndim - 1: length} if is_audio and x.ndim > 1 else {})} for name, x in inputs.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module(**inputs)  # makes the tables that are made once: they are constants of the graph
            # Guards would tie a free length to what holds for the example's: that it is no whole number of hops.
            options: Any = {"prefer_deferred_runtime_asserts_over_guards": True}
            program = torch.export.export(module, (), inputs, dynamic_shapes=free, **options)
            # Its optimizer takes the addition of 1e-8 for one of zero and drops it: onnxruntime optimizes by itself.
            torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False, optimize=False)
    except ImportError as error:
        raise UserError(f"{error}: pip install 'surf-lightning[onnx]'") from error
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.UserError) as error:
        raise UserError(f"{type(module).__name__} cannot be written as ONNX: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    return f"it has no operator for {missing[1]}" if missing else str(error).partition("\n")[0]


HEAD = '''\
"""Separate mixtures by onnxruntime, without PyTorch: python separate.py MIXTURE. B batch, K sources, *S signal."""

import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession


def load(name):
    return InferenceSession(Path(__file__).with_name(name), providers=["CPUExecutionProvider"])


'''
REGRESSION = '''\
def separate(mixtures, seed=0):
    """Sums of sources [B,*S], float32, to estimates [B,K,*S]; nothing is random."""
    return load("separator.onnx").run(None, {"mixtures": mixtures})[0]
'''
FLOW = '''\
def separate(mixtures, seed=0, steps={steps}):
    """Sums of sources [B,*S], float32, to a sample of the sources [B,{sources},*S], by Euler steps."""
    noise = np.random.default_rng(seed).standard_normal((len(mixtures), {sources}, *mixtures.shape[1:]), np.float32)
    return solve(mixtures, noise, steps)


def solve(mixtures, noise, steps={steps}):
    velocity = load("velocity.onnx")
    x = load("prior.onnx").run(None, {{"mixtures": mixtures, "noise": noise}})[0]
    for step in range(steps):
        t = np.full(len(x), step / steps, np.float32)
        x = x + velocity.run(None, {{"x_t": x, "t": t, "mixtures": mixtures}})[0] / np.float32(steps)
    return x
'''
AUDIO = """

if __name__ == "__main__":
    import soundfile

    mixture, rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
    assert rate == {rate}, f"the network was trained at {rate} Hz, the file has {{rate}} Hz: resample it"
    for channel, sources in enumerate(separate(np.ascontiguousarray(mixture.T))):
        for k, source in enumerate(sources):
            soundfile.write(f"{{Path(sys.argv[1]).stem}}_channel{{channel + 1}}_source{{k + 1}}.wav", source, rate)
"""
IMAGES = """

if __name__ == "__main__":
    path = Path(sys.argv[1])
    if path.suffix == ".npy":  # the sum of the sources
        image, (center, half), share = np.load(path), {array}, {sources}
    else:  # their average
        from PIL import Image

        assert path.suffix == ".png", f"{{path}} is neither .npy nor .png"
        image, (center, half), share = np.moveaxis(np.atleast_3d(Image.open(path)), -1, 0), {picture}, 1
    image = (np.float32(image) - center) / half
    for k, source in enumerate(separate({sources} * image.reshape(1, -1, *image.shape[-2:]))[0]):
        values, name = (source * half + center) / share, f"{{path.stem}}_source{{k + 1}}{{path.suffix}}"
        if path.suffix == ".npy":
            np.save(name, values.reshape(image.shape))
        else:
            Image.fromarray(np.moveaxis(np.uint8(np.rint(values.clip(0, 255))), 0, -1).squeeze()).save(name)
"""
