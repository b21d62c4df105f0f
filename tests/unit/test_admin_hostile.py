"""Whoever wishes the admin listener ill: garbage, slowness, size, number, and bugs of our own. It serves the others."""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from typing import Final

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapotun_trio.admin.api import MAX_BODY_BYTES
from tapotun_trio.admin.live import CLOSE_S
from tapotun_trio.admin.server import MAX_AUTHENTICATED, MAX_UNAUTHENTICATED
from tapotun_trio.errors import HostError, PeerError
from tapotun_trio.http.server import ANSWER_S, BODY_S, HEAD_S, IDLE_S
from tapotun_trio.lifecycle.restart import RESTART_S
from tapotun_trio.wire.body import CHUNK_END, LAST_CHUNK, chunk_head

from ..chunkings import cut, cuts
from ..tables import table
from .admin import BEARER, HOST, World, opened

Clock = trio.testing.MockClock
patient = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WEBSOCKET: Final = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)
SHOWN: Final = f"Host: {HOST}\r\nAuthorization: {BEARER['authorization']}\r\n"
LOGIN: Final = f"POST /api/login HTTP/1.1\r\nHost: {HOST}\r\n"


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def status_of(world: World, data: bytes) -> int:
    """Of the answer to raw bytes; 0: it was none."""
    client = world.client()
    try:
        await client.connection.send_all(data)
        found = await client.connection.read_all()
    except PeerError:
        return 0
    return int(found[9:12]) if found.startswith(b"HTTP/1.1 ") else 0


@patient
@given(st.binary(min_size=1, max_size=200), cuts)
async def test_garbage(data: bytes, places: list[int]) -> None:
    async with opened() as world:
        client = world.client()
        for piece in cut(data, places):
            try:
                await client.connection.send_all(piece)
            except PeerError:
                break
            await trio.testing.wait_all_tasks_blocked()
        client.connection.close()
        assert (await world.ask("GET", "/healthz")).status == 200


@table(
    "data status",
    ("no HTTP", b"hello\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("a head that is too long", b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 17000 + b"\r\n\r\n", 431),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two tokens of a kind", b"GET / HTTP/1.1\r\nHost: h\r\nx-api-key: a\r\nx-api-key: b\r\n\r\n", 400),
    ("two framings", LOGIN.encode() + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("a GET with a body", b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx", 400),
    ("a body that is too long", LOGIN.encode() + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
    ("one that is absurd", LOGIN.encode() + b"Content-Length: 99999999999999999999\r\n\r\n", 413),
    (
        "chunks that are too long together",
        LOGIN.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + (chunk_head(999) + b"x" * 999 + CHUNK_END) * 20,
        413,
    ),
    (
        "chunks of nothing but framing",
        LOGIN.encode()
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"1;" + b"x" * 1000 + CHUNK_END + b"x" + CHUNK_END) * 50,
        413,
    ),
    ("chunks that are none", LOGIN.encode() + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n", 400),
)
async def test_malformed_requests(
    data: bytes, status: int, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as world:
        assert await status_of(world, data) == status
        assert (await world.ask("GET", "/healthz")).status == 200
    assert errors_in(caplog) == []


async def test_slow_heads_and_bodies_have_a_deadline(autojump_clock: Clock) -> None:
    async with opened() as world:
        begun = trio.current_time()
        assert await status_of(world, b"GET / HT") == 408
        assert trio.current_time() - begun == pytest.approx(HEAD_S, abs=2)
        begun = trio.current_time()
        assert await status_of(world, LOGIN.encode() + b"Content-Length: 9\r\n\r\n{") == 408
        assert trio.current_time() - begun == pytest.approx(BODY_S, abs=2)
        client = world.client()
        assert (await client.ask("GET", "/healthz")).status == 200
        begun = trio.current_time()
        assert await client.connection.read_all() == b""
        assert trio.current_time() - begun == pytest.approx(IDLE_S, abs=2)
        silent = world.client()
        assert await silent.connection.read_all() == b""


async def test_a_head_that_trickles(autojump_clock: Clock) -> None:
    """Each byte in time, and the whole not."""
    async with opened() as world:
        client = world.client()
        begun = trio.current_time()
        with suppress(PeerError):
            for byte in b"GET / HTTP/1.1\r\n" * 7:
                await client.connection.send_all(bytes([byte]))
                await trio.sleep(1)
        assert HEAD_S < trio.current_time() - begun < HEAD_S + 5


async def test_who_does_not_take_the_answer(autojump_clock: Clock) -> None:
    async with opened() as world:
        client = world.listener.connect(capacity_bytes=100)
        await client.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await trio.sleep(ANSWER_S + 1)
        with pytest.raises(PeerError):
            await client.read_all()


async def test_a_body_that_nobody_wants_is_not_the_next_request(autojump_clock: Clock) -> None:
    """Smuggling: what stands in the body of a request that was refused is no request."""
    async with opened() as world:
        inner = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
        data = b"POST /api/reload HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        client = world.client()
        await client.connection.send_all(data)
        found = await client.connection.read_all()
        assert found.count(b"HTTP/1.1 ") == 1
        assert found.startswith(b"HTTP/1.1 401 ")
        assert world.reloads == []


@patient
@given(st.lists(st.sampled_from([b"{}", b'{"dry_run": true}', b""]), min_size=1, max_size=4), st.booleans(), cuts)
async def test_requests_in_every_split(bodies: list[bytes], chunked: bool, places: list[int]) -> None:
    data = b""
    for body in bodies:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        framed = (chunk_head(len(body)) + body + CHUNK_END if body else b"") + LAST_CHUNK if chunked else body
        head = f"POST /api/reload HTTP/1.1\r\nHost: h\r\nAuthorization: {BEARER['authorization']}\r\n".encode()
        data += head + framing + b"\r\n\r\n" + framed
    async with opened() as world:
        client = world.client()
        for piece in cut(data, places):
            await client.connection.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        for _ in bodies:
            assert (await client.answer("POST")).status == 200
        assert world.reloads == [b"true" in body for body in bodies]


async def test_a_100_is_sent_to_who_waits_for_it(autojump_clock: Clock) -> None:
    async with opened() as world:
        client = world.client()
        head = f"POST /api/reload HTTP/1.1\r\nHost: h\r\nAuthorization: {BEARER['authorization']}\r\n"
        await client.connection.send_all(f"{head}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
        assert await client.connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.connection.send_all(b"{}")
        assert (await client.answer("POST")).status == 200


async def test_strangers_push_out_strangers_and_nobody_else(autojump_clock: Clock) -> None:
    async with opened() as world:
        guest = world.client()
        assert (await guest.ask("GET", "/metrics", BEARER)).status == 200
        unauthenticated = []
        for _ in range(MAX_UNAUTHENTICATED + 1):
            unauthenticated.append(world.client())
            assert (await unauthenticated[-1].ask("GET", "/healthz")).status == 200
        with pytest.raises(PeerError):
            await unauthenticated[0].ask("GET", "/healthz")
        assert (await unauthenticated[-1].ask("GET", "/healthz")).status == 200
        assert (await guest.ask("GET", "/metrics", BEARER)).status == 200
        for _ in range(MAX_AUTHENTICATED):
            assert (await world.client().ask("GET", "/api/session", BEARER)).status == 200
        with pytest.raises(PeerError):
            await guest.ask("GET", "/metrics", BEARER)


# ------------------------------------------------------------------ bugs and shortages


async def test_a_bug_in_a_request_is_a_500_and_its_own(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tapotun_trio.admin.api.not_ready", bug)
    async with opened() as world:
        answer = await world.ask("GET", "/readyz")
        assert (answer.status, answer.body) == (500, b"internal error; the log has its traceback\n")
        assert answer.headers["connection"] == "close"
        assert (await world.ask("GET", "/healthz")).status == 200
    assert errors_in(caplog) == ["internal error, admin: request ended"]
    assert "ZeroDivisionError" in caplog.text


async def test_a_bug_in_a_websocket_is_its_own(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    handshake = f"Authorization: {BEARER['authorization']}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    async with opened() as world:
        monkeypatch.setattr(world.events, "since", bug)
        data = f"GET /api/live HTTP/1.1\r\nHost: h\r\n{handshake}{key}".encode()
        assert await status_of(world, data) in (0, 101)
        assert (await world.ask("GET", "/healthz")).status == 200
    assert errors_in(caplog) == ["internal error, admin: WebSocket ended"]


async def test_a_bug_in_accepting_is_that_connections(autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as world:
        client = world.client()
        assert (await client.ask("GET", "/healthz")).status == 200
        world.listener.fail(ZeroDivisionError("a bug"))
        assert (await world.ask("GET", "/healthz")).status == 200
        assert (await client.ask("GET", "/healthz")).status == 200, "the others go on"
    assert errors_in(caplog) == [f"internal error, admin: connection on {world.listener.name} not accepted"]
    assert "ZeroDivisionError" in caplog.text


async def test_a_listening_socket_that_fails_ends_it_for_a_while(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as world:
        client = world.client()
        assert (await client.ask("GET", "/healthz")).status == 200
        for pause_s in (RESTART_S[0], 2 * RESTART_S[0]):
            begun = trio.current_time()
            world.listener.fail(OSError(errno.EBADF, "Bad file descriptor"))
            assert (await world.ask("GET", "/healthz")).status == 200
            assert trio.current_time() - begun == pytest.approx(pause_s)
    assert errors_in(caplog) == ["admin: internal error, listener stopped"] * 2
    assert "Bad file descriptor" in caplog.text


async def test_a_listening_socket_that_fails_while_the_process_ends(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A WebSocket still says goodbye when the process is told to stop: then both ends of it come up together."""
    async with opened() as world:
        client = world.client()
        await client.connection.send_all(f"GET /api/live HTTP/1.1\r\n{SHOWN}{WEBSOCKET}\r\n".encode())
        await client.connection.read_until(b'"events"')
        world.listener.fail(OSError(errno.EBADF, "Bad file descriptor"))
        await trio.sleep(CLOSE_S / 2)
    assert errors_in(caplog) == ["admin: internal error, listener stopped"]


async def test_a_shortage_of_descriptors_passes(autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as world:
        for _ in range(50):
            world.listener.fail(HostError("cannot accept: too many open files"))
        assert (await world.ask("GET", "/healthz")).status == 200
    assert sum("too many open files" in record.getMessage() for record in caplog.records) == 1


@table(
    "data",
    ("a page", f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()),
    ("metrics", f"GET /metrics HTTP/1.1\r\n{SHOWN}\r\n".encode()),
    ("a login", LOGIN.encode() + b'Content-Length: 27\r\n\r\n{"token":"the-admin-token"}'),
    ("a reload", f"POST /api/reload HTTP/1.1\r\n{SHOWN}Content-Length: 2\r\n\r\n{{}}".encode()),
    (
        "chunks",
        f"POST /api/reload HTTP/1.1\r\n{SHOWN}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode(),
    ),
    ("a WebSocket", f"GET /api/live HTTP/1.1\r\n{SHOWN}{WEBSOCKET}\r\n".encode() + b"\x81\x81abcdx"),
    ("a body that is refused", f"POST /api/reload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\n{{}}".encode()),
)
@pytest.mark.parametrize("reset", [False, True])
async def test_who_goes_half_way_leaves_nothing(
    reset: bool, data: bytes, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut at every byte: no task, no connection, no place."""
    async with opened() as world:
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        for end in range(len(data) + 1):
            client = world.client()
            await client.connection.send_all(data[:end])
            if end % 2:
                await trio.testing.wait_all_tasks_blocked()
            if reset:
                client.connection.abort()
            else:
                client.connection.close()
            await trio.sleep(IDLE_S + 2 * ANSWER_S)
            assert trio.lowlevel.current_statistics().tasks_living == tasks, data[:end]
            assert world.server.connections == 0
            assert [api.live for api in world.apis] == [0]
        assert (await world.ask("GET", "/healthz")).status == 200
    assert errors_in(caplog) == []
