"""The separators that come with the package: they load by name and reach what their cards say."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import numpy as np
import plan
import pytest
import ship
import soundfile
import torch
from PIL import Image

from surf_lightning.cli import main
from surf_lightning.data import Digits
from surf_lightning.inference.hub import SHIPPED, local_path, shipped
from surf_lightning.inference.separator import load_separator

ROOT = Path(__file__).parents[2]


def test_each_is_small_has_a_card_and_is_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert {"digits", "phone"} <= set(shipped())
    for name in shipped():
        assert not (SHIPPED / name / "README.md").read_text().count("Say here")
        files = [path for path in (SHIPPED / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 2_000_000
        for path in files:
            inside = path.relative_to(SHIPPED.parent).as_posix()
            assert any(fnmatch.fnmatch(inside, pattern) for pattern in patterns["surf_lightning"])


def test_digits_reach_what_their_card_says() -> None:
    said = float(re.search(r"one sample \| ([\d.]+)", (SHIPPED / "digits" / "README.md").read_text())[1])
    data = Digits(num_test=256, batch_size=256)
    data.setup("test")
    (batch,) = data.test_dataloader()
    evaluation = data.metrics()
    estimates = load_separator("digits").separate(batch["mixtures"], torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimates.sum(1), batch["mixtures"])
    evaluation.update(estimates, batch["sources"], batch["mixtures"])
    assert float(evaluation.compute()["psnr"]) == pytest.approx(said, abs=0.7)  # of other mixtures, another sample


def test_the_commands_of_its_card_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened, into a folder of its own; `make ship-digits` tests with the arguments that the card says."""
    monkeypatch.setattr(ship, "MODELS", Path("models").absolute())
    Path("models/digits").mkdir(parents=True)
    Path("models/digits/old").touch()
    card = (ROOT / "experiments" / "cards" / "digits.md").read_text()
    tiny = f"--config {ROOT}/tests/tiny_images.yaml --trainer.logger false --trainer.enable_progress_bar false".split()
    for line in re.findall(r"^surf ((?:fit|test) .*)", card, re.MULTILINE):
        assert main([*line.split(), *tiny]) == 0
    assert f"surf test --config digits_surf_rm {plan.tested('digits_surf_rm')[1]}\n" in card
    ship.main(*re.findall(r"^python experiments/ship.py (\S+) (\S+)", card, re.MULTILINE)[0])
    made = {path.name for path in Path("models/digits").iterdir()}
    assert made == {path.name for path in (SHIPPED / "digits").iterdir()}


def test_one_command_separates_their_examples() -> None:
    examples = SHIPPED / "digits" / "examples"
    assert main(["separate", str(examples), "--checkpoint", "digits", "--output", "separated"]) == 0
    for example in examples.iterdir():
        sources = [np.array(Image.open(f"separated/{example.stem}_source{k}.png"), dtype=float) for k in (1, 2)]
        half = np.array(Image.open(example), dtype=float)
        inside = [(source > 0) & (source < 255) for source in sources]
        assert np.abs(sum(sources) / 2 - half)[inside[0] & inside[1]].max() <= 1


def test_one_command_separates_their_recordings() -> None:
    examples = SHIPPED / "phone" / "examples"
    assert main(["separate", str(examples), "--checkpoint", "phone", "--output", "separated"]) == 0
    for example in examples.iterdir():
        mixture = soundfile.read(example)[0]
        sources = [soundfile.read(f"separated/{example.stem}_source{k}.flac")[0] for k in (1, 2)]
        np.testing.assert_allclose(sum(sources), mixture, atol=2 * 2**-15)
        assert min(np.std(source) for source in sources) > 0.1 * np.std(mixture)


def test_a_path_that_exists_wins() -> None:
    Path("digits").mkdir()
    assert local_path("digits") == "digits"
