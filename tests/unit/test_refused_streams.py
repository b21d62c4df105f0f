"""A client behind something that refuses or holds one of its requests: what it says, and what carries its packets."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import pytest
import trio

from tapotun_trio.client import transport_choice
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.http import client as http_client
from tapotun_trio.http.refusal import RefusedError
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.log import interface_logger

from ..fakes import MemoryDevice, MemoryHost
from ..packets import ipv4
from .hostile import logged
from .support import allowed, client_config, free_port, running, server_config

PATIENCE_S: Final = 60.0  # an upload is taken for held back after 3 s; the rest is for a busy machine
UP: Final = ipv4("10.10.0.2", "10.10.0.1", b"up")
HTML: Final = b"Content-Type: text/html\r\nContent-Length: 5\r\n\r\n<p>no"


def status(number: int) -> bytes:
    return b"HTTP/1.1 %d No\r\n" % number + HTML


class Front:
    """Something in front of a server that looks at heads: ``refuse`` says what it answers to one. None: it passes;
    empty: it closes without an answer. The head of a PUT, or of a GET that asks for no WebSocket, is its method."""

    def __init__(
        self, port: int, refuse: Callable[[str], bytes | None], *, holds_gets: str = "", resets: bool = False
    ) -> None:
        """``port``: the server's. ``holds_gets``: the ``answer`` to a GET stays here, or its ``body``. ``resets``: the
        connection of a request that is refused is reset."""
        self._port = port
        self._resets = resets
        self._refuse = refuse
        self._holds_gets = holds_gets
        self.seen: list[str] = []
        self.cut: trio.Event | None = None  # ends the uploads that pass, with a 504

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._serve(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = await stream.receive_some()
            if not received:
                return
            head += received
        kind = "WebSocket" if b"\r\nupgrade: websocket" in head.lower() else head.split()[0].decode()
        self.seen.append(kind)
        answer = self._refuse(kind)
        if answer is not None:
            await stream.send_all(answer)
            if self._resets:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif answer:  # as proxies do, so that unread bytes cause no reset that destroys the answer
                await stream.send_eof()
                with trio.move_on_after(1):
                    async for _ in stream:
                        pass
            return
        upstream = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with upstream, trio.open_nursery() as nursery:

            async def copy(source: trio.SocketStream, sink: trio.SocketStream | None) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for data in source:
                        if sink is not None:
                            await sink.send_all(data)
                nursery.cancel_scope.cancel()

            await upstream.send_all(head)
            nursery.start_soon(copy, stream, upstream)
            if kind == "PUT" and self.cut is not None:
                await self.cut.wait()
                await stream.send_all(status(504))
                return
            if kind == "GET" and self._holds_gets == "body":
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += await upstream.receive_some()
                await stream.send_all(answer[: answer.index(b"\r\n\r\n") + 4])
            nursery.start_soon(copy, upstream, None if self._holds_gets and kind == "GET" else stream)


async def until(true: Callable[[], object], what: str) -> None:
    """Poll until the condition is true."""
    with trio.move_on_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for tells no event
            await trio.sleep(0.01)
        return
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")


class Case:
    """A client behind a front."""

    def __init__(self, host: MemoryHost, record: Record, front: Front, log: list[logging.LogRecord]) -> None:
        self._host, self._record, self.front, self._log = host, record, front, log

    @property
    def client(self) -> TunnelClient:
        assert isinstance(self._record.tunnel, TunnelClient)
        return self._record.tunnel

    @property
    def warnings(self) -> str:
        return "\n".join(it.getMessage() for it in self._log if it.levelno >= logging.WARNING)

    @property
    async def device(self) -> MemoryDevice:
        return await self._host.device("a")

    async def until_carried_by(self, transport: str) -> None:
        """Until a packet has passed, over this."""
        hub, device = await self._host.device("hub"), await self._host.device("a")
        await until(lambda: self.client.transport == transport and self.client.state == "connected", transport)

        def arrived() -> bool:
            device.send(UP)
            return any(it.endswith(UP) for it in hub.outbound)

        await until(arrived, "a packet")


@asynccontextmanager
async def behind(
    refuse: Callable[[str], bytes | None] = lambda kind: None,
    *,
    holds_gets: str = "",
    resets: bool = False,
    rotate_s: tuple[float, float] | None = None,
) -> AsyncIterator[Case]:
    """A client behind such a front."""
    host, port, records = MemoryHost(), free_port(), dict[str, Record]()
    front = Front(port, refuse, holds_gets=holds_gets, resets=resets)
    with logged() as log:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, front.serve, listeners)
            entry = client_config("a", listeners[0].socket.getsockname()[1])
            if rotate_s is not None:
                entry = replace(entry, rotate_s=rotate_s)
            hub = server_config(port, allowed("a", "10.10.0.2"))
            async with running(host, hub, entry, records=records):
                yield Case(host, records["a"], front, log)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [403, 405, 404, 501, 444], ids=str)
async def test_a_refused_put_is_named_and_a_websocket_carries_the_packets(answer: int) -> None:
    reply = b"" if answer == 444 else status(answer)
    async with behind(lambda kind: reply if kind == "PUT" else None) as case:
        await case.until_carried_by("websocket")
        assert "no upload to 127.0.0.1:" in case.warnings
        assert "using a WebSocket instead" in case.warnings
        assert "holds the upload back" not in case.warnings
        assert "does not know this token" not in case.warnings


async def test_a_refusal_is_named_although_the_connection_is_reset_after_it() -> None:
    """As by a proxy that closes without reading the rest of the body. Every packet that is sent meets the reset."""
    async with behind(lambda kind: status(405) if kind == "PUT" else None, resets=True) as case:
        device = await case.device
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                while True:
                    device.send(UP)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(send)
            await case.until_carried_by("websocket")
            nursery.cancel_scope.cancel()
        assert "no upload to 127.0.0.1:" in case.warnings
        assert case.warnings.count("answered 405") == case.warnings.count("\n") + 1, case.warnings


async def test_a_download_that_is_often_replaced_hides_no_refused_upload() -> None:
    """Nor is the refusal told again after each."""
    async with behind(lambda kind: status(405) if kind == "PUT" else None, rotate_s=(0.5, 0.6)) as case:
        await case.until_carried_by("websocket")
        assert case.front.seen.count("GET") > 3
        assert case.warnings.count("answered 405") == 2, case.warnings


async def test_an_upload_that_a_proxy_ends_is_said_to_have_worked() -> None:
    async with behind() as case:
        case.front.cut = trio.Event()
        await case.until_carried_by("http")
        case.front.cut.set()
        await until(lambda: "answered 504" in case.warnings, "the line")
        assert "has ended an upload that worked" in case.warnings
        assert "waited too long" not in case.warnings


async def test_several_servers_in_turn() -> None:
    """The one that gets the PUT knows nothing of the GET that another one serves. One WebSocket has one server."""
    page = b"HTTP/1.1 409 Conflict\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n409\n"
    async with behind(lambda kind: page if kind == "PUT" else None) as case:
        await case.until_carried_by("websocket")
        assert "hash $http_x_api_key consistent;" in case.warnings


@pytest.mark.parametrize("answer", [404, 405, 426, 400, 403], ids=str)
async def test_a_location_that_takes_websockets_only(answer: int) -> None:
    async with behind(lambda kind: None if kind == "WebSocket" else status(answer)) as case:
        await case.until_carried_by("websocket")
        assert case.front.seen == ["GET", "WebSocket"]
        assert f"answered {answer} " in case.warnings
        assert "using a WebSocket instead" in case.warnings


async def test_an_answer_that_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """lighttpd as Debian ships it. The server has answered, and its session is taken over by the WebSocket."""
    monkeypatch.setattr(transport_choice, "GET_ANSWER_S", 0.5)
    async with behind(holds_gets="answer") as case:
        await case.until_carried_by("websocket")
        assert case.front.seen == ["GET", "WebSocket"]
        assert "did not answer within" in case.warnings


async def test_a_body_that_is_held_back() -> None:
    """The server says that it has seen the upload, and that does not arrive either."""
    async with behind(holds_gets="body") as case:
        await case.until_carried_by("websocket")
        assert "holds the download back" in case.warnings
        assert "upload" not in case.warnings


async def test_where_neither_passes_the_get_is_what_is_told() -> None:
    async with behind(lambda kind: status(404)) as case:
        await until(lambda: case.front.seen.count("GET") >= 3, "some attempts")
        assert case.front.seen.count("WebSocket") == 1
        assert "nothing is served at this path" in case.warnings
        assert "WebSocket" not in case.warnings


async def test_a_refusal_whose_body_comes_late_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for the answer is over before the time for its body."""
    monkeypatch.setattr(transport_choice, "GET_ANSWER_S", 2.0)
    monkeypatch.setattr(http_client, "REFUSAL_S", 2.5)

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 503 No\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n50")
        await stream.receive_some()  # until the client goes

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        config = client_config("a", listeners[0].socket.getsockname()[1])
        client = TunnelClient(config, interface_logger("a"))
        with pytest.raises(RefusedError, match="answered 503"):
            await client._requests.get(yields=False)
        nursery.cancel_scope.cancel()
