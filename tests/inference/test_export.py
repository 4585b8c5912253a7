"""Exported separators: the same estimates, no pickle, the layout of the Hugging Face Hub."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import soundfile
import torch

from surf_lightning.cli import main
from surf_lightning.errors import UserError
from surf_lightning.inference.separator import FlowSeparator, RegressionSeparator, Separator, load_separator
from surf_lightning.networks.base import ConstantNoise
from surf_lightning.networks.conv_tasnet import ConvTasNet
from surf_lightning.networks.locoformer import MBLocoformer
from tests.inference.test_separate import AUDIO, save, summary
from tests.inference.test_streaming import Filters, sound


def separators() -> list[Separator]:
    torch.manual_seed(0)
    flow = MBLocoformer(2, features=8, attention=8, heads=2, hidden=8, blocks=1, mel_bands=8, sample_rate=8000)
    for parameter in flow.parameters():  # zero-initialised layers would hide weights that are not loaded
        torch.nn.init.normal_(parameter, std=0.2)
    conv = ConvTasNet(4, 2, filters=16, bottleneck=8, hidden=16, repeats=1, blocks=2)
    return [RegressionSeparator(conv, 2), FlowSeparator(flow, num_steps=2, noise=ConstantNoise(0.1))]


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)


@pytest.fixture(params=[0])
def exported(request: pytest.FixtureRequest) -> Separator:
    separator = separators()[request.param].eval()
    save(separator, AUDIO)
    assert main(["export", "--checkpoint", "a.ckpt", "--output", "exported"]) == 0
    return separator


each = pytest.mark.parametrize("exported", [0, 1], ids=["regression", "flow"], indirect=True)


def estimates(separator: Separator) -> torch.Tensor:
    mixtures = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1))
    return separator.separate(mixtures, torch.Generator().manual_seed(2))


@each
def test_an_exported_folder_gives_the_same_estimates_without_pickle(
    exported: Separator, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("no_pickle")
    assert sorted(path.name for path in Path("exported").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = load_separator("exported")
    assert type(loaded) is type(exported)
    assert loaded.signal == AUDIO
    assert not loaded.training
    assert torch.equal(estimates(loaded), estimates(exported))
    assert not torch.equal(estimates(loaded), estimates(separators()[0].train()) * 0)


def test_an_export_goes_to_the_hub_and_comes_back_also_without_network(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    server, (separator, _), pinned = serve(), separators(), f"hf://me/separator@{1:040d}"
    for output in ("first", "second"):
        torch.nn.init.normal_(separator.network.masks.weight)  # type: ignore[union-attr, arg-type]
        save(separator, AUDIO)
        assert main(["export", "--checkpoint", "a.ckpt", "--output", output, "--push", "me/separator"]) == 0
        assert "hf://me/separator" in capsys.readouterr().out

    def check(names: dict[str, str]) -> None:
        for name, folder in names.items():
            assert torch.equal(estimates(load_separator(name)), estimates(load_separator(folder)))

    check({"me/separator": "second", "hf://me/separator": "second", pinned: "first"})
    soundfile.write("a.wav", sound(1.0).T.numpy(), 8000)
    assert main(["separate", "a.wav", "--checkpoint", "me/separator", "--output", "out"]) == 0
    assert summary()["checkpoint"] == "me/separator"
    server.shutdown()
    server.server_close()
    check({"hf://me/separator": "second", pinned: "first"})
    with pytest.raises(UserError, match=r"no file me/nothing, and no such separator on the Hugging Face Hub: [^\n]*$"):
        load_separator("me/nothing")


@pytest.mark.parametrize("path", ["runs/digits", "runs/a.ckpt", "no/a.ckpt", "no/such/folder", "./digits", "/digits"])
def test_a_path_is_not_looked_for_on_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    Path("runs").mkdir()
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_separator(path)


def test_the_files_have_the_rights_of_any_new_file(exported: Separator) -> None:
    Path("other").write_text("")
    assert {path.stat().st_mode for path in Path("exported").iterdir()} == {Path("other").stat().st_mode}


def test_code_from_outside_the_package_needs_trust(capsys: pytest.CaptureFixture[str]) -> None:
    save(Filters(), AUDIO)
    assert main(["export", "--checkpoint", "a.ckpt", "--output", "exported"]) == 2
    assert "tests.inference.test_streaming.Filters" in capsys.readouterr().err
    assert not Path("exported").exists()
    assert main(["export", "--checkpoint", "a.ckpt", "--output", "exported", "--trust"]) == 0
    with pytest.raises(UserError, match="Filters"):
        load_separator("exported")
    assert isinstance(load_separator("exported", trust=True), Filters)


def test_an_export_replaces_nothing_and_is_complete_or_absent(
    exported: Separator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("exported/model.safetensors").read_bytes()
    assert main(["export", "--checkpoint", "a.ckpt", "--output", "exported"]) == 2
    assert "there already" in capsys.readouterr().err
    assert Path("exported/model.safetensors").read_bytes() == before

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("surf_lightning.inference.export.save", full)
    assert main(["export", "--checkpoint", "a.ckpt", "--output", "new"]) == 2
    assert "No space" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["a.ckpt", "exported"]
