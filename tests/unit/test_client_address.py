"""Who a request is from, in the log: what trusted proxies say, and nobody else; the PROXY protocol at the door."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio
import trio.testing

from tapotun_trio.config.model import IngressOptions, ServerConfig, UnixAddress
from tapotun_trio.errors import HostError, PeerError, leaves
from tapotun_trio.http.client_address import PROXY_HEADER_S, find_client_address

from ..fakes import MemoryHost
from ..streams import memory_pair
from .support import allowed, free_port, running, server_config
from .test_virtual_hosts import ask, servers
from .test_wire_proxyprotocol import INET, LOCAL, TCP4, header

LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What was logged so far; it grows."""

    class Lines(list[str]):
        def __contains__(self, words: object) -> bool:
            return any(str(words) in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.INFO, "tapotun"):
        yield Lines()


def config(port: int, **ingress: object) -> ServerConfig:
    return replace(server_config(port, allowed("laptop", "10.10.0.2")), ingress=IngressOptions(**ingress))  # type: ignore[arg-type]


@asynccontextmanager
async def connected(port: int, first: bytes = b"") -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(first)
        yield stream


async def get(stream: trio.abc.Stream, token: str, *headers: str) -> bytes:
    """The answer's head to a GET with a token and these headers."""
    lines = "".join(f"{it}\r\n" for it in headers)
    await stream.send_all(f"GET /ip HTTP/1.1\r\nHost: x\r\nx-api-key: {token}\r\n{lines}\r\n".encode("latin-1"))
    answer = b""
    with trio.fail_after(5):
        while b"\r\n\r\n" not in answer:
            piece = await stream.receive_some()
            if not piece:
                break
            answer += piece
    await trio.testing.wait_all_tasks_blocked()  # the head is out before the session knows of its client
    return answer


async def test_a_trusted_proxy_is_believed(lines: list[str]) -> None:
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=LOOPBACK)):
        async with connected(port) as stream:
            assert b" 200 " in await get(stream, "laptop", "X-Forwarded-For: 6.6.6.6, 203.0.113.7")
            assert "connected from 203.0.113.7 (through 127.0.0.1:" in lines
        async with connected(port) as stream:
            assert b" 403 " in await get(stream, "guess", 'Forwarded: for="[2001:db8::7]:4711"')
            assert "[2001:db8::7]:4711 (through 127.0.0.1:" in lines
            assert "refused: unknown or missing token" in lines
    assert "6.6.6.6" not in lines


@pytest.mark.parametrize("trusted", [(), (ip_network("192.0.2.0/24"), ip_network("::/0"))])
async def test_nobody_else_is(trusted: tuple[object, ...], lines: list[str]) -> None:
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=trusted, trusts_unix=True)):
        for token, status in (("laptop", b" 200 "), ("guess", b" 403 ")):
            async with connected(port) as stream:
                forged = ("X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6")
                assert status in await get(stream, token, *forged)
    assert "connected from 127.0.0.1:" in lines
    assert "6.6.6.6" not in lines
    assert "through" not in lines


async def test_a_trusted_proxy_that_says_nothing(lines: list[str]) -> None:
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=LOOPBACK)), connected(port) as stream:
        assert b" 200 " in await get(stream, "laptop")
    assert "connected from 127.0.0.1:" in lines
    assert "through" not in lines


async def test_each_request_of_a_kept_connection_has_its_own_client(lines: list[str]) -> None:
    port = free_port()
    entries = [replace(it, ingress=IngressOptions(trusted=LOOPBACK)) for it in servers(port, "/a", "/b")]
    async with running(MemoryHost(), *entries), connected(port) as stream:
        assert b" 200 " in await ask(stream, "PUT", "/a", "tun0")
        request = "PUT /b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"
        await stream.send_all(request.encode())
        with trio.fail_after(5):
            assert b" 403 " in await stream.receive_some()
    assert "203.0.113.7 (through 127.0.0.1:" in lines


@pytest.mark.parametrize("believed", [True, False])
async def test_unix(tmp_path: Path, believed: bool, lines: list[str]) -> None:
    path = str(tmp_path / "x.sock")
    ingress = IngressOptions(trusted=LOOPBACK, trusts_unix=believed)
    entry = replace(config(1), listen=(UnixAddress(path),), ingress=ingress)
    async with running(MemoryHost(), entry):
        async with await trio.open_unix_socket(path) as stream:
            assert b" 200 " in await get(stream, "laptop", "X-Forwarded-For: 203.0.113.7")
    assert ("connected from 203.0.113.7 (through unix socket)" in lines) == believed
    assert ("connected from unix socket" in lines) != believed


async def test_refusals_of_several_clients_are_all_told(lines: list[str]) -> None:
    """What reads the log to lock addresses out needs more than one in ten seconds."""
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=LOOPBACK)):
        for n in range(1, 9):
            async with connected(port) as stream:
                assert b" 403 " in await get(stream, "guess", f"X-Forwarded-For: 203.0.113.{n}")
    for n in range(1, 9):
        assert f"203.0.113.{n} (through" in lines


HTTPS = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("remote", "trusted", "headers", "encrypted"),
    [
        ("192.0.2.7", "192.0.2.7/32", HTTPS, True),
        ("192.0.2.7", "192.0.2.7/32", {**HTTPS, "x-forwarded-proto": "http"}, False),
        ("192.0.2.7", "192.0.2.7/32", {"forwarded": "for=203.0.113.7;proto=https"}, True),
        ("192.0.2.7", "192.0.2.7/32", {}, None),
        ("127.0.0.1", "127.0.0.0/8", HTTPS, True),
        # Nobody else has a say in it.
        ("192.0.2.7", "192.0.2.8/32", HTTPS, False),
        ("192.0.2.7", "192.0.2.8/32", {"forwarded": "for=203.0.113.7;proto=https"}, False),
        ("192.0.2.7", "192.0.2.8/32", {}, False),
        ("2001:db8::7", "192.0.2.8/32", {}, False),
        ("fe80::7%a b", "192.0.2.8/32", {}, False),
        ("::ffff:192.0.2.7", "192.0.2.8/32", {}, False),
        # This machine: perhaps a proxy that is not known as one.
        ("127.0.0.1", "192.0.2.8/32", HTTPS, None),
        ("127.3.2.1", "192.0.2.8/32", {}, None),
        ("::1", "192.0.2.8/32", HTTPS, None),
        ("::ffff:127.0.0.1", "192.0.2.8/32", {}, None),
        ("192.0.2.1", "192.0.2.8/32", HTTPS, None),
        (None, "192.0.2.8/32", HTTPS, None),
    ],
)
async def test_whether_a_client_is_encrypted(
    remote: str | None, trusted: str, headers: dict[str, str], encrypted: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = memory_pair()
    monkeypatch.setattr(type(ours), "remote_address", remote)
    monkeypatch.setattr(type(ours), "local_address", "192.0.2.1")
    ingress = IngressOptions(trusted=(ip_network(trusted),))
    address = await find_client_address(ours, ingress, is_unix=remote is None)
    assert address is not None
    assert address.encrypted(headers) is encrypted
    theirs.close()


@pytest.mark.parametrize("believed", [True, False])
async def test_whether_a_client_of_a_unix_socket_is(believed: bool) -> None:
    ours, theirs = memory_pair()
    address = await find_client_address(ours, IngressOptions(trusts_unix=believed), is_unix=True)
    assert address is not None
    assert address.encrypted(HTTPS) is (True if believed else None)
    theirs.close()


@pytest.mark.parametrize("first", [INET, LOCAL, TCP4])
async def test_whether_a_client_behind_the_proxy_protocol_is(first: bytes) -> None:
    """The proxy may have ended TLS, or the client may be without. What it writes of itself does not count."""
    ours, theirs = memory_pair()
    await theirs.send_all(first)
    address = await find_client_address(ours, IngressOptions(trusts_unix=True, proxy_protocol=True), is_unix=True)
    assert address is not None
    assert address.encrypted(HTTPS) is None
    theirs.close()


# -- the PROXY protocol


@pytest.mark.parametrize("first", [INET, TCP4], ids=["version 2", "version 1"])
async def test_a_source_by_the_proxy_protocol(first: bytes, lines: list[str]) -> None:
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=LOOPBACK, proxy_protocol=True)):
        async with connected(port, first) as stream:
            # Of a source that is no proxy of ours the headers are not believed.
            assert b" 200 " in await get(stream, "laptop", "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6")
        assert "connected from 203.0.113.7:4711 (through 127.0.0.1:" in lines
        async with connected(port, header(0x21, 0x11, b"\x7f\0\0\1\x7f\0\0\1\0\1\0\2")) as stream:
            assert b" 403 " in await get(stream, "guess", "X-Forwarded-For: 203.0.113.9")
        assert "203.0.113.9 (through 127.0.0.1:1 (through 127.0.0.1:" in lines
        for nobody in (LOCAL, header(0x21, 0, b""), b"PROXY UNKNOWN\r\n"):
            async with connected(port, nobody) as stream:
                assert b" 403 " in await get(stream, "guess", "X-Forwarded-For: 6.6.6.6")
    assert "6.6.6.6" not in lines


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b"", "no PROXY protocol header came first"),
        (b"\x16\x03\x01", "TLS came first, and no PROXY protocol header"),
        (b"PROXY TCP5 203.0.113.7 127.0.0.1 1 2\r\n", "malformed PROXY protocol header of version 1"),
    ],
)
async def test_no_proxy_header(first: bytes, named: str, lines: list[str]) -> None:
    """Whoever comes without one is refused without an answer, even with a token."""
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=LOOPBACK, proxy_protocol=True)):
        async with connected(port, first) as stream:
            with suppress(trio.BrokenResourceError):  # a reset: there were bytes that nobody has read
                assert await get(stream, "laptop") == b""
    assert "connected from" not in lines
    assert named in lines
    assert "; have the proxy send it, or set proxy_protocol to false" in lines


async def test_an_untrusted_peer_may_not_speak_it(lines: list[str]) -> None:
    port = free_port()
    trusted = (ip_network("192.0.2.0/24"),)
    async with running(MemoryHost(), config(port, trusted=trusted, proxy_protocol=True)):
        async with connected(port, INET) as stream:
            with suppress(trio.BrokenResourceError):
                assert await get(stream, "laptop") == b""
    assert "connected from" not in lines
    assert "refused: not among trusted_proxies" in lines
    assert "203.0.113.7" not in lines


@pytest.mark.parametrize(("first", "version"), [(INET, 2), (TCP4, 1)])
async def test_a_header_that_is_not_expected_is_named_and_not_believed(
    first: bytes, version: int, lines: list[str]
) -> None:
    port = free_port()
    async with running(MemoryHost(), config(port, trusted=LOOPBACK)), connected(port, first) as stream:
        assert b" 400 " in await get(stream, "laptop")
    assert f": a PROXY protocol header of version {version} came first" in lines
    assert "set proxy_protocol to true" in lines
    assert "203.0.113.7" not in lines


@pytest.mark.parametrize("sent", [0, 1, 15, 16, 27])
async def test_a_header_has_a_deadline(sent: int, autojump_clock: trio.testing.MockClock) -> None:
    ingress = IngressOptions(trusts_unix=True, proxy_protocol=True)
    ours, theirs = memory_pair()
    await theirs.send_all(INET[:sent])
    begun = trio.current_time()
    if sent:
        with pytest.raises(PeerError, match="no whole PROXY protocol header within 10 s"):
            await find_client_address(ours, ingress, is_unix=True)
    else:
        assert await find_client_address(ours, ingress, is_unix=True) is None
    assert trio.current_time() - begun == PROXY_HEADER_S


@pytest.mark.parametrize("sent", [0, 1, 16, 27])
async def test_closed_within_a_header(sent: int) -> None:
    ingress = IngressOptions(trusts_unix=True, proxy_protocol=True)
    ours, theirs = memory_pair()
    await theirs.send_all(INET[:sent])
    theirs.close()
    if sent:
        with pytest.raises(PeerError, match="closed within"):
            await find_client_address(ours, ingress, is_unix=True)
    else:
        assert await find_client_address(ours, ingress, is_unix=True) is None


async def test_interfaces_that_share_a_port_receive_alike() -> None:
    """Those of one file are compared when it is read; these would come of two."""
    port = free_port()
    first, second = servers(port, "/a", "/b")
    with pytest.raises(ExceptionGroup) as caught:
        async with running(MemoryHost(), first, replace(second, ingress=IngressOptions(trusted=LOOPBACK))):
            pass
    assert any(isinstance(exc, HostError) and "write the same in both" in str(exc) for exc in leaves(caught.value))
