"""A low limit of open files: strangers hold a share of it, the oldest of them goes, and the control socket answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
import trio

from tapotun_trio.control.client import ask
from tapotun_trio.control.protocol import StatusArguments
from tapotun_trio.control.server import Command, serve_control
from tapotun_trio.control.socket_path import ControlDirectory, listening
from tapotun_trio.host.process.descriptors import LEAST_SHARE, ReserveDescriptor, share_of_limit
from tapotun_trio.http import virtual_hosts
from tapotun_trio.http.pending import PendingConnections
from tapotun_trio.log import process_logger

from ..descriptors import limit_of_files
from ..fakes import MemoryHost
from ..packets import ipv4
from ..streams import memory_pair
from ..tables import table
from .hostile import open_fds, request, until
from .support import allowed, client_config, free_port, running, server_config


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Every descriptor below the limit is taken, by somebody else in this process."""
    with ExitStack() as taken, limit_of_files(open_fds() + 40):
        while True:
            try:
                taken.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield


@table(
    "limit most part share",
    ("64", 64, 256, 4, 16),
    ("256", 256, 256, 4, 64),
    ("the usual", 1024, 256, 4, 256),
    ("plenty", 4096, 256, 4, 256),
    ("hardly any", 64, 64, 100, LEAST_SHARE),
)
def test_a_share_of_the_limit(limit: int, most: int, part: int, share: int) -> None:
    with limit_of_files(max(limit, 64)):
        assert share_of_limit(most, part) == share


def test_a_reserve() -> None:
    before = open_fds()
    reserve = ReserveDescriptor()
    assert open_fds() == before + 1
    assert reserve.release()
    assert not reserve.release()
    reserve.refill()
    reserve.refill()
    assert open_fds() == before + 1
    reserve.release()
    with no_descriptor_left():
        reserve.refill()
        assert not reserve.release()
    assert open_fds() == before


async def test_an_eviction_on_demand() -> None:
    pending = PendingConnections(9)
    first, second = memory_pair()[1], memory_pair()[1]
    assert not pending.evict()
    pending.add(first)
    pending.add(second)
    assert pending.evict()
    assert (first.closed, second.closed, pending.evicted) == (True, False, 1)


async def _strangers(port: int, count: int) -> list[trio.SocketStream]:
    """Connections that say nothing. They count against the same limit, since this process has both ends."""
    return [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(count)]


async def test_all_endpoints_share_one_number_of_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_hosts, "MAX_CONNECTIONS", 8)
    one, two = free_port(), free_port()
    other = server_config(two, allowed("b", "10.20.0.2"))
    other = replace(other, name="hub2", nets=(IPv4Interface("10.20.0.1/24"),))
    async with running(MemoryHost(), server_config(one, allowed("a", "10.10.0.2")), other):
        before = open_fds()
        first = await _strangers(one, 6)
        await until(lambda: open_fds() == before + 12, "them to be accepted")
        second = await _strangers(two, 6)
        # Of 12 the process keeps 8; the other 4 were closed at its end.
        await until(lambda: open_fds() == before + 12 + 8, "the oldest to be evicted")
        for stream in (*first, *second):
            await stream.aclose()


async def test_the_oldest_stranger_goes_where_no_descriptor_is_left() -> None:
    """Although there are places: an honest client gets in, and its packets pass."""
    port = free_port()
    host = MemoryHost()
    async with running(host, server_config(port, allowed("a", "10.10.0.2"))):
        strangers = await _strangers(port, 30)
        raw = socket.socket()
        raw.setblocking(False)
        with raw, no_descriptor_left():
            with pytest.raises(BlockingIOError):
                raw.connect(("127.0.0.1", port))
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(raw))
            with trio.fail_after(30):
                await stream.send_all(request("GET", "a"))
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        for stream in strangers:
            await stream.aclose()
    async with running(host, server_config(port, allowed("a", "10.10.0.2")), client_config("a", port)):
        hub, a = await host.device("hub"), await host.device("a")
        packet = ipv4("10.10.0.2", "10.10.0.1", b"up")
        a.send(packet)
        assert await hub.receive_packet() == packet


async def test_the_control_socket_answers_without_a_descriptor(tmp_path: Path) -> None:
    async def echo(arguments: StatusArguments) -> list[str]:
        return arguments.interfaces

    with listening("office", [ControlDirectory(str(tmp_path / "run"), 0o700)]) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_control, sock, {"echo": Command(StatusArguments, echo)}, process_logger())
            await trio.testing.wait_all_tasks_blocked()
            path = str(tmp_path / "run" / "office.sock")
            before = open_fds()
            for _ in range(5):  # the reserve comes back each time
                with ExitStack() as stack:
                    client = stack.enter_context(socket.socket(socket.AF_UNIX))
                    stack.enter_context(no_descriptor_left())
                    client.setblocking(False)
                    client.connect(path)
                    stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
                    with trio.fail_after(30):
                        await stream.send_all(b'{"command":"echo","arguments":{"interfaces":["a"]}}\n')
                        assert await stream.receive_some() == b'{"result":["a"]}\n'
                        assert await stream.receive_some() == b""
            await until(lambda: open_fds() == before, "the descriptors to be closed")
            answer = await trio.to_thread.run_sync(lambda: ask(path, "echo", StatusArguments(["b"]), list[str]))
            assert answer == ["b"]
            nursery.cancel_scope.cancel()
