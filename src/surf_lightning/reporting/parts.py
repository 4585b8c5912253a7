"""The parts of a run's folder, each checked before it is believed: the folder may come from a stranger.

Axes: K sources, M estimates, C H W, T samples.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from surf_lightning.callbacks.results import EXAMPLES
from surf_lightning.files import read_text, read_yaml
from surf_lightning.inference.untrusted import load_tensors
from surf_lightning.metrics.tables import Results

LARGEST = 1e15  # of a number in a table
MAX_VALUES = 100_000_000  # of all examples
KINDS: dict[str, tuple[type, ...]] = {  # of what metrics.json says besides the metrics; None is allowed everywhere
    **dict.fromkeys(("label", "data", "method", "protocol", "evaluation"), (str,)),
    **dict.fromkeys(("hardware", "checkpoint", "version", "commit"), (str,)),
    **dict.fromkeys(("seconds", "steps", "mixtures", "sources", "seed"), (int, float)),
}


def read_config(path: Path) -> str:
    """The text of a config.yaml, known to be one."""
    text = read_text(path)
    if text.strip():
        read_yaml(text)
    return text


def read_results(path: Path) -> Results:
    """A metrics.json; raises ValueError where it is none."""
    results = json.loads(read_text(path))
    if not isinstance(results, dict):
        raise ValueError("it is no object")
    absent = {"metrics", "label", "data"} - {name for name, value in results.items() if value is not None}
    if absent:
        raise ValueError(f"it has no {', '.join(sorted(absent))}")
    results = {name: value for name, value in results.items() if value is not None}
    for name, kinds in KINDS.items():
        if name in results and not (
            isinstance(results[name], kinds) and (isinstance(results[name], str) or _is_number(results[name]))
        ):
            raise ValueError(f"its {name} is {str(results[name])[:40]}")
    mean = results.get("mean_of_samples", {"num_samples": 1, "metrics": {}})
    if not (isinstance(mean, dict) and isinstance(mean.get("num_samples"), int)):
        raise ValueError("its mean_of_samples is not as surf test writes it")
    for metrics in (results["metrics"], results.get("average", {}), mean.get("metrics")):
        if not (isinstance(metrics, dict) and all(value is None or _is_number(value) for value in metrics.values())):
            raise ValueError("its metrics are not all numbers")
    return results


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < LARGEST


def read_examples(path: Path) -> dict[str, Any]:
    """A test_examples.pt, no more examples than a test leaves; raises ValueError where it is none."""
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("kind") not in EXAMPLES:
        raise ValueError("it holds no examples")
    kind = content["kind"]
    signals = {}
    for name in ("mixtures", "sources", "estimates"):
        given = content.get(name)
        if not isinstance(given, list | tuple | Tensor):
            raise ValueError(f"it has no {name}")
        signals[name] = list(given)[: EXAMPLES[kind]]
    for mixture, sources, estimates in zip(*signals.values(), strict=True):
        _check_example(kind, mixture, sources, estimates)
    every = [x for part in signals.values() for x in part]
    if kind == "image" and len({(tuple(x.shape)) for x in signals["sources"]}) > 1:
        raise ValueError("its images are of several sizes")
    if not every or sum(x.numel() for x in every) > MAX_VALUES:
        raise ValueError("it is empty, or too large")
    rate = content.get("sample_rate")
    if kind == "audio" and not (isinstance(rate, int) and 0 < rate <= 10_000_000):
        raise ValueError(f"its sample rate is {str(rate)[:40]}")
    return {**signals, "kind": kind, "sample_rate": rate}


def _check_example(kind: str, mixture: Any, sources: Any, estimates: Any) -> None:
    """``mixture [C,H,W]`` or ``[T]``, its ``sources [K,...]`` and as many or more ``estimates [M,...]``."""
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (mixture, sources, estimates)):
        raise ValueError("its signals are no tensors of floating-point numbers")
    shape = mixture.shape
    if (
        len(shape) != {"image": 3, "audio": 1}[kind]
        or not mixture.numel()
        or (kind == "image" and shape[0] not in (1, 3))
    ):
        raise ValueError(f"a mixture is {list(shape)[:9]}")
    if sources.shape[1:] != shape or estimates.shape[1:] != shape or not 0 < len(sources) <= len(estimates) <= 100:
        raise ValueError("sources and estimates are not of the mixture's shape")
    if kind == "image" and len(sources) != len(estimates):
        raise ValueError("there are not as many estimates as sources")
    if not (mixture.isfinite().all() and sources.isfinite().all()):
        raise ValueError("it holds NaN or infinity")


def read_sound(path: Path, seconds: float) -> tuple[Tensor, int]:
    """The first ``seconds`` of a sound of one channel, ``[T]``, and its rate in Hz; raises ValueError."""
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(min(file.frames, round(seconds * file.samplerate), MAX_VALUES), dtype="float32")
            rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    if samples.ndim != 1 or not samples.size:
        raise ValueError("it is no sound of one channel")
    signal = torch.from_numpy(samples)
    return signal.nan_to_num(0, 0, 0), rate
