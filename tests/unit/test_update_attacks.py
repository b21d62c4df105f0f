"""What a repository, its web server or somebody on the path may try: each is named, and nothing of it is trusted.

The attacks are made twice: on what fetches, over real HTTP, and on what verifies, with the bytes that the server has,
as if what fetches were on the attacker's side.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, SSlibKey

from tapotun_trio.config.model import Url
from tapotun_trio.errors import PeerError
from tapotun_trio.update import fetch
from tapotun_trio.update.task import Task
from tapotun_trio.update.trust import MAX_ROTATIONS, TARGET_BYTES, Refresh, Target, UntrustedError
from tapotun_trio.update.worker import _is_whole
from tests.harness.updates import ROLES, Answer, Repository, Server, send, serving

OLD: Final = b"the program, 0.2.0"
NEW: Final = b"the program, 0.3.0"
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.add("0.2.0", OLD)
    return made


@pytest.fixture
def server(repository: Repository) -> Iterator[Server]:
    with serving(repository.directory) as found:
        yield found


async def fetch_all(
    server: Server,
    refresh: Refresh,
    target: int | None = None,
    *,
    metadata_s: float = 60.0,
    target_s: float = 60.0,
    stall_s: float = 60.0,
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    url = Url("http", "127.0.0.1", server.port, "/updates/")
    task = Task("fetch", "stable", "0.1.0", -1, -1, -1, None, target, None, metadata_s, target_s, stall_s)
    await fetch.fetch(fetch.Repository(url, stall_s=stall_s), refresh, files, task)
    return files


@pytest.fixture
def file() -> Iterator[BinaryIO]:
    with open(os.memfd_create("test"), "w+b", buffering=0) as memfd:
        yield memfd


def verify(refresh: Refresh, files: dict[str, bytes]) -> Target:
    """As a worker verifies what another one has fetched."""
    steps, data = refresh.run(), None
    while True:
        try:
            data = files.get(steps.send(data).name)
        except StopIteration:
            return refresh.target("stable")


class Client:
    """A machine that has looked at the repository once, and does so again."""

    def __init__(self, repository: Repository) -> None:
        self._root = repository.root_file.read_bytes()
        self._repository = repository
        self.kept: dict[str, bytes] = {}
        self.look()

    def refresh(self) -> Refresh:
        return Refresh(self._root, self.kept)

    def look(self) -> Target:
        refresh = self.refresh()
        try:
            return verify(refresh, self._repository.metadata())
        finally:
            self.kept = refresh.kept


@pytest.fixture
def client(repository: Repository) -> Client:
    return Client(repository)


# ------------------------------------------------------------------ what is refused in the metadata


Attack = Callable[[Repository, "Client"], object]


def replay_timestamp(repository: Repository, client: Client) -> None:
    old = repository.metadata()["timestamp.json"]
    repository.add("0.3.0", NEW)
    client.look()
    (repository.directory / "metadata" / "timestamp.json").write_bytes(old)


def older_targets(repository: Repository, client: Client) -> None:
    """The snapshot's key is stolen, and names the targets of before."""
    repository.add("0.3.0", NEW)
    client.look()
    repository._snapshot.meta["targets.json"].version -= 1
    repository.publish_snapshot()


def older_snapshot(repository: Repository, client: Client) -> None:
    """The timestamp's key is stolen, and names the snapshot of before."""
    repository.add("0.3.0", NEW)
    client.look()
    repository._timestamp.snapshot_meta.version -= 1
    repository.publish_timestamp()


def without_targets(repository: Repository, _: Client) -> None:
    repository._snapshot.meta.clear()
    repository.publish_snapshot()


def expired(role: str) -> Attack:
    def attack(repository: Repository, _: Client) -> None:
        repository.expires[role] = LONG_AGO
        if role == "root":
            repository.publish_root()
        repository.add("0.3.0", NEW)

    return attack


def mixed(name: str) -> Attack:
    """New metadata, with an older file under the name of the newest."""

    def attack(repository: Repository, _: Client) -> None:
        old, number = repository.metadata(), repository._targets.version
        repository.add("0.3.0", NEW)
        (repository.directory / "metadata" / f"{number + 1}.{name}").write_bytes(old[f"{number}.{name}"])

    return attack


def wrong_key(role: str) -> Attack:
    def attack(repository: Repository, _: Client) -> None:
        repository.signers[role] = [CryptoSigner.generate_ed25519()]
        if role == "root":
            repository.publish_root()
        repository.add("0.3.0", NEW)

    return attack


def new_root_without_old_key(repository: Repository, _: Client) -> None:
    repository.rotate("root", sign_with_old=False)


def unknown_key(keytype: str, scheme: str) -> Attack:
    """A timestamp whose key is of a kind that is not verified here."""

    def attack(repository: Repository, _: Client) -> None:
        key = SSlibKey("0" * 64, keytype, scheme, {"public": "00" * 32})
        repository._root.revoke_key(repository.signers["timestamp"][0].public_key.keyid, "timestamp")
        repository._root.add_key(key, "timestamp")
        repository.publish_root()
        repository.add("0.3.0", NEW)
        _edit(
            repository, "timestamp.json", lambda it: it["signatures"].__setitem__(0, {"keyid": "0" * 64, "sig": "00"})
        )

    return attack


def _edit(repository: Repository, name: str, change: Callable[[Any], object]) -> None:
    file = repository.directory / "metadata" / name
    content = json.loads(file.read_bytes())
    change(content)
    file.write_text(json.dumps(content))


def no_signature(repository: Repository, _: Client) -> None:
    repository.add("0.3.0", NEW)
    _edit(repository, "timestamp.json", lambda it: it.update(signatures=[]))


def one_key_twice(repository: Repository, _: Client) -> None:
    """Two keys have to sign, and one does so twice."""
    repository._root.roles["timestamp"].threshold = 2
    repository._root.add_key(CryptoSigner.generate_ed25519().public_key, "timestamp")
    repository.publish_root()
    repository.signers["timestamp"] *= 2
    repository.publish_timestamp()


def content(name: str, data: bytes) -> Attack:
    def attack(repository: Repository, _: Client) -> None:
        (repository.directory / "metadata" / name).write_bytes(data)

    return attack


def another_role(repository: Repository, _: Client) -> None:
    """The key of the targets signs a file that is no timestamp, and is where the timestamp should be."""
    metadata = repository.metadata()
    (repository.directory / "metadata" / "timestamp.json").write_bytes(metadata["2.targets.json"])


def custom(**fields: Any) -> Attack:
    return lambda repository, _: repository.add("0.3.0", NEW, custom=fields)


def without_hash(repository: Repository, _: Client) -> None:
    repository._targets.targets["stable/tapotun.pyz"].hashes = {"sha512": "00" * 64}
    repository.publish_targets()


def no_channel(repository: Repository, _: Client) -> None:
    repository._targets.targets.clear()
    repository.publish_targets()


def a_length(length: int) -> Attack:
    def attack(repository: Repository, _: Client) -> None:
        repository._targets.targets["stable/tapotun.pyz"].length = length
        repository.publish_targets()

    return attack


UNSIGNED: Final = "not signed by the keys that are trusted here"
OLDER: Final = "older than what this machine has seen"
NO_METADATA: Final = "not usable metadata"

BAD_METADATA: Final[dict[str, tuple[Attack, str]]] = {
    "an old timestamp": (replay_timestamp, OLDER),
    "an older snapshot": (older_snapshot, OLDER),
    "older targets": (older_targets, OLDER),
    "a snapshot without targets": (without_targets, NO_METADATA),
    **{f"expired {role}": (expired(role), f"^(2\\.)?{role}.json has expired") for role in ROLES},
    "another snapshot": (mixed("snapshot.json"), "not the file that the repository's signed list names"),
    "other targets": (mixed("targets.json"), "not the file that the repository's signed list names"),
    **{f"{role} of another key": (wrong_key(role), UNSIGNED) for role in ROLES},
    "a new root that the old key has not signed": (new_root_without_old_key, UNSIGNED),
    "an RSA key": (unknown_key("rsa", "rsassa-pss-sha256"), UNSIGNED),
    "an unknown kind of key": (unknown_key("sphincs", "x"), NO_METADATA),
    "Ed25519 by another scheme": (unknown_key("ed25519", "ed25519ph"), NO_METADATA),
    "no signature": (no_signature, UNSIGNED),
    "one key twice": (one_key_twice, "not signed|not usable"),
    "no JSON": (content("timestamp.json", b"<html>log in</html>"), "is a web page, and no metadata"),
    "nothing": (content("timestamp.json", b""), NO_METADATA),
    "deep JSON": (content("timestamp.json", b"[" * 16_000), NO_METADATA),
    "a list": (content("timestamp.json", b"[1]"), NO_METADATA),
    "numbers": (content("timestamp.json", b'{"signed":1,"signatures":1}'), NO_METADATA),
    "a large number": (content("timestamp.json", b'{"signed":{"version":' + b"9" * 10_000 + b"}}"), NO_METADATA),
    "not UTF-8": (content("timestamp.json", b"\xff\xfe"), NO_METADATA),
    "another role": (another_role, "not usable|not signed"),
    "a version that is none": (custom(version="newest"), "not a version number"),
    "a version that is a number": (custom(version=3), "no version number"),
    "a long version": (custom(version="1." * 40 + "1"), "no version number"),
    "no version": (custom(version=None), "no version number"),
    "a Python that is none": (custom(python="4; rm"), "no usable version of Python"),
    "no SHA-256": (without_hash, "no SHA-256"),
    "no channel": (no_channel, 'has no channel "stable"'),
    "no bytes": (a_length(0), "has 0 bytes"),
    "too many bytes": (a_length(TARGET_BYTES + 1), f"has {TARGET_BYTES + 1} bytes"),
}


@pytest.mark.parametrize("name", BAD_METADATA)
async def test_metadata_that_is_refused(name: str, repository: Repository, server: Server, client: Client) -> None:
    attack, text = BAD_METADATA[name]
    attack(repository, client)
    before = dict(client.kept)
    with pytest.raises(UntrustedError, match=text) as caught:
        await fetch_all(server, client.refresh())
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()
    with pytest.raises(UntrustedError, match=text):
        client.look()
    # Whatever was seen before still is: older metadata stays refused afterwards.
    assert before.keys() <= client.kept.keys()
    assert _number(client.kept["timestamp.json"]) >= _number(before["timestamp.json"])
    assert _number(client.kept["snapshot.json"]) >= _number(before["snapshot.json"])


def _number(data: bytes) -> int:
    number: int = json.loads(data)["signed"]["version"]
    return number


def test_what_was_seen_before_a_failure_is_not_forgotten(repository: Repository, client: Client) -> None:
    """The newest timestamp is genuine, and the rest does not come. Then the timestamp before it is an old one."""
    old = repository.metadata()
    repository.add("0.3.0", NEW)
    new = repository.metadata()
    refresh = client.refresh()
    with pytest.raises(UntrustedError, match=r"lacks 3\.snapshot\.json"):
        verify(refresh, {"timestamp.json": new["timestamp.json"]})
    client.kept = refresh.kept
    with pytest.raises(UntrustedError, match=OLDER):
        verify(client.refresh(), old)


def test_a_run_that_gets_nothing_keeps_everything(client: Client) -> None:
    refresh = client.refresh()
    with pytest.raises(UntrustedError, match=r"lacks timestamp\.json"):
        verify(refresh, {})
    assert refresh.kept == client.kept


# ------------------------------------------------------------------ keys that change


@pytest.mark.parametrize("role", ROLES)
async def test_keys_are_replaced_by_a_chain_of_roots(
    role: str, repository: Repository, server: Server, client: Client
) -> None:
    for _ in range(3):
        repository.rotate(role)
    repository.add("0.3.0", NEW)
    files = await fetch_all(server, client.refresh())
    assert {"2.root.json", "3.root.json", "4.root.json"} <= files.keys()
    assert client.look().version == "0.3.0"
    assert {"2.root.json", "3.root.json", "4.root.json"} <= client.kept.keys()
    server.requests.clear()
    await fetch_all(server, client.refresh())
    assert server.requests == ["metadata/5.root.json", "metadata/timestamp.json"], "the rest is known"


def test_a_machine_that_was_off_for_long_catches_up(repository: Repository, client: Client) -> None:
    for _ in range(MAX_ROTATIONS + 5):
        repository.publish_root()
    client.look()
    assert max(int(name.partition(".")[0]) for name in client.kept if name.endswith("root.json")) == MAX_ROTATIONS + 1
    client.look()
    assert f"{MAX_ROTATIONS + 6}.root.json" in client.kept


def test_metadata_of_other_keys_is_discarded(repository: Repository, tmp_path: Path) -> None:
    """The operator trusts another root from now on."""
    repository.publish_root()
    client = Client(repository)
    other = Repository(tmp_path / "other")
    other.publish_root()
    other.add("0.1.5", OLD)
    refresh = Refresh(other.root_file.read_bytes(), client.kept)
    assert refresh.discarded
    assert verify(refresh, other.metadata()).version == "0.1.5"
    assert refresh.kept["2.root.json"] == other.metadata()["2.root.json"]


def test_a_root_that_is_damaged_in_the_state(repository: Repository) -> None:
    repository.publish_root()
    client = Client(repository)
    refresh = Refresh(repository.root_file.read_bytes(), {**client.kept, "2.root.json": b"{}"})
    assert refresh.discarded
    assert verify(refresh, repository.metadata()).version == "0.2.0"


@pytest.mark.parametrize("root", [b"", b"{}", b"[]", b"{", b"\xff"])
def test_a_root_that_is_none(root: bytes) -> None:
    with pytest.raises(
        UntrustedError, match=r"the trusted root is not usable metadata .*; give the repository's root\.json"
    ):
        Refresh(root, {})


# ------------------------------------------------------------------ what a web server may do


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()  # its end is the connection's
    while True:
        handler.wfile.write(b" " * 65536)


def endless_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")


def endless_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X: " + b"x" * 1000 + b"\r\n")


def redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://elsewhere.example/\x1b[31m" + "x" * 5000)
    handler.end_headers()


def compressed(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()


def closes(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def raw(data: bytes) -> Answer:
    return lambda handler: handler.wfile.write(data)


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def truncated(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"{}", length=1000)
    handler.close_connection = True


BAD_ANSWERS: Final[dict[str, tuple[Answer, str]]] = {
    "endless": (endless, "is longer than 16384 bytes"),
    "endless chunks": (endless_chunks, "is longer than 16384 bytes"),
    "an endless head": (endless_head, "not HTTP"),
    "a length that is too long": (lambda handler: send(handler, b"", 10**12), "is longer than 16384 bytes"),
    "truncated": (truncated, "connection closed 998 bytes before the body's end"),
    "a redirect": (redirect, "answers with a redirect to http://elsewhere"),
    "compressed": (compressed, "a content coding that was not asked for"),
    "closed": (closes, "closed the connection without an answer"),
    "not HTTP": (raw(b"SSH-2.0-x\r\n\r\n"), "not HTTP"),
    "two lengths": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), "both"),
    "404": (status(404), "answers 404 Not Found; is update.url the repository's directory"),
    "500": (status(500), "answers 500 Internal Server Error"),
    "401": (status(401), "answers 401 Unauthorized; write its login into update.url"),
    "511": (status(511), "answers 511 Network Authentication Required; this network wants a login first"),
}


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Please log in", b"\r\n <html>", b"<?xml version='1.0'?>"])
@pytest.mark.parametrize("file", ["timestamp.json", "2.root.json"])
async def test_a_network_that_answers_everything_with_its_login_page(
    page: bytes, file: str, server: Server, client: Client
) -> None:
    """A captive portal. It says 200, also to what may lack."""
    server.answers[f"metadata/{file}"] = lambda handler: send(handler, page)
    text = f"{re.escape(file)} is a web page, and no metadata; something on the way answers for the repository"
    with pytest.raises(UntrustedError, match=text):
        await fetch_all(server, client.refresh())


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_that_is_refused(name: str, server: Server, client: Client) -> None:
    answer, text = BAD_ANSWERS[name]
    server.answers["metadata/timestamp.json"] = answer
    with pytest.raises(PeerError, match=text) as caught:
        await fetch_all(server, client.refresh())
    assert str(caught.value).isprintable()
    assert f"127.0.0.1:{server.port}/updates/metadata/timestamp.json" in str(caught.value)
    assert server.requests[-1] == "metadata/timestamp.json", "no redirect is followed"


@pytest.fixture
def held(server: Server) -> Iterator[threading.Event]:
    """Lets an answer of the server go on, at the test's end at the latest."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_server_that_says_nothing(begins: bytes, server: Server, client: Client, held: threading.Event) -> None:
    def silent(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(begins)
        held.wait()

    server.answers["metadata/timestamp.json"] = silent
    with pytest.raises(PeerError, match=r"nothing came for 0\.3 s"):
        await fetch_all(server, client.refresh(), stall_s=0.3)


@pytest.mark.parametrize("what", ["metadata", "target"])
async def test_a_server_that_is_slow(
    what: str, server: Server, client: Client, held: threading.Event, file: BinaryIO
) -> None:
    """It sends something often enough, and never ends."""
    path = "metadata/timestamp.json"
    if what == "target":
        path = f"targets/stable/{hashlib.sha256(OLD).hexdigest()}.tapotun.pyz"

    def slow(handler: BaseHTTPRequestHandler) -> None:
        send(handler, b"", 18)
        while not held.wait(0.1):
            handler.wfile.write(b"{")

    server.answers[path] = slow
    limits = {"metadata_s": 60.0, "target_s": 60.0, f"{what}_s": 0.5}
    with pytest.raises(PeerError, match=r"too slow: not done within 0\.5 s"):
        await fetch_all(server, client.refresh(), file.fileno(), **limits)


async def test_a_root_that_a_server_hides_is_the_newest_one(server: Server, client: Client) -> None:
    """Object stores answer 403 for what is not there. Who hides a root gains no more time than a timestamp lives."""
    server.answers["metadata/2.root.json"] = status(403)
    await fetch_all(server, client.refresh())
    server.answers["metadata/2.root.json"] = status(500)
    with pytest.raises(PeerError, match="answers 500"):
        await fetch_all(server, client.refresh())


# ------------------------------------------------------------------ the file itself

BAD_FILES: Final[dict[str, tuple[Answer, str]]] = {
    "swapped": (lambda handler: send(handler, bytes(reversed(OLD))), "its SHA-256 differs"),
    "short": (
        lambda handler: send(handler, OLD[:-1]),
        f"has {len(OLD) - 1} bytes, and the signed list says {len(OLD)}",
    ),
    "long": (lambda handler: send(handler, OLD + b"x"), f"is longer than {len(OLD)} bytes"),
    "truncated": (lambda handler: send(handler, OLD[:-1], len(OLD)), "closed 1 bytes before"),
    "endless": (endless, f"is longer than {len(OLD)} bytes"),
    "endless chunks": (endless_chunks, f"is longer than {len(OLD)} bytes"),
    "missing": (status(404), "answers 404"),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_file_that_is_refused(name: str, server: Server, client: Client, file: BinaryIO) -> None:
    answer, text = BAD_FILES[name]
    target = client.look()
    server.answers[f"targets/stable/{target.sha256}.tapotun.pyz"] = answer
    with pytest.raises((PeerError, UntrustedError), match=re.escape(text)):
        await fetch_all(server, client.refresh(), file.fileno())
    assert os.fstat(file.fileno()).st_size <= len(OLD), "an endless file was cut off"
    assert not _is_whole(file.fileno(), target)


async def test_the_file(server: Server, client: Client, file: BinaryIO) -> None:
    await fetch_all(server, client.refresh(), file.fileno())
    assert os.pread(file.fileno(), 1000, 0) == OLD
    assert _is_whole(file.fileno(), client.look())
    file.write(b"x")
    assert not _is_whole(file.fileno(), client.look())


# ------------------------------------------------------------------ anything at all


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_bytes_that_were_changed_never_mislead(repository: Repository, client: Client, data: st.DataObject) -> None:
    """Whatever bytes are changed, the outcome is an UntrustedError or the truth."""
    files = repository.metadata()
    name = data.draw(st.sampled_from(sorted(files)))
    changed = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=20))
    files[name] = bytes(changed)
    kept = client.kept if data.draw(st.booleans()) else {}
    try:
        target = verify(Refresh(repository.root_file.read_bytes(), kept), files)
    except UntrustedError:
        pass
    else:
        assert (target.version, target.sha256) == ("0.2.0", hashlib.sha256(OLD).hexdigest())


def test_time_passes(repository: Repository, client: Client) -> None:
    """Metadata that is about to expire is good."""
    for role in repository.expires:
        repository.expires[role] = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
    repository.publish_root()
    repository.add("0.3.0", NEW)
    assert client.look().version == "0.3.0"
