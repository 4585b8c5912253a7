"""When each source of a recording is active, and in which band. Axes: C channels, K sources, n samples, J frames, F."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.files import replacing

FRAME = 0.05  # seconds
RANGE = 30.0  # dB below its own loudest frames (the 99th percentile) down to which a source is active
SHARE = 0.03  # of the frame's energy over all sources that an active one has: less is what leaks from the others
PAUSE = 0.25  # seconds of silence that do not end an event
ENERGY = (0.05, 0.95)  # shares of a frame's energy below the ends of its band
LOUD = 10.0  # dB below an event's loudest frame down to which frames tell its band


@dataclass(frozen=True)
class Event:
    """A stretch in which a source is active, on the recording's own clock."""

    source: int
    begin: float
    end: float
    low: float
    high: float
    level: float


class EventDetector:
    """Takes the chunks of a separated recording, keeps three numbers a frame and source, and finds the events.

    Args:
        rate: of the chunks, in Hz.
        num_sources: K.
    """

    def __init__(self, rate: int, num_sources: int) -> None:
        self.rate, self.size = rate, max(16, round(FRAME * rate))
        self.held = torch.zeros(1, num_sources, 0, dtype=torch.float64)
        self.frames: list[Tensor] = []  # [J,K,3]: mean square; low and high end of the band in Hz
        self.total = 0

    def add(self, estimates: Tensor) -> None:
        """The next ``estimates [C,K,n]``."""
        self.total += estimates.shape[-1]
        held = estimates if not self.held.shape[-1] else torch.cat([self.held, estimates], -1)
        whole = held.shape[-1] // self.size * self.size
        self.held = held[..., whole:]
        if whole:
            self.frames.append(self._measure(held[..., :whole].unflatten(-1, (-1, self.size))))

    def finish(self) -> list[Event]:
        """The events in order of their beginnings."""
        if self.held.shape[-1]:
            rest = torch.nn.functional.pad(self.held, (0, self.size - self.held.shape[-1]))
            self.frames.append(self._measure(rest[:, :, None]))
        if not self.frames:
            return []
        frames = torch.cat(self.frames)
        power = frames[..., 0]
        share = power / power.sum(1, keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        events = []
        for k in range(power.shape[1]):
            loud = power[:, k].quantile(0.99)
            active = (power[:, k] > loud * 10 ** (-RANGE / 10)) & (share[:, k] > SHARE)
            events += [self._event(k, first, last, frames[first:last, k]) for first, last in stretches(active)]
        return sorted(events, key=lambda event: (event.begin, event.source))

    def _measure(self, frames: Tensor) -> Tensor:
        """``[C,K,J,size] -> [J,K,3]``: mean square, and the ends of the band that holds 90% of it."""
        window = torch.hann_window(self.size, periodic=False, dtype=torch.float32)
        spectrum = torch.fft.rfft(frames.float() * window).abs().square().mean(0)  # [K,J,F]
        below = spectrum.cumsum(-1) / spectrum.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        low, high = ((below < share).sum(-1) * self.rate / self.size for share in ENERGY)
        power = frames.square().mean((0, 3))
        return torch.stack([power.float(), low.float(), high.float().clamp_max(self.rate / 2)], -1).transpose(0, 1)

    def _event(self, source: int, first: int, last: int, frames: Tensor) -> Event:
        power = frames[:, 0]
        telling = frames[power >= power.max() * 10 ** (-LOUD / 10)]
        begin, end = first * self.size / self.rate, min(last * self.size, self.total) / self.rate
        low, high = float(telling[:, 1].min()), float(telling[:, 2].max())
        level = 10 * float(power.mean().log10())
        return Event(source + 1, *(round(value, 3) for value in (begin, end, low, high, level)))


def stretches(active: Tensor) -> Iterator[tuple[int, int]]:
    """First and last frame (not included) of each stretch of ``active [J]``, shorter pauses than ``PAUSE`` bridged."""
    frames = active.nonzero()[:, 0]
    if not len(frames):
        return
    cuts = (frames.diff() > round(PAUSE / FRAME) + 1).nonzero()[:, 0] + 1
    for part in frames.tensor_split(cuts):
        yield int(part[0]), int(part[-1]) + 1


# -- files for other programs --


def write_raven(file: TextIO, events: list[Event], recording: Path) -> None:
    """A selection table of Raven."""
    columns = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow([*columns, "Begin File", "Annotation"])
    for number, event in enumerate(events, 1):
        ends = (event.begin, event.end, event.low, event.high)
        table.writerow([number, "Spectrogram 1", 1, *ends, recording.name, f"source{event.source}"])


def write_audacity(file: TextIO, events: list[Event], recording: Path) -> None:
    """A label track of Audacity with frequencies: begin, end, label; then a backslash, low, high."""
    for event in events:
        file.write(f"{event.begin:.6f}\t{event.end:.6f}\tsource{event.source}\n")
        file.write(f"\\\t{event.low:.6f}\t{event.high:.6f}\n")


def write_csv(file: TextIO, events: list[Event], recording: Path) -> None:
    """A row an event, seconds, Hz and dB below full scale."""
    table = csv.writer(file)
    table.writerow(["recording", *(field.name for field in fields(Event))])
    table.writerows([recording, *asdict(event).values()] for event in events)


def write_parquet(file: TextIO, events: list[Event], recording: Path) -> None:
    """The columns of the CSV."""
    import pyarrow
    from pyarrow import parquet

    types = {"source": pyarrow.int64()}
    columns = {field.name: types.get(field.name, pyarrow.float64()) for field in fields(Event)}
    schema = pyarrow.schema([("recording", pyarrow.string()), *columns.items()])
    name = str(recording).encode(errors="backslashreplace").decode()
    rows = [{"recording": name, **asdict(event)} for event in events]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file.buffer)


WRITERS: dict[str, tuple[str, Callable[[TextIO, list[Event], Path], None]]] = {
    "raven": (".raven.txt", write_raven),
    "audacity": (".audacity.txt", write_audacity),
    "csv": (".csv", write_csv),
    "parquet": (".parquet", write_parquet),
}


def event_formats(names: str) -> tuple[str, ...]:
    """Of a list with commas.

    Raises:
        UserError: one is unknown, or needs a package that is not installed.
    """
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if unknown := [name for name in chosen if name not in WRITERS]:
        raise UserError(f"--events {unknown[0]}: there are {', '.join(WRITERS)}, with commas between them")
    if "parquet" in chosen:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError("--events parquet needs pyarrow: pip install 'surf-lightning[formats]'") from error
    return chosen


def event_paths(stem: Path, formats: tuple[str, ...]) -> dict[str, Path]:
    """The file of each format."""
    return {name: stem.with_name(f"{stem.name}_events{WRITERS[name][0]}") for name in formats}


def write_events(stem: Path, formats: tuple[str, ...], events: list[Event], recording: Path) -> list[Path]:
    """Write them in every format; returns the names."""
    paths = event_paths(stem, formats)
    for name, path in paths.items():
        with replacing(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            WRITERS[name][1](file, events, recording)
    return list(paths.values())
