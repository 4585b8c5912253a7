"""Separated audio to listen to: what each run makes of the same mixtures. Axes: K sources, T samples."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import soundfile
import torch
from torch import Tensor

from surf_lightning.metrics.audio import align_by_si_sdr, is_active
from surf_lightning.reporting.figures import levels, spectrogram
from surf_lightning.reporting.runs import Run, names_of

SECONDS = 10
PEAK = 0.99


@dataclass(frozen=True)
class Sound:
    """A recording as a FLAC file, and its spectrogram as a png file."""

    flac: bytes
    png: bytes


@dataclass(frozen=True)
class SoundExample:
    """The mixture, and by method its sources: the truth and what each run found, in the same order."""

    mixture: Sound
    rows: dict[str, list[Sound]]


def sound_examples(runs: Sequence[Run]) -> list[SoundExample]:
    """``runs`` have the same mixtures. Sources that are silent are left out; sounds last 10 s at most."""
    first = runs[0].examples
    rate = int(first["sample_rate"])
    found = []
    for number, (mixture, sources) in enumerate(zip(first["mixtures"], first["sources"], strict=True)):
        truth = sources[is_active(sources)]
        rows = {"truth": truth}
        for name, run in zip(names_of(runs), runs, strict=True):
            estimates = run.examples["estimates"][number]
            if estimates.isfinite().all():  # a separator that has diverged has nothing to listen to
                rows[name] = align_by_si_sdr(estimates[None].float(), truth[None].float())[0]
        found.append(_example(mixture, rows, rate))
    return found


def _example(mixture: Tensor, rows: dict[str, Tensor], rate: int) -> SoundExample:
    """All at one gain and one scale of colours, so that they can be compared."""
    rows = {name: signals[:, : SECONDS * rate] for name, signals in rows.items()}
    mixture = mixture[: SECONDS * rate]
    peak = max(float(signals.abs().max()) for signals in [mixture, *rows.values()])
    gain, loudest = min(1.0, PEAK / peak), float(levels(mixture).max())

    def sound(signal: Tensor) -> Sound:
        file = io.BytesIO()
        soundfile.write(file, (signal * gain).numpy(), rate, format="FLAC", subtype="PCM_16")
        return Sound(file.getvalue(), spectrogram(signal, loudest))

    return SoundExample(sound(mixture), {name: [sound(signal) for signal in signals] for name, signals in rows.items()})


def validation_examples(run: Run) -> list[SoundExample]:
    """The mixtures that the latest validation of ``run`` left to listen to, as it separated them."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    rate = 0
    for path in run.media:
        if name := re.fullmatch(r"step_\d+_(\d+)_([a-z]+)\d*", path.stem):
            samples, rate = soundfile.read(path, dtype="float32")
            found.setdefault(name[1], {}).setdefault(name[2], []).append(torch.from_numpy(samples))
    examples = []
    for kept in found.values():
        (mixture,) = kept.pop("mixture")
        names = {"reference": "truth", "estimate": run.label}
        rows = {names[kind]: torch.stack(signals) for kind, signals in reversed(kept.items())}  # they came by name
        examples.append(_example(mixture, rows, rate))
    return examples
