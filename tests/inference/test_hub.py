"""The Hub by a stand-in of its HTTP interface on this machine: upload, download, revisions, no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from tests.inference.test_export import separators
from tests.inference.test_separate import AUDIO, save


class Hub(BaseHTTPRequestHandler):
    """Repositories as lists of commits, each a dict of files."""

    commits: dict[str, list[dict[str, bytes]]]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'user'}/{given['name']}"
            self.commits.setdefault(name, [])
            self.answer({"url": f"/{name}", "name": name, "id": name})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif found := re.fullmatch(r"/api/models/(.+?)/commit/main", self.path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            commits = self.commits[found[1]]
            commits.append({**(commits[-1] if commits else {}), **{k: base64.b64decode(v) for k, v in files.items()}})
            oid = f"{len(commits):040d}"
            self.answer({"success": True, "commitOid": oid, "commitUrl": f"/{found[1]}/commit/{oid}"})
        else:
            self.answer({})

    def do_GET(self) -> None:
        try:
            self.serve(self.path.partition("?")[0])
        except (LookupError, ValueError):
            self.answer({"error": "not found"}, 404, X_Error_Code="RevisionNotFound")

    def serve(self, path: str) -> None:
        if found := re.fullmatch(r"/api/models/(.+?/.+?)/(?:revision|tree)/([^/]+)", path):
            oid, files = self.revision(*found.groups())
            siblings = [{"rfilename": name} for name in files]
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            self.answer(
                json.dumps(tree).encode() if "/tree/" in path else {"id": found[1], "sha": oid, "siblings": siblings}
            )
        elif found := re.fullmatch(r"/(.+?/.+?)/resolve/([^/]+)/(.+)", path):
            oid, files = self.revision(found[1], found[2])
            data = files[found[3]]
            self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=oid)
        else:
            self.answer({"error": "not found"}, 404)

    do_HEAD = do_GET

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self.commits[name]
        number = len(commits) if revision == "main" else int(revision)
        return f"{number:040d}", commits[number - 1]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Fresh", (Hub,), {"commits": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


def surf(*args: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads its endpoint once."""
    return subprocess.run([sys.executable, "-m", "surf_lightning", *args], capture_output=True, text=True)


SCRIPT = """
import torch
from surf_lightning import load_separator
for name in {names}:
    separator = load_separator(name)
    print(sum(float(weight.abs().sum()) for weight in separator.state_dict().values()))
"""


def sums(*names: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(names=names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.slow
def test_an_export_goes_to_the_hub_and_comes_back_also_without_network(hub: ThreadingHTTPServer) -> None:
    separator, expected = separators()[0], []
    for output in ("first", "second"):
        torch.nn.init.normal_(separator.network.masks.weight)  # type: ignore[union-attr, arg-type]
        expected.append(sum(float(weight.abs().sum()) for weight in separator.state_dict().values()))
        save(separator, AUDIO)
        done = surf("export", "--checkpoint", "a.ckpt", "--output", output, "--push", "me/separator")
        assert done.returncode == 0, done.stderr
        assert "hf://me/separator" in done.stdout
    pinned = f"hf://me/separator@{1:040d}"
    assert sums("me/separator", "hf://me/separator", pinned) == pytest.approx([expected[1], expected[1], expected[0]])
    hub.shutdown()
    hub.server_close()
    assert sums("hf://me/separator", pinned) == pytest.approx(expected[::-1])
    done = surf("separate", "x.wav", "--checkpoint", "hf://me/nothing", "--output", "out")
    assert done.returncode == 2
    assert "no such separator on the Hugging Face Hub" in done.stderr
