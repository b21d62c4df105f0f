"""An admin listener whose connections are in memory, and browsers and programs that ask it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import h11
import trio

from tapotun_trio.admin.access import Access
from tapotun_trio.admin.api import AdminApi
from tapotun_trio.admin.events import Events
from tapotun_trio.admin.history import History
from tapotun_trio.admin.pages import Page
from tapotun_trio.admin.server import AdminServer
from tapotun_trio.config.model import Secret, TokenHash
from tapotun_trio.control.handlers import Process
from tapotun_trio.host.net.listen import Listener
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.http.server import Exchange
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.log import add_handler, process_logger, remove_handler
from tapotun_trio.peer.boottime import boottime

from ..streams import MemoryConnection, memory_pair

TOKEN: Final = "the-admin-token"
THE_TOKEN: Final = Secret(TOKEN)
BEARER: Final = {"authorization": f"Bearer {TOKEN}"}
READ_TOKEN: Final = "the-read-only-token"
READER: Final = {"authorization": f"Bearer {READ_TOKEN}"}
HOST: Final = "admin.example.com"
ORIGIN: Final = f"https://{HOST}"
PAGE: Final = Page(b"<!doctype html>", "text/html; charset=utf-8", '"1"')


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class MemoryListener(Listener):
    """Connections come from the test, and so do failures."""

    def __init__(self) -> None:
        self.name, self.is_unix = "memory", True
        self._send, self._receive = trio.open_memory_channel[Connection | Exception](math.inf)

    async def accept(self) -> Connection:
        connection = await self._receive.receive()
        if isinstance(connection, Exception):
            raise connection
        return connection

    def close(self) -> None:
        self._send.close()

    # -- the test's side

    def connect(self, capacity_bytes: int = 1 << 20) -> MemoryConnection:
        theirs, ours = memory_pair(capacity_bytes)
        self._send.send_nowait(ours)
        return theirs

    def fail(self, exc: Exception) -> None:
        self._send.send_nowait(exc)


class World:
    """Everything around the listener."""

    def __init__(
        self,
        token: TokenHash | Secret | None = THE_TOKEN,
        registry: Registry | None = None,
        read_token: TokenHash | Secret | None = None,
    ) -> None:
        self.listener = MemoryListener()
        self.events = Events()
        self.history = History()
        self.registry = registry or Registry()
        self.reloads: list[bool] = []
        self.reload_fails: Exception | None = None
        process = Process("hub", "/etc/tapotun/hub.json", boottime())
        self.access = Access(token, read_token)
        pages = {"/": PAGE, "/panel.js": Page(b"'use strict'", "text/javascript; charset=utf-8", '"2"')}
        self.apis: list[AdminApi] = []

        def make_api(on_authenticated: Callable[[Exchange], None]) -> AdminApi:
            self.apis.append(
                AdminApi(
                    self.access,
                    pages,
                    self.events,
                    self.history,
                    process,
                    self.registry,
                    self._reload,
                    on_authenticated,
                )
            )
            return self.apis[-1]

        self.server = AdminServer(self.listener, make_api, process_logger())

    async def _reload(self, dry_run: bool) -> list[str]:
        self.reloads.append(dry_run)
        await trio.lowlevel.checkpoint()
        if self.reload_fails is not None:
            raise self.reload_fails
        return ["hub: mtu changed"]

    def client(self) -> Asker:
        return Asker(self.listener.connect())

    async def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        """Over a connection of its own."""
        client = self.client()
        answer = await client.ask(method, target, headers, body)
        client.connection.close()
        return answer

    async def browser(self, token: str = TOKEN) -> Browser:
        """One that has logged in."""
        answer = await self.ask("POST", "/api/login", {"origin": ORIGIN}, json.dumps({"token": token}).encode())
        assert answer.status == 204, answer
        cookie = answer.headers["set-cookie"].partition(";")[0]
        session = await self.ask("GET", "/api/session", {"cookie": cookie})
        return Browser(cookie, session.json["csrf"])


class Browser(NamedTuple):
    cookie: str
    csrf: str

    def headers(self, **changes: str | None) -> dict[str, str]:
        """Of an action."""
        headers = {"cookie": self.cookie, "origin": ORIGIN, "x-csrf-token": self.csrf}
        for name, value in changes.items():
            if value is None:
                del headers[name.replace("_", "-")]
            else:
                headers[name.replace("_", "-")] = value
        return headers


class Asker:
    """A client's end of one connection."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.connection = connection

    async def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        fields = {"host": HOST, **(headers or {})}
        if body and "content-length" not in fields and "transfer-encoding" not in fields:
            fields["content-length"] = str(len(body))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        await self.connection.send_all("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> Answer:
        """Read one answer, not a byte more, as h11 understands it."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        status, headers, body = 0, {}, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.connection.read(1))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, headers, body)
            else:
                assert isinstance(event, h11.InformationalResponse), event


@asynccontextmanager
async def opened(make: Callable[[], World] = World) -> AsyncIterator[World]:
    """A listener that serves until the end of the block."""
    world = make()
    logger = logging.getLogger("tapotun")
    level = logger.level
    logger.setLevel(logging.INFO)
    add_handler(world.events)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.server.run)
            yield world
            nursery.cancel_scope.cancel()
    finally:
        remove_handler(world.events)
        logger.setLevel(level)
