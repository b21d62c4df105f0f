"""The base image of the Containerfile is renewed from a registry, which here is one of our own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
INDEX: Final = json.dumps({"schemaVersion": 2, "manifests": [{"platform": {"architecture": "amd64"}}]}).encode()
TAGS: Final = [
    ["bookworm-20991231-slim", "trixie-20260901-slim", "trixie-slim"],
    ["trixie-20261116", "trixie-20261102-slim", "trixie-20261005-slim"],
]


class Registry(ThreadingHTTPServer):
    """Wants a token, and lists its tags in two pages."""

    tags = TAGS
    index = INDEX


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        host = f"http://127.0.0.1:{self.server.server_port}"
        if self.path.startswith("/token?service=here&scope=repository%3Alibrary%2Fdebian%3Apull"):
            self.answer(b'{"token": "t0ken"}')
        elif self.headers.get("Authorization") != "Bearer t0ken":
            self.answer(b"{}", 401, ("WWW-Authenticate", f'Bearer realm="{host}/token",service="here"'))
        elif self.path == "/v2/library/debian/tags/list?n=1000":
            following = '</v2/library/debian/tags/list?n=1000&last=x>; rel="next"'
            self.answer(json.dumps({"tags": self.server.tags[0]}).encode(), 200, ("Link", following))
        elif self.path == "/v2/library/debian/tags/list?n=1000&last=x":
            self.answer(json.dumps({"tags": self.server.tags[1]}).encode())
        elif self.path == "/v2/library/debian/manifests/trixie-20261102-slim":
            assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
            self.answer(self.server.index)
        else:
            self.answer(b"{}", 404)

    def answer(self, body: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def renew(registry: Registry, file: Path) -> subprocess.CompletedProcess[str]:
    program, url = ROOT / "packaging" / "renew_base.py", f"http://127.0.0.1:{registry.server_port}"
    argv: list[str | Path] = [sys.executable, "-I", program, "--registry", url, "--file", file]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    copy = tmp_path / "Containerfile"
    copy.write_bytes((ROOT / "packaging" / "Containerfile").read_bytes())
    return copy


def test_the_newest_dated_tag_with_its_digest(registry: Registry, file: Path) -> None:
    before = file.read_text()
    done = renew(registry, file)
    line = f"ARG BASE=docker.io/library/debian:trixie-20261102-slim@sha256:{hashlib.sha256(INDEX).hexdigest()}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")
    changed = [new for old, new in zip(before.splitlines(), file.read_text().splitlines(), strict=True) if old != new]
    assert changed == [line.rstrip()]


@pytest.mark.parametrize(
    ("tags", "index", "error"),
    [
        ([["trixie-slim"], []], INDEX, "no tag of library/debian looks like trixie-YYYYMMDD-slim"),
        (TAGS, b'{"config": {}}', "trixie-20261102-slim is an image of one architecture"),
        ([["trixie-20261231-slim"], []], INDEX, "404 Not Found"),
    ],
)
def test_where_there_is_none_nothing_is_changed(
    registry: Registry, file: Path, tags: list[list[str]], index: bytes, error: str
) -> None:
    registry.tags, registry.index = tags, index
    before = file.read_bytes()
    done = renew(registry, file)
    assert done.returncode == 1
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == before
