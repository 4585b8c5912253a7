"""The command `surf separate` as a person uses it, on tiny and toy separators."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from surf_lightning.audio.index import index_audio
from surf_lightning.cli import main
from surf_lightning.inference.checkpoint import KEY, checkpoint_metadata
from surf_lightning.inference.export import export
from surf_lightning.inference.inputs import output_stems
from surf_lightning.inference.journal import Journal
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator
from surf_lightning.inference.workers import Worker
from surf_lightning.networks.base import RegressionNetwork, serializable
from surf_lightning.networks.conv_tasnet import ConvTasNet
from tests.audio import trees as audio_trees
from tests.inference.test_streaming import Filters, LocalVelocity, sound

ROOT = Path(__file__).parents[2]
AUDIO = {"kind": "audio", "sample_rate": 8000}
IMAGE = {"kind": "image", "shape": [3, 6, 5]}


@serializable
class Halves(RegressionNetwork):
    """Of an image: its left and right parts, the residual shared equally."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.num_outputs, self.gain = 2, torch.nn.Parameter(torch.tensor(gain))

    def forward(self, mixtures: Tensor) -> Tensor:
        left = self.gain * mixtures * (torch.arange(mixtures.shape[-1]) < 2)
        return torch.stack([left, mixtures - left], 1)


def save(separator: Separator, signal: dict[str, Any], path: str = "a.ckpt") -> str:
    module = types.SimpleNamespace(separator=separator, signal=signal, needs_sources=False)
    weights = {f"separator.{key}": value for key, value in separator.state_dict().items()}
    torch.save({KEY: checkpoint_metadata(module), "state_dict": weights}, path)
    return path


def record(path: str, seconds: float = 2.5, rate: int = 8000, channels: int = 1, subtype: str = "PCM_16") -> np.ndarray:
    """Write a recording; returns what it holds, ``[T,C]``."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, channels, rate).T.numpy(), rate, subtype)
    return read(path)


def read(path: str | Path) -> np.ndarray:
    return soundfile.read(path, dtype="float64", always_2d=True)[0]


def separate(*args: str, checkpoint: str = "a.ckpt") -> int:
    return main(["separate", *args, "--checkpoint", checkpoint, "--output", "out", "--trust", "--device", "cpu"])


def files(folder: str = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def table(path: str, **options: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file, **options))


def manifest() -> list[dict[str, str]]:
    return table("out/manifest.csv")


def summary(folder: str = "out") -> dict[str, Any]:
    return json.loads(Path(folder, "summary.json").read_text())


def failures() -> dict[str, str]:
    """Why the inputs of these names failed."""
    return {Path(row["input"]).name: row["reason"] for row in summary()["failed"]}


def made(folder: str = "out") -> list[str]:
    """The outputs without the bookkeeping."""
    books = {"journal.jsonl", "manifest.csv", "manifest.json", "manifest.raven.txt", "summary.json"}
    return [name for name in files(folder) if name not in books]


# -- what comes out --


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("a.wav", 8000, 1, "PCM_16"),
        ("a.WAV", 44100, 2, "PCM_24"),
        ("a.flac", 48000, 2, "PCM_16"),
        ("a.wav", 16000, 1, "FLOAT"),
        ("a.aiff", 22050, 1, "PCM_16"),
    ],
)
def test_sources_have_the_form_of_the_input_and_sum_to_it(
    toy: str, name: str, rate: int, channels: int, subtype: str
) -> None:
    samples = record(name, 2.5, rate, channels, subtype)
    assert separate(name) == 0
    stem, suffix = os.path.splitext(name)
    assert made() == [f"{stem}_source{k}{suffix}" for k in (1, 2)]
    for path in made():
        there, here = soundfile.info(name), soundfile.info(f"out/{path}")
        for part in ("samplerate", "channels", "frames", "format", "subtype"):
            assert getattr(here, part) == getattr(there, part)
    total = sum(read(f"out/{path}") for path in made())
    np.testing.assert_allclose(total, samples, atol=1e-7 if subtype == "FLOAT" else 1e-12)
    assert all(np.abs(read(f"out/{path}")).max() > 0.01 for path in made())


def test_a_tiny_network_through_a_checkpoint_of_its_own_and_through_an_exported_folder() -> None:
    torch.manual_seed(0)
    network = ConvTasNet(4, 2, filters=16, bottleneck=8, hidden=16, repeats=1, blocks=2)
    save(RegressionSeparator(network, 2), {"kind": "audio", "sample_rate": 16000})
    samples = record("a.wav", 3.0, 44100, 2)
    assert main(["separate", "a.wav", "--checkpoint", "a.ckpt", "--output", "out"]) == 0
    np.testing.assert_allclose(sum(read(f"out/a_source{k}.wav") for k in (1, 2)), samples, atol=1e-12)
    export("a.ckpt", Path("exported"))
    assert main(["separate", "a.wav", "--checkpoint", "exported", "--output", "out2"]) == 0
    for k in (1, 2):
        assert Path(f"out/a_source{k}.wav").read_bytes() == Path(f"out2/a_source{k}.wav").read_bytes()


@pytest.mark.parametrize("choice", ["mix", "each", "first"])
def test_channels(toy: str, choice: str) -> None:
    samples = record("a.wav", channels=2, subtype="FLOAT")
    assert separate("a.wav", "--channels", choice) == 0
    expected = {"mix": samples.mean(1, keepdims=True), "each": samples, "first": samples[:, :1]}[choice]
    np.testing.assert_allclose(sum(read(f"out/{path}") for path in made()), expected, atol=1e-7)


def test_clipping_sources_are_written_as_float_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    save(Filters(gain=40.0), AUDIO)
    samples = record("a.flac")
    assert separate("a.flac") == 0
    assert made() == ["a_source1.wav", "a_source2.wav"]
    assert {soundfile.info(f"out/{path}").subtype for path in made()} == {"FLOAT"}
    assert max(np.abs(read(f"out/{path}")).max() for path in made()) > 1
    np.testing.assert_allclose(sum(read(f"out/{path}") for path in made()), samples, atol=1e-5)
    assert "32-bit float" in capsys.readouterr().out


def test_lossy_inputs_give_wav_of_the_same_length_and_it_is_said(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, subtype in (("a.ogg", "VORBIS"), ("b.mp3", "MPEG_LAYER_III")):
        samples = record(name, subtype=subtype)
        assert separate(name) == 0
        sources = [read(f"out/{Path(name).stem}_source{k}.wav") for k in (1, 2)]
        np.testing.assert_allclose(sum(sources), samples, atol=2.0**-16)
        assert subtype in capsys.readouterr().out


def test_posterior_samples_give_a_mean_and_an_uncertainty_curve() -> None:
    separator = FlowSeparator(LocalVelocity(2), num_steps=3)
    save(separator, AUDIO)
    samples = record("a.wav", 1.05, subtype="FLOAT")
    assert separate("a.wav", "--num-samples", "4") == 0
    assert made() == ["a_source1.wav", "a_source2.wav", "a_uncertainty.csv"]
    np.testing.assert_allclose(sum(read(f"out/a_source{k}.wav") for k in (1, 2)), samples, atol=1e-6)
    rows = table("out/a_uncertainty.csv")
    assert [float(row["time"]) for row in rows] == pytest.approx([*(0.05 + 0.1 * i for i in range(10)), 1.025])
    assert all(0 < float(row[f"source{k}"]) < 2 for row in rows for k in (1, 2))


# -- inputs --


def test_folders_are_mirrored_globs_expanded_and_other_files_left_alone(toy: str) -> None:
    for name in ("field/a.wav", "field/day 1/b.WAV", "field/day 1/.hidden.wav", "field/out/old.wav", "single.wav"):
        record(name, 0.3)
    Path("field/notes.txt").write_text("rain")
    main(["separate", "field", "single.wav", "--checkpoint", "a.ckpt", "--output", "field/out", "--trust"])
    names = [f"{stem}_source{k}" for stem in ("a", "day 1/b", "single") for k in (1, 2)]
    assert {os.path.splitext(name)[0] for name in made("field/out")} == {*names, "old"}
    assert separate("field/*/b.WAV", "fiel*/**/a.wav") == 0
    assert made() == [f"day 1/b_source{k}.WAV" for k in (1, 2)] + [f"field/a_source{k}.wav" for k in (1, 2)]


def test_what_the_command_wrote_is_no_input_of_the_next(toy: str) -> None:
    record("field/a.wav", 0.3)
    record("field/out/deep/old.wav", 0.3)
    for pattern in ("field", "field/*", "field/**", "fi*/**/*.wav"):
        args = ["separate", pattern, "--checkpoint", "a.ckpt", "--output", "field/out", "--trust", "--overwrite"]
        assert main(args) == 0
        assert summary("field/out")["separated"] == 1


def test_recordings_that_are_trained_on_are_separated_too(toy: str) -> None:
    """Formats, links and hidden files are the same for both; so are the reasons why a file cannot be read."""
    soundfile.write("field.opus", sound(1.0).T.numpy(), 8000, "OPUS", format="OGG")
    audio_trees.broken(Path("disk/broken"))
    Path("in").mkdir()
    for name in ("field.opus", "disk"):
        Path("in", name).symlink_to(Path(name).absolute())
    assert separate("in") == 1
    failed = failures()
    indexed = dict(zip(failed, index_audio(Path("disk/broken"), list(failed)), strict=True))
    for name in ("empty.wav", "text.wav", "no_samples.wav", "endless.flac"):
        assert failed[name] == indexed[name].reason
    assert {"field_source1.wav", "disk/broken/slow_source1.wav"} <= set(made())


def stems(*paths: str) -> list[str]:
    return list(output_stems({Path(path): Path(Path(path).name) for path in paths}))


def test_inputs_of_one_name_get_stems_of_their_own() -> None:
    assert stems("x/a.wav", "y/b.wav") == ["a", "b"]
    assert stems("x/a.wav", "y/a.wav", "y/b.wav") == ["x/a", "y/a", "y/b"]
    assert stems("x/a.wav", "x/a.flac") == ["a_wav", "a_flac"]
    assert stems("a.b.wav", "a.wav") == ["a.b", "a"]
    # A stem made longer is no other's either, in whichever order they come.
    assert stems("a.flac", "a.wav", "a_wav.wav") == ["a_flac", "a_wav_wav", "a_wav"]
    assert stems("a_wav.wav", "a.wav", "a.flac") == ["a_wav", "a_wav_wav", "a_flac"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere.wav"], "nowhere.wav"),
        (["no*.wav"], "no file matches"),
        (["empty"], "no file to separate"),
        (["a.wav", "--device", "cuda:77"], "cuda:77"),
        (["a.wav", "--device", "gpu"], "--device gpu"),
        (["a.wav", "--num-samples", "0"], "at least 1"),
        (["a.wav", "--num-samples", "3", "--checkpoint", "regression.ckpt"], "no posterior"),
        (["a.wav", "--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
        (["a.wav", "--checkpoint", "a.wav"], "checkpoint"),
        (["a.wav", "--checkpoint", "empty"], "config.json"),
        (["a.wav", "--output", "a.wav"], "cannot be written"),
        (["folder", "--output", "folder"], "output folder"),
        (["a.wav", "--channels", "last"], "--channels"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_written(
    toy: str, args: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    record("a.wav", 0.1)
    record("folder/a.wav", 0.1)
    Path("empty").mkdir()
    network = ConvTasNet(2, 2, filters=4, bottleneck=4, hidden=4, repeats=1, blocks=1)
    save(RegressionSeparator(network, 2), AUDIO, "regression.ckpt")
    before = files(".")
    try:
        status = main(["separate", "--checkpoint", "a.ckpt", "--output", "out", "--trust", *args])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    captured = capfd.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert files(".") == before


def test_a_full_disk_is_noticed_before(
    toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record("a.wav", 1.0)
    usage = types.SimpleNamespace(free=31_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert separate("a.wav") == 2
    assert "free" in capsys.readouterr().err
    usage.free = 32_000  # two sources of 8000 samples of 2 bytes
    assert separate("a.wav") == 0


def test_broken_inputs_are_reported_and_the_rest_is_done(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "z"):
        record(f"in/{name}.wav", 0.5)
    Path("in/empty.wav").write_bytes(b"")
    Path("in/text.wav").write_text("this is not audio\n")
    soundfile.write("in/nan.wav", np.full(800, np.nan), 8000, "FLOAT")
    record("whole.flac", 3)
    Path("in/truncated.flac").write_bytes(Path("whole.flac").read_bytes()[:5000])
    soundfile.write("in/silent.wav", np.zeros(800), 8000)
    assert separate("in") == 1
    assert {name.split("_")[0] for name in made()} == {"a", "silent", "z"}
    assert failures().keys() == {"empty.wav", "text.wav", "nan.wav", "truncated.flac"}
    printed = capsys.readouterr().out
    assert all(f"in/{name}: {reason}" in printed for name, reason in failures().items())
    assert "4 failed" in printed


def test_an_odd_file_stops_only_itself(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record("in/a.wav", 0.5)
    record(f"in/{'n' * 240}.wav", 0.5)
    os.mkfifo("in/pipe.wav")
    os.symlink("loop.wav", "in/loop.wav")
    record("in/liar.wav", 1.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=30_000))
    assert separate("in") == 1
    assert made() == ["a_source1.wav", "a_source2.wav"]
    said = {name[:4]: reason for name, reason in failures().items()}
    assert said.keys() == {"nnnn", "pipe", "loop", "liar"}
    assert "32.0kB" in said["liar"]
    assert "regular" in said["pipe"]


# -- what was done before --


def test_the_manifest_says_what_each_output_is(toy: str) -> None:
    record("in/a.wav", 2.5)
    record("in/b.flac", 1.0, 16000, 2)
    assert separate("in") == 0
    rows = manifest()
    assert [row["Begin File"] for row in rows] == made()
    assert json.loads(Path("out/manifest.json").read_text())[0].keys() == rows[0].keys()
    assert table("out/manifest.raven.txt", delimiter="\t") == rows
    assert list(rows[0])[:7] == [
        "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"
    ]  # fmt: skip
    for row in rows:
        samples = read(row["Begin Path"])
        assert float(row["Energy"]) == pytest.approx((samples**2).sum(), rel=1e-2)
        seconds = len(samples) / (8000 if row["Begin File"].startswith("a") else 16000)
        assert float(row["Duration (s)"]) == float(row["End Time (s)"]) == seconds
        assert float(row["Offset (s)"]) == float(row["File Offset (s)"]) == 0
    assert [row["Input"] for row in rows] == ["in/a.wav"] * 2 + ["in/b.flac"] * 2
    found = summary()
    assert (found["audio_seconds"], found["separated"]) == (3.5, 2)
    assert found["real_time_factor"] == pytest.approx(found["seconds"] / 3.5)
    record("c.wav", 0.5)
    assert separate("c.wav") == 0
    assert len(manifest()) == 6


def test_nothing_is_overwritten_without_the_word(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    record("a.wav", 0.5)
    assert separate("a.wav") == 0
    Path("out/a_source1.wav").write_text("mine")
    assert separate("a.wav") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("out/a_source1.wav").read_text() == "mine"
    assert separate("a.wav", "--overwrite") == 0
    assert len(read("out/a_source1.wav")) == 4000


def test_a_manifest_that_is_not_ours_is_not_overwritten(toy: str) -> None:
    record("a.wav", 0.5)
    Path("out").mkdir()
    Path("out/manifest.csv").write_text("mine")
    assert separate("a.wav") == 2
    assert Path("out/manifest.csv").read_text() == "mine"


def test_an_input_is_never_overwritten(toy: str) -> None:
    record("out/a.wav", 0.5)
    record("out/a_source1.wav", 0.5)
    before = Path("out/a_source1.wav").read_bytes()
    assert separate("out/a.wav", "out/a_source1.wav", "--overwrite") == 2
    assert Path("out/a_source1.wav").read_bytes() == before


def test_sources_under_another_name_do_not_outlive_their_replacement(toy: str) -> None:
    record("a.flac", 0.5)
    assert separate("a.flac") == 0
    save(Filters(gain=40.0), AUDIO)
    assert separate("a.flac", "--overwrite") == 0
    assert made() == ["a_source1.wav", "a_source2.wav"]
    assert [row["Begin File"] for row in manifest()] == made()


def killed(run: Callable[[], object]) -> None:
    """Do it in a process of its own, which kills itself."""
    if (child := os.fork()) == 0:
        try:
            run()
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_an_interrupted_batch_goes_on_where_it_was(
    toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        record(f"in/{name}.wav", 0.5)
    replace, count = os.replace, 0

    def kill_in_the_middle_of_b(source: Any, target: Any) -> None:
        nonlocal count
        if str(target).endswith("_source2.wav"):
            count += 1
            if count == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill_in_the_middle_of_b)
        killed(lambda: separate("in"))
    (journal,) = Path("out/.surf").glob("*.jsonl")
    with open(journal, "a") as file:
        file.write('{"stem": "c", "fing')  # the kill cut a line off
    assert "b_source1.wav" in made()
    assert "b_source2.wav" not in made()
    assert separate("in") == 2
    stamp = os.stat("out/a_source1.wav").st_mtime_ns
    capsys.readouterr()
    assert separate("in", "--resume") == 0
    assert os.stat("out/a_source1.wav").st_mtime_ns == stamp
    assert "1 files are done already" in capsys.readouterr().out
    assert made() == [f"{name}_source{k}.wav" for name in "abc" for k in (1, 2)]
    assert len(manifest()) == 6
    assert separate("in", "--resume") == 0
    assert "3 done before" in capsys.readouterr().out


def test_ctrl_c_leaves_complete_files_a_manifest_and_its_own_status(
    toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        record(f"in/{name}.wav", 10.0)

    def interrupt(self: Filters, *args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, *args)

    calls: list[int] = []
    forward = Filters.forward
    monkeypatch.setattr(Filters, "forward", interrupt)
    assert separate("in") == 130
    assert "--resume" in capsys.readouterr().err
    assert made() == ["a_source1.wav", "a_source2.wav"]
    assert len(manifest()) == 2


@pytest.mark.parametrize("change", ["input", "checkpoint", "settings", "output"])
def test_done_means_the_same_input_checkpoint_and_settings(toy: str, change: str) -> None:
    record("a.wav", 0.5, channels=2)
    assert separate("a.wav") == 0
    extra: Sequence[str] = ()
    if change == "input":
        record("a.wav", 0.4, channels=2)
    elif change == "checkpoint":
        save(Filters(taps=21), AUDIO)
    elif change == "settings":
        extra = ("--channels", "first")
    else:
        Path("out/a_source2.wav").write_bytes(b"half")
    assert separate("a.wav", "--resume", *extra) == 2  # what is there is not of these: only --overwrite replaces it
    assert separate("a.wav", "--resume", "--overwrite", *extra) == 0
    stamp = os.stat("out/a_source1.wav").st_mtime_ns
    assert separate("a.wav", "--resume", *extra) == 0
    assert os.stat("out/a_source1.wav").st_mtime_ns == stamp


def test_moved_recordings_are_recognised(toy: str) -> None:
    record("disk/a.wav", 0.5)
    assert separate("disk") == 0
    os.rename("disk", "other")
    assert separate("other", "--resume") == 0
    assert summary()["done_before"] == 1


def test_the_journal_survives_a_line_cut_off(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"stem": "a"')
    journal, worker = Journal(tmp_path), Worker(tmp_path, {})
    assert journal.entries == {}
    journal.publish(worker, "b", {"fingerprint": {}, "rows": []}, {})
    assert Journal(tmp_path).entries["b"]["state"] == "done"
    lines = worker.journal(worker.name).read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines[1:]] == ["writing", "done"]
    journal.merge()
    worker.end([])
    assert Journal(tmp_path).entries == journal.entries
    assert files(".") == ["journal.jsonl"]


# -- images --


def image(path: str, mode: str = "RGB", size: tuple[int, int] = (5, 6)) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0]), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def test_a_png_is_the_average_of_the_sources() -> None:
    save(RegressionSeparator(Halves(0.5), 2), IMAGE)
    pixels = image("in/a.png")
    image("in/wrong.png", size=(6, 5))
    image("in/gray.png", "L")
    Path("in/text.png").write_text("no image")
    assert separate("in") == 1
    assert made() == ["a_source1.png", "a_source2.png"]
    sources = np.stack([np.array(Image.open(f"out/{name}")) for name in made()]).astype(float)
    mean = pixels / 127.5 - 1
    left = 0.5 * 2 * mean * (np.arange(5) < 2)[:, None]
    expected = np.stack([left, 2 * mean - left])
    np.testing.assert_allclose(sources, ((expected + 1) * 127.5).clip(0, 255), atol=0.501)
    inside = ((expected >= -1) & (expected <= 1)).all(0)
    np.testing.assert_allclose(sources.mean(0)[inside], pixels[inside], atol=0.51)
    assert failures().keys() == {"wrong.png", "gray.png", "text.png"}
    assert float(manifest()[0]["Energy"]) == pytest.approx((expected[0] ** 2).sum(), rel=1e-4)


def test_gray_images_and_images_of_several_channels(capsys: pytest.CaptureFixture[str]) -> None:
    save(RegressionSeparator(Halves(), 2), {"kind": "image", "shape": [1, 6, 5]})
    image("a.png", "L")
    assert separate("a.png") == 0
    assert "1 file separated, 0 done before" in capsys.readouterr().out
    assert not Path("out/manifest.raven.txt").exists(), "Raven knows no pictures"
    assert Image.open("out/a_source1.png").mode == "L"
    save(RegressionSeparator(Halves(), 2), {"kind": "image", "shape": [4, 6, 5]})
    assert separate("a.png", "--overwrite") == 1
    assert "is an array [1, 6, 5], but the separator takes [4, 6, 5]" in failures()["a.png"]


@pytest.mark.parametrize("values", [None, [5.0, 20.0]])
def test_an_array_is_the_sum_of_the_sources_in_its_own_values(values: list[float] | None) -> None:
    shape = [4, 6, 5] if values else [1, 6, 5]
    scale = {"values": values} if values else {}
    save(RegressionSeparator(Halves(0.5), 2), {"kind": "image", "shape": shape, **scale})
    array = np.random.default_rng(0).normal(5, 20, shape)
    Path("in").mkdir()
    np.save("in/a.npy", array if values else array[0])
    np.save("in/unlike.npy", array[:, :3])
    np.save("in/objects.npy", np.array([{}]))
    Path("in/text.npy").write_text("no array")
    assert separate("in") == 1
    assert made() == ["a_source1.npy", "a_source2.npy"]
    sources = np.stack([np.load(f"out/{name}") for name in made()])
    assert sources.dtype == np.float32
    assert sources.shape == (2, *(shape if values else shape[1:]))
    np.testing.assert_allclose(sources.sum(0).reshape(shape), array, rtol=1e-5, atol=1e-5)
    center, half = values or (0, 2)
    left = 0.5 * 2 * (array - center) / half * (np.arange(5) < 2)
    np.testing.assert_allclose(sources[0].reshape(shape), (left * half + center) / 2, rtol=1e-5, atol=1e-4)
    assert failures().keys() == {"unlike.npy", "objects.npy", "text.npy"}


# -- memory --

MEASURE = """
import resource, sys, torch
from surf_lightning.audio.index import index_audio
from surf_lightning.cli import main
torch.set_num_threads(1)
for name in ("short", "long"):
    assert main(["separate", f"{name}.wav", "--checkpoint", "a.ckpt", "--output", name, "--trust"]) == 0
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_file(toy: str) -> None:
    rng = np.random.default_rng(0)
    for name, minutes in (("short", 2), ("long", 20)):
        with soundfile.SoundFile(f"{name}.wav", "w", 8000, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(0.1 * rng.standard_normal(60 * 8000))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment, check=True)
    short, long = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert long < 1.1 * short
    assert soundfile.info("long/long_source1.wav").frames == 20 * 60 * 8000
