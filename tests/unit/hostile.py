"""A server under attack: our interfaces on loopback with the host in memory, honest clients whose traffic is checked,
and raw connections on which a test sends what it likes.

With the fixture `each_plane` a test runs without a plane, and with the native one, which then has the streams of all.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import socket
import struct
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from unittest.mock import patch

import trio

from tapotun_trio.client import client as client_module
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.config.model import ServerConfig
from tapotun_trio.datapath.plane import VARIABLE, current_plane
from tapotun_trio.server import server as server_module
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.server.session import Session
from tapotun_trio.wire import control
from tapotun_trio.wire.frames import BASE_PING

from ..fakes import MemoryDevice, MemoryHost
from ..packets import ip
from ..planes import SocketDevice
from ..twins import FAMILIES, twin
from .support import allowed, client_config, free_port, running, server_config

HUB: Final = "10.10.0.1"
PATIENCE_S: Final = 10.0  # for what takes milliseconds on a machine that is not busy
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def session_id(name: str) -> str:
    """A session id, the same for the same name."""
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def request(method: str, token: str | None, *fields: str, version: str = "1.1") -> bytes:
    """A request head with this token and these further header lines."""
    lines = [f"{method} /ip HTTP/{version}", "Host: h"]
    if token is not None:
        lines.append(f"x-api-key: {token}")
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1")


def extended(name: str) -> tuple[str, str]:
    """The header lines with which a client of ours asks for control frames."""
    return "x-tun-features: ctl", f"x-tun-session: {session_id(name)}"


CHUNKED: Final = "Transfer-Encoding: chunked"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def until(true: Callable[[], object], what: str) -> None:
    """Poll until the condition is true."""
    with trio.move_on_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for tells no event
            await trio.sleep(0.005)
        return
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")


def open_fds() -> int:
    """How many descriptors this process has open, without the one that counts them."""
    return len(os.listdir("/proc/self/fd")) - 1


class Raw:
    """One connection, driven byte by byte."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._read = b""

    async def send(self, *parts: bytes) -> None:
        """Send it all. What is sent to a server that has closed already goes nowhere."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(b"".join(parts))

    async def head(self) -> bytes:
        """What the server says up to the next empty line, or to the end of the connection."""
        with trio.fail_after(PATIENCE_S):
            while (end := self._read.find(b"\r\n\r\n")) < 0:
                if not (more := await self.receive()):
                    break
                self._read += more
        head, self._read = self._read[: end + 4], self._read[end + 4 :]
        return head

    async def status(self) -> int:
        """The status of the next answer; 0 if the connection ends without one."""
        head = await self.head()
        return int(head.split(b" ")[1]) if head else 0

    async def exactly(self, n: int) -> bytes:
        with trio.fail_after(PATIENCE_S):
            while len(self._read) < n:
                more = await self.receive()
                assert more, f"the connection ended after {self._read!r}"
                self._read += more
        data, self._read = self._read[:n], self._read[n:]
        return data

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, be it a reset."""
        data, self._read = self._read, b""
        with trio.fail_after(PATIENCE_S):
            while more := await self.receive():
                data += more
        return data

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:
            return b""

    def reset(self) -> None:
        """Go away with a RST."""
        if self.stream.socket.fileno() >= 0:
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.close()

    def close(self) -> None:
        """Go away; with unread bytes that is a RST too. May be called again."""
        self.stream.socket.close()

    def shut(self) -> None:
        """Send nothing more, but go on reading."""
        self.stream.socket.shutdown(socket.SHUT_WR)


@dataclass
class Siege:
    """What a test sees of it. ``mallory`` has a token and 10.10.0.2; the honest ones have 10.10.0.3 and up. All have
    the twins of these in IPv6, too."""

    port: int
    server: TunnelServer
    hub: MemoryDevice
    honest: dict[str, MemoryDevice]
    log: list[logging.LogRecord]
    fds: int  # when everybody honest was connected
    _connections: list[Raw] = field(default_factory=list)
    _round: int = 0

    @property
    def refusals(self) -> Counter[str]:
        """At the interface and in front of it."""
        return self.server.refusals + self.server.endpoints[0].refusals

    @property
    def mallory(self) -> Session:
        return self.session("mallory")

    def session(self, name: str) -> Session:
        return next(s for s in self.server.sessions if s.client.name == name)

    async def connect(self, *parts: bytes, receive_buffer_bytes: int | None = None) -> Raw:
        """A connection on which these bytes were sent. Closed at the end of the test."""
        sock = trio.socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            await sock.connect(("127.0.0.1", self.port))
        except BaseException:
            sock.close()
            raise
        raw = Raw(trio.SocketStream(sock))
        self._connections.append(raw)
        await raw.send(*parts)
        return raw

    async def download(self, *fields: str, receive_buffer_bytes: int | None = None) -> Raw:
        """A GET of mallory's that was answered with 200 and is what its frames are sent on."""
        before = self.mallory.sender.stream
        raw = await self.connect(request("GET", "mallory", *fields), receive_buffer_bytes=receive_buffer_bytes)
        assert await raw.status() == 200
        await until(lambda: self.mallory.sender.stream not in (None, before), "the download")
        if not any(control.FEATURES_HEADER in field for field in fields):  # a base client: a ping comes at once
            ping = b"%x\r\n%s\r\n" % (len(BASE_PING), BASE_PING)
            assert await raw.exactly(len(ping)) == ping
        return raw

    async def upload(self, *fields: str) -> Raw:
        """A chunked PUT of mallory's, of whose body nothing was sent yet."""
        before = len(self.mallory.uploads)
        raw = await self.connect(request("PUT", "mallory", CHUNKED, *fields))
        await until(lambda: len(self.mallory.uploads) > before, "the upload")
        return raw

    async def upload_of(self, version: int) -> Raw:
        """An upload of mallory's that may carry this family. For IPv6 that takes a download that agrees on it."""
        if version == 4:
            return await self.upload()
        features, session = extended("mallory")
        await self.download(f"{features}, {control.INET6}", session)
        return await self.upload(features, session)

    async def ends(self, **reasons: int) -> None:
        """Mallory's streams end for these reasons, so often, and for no other reason (``bad_frame=1``)."""
        wanted = Counter({reason.replace("_", "-"): n for reason, n in reasons.items()})
        await until(lambda: self.mallory.counters.ends.total() >= wanted.total(), f"{dict(wanted)} in the counters")
        assert self.mallory.counters.ends == wanted

    async def assert_honest_traffic(self) -> None:
        """A packet of each family up and one down for every honest client: they come, and nothing else does."""
        self._round += 1
        for n, (name, device) in enumerate(self.honest.items()):
            mark = f"{name} {self._round}".encode()
            for version in FAMILIES:
                own, hub = twin(honest_ip(n), version), twin(HUB, version)
                up, down = ip(own, hub, b"up " + mark), ip(hub, own, b"down " + mark)
                device.send(up)
                assert await self.hub.receive_packet() == up
                self.hub.send(down)
                assert await device.receive_packet() == down

    async def pass_over(self) -> None:
        """Drop what is on its way to the first honest client."""
        self.hub.send(last := ip(HUB, honest_ip(0), b"last"))
        while await self.honest["honest0"].receive_packet() != last:
            pass

    async def settle(self) -> None:
        """Every connection that was raised against the server is closed, and the descriptors are as at first."""
        self.withdraw()
        await until(lambda: open_fds() <= self.fds, f"{open_fds()} descriptors to be {self.fds} again")

    def withdraw(self) -> None:
        for raw in self._connections:
            raw.close()
        self._connections.clear()


def hostile_host() -> MemoryHost:
    """With a plane, its devices are such that the plane can have them."""
    return MemoryHost(SocketDevice if os.environ.get(VARIABLE) == "auto" else MemoryDevice)


def honest_ip(n: int) -> str:
    return f"10.10.0.{3 + n}"


@asynccontextmanager
async def besieged(
    honest: int = 1, *, change: Callable[[ServerConfig], ServerConfig] = lambda config: config
) -> AsyncIterator[Siege]:
    """A server with mallory's account, and that many honest clients, connected.

    At the end: the honest traffic still flows, nobody logged an error or a traceback, and neither a connection nor
    anything on the host is left.
    """
    names = [f"honest{n}" for n in range(honest)]
    port, host = free_port(), hostile_host()
    servers: list[TunnelServer] = []
    clients: list[TunnelClient] = []

    class Server(TunnelServer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            servers.append(self)

    def client(*args: object, **options: object) -> TunnelClient:
        clients.append(TunnelClient(*args, **options))  # type: ignore[arg-type]
        return clients[-1]

    gc.collect()
    fds = open_fds()
    addresses = {"mallory": "10.10.0.2", **{name: honest_ip(n) for n, name in enumerate(names)}}
    accounts = [allowed(name, (address, twin(address))) for name, address in addresses.items()]
    config = change(server_config(port, *accounts))
    with (
        logged() as log,
        patch.object(server_module, "TunnelServer", Server),
        patch.object(client_module, "TunnelClient", client),
    ):
        async with running(host, config, *(client_config(name, port) for name in names)):
            devices = {name: await host.device(name) for name in names}
            hub = await host.device("hub")
            connected = [s for s in servers[0].sessions if s.client.name != "mallory"]
            await until(lambda: all(s.sender.streaming and s.uploads for s in connected), "the honest downloads")
            await until(lambda: all(c.sender.streaming for c in clients), "the honest uploads")
            siege = Siege(port, servers[0], hub, devices, log, open_fds())
            await siege.assert_honest_traffic()
            try:
                yield siege
                await siege.assert_honest_traffic()
                if current_plane() is not None:
                    assert all(s.counters.plane_packets for s in connected), "the plane has not moved anything"
                await siege.settle()
            finally:
                siege.withdraw()
            assert all(not s.counters.ends for s in connected)
    assert_quiet(log)
    await until(lambda: open_fds() <= fds, f"{open_fds()} descriptors to be {fds} again")


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """What the program logs meanwhile, down to debug."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    root, handler = logging.getLogger("tapotun"), Keep()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def assert_quiet(log: list[logging.LogRecord]) -> None:
    """No error and no traceback: what a peer can cause is information at most."""
    loud = [r.getMessage() for r in log if r.levelno >= logging.ERROR or r.exc_info]
    assert not loud, loud


@contextmanager
def memory_below(limit_bytes: int, what: str) -> Iterator[None]:
    """What Python allocates meanwhile stays below a limit. Prints the peak."""
    gc.collect()
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        yield
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    report(f"{what}: peak memory {peak / 2**20:.1f} MiB (limit {limit_bytes / 2**20:.0f})")
    assert peak < limit_bytes


def report(text: str) -> None:
    """A measured number, for `pytest -s` and for the report of a failure."""
    sys.stdout.write(f"\n[measured] {text}\n")
