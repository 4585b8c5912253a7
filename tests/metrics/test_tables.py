"""Which of the paper's tables belongs to results, by their facts."""

from __future__ import annotations

from typing import Any

import pytest

from surf_lightning.metrics.tables import COLUMNS, columns_of, paper_table, paper_tables

IMAGES = {"genuine": True, "sources": 2, "mixtures": 5000, "evaluation": "PerceptualMetrics"}
AUDIO = {"genuine": True, "sample_rate": 16000, "evaluation": None}


@pytest.mark.parametrize(
    ("facts", "table"),
    [
        ({"data": "MNIST", **IMAGES}, "Table 1, MNIST"),
        ({"data": "MNIST", **IMAGES, "evaluation": "PixelMetrics"}, "Table 1, MNIST"),
        ({"data": "CIFAR10", **IMAGES}, "Table 1, CIFAR10"),
        ({"data": "CIFAR10", **IMAGES, "mixtures": 25_000, "evaluation": "SampleMetrics"}, "Table 2"),
        ({"data": "AudioSet", **AUDIO, "mixtures": 2000}, "Table 3"),
        ({"data": "AudioSet", **AUDIO, "mixtures": 1000}, "Table 3"),
        ({"data": "FUSS", **AUDIO, "mixtures": 1000}, "Table 3"),
        ({"data": "LibriSpeechFUSS", **AUDIO, "mixtures": 1000}, "Table 3"),
        ({"data": "Libri2Mix", **AUDIO, "mixtures": 3000}, "Table 4"),
        ({"data": "Digits", **IMAGES}, None),
        ({"data": "MNIST", **IMAGES, "genuine": False}, None),
        ({"data": "MNIST", **IMAGES, "mixtures": 4999}, None),
        ({"data": "MNIST", **IMAGES, "sources": 3}, None),
        ({"data": "MNIST", **IMAGES, "mixtures": 25_000}, None),
        ({"data": "CIFAR10", **IMAGES, "evaluation": "SampleMetrics"}, None),
        ({"data": "MNIST", **IMAGES, "evaluation": "Mine"}, None),
        ({"data": "Libri2Mix", **AUDIO, "mixtures": 3000, "sample_rate": 8000}, "Table I of the MixCycle paper"),
        ({"data": "SC09Mix", **AUDIO, "mixtures": 5000, "sample_rate": 8000}, "Table I of the MixCycle paper"),
        ({"data": "Libri2Mix", **AUDIO, "mixtures": 3000, "sample_rate": 44100}, None),
        ({"data": "Libri2Mix", **AUDIO, "mixtures": 2999}, None),
        ({"data": "MNIST"}, None),
    ],
)
def test_the_papers_table_stands_beside_its_own_data_and_protocol_alone(
    facts: dict[str, Any], table: str | None
) -> None:
    found = paper_table(facts)
    assert (found and found["source"]) == table


def test_the_improvement_is_a_column_where_a_papers_table_has_it() -> None:
    results = {
        "data": "SC09Mix",
        **AUDIO,
        "mixtures": 5000,
        "sample_rate": 8000,
        "metrics": {"si_sdr": 1.0, "si_sdri": 2.0},
    }
    assert [column.key for column in columns_of([results], paper_table(results))] == ["si_sdr", "si_sdri"]
    assert [column.key for column in columns_of([results])] == ["si_sdr"]


def test_the_papers_tables_are_whole() -> None:
    known = {column.key for column in COLUMNS}
    labels = {"Average", "MixIT", "MixPIT", "MixCycle", "BASIS", "Dynamic Mixing", "Ideal ratio mask"}
    labels |= {"Supervised Regression", "Supervised Flow"}
    labels |= {f"{kind} ({loss})" for kind in ("SURF", "Regression") for loss in ("ReMixIT", "Self-Remixing")}
    for table in paper_tables():
        assert set(table["metrics"]) <= known
        assert set(table.get("columns", ())) <= set(table["metrics"])
        assert all(len(row) == len(table["metrics"]) for row in table["rows"].values())
        assert set(table["rows"]) <= labels
    by_data = {str(table["facts"]["data"]): table for table in reversed(paper_tables())}
    assert by_data["Libri2Mix"]["rows"]["SURF (ReMixIT)"] == [16.54, 0.893, 3.30, 2.94]
    assert by_data["CIFAR10"]["rows"]["Supervised Flow"] == [20.38, 0.032, 0.777, 9.601]
    assert by_data["AudioSet"]["rows"]["SURF (Self-Remixing)"][7:] == [15.23, 0.840, 2.93, 2.57]
    assert by_data["LibriSpeechFUSS"]["columns"] == by_data["AudioSet"]["metrics"][7:]
