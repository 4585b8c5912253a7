"""Checkpoints of strangers: nothing in them runs, fills the memory or takes long; each ends in one line."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from surf_lightning.cli import main
from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import KEY, read_checkpoint
from surf_lightning.inference.separator import load_separator
from tests.inference.test_checkpoint import saved, valid

NETWORK = ["separator", "init_args", "network"]


def edited(place: list[str], value: Any) -> dict[str, Any]:
    content = valid()
    part = content[KEY]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return content


def refused(path: str) -> str:
    """The one line of `surf separate`, of `surf export` and of ``load_separator``."""
    with pytest.raises(UserError) as caught:
        load_separator(path)
    assert "\n" not in str(caught.value)
    for command in (["separate", ".", "--output", "out"], ["export", "--output", "out"]):
        assert main([*command, "--checkpoint", path]) == 2
    assert not Path("out").exists()
    return str(caught.value)


def test_the_checkpoint_of_these_tests_loads() -> None:
    assert load_separator(saved(valid())).num_sources == 2


def test_a_zip_bomb_is_refused_before_it_unfolds() -> None:
    with zipfile.ZipFile(saved(valid())) as whole, zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, bytes(1 << 28) if name.endswith("/data/0") else whole.read(name))
    assert Path("bomb.ckpt").stat().st_size < 2e6
    assert refused("bomb.ckpt") == "bomb.ckpt is no checkpoint, or a damaged one"


def test_parts_that_share_their_bytes_are_refused() -> None:
    path = Path(saved(valid()))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
        entries = len(archive.infolist())
    last = b"PK\x06\x06" if b"PK\x06\x06" in content else b"PK\x05\x06"
    directory = content[start : content.index(last, start)]
    end = b"PK\x05\x06" + bytes(4) + (entries * 9).to_bytes(2, "little") * 2
    end += (len(directory) * 9).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    path.write_bytes(content[:start] + directory * 9 + end)
    assert "damaged" in refused("some.ckpt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 40),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (1 << 40,)),
        torch.empty(1 << 40, device="meta"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tensor: torch.Tensor) -> None:
    content = valid()
    content["state_dict"]["separator.network.claimed"] = tensor
    assert "larger than what the file has of it" in refused(saved(content))


def test_shared_parts_that_unfold_without_end_are_refused() -> None:
    laughs: Any = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    assert "more than 1,000,000 values" in refused(saved(edited(["signal"], laughs)))
    circle: list[Any] = []
    circle.append(circle)
    assert "more than 1,000,000 values" in refused(saved(edited([*NETWORK, "init_args", "multipliers"], circle)))


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("blocks", 10**6, "larger than its 56 weights"),
        ("channels", 10**6, "the weights are not of the network"),
        ("channels", 10**12, "beyond all sizes"),
        ("multipliers", [1] * 900, "larger than its 56 weights"),
        ("channels", 8, "is [4, 1, 3, 3] there, [8, 1, 3, 3] here"),
        ("channels", 0, "cannot be rebuilt"),
        ("channels", "four", "cannot be rebuilt"),
        ("dropout", torch.zeros(2), "no plain value"),
        ("unknown", 1, "unexpected keyword argument 'unknown'"),
    ],
)
def test_a_network_that_its_weights_are_not_of_is_not_begun(argument: str, value: Any, said: str) -> None:
    assert said in refused(saved(edited([*NETWORK, "init_args", argument], value)))


@pytest.mark.parametrize(
    "path",
    [
        "surf_lightning.metrics.perceptual._LPIPS",
        "surf_lightning.metrics.perceptual.FID",
        "surf_lightning.networks.base.nn",
        "surf_lightning.networks.base.Head",
        "surf_lightning.networks.score.ScoreNetwork",
        "surf_lightning.methods.mixit.MixIT",
        "surf_lightning.engine.run_folder.move_aside",
        "surf_lightning.cli.main",
        "surf_lightning.files.Path",
        "surf_lightning.data.Digits",
        "surf_lightning.networks..base.ConstantNoise",
        "torch.nn.Linear",
        "Linear",
        "",
    ],
)
def test_nothing_but_our_serializable_networks_is_built(path: str) -> None:
    said = refused(saved(edited([*NETWORK, "class_path"], path)))
    assert re.search("would (call|import) |cannot be imported", said)  # and not: it was called with odd arguments


def test_the_command_line_is_not_imported_by_a_checkpoint() -> None:
    """``surf_lightning.__main__`` would read the caller's arguments and end the caller."""
    path = saved(edited([*NETWORK, "class_path"], "surf_lightning.__main__.Net"))
    program = (
        "from surf_lightning import load_separator\n"
        f"try:\n    load_separator({path!r})\nexcept ValueError as error:\n    print('goes on:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("goes on: some.ckpt: the checkpoint would call"), done.stderr


def test_a_separator_must_be_one() -> None:
    content = edited(["separator"], {"class_path": "surf_lightning.networks.ConstantNoise", "init_args": {}})
    assert "separates nothing" in refused(saved({**content, "state_dict": {}}))


def test_weights_that_are_not_finite_are_refused() -> None:
    content = valid()
    next(iter(content["state_dict"].values()))[0] = torch.nan
    assert "holds NaN or infinity in separator.network" in refused(saved(content))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=20), st.just(torch.zeros(2))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in nested dicts and lists."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [at, *(place for key in keys for place in places(value[key], (*at, key)))]


def change(draw: Any, content: Any) -> Any:
    """``content`` with a value in it replaced by another, or removed."""
    content = copy.deepcopy(content)
    place = draw(st.sampled_from(places(content)))
    if not place:
        return draw(VALUES)
    part = content
    for key in place[:-1]:
        part = part[key]
    if draw(st.booleans()):
        part[place[-1]] = draw(VALUES)
    else:
        del part[place[-1]]
    return content


def load_or_refuse(path: str | Path) -> None:
    """Any error but a UserError of one line fails."""
    said = ""
    try:
        load_separator(path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def check_altered_checkpoint(data: st.DataObject) -> None:
    content = change(data.draw, valid())
    load_or_refuse(saved(content))


def check_altered_export(data: st.DataObject) -> None:
    content, folder = valid(), Path("exported")
    folder.mkdir(exist_ok=True)
    save_file(content["state_dict"], folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(change(data.draw, content[KEY]), default=str))
    load_or_refuse(folder)


def check_altered_bytes(data: st.DataObject) -> None:
    whole = Path(saved(valid(), "whole.ckpt")).read_bytes()
    Path("bytes.ckpt").write_bytes(data.draw(altered(whole)))
    load_or_refuse("bytes.ckpt")


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with up to three stretches replaced, and perhaps cut off."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        whole = whole[:start] + draw(st.binary(max_size=9)) + whole[start + draw(st.integers(0, 20)) :]
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


def test_legacy_files_of_torch_are_refused() -> None:
    """They have no directory that tells their size before they are read; this package never wrote one."""
    torch.save(valid(), "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="no checkpoint"):
        read_checkpoint("old.ckpt")
