"""Files and arguments that nobody meant: each is used, or refused in words; nothing else ever happens."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from surf_lightning.audio.files import BadAudio, read_crop
from surf_lightning.audio.index import examine
from surf_lightning.audio.streams import AudioFile
from surf_lightning.cli import main
from surf_lightning.engine import lightning_cli
from surf_lightning.engine.fit import check
from tests.data.test_lists import check_any_list
from tests.inference.test_untrusted import (
    altered,
    check_altered_bytes,
    check_altered_checkpoint,
    check_altered_export,
    saved,
    valid,
)
from tests.methods.test_restored import check_any_training_state
from tests.reporting.test_report import check_any_run
from tests.test_mistakes import check_any_config, mistake
from tests.torture.conftest import Trials

FORMATS = {
    **{"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"},
    **{"aiff": "PCM_24", "w64": "FLOAT", "caf": "PCM_16", "au": "PCM_16"},
}
RATE = 8000


@functools.cache
def recording(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    soundfile.write(file, noise, RATE, format=kind.upper(), subtype=FORMATS[kind])
    return file.getvalue()


def check_any_recording(data: st.DataObject) -> None:
    """The three readers: of an index, of a crop, of a file to separate."""
    kind = data.draw(st.sampled_from(sorted(FORMATS)))
    path = Path(f"any.{kind}")
    path.write_bytes(data.draw(altered(recording(kind))))
    for read in (
        examine,
        lambda path: read_crop(path, 0, RATE, RATE),
        lambda path: list(AudioFile.open(path).blocks()),
    ):
        with contextlib.suppress(BadAudio):
            read(path)


def check_any_separation(data: st.DataObject) -> None:
    """A picture in any state, through `surf separate`."""
    from PIL import Image

    if not Path("some.ckpt").exists():
        saved(valid())
        Image.fromarray(np.zeros((8, 8), np.uint8)).save("whole.png")
        Path("inputs").mkdir()
    Path("inputs/any.png").write_bytes(data.draw(altered(Path("whole.png").read_bytes())))
    more = data.draw(st.sampled_from([[], ["--resume"], ["--channels", "mix"], ["--num_samples", "2"]]))
    assert main(["separate", "inputs", "--checkpoint", "some.ckpt", "--output", "out", "--overwrite", *more]) in (
        0,
        1,
        2,
    )


WORDS = [
    *("separate", "export", "report", "configs", "fit", "test", "validate", "--checkpoint", "--output", "--config"),
    *(
        "--device",
        "--num_samples",
        "-1",
        "0",
        "",
        "\0",
        "a\x1b[1m",
        "/dev/null",
        "no.ckpt",
        "\udcff",
        ".",
        "*",
        "[",
        "**/*",
    ),
    *(
        "--trainer.devices",
        "--data",
        "--model",
        "--model.help",
        "MixIT",
        "Digits",
        "--ckpt_path",
        "last",
        "digits_mixit",
    ),
]


ARGUMENT = st.characters(exclude_characters="\0")  # which no operating system passes on


def check_any_arguments(data: st.DataObject) -> None:
    mistake(data.draw(st.lists(st.sampled_from(WORDS) | st.text(ARGUMENT, max_size=4), max_size=7)))


CHECKS: list[tuple[Callable[[st.DataObject], None], int]] = [  # and how many inputs a trial has
    (check_altered_checkpoint, 6),
    (check_altered_export, 8),
    (check_altered_bytes, 8),
    (check_any_training_state, 20),
    (check_any_run, 1),
    (check_any_list, 40),
    (check_any_config, 1),
    (check_any_recording, 20),
    (check_any_separation, 8),
    (check_any_arguments, 4),
]


@pytest.mark.parametrize(("check_any", "inputs"), CHECKS, ids=[check_any.__name__ for check_any, _ in CHECKS])
def test_any_input_is_used_or_refused_in_words(
    check_any: Callable[[st.DataObject], None], inputs: int, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_cli, "train", lambda *args: check(*args[:4]))
    tried = 0

    def count(data: st.DataObject) -> None:
        nonlocal tried
        tried += 1
        check_any(data)

    options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    for random in trials:
        some = settings(max_examples=inputs, phases=[Phase.generate], **options)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            seed(random.getrandbits(64))(some(given(st.data())(count)))()
        trials.facts["inputs"] = tried
