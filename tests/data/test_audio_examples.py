"""Random crops are a function of (seed, position), and no bad file stops or spoils them. Axes: B K T."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from surf_lightning.data.audio_examples import Examples, RandomCrops, WholeExamples, usable_examples
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from tests.audio.trees import BROKEN, RATE, broken, noise, write

CROP = 4000


def examples(root: Path, rows: Sequence[Sequence[str]], share: float = 0.2, **options: Any) -> Examples:
    num_sources = max(map(len, rows)) - 1
    return usable_examples(root, rows, num_sources, RATE, share, **options)


@pytest.fixture
def noises(tmp_path: Path) -> Examples:
    """Nine mixtures of 1 s and one of 2.5 s, each with two sources that are not its parts."""
    rows = []
    for number in range(10):
        rows.append([f"{number}.wav", f"s1_{number}.wav", f"s2_{number}.wav"])
        for part, name in enumerate(rows[-1]):
            write(tmp_path / name, noise(2.5 if number == 4 else 1.0, 10 * number + part))
    return examples(tmp_path, rows)


def drawn(crops: RandomCrops, batches: range) -> Tensor:
    return torch.cat([crops[batch]["mixtures"] for batch in batches])


def find(crop: Tensor, root: Path) -> tuple[int, int]:
    """From which of the ten mixtures a crop is, and from which sample on; there is only one such place."""
    for number in range(10):
        if not (root / f"{number}.wav").stat().st_size:
            continue
        whole = soundfile.read(root / f"{number}.wav", dtype="float32")[0]
        for start in np.flatnonzero(whole[: len(whole) - len(crop) + 1] == float(crop[0])):
            if np.array_equal(whole[start : start + len(crop)], crop.numpy()):
                return number, int(start)
    raise AssertionError("no such crop")


# -- which examples are used --


def test_bad_files_are_reported_once_each_and_skipped(tmp_path: Path) -> None:
    broken(tmp_path / "broken")
    good = [f"{number}.wav" for number in range(80)]
    for name in good:
        write(tmp_path / name, noise(0.6, 0))
    rows = [[name] for name in (*good, *(f"broken/{name}" for name in BROKEN))]
    with pytest.warns(UserWarning, match="bad files") as caught:
        kept = examples(tmp_path, rows)
    (warning,) = caught
    lines = str(warning.message).splitlines()
    assert lines[0].endswith(f"bad files: {len(BROKEN)}; examples skipped for them: {len(BROKEN)} of {len(rows)}:")
    for name, (_, words) in BROKEN.items():
        (line,) = [line for line in lines if f"broken/{name}:" in line]
        assert words in line
    assert [os.fsdecode(name) for name in kept.files[:, 0]] == good
    assert kept.lengths.tolist() == [9600] * 80
    assert kept.failures_left == int(0.2 * len(rows)) - len(BROKEN)


def test_too_many_bad_files_are_an_error(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / f"{number}.wav", noise(1.0, 0) if number > 1 else np.zeros(RATE))
    rows = [[f"{number}.wav"] for number in range(8)]
    with pytest.warns(UserWarning, match="2 of 8"):
        assert len(examples(tmp_path, rows, share=0.25)) == 6
    with pytest.raises(UserError, match=r"(?s)2 of 8, .*max_bad_share = 0.24 .*0.wav: silent.*1.wav: silent"):
        examples(tmp_path, rows, share=0.24)
    with pytest.warns(UserWarning, match="1 of 2"):
        assert len(examples(tmp_path, rows[1:3], share=0)) == 1, "one alone never stops anything"
    with pytest.raises(UserError, match="1 of 1"):
        examples(tmp_path, rows[:1], share=1)


def test_faults_of_sources(tmp_path: Path) -> None:
    """A source may be silent; one that is broken, or longer than its mixture, takes its mixture with it."""
    for name in ("a", "b", "c", "d", "other"):
        write(tmp_path / f"{name}.wav", noise(1.0, 0))
    write(tmp_path / "long.wav", noise(1.5, 0))
    write(tmp_path / "silent.wav", np.zeros(RATE))
    rows = [
        ["a.wav", "silent.wav", "other.wav"],
        ["b.wav", "missing.wav", "other.wav"],
        ["c.wav", "other.wav", "long.wav"],
        ["d.wav"],
    ]
    with pytest.warns(UserWarning, match="bad files") as caught:
        kept = examples(tmp_path, rows, share=0.5)
    message = str(caught[0].message)
    assert "missing.wav: missing" in message
    assert "long.wav: (24000, 16000) (frames, Hz) against (16000, 16000) of its mixture" in message
    assert "silent.wav" not in message
    assert kept.files.tolist() == [[b"a.wav", b"other.wav", b""], [b"d.wav", b"", b""]]
    signals = kept.read(0)
    np.testing.assert_array_equal(signals[1].numpy(), noise(1.0, 0))
    assert signals[2].eq(0).all()


def test_names_that_the_set_does_not_have(tmp_path: Path) -> None:
    for name in ("good.wav", "bad.wav"):
        write(tmp_path / name, noise(1.0, 0))
    fault = {"good.wav": "", "bad.wav": "wrongly named", "silent.wav": "wrongly named"}
    write(tmp_path / "silent.wav", np.zeros(RATE))
    with pytest.warns(UserWarning, match="bad files") as caught:
        kept = examples(tmp_path, [[name] for name in fault], share=0.7, name_error=fault.__getitem__)
    assert kept.files.tolist() == [[b"good.wav"]]
    assert "bad.wav: wrongly named" in str(caught[0].message)
    assert "silent.wav: silent" in str(caught[0].message)


# -- which crops are drawn --


def test_a_batch_is_crops_of_files_and_their_sources_alike(noises: Examples, tmp_path: Path) -> None:
    batch = RandomCrops(noises, CROP, 3)[5]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "mixtures": (3, CROP),
        "sources": (3, 2, CROP),
    }
    for mixture, sources in zip(batch["mixtures"], batch["sources"], strict=True):
        number, start = find(mixture, tmp_path)
        for k in (1, 2):
            source = soundfile.read(tmp_path / f"s{k}_{number}.wav", dtype="float32")[0]
            np.testing.assert_array_equal(sources[k - 1].numpy(), source[start : start + CROP])


def test_crops_are_a_function_of_seed_and_position(noises: Examples) -> None:
    crops = RandomCrops(noises, CROP, 4, seed=3)
    expected = drawn(crops, range(8))
    assert torch.equal(drawn(RandomCrops(noises, CROP, 4, seed=3), range(8)), expected)
    assert torch.equal(drawn(RandomCrops(noises, CROP, 1, seed=3), range(32)), expected)
    assert not torch.equal(drawn(RandomCrops(noises, CROP, 4, seed=4), range(8)), expected)
    assert len(expected.unique(dim=0)) == 32
    assert torch.equal(crops[10**9]["mixtures"], RandomCrops(noises, CROP, 4, seed=3)[10**9]["mixtures"])


def test_ranks_share_the_batch_of_one_process(noises: Examples) -> None:
    whole = RandomCrops(noises, CROP, 6, seed=1)
    parts = [RandomCrops(noises, CROP, 2, seed=1, ranks=Ranks(rank, 3)) for rank in range(3)]
    for batch in (0, 7):
        assert torch.equal(torch.cat([part[batch]["mixtures"] for part in parts]), whole[batch]["mixtures"])
        assert torch.equal(torch.cat([part[batch]["sources"] for part in parts]), whole[batch]["sources"])


def test_workers_draw_what_the_process_itself_would(noises: Examples) -> None:
    crops = RandomCrops(noises, CROP, 4, seed=1)
    loader = DataLoader(crops, batch_size=None, sampler=range(6), num_workers=2)
    assert torch.equal(torch.cat([batch["mixtures"] for batch in loader]), drawn(crops, range(6)))


def test_every_second_of_audio_counts_alike(noises: Examples, tmp_path: Path) -> None:
    """A round of crops of a second visits nine files of 1 s once and that of 2.5 s twice, each round in a new order."""
    crops = RandomCrops(noises, RATE, 1)
    rounds = [[find(crops.draw(11 * number + place)[0], tmp_path) for place in range(11)] for number in range(3)]
    visits = [[number for number, _ in visited] for visited in rounds]
    for visited in visits:
        assert Counter(visited) == Counter([*range(10), 4])
    assert visits[0] != visits[1] != visits[2]
    starts = [start for visited in rounds for number, start in visited if number == 4]
    assert len(set(starts)) == 6


def test_crops_start_anywhere(tmp_path: Path) -> None:
    """Uniformly, from the first sample to the last that leaves room, by a test of 600 draws from a ramp."""
    write(tmp_path / "ramp.wav", np.arange(1, 2 * RATE + 1) / 2**15)
    crops = RandomCrops(examples(tmp_path, [["ramp.wav"]]), 2 * RATE - 99, 1)
    starts = [round(float(crops.draw(position)[0, 0]) * 2**15) - 1 for position in range(600)]
    assert (min(starts), max(starts)) == (0, 99)
    assert scipy.stats.chisquare(np.bincount(starts, minlength=100)).pvalue > 0.01


def test_a_file_shorter_than_the_crop_is_padded(noises: Examples) -> None:
    batch = RandomCrops(noises, 3 * RATE, 10)[0]
    for mixture, sources in zip(batch["mixtures"], batch["sources"], strict=True):
        length = int(mixture.nonzero().max()) + 1
        assert RATE - 10 < length <= RATE or 2.5 * RATE - 10 < length <= 2.5 * RATE
        assert sources[:, RATE if length <= RATE else round(2.5 * RATE) :].eq(0).all()


def test_silence_is_not_trained_on(tmp_path: Path) -> None:
    """A mixture that is silent here is taken elsewhere; a source may be."""
    mixture, source = noise(10.0, 0), noise(10.0, 1)
    mixture[RATE:] = 0
    source[:] = 0
    source[-1] = 0.5
    write(tmp_path / "m.wav", mixture)
    write(tmp_path / "s.wav", source)
    batch = RandomCrops(examples(tmp_path, [["m.wav", "s.wav"]]), CROP, 20)[0]
    assert batch["mixtures"].abs().amax(1).min() > 0
    assert batch["sources"].eq(0).all()

    mixture[: RATE - 1] = 0
    write(tmp_path / "click.wav", mixture)
    with pytest.raises(UserError, match="in a row"):
        RandomCrops(examples(tmp_path, [["click.wav"]]), 10, 1)[0]


def test_a_file_that_goes_bad_is_reported_once_and_replaced(noises: Examples, tmp_path: Path) -> None:
    before = drawn(RandomCrops(noises, CROP, 4), range(12))
    (tmp_path / "4.wav").write_bytes(b"")
    crops = RandomCrops(noises, CROP, 4)
    with pytest.warns(UserWarning, match=r"4\.wav: empty file") as caught:
        after = drawn(crops, range(12))
    assert len(caught) == 1
    came_from = [find(crop, tmp_path) for crop in after]
    same = (before == after).all(1)
    assert 0 < int((~same).sum()) < 24, "only its own crops are replaced"
    assert all(number != 4 for number, _ in came_from)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(drawn(RandomCrops(noises, CROP, 2), range(24)), after)


def test_all_workers_know_which_files_have_failed(noises: Examples, tmp_path: Path) -> None:
    (tmp_path / "s1_4.wav").write_bytes(b"")
    crops = RandomCrops(noises, CROP, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(DataLoader(crops, batch_size=None, sampler=range(6), num_workers=2))
    assert crops.failed.nonzero().flatten().tolist() == [4]


def test_too_many_files_gone_bad_are_an_error(noises: Examples, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.wav", np.full(RATE, np.nan), subtype="FLOAT")
    assert noises.failures_left == 2
    warnings.simplefilter("ignore")
    with pytest.raises(UserError, match=r"3 files .*max_bad_share.*NaN"):
        drawn(RandomCrops(noises, CROP, 4), range(12))


def test_a_file_that_became_shorter_is_not_padded(noises: Examples, tmp_path: Path) -> None:
    write(tmp_path / "4.wav", noise(0.5, 0))
    with pytest.warns(UserWarning, match=r"4\.wav: it ends sooner"):
        drawn(RandomCrops(noises, 2 * RATE, 4), range(3))


# -- what is held out --


def test_whole_examples_come_one_by_one(noises: Examples, tmp_path: Path) -> None:
    whole = WholeExamples(noises)
    batches = [whole[number] for number in range(len(whole))]
    assert len(batches) == 10
    for number, batch in enumerate(batches):
        parts = [soundfile.read(tmp_path / f"{name}{number}.wav", dtype="float32")[0] for name in ("", "s1_", "s2_")]
        np.testing.assert_array_equal(batch["mixtures"].numpy(), parts[0][None])
        np.testing.assert_array_equal(batch["sources"].numpy(), np.stack(parts[1:])[None])
    (tmp_path / "s2_3.wav").unlink()
    with pytest.raises(IndexError):
        whole[10]
    with pytest.raises(UserError, match=r"leaves no example out, but .*s2_3\.wav: missing"):
        whole[3]
