"""A bug anywhere in one request to the admin listener, or to the control socket, ends that request or its connection:
the listener goes on, and the next one is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Final
from unittest.mock import patch

import pytest
import trio
import trio.testing

from tapotun_trio.admin import access, answers, api, browser, health, limits, live, pages, server
from tapotun_trio.control import handlers as control_commands
from tapotun_trio.control import protocol
from tapotun_trio.control import server as control_server
from tapotun_trio.control.protocol import StatusArguments, encode_request
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.http import acceptor, client_address, heads, pending
from tapotun_trio.http import server as http_server
from tapotun_trio.http import stream as http_stream
from tapotun_trio.http import websocket as http_websocket

from .admin import TOKEN, World, opened
from .test_admin_hostile import LOGIN, SHOWN, WEBSOCKET, Clock, errors_in, status_of
from .test_control import exchange, served
from .test_faults import HOSTILE, Step, When, _of_mallory, steps_of

STEPS_OF: Final[tuple[type | ModuleType, ...]] = (
    server.AdminServer,
    api,
    api.AdminApi,
    access.Access,
    access.Session,
    answers,
    answers.Answer,
    browser,
    health,
    limits.Limiter,
    live,
    pages.Page,
    pending.PendingConnections,
    client_address,
    client_address.ClientAddress,
    heads,
    heads.RequestHead,
    heads.RequestParser,
    http_server,
    http_server.Exchange,
    http_stream.ConnectionStream,
    http_websocket,
    control_commands,
)
NOT_STEPS: Final = {"AdminServer.__init__", "AdminServer.run", "AdminServer.retire", "AdminApi.__init__"}
REACHED: Final = {
    "AdminServer._serve",
    "AdminServer._answer",
    "AdminServer._on_authenticated",
    "AdminApi.serve",
    "AdminApi._answer",
    "AdminApi._admit",
    "AdminApi._healthz",
    "AdminApi._readyz",
    "AdminApi._metrics",
    "AdminApi._log_in",
    "AdminApi._show_status",
    "AdminApi._show_events",
    "AdminApi._reload_config",
    "AdminApi._disconnect",
    "AdminApi._watch",
    "AdminApi._page",
    "AdminApi._status_message",
    "Access.see",
    "Access.log_in",
    "live.handshake_of",
    "live.serve_live",
    "live._send_updates",
    "live._send",
    "answers.decode",
    "browser.limited_as",
    "Exchange.read_body",
    "Exchange.respond",
    "websocket.accept_head",
}


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\n{SHOWN}Content-Length: {len(body)}\r\n\r\n".encode() + body


ASKED: Final = (
    *(f"GET {path} HTTP/1.1\r\n{SHOWN}Connection: close\r\n\r\n".encode() for path in ("/healthz", "/readyz", "/none")),
    *(
        f"GET {path} HTTP/1.1\r\n{SHOWN}Connection: close\r\n\r\n".encode()
        for path in ("/", "/metrics", "/api/status", "/api/events", "/api/session")
    ),
    LOGIN.encode() + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
    (LOGIN + f"Connection: close\r\nContent-Length: {len(json.dumps({'token': TOKEN}))}\r\n\r\n").encode()
    + json.dumps({"token": TOKEN}).encode(),
    post("/api/reload", b"{}"),
    post("/api/disconnect", b'{"client": "x"}'),
)
PANEL: Final = f"GET /api/live HTTP/1.1\r\n{SHOWN}{WEBSOCKET}\r\n".encode()


async def everything(world: World) -> None:
    """What an operator's programs ask, each on a connection of its own; a panel that goes after a moment."""
    for data in ASKED:
        await status_of(world, data)
    client = world.client()
    with suppress(PeerError), trio.move_on_after(3):
        await client.connection.send_all(PANEL)
        await client.connection.read_all()
    client.connection.close()


@contextmanager
def marking() -> Iterator[None]:
    serve = acceptor.Acceptor.serve

    async def marked(self: acceptor.Acceptor, connection: Connection) -> None:
        _of_mallory.set(True)
        await serve(self, connection)

    with patch.object(acceptor.Acceptor, "serve", marked):
        yield


@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_step(when: When, autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    reached: set[str] = set()
    for step in steps_of(STEPS_OF, NOT_STEPS):
        with ExitStack() as stack:  # the table of routes has methods as they were when it was made
            hits = stack.enter_context(step.broken(when))
            async with opened() as world:
                with marking():
                    await everything(world)
                stack.close()
                assert (await world.ask("GET", "/healthz")).status == 200, step.title
        assert "admin: internal error, listener stopped" not in errors_in(caplog), step.title
        assert bool(hits) == bool(errors_in(caplog)), step.title
        caplog.clear()
        reached.update(hits)
    if when == "before":
        assert not REACHED - reached, sorted(REACHED - reached)


@HOSTILE
async def test_a_malformed_handshake_is_a_400(
    fields: list[str], autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    rest = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    data = f"GET /api/live HTTP/1.1\r\n{SHOWN}{rest}" + "\r\n".join([*fields, "", ""])
    async with opened() as world:
        for _ in range(3):
            assert await status_of(world, data.encode("latin-1")) == 400
        assert (await world.ask("GET", "/healthz")).status == 200
    assert errors_in(caplog) == []


@pytest.mark.parametrize("step", ["wrap_server_stream", "encode_events"])
async def test_a_500_before_the_handshakes_answer_and_none_behind_it(
    step: str, autojump_clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(live, step, bug)
    async with opened() as world:
        assert await status_of(world, PANEL) == (500 if step == "wrap_server_stream" else 101)
        assert (await world.ask("GET", "/healthz")).status == 200
    assert len(errors_in(caplog)) == 1


# ------------------------------------------------------------------ the control socket


@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_step_of_the_control_socket(when: When, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reached: set[str] = set()
    request = encode_request("echo", StatusArguments(["a"]))
    not_steps = {"server.serve_control", "ConnectionCounts.__init__", "LineReader.__init__"}
    _of_mallory.set(True)  # whoever asks
    async with served(tmp_path) as path:
        for step in steps_of(
            (control_server, control_server.ConnectionCounts, protocol, protocol.LineReader), not_steps
        ):
            with step.broken(when) as hits:
                for data in (request, b"nonsense\n", b"x" * 20_000, b'{"command":"refuse"}\n'):
                    with suppress(trio.BrokenResourceError):
                        await exchange(path, data)
            if hits:
                reached.add(step.title)
            assert await exchange(path, request) == b'{"result":["a"]}\n', step.title
    assert {"server._serve", "server._read_line", "server._answer", "protocol.decode_request"} <= reached
    assert errors_in(caplog)


async def test_a_shortage_at_the_control_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _of_mallory.set(True)
    async with served(tmp_path) as path:
        with Step(control_server, "_read_line").broken("before", MemoryError()) as hits:
            with suppress(trio.BrokenResourceError):
                assert await exchange(path, b"{}\n") == b""
        assert hits
        assert await exchange(path, encode_request("echo")) == b'{"result":[]}\n'
    assert errors_in(caplog) == []
    assert " closed: Cannot allocate memory; raise MemoryMax=" in caplog.text
