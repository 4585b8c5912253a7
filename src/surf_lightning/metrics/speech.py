"""ESTOI, PESQ and DNSMOS of separated speech. Axes: B batch, K references, M estimates, T samples.

Each needs an optional package. Where it is missing the metric still exists: ``unavailable`` says why, and its value is
NaN. Silence: a pair whose reference is silent is left out of every metric; a silent estimate has the values below. A
pair that a metric cannot measure is left out with a warning.
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
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality
from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility
from torchmetrics.utilities import rank_zero_warn

from surf_lightning.metrics.audio import SISDR, PairMean, SISDRi, align, is_active
from surf_lightning.metrics.availability import INSTALL, not_available, why_not_importable

WIDE_BAND = 16000  # Hz


class SpeechMetric(PairMean):
    """The mean of a score over the pairs of an estimate and its reference that is not silent."""

    def __init__(self, sample_rate: int = WIDE_BAND, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.unavailable = self.why_unavailable()
        if self.unavailable:
            rank_zero_warn(f"{type(self).__name__} is {self.unavailable}")

    @abstractmethod
    def why_unavailable(self) -> str | None:
        """None, or the words of ``availability.not_available``."""

    @abstractmethod
    def score(self, estimate: Tensor, reference: Tensor) -> float:
        """The score of ``estimate [T]`` for ``reference [T]``, on the CPU; NaN where it cannot be measured."""

    def update(self, estimates: Tensor, references: Tensor) -> None:
        """Count ``estimates [B,M,T]``, in any order, against ``references [B,K,T]``, both in ±1."""
        if self.unavailable:
            return
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

    def why_unavailable(self) -> str | None:
        return why_not_importable("pystoi")

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
    """pystoi dithers with numpy's global generator, and digital silence is scored by those draws: make them alike."""
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

    def why_unavailable(self) -> str | None:
        return _why_not_wide_band(self.sample_rate) or why_not_importable("pesq")

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

    Args:
        weights: the folder described above.
    """

    # Raw output -> MOS of the DNS Challenge's evaluation, highest power first.
    OVERALL = (-0.06766283, 1.11546468, 0.04602535)
    SECONDS = 9.01

    def __init__(self, sample_rate: int = WIDE_BAND, weights: str | Path | None = None, **kwargs: Any) -> None:
        self.network = _dnsmos_file(weights)
        self.weights = weights
        super().__init__(sample_rate, **kwargs)

    def why_unavailable(self) -> str | None:
        reason = _why_not_wide_band(self.sample_rate) or why_not_importable("onnxruntime")
        if reason:
            return reason
        if self.network is None:
            searched = f"no DNSMOS/DNSMOS/sig_bak_ovr.onnx in {self.weights} and " if self.weights else ""
            return not_available(f"{searched}no package speechmos, which has its network ({INSTALL})")
        try:
            _session(self.network)
        except Exception as error:  # onnxruntime's own, one for each way of being no network
            return not_available(f"{self.network} cannot be loaded: {error}")
        return None

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


def _why_not_wide_band(sample_rate: int) -> str | None:
    if sample_rate == WIDE_BAND:
        return None
    return not_available(f"it is defined at {WIDE_BAND} Hz, and this audio is at {sample_rate} Hz")


def _dnsmos_file(weights: str | Path | None) -> Path | None:
    places = [Path(weights).expanduser() / "DNSMOS" / "DNSMOS"] if weights else []
    package = importlib.util.find_spec("speechmos")  # found, not imported: it would import librosa
    if package and package.submodule_search_locations:
        places += [Path(folder) / "dnsmos_models" for folder in package.submodule_search_locations]
    return next((place / "sig_bak_ovr.onnx" for place in places if (place / "sig_bak_ovr.onnx").is_file()), None)


@functools.cache
def _session(network: Path) -> Any:
    """An onnxruntime session on the CPU. Outside the metric, which must stay picklable; with torch's thread count."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])


def speech_metrics(sample_rate: int = WIDE_BAND, weights: str | Path | None = None) -> MetricCollection:
    """The audio columns of Tables 3 and 4, and SI-SDRi.

    ``update(estimates=[B,M,T], references=[B,K,T], mixtures=[B,T])`` hands each metric what it takes; a column that
    cannot be computed is NaN, and its metric's ``unavailable`` says why.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "SI-SDR": SISDR(),
        "SI-SDRi": SISDRi(),
        "ESTOI": ESTOI(sample_rate),
        "PESQ": PESQ(sample_rate),
        "DNSMOS": DNSMOS(sample_rate, weights),
    }
    # Compute groups would share one state among metrics whose first batch happened to agree, two unavailable ones too.
    return MetricCollection(metrics, compute_groups=False)
