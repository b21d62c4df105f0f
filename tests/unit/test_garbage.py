"""What comes and goes by the thousand leaves nothing to the garbage collector.

The collector stops every thread, for a tenth of a second where there are 300,000 objects. So a server with many clients
has it ignore most objects (`host.interpreter.settle`), which is right only while these are freed without it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Final

import pytest
import trio

from tapotun_trio.config.model import ServerConfig, TransportChoice
from tapotun_trio.datapath.tun_io import DeviceWriter
from tapotun_trio.errors import HostError
from tapotun_trio.routing.prefixes import PrefixTable
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.server.session import Session

from ..fakes import HANG_S, MemoryDevice, MemoryHost
from ..packets import frame, ipv4
from .hostile import until
from .support import allowed, client_config, counting_streams, free_port, running, server_config
from .test_scale import World, listening, server, world

FIELDS: Final = b"Host: x\r\nx-api-key: a\r\n"


class Garbage:
    """Attributes: kinds: the program's objects that only the collector would have freed, by the name of their type."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()


@contextmanager
def collected() -> Iterator[Garbage]:
    """What becomes cyclic garbage in the body."""
    garbage = Garbage()
    gc.collect()
    gc.disable()
    try:
        yield garbage
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = (type(it) for it in gc.garbage)
        garbage.kinds.update(it.__qualname__ for it in ours if it.__module__.startswith("tapotun_trio"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


@asynccontextmanager
async def streams(port: int) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """A deployed client's GET and PUT, connected, with a packet sent. They break off at the end."""
    with trio.fail_after(HANG_S):
        download = await trio.open_tcp_stream("127.0.0.1", port)
        await download.send_all(b"GET /ip HTTP/1.1\r\n" + FIELDS + b"\r\n")
        assert (await download.receive_some(4096)).startswith(b"HTTP/1.1 200 ")
        upload = await trio.open_tcp_stream("127.0.0.1", port)
        data = frame(ipv4("10.10.0.2", "10.10.0.1", b"hello"))
        head = b"PUT /ip HTTP/1.1\r\n" + FIELDS + b"Transfer-Encoding: chunked\r\n\r\n"
        await upload.send_all(head + b"%x\r\n%b\r\n" % (len(data), data))
    async with download, upload:
        yield download, upload


async def break_off(download: trio.SocketStream, upload: trio.SocketStream) -> None:
    await upload.aclose()
    await download.aclose()


async def end_the_upload(download: trio.SocketStream, upload: trio.SocketStream) -> None:
    await upload.send_all(b"0\r\n\r\n")
    assert (await upload.receive_some(4096)).startswith(b"HTTP/1.1 200 ")


async def send_nonsense(download: trio.SocketStream, upload: trio.SocketStream) -> None:
    await upload.send_all(b"zz\r\n")
    with suppress(trio.BrokenResourceError):  # closed, or reset; an answer would be taken for the upload's end
        assert not await upload.receive_some(4096)


@pytest.mark.parametrize("way", [break_off, end_the_upload, send_nonsense])
async def test_a_stream_that_ends(way: Callable[[trio.SocketStream, trio.SocketStream], Awaitable[None]]) -> None:
    port, host = free_port(), MemoryHost()
    async with running(host, server_config(port, allowed("a", "10.10.0.2"))):
        for _ in range(2):  # at the first time things are made that stay
            with collected() as garbage:
                async with streams(port) as (download, upload):
                    await (await host.device("hub")).receive()
                    await way(download, upload)
                await trio.sleep(0.3)  # a download's end is noticed, and its task is over
        assert not garbage.kinds


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_streams_that_are_replaced(transport: TransportChoice) -> None:
    port, host = free_port(), MemoryHost()
    client = replace(client_config("a", port), transport=transport, rotate_s=(0.05, 0.1))
    stream = "WebSocket" if transport == "websocket" else "upload"
    with counting_streams() as begun:
        async with running(host, server_config(port, allowed("a", "10.10.0.2")), client):
            await until(lambda: begun[stream] >= 5, "the first rotations")  # which make things that stay
            with collected() as garbage:
                first = begun[stream]
                await until(lambda: begun[stream] >= first + 10, "10 rotations")
            assert not garbage.kinds


async def reload(it: World, config: ServerConfig) -> TunnelServer:
    it.file = config
    await it.reloader.reload()
    [record] = it.registry
    assert isinstance(record.tunnel, TunnelServer)
    return record.tunnel


def introduce(tunnel: TunnelServer) -> None:
    """Each session has a verdict about the next one."""
    sessions, writer = tunnel.sessions, DeviceWriter(MemoryDevice("hub"), Counter())
    for one, other in zip(sessions, [*sessions[1:], sessions[0]], strict=True):
        data = frame(ipv4(str(one.client.ipv4), str(other.client.ipv4), b""))
        one.forward(memoryview(data), [(0, len(data), 1)], writer, sessions)
        assert one.cached_verdicts == 1


async def test_clients_that_a_reload_removes() -> None:
    config = listening(server(20), free_port())
    async with world(config) as it:
        introduce(await reload(it, replace(config, mtu=1400)))
        with collected() as garbage:
            tunnel = await reload(it, replace(config, clients=config.clients[:2]))
        assert len(tunnel.sessions) == 2
        assert Session.__qualname__ not in garbage.kinds


async def test_an_interface_that_fails_and_starts_again() -> None:
    config = listening(server(20), free_port())
    async with world(config) as it:
        introduce(await reload(it, replace(config, mtu=1400)))
        [record] = it.registry
        with collected() as garbage:
            device = it.host.devices["hub"]
            device.fault = HostError("gone")
            device.send(b"")  # wakes its reader
            await until(lambda: record.restarts == 1 and record.ready, "it starts again")
        assert not garbage.kinds.keys() & {Session.__qualname__, PrefixTable.__qualname__}
