"""Cancelled in any state, an interface is gone within a second: nothing on the host, no descriptor, no task, and
nothing in the log that would worry anybody."""

from __future__ import annotations

import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

import pytest
import trio
import trio.testing
import trustme

from tapotun_trio.config.model import ClientConfig, InterfaceConfig, TlsConfig, Url
from tapotun_trio.host.items import Item
from tapotun_trio.host.net import resolver
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.wire import control
from tapotun_trio.wire.tunconf import TunConf, encode_generation_2
from tests.basepeer.http1 import ChunkedBody
from tests.basepeer.wire import FrameReader as BaseFrameReader

from ..fakes import MemoryHost, MemoryNetwork
from ..packets import frame, ipv4
from ..tables import table
from .hostile import CHUNKED, HUB, Raw, assert_quiet, chunk, extended, logged, open_fds, report, request, until
from .support import allowed, client_config, free_port, server_config

PROMISED_S: Final = 1.0
SLACK_S: Final = 1.0  # for a machine that is busy with something else

ME: Final = "10.10.0.2"
LARGE: Final = bytes(60_000)


async def cancelled(config: InterfaceConfig, host: MemoryHost, reach: Callable[[], Awaitable[None]]) -> None:
    """Run the interface until ``reach`` returns, cancel it, and see how long that takes and what is left."""
    with logged() as log:
        async with open_listeners() as listeners, trio.open_nursery() as nursery:
            nursery.start_soon(run_interface, config, host, listeners)
            await reach()
            begun = trio.current_time()
            nursery.cancel_scope.cancel()
        took_s = trio.current_time() - begun
    report(f"gone after {took_s * 1000:.0f} ms")
    assert took_s < PROMISED_S + SLACK_S
    assert host.devices == {}
    assert_quiet(log)


async def a_moment() -> None:
    await trio.sleep(0.05)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[trio.Nursery]:
    """A nursery for the other side. Afterwards all descriptors are closed, and no task is left in this run."""
    fds = open_fds()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()
    await until(lambda: open_fds() <= fds, f"{open_fds()} descriptors to be {fds} again")
    assert trio.lowlevel.current_statistics().tasks_living <= tasks


# -- a client, and a server that stops at some point


Part: TypeAlias = Callable[["Stage"], Awaitable[None]]


class Stage:
    """A server that plays its part for GET and PUT up to a point and then only holds the connection."""

    def __init__(self, get: Part, put: Part | None = None) -> None:
        self.get, self.put = get, put or _hold
        self.raw: Raw
        self.reached = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        raw = Raw(stream)  # type: ignore[arg-type]
        async with stream:
            is_get = (await raw.head()).startswith(b"GET")
            self.raw = raw
            await (self.get if is_get else self.put)(self)
            await trio.sleep_forever()


async def _hold(stage: Stage) -> None:
    pass


def sends(data: bytes, *, then_reached: bool = True) -> Part:
    async def part(stage: Stage) -> None:
        await stage.raw.send(data)
        await trio.sleep(0.02)  # the client is to have read it
        if then_reached:
            stage.reached.set()

    return part


async def here(stage: Stage) -> None:
    stage.reached.set()


_CONF: Final = TunConf(1500, (IPv4Interface(f"{ME}/24"),), (IPv4Network("192.168.7.0/24"),))
OK: Final = (
    f"HTTP/1.1 200 OK\r\nx-tun-features: ctl\r\nx-tun-conf: {encode_generation_2(_CONF)}\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
).encode()
DOWN: Final = frame(ipv4(HUB, ME, bytes(1000)))
REPLACED: Final = chunk(control.bye(f"{control.REPLACED}elsewhere"))

STATES: Final = table(
    "get put",
    ("waiting for the head", here, None),
    ("in the head", sends(OK[:50]), None),
    ("in a size line", sends(OK + b"3f"), None),
    ("in a chunk, in a frame", sends(OK + chunk(DOWN)[:500]), None),
    ("between chunks, in a frame", sends(OK + chunk(DOWN[:500])), None),
    ("in a control frame", sends(OK + chunk(control.encode(control.PARAMS, bytes(99))[:50])), None),
    ("after the end", sends(OK + b"0\r\n\r\n"), None),
    ("refused", sends(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), None),
    ("yielding", sends(OK + REPLACED), None),
    ("streaming", sends(OK, then_reached=False), here),
    ("in the answer to the upload", sends(OK, then_reached=False), sends(b"HTTP/1.1 200 O")),
    ("the upload refused", sends(OK, then_reached=False), sends(b"HTTP/1.1 403 F\r\nContent-Length: 0\r\n\r\n")),
)


@asynccontextmanager
async def staged(stage: Stage, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async with nothing_left() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def serve(stream: trio.SocketStream) -> None:
            if tls is None:
                await stage.serve(stream)
                return
            secure = trio.SSLStream(stream, tls, server_side=True)
            await stage.serve(secure)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield port


@STATES
async def test_a_client_in_every_state_of_its_streams(get: Part, put: Part | None) -> None:
    stage, host = Stage(get, put), MemoryHost()
    async with staged(stage) as port:
        await cancelled(client_config("a", port), host, stage.reached.wait)
    assert host.left_over == []


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_client(port: int, authority: trustme.CA, tmp: Path) -> ClientConfig:
    file = tmp / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return replace(
        client_config("a", port), server=Url("https", "localhost", port, "/ip"), tls=TlsConfig(ca_file=str(file))
    )


@STATES
async def test_a_client_in_every_state_over_tls(
    authority: trustme.CA, tmp_path: Path, get: Part, put: Part | None
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    stage, host = Stage(get, put), MemoryHost()
    async with staged(stage, context) as port:
        await cancelled(tls_client(port, authority, tmp_path), host, stage.reached.wait)
    assert host.left_over == []


@pytest.mark.parametrize("answered_bytes", [0, 3, 100, 1000])
async def test_a_client_in_its_handshake(authority: trustme.CA, tmp_path: Path, answered_bytes: int) -> None:
    """The server answers the hello with so much of its own flight, and no more."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    reached, host = trio.Event(), MemoryHost()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            hello, flight = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(hello, flight, server_side=True)
            hello.write(bytes(await stream.receive_some()))
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await stream.send_all(flight.read()[:answered_bytes])
            await trio.sleep(0.02)
            reached.set()
            await trio.sleep_forever()

    async with nothing_left() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        await cancelled(tls_client(port, authority, tmp_path), host, reached.wait)


async def test_a_client_that_connects() -> None:
    """To a listener whose queue is full: the kernel answers no SYN."""
    async with nothing_left():
        with trio.socket.socket() as listener:
            await listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            with trio.socket.socket() as filler:
                await filler.connect(("127.0.0.1", port))
                await cancelled(client_config("a", port), MemoryHost(), a_moment)


async def test_a_client_whose_server_is_not_there() -> None:
    """It waits for its next attempt."""
    async with nothing_left():
        await cancelled(client_config("a", free_port()), MemoryHost(), a_moment)


async def test_a_client_that_resolves_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver never answers."""
    asked, over = threading.Event(), threading.Event()

    def lookup(*args: object) -> NoReturn:
        asked.set()
        over.wait()
        raise OSError("the test is over")

    async def wait_asked() -> None:
        await until(asked.is_set, "the lookup")

    monkeypatch.setattr(resolver, "lookup", lookup)
    config = replace(client_config("a", 1), server=Url("http", "vpn.example.com", 80, "/ip"))
    try:
        async with nothing_left():
            await cancelled(config, MemoryHost(), wait_asked)
    finally:
        over.set()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_client_with_a_full_outbox(authority: trustme.CA, tmp_path: Path, tls: bool) -> None:
    """The server reads nothing of the upload, the kernel takes no more, packets wait."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    uploading = trio.Event()

    async def hold(stage: Stage) -> None:
        uploading.set()

    stage, host = Stage(sends(OK), hold), MemoryHost()
    async with staged(stage, context if tls else None) as port:

        async def fill() -> None:
            await uploading.wait()
            device = await host.device("a")
            for _ in range(400):
                device.send(ipv4(ME, HUB, LARGE))
            await until(lambda: not device.inbound, "the device to be read")

        config = tls_client(port, authority, tmp_path) if tls else client_config("a", port)
        await cancelled(config, host, fill)
    assert host.left_over == []


async def test_a_client_whose_device_takes_nothing() -> None:
    stage, host = Stage(sends(OK + chunk(DOWN) * 200, then_reached=True)), MemoryHost()
    async with staged(stage) as port:

        async def reach() -> None:
            (await host.device("a")).writable = False
            await stage.reached.wait()

        await cancelled(client_config("a", port), host, reach)


# -- netlink


class StuckNetwork(MemoryNetwork):
    """Does not answer to some calls."""

    def __init__(self, host: StuckHost) -> None:
        super().__init__(host)
        self._stuck = host

    async def _maybe(self, call: str) -> None:
        if call in self._stuck.calls:
            self._stuck.reached.set()
            await trio.sleep_forever()

    async def link_up(self, name: str, mtu: int) -> None:
        await self._maybe("link_up")
        await super().link_up(name, mtu)

    async def add(self, name: str, items: Sequence[Item]) -> None:
        await self._maybe("add")
        for item in items:
            await super().add(name, [item])
            await self._maybe("add more")

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        await self._maybe("remove")
        await super().remove(name, items)


class StuckHost(MemoryHost):
    def __init__(self, *calls: str) -> None:
        super().__init__()
        self.calls = frozenset(calls)
        self.reached = trio.Event()

    @asynccontextmanager
    async def open_network(self) -> AsyncIterator[MemoryNetwork]:
        if "open" in self.calls:
            self.reached.set()
            await trio.sleep_forever()
        yield StuckNetwork(self)


STUCK: Final = pytest.mark.parametrize(
    "calls", [("open",), ("link_up",), ("add",), ("add more",), ("add more", "remove")], ids=" and ".join
)


@STUCK
async def test_a_server_while_netlink_does_not_answer(calls: tuple[str, ...]) -> None:
    host = StuckHost(*calls)
    async with nothing_left():
        await cancelled(server_config(free_port(), allowed("a", ME)), host, host.reached.wait)
    assert not host.left_over or "remove" in calls


@STUCK
async def test_a_client_while_netlink_does_not_answer(calls: tuple[str, ...]) -> None:
    stage, host = Stage(sends(OK)), StuckHost(*calls)
    async with staged(stage) as port:
        await cancelled(client_config("a", port), host, host.reached.wait)
    assert not host.left_over or "remove" in calls


async def test_the_log_says_what_was_left_behind() -> None:
    host = StuckHost("remove")
    async with nothing_left():
        with logged() as log:
            await cancelled(server_config(free_port(), allowed("a", ME)), host, a_moment)
    assert any("left behind" in r.getMessage() and "10.10.0.1" in r.getMessage() for r in log)


# -- a server, and clients that stop at some point


GET: Final = request("GET", "a", *extended("a"))
PUT: Final = request("PUT", "a", CHUNKED)
UP: Final = frame(ipv4(ME, HUB, bytes(1000)))


@table(
    "wires",
    ("nobody", []),
    ("connected", [b""]),
    ("in a head", [GET[:30]]),
    ("lingering after a refusal", [request("GET", "wrong"), request("PUT", "wrong", CHUNKED) + UP]),
    ("downloading", [GET]),
    ("downloading as HTTP/1.0", [request("GET", "a", version="1.0")]),
    ("between two requests", [PUT + b"0\r\n\r\n"]),
    ("before the body", [request("PUT", "a", CHUNKED, "Expect: 100-continue")]),
    ("in a size line", [PUT + b"3f"]),
    ("in a chunk, in a frame", [PUT + chunk(UP)[:500]]),
    ("between chunks, in a frame", [PUT + chunk(UP[:500])]),
    ("in a trailer", [PUT + b"0\r\na: b\r\n"]),
    ("in the handover of two uploads", [GET, *[request("PUT", "a", CHUNKED, extended("a")[1])] * 2]),
    ("a crowd in the lobby", [b"G"] * 300),
    ("many at once", [GET, PUT, PUT + chunk(UP[:500]), GET, request("GET", "wrong"), b"", GET[:9]] * 5),
)
async def test_a_server_in_every_state_of_its_connections(wires: list[bytes]) -> None:
    port, host, raws = free_port(), MemoryHost(), list[Raw]()
    async with nothing_left():

        async def reach() -> None:
            await host.device("hub")
            await trio.testing.wait_all_tasks_blocked()
            for wire in wires:
                raws.append(Raw(await trio.open_tcp_stream("127.0.0.1", port)))
                await raws[-1].send(wire)
            await trio.sleep(0.03)

        await cancelled(server_config(port, allowed("a", ME)), host, reach)
        for raw in raws:
            raw.close()
    assert host.left_over == []


@pytest.mark.parametrize("newer", [False, True], ids=["stalled", "stalled and replaced"])
@pytest.mark.parametrize("fields", [(), extended("a")], ids=["base", "extended"])
async def test_a_server_with_a_full_outbox_and_a_client_that_never_reads(fields: tuple[str, ...], newer: bool) -> None:
    port, host, raws = free_port(), MemoryHost(), list[Raw]()
    async with nothing_left():

        async def reach() -> None:
            hub = await host.device("hub")
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(1 + newer):
                raws.append(Raw(await trio.open_tcp_stream("127.0.0.1", port)))
                await raws[-1].send(request("GET", "a", *fields))
                assert await raws[-1].status() == 200
                for _ in range(400):
                    hub.send(ipv4(HUB, ME, LARGE))
                await until(lambda: not hub.inbound, "the device to be read")

        await cancelled(server_config(port, allowed("a", ME)), host, reach)
        for raw in raws:
            raw.close()
    assert host.left_over == []


async def test_a_client_that_reads_gets_the_end_on_a_frame_boundary() -> None:
    """Under full load, from either kind of client: nothing is cut, and an extended one is told why."""
    port, host = free_port(), MemoryHost()
    bodies: list[bytes] = []
    async with nothing_left() as readers:

        async def read(raw: Raw) -> None:
            bodies.append(await raw.rest())
            raw.close()

        async def reach() -> None:
            hub = await host.device("hub")
            await trio.testing.wait_all_tasks_blocked()
            for name, fields in (("a", extended("a")), ("b", ())):
                raw = Raw(await trio.open_tcp_stream("127.0.0.1", port))
                await raw.send(request("GET", name, *fields))
                assert await raw.status() == 200
                readers.start_soon(read, raw)
            for n in range(200):
                hub.send(ipv4(HUB, f"10.10.0.{2 + n % 2}", LARGE))
            await trio.sleep(0.01)

        config = server_config(port, allowed("a", ME), allowed("b", "10.10.0.3"))
        await cancelled(config, host, reach)
        await until(lambda: len(bodies) == 2, "both ends")
    [ours] = [body for body in bodies if b"the server is shutting down" in body]
    [base] = [body for body in bodies if body is not ours]
    assert ours.endswith(b"\r\n0\r\n\r\n")
    # A base one must not take it for a success: its body breaks off behind a frame.
    decoder, reader = ChunkedBody(pytest.fail), BaseFrameReader()
    assert list(reader.feed(decoder.feed(base)))
    assert reader.rest == b""
    assert not decoder.done
