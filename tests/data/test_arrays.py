"""Folders of arrays and images: what is read, scaled, held out, and the commands of docs/howto/arrays.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from surf_lightning.cli import main
from surf_lightning.data import Arrays
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.inference.array_files import read_array
from surf_lightning.inference.separator import load_separator
from tests.tiny import mixit, trainer

DOCUMENT = Path(__file__).parents[2] / "docs" / "howto" / "arrays.md"
SMALL: dict[str, Any] = {"batch_size": 4, "batches_per_epoch": 2}


def write_arrays(folder: Path, count: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """``count`` mixtures of two sources of values in [0, 10]; these lie in ``source1`` and ``source2`` beside them."""
    sources = 10 * np.random.default_rng(seed).random((2, count, 8, 8))
    written = {f"{number:02d}.npy": sources[:, number] for number in range(count)}
    for name, (first, second) in written.items():
        for part, array in (
            (folder, first + second),
            (folder.parent / "source1", first),
            (folder.parent / "source2", second),
        ):
            part.mkdir(parents=True, exist_ok=True)
            np.save(part / name, array)
    return written


def test_batches_are_the_files_by_the_seed_and_their_sources_sum_to_them() -> None:
    written = write_arrays(Path("sky"))
    data = Arrays("sky", source_roots=["source1", "source2"], scale=(0, 20), **SMALL)
    batches = data.training_batches(Ranks())
    batch = batches[3]
    first = np.load(batches.names(3, 0))  # type: ignore[attr-defined]
    np.testing.assert_allclose(batch["mixtures"][0, 0], 2 * (first - 10) / 10, atol=1e-5)
    torch.testing.assert_close(batch["sources"].sum(1), batch["mixtures"])
    assert batch["sources"].abs().max() <= 1
    known = np.stack(list(written.values())) / 5 - 1
    for found in batch["sources"][:, :, 0].numpy():
        assert np.abs(known - found).max((1, 2, 3)).min() < 1e-6

    parts = [data.training_batches(Ranks(rank, 2))[1] for rank in range(2)]
    whole = Arrays("sky", source_roots=["source1", "source2"], scale=(0, 20), **{**SMALL, "batch_size": 8})
    both = whole.training_batches(Ranks())[1]["mixtures"]
    torch.testing.assert_close(torch.cat([part["mixtures"] for part in parts]), both, rtol=0, atol=0)
    other = Arrays("sky", scale=(0, 20), seed=1, **SMALL).training_batches(Ranks())[3]["mixtures"]
    assert not torch.equal(other, batch["mixtures"])


def test_the_parts_are_distinct_and_a_function_of_their_own_seed() -> None:
    write_arrays(Path("sky"))
    data, again, other = (
        Arrays("sky", ["source1", "source2"], seed=s, split_seed=p) for s, p in ((0, 0), (1, 0), (0, 1))
    )
    assert sorted(i for part in data.parts.values() for i in part) == list(range(20))
    assert [len(data.parts[part]) for part in ("train", "validation", "test")] == [16, 2, 2]
    assert data.parts == again.parts != other.parts
    assert data.monitor == "val/psnr"
    with pytest.raises(UserError, match="no true sources"):
        Arrays("sky").test_batches()


def test_the_scale_is_measured_on_what_is_trained_on() -> None:
    written = write_arrays(Path("sky"))
    data = Arrays("sky")
    names = [data.files.names[i] for i in data.parts["train"]]
    values = np.stack([written[name].sum(0) for name in names])
    low, high = values.min(), values.max()
    assert data.signal()["values"] == pytest.approx([(low + high) / 2, (high - low) / 2], rel=1e-6)
    data = Arrays("sky", scaling="standard")
    assert data.signal()["values"] == pytest.approx([values.mean(), values.std()], rel=1e-6)
    mixtures = torch.cat([data.training_batches(Ranks())[i]["mixtures"] for i in range(9)]) / 2
    assert mixtures.std() == pytest.approx(1, abs=0.1)


def test_every_format_gives_its_values() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 5))
    np.save("a.npy", array.astype(">i2"))
    np.savez_compressed("a.npz", anything=array)
    Image.fromarray(array.astype(np.uint8)).save("a.png")
    Image.fromarray(array.astype(np.float32)).save("a.tif")
    for name in ("a.npy", "a.npz", "a.png", "a.tif"):
        assert np.array_equal(read_array(Path(name)), array[None])
    Image.fromarray(np.stack([array] * 3, -1).astype(np.uint8)).save("colour.png")
    assert read_array(Path("colour.png")).shape == (3, 6, 5)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("LA", np.uint8), ("RGBA", np.uint8)])
def test_a_png_of_other_than_8_bits_in_grey_or_colours_is_refused(mode: str, dtype: Any) -> None:
    Image.fromarray(np.ones((6, 5, *([len(mode)] if dtype == np.uint8 else [])), dtype)).save("a.png")
    with pytest.raises(ValueError, match=f"is {mode}: .*save it as TIFF"):
        read_array(Path("a.png"))


def test_a_tiff_of_several_pages_is_refused() -> None:
    first, *others = (Image.fromarray(np.full((6, 5), i, np.float32)) for i in range(3))
    first.save("a.tif", save_all=True, append_images=others)
    with pytest.raises(ValueError, match="holds 3 pages: save it as"):
        read_array(Path("a.tif"))


def test_fits_is_read_where_astropy_is_there() -> None:
    fits = pytest.importorskip("astropy.io.fits")
    array = np.random.default_rng(0).random((6, 5)).astype(">f4")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(array)]).writeto("a.fits")
    assert np.array_equal(read_array(Path("a.fits")), array[None])
    fits.PrimaryHDU().writeto("empty.fits")
    with pytest.raises(ValueError, match="no image"):
        read_array(Path("empty.fits"))


class Unsafe:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_bad_files_are_named_and_skipped_and_many_are_an_error() -> None:
    write_arrays(Path("sky"))
    bad: dict[str, Any] = {
        "nan": np.full((8, 8), np.nan),
        "flat": np.ones((8, 8)),
        "small": np.eye(7),
        "row": np.arange(8.0),
    }
    bad["pickled"] = np.array([Unsafe()], dtype=object)
    for name, array in bad.items():
        np.save(f"sky/{name}.npy", array)
    Path("sky/lies.npy").write_bytes(Path("sky/00.npy").read_bytes().replace(b"(8, 8)", b"(8,99)"))
    Path("sky/text.tiff").write_text("no image")
    Path("sky/empty.npy").touch()
    np.savez("sky/two.npz", np.eye(8), np.eye(8))
    with pytest.warns(UserWarning, match="cannot be used: 9 of 29") as said:
        files = Arrays("sky", max_bad_share=0.5).files
    assert len(files.names) == 20
    for name in (*bad, "lies", "text", "empty", "two"):
        assert re.search(rf"\n  {name}\.\w+: ", str(said[0].message))
    assert not Path("executed").exists()
    with pytest.raises(UserError, match=r"max_bad_share = 0.2 allows:\n"):
        Arrays("sky").signal()
    with pytest.raises(UserError, match="is no folder"):
        Arrays("nowhere").signal()


@pytest.mark.parametrize("scaling", ["range", "standard"])
def test_a_run_with_truth_is_validated_tested_and_separates_in_its_values(scaling: Any) -> None:
    write_arrays(Path("sky"))
    data = Arrays("sky", ["source1", "source2"], scaling=scaling, **SMALL)
    fitted, module = trainer(Path("run")), mixit()
    fitted.fit(module, data)
    (measured,) = fitted.test(module, data, verbose=False)
    assert ("test/psnr" if scaling == "range" else "test/si_sdri") in measured
    assert load_separator("run/checkpoints/best.ckpt").signal == data.signal()


@pytest.mark.parametrize(
    "wrong",
    [{"source_roots": ["a"]}, {"validation_share": 0.5}, {"scale": (1, 1)}, {"scaling": "standard", "scale": (1, 0)}],
)
def test_arguments_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"source_roots|validation_share|scale"):
        Arrays(**wrong)


def test_the_worked_example_of_the_document_runs() -> None:
    """Its own lines, with two steps and fewer pictures."""
    text = DOCUMENT.read_text()
    (script,) = re.findall(r"```python\n(# write_digits.+?)```", text, re.DOTALL)
    subprocess.run([sys.executable, "-c", script.replace("1700", "40")], check=True)
    tiny = Path(__file__).parents[1] / "tiny_arrays.yaml"
    quick = ["--config", str(tiny), "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    commands = re.findall(r"^surf (.+)$", text, re.MULTILINE)
    ran = []
    for command in commands:
        name, *args = command.split("  ")[0].split()
        if name == "report":
            continue
        args = [str(DOCUMENT.parents[2] / word) if word.startswith("configs/") else word for word in args]
        kept = [word for word in quick if name == "fit"]
        assert main([name, *args[:2], *kept, *args[2:]]) == 0, command
        ran.append(name)
    assert ran == ["fit", "fit", "separate"]
    mixture = np.load("new/0000.npy")
    sources = [np.load(f"separated/0000_source{k}.npy") for k in (1, 2)]
    np.testing.assert_allclose(sum(sources), mixture, atol=1e-4)
