"""The client of a request and its scheme, from `X-Forwarded-For` and `X-Forwarded-Proto` or `Forwarded` (RFC 7239).

Sans-IO. Untrusted input; never raises. Every proxy adds the address of its own peer at the right end. So the headers
are read from the right, up to the first address that is not a trusted proxy. The rest may be forged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, TypeAlias

from ..text import shorten

Address: TypeAlias = IPv4Address | IPv6Address

ENCRYPTED_SCHEMES: Final = {"https": True, "wss": True, "http": False, "ws": False}
UNKNOWN: Final = "unknown"  # RFC 7239 section 6.2; also our name for an address that we cannot parse
MAX_HOPS: Final = 16
# The part at the right end that is parsed: enough for sixteen elements with every parameter of RFC 7239.
_TAIL_CHARS: Final = 4096
_HIDDEN_CHARS: Final = 40

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# The last element of a Forwarded value, and the separator before it. The search begins at the right end, so that an
# element further left, for example one with an unclosed quote, cannot hide an element that a proxy wrote after it.
_QUOTED: Final = r'"((?:[^"\\]|\\.)*)"'
_PAIR: Final = re.compile(rf"({_TOKEN})=(?:({_TOKEN})|{_QUOTED})")
_ELEMENT: Final = re.compile(rf"[ \t]*(?:{_PAIR.pattern}(?:;{_PAIR.pattern})*)?[ \t]*")
# RFC 7239 section 6: a node and its port. Either may be an obfuscated name.
_NODE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+|unknown|_[0-9A-Za-z._-]+)(?::([0-9]{1,5}|_[0-9A-Za-z._-]+))?")


def client_of(headers: Mapping[str, str], trusted: Callable[[Address], bool]) -> str | None:
    """The client, for logs: the rightmost address that is not ``trusted``; the leftmost, if all are.

    Returns ``203.0.113.7``, or ``[2001:db8::1]:4711`` if the port is given; an obfuscated name, ``_hidden``; or
    `UNKNOWN`. None: neither header is there. `X-Forwarded-For` has precedence over `Forwarded`: nearly every proxy sets
    it, and many pass the other one on unchanged.

    ``headers``: lowercase name to value.
    """
    forwarded_for = headers.get("x-forwarded-for", "").strip()
    if forwarded_for:
        return _farthest(_addresses(forwarded_for), trusted).name
    forwarded = headers.get("forwarded", "").strip()
    if forwarded:
        return _farthest(_nodes(forwarded), trusted).name
    return None


def client_is_encrypted(headers: Mapping[str, str], trusted: Callable[[Address], bool]) -> bool | None:
    """Whether the client of `client_of` speaks TLS to the first of the trusted proxies, according to that proxy.

    None: not known. That is also the answer to a scheme other than http, https, ws and wss, and to a client address
    that is itself a trusted proxy, since then the real client is unknown.

    If `X-Forwarded-For` names the client, only `X-Forwarded-Proto` is read. If `Forwarded` does, only the ``proto`` of
    the client's element is read. The other kind is ignored, because a proxy may forward it as the client wrote it. Each
    of several proxies in a row has to add its own `X-Forwarded-Proto`, because a single value may be from any of them.

    ``headers``: lowercase name to value.
    """
    forwarded_for = headers.get("x-forwarded-for", "").strip()
    forwarded = headers.get("forwarded", "").strip()
    hops = 1  # without a client address, only the nearest proxy is known to have written headers
    if forwarded_for or forwarded:
        client = _farthest(_addresses(forwarded_for) if forwarded_for else _nodes(forwarded), trusted)
        if client.is_trusted:
            return None
        if not forwarded_for:
            return ENCRYPTED_SCHEMES.get(client.scheme.lower())
        hops = client.hops
    schemes = _list(headers.get("x-forwarded-proto", ""))
    scheme = next((scheme for hop, scheme in enumerate(schemes, 1) if hop == hops), UNKNOWN)
    return ENCRYPTED_SCHEMES.get(scheme.lower())


class _Element(NamedTuple):
    """What a proxy wrote about its peer. ``scheme``: unchecked text; empty if there is none."""

    node: str
    scheme: str = ""


class _Client(NamedTuple):
    """``hops``: how many elements were read, including the client's. ``is_trusted``: all are trusted proxies."""

    name: str
    scheme: str
    hops: int
    is_trusted: bool


def _farthest(elements: Iterator[_Element], trusted: Callable[[Address], bool]) -> _Client:
    """The first element that is not a trusted proxy, or else the last one. ``elements``: from right to left."""
    client = _Client(UNKNOWN, "", 0, is_trusted=False)
    for hops, element in zip(range(1, MAX_HOPS + 1), elements, strict=False):
        name, address = _read(element.node)
        client = _Client(name, element.scheme, hops, is_trusted=address is not None and trusted(address))
        if not client.is_trusted:
            break
    return client


def _list(value: str) -> Iterator[str]:
    """The elements of a comma-separated list without quotes, from right to left."""
    stripped = (element.strip(" \t") for element in reversed(value[-_TAIL_CHARS:].split(",")))
    return (element for element in stripped if element)


def _addresses(value: str) -> Iterator[_Element]:
    """Elements of X-Forwarded-For, from right to left. An IPv6 address may have brackets, as in Forwarded, or not."""
    for node in _list(value):
        yield _Element(f"[{node}]" if node.count(":") > 1 and not node.startswith("[") else node)


def _nodes(value: str) -> Iterator[_Element]:
    """The ``for`` and ``proto`` of each element of Forwarded, from right to left; `UNKNOWN` for one without ``for``."""
    rest = value[-_TAIL_CHARS:]
    while rest:
        element, rest = _last_element(rest)
        if element is None:
            yield _Element(UNKNOWN)
        elif element:
            values = {name.lower(): token or re.sub(r"\\(.)", r"\1", text) for name, token, text in _pairs(element)}
            yield _Element(values.get("for", UNKNOWN), values.get("proto", ""))


def _last_element(value: str) -> tuple[str | None, str]:
    """The last element, and the value before it; None: the end of the value is not an element."""
    comma = len(value)
    for _ in range(MAX_HOPS):  # there may be commas within its quotes
        comma = value.rfind(",", 0, comma)
        if _ELEMENT.fullmatch(value, comma + 1):
            return value[comma + 1 :].strip(" \t"), value[: max(comma, 0)]
        if comma < 0:
            break
    return None, ""


def _pairs(element: str) -> Iterator[tuple[str, str, str]]:
    """Name, token and quoted text of each pair, matched in order, so that quoted text is never taken for a pair."""
    return ((found[1], found[2] or "", found[3] or "") for found in _PAIR.finditer(element))


def _read(node: str) -> tuple[str, Address | None]:
    """A node for logs, and its address if it has one. Only parsed parts are shown."""
    found = _NODE.fullmatch(node)
    if found is None:
        return UNKNOWN, None
    host, port = found[1], found[2]
    if host.startswith("_"):
        return shorten(host, _HIDDEN_CHARS), None
    address = _address(host)
    if address is None:
        return UNKNOWN, None
    if port is None or port.startswith("_"):
        return str(address), address
    return with_port(address, int(port)), address


def _address(host: str) -> Address | None:
    try:
        if host.startswith("["):
            address = IPv6Address(host[1:-1])
            return address.ipv4_mapped or address
        return IPv4Address(host)
    except ValueError:
        return None


def with_port(address: Address, port: int) -> str:
    """``203.0.113.7:4711``, ``[2001:db8::1]:4711``."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
