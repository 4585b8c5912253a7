"""Columns, ranks, the paper's rows and the notes below a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surf_lightning.reporting.runs import Run
from surf_lightning.reporting.tables import group_alike, make_table, markdown, momi_table
from tests.reporting.fabricate import TABLE_1, measured, results


def rows(*runs: Run, name: str = "metrics", repetitions: tuple[Run, ...] = ()) -> list[str]:
    return markdown(make_table(name, runs, repetitions)).splitlines()


def notes(*runs: Run, repetitions: tuple[Run, ...] = ()) -> tuple[str, ...]:
    return make_table("metrics", runs, repetitions).notes


def mixit(psnr: float = 18.0, folder: str = "digits_mixit", **more: Any) -> Run:
    return measured("MixIT", {"psnr": psnr, "ssim": 0.8}, folder, **more)


def surf(psnr: float = 20.125, ssim: float = 0.91239, **more: Any) -> Run:
    more = {"steps": 12_000, "seconds": 360, **more}
    return measured("SURF (ReMixIT)", {"psnr": psnr, "ssim": ssim}, "digits_surf_rm", **more)


def supervised(psnr: float = 30.0) -> Run:
    return measured("Supervised Flow", {"psnr": psnr, "ssim": 0.99}, "digits_supervised_flow", needs_sources=True)


def test_runs_stand_side_by_side_the_supervised_apart_and_unranked() -> None:
    assert rows(supervised(), mixit(), surf()) == [
        "| method | PSNR (dB) ↑ | SSIM ↑ | steps | minutes |",
        "|---|---:|---:|---:|---:|",
        "| Average (m/K) | 13.46 | 0.511 |  |  |",
        "| MixIT | <u>18.00</u> | <u>0.800</u> | 4,000 | 1.5 |",
        "| SURF (ReMixIT) | **20.12** | **0.912** | 12,000 | 6.0 |",
        "| *Supervised Flow* | 30.00 | 0.990 | 4,000 | 1.5 |",
    ]


def test_a_value_that_rounds_to_zero_has_no_sign() -> None:
    assert "| **0.00** | **-0.013** |" in rows(measured("MixIT", {"si_sdr": -0.004, "estoi": -0.013}))[-1]


def test_where_nothing_was_learnt_the_average_is_best() -> None:
    table = rows(measured("MixIT", {"psnr": 11.0, "ssim": 0.6}))
    assert table[2:] == [
        "| Average (m/K) | **13.46** | <u>0.511</u> |  |  |",
        "| MixIT | <u>11.00</u> | **0.600** | 4,000 | 1.5 |",
    ]


def test_less_is_better_of_distances_and_what_reads_alike_ranks_alike() -> None:
    values = {"Average": (0.3, 40.0), "MixIT": (0.0012, 30.1), "A": (0.0009, 20.449), "B": (0.04, 20.4451)}
    runs = [measured(label, {"lpips": x, "fid": y}) for label, (x, y) in values.items()]
    for run in runs:
        run.results["metrics"]["average"] = {}
    assert [row.split(" | ")[1:3] for row in rows(*runs)[2:]] == [
        ["0.300", "40.00"],
        ["**0.001**", "<u>30.10</u>"],
        ["**0.001**", "**20.45**"],
        ["<u>0.040</u>", "**20.45**"],
    ]


def test_columns_are_the_papers_in_its_order_and_unknown_ones_come_last_unranked() -> None:
    values = {
        "zeta": 1.0,
        "dnsmos": 2.5,
        "si_sdri": 9.0,
        "MSi": 8.0,
        "over": 0.1,
        "1S": 30.0,
        "si_sdr": 12.0,
        "under": 0.2,
    }
    table = rows(measured("MixIT", values, average={}))
    assert table[0] == "| method | 1S (dB) ↑ | Under ↓ | Over ↓ | SI-SDR (dB) ↑ | DNSMOS ↑ | zeta | steps | minutes |"
    assert table[2] == "| MixIT | **30.00** | **0.200** | **0.100** | **12.00** | **2.50** | 1.000 | 4,000 | 1.5 |"


# -- the paper's rows --


def test_a_genuine_set_has_the_papers_row_below_each_of_ours() -> None:
    values: dict[str, float | None] = {"psnr": 30.0, "lpips": 0.002, "ssim": 0.98, "fid": 20.0}
    runs = [measured(label, values, data="MNIST", **TABLE_1) for label in ("MixIT", "SURF (ReMixIT)", "New")]
    table = make_table("metrics", runs)
    assert [row.label for row in table.rows] == [
        "Average (m/K)",
        "MixIT",
        "in the paper",
        "SURF (ReMixIT)",
        "in the paper",
        "New",
    ]
    assert [text for text, _ in table.rows[2].cells] == ["21.90", "0.011", "0.929", "30.89"]
    assert [text for text, _ in table.rows[4].cells] == ["37.26", "0.001", "0.992", "19.57"]
    assert {mark for _, mark in table.rows[4].cells} == {""}, "the paper's numbers do not compete with ours"
    assert {mark for _, mark in table.rows[3].cells} == {"best"}
    assert table.notes[0] == "The paper's rows: Table 1, MNIST."


def test_a_column_of_the_papers_table_that_no_run_has_is_not_available() -> None:
    table = make_table("metrics", [mixit(data="MNIST", **TABLE_1)])
    assert [column.key for column in table.columns] == ["psnr", "lpips", "ssim", "fid"]
    assert [text for text, _ in table.rows[1].cells] == ["18.00", "n/a", "0.800", "n/a"]
    assert [text for text, _ in table.rows[2].cells] == ["21.90", "0.011", "0.929", "30.89"]


@pytest.mark.parametrize("data", ["MNIST", "CIFAR10", "Libri2Mix", "Digits"])
def test_a_stand_in_never_has_the_papers_rows(data: str) -> None:
    facts = {**TABLE_1, "genuine": False}
    table = make_table("metrics", [mixit(data=data, **facts), surf(data=data, **facts)])
    assert {row.kind for row in table.rows} == {"average", "unsupervised"}
    assert not any("paper" in note for note in table.notes)


def test_a_stand_in_stands_in_no_table_with_the_genuine_set() -> None:
    genuine, other = mixit(data="MNIST", **TABLE_1), surf(data="MNIST", **{**TABLE_1, "genuine": False})
    assert group_alike([genuine, other]) == [("metrics", [genuine]), ("metrics", [other])]


def test_table_2_shows_deviations_and_ranks_all() -> None:
    def run(label: str, score: float, fid: float) -> Run:
        metrics: dict[str, float | None] = {"is": score, "is_std": 0.125, "fid": fid}
        facts = {"data": "CIFAR10", "genuine": True, "mixtures": 25_000, "evaluation": "SampleMetrics"}
        facts["needs_sources"] = label == "BASIS"
        written = results(label, metrics, average={"is": 7.0, "is_std": 0.1, "fid": 28.0}, **facts)
        return Run(Path("runs", label), {"metrics_samples": written})

    table = rows(
        run("MixIT", 4.5, 31.0), run("BASIS", 8.3, 22.0), run("SURF (Self-Remixing)", 8.2, 12.0), name="metrics_samples"
    )
    assert table[0].startswith("| method | Inception Score ↑ | FID ↓ |")
    assert [row.split(" | ")[:3] for row in table[2:]] == [
        ["| Average (m/K)", "7.00 ± 0.10", "28.00"],
        ["| *in the paper*", "7.18 ± 0.08", "28.02"],
        ["| MixIT", "4.50 ± 0.12", "31.00"],
        ["| *in the paper*", "4.56 ± 0.05", "31.27"],
        ["| SURF (Self-Remixing)", "<u>8.20 ± 0.12</u>", "**12.00**"],
        ["| *in the paper*", "8.25 ± 0.07", "12.50"],
        ["| *BASIS*", "**8.30 ± 0.12**", "<u>22.00</u>"],
        ["| *in the paper*", "8.29 ± 0.16", "22.12"],
    ]


# -- notes --


def test_a_value_that_one_run_lacks_is_not_available() -> None:
    with_fid = measured("SURF (ReMixIT)", {"psnr": 19.0, "fid": 20.0})
    for lacking in ({"psnr": 18.0}, {"psnr": 18.0, "fid": None}):
        table = rows(measured("MixIT", dict(lacking)), with_fid)
        assert [row.split(" | ")[2] for row in table[2:]] == ["n/a", "n/a", "**20.00**"]


def test_repetitions_with_other_seeds_give_a_mean_and_a_spread() -> None:
    repetitions = [mixit(17.0, "digits_mixit_seed1", seed=1), mixit(19.6, "digits_mixit_seed2", seed=2)]
    repeated = {mixit().folder: repetitions}
    table = rows(mixit(), surf(), repetitions=repeated)
    assert len(table) == 5  # repetitions have no rows of their own
    assert notes(mixit(), surf(), repetitions=repeated) == (
        "MixIT over 3 seeds: 18.20 ± 1.31 dB (seed 0: 18.00, seed 1: 17.00, seed 2: 19.60). "
        "The other rows start from seed 0.",
    )  # and SURF is above its teacher, which is the run of seed 0
    again = measured("SURF (ReMixIT)", {"psnr": 20.5}, "digits_surf_rm_seed1", seed=1)
    assert notes(surf(20.0), repetitions={surf(20.0).folder: [again]}) == (
        "SURF (ReMixIT) over 2 seeds: 20.25 ± 0.35 dB (seed 0: 20.00, seed 1: 20.50).",
    )


@pytest.mark.parametrize(("psnr", "below"), [(17.9, True), (18.0, True), (18.1, False)])
def test_a_surf_that_has_not_overtaken_its_teacher_says_so_and_what_to_do(psnr: float, below: bool) -> None:
    told = notes(mixit(18.0), surf(psnr))
    assert bool(told) == below
    if below:
        assert told[0] == (
            "SURF (ReMixIT) has not overtaken its MixIT teacher after 12,000 steps. It needs longer training. "
            "`make digits` gives it that."
        )
        assert "make digits" not in notes(mixit(18.0, data="MNIST"), surf(psnr, data="MNIST"))[0]


def test_a_record_of_an_older_version_is_shown_as_well() -> None:
    old = {
        key: value
        for key, value in results("MixIT", {"psnr": 18.0}).items()
        if key not in ("protocol", "genuine", "evaluation", "sources", "average")
    }
    table = make_table("metrics", [Run(Path("runs/old"), {"metrics": old})])
    assert table.protocol == "1000 held-out mixtures of Digits."
    assert [row.label for row in table.rows] == ["MixIT"]


def test_what_has_no_truth_stands_in_a_table_of_momi() -> None:
    curves = {
        "val/momi": {100: 1.0, 200: 4.0, 300: 4.0, 400: 1.0, 500: 1.0, 600: 1.0},
        "val/momi_error": {500: 0.5, 600: 0.25},
    }
    tested = Run(Path("runs/tested"), {"metrics": results("MixIT", {"psnr": 18.0})}, curves=curves)
    (table,) = momi_table([Run(Path("runs/a"), curves=curves), tested, Run(Path("runs/b"))])
    (row,) = table.rows
    assert (row.label, row.steps) == ("a", "601")
    assert [text for text, _ in row.cells] == ["3.00", "1.00 ± 0.25"]
    assert momi_table([tested]) == []


def test_a_small_loss_keeps_its_digits() -> None:
    loss = {"loss": 0.000147, "momi": 3.0, "momi_error": 0.5}
    (_, line) = [row for row in rows(measured("SURF", dict(loss), average={})) if row.startswith("| ")]
    assert line == "| SURF | **3.00 ± 0.50** | 0.000147 | 4,000 | 1.5 |"
