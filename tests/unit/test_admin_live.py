"""The panel's WebSocket, from a browser's end, over a connection in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import FrameProtocol, Opcode

from tapotun_trio.admin.access import SESSION_S
from tapotun_trio.admin.api import MAX_LIVE
from tapotun_trio.admin.live import MAX_MESSAGE_BYTES, MAX_RECEIVED_BYTES, SLOW_S
from tapotun_trio.errors import PeerError
from tapotun_trio.log import interface_logger, process_logger
from tapotun_trio.status.model import ProcessStatus

from ..streams import MemoryConnection
from ..tables import table
from .admin import BEARER, HOST, ORIGIN, World, opened
from .support import server_config

Clock = trio.testing.MockClock


class Panel:
    """A browser's end of the WebSocket."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.connection = connection
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def open(self, headers: dict[str, str]) -> None:
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.connection.send_all(self.protocol.send(Request(host=HOST, target="/api/live", extra_headers=extra)))
        accepted = await self.event()
        assert isinstance(accepted, AcceptConnection), accepted

    async def event(self) -> Event:
        while not self._events:
            data = await self.connection.read()
            self.protocol.receive_data(data or None)
            self._events += self.protocol.events()
        return self._events.pop(0)

    async def message(self) -> Any:
        text = ""
        while True:
            event = await self.event()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return json.loads(text)

    async def message_of(self, kind: str) -> Any:
        """The next of that kind."""
        while (message := await self.message())["type"] != kind:
            pass
        return message

    async def closed(self) -> int:
        """Read to the close; its code."""
        while not isinstance(event := await self.event(), CloseConnection):
            pass
        return event.code


@asynccontextmanager
async def panel(world: World, headers: dict[str, str] | None = None) -> AsyncIterator[Panel]:
    it = Panel(world.listener.connect())
    await it.open(BEARER if headers is None else headers)
    yield it
    it.connection.close()


async def test_status_at_once_and_every_second_and_events_as_they_come(autojump_clock: Clock) -> None:
    async with opened() as world:
        world.registry.add(server_config(8080))
        process_logger().info("before")
        async with panel(world) as it:
            begun = trio.current_time()
            first = await it.message()
            assert first["type"] == "status"
            assert first["at"].endswith("Z")
            assert len(first["at"]) == len("2026-11-28T07:22:45.123Z")
            assert first["status"]["interfaces"][0]["name"] == "hub"
            assert set(first["status"]) == set(ProcessStatus.__struct_fields__)
            kept = await it.message()
            assert (kept["type"], [event["text"] for event in kept["events"]]) == ("events", ["before"])
            assert trio.current_time() == begun
            for second in (1, 2, 3):
                assert (await it.message())["type"] == "status"
                assert trio.current_time() == pytest.approx(begun + second)
            interface_logger("hub").warning("one")
            interface_logger("hub").warning("two")
            news = await it.message()
            assert [(event["number"], event["text"]) for event in news["events"]] == [(2, "one"), (3, "two")]


async def test_no_events_yet(autojump_clock: Clock) -> None:
    async with opened() as world, panel(world) as it:
        assert (await it.message_of("events"))["events"] == []


async def test_by_a_session(autojump_clock: Clock) -> None:
    async with opened() as world:
        browser = await world.browser()
        headers = {"cookie": browser.cookie, "origin": ORIGIN}
        async with panel(world, headers) as it:
            await it.message_of("status")
            await world.ask("POST", "/api/logout", browser.headers())
            assert await it.closed() == 1008
        browser = await world.browser()
        async with panel(world, {"cookie": browser.cookie, "origin": ORIGIN}) as it:
            await it.message_of("status")
            world.access.sessions[0].until = trio.current_time()
            assert await it.closed() == 1008
        assert SESSION_S == 12 * 3600


async def test_the_browser_closes(autojump_clock: Clock) -> None:
    async with opened() as world, panel(world) as it:
        await it.message_of("events")
        await it.connection.send_all(it.protocol.send(CloseConnection(code=1000)))
        assert await it.closed() == 1000
        assert await it.connection.read_all() == b""


async def test_the_browser_goes_without_a_word(autojump_clock: Clock) -> None:
    async with opened() as world:
        for _ in range(2 * MAX_LIVE):
            async with panel(world) as it:
                await it.message()
            await trio.testing.wait_all_tasks_blocked()
        async with panel(world) as it:  # none of them counts any more
            assert await it.message()


async def test_what_it_says_is_ignored_and_pings_are_answered(autojump_clock: Clock) -> None:
    async with opened() as world, panel(world) as it:
        await it.message_of("events")
        for number in range(50):
            await it.connection.send_all(it.protocol.send(Message(data=f"{number}" * 100)))
        await it.connection.send_all(it.protocol.send(Ping(payload=b"p")))
        while not isinstance(event := await it.event(), Pong):
            pass
        assert event.payload == b"p"
        assert (await it.message_of("status"))["status"]


def masked(payload: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return bytes(FrameProtocol(client=True, extensions=[])._serialize_frame(opcode, payload, fin))


@table(
    "data",
    ("no frames at all", b"\xff" * 100),
    ("not masked", b"\x81\x01x"),
    ("not UTF-8", masked(b"\xff\xfe")),
    ("a message that is too long", masked(b"x" * (MAX_MESSAGE_BYTES + 1))),
    ("too much in pieces of nothing", masked(b"", fin=False) + masked(b"", Opcode.CONTINUATION, fin=False) * 20000),
    ("too many messages", masked(b"x") * (MAX_RECEIVED_BYTES // 4)),
    ("too many pings", masked(b"", Opcode.PING) * (MAX_RECEIVED_BYTES // 4)),
    ("a ping behind a close", masked(b"\x03\xe8", Opcode.CLOSE) + masked(b"", Opcode.PING) * 9),
    ("a reserved opcode", b"\x8f\x80abcd"),
)
async def test_nonsense_ends_it_and_nothing_else(
    data: bytes, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as world:
        async with panel(world) as it:
            await it.message_of("events")
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, it.connection, data)
                    await read_to_its_end(it.connection)
                    nursery.cancel_scope.cancel()
        assert (await world.ask("GET", "/healthz")).status == 200
        async with panel(world) as it:
            assert await it.message()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def send(connection: MemoryConnection, data: bytes) -> None:
    with suppress(PeerError):  # it may be gone already
        await connection.send_all(data)


async def read_to_its_end(connection: MemoryConnection) -> None:
    with suppress(PeerError):  # or with a reset
        while await connection.read():
            pass


async def test_who_does_not_read_is_let_go(autojump_clock: Clock) -> None:
    async with opened() as world:
        slow = Panel(world.listener.connect(capacity_bytes=400))
        await slow.open(BEARER)
        await trio.sleep(SLOW_S + 3)
        assert slow.connection._incoming.reset  # not even a goodbye waits for it
        async with panel(world) as it:
            assert await it.message()


async def test_so_many_and_no_more(autojump_clock: Clock) -> None:
    async with opened() as world:
        panels = [Panel(world.listener.connect()) for _ in range(MAX_LIVE + 1)]
        for it in panels[:-1]:
            await it.open(BEARER)
        last = panels[-1]
        extra = [(name.encode(), value.encode()) for name, value in BEARER.items()]
        await last.connection.send_all(last.protocol.send(Request(host=HOST, target="/api/live", extra_headers=extra)))
        refused = await last.event()
        assert isinstance(refused, RejectConnection)
        assert refused.status_code == 503


@table(
    "changes",
    ("no upgrade", {"upgrade": None}),
    ("a proxy that took half away", {"connection": "keep-alive"}),
    ("another version", {"sec-websocket-version": "8"}),
    ("no key", {"sec-websocket-key": None}),
    ("a key that is none", {"sec-websocket-key": "short"}),
)
async def test_half_a_handshake(changes: dict[str, str | None], autojump_clock: Clock) -> None:
    handshake = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    headers = {name: value for name, value in {**BEARER, **handshake, **changes}.items() if value is not None}
    async with opened() as world:
        answer = await world.ask("GET", "/api/live", headers)
        assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
        assert (await world.ask("HEAD", "/api/live", {**BEARER, **handshake})).status == 426


async def test_at_the_end_it_is_told(autojump_clock: Clock) -> None:
    async with opened() as world:
        async with panel(world) as it:
            await it.message_of("events")
            world.server.retire()
            assert await it.closed() in (1001, 1008)
            assert await it.connection.read_all() == b""
