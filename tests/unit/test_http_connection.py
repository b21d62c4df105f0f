"""host.sockets.Connection as the http layer and the data path rely on it, over real and over treacherous sockets."""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
import trio.testing

from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.sockets import BBR, RENO, Connection, avoid_bbr
from tapotun_trio.host.net.tls import TlsConnection

from ..tables import table

DEFAULT_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text("ascii").strip()
Pair: TypeAlias = tuple[Connection, Connection]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    left, right = socket.socketpair()
    with closing(Connection(left, "left")) as ours, closing(Connection(right, "right")) as theirs:
        yield ours, theirs


def space(size: int = 100) -> memoryview:
    return memoryview(bytearray(size))


async def receive(connection: Connection) -> bytes:
    into = space(100_000)
    return bytes(into[: await connection.receive(into)])


# ------------------------------------------------------------------ what a socket says


class BrokenSocket(socket.socket):
    """A connected socket on which everything fails with one errno."""

    error = 0

    def recv_into(self, *args: Any) -> int:
        raise OSError(self.error, os.strerror(self.error))

    def sendmsg(self, *args: Any) -> int:
        raise OSError(self.error, os.strerror(self.error))


# icmp_err_convert (net/ipv4/icmp.c) and tcp_v4_err: an ICMP error leaves its errno as the connection's soft error, and
# tcp_write_err reports that one, in the place of ETIMEDOUT, when the retransmissions end. All of these were seen on an
# established connection of Linux 6.18 that a peer answered with such a message and nothing else.
ICMP_ERRNOS = table(
    "number",
    *(
        (errno.errorcode[number], number)
        for number in (
            errno.ENETUNREACH,  # network unreachable, unknown, or prohibited
            errno.EHOSTUNREACH,  # host unreachable or prohibited
            errno.ENOPROTOOPT,  # protocol unreachable
            errno.ECONNREFUSED,  # port unreachable
            errno.EOPNOTSUPP,  # source route failed
            errno.EHOSTDOWN,  # host unknown
            errno.ENONET,  # host isolated
            errno.EPROTO,  # parameter problem
        )
    ),
    ("ETIMEDOUT", errno.ETIMEDOUT),
    ("ECONNRESET", errno.ECONNRESET),
    ("EPIPE", errno.EPIPE),
)


@contextmanager
def broken_connection(number: int) -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    sock = BrokenSocket(ours.family, ours.type, 0, ours.detach())
    sock.error = number
    with theirs, closing(Connection(sock, "192.0.2.7:51234")) as connection:
        yield connection


@ICMP_ERRNOS
async def test_whatever_the_network_says_is_the_peers_fault(number: int) -> None:
    """Not a bug of ours: at a server that would end the interface for all clients."""
    with broken_connection(number) as connection:
        with pytest.raises(PeerError) as on_receive:
            connection.try_receive(space())
        with pytest.raises(PeerError) as on_send:
            connection.try_send([b"x"])
        assert on_receive.value.reason == on_send.value.reason == "broken"


async def test_a_bug_stays_a_bug() -> None:
    with broken_connection(errno.EFAULT) as connection, pytest.raises(OSError, match="Bad address"):
        connection.try_receive(space())


# ------------------------------------------------------------------ sending and receiving


async def test_receive_takes_what_is_there_and_then_the_end(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.try_receive(space()) is None
    await theirs.send_all(b"hello")
    assert await receive(ours) == b"hello"
    theirs.shutdown_sending()
    assert await receive(ours) == b""
    await ours.send_all(b"still")
    assert await receive(theirs) == b"still"


async def test_send_all_to_a_peer_that_reads_slowly(pair: Pair) -> None:
    ours, theirs = pair
    data = os.urandom(3_000_000)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, data)
        while len(received) < len(data):
            received += await receive(theirs)
    assert received == data


async def test_a_full_socket_takes_nothing(pair: Pair) -> None:
    ours, _ = pair
    while ours.try_send([bytes(100_000)]):
        pass
    assert ours.try_send([b"a", b"b"]) == 0


async def test_try_send_takes_parts_in_order(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.try_send([b"5\r\n", memoryview(b"hello"), b"\r\n"]) == 10
    assert await receive(theirs) == b"5\r\nhello\r\n"


# ------------------------------------------------------------------ closing


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_who_waits_when_another_task_closes_gets_peer_error(how: str, pair: Pair) -> None:
    ours, _ = pair
    while ours.try_send([bytes(100_000)]):
        pass
    reasons: list[str] = []

    async def wait(what: str) -> None:
        with pytest.raises(PeerError) as caught:
            await getattr(ours, what)()
        reasons.append(caught.value.reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "wait_readable")
        nursery.start_soon(wait, "wait_writable")
        await trio.testing.wait_all_tasks_blocked()
        getattr(ours, how)()
    assert reasons == ["closed", "closed"]


async def test_a_closed_connection_may_be_closed_and_used_again(pair: Pair) -> None:
    ours, _ = pair
    ours.close()
    ours.close()
    ours.abort()
    ours.shutdown_sending()
    with pytest.raises(PeerError) as on_receive:
        ours.try_receive(space())
    with pytest.raises(PeerError) as on_send:
        ours.try_send([b"x"])
    assert on_receive.value.reason == on_send.value.reason == "closed"
    for wait in (ours.wait_readable, ours.wait_writable):
        with pytest.raises(PeerError):
            await wait()


async def test_sending_to_who_is_gone(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(PeerError) as caught:
        await ours.send_all(b"x")
    assert caught.value.reason == "broken"


async def test_cancelled_nothing_is_lost(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = pair
    with trio.move_on_after(1):
        await ours.receive(space())
    await theirs.send_all(b"hello")
    assert await receive(ours) == b"hello"


# ------------------------------------------------------------------ fairness


class EndlessSocket(ssl.SSLSocket):
    """A peer that sends faster than we read."""

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        return len(buffer)

    def unwrap(self) -> socket.socket:
        raise ssl.SSLWantReadError  # it does not wait for an answer


async def test_receiving_leaves_room_for_other_tasks() -> None:
    """Every loop that could run forever yields. Of TLS there is always more, decrypted already."""
    ours, theirs = socket.socketpair()
    endless = EndlessSocket.__new__(EndlessSocket)
    socket.socket.__init__(endless, ours.family, ours.type, 0, ours.detach())
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with theirs, closing(TlsConnection(endless, "peer")) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            for _ in range(1000):
                await connection.receive(space())
            nursery.cancel_scope.cancel()
    assert turns >= 10


# ------------------------------------------------------------------ congestion control


def dialled() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


async def test_without_a_descriptor_left_what_a_connection_has_is_what_is_preferred() -> None:
    """A stream that begins just then is none the worse for it."""
    near, far = dialled()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, RENO.encode())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(Connection(near, "near")) as connection, closing(far):
        assert connection.preferred_congestion_control == DEFAULT_CONGESTION_CONTROL
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            assert connection.preferred_congestion_control == RENO
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        connection.close()
        assert connection.preferred_congestion_control is None


async def test_the_kernel_says_why_it_refuses_an_algorithm() -> None:
    near, far = dialled()
    with closing(Connection(near, "near")) as connection, closing(far):
        assert connection.try_congestion_control(RENO) is None
        assert connection.congestion_control == RENO
        refusal = connection.try_congestion_control("no-such")
        assert refusal is not None
        assert refusal.errno == errno.ENOENT
        assert connection.congestion_control == RENO


async def test_a_socket_is_left_undecided_where_bbr_is_preferred_and_only_there() -> None:
    with socket.socket() as sock:
        avoid_bbr(sock)
        expected = RENO if DEFAULT_CONGESTION_CONTROL == BBR else DEFAULT_CONGESTION_CONTROL
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode() == expected
