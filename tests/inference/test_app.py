"""The page of `surf app`: what it does without a browser, and in one."""

from __future__ import annotations

import io
import runpy
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from surf_lightning.cli import main
from surf_lightning.errors import UserError
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator
from tests.inference.test_streaming import LocalVelocity
from tests.tiny import regression, velocity

gr = pytest.importorskip("gradio")
from surf_lightning.inference import app  # noqa: E402
from surf_lightning.inference.app import Page, launch  # noqa: E402

RATE = 8000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def flow() -> Separator:
    separator = FlowSeparator(LocalVelocity(2), num_steps=2)
    separator.signal = {"kind": "audio", "sample_rate": RATE}
    return separator


def images(separator: Separator) -> Separator:
    separator.signal = {"kind": "image", "shape": [1, 8, 8]}
    return separator


def recording(path: str = "field.wav", seconds: float = 1.5) -> str:
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 440 * time) + 0.02 * noise, RATE, subtype="PCM_16")
    return path


def visit(page: Page, path: str | None, num_samples: int = 1, seed: int = 0) -> Iterator[list[Any]]:
    return page.separate(path, num_samples, seed, lambda share: None)


def read(path: str | Path) -> np.ndarray:
    return soundfile.read(path, dtype="float64")[0]


@pytest.mark.parametrize("suffix", [".wav", ".aiff"])
def test_the_sources_of_a_recording_sum_to_it(suffix: str) -> None:
    path, shares = recording(f"field{suffix}"), []
    for shown in Page(flow(), "toy").separate(path, 1, 0, shares.append):  # its files are there while it is shown
        _, first, spectrogram, second, _, curve, files, remarks = shown
        np.testing.assert_allclose(read(first) + read(second), read(path), atol=1e-6)
        assert files == [first, second]
        assert Path(first).suffix in (".wav", ".flac")  # what browsers play
        assert np.array(Image.open(spectrogram)).std() > 1
        assert not curve["visible"]
        assert "full scale" in remarks  # the toy is loud
    assert not Path(files[0]).exists()


def test_several_samples_have_a_curve() -> None:
    for shown in visit(Page(flow(), "toy"), recording(), num_samples=3):
        assert shown[5]["visible"]
        table = np.loadtxt(shown[6][2], delimiter=",", skiprows=1)
        assert table.shape == (15, 3)
        assert (table[:, 1:] > 0).all()


def test_another_draw_is_another_sample() -> None:
    Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)).save("mixture.png")
    page = Page(images(FlowSeparator(velocity())), "toy")
    drawn = [Path(shown[4][0]).read_bytes() for seed in (0, 0, 1) for shown in visit(page, "mixture.png", 2, seed)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_image_of_another_size_is_scaled_and_separated() -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save("photo.png")
    for mixture, first, second, _, files, remarks in visit(
        Page(images(RegressionSeparator(regression(2), 2)), "toy"), "photo.png"
    ):
        assert "scaled to 8x8" in remarks
        assert [Image.open(file).size for file in files] == [(8, 8), (8, 8)]
        assert Image.open(mixture).size == Image.open(first).size == Image.open(second).size == (256, 256)


@pytest.mark.parametrize("content", [None, b"no sound", b""])
def test_what_cannot_be_separated_is_said(content: bytes | None) -> None:
    path = None if content is None else "x.wav"
    if path:
        Path(path).write_bytes(content)
    with pytest.raises(gr.Error):
        next(visit(Page(flow(), "toy"), path))


def test_a_long_recording_is_refused_before_it_is_read() -> None:
    with pytest.raises(gr.Error, match=r"0\.1 minutes; this page takes 0\.05"):
        next(visit(Page(flow(), "toy", max_minutes=0.05), recording(seconds=4)))


def test_no_input_of_the_page_names_a_checkpoint() -> None:
    """Visitors send a recording, a number of samples, and what the page itself counts; nothing else is taken."""
    config = Page(flow(), "toy").blocks().config
    kinds = {component["id"]: component["type"] for component in config["components"]}
    taken = {kinds[number] for function in config["dependencies"] for number in function["inputs"]}
    assert taken == {"audio", "slider", "state"}


def test_a_long_recording_shows_how_far_it_is() -> None:
    path, shares = recording(seconds=30), []
    list(Page(flow(), "toy").separate(path, 1, 0, shares.append))
    assert len(set(shares)) > 3
    assert shares == sorted(shares)


def test_a_space_runs_the_same_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SURF_CHECKPOINT", "digits")
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: (None, "here", None))
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: None)
    runpy.run_path(app.__file__, run_name="__main__")
    assert "digits at here" in capsys.readouterr().out


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, app.__name__)
    assert main(["app", "--checkpoint", "digits"]) == 2
    assert "pip install 'surf-lightning[app]'" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")
def test_in_a_browser() -> None:
    """A wav is uploaded: two players and spectrograms appear, the sources sum to it, nothing is asked of others."""
    playwright = pytest.importorskip("playwright.sync_api")
    address = launch(Page(flow(), "A toy"), free_port(), block=False)
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.set_input_files("input[type=file]", recording())
        tab.locator("a[download][href$='field.wav']").wait_for(timeout=60_000)
        tab.get_by_role("button", name="Separate", exact=True).click()
        for k in (1, 2):
            tab.locator(f"img[src$='spectrogram{k}.png']").wait_for(timeout=60_000)
            tab.locator("audio[src]").nth(k).wait_for(state="attached", timeout=60_000)  # the first is the input's
        links = [tab.locator(f"a[href$='field_source{k}.wav']").first.get_attribute("href") for k in (1, 2)]
        found = [soundfile.read(io.BytesIO(tab.request.get(link).body()))[0] for link in links]
        refused = call(tab.request, address, str(Path("field.wav").absolute()))
        browser.close()
    assert "event: error" in refused  # a file of the server's own
    np.testing.assert_allclose(sum(found), read("field.wav"), atol=1e-6)
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)


def call(request: Any, address: str, path: str) -> str:
    """What the page answers to a program that names a file of the server in place of an upload."""
    data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 1, 0]}
    event = request.post(f"{address}gradio_api/call/separate", data=data).json()["event_id"]
    return str(request.get(f"{address}gradio_api/call/separate/{event}").text())


def test_a_port_that_cannot_be_served_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (70000, -1, taken.getsockname()[1]):
            with pytest.raises(UserError, match=f"--port {port} cannot be served"):
                launch(Page(flow(), "toy"), port, block=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
