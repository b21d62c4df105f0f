"""http.forwarded: whom X-Forwarded-For and Forwarded name, and that nobody else can have a say in it."""

from __future__ import annotations

import re
import time
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.http.forwarded import MAX_HOPS, UNKNOWN, client_is_encrypted, client_of

NETWORKS = [ip_network(it) for it in ("127.0.0.0/8", "10.0.0.0/8", "::1/128", "fd00::/8")]


def trusted(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in NETWORKS)


def x_forwarded_for(value: str) -> str | None:
    return client_of({"x-forwarded-for": value}, trusted)


def forwarded(value: str) -> str | None:
    return client_of({"forwarded": value}, trusted)


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("", None),
        ("  ", None),
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7:4711"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "[2001:db8::7]:4711"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("6.6.6.6,203.0.113.7 ,10.1.2.3,  127.0.0.1", "203.0.113.7"),
        ("203.0.113.7, fd00::1", "203.0.113.7"),
        ("6.6.6.6, unknown, 10.0.0.1", UNKNOWN),
        ("6.6.6.6, 10.0.0.1x", UNKNOWN),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2"),  # all of them ours: the first
        ("unknown", UNKNOWN),
        (",", UNKNOWN),
        ("203.0.113.7, ,", "203.0.113.7"),
        ("203.0.113.07", UNKNOWN),
        ("fe80::1%eth0", UNKNOWN),
        ("fe80::1%\x1b[31m", UNKNOWN),
        ("٢٠٣.0.113.7", UNKNOWN),
        ("203.0.113.7:99999999", UNKNOWN),
        ("203.0.113.7\n127.0.0.1", UNKNOWN),
        ("example.com", UNKNOWN),
    ],
)
def test_x_forwarded_for(value: str, client: str | None) -> None:
    assert x_forwarded_for(value) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7;Proto=http;BY=203.0.113.43", "203.0.113.7"),
        ('for="203.0.113.7:4711"', "203.0.113.7:4711"),
        ('for="[2001:db8:cafe::17]:4711"', "[2001:db8:cafe::17]:4711"),
        ('for="[2001:db8:cafe::17]"', "2001:db8:cafe::17"),
        ('for="[2001:db8:cafe::17]:_port"', "2001:db8:cafe::17"),
        ("for=2001:db8::7", UNKNOWN),  # it has to stand in brackets and quotes
        ("for=_gazonk", "_gazonk"),
        ('for="_SEVKISEK:_x"', "_SEVKISEK"),
        ("for=unknown", UNKNOWN),
        ("for=" + "_" + "x" * 200, "_" + "x" * 38 + "…"),
        ("for=6.6.6.6, for=203.0.113.7", "203.0.113.7"),
        ("for=203.0.113.7, for=10.0.0.1;by=127.0.0.1,for=127.0.0.1", "203.0.113.7"),
        ("for=6.6.6.6, by=10.0.0.1", UNKNOWN),
        ("for=6.6.6.6, for=10.0.0.1, for=_hidden, for=127.0.0.1", "_hidden"),
        ("for=10.0.0.2, for=10.0.0.1", "10.0.0.2"),
        # RFC 7239 section 7.4 and what a visitor may put before what a proxy adds
        ('for="6.6.6.6, for=203.0.113.7', "203.0.113.7"),
        ('for="6.6.6.6\\, for=203.0.113.7', "203.0.113.7"),
        ('x="", y=", for="[2001:db8::7]"', "2001:db8::7"),
        ('for=203.0.113.7;host="a,for=6.6.6.6"', "203.0.113.7"),
        ('host="a;for=6.6.6.6";for=203.0.113.7', "203.0.113.7"),
        (r'for=203.0.113.7;host="a,for=6.6.6.6;x=\"y"', "203.0.113.7"),
        (r'host="a\", for=\"6.6.6.6";for=203.0.113.7', "203.0.113.7"),
        (r'for="203\.0.113.7"', "203.0.113.7"),
        ('for=""', UNKNOWN),
        ("for=", UNKNOWN),
        ("203.0.113.7", UNKNOWN),
        ('for="203.0.113.7"x', UNKNOWN),
    ],
)
def test_forwarded(value: str, client: str | None) -> None:
    assert forwarded(value) == client


def test_which_of_both() -> None:
    both = {"x-forwarded-for": "203.0.113.7", "forwarded": "for=6.6.6.6"}
    assert client_of(both, trusted) == "203.0.113.7"
    assert client_of({**both, "x-forwarded-for": " "}, trusted) == "6.6.6.6"
    assert client_of({}, trusted) is None


CLIENT = "203.0.113.7"


@pytest.mark.parametrize(
    ("forwarded_for", "forwarded_proto", "encrypted"),
    [
        (CLIENT, "https", True),
        (CLIENT, "HTTPS", True),
        (CLIENT, " wss ", True),
        (CLIENT, "http", False),
        (CLIENT, "ws", False),
        ("", "https", True),
        ("", "http", False),
        (CLIENT, "", None),
        (CLIENT, ",", None),
        (CLIENT, "ftp", None),
        (CLIENT, "https;", None),
        (CLIENT, '"https"', None),
        (CLIENT, "https http", None),
        (CLIENT, "http\u017f", None),
        (CLIENT, "https\x00", None),
        (CLIENT, "x" * 100_000, None),
        # Left of what the proxy wrote anyone may have written.
        (CLIENT, "https, http", False),
        (CLIENT, "https, nonsense", None),
        (f"6.6.6.6, {CLIENT}", "https, http", False),
        (CLIENT, "https," * 100_000 + "http", False),
        # Two proxies: each writes one of its own.
        (f"{CLIENT}, 10.0.0.1", "https, http", True),
        (f"{CLIENT}, 10.0.0.1", "http, https", False),
        (f"{CLIENT}, 10.0.0.1", "http, http, https", False),
        (f"{CLIENT}, 10.0.0.1", "https", None),
        (f"{CLIENT}, 10.0.0.1", "http", None),
        ("unknown", "https", True),
        (",", "https", None),
        # A proxy of ours whose clients nobody names.
        ("10.0.0.1", "https", None),
        ("10.0.0.1", "http", None),
    ],
)
def test_x_forwarded_proto(forwarded_for: str, forwarded_proto: str, encrypted: bool | None) -> None:
    headers = {"x-forwarded-for": forwarded_for, "x-forwarded-proto": forwarded_proto}
    assert client_is_encrypted(headers, trusted) is encrypted


@pytest.mark.parametrize(
    ("value", "encrypted"),
    [
        ("for=203.0.113.7;proto=https", True),
        ("PROTO=Https;for=203.0.113.7", True),
        ('for=203.0.113.7;proto="https"', True),
        ("for=203.0.113.7;proto=wss", True),
        ("for=203.0.113.7;proto=http", False),
        ("for=203.0.113.7;proto=ws", False),
        ("proto=https", True),
        ("for=_hidden;proto=https", True),
        ("for=203.0.113.7", None),
        ("for=203.0.113.7;proto=ftp", None),
        ('for=203.0.113.7;proto=""', None),
        ("for=203.0.113.7;proto=", None),
        ('for=203.0.113.7;host=";proto=https"', None),
        ("for=203.0.113.7;proto=https;", None),
        ("for=6.6.6.6;proto=https, for=203.0.113.7;proto=http", False),
        ("for=6.6.6.6;proto=https, for=203.0.113.7", None),
        ("for=203.0.113.7;proto=https, for=10.0.0.1;proto=http", True),
        ("for=203.0.113.7;proto=http, for=10.0.0.1;proto=https", False),
        ("for=203.0.113.7, for=10.0.0.1;proto=https", None),
        ("for=10.0.0.1;proto=https", None),
    ],
)
def test_the_proto_of_forwarded(value: str, encrypted: bool | None) -> None:
    assert client_is_encrypted({"forwarded": value}, trusted) is encrypted


def test_the_proto_is_of_the_header_that_names_the_client() -> None:
    """A proxy that writes one kind may pass on the other, which the client wrote."""
    forwarded_both = {"x-forwarded-for": CLIENT, "forwarded": "for=203.0.113.7;proto=https"}
    assert client_is_encrypted(forwarded_both, trusted) is None
    assert client_is_encrypted({**forwarded_both, "x-forwarded-proto": "http"}, trusted) is False
    assert client_is_encrypted({"forwarded": "for=203.0.113.7", "x-forwarded-proto": "https"}, trusted) is None
    assert client_is_encrypted({}, trusted) is None


PIECES = st.sampled_from(
    [
        "for=",
        "For=",
        '"',
        "\\",
        ",",
        ", ",
        ";",
        "6.6.6.6",
        "10.0.0.1",
        "[::1]",
        ":80",
        "unknown",
        "_x",
        "host=",
        "%",
        "\x1b",
    ]
)
HOSTILE = st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join)
SAFE = re.compile(r"unknown|_[0-9A-Za-z._-]{0,38}…?|[0-9.]+(:\d+)?|[0-9a-f:.]+|\[[0-9a-f:.]+\]:\d+")


@given(HOSTILE)
def test_whatever_stands_there_nothing_else_comes_out(value: str) -> None:
    headers = {"x-forwarded-for": CLIENT, "x-forwarded-proto": value}
    for found in (client_is_encrypted(headers, trusted), client_is_encrypted({"forwarded": value}, trusted)):
        assert found in (None, True, False)
    for client in (x_forwarded_for(value), forwarded(value)):
        assert client is None or SAFE.fullmatch(client), client


@given(HOSTILE, st.ip_addresses(), st.lists(st.sampled_from(["10.0.0.1", "127.0.0.1"]), max_size=3))
def test_nobody_can_speak_for_a_trusted_proxy(
    forged: str, client: IPv4Address | IPv6Address, proxies: list[str]
) -> None:
    """Whatever a visitor sends, what our proxies append decides."""
    if trusted(client) or (isinstance(client, IPv6Address) and client.ipv4_mapped is not None):
        return
    assert x_forwarded_for(", ".join([forged, str(client), *proxies])) == str(client)
    node = f'"[{client}]"' if client.version == 6 else str(client)
    assert forwarded(", ".join([forged, f"proto=http;for={node}", *(f"for={it}" for it in proxies)])) == str(client)


@pytest.mark.parametrize(
    "value", ["for=10.0.0.1," * 1200, ',a="' * 4000, "," * 16000, '"' * 16000, "for=_" + "x" * 16000]
)
def test_a_long_value_costs_little(value: str) -> None:
    """Of the size of a whole head: within what a step of the event loop may take, by far."""
    begun = time.process_time()
    for _ in range(10):
        x_forwarded_for(value)
        forwarded(value)
    assert (time.process_time() - begun) / 10 < 0.1


def test_a_chain_is_followed_only_so_far() -> None:
    assert x_forwarded_for("203.0.113.7" + ", 10.0.0.1" * (MAX_HOPS - 1)) == "203.0.113.7"
    assert x_forwarded_for("203.0.113.7" + ", 10.0.0.1" * MAX_HOPS) == "10.0.0.1"
