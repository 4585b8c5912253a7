"""The table, the remarks and the picture of fabricated runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import read_image

from surf_lightning.errors import UserError
from surf_lightning.report import run_report

AVERAGE = {"psnr": 13.456, "ssim": 0.5114}


def fabricate(name: str, method: str, label: str, psnr: float, ssim: float, seed: int = 0, **record: Any) -> str:
    """The folder of a run as ``surf test`` leaves it."""
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    written = {
        "metrics": {"psnr": psnr, "ssim": ssim},
        "average": AVERAGE,
        "mixtures": 1000,
        "method": method,
        "label": label,
        "data": "Digits",
        "seed": seed,
        "steps": 4000,
        "seconds": 90.0,
        "hardware": "a CPU, 2 threads",
        **record,
    }
    (folder / "metrics.json").write_text(json.dumps(written))
    sources = 2 * torch.rand(4, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    examples = {"mixtures": sources.sum(1), "sources": sources, "estimates": sources.flip(1) + 0.01}
    torch.save(examples, folder / "test_examples.pt")
    return str(folder)


def mixit(psnr: float = 18.0, suffix: str = "", seed: int = 0) -> str:
    return fabricate(f"digits_mixit{suffix}", "MixIT", "MixIT", psnr, 0.8, seed)


def surf(psnr: float = 20.125, ssim: float = 0.91239) -> str:
    return fabricate("digits_surf_rm", "SURF", "SURF (ReMixIT)", psnr, ssim, steps=12_000, seconds=360)


def report(*folders: str) -> tuple[list[str], str]:
    """The rows of the table and the whole of the report."""
    run_report([*folders, "--output", "out"])
    text = Path("out/report.md").read_text()
    return [line for line in text.splitlines() if line.startswith("|")], text


def test_two_runs_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows, text = report(mixit(), surf())
    assert rows == [
        "| method | PSNR (dB) | SSIM | steps | minutes |",
        "|---|---|---|---|---|",
        "| Average (m/K) | 13.46 | 0.511 | | |",
        "| MixIT | 18.00 | 0.800 | 4000 | 1.5 |",
        "| SURF (ReMixIT) | **20.12** | **0.912** | 12000 | 6.0 |",
    ]
    assert text.startswith("# Separation of Digits\n")
    assert "- 1000 held-out mixtures of Digits, a CPU, 2 threads, seed 0." in text
    assert "overtaken" not in text
    assert "![](report.png)" in text
    printed = capsys.readouterr().out
    assert "\n".join(rows) in printed
    assert "out/report.md" in printed
    picture = read_image("out/report.png")
    assert picture.shape[1] > 100
    assert picture.float().std() > 10


def test_the_best_of_each_column_is_bold_whichever_row_it_is_in() -> None:
    rows, _ = report(mixit(20.5), surf(12.0, 0.4))
    assert rows[3] == "| MixIT | **20.50** | **0.800** | 4000 | 1.5 |"
    assert rows[4] == "| SURF (ReMixIT) | 12.00 | 0.400 | 12000 | 6.0 |"


def test_where_nothing_was_learnt_the_average_is_best() -> None:
    folder = fabricate("digits_mixit", "MixIT", "MixIT", 11.0, 0.6)
    assert report(folder)[0][2:] == [
        "| Average (m/K) | **13.46** | 0.511 | | |",
        "| MixIT | 11.00 | **0.600** | 4000 | 1.5 |",
    ]


@pytest.mark.parametrize(("psnr", "below"), [(17.9, True), (18.0, True), (18.1, False)])
def test_a_surf_that_has_not_overtaken_its_teacher_says_so_and_what_to_do(psnr: float, below: bool) -> None:
    _, text = report(mixit(18.0), surf(psnr))
    note = "SURF (ReMixIT) has not overtaken its MixIT teacher after 12000 steps"
    assert (note in text) == ("make digits" in text) == below


def test_repetitions_with_other_seeds_give_a_mean_and_a_spread() -> None:
    rows, text = report(mixit(18.0), surf(), mixit(17.0, "_seed1", 1), mixit(19.6, "_seed2", 2))
    assert len(rows) == 5  # repetitions have no rows of their own
    assert (
        "MixIT over 3 seeds: 18.20 ± 1.31 dB (seed 0: 18.00, seed 1: 17.00, seed 2: 19.60). "
        "The other rows start from seed 0." in text
    )
    assert "overtaken" not in text  # the teacher is the run of seed 0


def test_no_rows_start_from_a_repeated_student() -> None:
    repeated = fabricate("digits_surf_rm_seed1", "SURF", "SURF (ReMixIT)", 20.5, 0.9, 1)
    _, text = report(mixit(), surf(20.0), repeated)
    assert "SURF (ReMixIT) over 2 seeds: 20.25 ± 0.35 dB (seed 0: 20.00, seed 1: 20.50)." in text
    assert "start from" not in text


def test_a_repetition_without_its_first_run_has_a_row() -> None:
    rows, _ = report(surf(), mixit(19.0, "_seed1", 1))
    assert rows[-1] == "| MixIT | 19.00 | 0.800 | 4000 | 1.5 |"
    rows, _ = report("runs/digits_mixit_seed1")
    assert len(rows) == 4


@pytest.mark.parametrize("missing", ["metrics.json", "test_examples.pt"])
def test_a_run_that_was_not_tested_says_so(missing: str) -> None:
    folder = mixit()
    Path(folder, missing).unlink()
    with pytest.raises(UserError, match=rf"runs/digits_mixit has no {missing}: run surf test"):
        report(surf(), folder)
    assert not Path("out").exists()


def test_pictures_of_colour_and_of_three_sources_are_drawn() -> None:
    folder = fabricate("c", "MixIT", "MixIT", 18.0, 0.8)
    sources = 2 * torch.rand(2, 3, 3, 32, 32) - 1
    examples = {"mixtures": sources.sum(1), "sources": sources, "estimates": sources}
    torch.save(examples, Path(folder, "test_examples.pt"))
    report(folder)
    assert read_image("out/report.png").float().std() > 10
