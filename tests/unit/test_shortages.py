"""Every call of a client to its machine fails for a while, as where something is short: at the first attempt, at a
rotation, at a reconnect. The interface lives, what runs goes on, the next attempt works; it is counted, told once."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv4Interface
from mmap import mmap
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import pytest
import trio
import trio.testing

from tapotun_trio import errors
from tapotun_trio.client import client, requests
from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.config.model import ServerConfig, TcpAddress, TlsConfig, TransportChoice, Url
from tapotun_trio.datapath.counters import Counters
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.tx_queue import TxQueue
from tapotun_trio.errors import (
    EndReason,
    HostError,
    InternalError,
    PeerError,
    ShortageError,
    failure_of,
    passing_shortages,
    shortage_of,
)
from tapotun_trio.host.interfaces import Change, InterfaceChange
from tapotun_trio.host.items import Address, Item, ItemsRefused, RouteKey
from tapotun_trio.host.net import dial, resolver, tls
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.host.net.tls import TlsClient
from tapotun_trio.host.netlink.rewatch import RETRY_S
from tapotun_trio.http.client import read_response, send_request
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.server import handlers
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire import frames
from tapotun_trio.wire.frames import FrameReader

from ..fakes import MemoryDevice, MemoryHost, MemoryNetwork
from ..packets import frame, ipv4
from ..tables import table
from .hostile import assert_quiet, logged, open_fds, until
from .support import allowed, client_config, free_port, server_config

UP: Final = ipv4("10.10.0.2", "10.10.0.1", b"up")
DOWN: Final = ipv4("10.10.0.1", "10.10.0.2", b"down")


class Fault:
    """While it is ``armed``, a call raises; ``hits`` counts how often."""

    def __init__(self, make: Callable[[], Exception]) -> None:
        self.make = make
        self.armed = False
        self.hits = 0

    def check(self) -> None:
        if self.armed:
            self.hits += 1
            raise self.make()

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return real(*args, **kwargs)

        return call


def lacking(number: int) -> Callable[[], OSError]:
    return lambda: OSError(number, os.strerror(number))


Inject = Callable[[pytest.MonkeyPatch, Fault], None]


def at_socket(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    made = SimpleNamespace(**{name: getattr(socket, name) for name in dir(socket)})
    made.socket = fault.before(socket.socket)
    patch.setattr(dial, "socket", made)


def at_getaddrinfo(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    patch.setattr(resolver, "lookup", fault.before(resolver.lookup))


def at_connect(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    patch.setattr(dial, "connect_socket", fault.before(dial.connect_socket))


def at_thread(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    """As trio starts its own: where none is left over from before."""
    real = trio.to_thread.run_sync

    async def run_sync(*args: Any, **kwargs: Any) -> Any:
        fault.check()
        return await real(*args, **kwargs)

    patch.setattr("trio._socket.trio.to_thread.run_sync", run_sync)


def at_buffer(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    """The client's: the server of this process has some, too."""
    patch.setattr(client, "receive_buffer", _short_of_pages(fault, frames.receive_buffer))


def _short_of_pages(fault: Fault, real: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in which mmap fails."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frames, "mmap", fault.before(mmap))
            return real(*args, **kwargs)

    return call


def at_response(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    patch.setattr(requests, "read_response", fault.before(read_response))


def at_connection(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    patch.setattr(dial, "Connection", fault.before(Connection))


def at_epoll(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    patch.setattr(requests, "send_request", _waiting_first(fault))


def _waiting_first(fault: Fault) -> Callable[..., Any]:
    """A request before which the connection was waited for, with an epoll that takes nothing."""
    real, wait = send_request, trio.lowlevel.wait_writable

    async def send(connection: Connection, *args: Any) -> None:
        if fault.armed:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trio.lowlevel, "wait_writable", fault.before(wait))
                await connection.wait_writable()
        await real(connection, *args)

    return send


NO_THREAD: Final = RuntimeError("can't start new thread")
EAI_MEMORY: Final = socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure")

FAULTS: Final[dict[str, tuple[Inject, Callable[[], Exception], str]]] = {
    "socket, no descriptor": (at_socket, lacking(errno.EMFILE), "no-descriptors"),
    "socket, none on the machine": (at_socket, lacking(errno.ENFILE), "no-descriptors"),
    "socket, no memory": (at_socket, lacking(errno.ENOMEM), "no-memory"),
    "socket, no buffer": (at_socket, lacking(errno.ENOBUFS), "no-memory"),
    "socket, no such family": (at_socket, lacking(errno.EAFNOSUPPORT), "no-address-family"),
    "resolver, no descriptor": (at_getaddrinfo, lacking(errno.EMFILE), "no-descriptors"),
    "resolver, no memory": (at_getaddrinfo, lambda: EAI_MEMORY, "no-memory"),
    "resolver, another error": (at_getaddrinfo, lacking(errno.EIO), "dns"),
    "resolver, try again": (at_getaddrinfo, lambda: socket.gaierror(socket.EAI_AGAIN, "later"), "dns"),
    "resolver, no thread": (at_getaddrinfo, lambda: NO_THREAD, "no-thread"),
    "thread": (at_thread, lambda: NO_THREAD, "no-thread"),
    "connect, no memory": (at_connect, lacking(errno.ENOBUFS), "no-memory"),
    "connect, no watch": (at_connect, lacking(errno.ENOSPC), "no-space"),
    "connect, no memory of ours": (at_connect, MemoryError, "no-memory"),
    "connection, no memory of ours": (at_connection, MemoryError, "no-memory"),
    "wait, no watch": (at_epoll, lacking(errno.ENOSPC), "no-space"),
    "a stream's buffer": (at_buffer, lacking(errno.ENOMEM), "no-memory"),
    "a head's buffer": (at_response, MemoryError, "no-memory"),
}


class World:
    """A server and a client on loopback, and what stands of the client."""

    def __init__(self, host: MemoryHost, record: Record, server: Record) -> None:
        self.host = host
        self._record = record
        self._server = server

    @property
    def server(self) -> TunnelServer:
        assert isinstance(self._server.tunnel, TunnelServer)
        return self._server.tunnel

    @property
    def client(self) -> TunnelClient:
        assert isinstance(self._record.tunnel, TunnelClient)
        return self._record.tunnel

    async def passes(self) -> None:
        """Packets pass both ways."""
        hub, a = await self.host.device("hub"), await self.host.device("a")
        for source, sink, packet in ((a, hub, UP), (hub, a, DOWN)):
            sink.outbound.clear()
            with trio.fail_after(20):
                while not any(it.endswith(packet) for it in sink.outbound):
                    source.send(packet)
                    await trio.sleep(0.01)


@asynccontextmanager
async def world(rotate_s: tuple[float, float], transport: TransportChoice = "http") -> AsyncIterator[World]:
    port = free_port()
    host = MemoryHost()
    server = server_config(port, allowed("a", "10.10.0.2"))
    url = Url("http", "localhost", port, "/ip")
    config = replace(client_config("a", port), rotate_s=rotate_s, server=url, transport=transport)
    record, server_record = Record(config), Record(server)
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        await nursery.start(run_interface, server, host, listeners, server_record)
        await nursery.start(run_interface, config, host, listeners, record)
        yield World(host, record, server_record)
        nursery.cancel_scope.cancel()
    assert host.left_over == []
    assert host.devices == {}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, or nearly."""
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.02)


def warnings(log: Sequence[logging.LogRecord], of: str) -> list[str]:
    """About a shortage, by one interface."""
    found = [it for it in log if it.levelno >= logging.WARNING and getattr(it, "interface", None) == of]
    return [it.getMessage() for it in found]


def assert_told(log: Sequence[logging.LogRecord], client: TunnelClient, reason: str) -> None:
    """Counted, and in one line."""
    assert client.counters.ends[reason] >= 2
    assert_quiet(list(log))
    lines = warnings(log, "a")
    if reason in errors.SHORTAGES:
        assert len(lines) == 1, lines
        assert "trying again" in lines[0]
    else:
        assert 1 <= len(lines) <= 2, lines  # of either stream


@pytest.mark.parametrize("case", FAULTS)
async def test_at_the_first_attempt(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inject, make, reason = FAULTS[case]
    fault, before = Fault(make), open_fds()
    inject(monkeypatch, fault)
    fault.armed = True
    with logged() as log:
        async with world((300, 300)) as it:
            await until(lambda: fault.hits >= 3, "attempts")
            fault.armed = False
            await it.passes()
            assert_told(log, it.client, reason)
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


# Without a name server a client goes on with the address that worked last: test_host_dial.
AFTER_THE_FIRST: Final = [case for case, (_, _, reason) in FAULTS.items() if reason != "dns"]


@pytest.mark.parametrize("case", AFTER_THE_FIRST)
async def test_at_a_rotation(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams that are there go on, and packets pass over them all the time."""
    inject, make, reason = FAULTS[case]
    fault, before = Fault(make), open_fds()
    inject(monkeypatch, fault)
    with logged() as log:
        async with world((0.3, 0.3)) as it:
            await it.passes()
            tun, standing, peer = it.host.devices["a"], list(it.host.standing["a"]), it.client
            fault.armed = True
            await until(lambda: fault.hits >= 4, "attempts")
            old = peer.download
            await it.passes()
            assert peer.download is old
            assert peer.state == "connected"
            assert (it.host.devices["a"], it.host.standing["a"]) == (tun, standing)
            hits = fault.hits
            await until(lambda: fault.hits > hits, "another attempt")
            assert_told(log, peer, reason)
            fault.armed = False
            await until(lambda: peer.download is not old, "the next download")
            await it.passes()
            assert (it.host.devices["a"], it.client) == (tun, peer)
            assert peer.peer_info.reconnects == 0
            assert not any("summary" in line for line in warnings(log, "a"))
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


@pytest.mark.parametrize("case", AFTER_THE_FIRST)
async def test_at_a_reconnect(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, and the interface with its address stays: its traffic goes nowhere else."""
    inject, make, reason = FAULTS[case]
    fault, before = Fault(make), open_fds()
    inject(monkeypatch, fault)
    with logged() as log:
        async with world((300, 300)) as it:
            await it.passes()
            tun, standing, peer = it.host.devices["a"], list(it.host.standing["a"]), it.client
            fault.armed = True
            for stream in (peer.download, peer.upload):
                assert stream is not None
                stream.end(PeerError("the test ends it", reason=EndReason.CLOSED, key="test"))
            log.clear()
            await until(lambda: fault.hits >= 3, "attempts")
            assert (it.host.devices["a"], it.host.standing["a"]) == (tun, standing)
            of_shortage = [line for line in log if "the test ends it" not in line.getMessage()]
            await until(lambda: peer.counters.ends[reason] >= 2, "its count")
            assert_told(of_shortage, peer, reason)
            fault.armed = False
            await it.passes()
            assert (it.host.devices["a"], it.client) == (tun, peer)
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


async def test_no_option_of_a_socket_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(socket.socket):
        def setsockopt(self, *_: Any) -> NoReturn:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    made = SimpleNamespace(**{name: getattr(socket, name) for name in dir(socket)})
    made.socket = Strict
    monkeypatch.setattr(dial, "socket", made)
    with logged() as log:
        async with world((300, 300)) as it:
            await it.passes()
        assert_quiet(log)
        assert warnings(log, "a") == []


async def test_one_refused_option_keeps_no_other_from_being_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(socket.socket):
        def setsockopt(self, level: int, option: int, *rest: Any) -> None:
            if option == socket.TCP_NODELAY:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            super().setsockopt(level, option, *rest)

    with Strict() as sock:
        Connection(sock, "x")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


# ------------------------------------------------------------------ names with addresses of both families


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Iterator[int]:
    """Any name has these addresses. Somebody listens on the IPv4 loopback, at the port that is yielded."""

    def lookup(host: str, port: int) -> list[resolver.Address]:
        return [(socket.AF_INET6, (it, port, 0, 0)) if ":" in it else (socket.AF_INET, (it, port)) for it in addresses]

    monkeypatch.setattr(resolver, "lookup", lookup)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def without(monkeypatch: pytest.MonkeyPatch, families: dict[int, int]) -> None:
    """Sockets of these families cannot be had, for these errors."""

    def make(family: int, *args: Any) -> socket.socket:
        if family in families:
            raise OSError(families[family], os.strerror(families[family]))
        return socket.socket(family, *args)

    made = SimpleNamespace(**{name: getattr(socket, name) for name in dir(socket)})
    made.socket = make
    monkeypatch.setattr(dial, "socket", made)


@pytest.mark.parametrize("addresses", [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("::1", "::2", "127.0.0.1")])
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EMFILE, errno.EPERM, errno.EACCES])
async def test_the_other_family_is_tried(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], number: int
) -> None:
    without(monkeypatch, {socket.AF_INET6: number})
    with resolving(monkeypatch, *addresses) as port:
        connection = await dial.connect("server.test", port)
        assert connection.remote_address == "127.0.0.1"
        connection.close()


async def refusal(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> PeerError:
    with resolving(monkeypatch, *addresses) as port:
        pass  # nobody listens there any more
    with pytest.raises(PeerError) as caught:
        await dial.connect("server.test", port)
    return caught.value


async def test_a_family_that_is_not_there_is_not_told_where_the_other_one_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, {socket.AF_INET6: errno.EAFNOSUPPORT})
    failure = await refusal(monkeypatch, "::1", "127.0.0.1")
    assert failure.reason == "refused"
    assert str(failure).endswith(": Connection refused")


async def test_only_a_family_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, {socket.AF_INET6: errno.EAFNOSUPPORT})
    failure = await refusal(monkeypatch, "::1")
    assert isinstance(failure, ShortageError)
    assert failure.reason == "no-address-family"


async def test_the_order_of_the_addresses_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cause has one text and one key, whichever address a resolver names first, or fails first."""
    without(monkeypatch, {socket.AF_INET6: errno.ENETUNREACH})
    texts = {
        (str(failure).partition(": ")[2], failure.key)
        for addresses in (("::1", "127.0.0.1"), ("127.0.0.1", "::1"))
        for failure in [await refusal(monkeypatch, *addresses)]
    }
    assert len(texts) == 1
    other = await refusal(monkeypatch, "127.0.0.2", "::2")
    assert {other.key} == {key for _, key in texts}


# ------------------------------------------------------------------ TLS


@asynccontextmanager
async def dialled() -> AsyncIterator[Connection]:
    near, far = socket.socketpair()
    with far:
        connection = Connection(near, "server")
        try:
            yield connection
        finally:
            connection.close()


@table(
    "error",
    ("no memory of ours", MemoryError()),
    ("no memory", OSError(errno.ENOMEM, "Cannot allocate memory")),
)
async def test_tls_without_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fault = Fault(lambda: error)
    fault.armed = True
    before = open_fds()
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", fault.before(ssl.SSLContext.wrap_socket))
    async with dialled() as connection:
        with pytest.raises((ShortageError, MemoryError)) as caught:
            await TlsClient(TlsConfig(insecure=True)).handshake(connection, "server")
        failure = failure_of(caught.value, "cannot open a stream")
        assert failure.reason == "no-memory"
    assert open_fds() == before


async def test_an_authority_that_could_not_be_looked_up_is_no_untrusted_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenSSL looks into the directory of certificates within the handshake, and tells nobody that it could not."""
    unknown = ssl.SSLCertVerificationError(1, "certificate verify failed")
    unknown.verify_code, unknown.verify_message = 20, "unable to get local issuer certificate"
    fault = Fault(lambda: unknown)
    fault.armed = True
    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", fault.before(ssl.SSLSocket.do_handshake))
    client = TlsClient(TlsConfig())
    for number, reason in ((errno.EMFILE, "no-descriptors"), (0, "tls")):
        lacks = None if not number else shortage_of(OSError(number, ""), "x")
        monkeypatch.setattr(tls, "no_descriptor_left", lambda _, lacks=lacks: lacks)
        async with dialled() as connection:
            with pytest.raises(PeerError) as caught:
                await client.handshake(connection, "server")
        assert caught.value.reason == reason


def test_what_the_system_trusts_is_not_lost_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ShortageError, match="cannot read what this system trusts"):
            TlsClient(TlsConfig())
    TlsClient(TlsConfig())


@pytest.mark.parametrize("config", [TlsConfig(ca_file="/dev/null"), TlsConfig(cert_file="/dev/null")])
def test_files_of_tls(monkeypatch: pytest.MonkeyPatch, config: TlsConfig) -> None:

    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    if config.ca_file is None:
        TlsClient(TlsConfig())  # what the system trusts is read first
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ShortageError, match="LimitNOFILE="):
        TlsClient(config)


# ------------------------------------------------------------------ the machine's own network


class ShortHost(MemoryHost):
    """While ``fault`` is armed, watches cannot be opened, and what is asked of the kernel fails, half done."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.opened: Counter[str] = Counter()

    @asynccontextmanager
    async def open_changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        self.fault.check()
        async with super().open_changes() as changes:
            self.opened["changes"] += 1
            yield changes

    @asynccontextmanager
    async def open_interface(
        self, index: int, is_route: Callable[[RouteKey], bool]
    ) -> AsyncIterator[AsyncIterator[InterfaceChange]]:
        self.fault.check()
        async with super().open_interface(index, is_route) as changes:
            self.opened["link"] += 1
            yield changes

    @asynccontextmanager
    async def open_network(self) -> AsyncIterator[MemoryNetwork]:
        yield ShortNetwork(self)


class ShortNetwork(MemoryNetwork):
    def __init__(self, host: ShortHost) -> None:
        super().__init__(host)
        self._fault = host.fault

    async def add(self, name: str, items: Sequence[Item]) -> None:
        with passing_shortages("the kernel's netlink failed"):
            await super().add(name, items[:1])
            self._fault.check()
            await super().add(name, items)

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        with passing_shortages("the kernel's netlink failed"):
            await super().remove(name, items)
            self._fault.check()


async def test_watches_are_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that cannot watch its machine's addresses and its own link, for a while."""
    monkeypatch.setattr("tapotun_trio.host.netlink.rewatch.RETRY_S", (0.01, 0.02))
    assert RETRY_S[0] >= 1
    fault = Fault(lambda: HostError("cannot watch: refused"))
    host, port = ShortHost(fault), free_port()
    fault.armed = True
    with logged() as log:
        async with open_listeners() as listeners, trio.open_nursery() as nursery:
            await nursery.start(run_interface, client_config("a", port), host, listeners)
            await until(lambda: fault.hits >= 3, "attempts")
            fault.armed = False
            await until(lambda: host.opened["changes"] == 1, "a watch")
            nursery.cancel_scope.cancel()
    assert_quiet(log)
    assert warnings(log, "a").count("cannot watch: refused; a lost path will be noticed later, by its silence") == 1


async def test_an_address_that_changes_while_the_kernel_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one is not to be had, nor is the way back at first. In the end one of them stands, whole."""
    monkeypatch.setattr("tapotun_trio.netconf.reconciler.AGAIN_S", (0.01, 0.02))
    fault = Fault(lacking(errno.ENOBUFS))
    host, port = ShortHost(fault), free_port()
    config = replace(client_config("a", port), rotate_s=(300, 300))
    first = server_config(port, allowed("a", "10.10.0.2"))
    record = Record(config)
    with logged() as log:
        async with open_listeners() as listeners, trio.open_nursery() as nursery:
            server = Record(first)
            await nursery.start(run_interface, first, host, listeners, server)
            await nursery.start(run_interface, config, host, listeners, record)
            it = World(host, record, server)
            await it.passes()
            device = host.devices["a"]
            fault.armed = True
            it.server.reconfigure(replace(first, clients=(allowed("a", "10.10.0.7"),)))
            await until(lambda: fault.hits >= 4, "attempts")
            assert host.devices["a"] is device
            fault.armed = False
            wanted = [Address(IPv4Interface("10.10.0.7/24"))]
            await until(lambda: host.standing["a"] == wanted, "the new address")
            assert host.devices["a"] is device
            assert it.client.counters.ends["no-memory"]
            nursery.cancel_scope.cancel()
    assert_quiet(log)
    assert len(warnings(log, "a")) == 1


# ------------------------------------------------------------------ a server, and a start


async def test_a_server_that_cannot_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once, counted at its address; the streams that are there go on, and who waits is let in later."""
    fault, before = Fault(lacking(errno.EMFILE)), open_fds()

    class Short(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            fault.check()
            return super().accept()

    monkeypatch.setattr("tapotun_trio.host.net.listen.socket.socket", Short)
    with logged() as log:
        async with world((300, 300)) as it:
            await it.passes()
            (endpoint,) = it.server.endpoints
            fault.armed = True
            port = int(endpoint.listener.name.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
                await until(lambda: fault.hits >= 3, "attempts")
                await it.passes()
                assert endpoint.refusals["no-descriptors"] >= 3
                fault.armed = False
                await visitor.send_all(b"GET /ip HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await visitor.receive_some()).startswith(b"HTTP/1.1 403 ")
            await it.passes()
    assert_quiet(log)
    lines = [r.getMessage() for r in log if r.levelno >= logging.WARNING and "cannot accept on" in r.getMessage()]
    assert len(lines) == 1
    assert "RLIMIT_NOFILE" in lines[0]
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_a_server_without_memory_for_an_upload(
    monkeypatch: pytest.MonkeyPatch, transport: TransportChoice
) -> None:
    """It ends that upload, with its reason, at that client; everybody else's goes on."""
    fault, before = Fault(lacking(errno.ENOMEM)), open_fds()
    monkeypatch.setattr(handlers, "FrameReader", _short_of_pages(fault, FrameReader))
    with logged() as log:
        async with world((300, 300), transport=transport) as it:
            await it.passes()
            hub, (session,) = it.host.devices["hub"], it.server.sessions
            fault.armed = True
            stream = it.client.upload or it.client.download
            assert stream is not None
            stream.end(PeerError("the test ends it", reason=EndReason.CLOSED, key="test"))
            await until(lambda: session.counters.ends["no-memory"] >= 2, "attempts")
            fault.armed = False
            await it.passes()
            assert it.host.devices["hub"] is hub
    assert_quiet(log)
    lines = [r for r in log if r.levelno == logging.WARNING and "Cannot allocate memory" in r.getMessage()]
    assert 1 <= len(lines) <= 20, lines
    await until(lambda: open_fds() <= before, "the descriptors to be closed")


async def test_a_server_that_cannot_listen_at_first_starts_in_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """What passes is no reason to end the process; what does not pass is."""
    host, config = MemoryHost(), server_config(free_port(), allowed("a", "10.10.0.2"))
    fault = Fault(lacking(errno.ENFILE))
    monkeypatch.setattr("tapotun_trio.host.net.listen.socket.socket", fault.before(socket.socket))
    fault.armed = True
    with logged() as log:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_interfaces, (config,), host)
            await trio.sleep(10)
            assert fault.hits >= 3
            fault.armed = False
            await trio.sleep(60)
            assert list(host.devices) == ["hub"]
            nursery.cancel_scope.cancel()
    assert not any(record.exc_info for record in log)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other: ServerConfig = replace(config, listen=(TcpAddress("127.0.0.1", taken.getsockname()[1]),))
        with pytest.raises(ExceptionGroup) as caught:
            await run_interfaces((other,), host)
    assert caught.group_contains(HostError)
    assert not caught.group_contains(ShortageError)


# ------------------------------------------------------------------ packets


@pytest.mark.parametrize("where", ["device", "writer"])
async def test_packets_without_memory_are_lost_and_no_interface(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Those of the moment; the next ones pass again."""
    fault = Fault(MemoryError)
    if where == "device":
        monkeypatch.setattr(MemoryDevice, "read_burst", fault.before(MemoryDevice.read_burst))
    else:
        monkeypatch.setattr(BodyWriter, "send", fault.before(BodyWriter.send))
    with logged() as log:
        async with world((300, 300)) as it:
            await it.passes()
            before, devices = it.client, dict(it.host.devices)
            fault.armed = True
            for _ in range(3):
                it.host.devices["a"].send(UP)
                it.host.devices["hub"].send(DOWN)
                await trio.sleep(0.05)
            await until(lambda: fault.hits >= 2, "packets")
            fault.armed = False
            await it.passes()
            assert (it.client, it.host.devices) == (before, devices)
    assert_quiet(log)


async def test_packets_that_cannot_be_queued_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    fault, counters = Fault(MemoryError), Counters()
    monkeypatch.setattr(TxQueue, "put", fault.before(TxQueue.put))
    fault.armed = True
    Sender(counters).send(frame(UP), 1)
    assert counters.drops == {"no-memory": 1}


# ------------------------------------------------------------------ the one place that knows


@table(
    "exc reason",
    ("no descriptor", OSError(errno.EMFILE, "x"), "no-descriptors"),
    ("none on the machine", OSError(errno.ENFILE, "x"), "no-descriptors"),
    ("no memory", OSError(errno.ENOMEM, "x"), "no-memory"),
    ("no memory of ours", MemoryError(), "no-memory"),
    ("no buffer", OSError(errno.ENOBUFS, "x"), "no-memory"),
    ("no watch", OSError(errno.ENOSPC, "x"), "no-space"),
    ("no family", OSError(errno.EAFNOSUPPORT, "x"), "no-address-family"),
    ("no thread", RuntimeError("can't start new thread"), "no-thread"),
    ("another error", OSError(errno.EBADF, "x"), None),
    ("a bug", RuntimeError("boom"), None),
    ("a peer", PeerError("x", reason=EndReason.CLOSED), None),
    ("OpenSSL's own number", ssl.SSLError(errno.ENOMEM, "x"), None),
)
def test_what_is_a_shortage(exc: Exception, reason: str | None) -> None:
    if isinstance(exc, ssl.SSLError):
        exc.library = "SSL"
    found = shortage_of(exc, "cannot do it")
    assert (found and found.reason) == reason
    if found is not None:
        assert str(found).startswith("cannot do it: ")
        assert "\n" not in str(found)
        assert isinstance(found, HostError)
        assert isinstance(found, PeerError)
        with pytest.raises(ShortageError), passing_shortages("cannot do it"):
            raise exc
    else:
        with pytest.raises(type(exc)) as caught, passing_shortages("cannot do it"):
            raise exc
        assert caught.value is exc


def test_the_limit_is_named() -> None:
    found = shortage_of(OSError(errno.EMFILE, ""), "cannot connect")
    assert found is not None
    assert str(found).startswith("cannot connect: Too many open files; RLIMIT_NOFILE is ")
    assert str(found).endswith(": raise LimitNOFILE= of the service, or ulimit -n")


def test_a_group_fails_as_its_first_member_unless_a_bug_is_in_it() -> None:
    peer, short, bug = PeerError("x", reason=EndReason.CLOSED), MemoryError(), ValueError("boom")
    assert failure_of(ExceptionGroup("", [peer, ExceptionGroup("", [short])]), "x") is peer
    assert failure_of(ExceptionGroup("", [ExceptionGroup("", [short])]), "x").reason == "no-memory"
    for exc in (bug, ExceptionGroup("", [peer, bug])):
        failure = failure_of(exc, "x")
        assert isinstance(failure, InternalError)
        assert failure.__cause__ is bug
    gone = HostError("the device is gone")
    beyond: list[Exception] = [gone, ExceptionGroup("", [peer, bug, gone])]
    for it in beyond:
        with pytest.raises(type(it)) as caught:
            failure_of(it, "x")
        assert caught.value is it


def test_refused_items_of_our_own_are_a_shortage_if_the_kernel_was_short() -> None:
    item, short = Address(IPv4Interface("10.10.0.2/24")), shortage_of(OSError(errno.ENOBUFS, ""), "address")
    assert ItemsRefused({item: "x"}, short).shortage is short
    assert ItemsRefused({item: "x"}).shortage is None
