"""The outgoing HTTP proxy: which one, what is sent to it, and what is made of its answer."""

from __future__ import annotations

import base64
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import quote

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.model import NO_PROXY, Proxy, Secret, Url
from tapotun_trio.config.urls import bypasses_proxy, parse_proxy, proxy_from_environment
from tapotun_trio.errors import HostError, PeerError
from tapotun_trio.http.client import CONNECT_S, open_connection
from tapotun_trio.http.connect import ConnectParser, encode_connect
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface

from ..chunkings import every_chunking
from ..fakes import MemoryHost
from ..packets import ipv4
from ..streams import memory_pair
from ..tables import table
from .support import allowed, client_config, free_port, running, server_config
from .test_config_load import accept_client, client, load_entries

pytestmark = pytest.mark.usefixtures("nothing_dropped_on_purpose")

URL: Final = Url("https", "vpn.example.com", 443, "/ip")
LOGIN: Final = Proxy("proxy", 3128, Secret("user:s3cret"))
OK: Final = b"HTTP/1.1 200 Connection established\r\nProxy-agent: x\r\n\r\n"

# ------------------------------------------------------------------ which one


@table(
    "text expected",
    ("a name", "http://Proxy.example:3128", Proxy("proxy.example", 3128)),
    ("a slash", "http://p:1/", Proxy("p", 1)),
    ("IPv6", "http://[2001:DB8::1]:8080", Proxy("2001:db8::1", 8080)),
    ("a login", "http://u:p@h:1", Proxy("h", 1, Secret("u:p"))),
    ("a login that was encoded", "http://u%40x:p%3A%2F%40@h:1", Proxy("h", 1, Secret("u@x:p:/@"))),
    ("a login that was not", "http://u:p@/x@h:1", Proxy("h", 1, Secret("u:p@/x"))),
    ("no password", "http://u@h:1", Proxy("h", 1, Secret("u:"))),
    ("none", "none", NO_PROXY),
)
def test_a_proxy_of_the_config(text: str, expected: object) -> None:
    found = accept_client(proxy=text).proxy
    assert found == expected
    if isinstance(found, Proxy) and found.login is not None:
        assert isinstance(expected, Proxy)
        assert expected.login is not None
        assert found.login.reveal() == expected.login.reveal()
        assert "u" not in repr(found.login)


@table(
    "text words",
    ("no scheme", "u:s3cret@proxy:3128", '"***@proxy:3128" is not the URL of a proxy'),
    ("https", "https://u:s3cret@proxy:3128", '"https://***@proxy:3128" has the scheme https; use a proxy that speaks'),
    ("socks", "socks5://proxy:1080", "has the scheme socks5"),
    ("no port", "http://u:s3cret@proxy", '"http://***@proxy" has no port; write it'),
    ("a bad port", "http://proxy:99999", "has a port out of range"),
    ("a path", "http://proxy:1/x", "has a path"),
    ("no host behind the login", "http://u:s3cret", '"http://***" has no valid port'),
    ("shown, since no login is in it", "http://proxy:0", '"http://proxy:0" has'),
    ("no host", "http://:1", "has no host"),
    ("no user", "http://:s3cret@proxy:1", "has no user name before its password"),
    ("empty", "", "is not the URL of a proxy"),
    ("a line break", "http://u:s3cret\n@proxy:1", "has white space"),
    ("one that is encoded", "http://u:s3cret%0d@proxy:1", "control characters in its login"),
)
def test_a_proxy_that_is_none(text: str, words: str) -> None:
    _, (line,) = load_entries(client(proxy=text))
    assert words in line
    assert line.startswith("F: [0].proxy: ")
    assert "s3cret" not in line


@example("", "//", "")
@given(
    st.sampled_from(["", "http://", "https://", "http:"]),
    st.text(alphabet="a1:/[]%?# \n", max_size=4),
    st.sampled_from(["", "/", "/x", "@", "@h", "@h:x", "@h:1/x", "/x@h", "@h@", " ", "\n", ":1", "%0d@h:1"]),
)
def test_no_error_shows_a_password(scheme: str, begin: str, end: str) -> None:
    """Also where the @ and the host were forgotten. In the environment too."""
    text = f"{scheme}user:{begin}s3cret{end}"
    assert "s3cret" not in "".join(load_entries(client(proxy=text))[1])
    said = ""
    try:
        proxy_from_environment(URL, {"https_proxy": text})
    except InvalidValue as exc:
        said = f"{exc} {exc.problem} {exc.remedy} {exc.shown}"
    assert "s3cret" not in said


@given(st.text() | st.text(alphabet="htp:/@[]%.?#a1 ").map("http://{}".format))
def test_any_text_is_a_proxy_or_invalid(text: str) -> None:
    with suppress(InvalidValue):
        found = parse_proxy(text)
        if isinstance(found, Proxy):
            encode_connect(URL, found)


NAMES: Final = st.text(alphabet=string.ascii_lowercase + string.digits, min_size=1, max_size=8).map("h{}".format)
LATIN_1: Final = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


def _is_connected_to(address: IPv4Address | IPv6Address) -> bool:
    """Without a zone, and in this form."""
    if address.is_unspecified or address.is_multicast:
        return False
    if address.version == 4:
        return str(address) != "255.255.255.255"
    return not (address.is_link_local or address.ipv4_mapped)


ADDRESSES: Final = st.ip_addresses().filter(_is_connected_to)


@given(NAMES | ADDRESSES, st.integers(1, 65535), LATIN_1.filter(lambda t: t and ":" not in t), LATIN_1)
def test_what_was_written_is_read(host: object, port: int, user: str, password: str) -> None:
    written = f"[{host}]" if isinstance(host, IPv6Address) else host
    login = ":".join(quote(part, safe="", encoding="latin-1") for part in (user, password))
    found = parse_proxy(f"http://{login}@{written}:{port}")
    assert isinstance(found, Proxy)
    assert found.login is not None
    assert (ip_address(found.host) if not isinstance(host, str) else found.host, found.port) == (host, port)
    assert found.login.reveal() == f"{user}:{password}"
    sent = encode_connect(URL, found).split(b"Proxy-Authorization: Basic ")[1].split(b"\r\n")[0]
    assert base64.b64decode(sent).decode("latin-1") == f"{user}:{password}"


@table(
    "environ scheme expected",
    ("nothing", {}, "https", None),
    ("https", {"https_proxy": "http://a:1"}, "https", "a"),
    ("upper case", {"HTTPS_PROXY": "http://a:1"}, "https", "a"),
    ("lower case first", {"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "https", "a"),
    ("http", {"http_proxy": "a:1"}, "http", "a"),
    ("HTTP_PROXY may be a client's header", {"HTTP_PROXY": "http://a:1"}, "http", None),
    ("the other scheme's", {"http_proxy": "http://a:1"}, "https", None),
    ("for all", {"all_proxy": "http://a:1"}, "https", "a"),
    ("for all, upper case", {"ALL_PROXY": "http://a:1"}, "http", "a"),
    ("the scheme's first", {"all_proxy": "http://a:1", "https_proxy": "http://b:1"}, "https", "b"),
    ("empty", {"https_proxy": ""}, "https", None),
    ("not for this", {"https_proxy": "http://a:1", "no_proxy": "x, example.com"}, "https", None),
    ("not for this, upper case", {"https_proxy": "http://a:1", "NO_PROXY": "*"}, "https", None),
    ("for this", {"https_proxy": "http://a:1", "no_proxy": "ample.com"}, "https", "a"),
    ("wrong, and not for this", {"https_proxy": "socks5://a:1", "no_proxy": "*"}, "https", None),
)
def test_the_environment(environ: dict[str, str], scheme: str, expected: str | None) -> None:
    url = replace(URL, scheme=scheme)  # type: ignore[arg-type]
    found = proxy_from_environment(url, environ)
    assert (None if found is None else found[1].host) == expected


def test_a_wrong_environment_is_told() -> None:
    with pytest.raises(InvalidValue, match=r"the environment's all_proxy has the scheme socks5; .*\"proxy\"") as caught:
        proxy_from_environment(URL, {"all_proxy": "socks5://u:s3cret@h:1"})
    assert "s3cret" not in str(caught.value)


@table(
    "host no_proxy expected",
    ("the name", "a.example", "a.example", True),
    ("below it", "b.a.example", "a.example", True),
    ("below it, with a dot", "b.a.example", ".a.example", True),
    ("ends likewise", "ba.example", "a.example", False),
    ("case and final dots", "A.example.", "a.EXAMPLE.", True),
    ("an address", "192.0.2.7", "192.0.2.7", True),
    ("a network", "192.0.2.7", "10.0.0.0/8,192.0.2.0/24", True),
    ("host bits", "192.0.2.7", "192.0.2.9/24", True),
    ("another network", "192.0.3.7", "192.0.2.0/24", False),
    ("IPv6", "2001:db8::1", "2001:db8::/32", True),
    ("IPv6 in brackets", "2001:db8::1", "[2001:db8:0::1]", True),
    ("everything", "x", "a *", True),
    ("nothing", "x", "", False),
    ("not a name's end", "192.0.2.7", "2.7", False),
)
def test_no_proxy(host: str, no_proxy: str, expected: bool) -> None:
    assert bypasses_proxy(host, no_proxy) is expected


@given(st.text(), st.text())
def test_no_proxy_never_raises(host: str, no_proxy: str) -> None:
    bypasses_proxy(host, no_proxy)


@given(st.ip_addresses(v=4), st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 32))))
def test_no_proxy_has_a_network(address: IPv4Address, networks: list[tuple[IPv4Address, int]]) -> None:
    entries = [f"{start}/{length}" for start, length in networks]
    expected = any(address in ip_network(entry, strict=False) for entry in entries)
    assert bypasses_proxy(str(address), ",".join(entries)) is expected


# ------------------------------------------------------------------ CONNECT


def test_what_is_sent() -> None:
    assert encode_connect(URL, Proxy("p", 1)) == (
        b"CONNECT vpn.example.com:443 HTTP/1.1\r\nHost: vpn.example.com:443\r\n\r\n"
    )
    assert encode_connect(Url("http", "fe80::1%eth0", 80, "/"), Proxy("p", 1)) == (
        b"CONNECT [fe80::1]:80 HTTP/1.1\r\nHost: [fe80::1]:80\r\n\r\n"
    )
    assert encode_connect(Url("http", "2001:db8::1", 80, "/"), LOGIN) == (
        b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n"
        b"Proxy-Authorization: Basic dXNlcjpzM2NyZXQ=\r\n\r\n"
    )


def parse(pieces: list[bytes], through: Proxy = LOGIN) -> bytes:
    parser, behind = ConnectParser(URL, through), iter(pieces)
    for piece in behind:
        rest = parser.feed(piece)
        if rest is not None:
            return rest + b"".join(behind)
    raise AssertionError("not complete")


@given(st.data())
def test_every_split_of_an_answer(data: st.DataObject) -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"tunnel"
    for pieces in every_chunking(answer, data.draw(st.lists(st.integers(0, len(answer))))):
        assert parse([piece for piece in pieces if piece]) == b"tunnel"


@table(
    "status through words",
    ("no login", 407, Proxy("proxy", 3128), "it requires a login: set user:pass in proxy"),
    ("another login", 407, LOGIN, "it does not accept the login in proxy"),
    ("another login, as tinyproxy has it", 401, LOGIN, "it does not accept the login in proxy"),
    ("forbidden", 403, LOGIN, "it does not allow this target"),
    ("unreachable", 502, LOGIN, "it cannot reach the target"),
    ("no proxy", 405, LOGIN, "is that a proxy for outgoing connections"),
    ("anything", 299 + 100, LOGIN, "not an answer to CONNECT"),
)
def test_an_answer_that_is_no_tunnel(status: int, through: Proxy, words: str) -> None:
    with pytest.raises(
        PeerError, match=f"^proxy proxy:3128 to vpn.example.com:443 answered {status} .*{words}"
    ) as caught:
        parse([b"HTTP/1.1 %d Why\x1b[0m\r\nContent-Length: 5\r\n\r\nhello" % status], through)
    assert caught.value.reason == "proxy"
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.binary(min_size=1) | st.binary().map(OK[:9].__add__))
def test_any_bytes_are_an_answer_or_a_peer_error(data: bytes) -> None:
    with suppress(PeerError):
        parser = ConnectParser(URL, LOGIN)
        if parser.feed(data) is None:
            parser.feed(b"")


@table(
    "data words",
    ("nothing", b"", "closed the connection without an answer"),
    ("TLS", b"\x15\x03\x01\0\2\2\x46", "it speaks TLS; use its port for plain HTTP"),
    ("an endless head", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000, "not HTTP"),
)
def test_an_answer_that_is_not_http(data: bytes, words: str) -> None:
    with pytest.raises(PeerError, match=f"^proxy proxy:3128 to vpn.example.com:443: .*{words}"):
        ConnectParser(URL, LOGIN).feed(data)


# ------------------------------------------------------------------ with sockets


@asynccontextmanager
async def a_proxy(upstream: int, heads: list[bytes], host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Passes every tunnel on to a port of this machine, whatever its name: the name is the proxy's to resolve."""

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        heads.append(head)
        async with stream, await trio.open_tcp_stream("127.0.0.1", upstream) as other:
            await stream.send_all(OK)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, stream, other)
                nursery.start_soon(copy, other, stream)

    async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("literal", ["127.0.0.1", "::1"])
async def test_a_tunnel_through_a_proxy(literal: str) -> None:
    """The server's name exists nowhere: only the proxy is asked for it."""
    port, host, heads = free_port(), MemoryHost(), list[bytes]()
    async with a_proxy(port, heads, literal) as proxy_port:
        client = replace(
            client_config("a", port),
            server=Url("http", "vpn.invalid", port, "/ip"),
            proxy=Proxy(literal, proxy_port, Secret("user:s3cret")),
        )
        async with running(host, server_config(port, allowed("a", "10.10.0.2")), client):
            hub, a = await host.device("hub"), await host.device("a")
            up = ipv4("10.10.0.2", "10.10.0.1", b"up")
            a.send(up)
            assert await hub.receive_packet() == up
    assert len(heads) == 2
    assert all(head.startswith(b"CONNECT vpn.invalid:%d HTTP/1.1\r\n" % port) for head in heads)
    assert all(b"Proxy-Authorization: Basic dXNlcjpzM2NyZXQ=\r\n" in head for head in heads)


async def test_what_comes_behind_the_head_is_the_tunnel_s() -> None:
    ours, theirs = memory_pair()
    await theirs.send_all(OK + b"first words")
    from tapotun_trio.http.connect import open_tunnel

    await open_tunnel(ours, URL, LOGIN)
    buffer = memoryview(bytearray(100))
    assert bytes(buffer[: await ours.receive(buffer)]) == b"first words"


async def test_a_proxy_that_is_not_there() -> None:
    port = free_port()
    with pytest.raises(PeerError, match=rf"^proxy 127\.0\.0\.1:{port} to vpn.example.com:443: .*refused") as caught:
        await open_connection(URL, None, None, Proxy("127.0.0.1", port))
    assert caught.value.reason == "refused"


async def test_a_proxy_that_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        words = rf"vpn\.example\.com through proxy 127\.0\.0\.1:{port} within {CONNECT_S:.0f} s"
        with pytest.raises(PeerError, match=words):
            await open_connection(URL, None, None, Proxy("127.0.0.1", port))


async def test_a_wrong_environment_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://u:s3cret@h:1")
    async with open_listeners() as listeners:
        with pytest.raises(HostError, match="the environment's http_proxy has the scheme socks5"):
            await run_interface(client_config("a", 1), MemoryHost(), listeners)


async def test_the_environment_is_used_and_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    port, heads = free_port(), list[bytes]()
    async with a_proxy(port, heads) as proxy_port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy_port}")
        for changes, count in (({}, 2), ({"proxy": NO_PROXY}, 0)):
            heads.clear()
            host = MemoryHost()
            client = replace(client_config("a", port), **changes)  # type: ignore[arg-type]
            async with running(host, server_config(port, allowed("a", "10.10.0.2")), client):
                a, hub = await host.device("a"), await host.device("hub")
                a.send(ipv4("10.10.0.2", "10.10.0.1", b"up"))
                await hub.receive_packet()
            assert len(heads) == count
