"""The transport's own sockets, and names that do not resolve. Connecting is tested with whole interfaces, too."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import pytest
import trio

from tapotun_trio.config.model import Url
from tapotun_trio.errors import HostError, PeerError, ShortageError
from tapotun_trio.host.net import dial, resolver
from tapotun_trio.host.net.resolver import MAX_LOOKUPS, Address, Resolver
from tapotun_trio.http import client as http_client

from .hostile import PATIENCE_S

SO_MARK = 36


@pytest.mark.parametrize("mark", [1, 2**31, 2**32 - 1])
def test_every_mark_that_a_config_may_hold_can_be_set(mark: int) -> None:
    try:
        sock = dial.open_transport_socket(socket.AF_INET, mark)
    except HostError as exc:
        pytest.skip(str(exc))
    with sock:
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_MARK, 4), sys.byteorder) == mark


def test_without_a_mark() -> None:
    with dial.open_transport_socket(socket.AF_INET6, None) as sock:
        assert not sock.getblocking()


# ------------------------------------------------------------------ names that do not resolve

AGAIN: Final = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
UNKNOWN: Final = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class NameServer:
    """What the C library says of every name: these addresses, an error, or nothing until the end of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says: list[str] | Exception | None = []
        self.asked = 0
        self.over = threading.Event()
        monkeypatch.setattr(resolver, "lookup", self.lookup)

    def lookup(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        if self.says is None:
            self.over.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return [(socket.AF_INET, (address, port)) for address in self.says or []]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    found = NameServer(monkeypatch)
    yield found
    found.over.set()


@pytest.fixture
def port() -> Iterator[int]:
    """Of somebody who listens at 127.0.0.1 only."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Told:
    """A preparation that notes what it is told."""

    def __init__(self) -> None:
        self.resolved_to: list[str] = []
        self.remembered_as: list[str] = []
        self.is_unresolved = False
        self.sockets: list[socket.socket] = []
        self.refused: set[str] = set()

    async def resolved(self, addresses: Sequence[str]) -> None:
        self.resolved_to += addresses

    async def remembered(self, addresses: Sequence[str]) -> None:
        self.remembered_as += addresses

    def unresolved(self) -> None:
        self.is_unresolved = True

    def may_try(self, address: str) -> bool:
        return address not in self.refused

    def connecting(self, sock: socket.socket) -> None:
        self.sockets.append(sock)


async def knowing(name_server: NameServer, port: int, *addresses: str) -> Resolver:
    """A resolver that has resolved the name to these, and whose server was found at 127.0.0.1."""
    known = Resolver()
    name_server.says = list(addresses)
    await known.resolve("server.test", port)
    known.worked("server.test", port, "127.0.0.1")
    return known


@pytest.mark.parametrize("says", [AGAIN, UNKNOWN, OSError(5, "Input/output error")], ids=["again", "unknown", "other"])
async def test_without_a_name_server_the_address_that_worked_is_tried(
    name_server: NameServer, port: int, says: Exception
) -> None:
    known, told = await knowing(name_server, port, "127.0.0.1"), Told()
    name_server.says = says
    (await dial.connect("server.test", port, None, told, known)).close()
    assert told.is_unresolved
    assert told.remembered_as == ["127.0.0.1"]
    assert told.resolved_to == []


async def test_an_address_that_must_not_be_tried(name_server: NameServer, port: int) -> None:
    told = Told()
    told.refused = {"127.0.0.1"}
    name_server.says = ["127.0.0.1"]
    with pytest.raises(PeerError, match="unreachable"):
        await dial.connect("server.test", port, None, told)
    assert told.resolved_to == ["127.0.0.1"]
    assert told.sockets == []


async def test_a_name_server_that_is_silent(name_server: NameServer, port: int) -> None:
    """As often as one likes: threads that hang use nothing up that others need, and their number is bounded."""
    known = await knowing(name_server, port, "127.0.0.1")
    name_server.says = None
    lent = trio.to_thread.current_default_thread_limiter().borrowed_tokens
    for _ in range(MAX_LOOKUPS + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dial, "NAME_ALONE_S", 0.01)
            (await dial.connect("server.test", port, None, None, known)).close()
    assert name_server.asked <= 1 + MAX_LOOKUPS
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == lent
    (await dial.connect("127.0.0.1", port, None, None, known)).close()  # an address needs no thread


async def test_a_name_that_never_resolved(name_server: NameServer, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "LOOKUP_S", 0.01)
    name_server.says = None
    with pytest.raises(PeerError, match=r"server\.test does not resolve: the name server does not answer") as caught:
        await dial.connect("server.test", port)
    assert caught.value.reason == "dns"


async def test_a_name_server_that_fails(name_server: NameServer, port: int) -> None:
    """SERVFAIL, or nothing answers there: the C library says the same."""
    name_server.says = AGAIN
    with pytest.raises(PeerError, match="the name server does not answer, or answers with a failure") as caught:
        await dial.connect("server.test", port)
    assert caught.value.reason == "dns"


@pytest.mark.parametrize("first", [0, 1])
async def test_an_answer_that_is_stale(name_server: NameServer, port: int, first: int) -> None:
    """Nobody listens at the name's addresses any more; some were known before, and are tried once."""
    known, told = await knowing(name_server, port, "127.0.0.1", "127.0.0.3"), Told()
    name_server.says = ["127.0.0.2", "127.0.0.3"][first:]
    (await dial.connect("server.test", port, None, told, known)).close()
    assert told.remembered_as == ["127.0.0.1", "127.0.0.3"]
    assert not told.is_unresolved


@pytest.mark.parametrize("connects", [True, False], ids=["the old one is there", "the old one is gone"])
async def test_a_name_that_leads_to_somebody_else(name_server: NameServer, port: int, connects: bool) -> None:
    """A portal, or a host that has the server's old address. The address that worked is tried first from then on."""
    known = await knowing(name_server, port, "127.0.0.1" if connects else "127.0.0.8")
    if not connects:
        known.worked("server.test", port, "127.0.0.8")
    with socket.create_server(("127.0.0.5", port)):
        name_server.says = ["127.0.0.5"]
        first = await dial.connect("server.test", port, None, None, known)
        assert first.remote_address == "127.0.0.5"
        first.close()
        known.doubt("server.test", port, "127.0.0.5")
        second = await dial.connect("server.test", port, None, None, known)
        assert second.remote_address == ("127.0.0.1" if connects else "127.0.0.5")
        second.close()
        known.worked("server.test", port, "127.0.0.5")
        third = await dial.connect("server.test", port, None, None, known)
        assert third.remote_address == "127.0.0.5"
        third.close()


async def test_neither_the_name_nor_the_memory_is_preferred_for_ever(name_server: NameServer, port: int) -> None:
    """The server has moved, and its new place refused once; somebody else listens at the old one."""
    known = await knowing(name_server, port, "127.0.0.1", "127.0.0.4")
    with socket.create_server(("127.0.0.5", port)):
        name_server.says = ["127.0.0.5"]
        tried = []
        for _ in range(4):
            connection = await dial.connect("server.test", port, None, None, known)
            tried.append(connection.remote_address)
            connection.close()
            known.doubt("server.test", port, tried[-1])
        assert tried == ["127.0.0.5", "127.0.0.1"] * 2


async def test_both_are_named_where_neither_helps(name_server: NameServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    known = await knowing(name_server, port, "127.0.0.2", "127.0.0.1")
    name_server.says = AGAIN
    with pytest.raises(PeerError) as caught:
        await dial.connect("server.test", port, None, None, known)
    text = str(caught.value)
    assert "the name server does not answer" in text
    assert "127.0.0.1, 127.0.0.2, which worked last: Connection refused" in text
    assert caught.value.reason == "refused"  # the server's machine answers: it restarts


async def test_only_an_address_where_the_server_was_is_remembered(name_server: NameServer, port: int) -> None:
    """A portal's address is none, although somebody listens there."""
    known = Resolver()
    name_server.says = ["127.0.0.1"]
    (await dial.connect("server.test", port, None, None, known)).close()
    assert known.proven("server.test", port) == []
    known.worked("server.test", port, "192.0.2.9")  # never resolved to that
    known.worked("server.test", port, None)
    assert known.proven("server.test", port) == []


async def test_a_portal_s_answer_does_not_displace_what_worked(name_server: NameServer, port: int) -> None:
    known = await knowing(name_server, port, "127.0.0.1", "127.0.0.4")
    name_server.says = ["127.0.0.9"]
    await known.resolve("server.test", port)
    known.worked("server.test", port, "127.0.0.4")  # by memory
    assert [address[1][0] for address in known.proven("server.test", port)] == ["127.0.0.4", "127.0.0.1"]


async def test_an_answer_that_comes_late_is_used_by_the_next_attempt(
    name_server: NameServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C library asks one name server after the other, which may take longer than an attempt."""
    monkeypatch.setattr(resolver, "LOOKUP_S", 0.01)
    known = Resolver()
    name_server.says = None
    with pytest.raises(PeerError, match="does not answer"):
        await known.resolve("server.test", port)
    name_server.says = ["127.0.0.1"]

    def lookup(host: str, port: int) -> NoReturn:
        raise AGAIN

    monkeypatch.setattr(resolver, "lookup", lookup)
    name_server.over.set()
    found: list[Address] = []
    with trio.fail_after(PATIENCE_S):
        while not found:
            with suppress(PeerError):
                found = await known.resolve("server.test", port)
    assert found == [(socket.AF_INET, ("127.0.0.1", port))]


async def test_a_machine_without_threads_is_not_asked_for_more(name_server: NameServer, port: int) -> None:
    known, told = await knowing(name_server, port, "127.0.0.1"), Told()
    name_server.says = RuntimeError("can't start new thread")
    with pytest.raises(ShortageError):
        await dial.connect("server.test", port, None, told, known)
    assert not told.is_unresolved


async def test_too_slow_a_connection_names_the_name_server(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the address that worked does not answer either, the cause is said all the same."""
    monkeypatch.setattr(http_client, "CONNECT_S", 0.2)
    with trio.socket.socket() as listener:  # its queue is full: the kernel answers no SYN
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        known = await knowing(name_server, port, "127.0.0.1")
        name_server.says = AGAIN
        with trio.socket.socket() as filler:
            await filler.connect(("127.0.0.1", port))
            with pytest.raises(PeerError, match=r"no connection to .*: .*the name server does not answer"):
                await http_client.open_connection(Url("http", "server.test", port, "/"), None, resolver=known)


# ------------------------------------------------------------------ an upload, whose download has a connection


async def test_an_upload_goes_where_its_download_is(name_server: NameServer, port: int) -> None:
    """The name has led to another server since, perhaps in turn. It need not even be looked up."""
    with socket.create_server(("127.0.0.5", port)):
        name_server.says = ["127.0.0.5", "127.0.0.1"]
        told = Told()
        connection = await dial.connect("server.test", port, None, told, Resolver(), present="127.0.0.1")
        assert connection.remote_address == "127.0.0.1"
        connection.close()
    assert (told.remembered_as, told.resolved_to, name_server.asked) == (["127.0.0.1"], [], 0)


async def test_an_upload_goes_by_the_name_where_its_download_was_left(name_server: NameServer, port: int) -> None:
    name_server.says = ["127.0.0.1"]
    connection = await dial.connect("server.test", port, None, None, Resolver(), present="127.0.0.3")
    assert connection.remote_address == "127.0.0.1"
    connection.close()
