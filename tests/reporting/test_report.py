"""The page and the Markdown file of fabricated runs, read as a browser would."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from surf_lightning.reporting.figures import curves, thinned
from surf_lightning.reporting.report import html_page, make_sections, write_report
from surf_lightning.reporting.runs import Run
from tests.inference.test_untrusted import altered
from tests.reporting.fabricate import audio_examples, image_examples, results, write

VOID = {"meta", "img", "br"}


@dataclass
class Page(HTMLParser):
    """The parsed page: whether its tags match, its tables as rows of texts, its headings and what it embeds."""

    html: str
    open: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    marked: dict[str, list[str]] = field(default_factory=lambda: {"b": [], "u": []})
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        lists: dict[str, Any] = {"h1": self.headings, "h2": self.headings, "h3": self.headings, "li": self.items}
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag in lists:
            lists[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "th" in self.open or "td" in self.open:
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] in self.marked:
            self.marked[self.open[-1]].append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data
        if self.open and self.open[-1] == "li":
            self.items[-1] += data

    def embedded(self, kind: str) -> list[bytes]:
        """The files of a media type that it holds."""
        start = f"data:{kind};base64,"
        values = [value for _, name, value in self.attributes if name == "src" and value.startswith(start)]
        return [base64.b64decode(value[len(start) :], validate=True) for value in values]


def report(*folders: str) -> tuple[Page, str]:
    write_report([Path(folder) for folder in folders], Path("out"))
    return Page(Path("out/report.html").read_text()), Path("out/report.md").read_text()


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str, Path]]:
    """The report of MixIT and SURF on digits, their labels as wild as HTML allows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        first = write("digits_mixit", results("MixIT", {"psnr": 18.0, "ssim": 0.8}), image_examples())
        metrics: dict[str, float | None] = {"psnr": 20.125, "ssim": 0.91239}
        second = write("digits_surf_rm", results("SURF <R&M>", metrics, steps=12_000), image_examples())
        yield *report(first, second), Path("out").absolute()


def test_the_page_has_the_table(two_runs: tuple[Page, str, Path]) -> None:
    page = two_runs[0]
    assert page.tables[0] == [
        ["method", "PSNR (dB) ↑", "SSIM ↑", "steps", "minutes"],
        ["Average (m/K)", "13.46", "0.511", "", ""],
        ["MixIT", "18.00", "0.800", "4,000", "1.5"],
        ["SURF <R&M>", "20.12", "0.912", "12,000", "1.5"],
    ]
    assert page.marked == {"b": ["20.12", "0.912"], "u": ["18.00", "0.800"]}
    assert page.headings == ["Separation of Digits", "Learning curves", "Examples", "What was run"]
    assert "1,000 mixtures of 2 digits." in page.text


def test_the_page_asks_for_nothing_from_elsewhere(two_runs: tuple[Page, str, Path]) -> None:
    page = two_runs[0]
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert addresses
    assert all(re.match(r"data:|#", address) for address in addresses)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object", "base"}
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert (
        "meta",
        "content",
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'",
    ) in page.attributes


def test_the_page_says_what_was_run(two_runs: tuple[Page, str, Path]) -> None:
    page = two_runs[0]
    facts = [dict(zip(page.tables[1][0], row, strict=True)) for row in page.tables[1][1:]]
    assert facts[1] == {
        "run": "runs/digits_surf_rm",
        "method": "SURF <R&M>",
        "seed": "7",
        "steps": "12,000",
        "minutes": "1.5",
    }
    assert (
        "Of all runs: hardware one fast <GPU> · commit 0123456789 with changes · version 0.1.0 · "
        "checkpoint runs/x/checkpoints/best.ckpt."
    ) in page.text
    assert page.text.count("class_path: surf_lightning.data.Digits") == 2
    assert "runs/digits_mixit/config.yaml" in page.text


def test_the_page_holds_its_pictures(two_runs: tuple[Page, str, Path]) -> None:
    page = two_runs[0]
    (drawing,) = page.embedded("image/svg+xml")
    assert drawing.startswith(b"<?xml")
    (png,) = page.embedded("image/png")
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert pixels.shape[1] > 400
    assert pixels.std() > 10


def test_the_markdown_has_the_same_table_and_its_pictures_beside_it(two_runs: tuple[Page, str, Path]) -> None:
    _, text, folder = two_runs
    assert text.startswith("# Separation of Digits\n")
    assert "| SURF &lt;R&amp;M&gt; | **20.12** | **0.912** | 12,000 | 1.5 |\n" in text
    assert "1,000 mixtures of 2 digits." in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures == ["report.png", "report_curves.png"]
    assert all(Image.open(folder / name).width > 300 for name in pictures)
    assert "| runs/digits_mixit | MixIT | 7 | 4,000 | 1.5 |\n" in text
    assert "\nOf all runs: hardware one fast &lt;GPU&gt; · commit 0123456789abcdef" in text
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", *pictures}


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    write_report([Path(write("a", results("MixIT", {"psnr": 18.0, "ssim": 0.8}), None, config=""))], Path("out"))
    printed = capsys.readouterr().out
    assert "| MixIT | **18.00** | **0.800** | 4,000 | 1.5 |" in printed
    assert "written to out/report.html" in printed


def test_a_run_that_is_named_twice_is_reported_once() -> None:
    folder = write("a", results("MixIT", {"psnr": 18.0}), image_examples(2), config="")
    page, _ = report(folder, f"./{folder}/", str(Path(folder).resolve()))
    assert [row[0] for row in page.tables[0]] == ["method", "Average (m/K)", "MixIT"]


def test_runs_of_one_method_are_told_apart_everywhere() -> None:
    metrics: dict[str, float | None] = {"psnr": 18.0}
    folders = [write(name, results("MixIT", metrics), image_examples(2), config="") for name in "ab"]
    (section,) = sections(*folders)
    assert [row.label for row in section.tables[0].rows[1:]] == ["MixIT, a", "MixIT, b"]
    titles = [axes.get_title() for axes in section.images.axes[:4]]
    assert titles == ["mixture", "MixIT,\na", "MixIT,\nb", "truth"]


def test_a_run_with_missing_pieces_still_reports_the_rest() -> None:
    bare = write("bare", results("MixIT", {"psnr": 18.0, "ssim": 0.8}), None, config="")
    trained = write("trained", None, None)
    page, text = report(bare, trained)
    assert page.tables[0][-1] == ["MixIT", "18.00", "0.800", "4,000", "1.5"]
    assert page.headings == ["Separation of Digits", "Learning curves", "What is missing", "What was run"]
    expected = [
        "runs/bare: no config.yaml: surf fit writes it; no metrics.csv: the run was not logged to it; "
        "no test_examples.pt: surf test writes it.",
        "runs/trained: no metrics.json: surf test writes it; no test_examples.pt: surf test writes it.",
    ]
    assert page.items == expected
    for item in expected:
        assert f"- {item}\n" in text
    assert [row[0] for row in page.tables[1][1:]] == ["runs/bare", "runs/trained"]


def test_an_untested_run_shows_the_pictures_or_sounds_of_its_latest_validation() -> None:
    folder = write("trained", None, None)
    media = Path(folder, "media")
    media.mkdir()
    Image.new("L", (4, 3), 128).save(media / "step_0000100_1.png")
    page, _ = report(folder)
    assert "trained: its latest validation" in page.headings
    (picture,) = page.embedded("image/png")
    assert Image.open(io.BytesIO(picture)).size == (4, 3)

    signals = {"mixture": [2.0, -1.0, 0.5], "estimate1": [1.0, 0.0, 0.0], "estimate2": [1.0, -1.0, 0.5]}
    for name, signal in signals.items():
        path = media / f"step_0000100_1_{name}.wav"
        soundfile.write(path, np.pad(signal, (0, 1000)), 8000, subtype="FLOAT")
    page, _ = report(folder)
    assert "trained: its latest validation" in page.headings
    assert len(page.embedded("image/png")) == 3, "a spectrogram each"
    for found, expected in zip(page.embedded("audio/flac"), signals.values(), strict=True):
        signal, rate = soundfile.read(io.BytesIO(found))
        assert rate == 8000
        np.testing.assert_allclose(signal[:3], np.array(expected) * 0.99 / 2, atol=1e-4)


def test_sounds_can_be_heard_beside_the_truth_in_its_order_at_one_gain() -> None:
    examples = audio_examples()
    folder = write(
        "libri2mix_mixit", results("MixIT", {"si_sdr": 12.0}, data="Libri2Mix", average={}), examples, config=""
    )
    page, _ = report(folder)
    players = [soundfile.read(io.BytesIO(sound))[0] for sound in page.embedded("audio/flac")]
    assert len(players) == len(page.embedded("image/png")) == 10  # of each mixture: itself, two true, two found
    assert [row[0] for row in page.tables[1]] == ["mixture", "", "truth", "MixIT"]
    assert page.tables[1][1] == ["", "source 1", "source 2"]
    for number, (mixture, *others) in enumerate((players[:5], players[5:])):
        truth = examples["sources"][number][:2]
        gain = 0.99 / float(examples["mixtures"][number].abs().max())
        np.testing.assert_allclose(mixture, gain * examples["mixtures"][number].numpy(), atol=1e-4)
        for player, signal in zip(others, [*truth, *truth], strict=True):
            np.testing.assert_allclose(player, gain * signal.numpy(), atol=1e-4)


def test_estimates_that_have_diverged_are_left_out_of_the_sounds() -> None:
    examples = audio_examples()
    examples["estimates"][1][0] = torch.nan
    page, _ = report(write("x", results("MixIT", {"si_sdr": None}, data="FUSS"), examples, config=""))
    assert len(page.embedded("audio/flac")) == 8


def sections(*folders: str) -> Any:
    return make_sections([Run.read(Path(folder)) for folder in folders])


def test_each_data_set_has_a_section_and_each_protocol_a_table() -> None:
    few = results("MixIT", {"psnr": 18.0}, protocol="Ten mixtures.")
    mnist = results("MixIT", {"psnr": 18.0}, data="MNIST")
    folders = [
        write("a", results("MixIT", {"psnr": 18.0}), None, config=""),
        write("b", mnist, None, config=""),
        write("c", few, None, config=""),
        write("d", results("SURF", {"psnr": 19.0}), None, config=""),
    ]
    digits, other = sections(*folders)
    assert (digits.title, other.title) == ("Digits", "MNIST")
    assert [[row.label for row in table.rows] for table in digits.tables] == [
        ["Average (m/K)", "MixIT", "SURF"],
        ["Average (m/K)", "MixIT"],
    ]
    page, text = report(*folders)
    assert [heading for heading in page.headings if heading in ("Digits", "MNIST")] == ["Digits", "MNIST"]
    assert ("a", "href", "#MNIST") in page.attributes
    assert text.count("## ") == 2


def test_examples_of_other_mixtures_are_not_set_side_by_side() -> None:
    metrics: dict[str, float | None] = {"psnr": 18.0}
    folders = [write(str(seed), results("MixIT", metrics), image_examples(seed=seed), config="") for seed in (0, 1)]
    (section,) = sections(*folders)
    assert "runs/1: no examples, for its mixtures are not those of runs/0." in section.missing


def seeded(name: str, seed: int, teacher: str = "", steps: int = 9) -> str:
    model = f"{{class_path: S, init_args: {{mixit_checkpoint: {teacher}/checkpoints/last.ckpt}}}}"
    config = f"{{seed_everything: {seed}, name: {name}, model: {model}, trainer: {{max_steps: {steps}}}}}"
    return write(name, results("SURF", {"psnr": 18.0 + seed}, seed=seed), None, config=config)


def test_runs_of_one_configuration_pool_their_seeds_whatever_they_are_called() -> None:
    teachers = [seeded(name, seed) for name, seed in (("t", 0), ("u", 1))]
    runs = [seeded(name, seed, teachers[seed]) for name, seed in (("x", 0), ("y", 1))]
    others = [seeded("z", 1, "runs/none"), seeded("long", 1, teachers[0], steps=10), seeded("again", 0, teachers[0])]
    assert len(sections(runs[1])[0].tables[0].rows) == 2
    (both,) = sections(*runs)
    assert [row.label for row in both.tables[0].rows[1:]] == ["SURF"]
    assert both.tables[0].notes == ("SURF over 2 seeds: 18.50 ± 0.71 dB (seed 0: 18.00, seed 1: 19.00).",)
    assert len(both.runs) == 2  # what was run names them all
    (all_,) = sections(*runs, *others)
    assert [row.label for row in all_.tables[0].rows[1:]] == ["SURF, x", "SURF, again"]  # the same seed is no other
    assert all_.tables[0].notes == both.tables[0].notes
    assert all_.sweeps[0].tables[0].rows[0].label  # another teacher, another length


def mixtures_heard(name: str, method: str, sources: int, mixture: list[float]) -> str:
    model = f"model: {{class_path: {method}, init_args: {{}}}}"
    folder = write(name, None, None, config=f"{{data: {{class_path: a.Folder}}, {model}}}")
    Path(folder, "media").mkdir()
    Path(folder, "metrics.csv").write_text("step,epoch,name,value\n9,0,val/momi,1.5\n9,0,val/loss,20.0\n9,0,loss,3.0\n")
    estimates = torch.eye(3)[:sources] * torch.tensor(mixture)
    estimates[-1] += torch.tensor(mixture) - estimates.sum(0)
    parts = {"mixture": torch.tensor(mixture)}
    parts |= {f"estimate{k + 1}": each for k, each in enumerate(estimates.flip(0) if method == "b.B" else estimates)}
    for part, signal in parts.items():
        path = Path(folder, "media", f"step_0000009_1_{part}.wav")
        soundfile.write(path, np.pad(signal.numpy(), (0, 1000)), 8000, subtype="FLOAT")
    return folder


def test_methods_without_truth_stand_side_by_side_and_losses_apart() -> None:
    first, second = (
        mixtures_heard("one", "a.A", 2, [0.9, -0.5, 0.25]),
        mixtures_heard("two", "b.B", 2, [0.9, -0.5, 0.25]),
    )
    other = mixtures_heard("other", "c.C", 2, [0.1, 0.2, 0.3])
    page, text = report("runs")
    assert [heading for heading in page.headings if "latest" in heading] == [
        "A, B: their latest validation",
        "C: its latest validation",
    ]
    side_by_side = next(table for table in page.tables if table[0][0] == "mixture")
    assert [row[0] for row in side_by_side] == ["mixture", "", "A", "B"]
    heard = [soundfile.read(io.BytesIO(sound))[0][:3] for sound in page.embedded("audio/flac")[:5]]
    np.testing.assert_allclose(heard[1:3], heard[3:5], atol=1e-4)  # in the order of the first
    assert "| A | **1.50** | **1.50** | 10 |" in text
    (section,) = sections(first, second, other)
    titles = [axes.get_title("left") for axes in section.curves.axes if axes.get_title("left")]
    assert titles == ["Held-out mixtures: MoMi (dB)", *(f"{name}: loss (dashed: held out)" for name in "ABC")]


def test_pictures_of_colour_and_of_three_sources_are_drawn() -> None:
    examples = image_examples(2, 3, (3, 32, 32))
    page, _ = report(write("c", results("MixIT", {"psnr": 18.0}), examples, config=""))
    (png,) = page.embedded("image/png")
    red, _, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), 2, 0)
    assert (red != blue).any()


def test_the_first_score_is_drawn_against_minutes_too_where_all_paces_are_known() -> None:
    scores = {"val/psnr": {399: 15.0, 799: 18.0, 1199: 19.0}}
    tested = Run(Path("runs/a"), {"metrics": results("MixIT", {}, steps=800, seconds=120.0)}, curves=scores)
    panels = curves([tested], {}).axes
    assert [panel.get_xlabel() for panel in panels if panel.axison] == ["step", "minute"]
    np.testing.assert_allclose(panels[1].lines[0].get_xdata(), np.array([399, 799, 1199]) * 2 / 800)
    again = Run(Path("runs/c"), {"metrics": results("MixIT", {}, steps=800, seconds=240.0)}, curves=scores)
    panels = curves([tested], {tested.folder: [again]}).axes  # at its own pace
    np.testing.assert_allclose(panels[1].lines[0].get_xdata(), np.array([399, 799, 1199]) * 4 / 800)
    panels = curves([tested, Run(Path("runs/b"), curves=scores)], {}).axes
    assert [panel.get_xlabel() for panel in panels if panel.axison] == ["step"]


def test_a_long_curve_is_thinned_to_means() -> None:
    steps, values = thinned({step: float(step % 2) for step in range(6000)})
    assert len(steps) == len(values) == 300
    assert steps[0] == 9.5
    np.testing.assert_allclose(values, 0.5)
    steps, values = thinned({3: 1.5, 8: 2.5})
    assert (steps.tolist(), values.tolist()) == ([3, 8], [1.5, 2.5])


HOSTILE = "</td><script>alert(1)</script> | $\\frac{ [x](javascript:alert(1)) \n# `"


def test_what_a_strangers_run_says_is_shown_as_text() -> None:
    metrics = {"psnr": 18.0, HOSTILE: 1.0}
    facts = dict.fromkeys(("protocol", "hardware", "commit", "version", "checkpoint"), HOSTILE)
    folder = write(
        "a<b>", results(HOSTILE, metrics, **facts | {"data": "../../" + HOSTILE}), image_examples(), config=""
    )
    other = write("b", results("MixIT", metrics), None, config="")
    write_report([Path(folder), Path(other)], Path("out/report"))
    assert {path.parent.as_posix() for path in Path("out").rglob("*.*")} == {"out/report"}
    Page(Path("out/report/report.html").read_text())
    for name in ("report.html", "report.md"):
        text = Path("out/report", name).read_text()
        assert "<script" not in text
        assert name == "report.html" or "[x]" not in text.replace("\\[x]", "")


PARTS = ("metrics.json", "config.yaml", "metrics.csv", "test_examples.pt")


def shown_or_missing(name: str, content: bytes) -> None:
    """A report of a run whose part ``name`` has this content."""
    if not Path("runs").exists():
        for run in ("good", "bad"):
            write(run, results("MixIT", {"psnr": 18.0}), image_examples())
    for part in PARTS:
        Path("runs/bad", part).write_bytes(Path("runs/good", part).read_bytes())
    Path("runs/bad", name).write_bytes(content)
    html_page("title", make_sections([Run.read(Path("runs/bad"))]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def altered_results(draw: st.DrawFn) -> bytes:
    content = results("MixIT", {"psnr": 18.0})
    names = st.sampled_from([*content, "mean_of_samples", "other"])
    return json.dumps({**content, **draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))}).encode()


def check_any_run(data: st.DataObject) -> None:
    """Any bytes, altered bytes of a part, an altered structure."""
    name = data.draw(st.sampled_from(PARTS))
    kinds = [st.binary(max_size=60), altered(Path("runs/good", name).read_bytes())] if Path("runs").exists() else []
    kinds += [altered_results()] if name == "metrics.json" else []
    kinds += [VALUES.map(lambda value: yaml.safe_dump({"data": value}).encode())] if name == "config.yaml" else []
    shown_or_missing(name, data.draw(st.one_of(kinds)))
