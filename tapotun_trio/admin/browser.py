"""Cookies, the Origin of a request, and the address under which its failures are counted.

Sans-IO. Untrusted input; never raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias

from ..http.forwarded import client_of

COOKIE: Final = "tapotun_session"
# The form of secrets.token_urlsafe(32).
_SESSION_ID: Final = re.compile(r"[0-9A-Za-z_-]{43}")
_MAX_COOKIES: Final = 64
_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s]{1,300})", re.IGNORECASE)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
# An address in the form of `client_of`, perhaps with a port.
_NODE: Final = re.compile(
    r"\[(?P<v6>[0-9A-Fa-f:.]+)\](?::[0-9]+)?|(?P<v4>[0-9.]+)(?::[0-9]+)?|(?P<bare>[0-9A-Fa-f:.]+)"
)

Address: TypeAlias = IPv4Address | IPv6Address


def session_ids(headers: Mapping[str, str]) -> list[str]:
    """The well-formed session identifiers in the Cookie header (RFC 6265 section 4.2).

    There may be several: a browser has one for each path, and a proxy may join several headers with commas.
    """
    found: list[str] = []
    for pair in re.split(r"[;,]", headers.get("cookie", ""), maxsplit=_MAX_COOKIES)[:_MAX_COOKIES]:
        name, _, value = pair.strip(" \t").partition("=")
        if name == COOKIE and _SESSION_ID.fullmatch(value):
            found.append(value)
    return found


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether the page that sends this request came from the same host.

    The scheme is not compared: behind a proxy that terminates TLS, we see http where the browser uses https.
    """
    match = _ORIGIN.fullmatch(headers.get("origin", ""))
    host = headers.get("host", "").lower()
    if match is None or not host:
        return False
    default = _DEFAULT_PORTS[match[1].lower()]
    return match[2].lower().removesuffix(default) == host.removesuffix(default)


def limited_as(remote: str | None, headers: Mapping[str, str]) -> str:
    """The name under which failed logins are counted. ``remote``: the connection's address; None: a Unix socket.

    Forwarding headers are believed if the connection comes from this machine, as a proxy's does. Another local program
    can forge them, and so use up the limit of another address. An IPv6 /64 counts as one address, since every home has
    a whole /64.
    """
    address = _address(remote) if remote is not None else None
    if remote is None or (address is not None and address.is_loopback):
        found = _NODE.fullmatch(client_of(headers, lambda hop: hop.is_loopback) or "")
        claimed = None if found is None else _address(found["v6"] or found["v4"] or found["bare"])
        address = claimed or address
    if address is None:
        return "unix" if remote is None else "unknown"
    return str(address) if address.version == 4 else str(ip_network((address, 64), strict=False))


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])  # the zone of a link-local address may be any text
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
