"""SC09Mix and what a data set of pairs gives, against files read and mixed by hand. Axes: B batch, T samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from surf_lightning.data import Libri2Mix, SC09Mix
from surf_lightning.data.sc09mix import NUM_MIXTURES, dealt
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from tests.audio import trees
from tests.audio.trees import RATE
from tests.tiny import attach

SMALL: dict[str, Any] = {"batch_size": 3, "num_workers": 0}


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    trees.speech_commands(tmp_path / "speech")
    return tmp_path / "speech"


def standardised(path: Path) -> np.ndarray:
    """A second at 8 kHz, centred in silence, zero mean, unit variance."""
    signal = soxr.resample(soundfile.read(path, dtype="float32")[0], RATE, 8000)
    second = np.zeros(8000)
    before = (8000 - len(signal)) // 2
    second[before : before + len(signal)] = signal
    return (second - second.mean()) / second.std(ddof=1)


def test_mixtures_are_sums_of_standardised_digits_of_one_split(speech: Path) -> None:
    data = SC09Mix(str(speech), **SMALL)
    for part, speakers in (("train", {0, 3, 4, 5}), ("validation", {1}), ("test", {2})):
        assert {int(path.split("speaker")[1][0]) for path in data.utterances(part)} == speakers  # type: ignore[arg-type]
        assert {path.split("/")[0] for path in data.utterances(part)} == {"zero", "nine"}  # type: ignore[arg-type]
        assert len(data.examples(part)) == NUM_MIXTURES[part]  # type: ignore[arg-type]
    examples = data.examples("train")
    for number in (0, 7, 14_999):
        mixture, *sources = examples.read(number).double().numpy()
        for source, part in zip(sources, (1, 2), strict=True):
            np.testing.assert_allclose(source, standardised(Path(examples.path(number, part))), atol=2e-5)
        np.testing.assert_allclose(mixture, sources[0] + sources[1], atol=1e-6)


def test_batches_hold_a_second_with_its_sources(speech: Path) -> None:
    data = SC09Mix(str(speech), num_validation=2, **SMALL)
    for batches in (data.training_batches(Ranks()), data.validation_batches(), data.test_batches()):
        batch = batches[0]
        rows = len(batch["mixtures"])
        assert batch["mixtures"].shape == (rows, 8000)
        assert batch["sources"].shape == (rows, 2, 8000)
        torch.testing.assert_close(batch["sources"].sum(1), batch["mixtures"])
    assert len(data.test_batches()) == 5000  # type: ignore[arg-type]
    assert data.signal() == {"kind": "audio", "sample_rate": 8000}
    assert not data.genuine()


def test_utterances_are_dealt_round_after_round() -> None:
    pairs = dealt(5, 10, torch.Generator().manual_seed(0))
    assert pairs.shape == (10, 2)
    rounds = pairs.flatten().view(4, 5)
    assert [sorted(each) for each in rounds.tolist()] == [[0, 1, 2, 3, 4]] * 4
    assert len({tuple(each) for each in rounds.tolist()}) > 1
    assert torch.equal(pairs, dealt(5, 10, torch.Generator().manual_seed(0)))


def test_a_folder_of_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Speech Commands is not in"):
        SC09Mix(str(tmp_path)).examples("train")
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="no digits to train on"):
        SC09Mix(str(tmp_path)).examples("train")


# -- shares --


def test_a_smaller_share_of_the_training_set_is_part_of_a_larger_one(audio_sets: Path) -> None:
    def trained_on(share: float, seed: int = 0) -> set[str]:
        data = Libri2Mix(str(audio_sets / "Libri2Mix"), train_share=share, seed=seed, **SMALL)
        batches: Any = data.training_batches(Ranks())
        return {batches.examples.path(number) for number in batches.visits}

    everything = trained_on(1.0)
    third, half = trained_on(1 / 3), trained_on(0.5, seed=4)
    assert (len(trained_on(0.01)), len(third), len(half), len(everything)) == (1, 2, 3, 6)
    assert trained_on(0.01) < third < half < everything
    with pytest.raises(ValueError, match="train_share"):
        Libri2Mix(train_share=0.0)


def test_a_share_of_the_mixtures_holds_one_speaker_alone(audio_sets: Path) -> None:
    root = str(audio_sets / "Libri2Mix")
    options: dict[str, Any] = {"crop_seconds": 0.5, "batch_size": 40, "num_workers": 0}
    both = attach(Libri2Mix(root, **options), needs_sources=True).training_batches(Ranks())[0]
    some = Libri2Mix(root, single_source_share=0.5, **options).training_batches(Ranks())[0]
    alone = (some["sources"][:, 1] == 0).all(1)
    assert 10 < alone.sum() < 30
    for key in ("mixtures", "sources"):  # which crop is which does not change
        assert torch.equal(some[key][~alone], both[key][~alone])
    assert torch.equal(some["mixtures"][alone], some["sources"][alone, 0])
    of_which = torch.stack([(both["sources"][alone, k] == some["mixtures"][alone]).all(1) for k in (0, 1)])
    assert of_which.any(0).all()
    assert of_which.any(1).all()
    validated = Libri2Mix(root, single_source_share=1.0, **options).validation_batches()[0]
    assert (validated["sources"] != 0).any(2).all()
    with pytest.raises(ValueError, match="single_source_share"):
        Libri2Mix(single_source_share=1.5)
