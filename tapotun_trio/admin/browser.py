"""Cookies, the Origin of a request, and the address under which its failures are counted.

Sans-IO. Untrusted input; never raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
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
    """The address from which failed logins are counted; `limits` says which addresses are counted together. "unix" or
    "unknown": there is none. ``remote``: the connection's address, maybe with a zone; None: a Unix socket.

    Forwarding headers are believed if the connection comes from this machine, as a proxy's does. Another local program
    can forge them, and so use up the limit of another address.
    """
    address = _address(remote) if remote is not None else None
    if remote is None or (address is not None and address.is_loopback):
        found = _NODE.fullmatch(client_of(headers, lambda hop: hop.is_loopback) or "")
        claimed = None if found is None else _address(found["v6"] or found["v4"] or found["bare"])
        address = claimed or address
    if address is None:
        return "unix" if remote is None else "unknown"
    return str(address)


def _address(text: str) -> Address | None:
    """An address with its zone, if it is link-local."""
    bare, _, zone = text.partition("%")
    try:
        address = ip_address(bare)
        if isinstance(address, IPv4Address):
            return address
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        # The zone is the name of an interface, so it may be nearly any text.
        return IPv6Address(f"{bare}%{zone}") if zone and address.is_link_local else address
    except ValueError:
        return None
