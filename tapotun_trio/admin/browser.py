"""What browsers say of themselves: cookies, and the page that a request comes from.

Sans-IO. Untrusted input; never raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias

from ..http.forwarded import client_of

COOKIE: Final = "tapotun_session"
# What secrets.token_urlsafe(32) makes.
_SESSION_ID: Final = re.compile(r"[0-9A-Za-z_-]{43}")
_MAX_COOKIES: Final = 64
_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s]{1,300})", re.IGNORECASE)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
# An address as `client_of` shows it, perhaps with a port.
_NODE: Final = re.compile(
    r"\[(?P<v6>[0-9A-Fa-f:.]+)\](?::[0-9]+)?|(?P<v4>[0-9.]+)(?::[0-9]+)?|(?P<bare>[0-9A-Fa-f:.]+)"
)

Address: TypeAlias = IPv4Address | IPv6Address


def session_ids(headers: Mapping[str, str]) -> list[str]:
    """What the Cookie header (RFC 6265 section 4.2) has under our name and looks like one of our own; a browser that
    was here under another path may send several. A proxy may have joined several headers with commas."""
    found: list[str] = []
    for pair in re.split(r"[;,]", headers.get("cookie", ""), maxsplit=_MAX_COOKIES)[:_MAX_COOKIES]:
        name, _, value = pair.strip(" \t").partition("=")
        if name == COOKIE and _SESSION_ID.fullmatch(value):
            found.append(value)
    return found


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether the page that sends this request came from the host that it is sent to.

    The scheme is not compared: a proxy ends TLS, and says http to us of what a browser has by https.
    """
    match = _ORIGIN.fullmatch(headers.get("origin", ""))
    host = headers.get("host", "").lower()
    if match is None or not host:
        return False
    default = _DEFAULT_PORTS[match[1].lower()]
    return match[2].lower().removesuffix(default) == host.removesuffix(default)


def limited_as(remote: str | None, headers: Mapping[str, str]) -> str:
    """Under what name an address' failures are counted. ``remote``: the connection's; None: a Unix socket's.

    A proxy on this machine is believed whom it speaks for; who else writes such headers on this machine gets a count of
    its own, or spends another's, and everybody's count together is limited too. Of IPv6 a whole /64 counts as one: so
    much has every home.
    """
    address = _address(remote) if remote is not None else None
    if remote is None or (address is not None and address.is_loopback):
        found = _NODE.fullmatch(client_of(headers, lambda it: it.is_loopback) or "")
        told = None if found is None else _address(found["v6"] or found["v4"] or found["bare"])
        address = told or address
    if address is None:
        return "unix" if remote is None else "unknown"
    return str(address) if address.version == 4 else str(ip_network((address, 64), strict=False))


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])  # the zone of a link-local one may be any text
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
