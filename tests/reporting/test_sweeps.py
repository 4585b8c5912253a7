"""Sweeps found by what their configurations differ in, and tabulated as the paper's Table 9."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from surf_lightning.metrics.tables import paper_tables
from surf_lightning.reporting.report import make_sections
from surf_lightning.reporting.runs import Run
from surf_lightning.reporting.sweeps import SETTINGS, find_sweeps
from surf_lightning.reporting.tables import markdown
from tests.reporting.fabricate import CONFIG, TABLE_1, image_examples, results, write
from tests.reporting.test_report import report

RM, SR = "SURF (ReMixIT)", "SURF (Self-Remixing)"
SCHEDULE = "1 to 0 in 200,000 steps"
CIFAR = {"data": "CIFAR10", "sources": 2, "mixtures": 5000, "evaluation": "PerceptualMetrics"}


def config(name: str, seed: int = 0, **changed: Any) -> str:
    """A saved config.yaml; what is ``changed`` of it goes to the part that has it."""
    data = {"batch_size": 256, "num_test": 5000}
    model: dict[str, Any] = {"ema_decay": 0.999, "beta_start": 1.0, "beta_end": 0.0, "beta_steps": 200_000}
    model |= {"network": {"class_path": "N", "init_args": {"channels": 64, "multipliers": [1, 2]}}}
    trainer: dict[str, Any] = {
        "max_steps": 400_000,
        "default_root_dir": f"runs/{name}",
        "enable_progress_bar": bool(seed),
    }
    trainer |= {"logger": [{"class_path": "W", "init_args": {"save_dir": f"runs/{name}"}}]}
    for key, value in changed.items():
        next(part for part in (data, trainer, model) if key in part or part is model)[key] = value
    parts = {"trainer": trainer, "model": {"class_path": "S", "init_args": model}}
    parts["data"] = {"class_path": "surf_lightning.data.CIFAR10", "init_args": data}
    return yaml.safe_dump({"seed_everything": seed, "name": name, "ckpt_path": None, **parts})


def run(name: str, psnr: float = 19.0, label: str = RM, text: str = "", pictures: bool = False, **changed: Any) -> str:
    """The folder of a run of CIFAR-10 that was tested as in Table 1."""
    values: dict[str, float | None] = {"psnr": psnr, "lpips": 0.05, "ssim": 0.7, "fid": 20.0}
    written = results(label, values, data="CIFAR10", average={}, steps=400_000, **TABLE_1)
    return write(name, written, image_examples(2) if pictures else None, text or config(name, **changed))


def read(*folders: str) -> list[Run]:
    return [Run.read(Path(folder)) for folder in folders]


def groups(*folders: str) -> list[dict[str, dict[str, str]]]:
    """The sweeps: runs' names by setting and value."""
    return [
        {title: {text: run.folder.name for text, run in group.items()} for title, group in sweep.groups.items()}
        for sweep in find_sweeps(read(*folders))
    ]


def held(beta: float) -> dict[str, float]:
    return {"beta_start": beta, "beta_end": beta}


def star(prefix: str = "", label: str = RM, pictures: bool = False) -> list[str]:
    """A base and five runs that change one setting of it, in no order."""
    changes: dict[str, dict[str, Any]] = {
        "batch_16": {"batch_size": 16},
        "alpha_0.9999": {"ema_decay": 0.9999},
        "": {},
        "beta_0.5": held(0.5),
        "alpha_0": {"ema_decay": 0.0},
        "beta_1": held(1.0),
    }
    return [
        run(f"{prefix}surf_{name}", 15.0 + place, label, pictures=pictures, **changed)
        for place, (name, changed) in enumerate(changes.items())
    ]


def test_runs_are_grouped_by_what_was_changed_and_ordered_by_its_value() -> None:
    assert groups(*star()) == [
        {
            "EMA decay α": {"0": "surf_alpha_0", "0.999": "surf_", "0.9999": "surf_alpha_0.9999"},
            "batch size B": {"16": "surf_batch_16", "256": "surf_"},
            "teacher's β": {"0.5": "surf_beta_0.5", "1": "surf_beta_1", SCHEDULE: "surf_"},
        }
    ]


def test_a_sweep_stands_without_its_base() -> None:
    folders = star()
    del folders[2]
    (found,) = groups(*folders)
    assert found["EMA decay α"] == {"0": "surf_alpha_0", "0.9999": "surf_alpha_0.9999"}
    assert found["batch size B"] == {"16": "surf_batch_16"}


def test_methods_are_swept_apart() -> None:
    both = groups(*star(), *star("sr_", SR))
    assert [sweep["batch size B"]["16"] for sweep in both] == ["surf_batch_16", "sr_surf_batch_16"]


def test_any_other_setting_makes_a_group_of_its_own() -> None:
    wide = {"class_path": "N", "init_args": {"channels": 128, "multipliers": [1, 2]}}
    other = {"class_path": "N", "init_args": {"channels": 64, "multipliers": [1]}}
    folders = [run("a"), run("b", network=wide), run("c", max_steps=10_000), run("d", network=other)]
    assert groups(*folders) == [
        {
            "network.channels": {"64": "a", "128": "b"},
            "trainer.max_steps": {"10000": "c", "400000": "a"},
            "network.multipliers": {"[1, 2]": "a", "[1]": "d"},
        }
    ]


def test_what_differs_in_several_settings_or_in_none_is_no_part_of_a_sweep() -> None:
    assert groups(run("a"), run("again", text=config("again", seed=3))) == []
    many = [*star("m_"), run("both", ema_decay=0.9, batch_size=16), run("copy"), run("twin", ema_decay=0.0)]
    found = {name for group in groups(*many)[0].values() for name in group.values()}
    assert found == {Path(folder).name for folder in many[:6]}
    (section,) = make_sections(read(*many))
    assert [row.label for row in section.tables[0].rows if row.kind != "published"] == [
        f"{RM}, {name}" for name in ("m_surf_", "both", "copy", "twin")
    ]


def test_a_setting_that_is_no_number_is_shown_as_it_stands() -> None:
    folders = [run("a"), run("b", ema_decay="slow"), run("c", beta_end=None)]
    assert groups(*folders) == [
        {"EMA decay α": {"0.999": "a", "slow": "b"}, "teacher's β": {SCHEDULE: "a", "1.0, None, 200000": "c"}}
    ]
    unreadable = [write("d", results(RM, {"psnr": 1.0}), None, "a: ["), write("e", None, None)]
    assert groups(*folders[:2], *unreadable) == [{"EMA decay α": {"0.999": "a", "slow": "b"}}]


def test_an_argument_that_another_version_did_not_have_counts_as_unchanged() -> None:
    old = yaml.safe_load(config("old", ema_decay=0.9))
    del old["model"]["init_args"]["beta_steps"]
    del old["trainer"]["max_steps"]
    folders = [run("old", text=yaml.safe_dump(old)), run("new", checkpoints={"keep": 3}), run("newer", batch_size=4)]
    assert groups(*folders) == [
        {"EMA decay α": {"0.9": "old", "0.999": "new"}, "batch size B": {"4": "newer", "256": "new"}}
    ]


def test_the_table_has_the_form_of_table_9_with_the_papers_rows() -> None:
    (section,) = make_sections(read(*star()))
    (sweep,) = section.sweeps
    assert sweep.title == "SURF (ReMixIT) with one setting changed"
    (table,) = sweep.tables
    assert markdown(table).splitlines() == [
        "| setting | PSNR (dB) ↑ | SSIM ↑ | LPIPS ↓ | FID ↓ | steps | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| **EMA decay α** |  |  |  |  |  |  |",
        "| 0 | **19.00** | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 16.63 | 0.635 | 0.075 |  |  |  |",
        "| 0.999 (unchanged) | <u>17.00</u> | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 19.73 | 0.756 | 0.036 |  |  |  |",
        "| 0.9999 | 16.00 | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 13.55 | 0.401 | 0.098 |  |  |  |",
        "| **batch size B** |  |  |  |  |  |  |",
        "| 16 | <u>15.00</u> | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 17.65 | 0.697 | 0.063 |  |  |  |",
        "| 256 (unchanged) | **17.00** | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 19.73 | 0.756 | 0.036 |  |  |  |",
        "| **teacher's β** |  |  |  |  |  |  |",
        "| 0.5 | <u>18.00</u> | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 18.41 | 0.719 | 0.053 |  |  |  |",
        "| 1 | **20.00** | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 18.08 | 0.723 | 0.055 |  |  |  |",
        "| 1 to 0 in 200,000 steps (unchanged) | 17.00 | **0.700** | **0.050** | **20.00** | 400,000 | 1.5 |",
        "| *in the paper* | 19.73 | 0.756 | 0.036 |  |  |  |",
    ]
    assert table.notes == ("The paper's rows: Table 9.",)


def test_the_paper_stands_beside_the_genuine_set_and_its_own_values_only() -> None:
    written = results(RM, {"psnr": 19.0}, data="CIFAR10")
    stand_in = [write(n, written, None, config(n, ema_decay=a)) for n, a in (("a", 0.9), ("b", 0.99))]
    (section,) = make_sections(read(*stand_in))
    assert {row.kind for row in section.sweeps[0].tables[0].rows} == {"group", "unsupervised"}
    assert section.sweeps[0].tables[0].notes == ()
    (section,) = make_sections(read(run("c", ema_decay=0.9), run("d", ema_decay=0.95)))
    assert [row.label for row in section.sweeps[0].tables[0].rows] == [
        "EMA decay α",
        "0.9 (unchanged)",
        "in the paper",
        "0.95",
    ]


def test_the_main_table_curves_and_examples_are_those_of_the_base() -> None:
    folders = [run("mixit", 16.0, "MixIT", pictures=True), *star(pictures=True)]
    (section,) = make_sections(read(*folders))
    assert [row.label for row in section.tables[0].rows if row.kind != "published"] == ["MixIT", RM]
    assert len(section.runs) == 7  # what was run names them all
    assert section.images is not None
    assert [axes.get_title() for axes in section.images.axes[:4]] == ["mixture", "MixIT", "SURF\n(ReMixIT)", "truth"]
    (figure,) = [sweep.curves for sweep in section.sweeps]
    assert figure is not None
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert legends == [["0", "0.999", "0.9999"], ["16", "256"], ["0.5", "1", SCHEDULE]]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [15.5, 17.5]  # type: ignore[union-attr]


def test_a_sweep_with_missing_pieces_reports_the_rest() -> None:
    folders = star()
    for place, part in ((0, "metrics.csv"), (4, "metrics.json")):
        Path(folders[place], part).unlink()
    page, text = report(*folders)
    assert "SURF (ReMixIT) with one setting changed" in page.headings
    (table,) = [table for table in page.tables if table[0][0] == "setting"]
    assert ["0.9999", "16.00", "0.700", "0.050", "20.00", "400,000", "1.5"] in table
    assert "0" not in [row[0] for row in table]  # alpha_0 was not tested
    assert "Of each setting, best in bold, second underlined." in page.text
    assert any("runs/surf_alpha_0: no metrics.json" in item for item in page.items)
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["report_curves.png", "report_sweep1.png"]
    assert Path("out/report_sweep1.png").is_file()
    assert "### SURF (ReMixIT) with one setting changed\n" in text


def test_table_9_is_whole_and_agrees_with_table_1() -> None:
    """All but the LPIPS of one cell: 0.036 at B = 256, 0.037 in the other places and in Table 1."""
    (cifar,) = (table for table in paper_tables() if table["facts"] == CIFAR)
    table_9 = cifar["sweeps"]
    assert table_9["metrics"] == ["psnr", "ssim", "lpips"]
    assert [len(group) for sweep in table_9["rows"].values() for group in sweep.values()] == [5, 5, 4] * 2
    for label, sweep in table_9["rows"].items():
        psnr, lpips, ssim, _ = cifar["rows"][label]
        for group, text in zip(sweep.values(), ("0.999", "256", SCHEDULE), strict=True):
            assert group[text] == [psnr, ssim, 0.036 if (label, text) == (SR, "256") else lpips]
        assert [setting.title for setting in SETTINGS] == list(sweep)
    assert table_9["rows"][SR]["batch size B"]["1"] == [8.79, 0.071, 0.379]


@pytest.mark.parametrize("text", [CONFIG, ""])
def test_runs_without_settings_to_compare_are_no_sweep(text: str) -> None:
    assert groups(*(write(name, results(RM, {"psnr": 18.0}), None, text) for name in "ab")) == []
