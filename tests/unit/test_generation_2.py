"""Deployed peers of generation 2, and how a base client's download ends.

A generation 2 client takes a download's clean end for a success, and comes back at its next rotation: 7 to 15 minutes
later. So a base client's download ends cleanly only when its newer one takes over. The strict peer (tests.basepeer)
complains of every other clean end.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal, NoReturn

import pytest
import trio
import trio.testing

from tapotun_trio.config.model import ServerConfig
from tapotun_trio.datapath import sender as sender_module
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.sender import GENERATION_2_KEEPALIVE, GRACE_S, Sender, break_off, breaking_off
from tapotun_trio.datapath.tx_queue import TxQueue
from tapotun_trio.host.net.sockets import BASE_DEAD_S, DEAD_S, Connection
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import DISCONNECTED, Record
from tapotun_trio.server import client_log
from tapotun_trio.server import handlers as serving_module
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.server.session import Session
from tapotun_trio.wire.body import LAST_CHUNK
from tests.basepeer import BaseClient, BaseServer, ClientSpec
from tests.basepeer.http1 import ChunkedBody
from tests.basepeer.pair import FAST
from tests.basepeer.wire import Frame, FrameReader

from ..fakes import MemoryHost
from ..packets import ipv4
from ..streams import memory_pair
from .hostile import extended, request, until
from .support import allowed, client_config, free_port, running, server_config
from .test_interop_base import DOWN, elsewhere, exchange_with_client

Clock = trio.testing.MockClock
TICK_S: Final = 1.0
LAPTOP: Final = allowed("test", "10.10.0.2")
OTHER: Final = allowed("other", "10.10.0.3")
HTTP10: Final[dict[str, Any]] = {"http10": True, "put_whole": True, "expect_continue": False}


@dataclass
class Server:
    """A server interface that runs."""

    record: Record
    host: MemoryHost
    scope: trio.CancelScope
    port: int

    @property
    def session(self) -> Session:
        """The laptop's."""
        assert isinstance(self.record.tunnel, TunnelServer)
        return self.record.tunnel.sessions[0]

    async def reconfigure(self, **fields: Any) -> None:
        """As a reload does it."""
        assert self.record.reconfigure is not None
        assert isinstance(self.record.config, ServerConfig)
        await self.record.reconfigure(replace(self.record.config, **fields))


@asynccontextmanager
async def serving(generation: Literal[1, 2] = 2) -> AsyncIterator[Server]:
    """One for the laptop and somebody else."""
    port, host = free_port(), MemoryHost()
    config = replace(server_config(port, LAPTOP, OTHER), peers=generation)
    server = Server(Record(config), host, trio.CancelScope(), port)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        try:
            with server.scope:
                async with open_listeners() as listeners:
                    await run_interface(config, host, listeners, server.record, task_status=task_status)
        except* ZeroDivisionError:  # a test's bug
            pass

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield server
        server.scope.cancel()


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[BaseClient]:
    """A base client, which has nothing to complain of at the end."""
    options = {"generation": 2, "timers": FAST, **options}
    client = BaseClient(f"http://127.0.0.1:{server.port}/ip", "test", **options)
    try:
        await elsewhere(client.start)
        await elsewhere(client.wait_connected)
        yield client
    finally:
        await elsewhere(client.stop)
    assert client.violations == []
    assert client.journal.count("away") == 0


# -- how a download ends


class Download:
    """A base client's GET, byte by byte."""

    def __init__(self, stream: trio.SocketStream, version: str) -> None:
        self.stream = stream
        self.version = version
        self.data = b""

    @classmethod
    async def begin(cls, server: Server, version: str) -> Download:
        it = cls(await trio.open_tcp_stream("127.0.0.1", server.port), version)
        await it.stream.send_all(request("GET", "test", version=version))
        with trio.fail_after(30):
            while b"\r\n\r\n" not in it.data:
                it.data += await it.stream.receive_some()
        assert it.data.startswith(b"HTTP/1.1 200 ")
        it.data = it.data.partition(b"\r\n\r\n")[2]
        return it

    async def ended(self) -> Literal["cleanly", "broken"]:
        """How it ends, as a client sees it; what came before is whole frames."""
        was_reset = False
        with trio.fail_after(30):
            try:
                while received := await self.stream.receive_some():
                    self.data += received
            except trio.BrokenResourceError:
                was_reset = True
        reader = FrameReader()
        if self.version == "1.0":
            self.frames = [frame for frame in reader.feed(self.data) if not frame.is_echo]
            assert reader.rest == b""
            return "broken" if was_reset else "cleanly"
        assert not was_reset
        body = ChunkedBody(pytest.fail)
        self.frames = [frame for frame in reader.feed(body.feed(self.data)) if not frame.is_echo]
        assert reader.rest == b""
        return "cleanly" if body.done else "broken"


async def stop(server: Server, _: pytest.MonkeyPatch) -> None:
    server.scope.cancel()


async def remove(server: Server, _: pytest.MonkeyPatch) -> None:
    await server.reconfigure(clients=(OTHER,))


async def disconnect(server: Server, _: pytest.MonkeyPatch) -> None:
    server.session.disconnect(DISCONNECTED)


async def change_mtu(server: Server, _: pytest.MonkeyPatch) -> None:
    await server.reconfigure(mtu=1280)


async def change_address(server: Server, _: pytest.MonkeyPatch) -> None:
    await server.reconfigure(clients=(allowed("test", "10.10.0.9"), OTHER))


async def have_a_bug(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(TxQueue, "take", take)
    # Something that needs the download's own task: more than a socket takes.
    hub = await server.host.device("hub")
    for _ in range(200):
        hub.send(ipv4(*DOWN, bytes(60_000)))


Ending = Callable[[Server, pytest.MonkeyPatch], Awaitable[None]]
ENDINGS: Final[list[Ending]] = [stop, remove, disconnect, change_mtu, change_address, have_a_bug]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("end", ENDINGS)
async def test_a_base_client_sees_that_its_download_broke(
    end: Ending, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And behind which frame: all that was begun arrives whole."""
    async with serving() as server:
        download = await Download.begin(server, version)
        async with download.stream:
            hub = await server.host.device("hub")
            sent = [ipv4(*DOWN, bytes([number]) * 30_000) for number in range(20)]
            for packet in sent:
                hub.send(packet)
            await until(lambda: not hub.inbound, "the packets to be read")
            await end(server, monkeypatch)
            assert await download.ended() == "broken"
            packets = [frame.packet for frame in download.frames]
            assert packets[:2] == sent[:2]
            assert set(packets) <= {*sent, ipv4(*DOWN, bytes(60_000))}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_newer_download_ends_the_older_one_cleanly(version: str) -> None:
    async with serving() as server:
        older = await Download.begin(server, version)
        newer = await Download.begin(server, version)
        async with older.stream, newer.stream:
            if version == "1.1":  # its connection stays open
                with trio.fail_after(30):
                    while not older.data.endswith(LAST_CHUNK):
                        older.data += await older.stream.receive_some()
                server.session.disconnect(DISCONNECTED)
            else:
                assert await older.ended() == "cleanly"
                server.session.disconnect(DISCONNECTED)
            assert await newer.ended() == "broken"


async def test_an_extended_client_s_download_still_ends_cleanly_with_a_goodbye() -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(request("GET", "test", *extended("test")))
            await until(lambda: server.session.sender.streaming, "the download")
            server.session.disconnect(DISCONNECTED)
            received = b""
            with trio.fail_after(30):
                while not received.endswith(LAST_CHUNK):
                    received += await stream.receive_some()
            assert DISCONNECTED.encode() in received


@pytest.mark.parametrize("http10", [False, True], ids=["http/1.1", "http/1.0"])
@pytest.mark.parametrize("generation", [1, 2])
async def test_a_client_is_back_soon(generation: Literal[1, 2], http10: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all that does not end the server; the peer's rotation would take minutes."""
    options = HTTP10 if http10 else {}
    async with serving(generation) as server, connected(server, generation=generation, **options) as client:
        for number, end in enumerate((disconnect, change_mtu), 1):
            await end(server, monkeypatch)
            await elsewhere(lambda: client.wait("get-open", number + 1))  # noqa: B023 - awaited in this turn
            await exchange_with_client(await server.host.device("hub"), client, b"%d" % number)
        assert client.journal.count("get-end") == 0
        assert client.conf is not None
        assert client.conf.mtu == 1280


async def test_a_reload_leaves_a_base_client_s_upload_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server, connected(server) as client:
        for number, end in enumerate((change_mtu, change_address), 1):
            await end(server, monkeypatch)
            await elsewhere(lambda: client.wait("get-open", number + 1))  # noqa: B023 - awaited in this turn
        up = ipv4("10.10.0.9", "10.10.0.1", b"up")
        client.send_packet(up)
        assert await (await server.host.device("hub")).receive_packet() == up
        assert client.journal.count("put-open") == 1
        assert client.journal.count("put-broken") == 0
        # The operator's order ends both.
        await disconnect(server, monkeypatch)
        await elsewhere(lambda: client.wait("put-broken"))


# -- towards a frame boundary, within a limit


async def test_what_is_pending_is_sent_before_a_stream_is_broken_off(autojump_clock: Clock) -> None:
    ours, theirs = memory_pair(8)
    writer = BodyWriter(ours)
    writer.send(b"hello, world")
    assert writer.pending
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_off, writer, 5.0)
        while len(received) < len(b"c\r\nhello, world\r\n"):
            received += await theirs.read(1)
    assert received == b"c\r\nhello, world\r\n"
    assert not ours.closed  # the caller closes it
    assert theirs.unread == b""


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_peer_that_takes_nothing_is_reset_in_time(chunked: bool, autojump_clock: Clock) -> None:
    ours, _ = memory_pair(8)
    writer = BodyWriter(ours, chunked=chunked)
    began = trio.current_time()
    with trio.CancelScope() as scope:
        async with breaking_off(writer):
            writer.send(b"hello, world")
            scope.cancel()
            await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(GRACE_S)
    assert ours.closed


async def test_a_reset_waits_for_what_is_under_way(autojump_clock: Clock) -> None:
    """Here a reset destroys all that was not received."""
    ours, theirs = memory_pair()
    writer = BodyWriter(ours, chunked=False)
    writer.send(b"hello")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_off, writer, 5.0)
        await trio.sleep(1)
        assert not ours.closed
        assert await theirs.read() == b"hello"
        await trio.sleep(1)
        assert ours.closed


async def test_whole_frames_that_nobody_acknowledges_are_left_to_the_kernel(autojump_clock: Clock) -> None:
    """A reset would cut one of them, and the client would be deaf: a clean end is the lesser evil."""
    ours, theirs = memory_pair()
    writer = BodyWriter(ours, chunked=False)
    writer.send(b"hello")
    await break_off(writer, GRACE_S)
    assert not ours.closed
    assert theirs.unread == b"hello"


async def test_a_body_whose_end_was_begun_gets_it(autojump_clock: Clock) -> None:
    """It was being replaced when the program was told to stop."""
    ours, theirs = memory_pair(4)
    writer = BodyWriter(ours)
    with trio.move_on_after(1):
        async with breaking_off(writer):
            writer.send(b"hello")
            ours.limit(100)
            await writer.finish()
            await trio.sleep_forever()
    assert theirs.unread == b"5\r\nhello\r\n" + LAST_CHUNK


# -- pings of a server


def ticks(sender: Sender, seconds: int) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        for _ in range(seconds):
            await trio.sleep(TICK_S)
            sender.tick(trio.current_time(), TICK_S)

    return run


class Peer:
    """Receives what a sender sends, and says when which ping came."""

    def __init__(self, capacity_bytes: int = 1 << 20) -> None:
        ours, self.end = memory_pair(capacity_bytes)
        self.writer = BodyWriter(ours, chunked=False)
        self.reader = FrameReader()
        self.frames: list[Frame] = []

    def take(self) -> int:
        """How many pings there are since the last time."""
        buffer = memoryview(bytearray(1 << 20))
        new: list[Frame] = []
        while received := self.end.try_receive(buffer):
            new += self.reader.feed(bytes(buffer[:received]))
        self.frames += new
        return sum(frame.is_echo for frame in new)


def numbered() -> bytes:
    return Frame(ipv4(*DOWN, b"x")).encode()


async def test_a_busy_generation_2_download_is_pinged(autojump_clock: Clock) -> None:
    """The echoes are all that a client's idle upload carries, and it gives that up after 60 s without a byte."""
    sender, peer = Sender(Counters()), Peer()
    sender.keepalive = GENERATION_2_KEEPALIVE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.serve, peer.writer)
        await trio.testing.wait_all_tasks_blocked()
        assert peer.take() == 1  # at once
        pinged_at = [trio.current_time()]
        for _ in range(600):
            await ticks(sender, 1)()
            sender.send(numbered(), 1)
            if peer.take():
                pinged_at.append(trio.current_time())
        gaps = [later - earlier for earlier, later in pairwise(pinged_at)]
        assert len(gaps) >= 10
        assert max(gaps) <= 55.0
        assert min(gaps) >= 50.0  # and no more than it takes
        nursery.cancel_scope.cancel()


async def test_a_ping_comes_before_a_backlog(autojump_clock: Clock) -> None:
    sender, peer = Sender(Counters()), Peer(capacity_bytes=100)
    sender.keepalive = GENERATION_2_KEEPALIVE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.serve, peer.writer)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            sender.send(numbered(), 1)
        sender.tick(trio.current_time(), TICK_S)
        for _ in range(20):
            peer.take()
            await trio.testing.wait_all_tasks_blocked()
        at = [frame.is_echo for frame in peer.frames].index(True)
        assert at <= 4  # behind what the connection had taken already
        nursery.cancel_scope.cancel()


async def test_a_ping_that_went_nowhere_is_sent_on_the_next_stream(autojump_clock: Clock) -> None:
    """Due while there is no download, or stuck on one that is replaced: the upload waits for its echo."""
    sender, stuck, peer = Sender(Counters()), Peer(capacity_bytes=10), Peer()
    sender.keepalive = GENERATION_2_KEEPALIVE
    await ticks(sender, 60)()  # nothing there
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.serve, stuck.writer)
        await trio.testing.wait_all_tasks_blocked()
        sender.send(numbered(), 1)  # which fills it
        await ticks(sender, 2)()
        assert stuck.take() == 0
        nursery.start_soon(sender.serve, peer.writer)
        await trio.testing.wait_all_tasks_blocked()
        await ticks(sender, 2)()
        assert peer.take() == 1
        nursery.cancel_scope.cancel()


async def test_an_upload_that_outlives_its_download_is_pinged_with_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real time: the client gives its upload up 8 s after the last byte; on its own the next ping is a minute away."""
    timers = replace(FAST, give_up_s=8.0)
    async with serving() as server, connected(server, timers=timers) as client:
        await change_mtu(server, monkeypatch)
        await elsewhere(lambda: client.wait("echo"))


# -- our client at a generation 2 server


@pytest.mark.parametrize("generation", [1, 2])
async def test_our_client_pings_a_generation_1_server_only(
    generation: Literal[1, 2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a generation 2 server an empty frame ends the upload; the echoes keep it alive. (The pause is shortened.)"""
    monkeypatch.setattr(sender_module, "BASE_KEEPALIVE", replace(sender_module.BASE_KEEPALIVE, after_s=0.5))
    timers = replace(FAST, ping_s=2.5)
    spec = ClientSpec.of("a", "10.10.0.2")
    server = BaseServer([spec], port=0, generation=generation, timers=timers, max_age_s=None)
    await elsewhere(server.start)
    try:
        async with running(MemoryHost(), client_config("a", server.port)):
            if generation == 1:
                await elsewhere(lambda: server.wait("ping", 2))
            else:
                await elsewhere(lambda: server.wait("echo", 2))
                assert server.journal.count("ping") == 0
            assert server.journal.count("put-open") == 1
    finally:
        await elsewhere(server.stop)
    assert server.violations == []


# -- how long a connection may be silent


def user_timeout_ms(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def dead_after_s(stream: trio.SocketStream) -> float:
    """What the server has its kernel do about the other end of this."""
    name = "{}:{}".format(*stream.socket.getsockname())
    [found] = [it for it in gc.get_objects() if isinstance(it, Connection) and it.name == name]
    with socket.socket(fileno=os.dup(found.fileno())) as same:
        return user_timeout_ms(same) / 1000


@pytest.mark.parametrize("ours", [False, True], ids=["base", "ours"])
async def test_the_kernel_waits_longer_for_a_base_client(ours: bool) -> None:
    """It waits 60 s itself, so an outage of 45 s must not cost it its streams; one of ours knows sooner."""
    expected, fields = (DEAD_S, extended("test")) if ours else (BASE_DEAD_S, ())
    async with serving() as server:
        get = await trio.open_tcp_stream("127.0.0.1", server.port)
        put = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with get, put:
            await get.send_all(request("GET", "test", *fields))
            await until(lambda: server.session.sender.streaming, "the download")
            await put.send_all(request("PUT", "test", "Transfer-Encoding: chunked", *fields[1:]))
            await until(lambda: bool(server.session.uploads), "the upload")
            assert (dead_after_s(get), dead_after_s(put)) == (expected, expected)


async def test_one_connection_for_one_client_after_the_other() -> None:
    """As a proxy uses it: the longer wait is the request's, and not the connection's."""
    async with serving() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            put = request("PUT", "test", "Transfer-Encoding: chunked")
            await stream.send_all(put)
            await until(lambda: bool(server.session.uploads), "the upload")
            assert dead_after_s(stream) == BASE_DEAD_S
            await stream.send_all(LAST_CHUNK)
            await until(lambda: not server.session.uploads, "its end")
            await stream.send_all(request("GET", "test", *extended("test")))
            await until(lambda: server.session.sender.streaming, "the download")
            assert dead_after_s(stream) == DEAD_S


# -- the wrong generation


HINT: Final = "within a second of its download's answer"


def hints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if HINT in record.getMessage()]


@pytest.mark.parametrize(("served", "known"), [(1, 2), (2, 1)])
async def test_a_client_of_the_other_generation_is_told_of(
    served: Literal[1, 2],
    known: Literal[1, 2],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line, once it has left at once again and again, however often it comes after that."""
    monkeypatch.setattr(serving_module, "EARLY_EXIT_S", 60.0)  # a busy machine may take a second for it
    monkeypatch.setattr(client_log, "EARLY_EXITS_WITHIN_S", 600.0)
    async with serving(served) as server:
        for number in range(1, 7):
            client = BaseClient(f"http://127.0.0.1:{server.port}/ip", "test", generation=known, timers=FAST)
            await elsewhere(client.start)
            await elsewhere(lambda client=client: client.wait("exit"))  # type: ignore[misc]
            await elsewhere(client.stop)
            ends = server.session.counters.ends
            await until(lambda number=number, ends=ends: sum(ends.values()) == number, "its end")  # type: ignore[misc]
            assert len(hints(caplog)) == (1 if number >= 3 else 0)
        assert f'"peers": {served}, try {known}' in hints(caplog)[0]


async def test_a_client_that_comes_rarely_is_not_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    async with serving() as server:
        session = server.session
        monkeypatch.setattr(trio, "current_time", lambda: now)
        for _ in range(20):
            session.left_early()
            now += 61.0
        assert hints(caplog) == []
        for _ in range(3):
            session.left_early()
            now += 10.0
        monkeypatch.undo()
        assert len(hints(caplog)) == 1


async def test_one_of_ours_that_leaves_at_once_is_none_of_that(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        for _ in range(5):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(request("GET", "test", *extended("test")))
                await until(lambda: server.session.sender.streaming, "the download")
            await until(lambda: not server.session.sender.streaming, "its end")
        assert hints(caplog) == []
