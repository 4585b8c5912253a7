"""A stand-in of the Hub's HTTP interface on this machine, and a toy separator."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest

from tests.inference.test_separate import AUDIO, save
from tests.inference.test_streaming import Filters

CACHE = "cache/of/the/hub"


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
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ThreadingHTTPServer]]:
    """Starts a stand-in of the Hub, whose user/name has given files, and which this process takes for the Hub."""
    servers: list[ThreadingHTTPServer] = []

    def start(files: dict[str, bytes] | None = None, kind: type[Hub] = Hub) -> ThreadingHTTPServer:
        commits = {"user/name": [files]} if files else {}
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (kind,), {"commits": commits}))
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has gone
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": CACHE,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DOWNLOAD_TIMEOUT": 0.1,
            "HF_HUB_ETAG_TIMEOUT": 0.1,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        at_once = types.SimpleNamespace(**{**vars(time), "sleep": lambda _: None})  # between two tries
        monkeypatch.setattr(huggingface_hub.file_download, "time", at_once)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def toy() -> str:
    """The checkpoint of a toy separator of sounds."""
    return save(Filters(), AUDIO)
