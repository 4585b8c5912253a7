"""What `surf validate` and `surf test` print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surf_lightning.callbacks import results
from surf_lightning.methods import MixIT
from tests.tiny import adam, digits, regression, trainer


def rows(printed: str) -> dict[str, list[str]]:
    """The lines of a printed table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}


def test_a_test_prints_the_row_of_the_table_and_where_it_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("run")
    trainer(folder, "test").test(MixIT(regression(4), optimizer=adam), digits(num_test=6))
    printed = capsys.readouterr().out
    record = json.loads((folder / "metrics.json").read_text())
    psnr, ssim = record["metrics"]["psnr"], record["metrics"]["ssim"]
    assert rows(printed)["MixIT"][:2] == [f"{psnr:.2f}", f"{ssim:.3f}"]
    assert rows(printed)["method"][:3] == ["PSNR", "(dB)", "↑"]
    assert rows(printed)["Average"][1] == f"{record['average']['psnr']:.2f}"
    assert record["protocol"] in printed
    assert f"written to {folder / 'metrics.json'}" in printed
    assert "test/psnr" not in printed, "Lightning's own list would say the same again, to 17 digits"


def test_a_validation_measures_the_columns_of_the_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = digits(num_validation=6), Path("run")
    monkeypatch.setattr(data, "metrics", lambda: pytest.fail("those are for looking at during fit"))
    monkeypatch.setattr(results, "unavailable_columns", lambda metrics: {"ssim": "not available, because: of a test"})
    validator = trainer(folder, "validate")
    measured = validator.validate(MixIT(regression(4), optimizer=adam), data)[0]
    printed = capsys.readouterr().out
    assert rows(printed)["MixIT"][:2] == [f"{measured['val/psnr']:.2f}", f"{measured['val/ssim']:.3f}"]
    assert "Digits: 6 held-out mixtures" in printed
    assert "SSIM is not available, because: of a test" in printed
    assert not (folder / "metrics.json").exists()


def test_a_part_of_the_test_set_is_not_passed_off_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = digits(num_test=8), Path("run")
    monkeypatch.setattr(data, "published", lambda: "mnist")
    for limit, published, protocol in ((1.0, "mnist", data.protocol()), (1, None, "Only the first 4 of: ")):
        trainer(folder, "test", limit_test_batches=limit).test(MixIT(regression(4), optimizer=adam), data)
        record = json.loads((folder / "metrics.json").read_text())
        assert record["published"] == published
        assert record["protocol"].startswith(protocol)
