"""Who a request is from, by what proxies wrote into `X-Forwarded-For` or `Forwarded` (RFC 7239).

Sans-IO. Untrusted input; never raises. Every proxy adds its own peer at the right end, so both are read from there,
and only as far as the proxies are trusted: what stands further left anybody may have written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from ..text import shorten

Address: TypeAlias = IPv4Address | IPv6Address

UNKNOWN: Final = "unknown"  # RFC 7239 section 6.2; and what we say of what we cannot read
MAX_HOPS: Final = 16
# More than that nobody reads for us: sixteen elements with everything that RFC 7239 has for them.
_TAIL_CHARS: Final = 4096
_HIDDEN_CHARS: Final = 40

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# The last element of a Forwarded value, with what separates it from the one before. Found from its end: whatever an
# element further left looks like (a quote that never ends, say), it cannot hide what a proxy wrote behind it.
_QUOTED: Final = r'"((?:[^"\\]|\\.)*)"'
_PAIR: Final = re.compile(rf"({_TOKEN})=(?:({_TOKEN})|{_QUOTED})")
_ELEMENT: Final = re.compile(rf"[ \t]*(?:{_PAIR.pattern}(?:;{_PAIR.pattern})*)?[ \t]*")
# RFC 7239 section 6: a node, and a port which may be hidden too.
_NODE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+|unknown|_[0-9A-Za-z._-]+)(?::([0-9]{1,5}|_[0-9A-Za-z._-]+))?")


def client_of(headers: Mapping[str, str], trusted: Callable[[Address], bool]) -> str | None:
    """The client, for people: ``203.0.113.7``, with its port if that was said: ``[2001:db8::1]:4711``; `UNKNOWN`, or a
    name for it that a proxy made up: ``_hidden``. None: no proxy has said a thing.

    ``headers``: lowercase name to value. It is the rightmost address that is not ``trusted``; if all are, the leftmost.
    `X-Forwarded-For` goes before `Forwarded`: nearly every proxy sets it, and many pass the other on as it came.
    """
    forwarded_for = headers.get("x-forwarded-for", "").strip()
    if forwarded_for:
        return _farthest(_addresses(forwarded_for), trusted)
    forwarded = headers.get("forwarded", "").strip()
    if forwarded:
        return _farthest(_nodes(forwarded), trusted)
    return None


def _farthest(nodes: Iterator[str], trusted: Callable[[Address], bool]) -> str:
    """Of nodes from right to left, the first one that is not trusted."""
    name = UNKNOWN
    for _, node in zip(range(MAX_HOPS), nodes, strict=False):
        name, address = _read(node)
        if address is None or not trusted(address):
            break
    return name


def _addresses(value: str) -> Iterator[str]:
    """Elements of X-Forwarded-For, from right to left. IPv6 stands there bare, or as in Forwarded."""
    for element in reversed(value[-_TAIL_CHARS:].split(",")):
        node = element.strip(" \t")
        if node:
            yield f"[{node}]" if node.count(":") > 1 and not node.startswith("[") else node


def _nodes(value: str) -> Iterator[str]:
    """The ``for`` of the elements of Forwarded, from right to left; no node where there is none."""
    rest = value[-_TAIL_CHARS:]
    while rest:
        element, rest = _last_element(rest)
        if element is None:
            yield UNKNOWN
        elif element:
            values = {name.lower(): token or re.sub(r"\\(.)", r"\1", text) for name, token, text in _pairs(element)}
            yield values.get("for", UNKNOWN)


def _last_element(value: str) -> tuple[str | None, str]:
    """The last element and what stands before it; None if the end is not an element at all."""
    comma = len(value)
    for _ in range(MAX_HOPS):  # there may be commas within its quotes
        comma = value.rfind(",", 0, comma)
        if _ELEMENT.fullmatch(value, comma + 1):
            return value[comma + 1 :].strip(" \t"), value[: max(comma, 0)]
        if comma < 0:
            break
    return None, ""


def _pairs(element: str) -> Iterator[tuple[str, str, str]]:
    """Name, token and quoted text of each pair. One after another, so that nothing within quotes is taken for one."""
    return ((found[1], found[2] or "", found[3] or "") for found in _PAIR.finditer(element))


def _read(node: str) -> tuple[str, Address | None]:
    """A node for people, and its address if it has one. Nothing is shown but what was understood."""
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
