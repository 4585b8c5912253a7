"""`surf separate` killed anywhere, its inputs changing, its disk full: what is there is whole, what is not is named."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from surf_lightning.cli import main
from surf_lightning.inference import separation_run
from tests.inference.test_separate import AUDIO, failures, files, made, manifest, read, record, save
from tests.inference.test_streaming import Filters
from tests.inference.test_untrusted import saved, valid
from tests.inference.test_workers import same_as_undisturbed, separate, start, status
from tests.torture.conftest import Mount, Trials

COUNT = 6


def inputs() -> None:
    for i in range(COUNT):
        record(f"in/{i}.{'flac' if i % 2 else 'wav'}", 3.0 + i, 8000 + 8000 * (i % 2), 1 + i % 2)
    save(Filters(), AUDIO)


def test_killed_anywhere_and_resumed_it_gives_what_it_would_have_given(trials: Trials) -> None:
    """No partial file has its name at any moment either."""
    inputs()
    separate(output="whole")
    lengths = {name: soundfile.info(f"whole/{name}").frames for name in made("whole")}
    kills = 0
    for rng in trials:
        subprocess.run(["rm", "-rf", "out"], check=True)
        for _ in range(1 + rng.randrange(3)):
            child = start(lambda: separate("--resume"))
            time.sleep(rng.random() * 0.5)
            os.kill(child, signal.SIGKILL)
            kills += status(child) == -signal.SIGKILL
            there = [name for name in files() if not name.startswith(".surf") and name in lengths]
            assert all(soundfile.info(f"out/{name}").frames == lengths[name] for name in there)
        assert separate("--resume") == 0
        same_as_undisturbed(COUNT)
    trials.facts["kills"] = kills


@pytest.mark.parametrize("change", ["changes", "vanishes", "turns unreadable", "becomes another"])
def test_inputs_that_do_not_stay_are_named(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        record(f"in/{name}.wav", 0.3)
    save(Filters(), AUDIO)
    change_b = {
        "changes": lambda: record("in/b.wav", 0.4),
        "vanishes": lambda: os.unlink("in/b.wav"),
        "turns unreadable": lambda: Path("in/b.wav").write_bytes(b"no sound"),
        "becomes another": lambda: (os.unlink("in/b.wav"), os.mkfifo("in/b.wav")),
    }[change]
    check_outputs = separation_run.SeparationRun.check_outputs

    def after_all_headers_are_read(self: separation_run.SeparationRun) -> None:
        check_outputs(self)
        change_b()

    with monkeypatch.context() as patch:
        patch.setattr(separation_run.SeparationRun, "check_outputs", after_all_headers_are_read)
        assert separate() == 1
    assert failures().keys() == {"b.wav"}
    assert made() == [f"{name}_source{k}.wav" for name in "ac" for k in (1, 2)]
    assert not [name for name in files() if ".surf/work" in name]


def test_between_two_runs_a_changed_input_is_named_and_one_that_is_gone_too(capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        record(f"in/{name}.wav", 0.3)
    save(Filters(), AUDIO)
    assert separate() == 0
    os.unlink("in/a.wav")
    assert separate("--resume") == 0
    assert "in/a.wav is not there any more" in capsys.readouterr().out
    record("in/c.wav", 0.4)
    assert separate("--resume") == 2
    said = capsys.readouterr().err
    assert "in/c.wav" in said
    assert "in/b.wav" not in said
    assert len(manifest()) == 6


def room_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken by another process after the look at it."""
    monkeypatch.setattr(separation_run.shutil, "disk_usage", lambda path: Plenty())


class Plenty:
    free = 1 << 40


def test_a_full_disk_leaves_no_partial_output(
    small_disk: Mount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_disk("out", "400k")
    for i in range(4):
        record(f"in/{i}.wav", 5.0)  # two sources of 80 kB each
    save(Filters(), AUDIO)
    room_is_promised(monkeypatch)
    rc = separate()
    captured = capsys.readouterr()
    assert rc in (1, 2)
    assert "disk is full" in captured.err + captured.out or "No space left" in captured.err
    there = [name for name in made() if not name.startswith(".surf")]
    assert len(there) in (2, 4)
    assert {len(read(f"out/{name}")) for name in there} == {40000}
    assert not [name for name in files() if ".surf/work" in name]
    subprocess.run(["mount", "-o", "remount,size=4m", "out"], check=True)
    assert separate("--resume") == 0
    same_as_undisturbed(4)


def read_picture(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_a_full_disk_leaves_no_partial_picture_or_array(
    suffix: str, small_disk: Mount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sources take a page of 4 kB each."""
    small_disk("out", "100k")
    Path("in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        picture = rng.integers(0, 256, (8, 8)).astype(np.uint8)
        np.save(f"in/{i}.npy", picture) if suffix == ".npy" else Image.fromarray(picture).save(f"in/{i}.png")
    room_is_promised(monkeypatch)
    checkpoint = saved(valid(), "model.ckpt")
    arguments = ["separate", "in", "--checkpoint", checkpoint, "--output"]
    assert main([*arguments, "whole"]) == 0
    whole = {path.name: read_picture(path) for path in Path("whole").glob(f"*{suffix}")}
    capsys.readouterr()
    assert main([*arguments, "out"]) in (1, 2)
    captured = capsys.readouterr()
    assert "disk is full" in captured.err + captured.out or "No space left" in captured.err
    there = list(Path("out").glob(f"*{suffix}"))
    assert 0 < len(there) < len(whole)
    for path in there:  # batches differ, in which images agree to rounding
        np.testing.assert_allclose(read_picture(path), whole[path.name], rtol=1e-4, atol=1e-4)
    assert not [name for name in files() if ".surf/work" in name]
    subprocess.run(["mount", "-o", "remount,size=4m", "out"], check=True)
    assert main([*arguments, "out", "--resume"]) == 0
    assert {path.name for path in Path("out").glob(f"*{suffix}")} == whole.keys()
    for name, source in whole.items():
        np.testing.assert_allclose(read_picture(Path("out", name)), source, rtol=1e-4, atol=1e-4)


def test_a_file_too_large_for_the_disk_fails_and_the_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    record("in/large.wav", 20.0)
    record("in/small.wav", 1.0)
    save(Filters(), AUDIO)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        return separate()

    assert status(start(limited)) == 1
    assert made() == ["small_source1.wav", "small_source2.wav"]
    assert failures().keys() == {"large.wav"}
    assert "disk is full" in failures()["large.wav"]
    assert not [name for name in files() if ".surf/work" in name]
