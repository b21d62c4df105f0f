"""A URL's host that is a link-local address: its zone is this machine's own, and is sent to nobody (RFC 6874)."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio

from tapotun_trio.config.model import Proxy, TlsConfig, Url
from tapotun_trio.config.urls import bypasses_proxy, parse_proxy, parse_url
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net import dial, resolver
from tapotun_trio.host.net.resolver import Address, Resolver
from tapotun_trio.host.net.sockets import Connection, address_text
from tapotun_trio.host.net.tls import TlsClient
from tapotun_trio.http import client as http_client
from tapotun_trio.http.client import open_connection, send_request
from tapotun_trio.http.heads import ResponseHead
from tapotun_trio.http.refusal import refusal
from tapotun_trio.http.websocket import open_websocket

TEXT = "http://[fe80::1%25eth0.7]:8080/ip"


def test_the_zone_is_shown_and_not_sent() -> None:
    url, _ = parse_url(TEXT.upper().replace("HTTP", "http").replace("ETH", "eth").replace("/IP", "/ip"))
    assert (url.host, url.host_without_zone) == ("fe80::1%eth0.7", "fe80::1")
    assert (url.authority, url.host_header) == ("[fe80::1%eth0.7]:8080", "[fe80::1]:8080")
    assert url.shown == TEXT
    assert parse_url(url.shown)[0] == url


@pytest.mark.parametrize("zone", ["1", "eth0", "br-lan.100", "a_b~c", "x" * 15])
def test_zones(zone: str) -> None:
    assert parse_url(f"https://[fe80::1%25{zone}]/")[0] == Url("https", f"fe80::1%{zone}", 443, "/")
    assert parse_proxy(f"http://[fe80::2%25{zone}]:3128") == Proxy(f"fe80::2%{zone}", 3128)


@pytest.mark.parametrize("no_proxy", ["fe80::/10", "[fe80::1]", "*"])
def test_no_proxy_has_no_zones(no_proxy: str) -> None:
    assert bypasses_proxy("fe80::1%eth0", no_proxy)


def test_a_redirect_to_the_same_host() -> None:
    """The server does not know the zone, so its redirect has none."""
    url = parse_url("http://[fe80::1%25eth0]/ip")[0]
    head = ResponseHead(301, "Moved", {"location": "https://[fe80::1]/ip"})
    assert "moved to 'https://[fe80::1]/ip'" in str(refusal(head, url))


async def test_the_host_header() -> None:
    url = parse_url(TEXT)[0]
    near, far = socket.socketpair()
    with closing(Connection(near, "test")) as connection, far:
        await send_request(connection, "GET", url, [])
        assert b"\r\nHost: [fe80::1]:8080\r\n" in far.recv(4096)
        with trio.move_on_after(0):
            await open_websocket(connection, url, [])
        assert b"\r\nHost: [fe80::1]:8080\r\n" in far.recv(4096)


async def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(PeerError, match=r"fe80::1%nosuch0: this machine has no interface nosuch0") as caught:
        await dial.connect("fe80::1%nosuch0", 80)
    assert caught.value.reason == "connect"


def test_the_text_of_a_socket_address() -> None:
    assert address_text(("192.0.2.1", 80)) == "192.0.2.1"
    assert address_text(("2001:db8::1", 80, 0, 0)) == "2001:db8::1"
    assert address_text(("fe80::1", 80, 0, socket.if_nametoindex("lo"))) == "fe80::1%lo"
    assert address_text(("fe80::1", 80, 0, 2**31 - 1)) == f"fe80::1%{2**31 - 1}"


# ------------------------------------------------------------------ what the resolver says


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_name_with_a_mapped_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packets are IPv4, and the routes of IPv4 decide about them."""
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::ffff:192.0.2.1", 80, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)
    assert resolver.lookup("mapped.test", 80) == [(socket.AF_INET, ("192.0.2.1", 80))]


async def test_an_address_at_which_the_server_is_not_comes_last(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the C library is the same each time: without this, the first address would be tried for ever."""
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        both: list[Address] = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
        monkeypatch.setattr(resolver, "lookup", lambda _host, _port: both)
        known, reached = Resolver(), []
        for _ in range(3):
            connection = await dial.connect("server.test", port, resolver=known)
            reached.append(connection.remote_address)
            connection.close()
            if reached[-1] == "::1":
                known.doubt("server.test", port, "::1")
            else:
                known.worked("server.test", port, "127.0.0.1")
        assert reached == ["::1", "127.0.0.1", "::1"]


async def test_an_address_that_gets_no_tls_done_comes_last(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP works there: the time of the attempt is used up, and the next one begins elsewhere."""
    monkeypatch.setattr(http_client, "CONNECT_S", 0.2)
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        both: list[Address] = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
        monkeypatch.setattr(resolver, "lookup", lambda *_args: both)
        known = Resolver()
        with pytest.raises(PeerError, match=r"no connection to server\.test"):
            await open_connection(
                Url("https", "server.test", port, "/"), TlsClient(TlsConfig(insecure=True)), resolver=known
            )
        assert known.doubted_last("server.test", port, both) == both[::-1]


async def test_each_family_is_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the answers to the question for both do not come. Without any answer, the question for both says why."""
    over = threading.Event()
    answers: dict[int, list[Address]] = {socket.AF_INET: [(socket.AF_INET, ("127.0.0.1", 80))]}

    def lookup(_host: str, _port: int, family: int = socket.AF_UNSPEC) -> list[Address]:
        if family in answers:
            return answers[family]
        over.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolver, "lookup", lookup)
    monkeypatch.setattr(resolver, "BOTH_S", 0.01)
    try:
        assert await Resolver().resolve("server.test", 80) == answers[socket.AF_INET]
        monkeypatch.setattr(resolver, "LOOKUP_S", 0.2)
        answers.clear()
        with pytest.raises(PeerError, match="the name server does not answer within"):
            await Resolver().resolve("server.test", 80)
    finally:
        over.set()
    monkeypatch.setattr(resolver, "LOOKUP_S", 30.0)
    with pytest.raises(PeerError, match=r"does not resolve: Name or service not known"):
        await Resolver().resolve("server.test", 80)


async def test_nat64_is_tried_only_without_a_route(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses, or is elsewhere unreachable, is reached by IPv4."""
    asked: list[str] = []

    def lookup(host: str, _port: int) -> list[Address]:
        asked.append(host)
        return []

    monkeypatch.setattr(resolver, "lookup", lookup)
    monkeypatch.setattr(dial, "has_default_route", lambda _version, _mark: True)
    with pytest.raises(PeerError, match="refused"):
        await dial.connect("127.0.0.2", port)
    assert asked == []

    async def unreachable(sock: socket.socket, address: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(dial, "connect_socket", unreachable)
    with pytest.raises(PeerError, match="has IPv6 only, and its network has no NAT64: use a name"):
        await dial.connect("127.0.0.2", port)
    assert asked == ["ipv4only.arpa"]
    monkeypatch.setattr(dial, "has_default_route", lambda _version, _mark: False)
    with pytest.raises(PeerError, match=r"unreachable$"):
        await dial.connect("127.0.0.2", port)
    assert asked == ["ipv4only.arpa"]


def test_a_link_whose_name_is_not_ascii() -> None:
    """The kernel allows it, and such an address comes from a connection, not from the config."""
    code = """
import socket, trio
from tapotun_trio.host.net.resolver import Resolver
from tapotun_trio.host.net.sockets import address_text
text = address_text(("fe80::5", 80, 0, socket.if_nametoindex("é0")))
[(_, address)] = trio.run(Resolver().resolve, text, 80)
print(ascii(text), address == ("fe80::5", 80, 0, socket.if_nametoindex("é0")))
"""
    network = 'ip link set lo name é0 && exec "$@"'
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv = ["unshare", *root, "--net", "sh", "-ec", network, "sh", sys.executable, "-c", code]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == r"'fe80::5%\xe90' True" + "\n", done.stderr


async def test_a_link_that_is_gone() -> None:
    with pytest.raises(PeerError, match="this machine has no interface é9"):
        await Resolver().resolve("fe80::5%é9", 80)
