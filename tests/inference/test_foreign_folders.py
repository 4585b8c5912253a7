"""Exported folders of strangers, on disk and on the Hub: each ends in one line and writes nothing anywhere else."""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from surf_lightning.cli import main
from surf_lightning.inference import hub
from surf_lightning.inference.checkpoint import KEY, describe
from surf_lightning.inference.separator import FlowSeparator
from tests.inference.conftest import CACHE, Hub
from tests.inference.test_untrusted import NETWORK, edited, valid
from tests.test_configs import ROOT
from tests.tiny import velocity

FIT = ["fit", "--config", str(ROOT / "configs/digits_surf_rm.yaml"), "--config", str(ROOT / "tests/tiny_images.yaml")]
FIT += ["--trainer.logger", "false", "--trainer.accelerator", "cpu"]
TEST = ["test", "--config", str(ROOT / "configs/digits_mixit.yaml"), *FIT[3:]]
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "separate": lambda name: ["separate", "picture.png", "--checkpoint", name, "--output", "out"],
    "export": lambda name: ["export", "--checkpoint", name, "--output", "out"],
    "stage": lambda name: [*FIT, "--model.mixit_checkpoint", name],
    "begin": lambda name: [*FIT, "--model.mixit_checkpoint", "digits", "--model.initial_checkpoint", name],
    "test": lambda name: [*TEST, "--ckpt_path", name],
}


def exported(config: Any = None, state: Any = None) -> dict[str, bytes]:
    """The files of an export."""
    config, state = config or valid()[KEY], state or valid()["state_dict"]
    return {hub.CONFIG: json.dumps(config).encode(), hub.WEIGHTS: save(state)}


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, bytes]:
    """With the first of the weights changed."""
    state = valid()["state_dict"]
    name = min(state)
    return exported(state={**state, name: change(state[name]).contiguous()})


def described(place: list[str], value: Any) -> dict[str, bytes]:
    return exported(edited(place, value)[KEY])


def flow(argument: str, value: Any) -> dict[str, bytes]:
    separator = FlowSeparator(velocity())
    config = {**valid()[KEY], "separator": describe(separator)}
    config["separator"]["init_args"][argument] = value
    return exported(config, {f"separator.{name}": weight for name, weight in separator.state_dict().items()})


def header(change: dict[str, Any]) -> dict[str, bytes]:
    """With another entry of the first weight in the header of the safetensors."""
    content = exported()[hub.WEIGHTS]
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    entries[min(entries)].update(change)
    text = json.dumps(entries).encode()
    return {**exported(), hub.WEIGHTS: struct.pack("<Q", len(text)) + text + content[8 + length :]}


ALTERED: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "another class": (lambda: described([*NETWORK, "class_path"], "torch.nn.Linear"), "would import torch.nn.Linear"),
    "a function": (lambda: described([*NETWORK, "class_path"], "os.system"), "would import os.system"),
    "a method": (
        lambda: described([*NETWORK, "class_path"], "surf_lightning.methods.mixit.MixIT"),
        "which is no network",
    ),
    "many blocks": (lambda: described([*NETWORK, "init_args", "blocks"], 10**6), "larger than its 56 weights"),
    "no number": (lambda: flow("sampling_noise", float("nan")), "the number nan"),
    "half a step": (lambda: flow("num_steps", 2.5), "num_steps (2.5) whole"),
    "shape": (lambda: weights(lambda weight: weight.flatten()[:1]), "is [1] there, [4] here"),
    "nan": (lambda: weights(lambda weight: weight * torch.nan), "holds NaN or infinity in separator.network"),
    "nan of 8 bits": (lambda: weights(lambda weight: (weight * torch.nan).to(torch.float8_e4m3fn)), "holds NaN"),
    "beyond float32": (lambda: weights(lambda weight: weight.double().fill_(1e300)), "holds NaN or infinity"),
    "complex": (lambda: weights(lambda weight: weight.to(torch.complex64)), "holds complex numbers"),
    "claims": (lambda: header({"shape": [1 << 40], "data_offsets": [0, 1 << 42]}), "is damaged"),
    "cut": (lambda: {**exported(), hub.WEIGHTS: exported()[hub.WEIGHTS][:-100]}, "is damaged"),
    "cut config": (lambda: {**exported(), hub.CONFIG: exported()[hub.CONFIG][:-20]}, "is damaged"),
    "empty": (lambda: {**exported(), hub.WEIGHTS: b""}, "is damaged"),
    "pickle": (lambda: {**exported(), hub.WEIGHTS: b"\x80\x02cos\nsystem\n(S'touch pwned'\ntR."}, "is damaged"),
    "deep": (lambda: {**exported(), hub.CONFIG: b"[" * 900_000}, "is damaged"),
    "long": (lambda: {**exported(), hub.CONFIG: b"[" + b"[]," * 400_000 + b"0]"}, "more than 1,000,000 bytes"),
    "no record": (lambda: {**exported(), hub.CONFIG: b"{}"}, "does not say which separator"),
    "no weights": (lambda: {hub.CONFIG: exported()[hub.CONFIG]}, "holds no model.safetensors"),
    "nothing": (lambda: {"README.md": b""}, "config.json"),
}


@pytest.fixture(autouse=True)
def _picture() -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("picture.png")


def there() -> set[Path]:
    return {path for path in Path().rglob("*") if not path.is_relative_to(CACHE) and path not in Path(CACHE).parents}


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with status 2, in its last line, and leaves nothing."""
    before = there()
    capsys.readouterr()
    assert main(args) == 2
    assert there() == before
    *progress, said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line]
    assert not any("Error" in line or "Traceback" in line for line in progress)
    return said


def check(case: str, command: str, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder and from the Hub."""
    make, says = ALTERED[case]
    files = make()
    Path("folder").mkdir()
    for name, content in files.items():
        Path("folder", name).write_bytes(content)
    serve(files)
    for given in ("folder", "hf://user/name"):
        said = refused(COMMANDS[command](given), capsys)
        assert says in said or (command == "test" and "is of another network" in said)


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_folder(case: str, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(case, "separate", serve, capsys)


@pytest.mark.parametrize(("command", "case"), [("export", "nan"), ("stage", "nan"), ("test", "cut")])
def test_an_altered_folder_by_another_command(
    command: str, case: str, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, command, serve, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", list(COMMANDS)[1:])
@pytest.mark.parametrize("case", ALTERED)
def test_every_altered_folder_by_every_command(
    case: str, command: str, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, command, serve, capsys)


def test_odd_files_in_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """A link to another file, to itself, to a device, a pipe, a folder, more than the disk holds."""
    whole, odd = exported(), Path("odd")
    odd.mkdir()
    ways: list[Callable[[Path], Any]] = [
        *(functools.partial(os.symlink, target) for target in (__file__, "/dev/zero", "../odd")),
        lambda path: path.symlink_to(path.name),
        os.mkfifo,
        os.mkdir,
        lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    ]
    for name in whole:
        for way in ways:
            shutil.rmtree(odd)
            odd.mkdir()
            for other in whole.keys() - {name}:
                (odd / other).write_bytes(whole[other])
            way(odd / name)
            assert refused(COMMANDS["separate"]("odd"), capsys).startswith("surf separate: odd ")


class Cut(Hub):
    """Ends in the middle of a file."""

    def send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.connection.close()

    def answer(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        if "ETag" in headers and self.command == "GET":
            assert isinstance(content, bytes)
            self.send(content, headers)
        else:
            super().answer(content, status, **headers)


class Hung(Cut):
    """Stops in the middle of a file."""

    def send(self, content: bytes, headers: dict[str, str]) -> None:
        super().answer(content, 200, **{**headers, "Content-Length": str(len(content) + 1)})
        time.sleep(0.3)


class Failing(Cut):
    def send(self, content: bytes, headers: dict[str, str]) -> None:
        super().answer({"error": "boom"}, 500)


class Circle(Cut):
    def send(self, content: bytes, headers: dict[str, str]) -> None:
        super().answer({}, 302, Location=self.path)


class Talking(Hub):
    """Answers everything with ``says``."""

    says, status = b"<html>", 200

    def do_GET(self) -> None:
        self.answer(self.says, self.status)

    do_HEAD = do_GET


@pytest.mark.parametrize(
    "kind",
    [
        *(Cut, Hung, Failing, Circle, Talking),
        *(
            type("Says", (Talking,), {"says": says})
            for says in (b"", b"[]", b'{"sha": 3, "id": 4}', b'{"id": "user/name"}')
        ),
        type("Down", (Talking,), {"status": 500}),
    ],
    ids=lambda kind: getattr(kind, "says", b"").decode() or kind.__name__,
)
def test_a_server_that_fails(kind: type[Hub], serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    serve(exported(), kind)
    said = refused(COMMANDS["separate"]("hf://user/name"), capsys)
    assert "no such separator on the Hugging Face Hub: " in said
    serve(exported())  # what the first attempt has left is no hindrance
    assert main(COMMANDS["separate"]("hf://user/name")) == 0


@pytest.mark.parametrize(
    "name", ["user/name@../../up", "user/name@/etc", "../..", "user", "user/name@", "user/näme", ""]
)
def test_no_path_is_a_name_on_the_hub(name: str, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    serve(exported())
    refused(COMMANDS["separate"](f"hf://{name}"), capsys)
    assert not Path(CACHE).exists()


def test_a_revision_that_is_not_there(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    serve(exported())
    for revision in ("999", "f" * 40):
        assert "no such separator" in refused(COMMANDS["separate"](f"hf://user/name@{revision}"), capsys)


def test_nothing_but_two_files_is_taken_from_a_repository(serve: Any) -> None:
    names = [
        "../config.json",
        "../../../../../up",
        "/tmp/absolute",
        "a/../../../config.json",
        "run.py",
        "config.json/x",
    ]
    serve({**dict.fromkeys(names, b"x"), **exported()})
    before = there()
    assert main(COMMANDS["separate"]("hf://user/name")) == 0
    assert {path for path in there() - before if path.parts[0] != "out"} == set()
    assert {path.name for path in Path(CACHE).glob("*/snapshots/*/*")} == {hub.CONFIG, hub.WEIGHTS}
