"""A bug anywhere in one request or session ends that request or session: the others do not notice, and its own client
can connect again.

The steps of a session are read off the code: each is made to raise, before or after it did its work, in the tasks of
mallory's connections only.
"""

from __future__ import annotations

import errno
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import product
from types import FunctionType, ModuleType
from typing import Any, Final, Literal, TypeAlias
from unittest.mock import patch

import pytest
import trio

from tapotun_trio.datapath import duplex, receiver, rtt, scheduler, sender, tun_io, tx_queue
from tapotun_trio.errors import SHORTAGES, HostError, leaves
from tapotun_trio.host.net import sockets
from tapotun_trio.http import acceptor, client_address, heads, pending, virtual_hosts, writer
from tapotun_trio.http import server as http_server
from tapotun_trio.http import websocket as http_websocket
from tapotun_trio.peer import info, session_log
from tapotun_trio.routing import router
from tapotun_trio.server import client_log, handlers, server, session
from tapotun_trio.wire import body, control, frames
from tapotun_trio.wire import websocket as wire_websocket

from ..fakes import MemoryHost
from ..packets import frame, ipv4
from ..tables import table
from .hostile import CHUNKED, HUB, PATIENCE_S, Siege, besieged, chunk, extended, open_fds, request, until
from .support import allowed, free_port, running, server_config
from .test_websocket import REST, UPGRADE, features, masked

When: TypeAlias = Literal["before", "after"]
Scenario: TypeAlias = Callable[[Siege], Awaitable[None]]

ME: Final = "10.10.0.2"
UP: Final = ipv4(ME, HUB, b"up")
DOWN: Final = ipv4(HUB, ME, b"down")
CONTROLS: Final = b"".join(
    (
        control.ping(1),
        control.encode(control.PONG, bytes(8)),
        control.encode(control.AGENT, b"mallory/1"),
        control.encode(control.BYE, b"bye"),
    )
)

# Whatever has a part in serving a request.
STEPS_OF: Final[tuple[type | ModuleType, ...]] = (
    virtual_hosts.Endpoint,
    server.TunnelServer,
    handlers,
    handlers.Upload,
    session.Session,
    session.ClientHello,
    session.ClientParameters,
    client_log.ClientLog,
    sender,
    sender.Sender,
    scheduler.SendScheduler,
    tx_queue.TxQueue,
    receiver,
    receiver.Receiver,
    duplex.DuplexStream,
    info.PeerInfo,
    session_log.SessionLog,
    rtt.RoundTrip,
    http_server,
    http_server.Exchange,
    http_websocket,
    http_websocket.WebSocketWriter,
    writer.BodyWriter,
    heads,
    heads.RequestHead,
    heads.RequestParser,
    pending.PendingConnections,
    client_address,
    client_address.ClientAddress,
    body.ChunkedBody,
    wire_websocket.WebSocketBody,
    frames.FrameReader,
    control,
    router.Router,
    tun_io.DeviceWriter,
    sockets.Connection,
)
# The boundary itself, and what is not called for one request. A connection that is not closed is a leak by any code.
NOT_STEPS: Final = {
    "Endpoint.__init__",
    "Endpoint.run",
    "TunnelServer.__init__",
    "TunnelServer._serve",
    "TunnelServer._count_fault",
    "Connection.__init__",
    "Connection.close",
}
# Steps that some scenario has to come by, so that the list above is not empty without anybody noticing.
REACHED: Final = {
    "Endpoint._dispatch",
    "Endpoint.add_pending",
    "TunnelServer._answer",
    "TunnelServer._authenticate",
    "TunnelServer._refuse",
    "ClientHello.of",
    "Session.download_began",
    "Session.uploading",
    "Session.deliver",
    "Session.on_control",
    "Session.stream_ended",
    "Session.downloading",
    "Session.forward",
    "ClientParameters.params",
    "ClientParameters.tun_conf",
    "handlers.serve_download",
    "handlers.serve_upload",
    "handlers.serve_websocket",
    "Upload.receiver",
    "Upload._deliver",
    "Upload._on_control",
    "Upload._acknowledge",
    "Sender.serve",
    "Sender.send_control",
    "Sender._work",
    "Exchange.start_download",
    "Exchange.watch",
    "Exchange.accept_upload",
    "Exchange.accept_websocket",
    "Exchange.finish_upload",
    "Exchange.refuse",
    "DuplexStream.run",
    "DuplexStream.receive",
    "DuplexStream._answer_ping",
    "WebSocketWriter.pong",
    "BodyWriter.finish",
    "RequestParser.feed",
    "FrameReader.feed",
    "Receiver.run",
    "Receiver._take_controls",
    "DeviceWriter.write_all",
    "control.upload_seen",
    "control.agent_payload",
    "control.bye_reason",
    "PeerInfo.mark_connected",
    "PeerInfo.mark_disconnected",
    "SessionLog.begin",
    "SessionLog.end",
    "RoundTrip.sample",
}

_of_mallory: Final = ContextVar("of_mallory", default=False)


class Step:
    """One function, method or property, and every place that has a name for it."""

    def __init__(self, owner: type | ModuleType, name: str) -> None:
        self._owner, self._name = owner, name
        self.title = f"{owner.__name__.rpartition('.')[2]}.{name}"
        self._found = inspect.getattr_static(owner, name)

    def _places(self) -> Iterator[Any]:
        yield self._owner
        if isinstance(self._owner, ModuleType):
            for name, module in list(sys.modules.items()):
                if name.startswith("tapotun_trio") and vars(module).get(self._name) is self._found:
                    yield module

    @contextmanager
    def broken(self, when: When, exc: Exception | None = None) -> Iterator[list[str]]:
        """Raise ``exc`` in mallory's tasks. Yields a list that is not empty once it did."""
        hits: list[str] = []

        def strike() -> None:
            if _of_mallory.get():
                hits.append(self.title)
                raise exc or RuntimeError(f"injected {when} {self.title}")

        found, instead = self._found, object()
        if isinstance(found, property):
            assert found.fget is not None
            instead = property(_striking(found.fget, when, strike))
        elif isinstance(found, classmethod | staticmethod):
            instead = type(found)(_striking(found.__func__, when, strike))
        else:
            instead = _striking(found, when, strike)
        patches = [patch.object(place, self._name, instead) for place in dict.fromkeys(self._places())]
        try:
            for it in patches:
                it.start()
            yield hits
        finally:
            for it in patches:
                it.stop()


def _striking(function: Callable[..., Any], when: When, strike: Callable[[], None]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def later(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                strike()
            result = await function(*args, **kwargs)
            strike()
            return result

        return later

    @wraps(function)
    def now(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            strike()
        result = function(*args, **kwargs)
        strike()
        return result

    return now


def steps_of(owners: Iterable[type | ModuleType], but: Collection[str]) -> list[Step]:
    """All functions, methods and properties of these, but for some."""
    found: list[Step] = []
    for owner in owners:
        for name, it in vars(owner).items():
            called = isinstance(it, FunctionType | classmethod | staticmethod | property)
            mine = not isinstance(owner, ModuleType) or getattr(it, "__module__", None) == owner.__name__
            step = Step(owner, name) if called and mine else None
            if step is not None and step.title not in but and (name == "__init__" or not name.startswith("__")):
                found.append(step)
    return found


# ------------------------------------------------------------------ what mallory does


async def over_http(siege: Siege) -> None:
    """A download, an upload with everything in it, and a download that replaces the first one."""
    first = await siege.connect(request("GET", "mallory", *extended("mallory")))
    await first.status()
    up = await siege.connect(request("PUT", "mallory", CHUNKED, "Expect: 100-continue", *extended("mallory")))
    await up.send(chunk(frame(UP) * 3), chunk(CONTROLS), b"0\r\n\r\n")
    while await up.status() == 100:
        pass
    second = await siege.connect(request("GET", "mallory", *extended("mallory")))
    await second.status()


async def as_a_base_client(siege: Siege) -> None:
    down = await siege.connect(request("GET", "mallory"))
    await down.status()
    up = await siege.connect(request("PUT", "mallory", CHUNKED), chunk(frame(UP)), b"0\r\n\r\n")
    await up.status()


async def over_a_websocket(siege: Siege) -> None:
    both = await siege.connect(request("GET", "mallory", *UPGRADE, *REST, *features()))
    await both.status()
    await both.send(masked(frame(UP)), masked(b"?", 0x9), masked(CONTROLS), masked(b"", 0x8))
    await both.rest()


async def refused(siege: Siege) -> None:
    for one in (
        request("GET", "wrong"),
        request("POST", "mallory", "Content-Length: 0"),
        request("GET", "mallory", *REST, *features()),  # a handshake of which a proxy left half away
        request("PUT", "mallory", CHUNKED, "x-tun-session: " + "0" * 32),
        b"nonsense\r\n\r\n",
    ):
        raw = await siege.connect(one)
        await raw.status()


SCENARIOS: Final[tuple[Scenario, ...]] = (over_http, as_a_base_client, over_a_websocket, refused)


def faults(siege: Siege, reason: str = "internal-error") -> int:
    return siege.refusals[reason] + siege.mallory.counters.ends[reason]


async def gone(siege: Siege, after: str) -> None:
    """Mallory goes, and nothing is left of its streams."""
    mallory = siege.mallory
    siege.withdraw()
    await until(lambda: mallory.state == "offline" and not mallory.downloads, f"no stream to be left after {after}")
    await until(lambda: open_fds() <= siege.fds, f"{open_fds()} descriptors to be {siege.fds} again after {after}")
    siege.hub.outbound.clear()


async def assert_well_again(siege: Siege, after: str) -> None:
    """Nothing is left of what went wrong; mallory connects, and packets cross both ways."""
    mallory = siege.mallory
    if after != "PeerInfo.mark_disconnected":  # which is what did not happen
        assert mallory.peer_info.connected_since is None, after
    down = await siege.download(*extended("mallory"))
    up = await siege.upload(*extended("mallory"))
    assert mallory.state == "connected", after
    await up.send(chunk(frame(UP)))
    assert await siege.hub.receive_packet() == UP, after
    siege.hub.send(DOWN)
    seen = b""
    with trio.fail_after(PATIENCE_S):
        while DOWN not in seen:
            seen += await down.exactly(1)
    await gone(siege, after)
    await siege.assert_honest_traffic()


@contextmanager
def marking() -> Iterator[None]:
    """Every connection that comes from here on is mallory's."""
    serve = acceptor.Acceptor.serve

    async def marked(self: acceptor.Acceptor, connection: sockets.Connection) -> None:
        _of_mallory.set(True)
        await serve(self, connection)

    with patch.object(acceptor.Acceptor, "serve", marked):
        yield


@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_step(when: When) -> None:
    reached: set[str] = set()
    async with besieged(2) as siege:
        with marking():
            for scenario, step in product(SCENARIOS, steps_of(STEPS_OF, NOT_STEPS)):
                before = faults(siege)
                with step.broken(when) as hits:
                    with trio.fail_after(PATIENCE_S):
                        await scenario(siege)
                    await gone(siege, step.title)
                    await siege.assert_honest_traffic()
                if hits:
                    reached.add(step.title)
                    assert faults(siege) > before, f"{step.title} was not counted"
                    await assert_well_again(siege, step.title)
                else:
                    assert faults(siege) == before
        told = [record for record in siege.log if record.levelno >= logging.ERROR]
        assert told
        assert all(record.exc_info for record in told)
        assert all(record.getMessage().startswith("internal error, ") for record in told)
        siege.log.clear()
    if when == "before":  # some never return: they end with an exception
        assert not REACHED - reached, sorted(REACHED - reached)


# ------------------------------------------------------------------ what a stranger with a good token did

HOSTILE: Final = table(
    "fields",
    ("not ASCII", ["Connection: \xff", "Upgrade: websocket"]),
    ("not ASCII, among others", ["Connection: Upgrade, \xe4", "Upgrade: websocket"]),
    ("not ASCII, twice", ["Connection: Upgrade", "Connection: \xff", "Upgrade: websocket"]),
    ("an upgrade that is not ASCII", ["Connection: Upgrade", "Upgrade: \xffwebsocket"]),
    ("an empty connection behind the right one", ["Connection: Upgrade", "Connection:", "Upgrade: websocket"]),
    ("an empty upgrade", ["Connection: Upgrade", "Upgrade: websocket", "Upgrade:"]),
    ("an empty version", ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version:"]),
)


@HOSTILE
async def test_a_malformed_handshake_is_a_400(fields: list[str]) -> None:
    async with besieged(2) as siege:
        for n in range(3):
            raw = await siege.connect(request("GET", "mallory", *REST, *fields, *features()))
            assert await raw.status() == 400
            raw.close()
            await until(lambda: siege.refusals["bad-request"] > n, "it to be counted")  # noqa: B023 - awaited here
        await siege.assert_honest_traffic()
        assert not siege.mallory.counters.ends
        await gone(siege, "the handshakes")
        await assert_well_again(siege, "the handshakes")


# ------------------------------------------------------------------ an answer where one still fits


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (server.TunnelServer, "_authenticate", 500),
        (session.ClientHello, "of", 500),
        (session.ClientParameters, "tun_conf", 500),
        (http_server.Exchange, "start_download", 500),
        (heads.RequestParser, "feed", 500),
        (client_address.ClientAddress, "client", 500),
        (session.Session, "download_began", 200),
        (sender.Sender, "serve", 200),
    ],
)
async def test_a_500_where_no_answer_had_begun(owner: type, name: str, said: int) -> None:
    async with besieged() as siege:
        with marking(), Step(owner, name).broken("before") as hits:
            raw = await siege.connect(request("GET", "mallory", *extended("mallory")))
            head = await raw.head()
            assert head.startswith(f"HTTP/1.1 {said} ".encode())
            assert b"HTTP/1.1" not in await raw.rest()
        assert hits
        raw.close()  # it is counted when the client has gone, or did not for a moment
        await until(lambda: faults(siege), "the bug to be counted")
        assert faults(siege) == len([it for it in siege.log if it.exc_info]) == 1
        siege.log.clear()
        await gone(siege, name)
        await assert_well_again(siege, name)


async def test_an_upload_that_a_bug_ends_is_answered_500() -> None:
    async with besieged() as siege:
        with marking(), Step(session.Session, "forward").broken("before"):
            up = await siege.connect(request("PUT", "mallory", CHUNKED), chunk(frame(UP)))
            assert await up.status() == 500
        assert siege.mallory.counters.ends == {"internal-error": 1}
        siege.log.clear()
        await assert_well_again(siege, "forward")


async def test_a_bug_that_comes_again_and_again_is_told_now_and_then() -> None:
    async with besieged() as siege:
        with marking(), Step(session.ClientHello, "of").broken("before"):
            for _ in range(100):
                raw = await siege.connect(request("GET", "mallory"))
                assert await raw.status() == 500
                raw.close()
        assert siege.refusals["internal-error"] == 100
        told = [it for it in siege.log if it.exc_info]
        assert 1 <= len(told) <= 20
        assert told[0].getMessage().startswith("internal error, request of 127.0.0.1:")
        siege.log.clear()


@pytest.mark.parametrize(
    "lacking",
    [MemoryError(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOBUFS, "No buffer space available")],
    ids=repr,
)
async def test_a_shortage_is_no_bug(lacking: Exception) -> None:
    """It is told in one line, counted, and answered 503; the client comes again. (The siege sees that no error is
    logged.)"""
    async with besieged() as siege:
        with marking(), Step(frames.FrameReader, "__init__").broken("before", lacking):
            up = await siege.connect(request("PUT", "mallory", CHUNKED), chunk(frame(UP)))
            assert await up.status() == 503
        [(reason, times)] = siege.mallory.counters.ends.items()
        assert reason in SHORTAGES
        assert times == 1
        warnings = [it.getMessage() for it in siege.log if it.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "upload from 127.0.0.1:" in warnings[0]
        await assert_well_again(siege, "a shortage")


# ------------------------------------------------------------------ outside of requests


@contextmanager
def breaking(owner: type, name: str, only: Callable[[Any], bool]) -> Iterator[list[str]]:
    """The method raises for objects of mallory's."""
    method, hits = getattr(owner, name), list[str]()

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if only(self):
            hits.append(name)
            raise RuntimeError(f"injected {name}")
        return method(self, *args, **kwargs)

    with patch.object(owner, name, broken):
        yield hits


TICKS: Final = table(
    "owner name of",
    ("session", session.Session, "tick", lambda siege, it: it is siege.mallory),
    ("sender", sender.Sender, "tick", lambda siege, it: it is siege.mallory.sender),
    ("outbox", tx_queue.TxQueue, "expire", lambda siege, it: it is siege.mallory.sender.tx_queue),
    ("upload", receiver.Receiver, "tick", lambda siege, it: it in siege.mallory.uploads),
    ("presence", info.PeerInfo, "tick", lambda siege, it: it is siege.mallory.peer_info),
)


@TICKS
async def test_a_bug_in_a_tick_ends_that_session(
    owner: type, name: str, of: Callable[[Siege, Any], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TICK_S", 0.02)
    async with besieged(2) as siege:
        await siege.download(*extended("mallory"))
        await siege.upload(*extended("mallory"))
        with breaking(owner, name, lambda it: of(siege, it)) as hits:
            await until(lambda: siege.mallory.state == "offline", "its end")
            assert hits
        await gone(siege, name)
        assert siege.mallory.counters.ends["internal-error"] >= 2  # the session, and its upload
        siege.log.clear()
        await assert_well_again(siege, f"the {name} of a session")
        siege.log.clear()


async def test_not_even_the_end_of_a_session_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_S", 0.02)
    async with besieged() as siege:
        await siege.download(*extended("mallory"))
        with breaking(session.Session, "tick", lambda it: it is siege.mallory):
            with breaking(session.Session, "fail", lambda it: it is siege.mallory) as hits:
                await until(lambda: hits, "the second bug")
                await siege.assert_honest_traffic()
        siege.log.clear()
        await gone(siege, "both")
        await assert_well_again(siege, "both")
        siege.log.clear()


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("who", ["the device", "another client"])
async def test_a_bug_in_sending_ends_whose_stream_it_is(
    who: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the device's reader, which sends for all, nor the client that the packet is from."""
    monkeypatch.setattr(server, "TICK_S", 0.02)
    owner, name = (writer.BodyWriter, "send") if streaming else (tx_queue.TxQueue, "put")
    async with besieged(2) as siege:
        mallory = siege.mallory
        if streaming:
            down = await siege.download(*extended("mallory"))
        else:  # as at first: it was never there, and packets for it wait in its outbox
            assert mallory.state == "offline"
        stream = mallory.sender.stream
        own = {id(stream.writer if stream else None), id(mallory.sender.tx_queue)}
        with breaking(owner, name, lambda it: id(it) in own) as hits:
            if who == "the device":
                siege.hub.send(DOWN)
            else:
                siege.honest["honest0"].send(ipv4("10.10.0.3", ME, b"across"))
            await until(lambda: hits, "the bug")
            await until(lambda: mallory.counters.ends["internal-error"], "the bug to be counted")
            if streaming:
                await down.rest()
            await siege.assert_honest_traffic()
        assert any(it.exc_info for it in siege.log)
        siege.log.clear()
        await assert_well_again(siege, name)


async def test_a_bug_in_the_router_costs_a_packet() -> None:
    async with besieged(2) as siege:
        with breaking(router.Router, "from_device", lambda it: True) as hits:
            siege.hub.send(ipv4(HUB, "10.10.0.77"))
            await until(lambda: siege.server.device_drops["internal-error"], "the packet to be counted")
            await siege.assert_honest_traffic()  # their verdicts are known
        assert hits
        siege.log.clear()


async def test_no_memory_for_a_verdict_costs_a_packet() -> None:
    """It is counted as what it is, and no bug. (The siege sees that no error is logged.)"""
    async with besieged(2) as siege:
        with patch.object(router.Router, "from_device", side_effect=MemoryError):
            siege.hub.send(ipv4(HUB, "10.10.0.77"))
            await until(lambda: siege.server.device_drops["no-memory"], "the packet to be counted")
            await siege.assert_honest_traffic()
        assert not siege.server.device_drops["internal-error"]


async def test_a_bug_in_accepting_is_that_connections() -> None:
    async with besieged() as siege:
        with patch("tapotun_trio.host.net.listen.peer_name", side_effect=RuntimeError("injected")) as struck:
            raw = await siege.connect(request("GET", "mallory"))
            assert await raw.status() == 0
            assert struck.call_count == 1
        assert siege.refusals["internal-error"] == 1
        siege.log.clear()
        await assert_well_again(siege, "accepting")


async def test_a_device_that_is_gone_ends_the_interface() -> None:
    """Whoever meets it first, here a request."""
    port, host = free_port(), MemoryHost()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - what is raised, and not where
        async with running(host, server_config(port, allowed("mallory", ME))):
            device_ = await host.device("hub")
            with patch.object(type(device_), "write_burst", side_effect=HostError("hub is gone")):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(request("PUT", "mallory", CHUNKED) + chunk(frame(UP)))
                    with trio.fail_after(PATIENCE_S):
                        await trio.sleep_forever()
    assert {type(it) for it in leaves(caught.value)} == {HostError}
