"""A repository of updates made with python-tuf, and a web server that may serve it badly."""

from __future__ import annotations

import copy
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, TypeAlias

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

ROLES: Final = ("root", "timestamp", "snapshot", "targets")


class Repository:
    """A repository in a directory, with a key for each role, all in memory. Each change is published at once.

    Attributes:
        signers: the keys with which a role signs, which the root names.
        root_file: the first root, to trust.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "metadata").mkdir(parents=True)
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.expires = {role: datetime.now(UTC).replace(microsecond=0) + timedelta(days=30) for role in ROLES}
        self._root: Root = Root()
        self._targets: Targets = Targets()
        self._snapshot: Snapshot = Snapshot()
        self._timestamp: Timestamp = Timestamp()
        for signed in (self._root, self._targets, self._snapshot, self._timestamp):
            signed.version = 0  # before the first one, which is 1
        for role in ROLES:
            self._root.add_key(self.signers[role][0].public_key, role)
        self.publish_root()
        self.root_file = self._file("1.root.json")
        self.publish_targets()

    def add(
        self, version: str, content: bytes, channel: str = "stable", custom: dict[str, Any] | None = None
    ) -> TargetFile:
        """Publish a version of the program. ``custom``: what is told of it besides, or instead."""
        path = f"{channel}/tapotun.pyz"
        target = TargetFile.from_data(path, content, ["sha256"])
        target.unrecognized_fields["custom"] = {"version": version, "python": "3.11", **(custom or {})}
        self._targets.targets[path] = target
        self.file_of(target).parent.mkdir(parents=True, exist_ok=True)
        self.file_of(target).write_bytes(content)
        self.publish_targets()
        return target

    def file_of(self, target: TargetFile) -> Path:
        folder, _, name = target.path.rpartition("/")
        return self.directory / "targets" / folder / f"{target.hashes['sha256']}.{name}"

    def rotate(self, role: str, *, sign_with_old: bool = True) -> None:
        """Replace the role's key by a new one, and publish all of its metadata anew."""
        old, new = self.signers[role], [CryptoSigner.generate_ed25519()]
        for signer in old:
            self._root.revoke_key(signer.public_key.keyid, role)
        self._root.add_key(new[0].public_key, role)
        self.signers[role] = new
        self.publish_root(also=old if role == "root" and sign_with_old else [])
        if role != "root":
            self.publish_targets()

    def publish_root(self, also: list[CryptoSigner] | None = None) -> None:
        self._root.version += 1
        self._root.expires = self.expires["root"]
        self._write(f"{self._root.version}.root.json", self._root, [*(also or []), *self.signers["root"]])

    def publish_targets(self) -> None:
        """And the snapshot and timestamp that belong to them."""
        self._targets.version += 1
        self._targets.expires = self.expires["targets"]
        data = self._write(f"{self._targets.version}.targets.json", self._targets, self.signers["targets"])
        self._snapshot.meta["targets.json"] = _meta(self._targets.version, data)
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        self._snapshot.version += 1
        self._snapshot.expires = self.expires["snapshot"]
        data = self._write(f"{self._snapshot.version}.snapshot.json", self._snapshot, self.signers["snapshot"])
        self._timestamp.snapshot_meta = _meta(self._snapshot.version, data)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self._timestamp.version += 1
        self._timestamp.expires = self.expires["timestamp"]
        self._write("timestamp.json", self._timestamp, self.signers["timestamp"])

    def metadata(self) -> dict[str, bytes]:
        """All files of metadata, by name: what a server, or an attacker, has at this moment."""
        return {file.name: file.read_bytes() for file in (self.directory / "metadata").iterdir()}

    def _write(self, name: str, signed: Any, signers: list[CryptoSigner]) -> bytes:
        metadata = Metadata(copy.deepcopy(signed))
        for signer in signers:
            metadata.sign(signer, append=True)
        data: bytes = metadata.to_bytes()
        self._file(name).write_bytes(data)
        return data

    def _file(self, name: str) -> Path:
        return self.directory / "metadata" / name


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


Answer: TypeAlias = Callable[[BaseHTTPRequestHandler], object]


class Server:
    """A web server of one directory, at ``/updates/``.

    Attributes:
        answers: what else it does for some paths (below the directory) than to send the file.
        requests: the paths that were asked for, in order.
        headers: of the last request.
    """

    def __init__(self, directory: Path, port: int, scheme: str) -> None:
        self.directory = directory
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}/updates/"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.removeprefix("/updates/")
        self.requests.append(path)
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        if special := self.answers.get(path):
            special(handler)
            return
        file = self.directory / path
        if file.is_file():
            send(handler, file.read_bytes())
        else:
            handler.send_error(404)


def send(handler: BaseHTTPRequestHandler, data: bytes, length: int | None = None) -> None:
    """A 200 with this body. ``length``: what its head says, if not the truth."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def serving(directory: Path, certificate: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1, with TLS if it has a context for that."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A client may be gone: that it ends a connection early is what some tests are about.
            try:
                server.answer(self)
            except (ConnectionError, ssl.SSLError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """To nobody."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = True

        def get_request(self) -> tuple[Any, Any]:
            sock, address = super().get_request()
            # The handshake is done by the handler's thread, at its first read.
            return (
                sock
                if certificate is None
                else certificate.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            ), address

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that refuses our certificate is no error of ours."""

    with Listener(("127.0.0.1", 0), Handler) as listener:
        scheme = "http" if certificate is None else "https"
        server = Server(directory, listener.server_address[1], scheme)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
