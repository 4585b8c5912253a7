"""Every audio DataModule, on every layout of its set. Axes: B batch, K sources, M estimates, T samples."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from torch import Tensor

from surf_lightning.data import FUSS, AudioSet, Folder, FolderWithTruth, Libri2Mix, LibriSpeechFUSS, WSJ0Mix
from surf_lightning.data.audio import AudioMixtures
from surf_lightning.data.audioset import youtube_id
from surf_lightning.data.base import SeparationData
from surf_lightning.data.fuss import at_snr
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.audio import SISDR, pairwise_si_sdr
from surf_lightning.metrics.evaluation import AudioMetrics, si_sdr_columns
from surf_lightning.metrics.fuss import FUSSMetrics
from surf_lightning.metrics.speech import DNSMOS, ESTOI, PESQ
from tests.audio import trees as audio_trees
from tests.audio.trees import RATE, noise, write
from tests.tiny import attach

SMALL: dict[str, Any] = {"crop_seconds": 0.5, "batch_size": 3, "num_workers": 0}
CROP = RATE // 2
PACKAGES = {"estoi": "pystoi", "pesq": "pesq", "dnsmos": "speechmos"}
COLUMNS = {"si_sdr", "si_sdri"} | {name for name, package in PACKAGES.items() if find_spec(package)}


def read(path: Path) -> Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def one(data: SeparationData, ranks: Ranks | None = None) -> dict[str, Tensor]:
    return data.training_batches(ranks or Ranks())[0]


def names(data: SeparationData, row: int) -> list[str]:
    """The files of the set's own and of the supervised mixture in this row."""
    dataset: Any = data.training_batches(Ranks())
    return dataset.names(0, row).split(" or ")


def likeness(part: Tensor, whole: Tensor) -> float:
    """The largest cosine of ``part [T]`` and a stretch of ``whole [T']``; 1 where it is one, but for its level."""
    x, y = part.double().numpy(), whole.double().numpy()
    if len(x) > len(y):
        return 0.0
    sums = np.concatenate([[0], np.cumsum(y**2)])
    energies = sums[len(x) :] - sums[: -len(x)]
    return float((scipy.signal.correlate(y, x, "valid") / np.sqrt(energies * np.sum(x**2))).max())


# -- Libri2Mix --


@pytest.fixture
def libri2mix(tmp_path: Path) -> Path:
    for split, count in (("train-360", 5), ("dev", 4), ("test", 3)):
        audio_trees.libri2mix(tmp_path, split, count, metadata=split != "dev")
    return tmp_path


def test_libri2mix_trains_on_mixtures_and_their_sources_where_the_method_needs_them(libri2mix: Path) -> None:
    """The metadata's paths are another machine's, and the dev split has none; neither matters."""
    data = Libri2Mix(str(libri2mix), **SMALL)
    batch = one(data)
    assert batch.keys() == one(attach(data)).keys() == {"mixtures"}
    with_sources = one(attach(data, needs_sources=True))
    assert torch.equal(batch["mixtures"], with_sources["mixtures"]), "the crops do not depend on it"
    assert with_sources["sources"].shape == (3, 2, CROP)
    assert torch.equal(with_sources["sources"].sum(1), batch["mixtures"])
    files = sorted((libri2mix / "wav16k/min/train-360/mix_clean").iterdir())
    for crop in batch["mixtures"]:
        assert sum(likeness(crop, read(path)) > 1 - 1e-9 for path in files) == 1


def test_libri2mix_tests_whole_utterances_and_validates_fixed_crops(libri2mix: Path) -> None:
    data = Libri2Mix(str(libri2mix), **SMALL)
    base = libri2mix / "wav16k/min/test"
    batches = list(data.test_batches())
    assert len(batches) == 3
    for name, batch in zip(sorted(path.name for path in (base / "s1").iterdir()), batches, strict=True):
        assert torch.equal(batch["mixtures"], read(base / "mix_clean" / name)[None])
        assert torch.equal(batch["sources"], torch.stack([read(base / k / name) for k in ("s1", "s2")])[None])
    assert [batch["mixtures"].shape[1] for batch in batches] == [RATE, RATE, 1.4 * RATE]

    (fixed,) = list(data.validation_batches())
    (again,) = list(Libri2Mix(str(libri2mix), seed=5, **SMALL).validation_batches())
    assert torch.equal(fixed["mixtures"], again["mixtures"])
    parts = list(Libri2Mix(str(libri2mix), **SMALL | {"batch_size": 1}).validation_batches())
    assert torch.equal(torch.cat([part["mixtures"] for part in parts])[:3], fixed["mixtures"]), "for every batch size"
    assert torch.equal(fixed["sources"].sum(1), fixed["mixtures"])
    assert (data.monitor, data.monitor_mode, data.num_sources) == ("val/si_sdri", "max", 2)
    assert data.signal() == {"kind": "audio", "sample_rate": 16000}


@pytest.mark.parametrize("inside", ["Libri2Mix", "Libri2Mix/wav16k", "Libri2Mix/wav16k/min"])
def test_the_root_may_be_the_folder_around_libri2mix_or_one_inside(libri2mix: Path, inside: str) -> None:
    """All but wav16k by itself, which could as well be another version."""
    root = libri2mix.parent / f"{libri2mix.name}_around"
    (root / "Libri2Mix").mkdir(parents=True)
    (libri2mix / "wav16k").rename(root / "Libri2Mix" / "wav16k")
    if inside == "Libri2Mix/wav16k":
        with pytest.raises(UserError, match="there is no "):
            one(Libri2Mix(str(root / inside), **SMALL))
    else:
        one(Libri2Mix(str(root / inside), **SMALL))
    one(Libri2Mix(str(root), **SMALL))


def test_the_metadata_say_what_belongs_to_libri2mix(libri2mix: Path, tmp_path: Path) -> None:
    """In whatever style its paths are; no file outside of the set is read, though they name it."""
    base = libri2mix / "wav16k/min"
    metadata = base / "metadata" / "mixture_train-360_mix_clean.csv"
    head, *rows = metadata.read_text().splitlines()
    outside = tmp_path / "somewhere"
    for kind in ("mix_clean", "s1", "s2"):
        (outside / kind).mkdir(parents=True)
        (base / "train-360" / kind / "train-360-1_x.wav").rename(outside / kind / "train-360-1_x.wav")
    rows[0] = rows[0].replace("/elsewhere/", "C:\\sets\\").replace("/", "\\")
    rows[1] = rows[1].replace("/elsewhere/Libri2Mix/wav16k/min/train-360", str(outside))
    metadata.write_text("\n".join([head, *rows[:2]]) + "\n")
    data: Any = attach(Libri2Mix(str(libri2mix), **SMALL), needs_sources=True)
    with pytest.warns(UserWarning, match=r"mix_clean/train-360-1_x\.wav: missing"):
        examples = data.examples("train")
    assert len(examples) == 1
    paths = [Path(examples.path(0, part)) for part in range(3)]
    assert paths == [base / "train-360" / kind / "train-360-0_x.wav" for kind in ("mix_clean", "s1", "s2")]
    assert torch.equal(examples.read(0), torch.stack([read(path) for path in paths]))


def test_libri2mix_says_what_it_misses(libri2mix: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"train-360 is not in nowhere: .*nowhere/wav16k/min/train-360/mix_clean.*--data"
    ):
        one(Libri2Mix("nowhere", **SMALL))
    metadata = libri2mix / "wav16k/min/metadata/mixture_test_mix_clean.csv"
    metadata.write_text(metadata.read_text().replace("source_1_path", "path"))
    with pytest.raises(UserError, match="no column source_1_path"):
        Libri2Mix(str(libri2mix), **SMALL).test_batches()
    metadata.write_text(metadata.read_text().splitlines()[0].replace("path,path", "path,source_1_path"))
    with pytest.raises(UserError, match="lists no mixtures"):
        Libri2Mix(str(libri2mix), **SMALL).test_batches()


def test_only_the_stage_at_hand_is_indexed(libri2mix: Path) -> None:
    """Who has but the test split can test."""
    for split in ("train-360", "dev"):
        (libri2mix / f"wav16k/min/{split}").rename(libri2mix / f"no_{split}")
    for stage in ("test", "predict"):
        data: Any = attach(Libri2Mix(str(libri2mix), **SMALL), stage=stage)
        data.prepare_data()
        assert [part for part, _ in data._loaded] == ["test"]
    for stage in ("fit", "validate"):
        with pytest.raises(UserError):
            attach(Libri2Mix(str(libri2mix), **SMALL), stage=stage).prepare_data()


def test_every_rank_validates() -> None:
    audio_trees.libri2mix(Path("l"), "dev", 2)
    assert len(list(attach(Libri2Mix("l", **SMALL)).validation_batches())) == 1
    assert len(list(attach(Libri2Mix("l", **SMALL), world_size=4).validation_batches())) == 4


def test_mistaken_numbers_are_refused() -> None:
    for options in ({"crop_seconds": 0}, {"num_validation": 0}, {"max_bad_share": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Folder(**options)
    with pytest.raises(ValueError, match="validation_share"):
        Folder(validation_share=1.0)
    with pytest.raises(ValueError, match="needs fuss_root"):
        AudioSet(librispeech_root="x")


# -- wsj0-mix --


@pytest.mark.parametrize("speakers", [2, 3])
def test_wsj0_mix_has_two_or_three_speakers(tmp_path: Path, speakers: int) -> None:
    for split in ("tr", "cv", "tt"):
        audio_trees.wsj0mix(tmp_path, split, 4, speakers)
    options: Any = {"root": str(tmp_path), "speakers": speakers, **SMALL}
    data = WSJ0Mix(**options)
    assert one(data).keys() == {"mixtures"}
    (held_out,) = data.validation_batches()
    for batch in (one(attach(data, needs_sources=True)), held_out):
        assert batch["sources"].shape == (3, speakers, CROP // 2)
        torch.testing.assert_close(batch["sources"].sum(1), batch["mixtures"], atol=1e-4, rtol=0)
    alone = one(WSJ0Mix(**options, single_source_share=1.0))
    assert torch.equal(alone["sources"][:, 0], alone["mixtures"])
    assert [batch["sources"].shape[1] for batch in data.test_batches()] == [speakers] * 4
    assert data.protocol().startswith(f"4 whole mixtures of wsj0-{speakers}mix's test set (min) at 8,000 Hz")
    assert (data.num_sources, data.genuine()) == (speakers, False)
    one(WSJ0Mix(**options | {"root": str(tmp_path / f"{speakers}speakers")}))
    for wrong in ({"speakers": 5 - speakers}, {"version": "max"}, {"sample_rate": 16000}):
        with pytest.raises(UserError, match="wsj0-mix's tr is not in"):
            one(WSJ0Mix(**options | wrong))


# -- a set with truth beside one without --


def test_a_method_that_needs_sources_has_those_of_the_supervised_set(tmp_path: Path, fuss: Path) -> None:
    recordings(tmp_path / "mine")
    options: Any = {"root": str(tmp_path / "mine"), "sample_rate": RATE, "num_sources": 4, **SMALL}
    data = Folder(supervised=FUSS(str(fuss)), **options)
    plain, alone = one(Folder(**options)), one(attach(data))
    both = one(attach(data, needs_sources=True))
    assert alone.keys() == {"mixtures"}, "who learns from mixtures alone does not read it"
    assert both.keys() == {"mixtures", "supervised_mixtures", "supervised_sources"}
    for batch in (alone, both):
        assert torch.equal(batch["mixtures"], plain["mixtures"])
    assert both["supervised_sources"].shape == (3, 4, CROP)
    torch.testing.assert_close(both["supervised_sources"].sum(1), both["supervised_mixtures"], atol=1e-4, rtol=0)
    files = [read(path) for path in sorted(fuss.glob("**/train/*.wav"))]
    for crop in both["supervised_mixtures"]:
        assert sum(likeness(crop, whole) > 1 - 1e-9 for whole in files) == 1
    parts = [one(attach(data, rank, 3, needs_sources=True), Ranks(rank, 3)) for rank in range(3)]
    assert not torch.equal(parts[0]["supervised_mixtures"], parts[1]["supervised_mixtures"])
    first, second = names(attach(data, needs_sources=True), 1)
    assert data.amount()["supervised_files"] == 6
    assert Path(first).is_relative_to(tmp_path / "mine")
    assert likeness(both["supervised_mixtures"][1], read(Path(second))) > 1 - 1e-9


def test_a_set_with_truth_of_its_own_does_not_look_at_it_beside_a_supervised_one(
    libri2mix: Path, fuss: Path, tmp_path: Path
) -> None:
    supervised = FUSS(str(fuss), train_share=0.2)
    data = attach(Libri2Mix(str(libri2mix), supervised=supervised, **SMALL), needs_sources=True)
    assert one(data).keys() == {"mixtures", "supervised_mixtures", "supervised_sources"}
    assert len({names(data, row)[1] for row in range(3)}) == 1, "a fifth of six"
    with pytest.raises(ValueError, match=r"bring it to the same rate, --data\.supervised\.sample_rate 16000"):
        Libri2Mix(str(libri2mix), supervised=FUSS(str(fuss), sample_rate=8000), **SMALL)
    lost = Libri2Mix(str(libri2mix), supervised=FUSS(str(tmp_path / "nowhere")), **SMALL)
    with pytest.raises(UserError, match=r"supervised set: FUSS's .* --data\.supervised\.root FOLDER"):
        one(attach(lost, needs_sources=True))


# -- FUSS --


@pytest.fixture
def fuss(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("validation", 4), ("eval", 4)):
        audio_trees.fuss(tmp_path / "ssdata", split, count)
    return tmp_path


def test_fuss_fills_up_its_sources_with_zeros(fuss: Path) -> None:
    """Example i has i % 4 foregrounds, of which the last of three is all zero: as good as none."""
    for number, batch in enumerate(list(FUSS(str(fuss), **SMALL).test_batches())):
        folder = fuss / "ssdata" / "eval" / f"example{number:04d}_sources"
        names = ["background0", "foreground0", "foreground1"][: number + 1]
        assert torch.equal(batch["mixtures"], read(folder.parent / f"example{number:04d}.wav")[None])
        for k, name in enumerate(names):
            assert torch.equal(batch["sources"][0, k], read(folder / f"{name}_sound.wav"))
        assert batch["sources"].shape == (1, 4, RATE)
        assert batch["sources"][0, len(names) :].eq(0).all()


def test_reverberant_fuss_lies_beside_the_dry_one_under_its_own_name(fuss: Path) -> None:
    audio_trees.fuss(fuss / "ssdata_reverb", "eval", 2, seconds=1.2)
    dry, wet = FUSS(str(fuss), **SMALL).test_batches(), FUSS(str(fuss / "ssdata_reverb"), **SMALL).test_batches()
    assert (len(wet), wet[1]["sources"].shape) == (2, (1, 4, round(1.2 * RATE)))  # type: ignore[arg-type]
    assert dry[1]["sources"].shape == (1, 4, RATE)
    torch.testing.assert_close(wet[1]["sources"].sum(1), wet[1]["mixtures"], rtol=0, atol=4 / 2**15)


def test_fuss_trains_and_validates(fuss: Path) -> None:
    assert one(FUSS(str(fuss / "ssdata"), **SMALL)).keys() == {"mixtures"}
    data = attach(FUSS(str(fuss), **SMALL), needs_sources=True)
    batch = one(data)
    assert batch["sources"].shape == (3, 4, CROP)
    torch.testing.assert_close(batch["sources"].sum(1), batch["mixtures"], rtol=0, atol=2 / 2**15)
    metrics = data.metrics()
    metrics.update(batch["sources"].flip(1), batch["sources"], batch["mixtures"])
    assert data.monitor.removeprefix("val/") in metrics.compute()


def test_fuss_says_what_it_misses(fuss: Path) -> None:
    with pytest.raises(UserError, match=r"there is no nowhere/train_example_list\.txt"):
        one(FUSS("nowhere", **SMALL))
    path = fuss / "ssdata" / "train_example_list.txt"
    path.write_text(path.read_text().replace("\t", " "))
    with pytest.raises(UserError, match="with 0 sources"):
        one(FUSS(str(fuss), **SMALL))
    path.write_text("\n")
    with pytest.raises(UserError, match="lists no examples"):
        one(FUSS(str(fuss), **SMALL))


# -- a plain folder --

KINDS = (("wav", 8000, 1), ("flac", 44100, 2), ("ogg", 48000, 1), ("mp3", 22050, 2))


def recordings(root: Path, count: int = 12) -> None:
    """Of four kinds; many are links, for mp3 takes long to write."""
    for number, (kind, rate, channels) in enumerate(KINDS):
        write(root / f"{number}.{kind}", noise(0.7, number, rate, channels), rate)
    (root / "more").mkdir()
    for number in range(4, count):
        kind = KINDS[number % 4][0]
        (root / "more" / f"{number}.{kind}").symlink_to(root / f"{number % 4}.{kind}")


def test_a_folder_of_anything(tmp_path: Path) -> None:
    recordings(tmp_path)
    (tmp_path / "notes.txt").write_text("not a recording")
    data = Folder(str(tmp_path), **SMALL)
    batch = one(data)
    assert batch.keys() == {"mixtures"}
    assert batch["mixtures"].shape == (3, CROP)
    assert batch["mixtures"].isfinite().all()
    assert (data.monitor, data.monitor_mode) == ("val/momi", "max")
    (held_out,) = list(data.validation_batches())
    assert held_out.keys() == {"mixtures"}
    with pytest.raises(UserError, match="no true sources"):
        data.test_batches()


def test_held_out_files_stay_held_out(tmp_path: Path) -> None:
    """They are whole files, never trained on, and no new file changes which they are."""

    def parts(**options: Any) -> list[set[str]]:
        data = Folder(str(tmp_path), **options, **SMALL)
        return [{os.fsdecode(name) for name in data.examples(part).files[:, 0]} for part in ("train", "validation")]

    recordings(tmp_path, 40)
    train, held_out = parts(validation_share=0.3)
    assert len(train) + len(held_out) == 40
    assert not train & held_out
    assert 4 <= len(held_out) <= 20
    recordings(tmp_path / "new", 20)
    more_train, more_held_out = parts(validation_share=0.3)
    assert train < more_train
    assert held_out < more_held_out
    assert [len(part) for part in parts(validation_share=1e-9)] == [59, 1], "one at least"


def test_a_small_folder_holds_out_more_but_a_quarter_at_most(tmp_path: Path) -> None:
    write(tmp_path / "0.wav", noise(60.0, 0))
    for number in range(1, 40):
        (tmp_path / f"{number}.wav").symlink_to(tmp_path / "0.wav")
    held_out = Folder(str(tmp_path), sample_rate=RATE, **SMALL).examples("validation")
    assert 5 <= len(held_out) <= 6, "five minutes"
    few = Folder(str(tmp_path), sample_rate=RATE, **SMALL)
    few.recordings = few.recordings.select(np.arange(12))
    assert 1 <= len(few.examples("validation")) <= 5
    batches = Folder(str(tmp_path), sample_rate=RATE, **SMALL | {"num_validation": 30}).validation_batches()
    assert len(list(batches)) == 10, "several crops of each recording"


def test_a_folder_says_what_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.wav", noise(1.0, number, 44100), 44100)
    for name in ("low", "lower"):
        write(tmp_path / f"{name}.flac", noise(30.0, 11))
    for name in ("memo.M4A", "other.m4a", "notes.txt", "README"):
        (tmp_path / name).touch()
    with caplog.at_level("INFO"):
        data = Folder(str(tmp_path), **SMALL)
    assert data.sample_rate == 16000
    assert "90% of the recordings reach 8.0 kHz, so the sample rate is 16,000 Hz (--data.sample_rate" in caplog.text
    held_out = len(data.examples("validation"))
    said = f"{tmp_path}: 12 recordings, 1.2 min (10 of 44,100 Hz; 2 of 16,000 Hz), used at 16,000 Hz; "
    said += f"{12 - held_out} to train on, {held_out} held out "
    assert data.summary().startswith(said)
    ignored = data.summary().partition("; ignored: 2 .m4a, ")[2]
    assert sorted(ignored.split(", ")) == ["1 .txt", "1 without suffix"]
    (tmp_path / "low.flac").unlink()
    assert Folder(str(tmp_path), **SMALL).sample_rate == 48000
    assert Folder(str(tmp_path), sample_rate=24000, **SMALL).sample_rate == 24000


# -- a folder with truth --


def test_a_folder_of_mixtures_and_their_sources(tmp_path: Path) -> None:
    audio_trees.with_truth(tmp_path, 20, sources=3)
    data = FolderWithTruth(str(tmp_path), **SMALL)
    assert one(data).keys() == {"mixtures"}
    attach(data, needs_sources=True)
    assert (data.num_sources, data.sample_rate, data.monitor) == (3, 16000, "val/si_sdri")
    parts = [
        {os.fsdecode(name) for name in data.examples(part).files[:, 0]} for part in ("train", "validation", "test")
    ]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert len(set.union(*parts)) == 20
    for batch in (one(data), *list(data.validation_batches()), *list(data.test_batches())):
        torch.testing.assert_close(batch["sources"].sum(1), batch["mixtures"], rtol=0, atol=3 / 2**15)


def test_a_part_of_its_own_is_used_whole(tmp_path: Path) -> None:
    audio_trees.with_truth(tmp_path / "test", 4)
    data = FolderWithTruth(str(tmp_path), **SMALL)
    assert data.num_sources == 2
    assert len(list(data.test_batches())) == 4
    with pytest.raises(UserError, match=r"no mixtures with their sources in .*/train: put them into mix/ and"):
        one(data)
    audio_trees.with_truth(tmp_path / "few", 2)
    with pytest.raises(UserError, match=r"holds 2 mixtures: .* takes 3"):
        FolderWithTruth(str(tmp_path / "few"), **SMALL).test_batches()


def test_a_folder_of_one_recording_is_validated_on_too(tmp_path: Path) -> None:
    write(tmp_path / "long.wav", noise(4.0, 0))
    data = Folder(str(tmp_path), **SMALL)
    with pytest.warns(UserWarning, match="one recording"):
        assert one(data)["mixtures"].shape == (3, CROP)
    with pytest.warns(UserWarning, match="one recording"):
        assert len(list(data.validation_batches())) == 2


def test_a_folder_without_recordings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is no folder: .*--data.root"):
        one(Folder("nowhere", **SMALL))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no recordings \(.aif, .aifc, .*.wav, .wave\)"):
        one(Folder(str(tmp_path), **SMALL))


# -- AudioSet --

IDS = ["-0908_CCgfh", "Y047gcadf48", "abcdefghij_", "0123456789a", "__________1", "ABCDEFGHIJK"]


def test_names_of_clips() -> None:
    names = {
        "-0908_CCgfh.flac": "-0908_CCgfh",
        "Y047gcadf48.wav": "Y047gcadf48",
        "YY047gcadf48.wav": "Y047gcadf48",
        "Y-0908_CCgfh.wav": "-0908_CCgfh",
        "a/b/abcdefghij__30_40.wav": "abcdefghij_",
        "abcdefghijk_30.000_40.000.wav": "abcdefghijk",
        "Yabcdefghijk_30.flac": "abcdefghijk",
        "truncated.flac": None,
        "recording of a dog.wav": None,
        "abcdefghijk_30_40_50.wav": None,
    }
    assert {name: youtube_id(name) for name in names} == names


def test_audioset_uses_the_clips_that_are_listed(tmp_path: Path) -> None:
    audio_trees.audioset(tmp_path, IDS)
    audio_trees.audioset(tmp_path / "other", ["ZZZZZZZZZZ1"])
    write(tmp_path / "other" / "jingle.wav", noise(1.0, 0))
    with (tmp_path / "balanced_train_segments.csv").open("a") as file:
        file.write("missing1234, 0.000, 10.000, /m/09x0r\n")
    data = AudioSet(str(tmp_path), **SMALL)
    with pytest.warns(UserWarning, match="videos") as caught:
        used = {os.fsdecode(name) for name in data.recordings.files[:, 0]}
    assert used == {f"audio/{clip}.flac" for clip in IDS}
    messages = "\n".join(str(warning.message) for warning in caught)
    assert "1 of the 7 videos" in messages
    assert "other/jingle.wav: wrongly named" in messages
    assert one(data)["mixtures"].shape == (3, CROP)
    (held_out,) = list(data.validation_batches())
    assert held_out.keys() == {"mixtures"}

    named = AudioSet(str(tmp_path), segments=str(tmp_path / "other" / "balanced_train_segments.csv"), **SMALL)
    with pytest.warns(UserWarning, match=r"jingle\.wav: wrongly named"):
        assert named.recordings.files.tolist() == [[b"other/audio/ZZZZZZZZZZ1.flac"]]


def test_audioset_is_fine_with_clips_alone(tmp_path: Path) -> None:
    audio_trees.audioset(tmp_path, IDS)
    (tmp_path / "balanced_train_segments.csv").unlink()
    data = AudioSet(str(tmp_path), **SMALL)
    assert len(data.recordings) == len(IDS)
    with pytest.raises(UserError, match=r"--data.fuss_root FOLDER and --data.librispeech_root"):
        data.test_batches()
    assert data.test_metrics().compute().keys() == {"si_sdr", "si_sdri"}, "asked for during fit as well"


def test_audioset_with_a_list_of_other_videos(tmp_path: Path) -> None:
    audio_trees.audioset(tmp_path, IDS)
    (tmp_path / "balanced_train_segments.csv").write_text("missing1234, 0.000, 10.000, /m/09x0r\n")
    with pytest.raises(UserError, match="none of the 1 videos"):
        one(AudioSet(str(tmp_path), **SMALL))


def test_audioset_is_tested_on_the_sets_of_table_3(tmp_path: Path, fuss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for metric in (ESTOI, PESQ, DNSMOS):
        monkeypatch.setattr(metric, "score", lambda self, estimate, reference: 1.0)  # they take seconds
    audio_trees.audioset(tmp_path, IDS)
    audio_trees.librispeech(tmp_path / "LibriSpeech", 2)
    data = AudioSet(str(tmp_path), fuss_root=str(fuss), librispeech_root=str(tmp_path / "LibriSpeech"), **SMALL)
    attach(data, stage="test").prepare_data()
    batches = list(data.test_batches())
    assert [batch["sources"].shape[1] for batch in batches] == [4] * 4 + [2] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise is no speech
        metrics = data.test_metrics()
        for batch in batches:
            metrics.update(batch["sources"] + 0.1 * batch["mixtures"][:, None], batch["sources"], batch["mixtures"])
        computed = metrics.compute()
    assert computed.keys() == {"1S", "2Si", "3Si", "4Si", "MSi", "under", "equal", "over"} | COLUMNS
    sounds, speech = FUSSMetrics(), SISDR()
    for batch in batches:
        is_speech = batch["sources"].shape[1] == 2  # the first of its two
        sources = batch["sources"][:, : 1 if is_speech else 4]
        (speech if is_speech else sounds).update(sources + 0.1 * batch["mixtures"][:, None], sources)
    for name, value in (sounds.compute() | {"si_sdr": speech.compute()}).items():
        torch.testing.assert_close(computed[name], value, equal_nan=True)
    metrics.reset()
    assert metrics.compute()["si_sdr"].isnan()

    alone = AudioSet(str(tmp_path), fuss_root=str(fuss), **SMALL)
    assert len(list(alone.test_batches())) == 4
    assert alone.test_metrics().compute().keys() == FUSSMetrics().compute().keys()


# -- LibriSpeech + FUSS --


def test_speech_is_mixed_at_the_snr_asked_for() -> None:
    speech, background = (torch.from_numpy(noise(1.0, seed)) for seed in (0, 1))
    for snr in (-5.0, 0.0, 15.0):
        sources = at_snr(speech, 0.01 * background, snr)
        power = sources.square().mean(1)
        assert 10 * math.log10(power[0] / power[1]) == pytest.approx(snr)
        assert torch.cat([sources, sources.sum(0, keepdim=True)]).abs().max() == pytest.approx(0.99)
        torch.testing.assert_close(sources[0] / sources[0, 0], speech / speech[0])


def test_noisy_speech(tmp_path: Path, fuss: Path) -> None:
    """An utterance in each background; levels as the paper has them, and the same for every run."""
    audio_trees.fuss(fuss / "ssdata", "eval", 12)
    audio_trees.librispeech(tmp_path / "LibriSpeech", 3)
    speech = [read(path) for path in sorted((tmp_path / "LibriSpeech").rglob("*.flac"))]
    data = LibriSpeechFUSS(str(tmp_path / "LibriSpeech"), str(fuss), **SMALL)
    batches = list(data.test_batches())
    assert len(batches) == 12
    snrs, used = [], []
    for number, batch in enumerate(batches):
        mixture, (voice, background) = batch["mixtures"][0], batch["sources"][0]
        assert torch.equal(voice + background, mixture)
        assert mixture.abs().max() < 1
        snrs.append(10 * math.log10(voice.square().mean() / background.square().mean()))
        file = read(fuss / "ssdata" / "eval" / f"example{number:04d}_sources" / "background0_sound.wav")
        assert likeness(background, file) > 1 - 1e-6
        (whose,) = [k for k, whole in enumerate(speech) if likeness(voice, whole) > 1 - 1e-6]
        used.append(whose)
    assert -5 <= min(snrs) < 0 < 10 < max(snrs) <= 15
    assert np.bincount(used).tolist() == [4, 4, 4]
    again = LibriSpeechFUSS(str(tmp_path / "LibriSpeech"), str(fuss), seed=9, **SMALL).test_batches()
    assert torch.equal(again[7]["mixtures"], batches[7]["mixtures"])


def test_noisy_speech_is_for_tests_alone(tmp_path: Path, fuss: Path) -> None:
    audio_trees.librispeech(tmp_path / "LibriSpeech", 1)
    data = LibriSpeechFUSS(str(tmp_path), str(fuss), **SMALL)
    assert len(list(data.test_batches())) == 4
    for ask in (lambda: one(data), data.validation_batches):
        with pytest.raises(UserError, match="for tests alone"):
            ask()
    with pytest.raises(UserError, match="LibriSpeech's test-clean is not in nowhere"):
        LibriSpeechFUSS("nowhere", str(fuss), **SMALL).test_batches()


# -- metrics --


def test_validation_measures_si_sdr_whatever_the_order() -> None:
    sources = torch.stack([torch.from_numpy(noise(0.3, seed)) for seed in range(6)]).view(3, 2, -1)
    estimates = sources.flip(1) + 0.1 * sources
    mixtures = sources.sum(1)
    metrics = AudioMetrics(si_sdr_columns())
    for rows in (slice(0, 1), slice(1, 3)):
        metrics.update(estimates[rows], sources[rows], mixtures[rows])
    assert metrics.update_called
    separated = pairwise_si_sdr(estimates.flip(1), sources).diagonal(dim1=1, dim2=2).mean()
    computed = metrics.compute()
    assert computed.keys() == {"si_sdr", "si_sdri"}
    torch.testing.assert_close(computed["si_sdr"], separated)
    improved = separated - pairwise_si_sdr(mixtures.unsqueeze(1), sources).mean()
    torch.testing.assert_close(computed["si_sdri"], improved)
    metrics.reset()
    assert metrics.compute()["si_sdr"].isnan()


def test_the_test_of_libri2mix_has_the_columns_of_table_4(libri2mix: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Libri2Mix(str(libri2mix)).test_metrics().compute().keys() == COLUMNS


# -- the composed sets --


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sets of real audio in all layouts, by the script in the shared folder."""
    script = Path(os.environ.get("SURF_SHARED", "")) / "data" / "make_audio_sets.py"
    if not script.is_file():
        pytest.skip("SURF_SHARED does not name the shared folder with data/make_audio_sets.py")
    out = tmp_path_factory.mktemp("composed")
    subprocess.run([sys.executable, str(script), str(out), "--scale", "0.1"], check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_every_set_loads_as_composed(composed: Path) -> None:
    libri2mix, fuss = str(composed / "Libri2Mix"), str(composed / "FUSS")
    options: dict[str, Any] = {"num_workers": 0, "batch_size": 3}
    sets: list[tuple[AudioMixtures, int | None, int]] = [
        (Libri2Mix(libri2mix, **options), 2, 12),
        (FUSS(fuss, **options), 4, 8),
        (AudioSet(str(composed / "AudioSet"), None, fuss, str(composed / "LibriSpeech"), **options), None, 16),
    ]
    for data, num_sources, num_tests in sets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attach(data, needs_sources=True)
            batches = [one(data), data.validation_batches()[0], *list(data.test_batches())]
        assert len(batches) == 2 + num_tests
        for batch in batches[:2]:
            assert batch["mixtures"].shape == (3, 160000)
            assert ("sources" in batch) == (num_sources is not None)
        for batch in batches:
            assert batch["mixtures"].isfinite().all()
            if "sources" in batch:
                atol = 3 / 2**15  # each file was rounded by itself
                torch.testing.assert_close(batch["sources"].sum(1), batch["mixtures"], rtol=0, atol=atol)


@pytest.mark.slow
def test_the_broken_files_of_the_composed_set_are_named(composed: Path) -> None:
    with pytest.warns(UserWarning, match="bad files") as caught:
        batch = one(Folder(str(composed / "AudioSet"), num_workers=0, batch_size=8))
    assert batch["mixtures"].isfinite().all()
    (message,) = [str(warning.message) for warning in caught]
    reasons = {"truncated.flac": "truncated", "empty.wav": "empty", "text.wav": "wrongly named", "silent.wav": "silent"}
    for name, words in (reasons | {"nan.wav": "NaN", "short.wav": "shorter than 0.5 s"}).items():
        assert re.search(rf"broken/{name}: .*{words}", message), message
