"""What `surf separate` writes for the next tool: formats, names, events, shares and similarities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from surf_lightning.inference.events import Event, EventDetector, stretches, write_events
from tests.inference.test_separate import made, manifest, read, record, separate, table

RATE = 8000


pytestmark = pytest.mark.usefixtures("toy")


@pytest.mark.parametrize(
    ("name", "subtype", "arguments", "expected"),
    [
        ("a.wav", "PCM_16", ["--format", "flac"], ("FLAC", "PCM_16", ".flac")),
        ("a.wav", "FLOAT", ["--format", "flac"], ("FLAC", "PCM_24", ".flac")),
        ("a.flac", "PCM_24", ["--format", "wav"], ("WAV", "PCM_24", ".wav")),
        ("a.flac", "PCM_16", ["--samples", "float32"], ("WAV", "FLOAT", ".wav")),
        ("a.aiff", "PCM_16", ["--samples", "int24"], ("AIFF", "PCM_24", ".aiff")),
        ("a.ogg", "VORBIS", ["--format", "flac", "--samples", "int24"], ("FLAC", "PCM_24", ".flac")),
    ],
)
def test_format_and_samples_may_be_chosen(
    name: str, subtype: str, arguments: list[str], expected: tuple[str, str, str]
) -> None:
    samples = record(name, 1.0, subtype=subtype)
    assert separate(name, *arguments) == 0
    container, coding, suffix = expected
    assert made() == [f"a_source{k}{suffix}" for k in (1, 2)]
    for path in made():
        there = soundfile.info(f"out/{path}")
        assert (there.format, there.subtype) == (container, coding)
    np.testing.assert_allclose(sum(read(f"out/{path}") for path in made()), samples, atol=2.0**-15)


def test_names_follow_a_template() -> None:
    record("in/x {source}.wav", 0.3)
    assert separate("in", "--names", "{source} of {stem}") == 0
    assert made() == ["1 of x {source}.wav", "2 of x {source}.wav"]


@pytest.mark.parametrize(
    "names",
    [
        "../{stem}{source}",
        "{stem}",
        "{source}",
        "a/{stem}{source}",
        ".{stem}{source}",
        "{stem}{source}{0}",
        "\\{stem}{source}",
    ],
)
def test_a_template_leads_to_no_other_folder(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    record("a.wav", 0.1)
    assert separate("a.wav", "--names", names) == 2
    assert "--names" in capsys.readouterr().err
    assert not Path("out").exists()


def test_floats_in_flac_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    record("a.wav", 0.1)
    assert separate("a.wav", "--format", "flac", "--samples", "float32") == 2
    assert "no floats" in capsys.readouterr().err


def test_the_manifest_has_shares_of_the_energy_and_similarities() -> None:
    record("a.wav", 2.0, subtype="FLOAT")
    assert separate("a.wav") == 0
    one, two = (read(row["Begin Path"])[:, 0] for row in manifest())
    energies = np.array([one @ one, two @ two])
    cosine = abs(one @ two) / np.sqrt(energies.prod())
    for row, energy in zip(manifest(), energies, strict=True):
        assert float(row["Energy Share"]) == pytest.approx(energy / energies.sum(), abs=1e-5)
        assert float(row["Similarity"]) == pytest.approx(cosine, abs=1e-5)


# -- events --


def tones() -> torch.Tensor:
    """Source 1: 1 kHz from 0.5 to 1.0 s and 2.0 to 2.4 s; source 2: 3 kHz from 1.2 to 3.0 s, which leaks."""
    time = torch.arange(4 * RATE, dtype=torch.float64) / RATE
    low = torch.sin(2 * torch.pi * 1000 * time) * (((time >= 0.5) & (time < 1.0)) | ((time >= 2.0) & (time < 2.4)))
    high = torch.sin(2 * torch.pi * 3000 * time) * ((time >= 1.2) & (time < 3.0))
    return 0.5 * torch.stack([low + 0.05 * high, 0.95 * high])[None]


@pytest.mark.parametrize("block", [4 * RATE, 1234])
def test_events_are_when_a_source_is_active_and_its_band(block: int) -> None:
    detector = EventDetector(RATE, 2)
    for part in tones().split(block, -1):
        detector.add(part)
    events = detector.finish()
    found = [(event.source, event.begin, event.end) for event in events]
    expected = [(1, 0.5, 1.0), (2, 1.2, 3.0), (1, 2.0, 2.4)]
    assert [event[0] for event in found] == [event[0] for event in expected]
    np.testing.assert_allclose(found, expected, atol=0.051)
    for event in events:
        centre = {1: 1000, 2: 3000}[event.source]
        assert centre - 100 < event.low <= centre <= event.high < centre + 100
    assert events[0].level == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.5)


def test_short_pauses_belong_to_an_event_and_silence_has_none() -> None:
    active = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    assert list(stretches(active)) == [(1, 6), (13, 14)]
    detector = EventDetector(RATE, 2)
    detector.add(torch.zeros(1, 2, 5000, dtype=torch.float64))
    assert detector.finish() == []
    assert EventDetector(RATE, 2).finish() == []


EVENTS = [Event(1, 0.5, 1.0, 900.0, 1100.0, -9.0), Event(2, 1.2, 3.0, 2900.0, 3100.0, -10.0)]


def written(name: str) -> Path:
    (path,) = write_events(Path("rec"), (name,), EVENTS, Path("field/rec.wav"))
    return path


@pytest.mark.slow  # its import takes seconds
def test_other_tools_read_the_events() -> None:
    bbox = pytest.importorskip("crowsetta").formats.bbox
    expected = [(e.begin, e.end, e.low, e.high, f"source{e.source}") for e in EVENTS]
    for boxes in (
        bbox.Raven.from_file(written("raven")).to_bbox(),
        bbox.AudBBox.from_file(written("audacity")).to_bbox(),
    ):
        found = [(box.onset, box.offset, box.low_freq, box.high_freq, box.label) for box in boxes]
        assert found == expected


def test_events_as_tables() -> None:
    rows = table(str(written("csv")))
    assert list(rows[0].values()) == ["field/rec.wav", "1", "0.5", "1.0", "900.0", "1100.0", "-9.0"]
    parquet: Any = pytest.importorskip("pyarrow.parquet").read_table(written("parquet")).to_pylist()
    assert [{key: str(value) for key, value in row.items()} for row in parquet] == rows


def test_the_command_writes_the_events_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("rec.wav", tones().sum(1)[0].numpy(), RATE)
    assert separate("rec.wav", "--events", "csv, audacity") == 0
    assert {"rec_events.csv", "rec_events.audacity.txt"} <= {*made()}
    assert {row["source"] for row in table("out/rec_events.csv")} <= {"1", "2"}
    assert separate("rec.wav", "--overwrite", "--events", "midi") == 2
    assert "raven, audacity, csv, parquet" in capsys.readouterr().err
