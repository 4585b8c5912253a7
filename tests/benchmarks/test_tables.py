"""Rows, floors and files of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run
import torch
from machine import Machine
from rows import Cost, Growth, Memory, Timing, fitted_exponent
from timing import alternating, compare

MACHINE = Machine(
    torch.device("cpu"),
    matmul={torch.float32: 100e9, torch.bfloat16: 500e9},
    convolution={torch.float32: 200e9, torch.bfloat16: 250e9},
    bandwidth=10e9,
)


def test_the_floor_is_the_slower_of_operations_and_bytes() -> None:
    assert MACHINE.floor_ms(2e9, 0.01e9) == pytest.approx(10)  # 2 GFLOP at the higher peak, 200 GFLOP/s
    assert MACHINE.floor_ms(2e9, 0.5e9) == pytest.approx(50)
    assert MACHINE.floor_ms(2e9, precision=torch.bfloat16) == pytest.approx(4)


@pytest.mark.parametrize(("half", "count"), [(250e9, 1), (350e9, 2)])
def test_bfloat16_is_measured_where_it_pays(half: float, count: int) -> None:
    matmul = {torch.float32: 100e9, torch.bfloat16: half}
    assert len(Machine(MACHINE.device, matmul, {**matmul, torch.float32: 200e9}, 1e9).precisions()) == count


def test_exponents() -> None:
    assert fitted_exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert fitted_exponent([1, 2, 4, 8, 16], [9, 9, 8, 16, 32]) == pytest.approx(1)  # overheads of small sizes left out
    assert Growth("a", "B", [1, 2], [5, 5]).exponent == 0


def test_ratios_are_of_theirs_to_ours() -> None:
    count = {"ours": 0, "theirs": 0}

    def work(name: str, size: int) -> None:
        count[name] += 1
        torch.randn(size, size) @ torch.randn(size, size)

    row = compare(lambda: work("ours", 16), lambda: work("theirs", 400), MACHINE.device, 3)
    assert row["ratio"] > 2
    assert row["theirs_ms"] > row["ours_ms"]
    assert count == {"ours": 6, "theirs": 6}  # in turn, once untimed and once timed
    first, second = alternating([lambda: work("ours", 16), lambda: work("theirs", 400)], MACHINE.device, 2)
    assert first < second


def test_a_part_alone_replaces_its_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "loaders": [Timing("crop", 2.0, 1200.0, 600.0, floor_ms=0.5, remark="fast"), Timing("asteroid", remark="none")],
        "epoch": [Cost("SURF", 195.1, {"1": 300.0, "8": 37.5, "64": 0.5}), Memory("x", 1.25)],
    }

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, machine: Machine) -> list[object]:
            return list(parts[self.name])

    monkeypatch.setattr(run.importlib, "import_module", Part)
    monkeypatch.setattr(run.Machine, "measure", lambda device: MACHINE)
    monkeypatch.setattr(run.Machine, "description", lambda self: {"device": "A (b)"})
    run.main(["--results", str(tmp_path), "--only", "epoch", "loaders"])
    printed = capsys.readouterr().out
    assert "600.00x" in printed
    assert "1,200 ms" in printed
    assert "12 days" in printed
    assert "37.5 h" in printed
    assert "30 min" in printed
    parts["loaders"][0] = Timing("crop", 3.0)
    run.main(["--results", str(tmp_path), "--only", "loaders"])
    saved = json.loads((tmp_path / "A-b.json").read_text())
    assert list(saved) == ["loaders", "epoch"]
    assert saved["loaders"]["rows"][0]["ours_ms"] == 3.0
    assert saved["epoch"]["rows"][0]["hours"] == {"1": 300.0, "8": 37.5, "64": 0.5}
    assert saved["epoch"]["hardware"] == {"device": "A (b)"}


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--only", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_exchange_their_estimates() -> None:
    import ranks

    assert all(time > 0 for time in ranks.measure(2, "cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("part", ["surf_step", "assignment", "resampling"])
def test_parts_run_on_cuda(part: str, tmp_path: Path) -> None:
    run.main(["--device", "cuda", "--results", str(tmp_path), "--only", part])
    (path,) = tmp_path.iterdir()
    assert all(row["ours_ms"] > row["floor_ms"] > 0 for row in json.loads(path.read_text())[part]["rows"][:1])
