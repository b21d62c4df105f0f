"""How a client replaces its upload: the present one carries the packets until the server has seen the next one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest
import trio

from tapotun_trio.client import client as client_module
from tapotun_trio.client import streams
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.states import ClientEvent
from tapotun_trio.wire import control

from ..fakes import MemoryHost
from ..packets import ipv4
from .hostile import logged, until
from .support import allowed, client_config, free_port, running, server_config

pytestmark = pytest.mark.usefixtures("nothing_dropped_on_purpose")

HUB: Final = "10.10.0.1"
ME: Final = "10.10.0.2"


async def test_an_upload_that_is_not_seen_does_not_replace_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packet arrives, although no further upload is ever seen; and one line says so."""
    monkeypatch.setattr(streams, "UPLOAD_SEEN_S", 0.3)
    real, numbers = control.upload_seen, list[int | None]()

    def only_the_first(number: int | None) -> bytes:
        numbers.append(number)
        return real(number) if len(numbers) == 1 else control.encode(control.PADDING, b"")

    monkeypatch.setattr(control, "upload_seen", only_the_first)
    host, port = MemoryHost(), free_port()
    config = replace(client_config("a", port), rotate_s=(0.1, 0.2), transport="http")
    with logged() as log:
        async with running(host, server_config(port, allowed("a", ME)), config):
            hub, device = await host.device("hub"), await host.device("a")
            sent = 0
            while len(numbers) < 4:
                packet = ipv4(ME, HUB, b"%d" % sent)
                sent += 1
                device.send(packet)
                assert await hub.receive_packet() == packet
                await trio.sleep(0.01)
            await until(lambda: any("the present one goes on" in it.getMessage() for it in log), "the line")
    assert sent > 20


async def test_an_upload_whose_successor_is_refused_goes_on() -> None:
    """A proxy that cannot reach the server any more for new requests answers those, and forwards the old one."""
    host, port = MemoryHost(), free_port()
    config = replace(client_config("a", port), rotate_s=(0.1, 0.2), transport="http")
    refused = 0

    async def refuse(stream: trio.SocketStream) -> None:
        nonlocal refused
        refused += 1
        with trio.move_on_after(0.1):  # the body, if it did not come with the head: unread, it would cause a reset
            await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await stream.aclose()

    uploads = 0

    async def relay(stream: trio.SocketStream) -> None:
        nonlocal uploads
        head = bytes(await stream.receive_some())
        uploads += head.startswith(b"PUT")
        if head.startswith(b"PUT") and uploads > 1:
            await refuse(stream)
            return
        with suppress(OSError, trio.BrokenResourceError):  # the server has stopped
            async with stream, await trio.open_tcp_stream("127.0.0.1", port) as far:
                await far.send_all(head)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(copy, stream, far, nursery.cancel_scope)
                    nursery.start_soon(copy, far, stream, nursery.cancel_scope)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, relay, 0)
        proxied = replace(config, server=replace(config.server, port=listeners[0].socket.getsockname()[1]))
        async with running(host, server_config(port, allowed("a", ME)), proxied):
            hub, device = await host.device("hub"), await host.device("a")
            number = 0
            while refused < 3:
                packet = ipv4(ME, HUB, b"%d" % number)
                number += 1
                device.send(packet)
                assert await hub.receive_packet() == packet
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_session_that_ends_while_the_next_upload_is_awaited_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The download is lost at that moment: the next upload belongs to the next download."""
    host, port = MemoryHost(), free_port()
    config = replace(client_config("a", port), rotate_s=(0.2, 0.3))
    real, lost = streams.Upload.prove, list[int]()

    async def prove(upload: streams.Upload) -> bool:
        seen = await real(upload)
        if not lost:
            lost.append(1)
            clients[0]._machine.fire(ClientEvent.LOST)
        return seen

    monkeypatch.setattr(streams.Upload, "prove", prove)
    clients: list[TunnelClient] = []

    def client(*args: Any, **options: Any) -> TunnelClient:
        clients.append(TunnelClient(*args, **options))
        return clients[-1]

    monkeypatch.setattr(client_module, "TunnelClient", client)
    async with running(host, server_config(port, allowed("a", ME)), config):
        hub, device = await host.device("hub"), await host.device("a")
        await until(lambda: clients[0].counters.ends["ended"], "the attempt that comes to nothing")
        await until(lambda: clients[0].state == "connected", "the client to be connected")
        device.send(packet := ipv4(ME, HUB, b"up"))
        assert await hub.receive_packet() == packet


async def copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some():
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it has been reset: the other half ends, too
    scope.cancel()
