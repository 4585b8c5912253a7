"""ESTOI, PESQ and DNSMOS of separated speech. Axes: B batch, K references, M estimates, T samples.

Each needs an optional package and raises ImportError without it. Silence: a pair whose reference is silent is left out
of every metric; a silent estimate has the values below. A pair that cannot be measured is left out with a warning.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality
from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

from surf_lightning.metrics.audio import align, is_active
from surf_lightning.metrics.base import ScoreMean

WIDE_BAND = 16000  # Hz
INSTALL = "pip install surf-lightning[audio]"


class SpeechMetric(ScoreMean):
    """The mean of a score over the pairs of an estimate and its reference that is not silent.

    Raises:
        ImportError: the package is missing or cannot be loaded.
        ValueError: the metric is not defined at this rate.
    """

    package: str
    """What computes the score."""
    only_wide_band = True

    def __init__(self, sample_rate: int = WIDE_BAND, **options: Any) -> None:
        super().__init__(**options)
        if self.only_wide_band and sample_rate != WIDE_BAND:
            name = type(self).__name__
            raise ValueError(f"{name} is defined at {WIDE_BAND} Hz, and this audio is at {sample_rate} Hz")
        try:
            importlib.import_module(self.package)
        except Exception as error:  # an extension built for another numpy fails with more than ImportError
            raise ImportError(f"{error} ({INSTALL})") from error
        self.sample_rate = sample_rate

    @abstractmethod
    def score(self, estimate: Tensor, reference: Tensor) -> float:
        """The score of ``estimate [T]`` for ``reference [T]``, on the CPU; NaN where it cannot be measured."""

    def update(self, estimates: Tensor, references: Tensor) -> None:
        """Count ``estimates [B,M,T]``, in any order, against ``references [B,K,T]``, both in ±1."""
        aligned = align(estimates, references)
        active = is_active(aligned.references)
        pairs = zip(aligned.estimates[active].cpu(), aligned.references[active].cpu(), strict=True)
        scores = torch.tensor([self.score(*pair) for pair in pairs], dtype=torch.float64)
        measured = ~scores.isnan()
        if not measured.all():
            missed = f"{int((~measured).sum())} of {len(scores)} pairs"
            warnings.warn(f"{type(self).__name__} left out {missed}: too short, or no speech found", stacklevel=2)
        self._add(scores.to(self.total.device), measured.to(self.total.device))


class ESTOI(SpeechMetric):
    """Extended short-time objective intelligibility (Jensen and Taal, 2016), at most 1, by torchmetrics and pystoi.

    At any sample rate. A silent estimate scores 0; a reference with less than 30 frames (0.4 s) of speech is left out.
    """

    package = "pystoi"
    only_wide_band = False

    def score(self, estimate: Tensor, reference: Tensor) -> float:
        if estimate.shape[-1] < 0.4 * self.sample_rate:
            return math.nan
        if not is_active(estimate):
            return 0.0
        with _same_numpy_draws(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            pair = estimate[None], reference[None]  # a single signal's score would be rounded to float32
            value = short_time_objective_intelligibility(*pair, self.sample_rate, extended=True).item()
        return math.nan if value == 1e-5 else value  # pystoi's number for a reference that is too short


@contextlib.contextmanager
def _same_numpy_draws() -> Iterator[None]:
    """Make pystoi's dither repeatable: it draws from numpy's global generator, and silence is scored by it."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class PESQ(SpeechMetric):
    """Wide-band PESQ, ITU-T P.862.2 MOS-LQO (about 1 to 4.64), by torchmetrics and pesq, at 16 kHz.

    A silent estimate scores 1, the scale's lowest grade; a pair shorter than 0.25 s, or whose reference has no
    utterance, is left out.
    """

    package = "pesq"

    def score(self, estimate: Tensor, reference: Tensor) -> float:
        from pesq import BufferTooShortError, NoUtterancesError

        if not is_active(estimate):
            return 1.0
        try:
            return perceptual_evaluation_speech_quality(estimate, reference, self.sample_rate, "wb").item()
        except (BufferTooShortError, NoUtterancesError):
            return math.nan


class DNSMOS(SpeechMetric):
    """DNSMOS P.835, overall quality (Reddy et al., 2022), a MOS of 1 to 5 by a network, at 16 kHz.

    The network is ``sig_bak_ovr.onnx``: in ``weights``, laid out as torchmetrics does
    (``weights/DNSMOS/DNSMOS/sig_bak_ovr.onnx``), else as the PyPI package speechmos ships it. Nothing is downloaded. It
    hears the estimates alone, at the level they have; silence has the score the network gives it, about 1.84.
    """

    package = "onnxruntime"
    # Raw output -> MOS, by the DNS Challenge's evaluation; highest power first.
    OVERALL = (-0.06766283, 1.11546468, 0.04602535)
    SECONDS = 9.01

    def __init__(self, sample_rate: int = WIDE_BAND, weights: str | Path | None = None, **options: Any) -> None:
        super().__init__(sample_rate, **options)
        self.weights, self.network = weights, _dnsmos_file(weights)
        try:
            _session(self.network)
        except Exception as error:  # onnxruntime has an error of its own for each kind of damage
            raise RuntimeError(f"{self.network} cannot be loaded: {error}") from error

    def score(self, estimate: Tensor, reference: Tensor) -> float:
        size = int(self.SECONDS * WIDE_BAND)
        audio = estimate.float().numpy()
        while len(audio) < size:
            audio = np.concatenate([audio, audio])
        # One window a second. As in the reference script, those whose end rounds down to one sample short are left out.
        hops = range(max(len(audio) // WIDE_BAND - 9, 1))
        windows = [slice(hop * WIDE_BAND, int((hop + self.SECONDS) * WIDE_BAND)) for hop in hops]
        segments = np.stack([audio[window] for window in windows if window.stop - window.start == size])
        raw = _session(self.network).run(None, {"input_1": segments})[0]
        return float(np.polyval(self.OVERALL, raw[:, 2].astype(np.float64)).mean())


def _dnsmos_file(weights: str | Path | None) -> Path:
    places = [Path(weights).expanduser() / "DNSMOS" / "DNSMOS"] if weights else []
    package = importlib.util.find_spec("speechmos")  # found, not imported: it would import librosa
    if package and package.submodule_search_locations:
        places += [Path(folder) / "dnsmos_models" for folder in package.submodule_search_locations]
    for place in places:
        if (place / "sig_bak_ovr.onnx").is_file():
            return place / "sig_bak_ovr.onnx"
    searched = f"no DNSMOS/DNSMOS/sig_bak_ovr.onnx in {weights} and " if weights else ""
    raise FileNotFoundError(f"{searched}no package speechmos, which has its network ({INSTALL})")


@functools.cache
def _session(network: Path) -> Any:
    """An onnxruntime session on the CPU. Outside the metric, which must stay picklable; with torch's thread count."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
