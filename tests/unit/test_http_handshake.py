"""A WebSocket's opening handshake under any header fields at all, on both sides: accepted, refused, or a PeerError, and
never what h11 or wsproto make of it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Final

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from fuzz.handshake import SEEDS, check
from tapotun_trio.http.heads import BadRequest, RequestHead, RequestParser
from tapotun_trio.http.websocket import KEY_HEADER, accept_head

FEW: Final = settings(max_examples=300, deadline=None)

NAMES: Final = (
    b"Upgrade",
    b"Connection",
    b"Sec-WebSocket-Key",
    b"Sec-WebSocket-Version",
    b"Sec-WebSocket-Accept",
    b"Sec-WebSocket-Protocol",
    b"Sec-WebSocket-Extensions",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Host",
    b"X",
)
RIGHT: Final = (
    b"websocket",
    b"Upgrade",
    b"keep-alive, Upgrade",
    b"dGhlIHNhbXBsZSBub25jZQ==",
    b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    b"13",
    b"chunked",
    b"0",
    b"9" * 5000,
    b"",
    b",",
    b"\xff",
    b"\xc3\xa4",
    b"\t",
    b"permessage-deflate; x=\xff",
)
values = st.one_of(
    st.sampled_from(RIGHT), st.lists(st.sampled_from(RIGHT), max_size=3).map(b", ".join), st.binary(max_size=9)
)
fields = st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=9)
REQUEST: Final = b"GET /ip HTTP/1.1\r\nHost: h\r\n"
WHOLE: Final = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
)


def lines(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in pairs)


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_what_the_fuzzer_begins_with(seed: bytes) -> None:
    check(seed)


@FEW
@given(fields, st.permutations(WHOLE), st.integers(0, 4))
def test_any_request(more: list[tuple[bytes, bytes]], whole: list[tuple[bytes, bytes]], left_out: int) -> None:
    check(b"\0" + REQUEST + lines(whole[left_out:] + more) + b"\r\n")


@FEW
@given(fields, st.permutations(WHOLE), st.integers(0, 4))
@example([], list(WHOLE), 0)
@example([(b"Connection", b"keep-alive")], list(WHOLE), 0)
@example([(b"Upgrade", b"\x1c")], list(WHOLE), 0)
@example([(b"Connection", b"\x1fUpgrade")], list(WHOLE[:1] + WHOLE[2:]), 0)
@example([(b"Sec-WebSocket-Version", b"13\x1d")], list(WHOLE[:3]), 0)
def test_a_request_is_judged_as_wsproto_does(
    more: list[tuple[bytes, bytes]], whole: list[tuple[bytes, bytes]], left_out: int
) -> None:
    try:
        done = RequestParser().feed(REQUEST + lines(whole[left_out:] + more) + b"\r\n")
    except BadRequest:
        return
    assert done is not None
    head, _ = done
    try:
        mine: bytes | str | None = accept_head(head, [("x-tun-conf", "AAAA")])
    except BadRequest:
        mine = "malformed"
    if re.fullmatch(r"[0-9A-Za-z+/]{21}[AQgw]==", head.headers.get(KEY_HEADER, "")):  # wsproto takes any key
        assert mine == wsprotos(head, b"AAAA")
    else:
        assert mine is None


def wsprotos(head: RequestHead, conf: bytes) -> bytes | str | None:
    """The answer that wsproto makes; None: it is incomplete."""
    names = ("upgrade", "connection", KEY_HEADER, "sec-websocket-version")
    given = [(name.encode(), head.headers[name].encode("latin-1")) for name in names if name in head.headers]
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        if not all(value.isascii() for _, value in given):
            return "malformed"
        handshake.initiate_upgrade_connection([(b"host", b"-"), *given], "/")
    except RemoteProtocolError:
        return None
    except h11.ProtocolError:
        return "malformed"
    data = handshake.send(AcceptConnection(extra_headers=[(b"x-tun-conf", conf)]))
    return re.sub(rb"(?m)^(?!HTTP)[^:\r\n]+", lambda name: SPELLED.get(name[0].lower(), name[0]), data)


SPELLED: Final = {it.lower(): it for it in (b"Upgrade", b"Connection", b"Sec-WebSocket-Accept", b"x-tun-conf")}


def test_a_server_imports_nothing_for_its_first_websocket() -> None:
    """There may be no descriptor left to open a module with. Nor does it load OpenSSL."""
    code = """
import resource, sys
from tapotun_trio.cli import NEEDED_BY_FEW
from tapotun_trio.lazy_import import lazy_import
for name in NEEDED_BY_FEW:
    lazy_import(name)
import trio
import tapotun_trio.server.server
from tapotun_trio.http.heads import RequestParser
from tapotun_trio.http.server import Exchange
class Connection:
    name = "c"
    async def send_all(self, data):
        self.sent = data
async def accept(exchange):
    before = {*sys.modules}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        accepted = await exchange.accept_websocket([])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return accepted is not None, {*sys.modules} - before, "_hashlib" in sys.modules
fields = "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"
key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
text = "\\r\\n".join(["GET /ip HTTP/1.1", "Host: h", *fields, key, "", ""])
head, _ = RequestParser().feed(text.encode())
exchange = Exchange(Connection(), head, b"")
print(*trio.run(accept, exchange), exchange.connection.sent.decode().splitlines()[3])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True set() False Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\n", done.stderr


@FEW
@given(
    fields,
    st.sampled_from([b"101 ", b"101 Switching Protocols", b"200 OK", b"403 \xff", b"100 ", b"204 "]),
    st.binary(max_size=9),
)
@example([], b"101 ", b"")
def test_any_answer(more: list[tuple[bytes, bytes]], status: bytes, rest: bytes) -> None:
    check(b"\1HTTP/1.1 " + status + b"\r\n" + lines(more) + b"\r\n" + rest)


@FEW
@given(fields, st.integers(0, 250), st.integers(0, 255))
@example([(b"a", b"9" * 12_000), (b"b", b"9" * 12_000)], 153, 32)
def test_an_answer_with_a_byte_changed(more: list[tuple[bytes, bytes]], at: int, byte: int) -> None:
    good = bytearray(SEEDS[8][1:].replace(b"\r\n\r\n", b"\r\n" + lines(more[:2]) + b"\r\n", 1))
    good[at % len(good)] = byte
    check(b"\1" + good)


@FEW
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data: bytes, answer: bool) -> None:
    check((b"\1" if answer else b"\0") + data)
