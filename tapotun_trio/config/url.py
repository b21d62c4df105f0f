"""The URL to which a client connects.

Untrusted input; raises `Invalid` only. Stricter than RFC 3986 where it has no meaning for us
(credentials, fragment), and where ``urllib`` would silently mend (white space, control characters).
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Literal

from .diagnostics import MASK, quote
from .fields import Invalid
from .model import Url

_URL_CHARS: Final = 4096  # half of what nginx takes as one request line by default
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_CHARS: Final = 253  # RFC 1035, without the final dot
_EXAMPLE: Final = '"https://vpn.example.com/ip"'


def url(text: str) -> Url:
    """An http or https URL. Its host comes out in lower case, its path and query as they stand."""
    try:
        return _parse(text)
    except Invalid as exc:
        exc.shown = _without_secrets(text)
        raise


def _without_secrets(text: str) -> str:
    """The URL for a finding: a password before an ``@`` and a query, which may hold a key, are masked."""
    before, at, after = text.rpartition("@")
    if at:
        scheme = _SCHEME.match(before)
        text = f"{scheme.group() if scheme else ''}{MASK}@{after}"
    before, question, _ = text.partition("?")
    return quote(f"{before}?{MASK}" if question else text)


def _parse(text: str) -> Url:
    if len(text) > _URL_CHARS:
        raise Invalid(f"has more than {_URL_CHARS} characters", "write a shorter URL")
    if not text:
        raise Invalid("is empty", f"write a URL such as {_EXAMPLE}")
    if any(c.isspace() or not c.isprintable() for c in text):
        raise Invalid("has white space or control characters", "remove them, or write a space as %20")
    match = _SCHEME.match(text)
    if match is None:
        if re.match(r"https?:", text, re.IGNORECASE):
            raise Invalid("has no // after its scheme", f"write a URL such as {_EXAMPLE}")
        raise Invalid("has no scheme", f'write "http://..." or "https://...", such as {_EXAMPLE}')
    scheme = _scheme(match.group(1).lower())
    rest = text[match.end() :]
    cut = min((i for i in (rest.find(c) for c in "/?#") if i >= 0), default=len(rest))
    authority, target = rest[:cut], rest[cut:]
    if "#" in target:
        raise Invalid("has a fragment, which is never sent", "remove it from the # on")
    if not target.isascii():
        raise Invalid("has letters beyond ASCII in its path", "write them percent-encoded")
    if "@" in authority:
        raise Invalid(
            "has a user name or password",
            'remove it; the peer knows this client by "token" alone',
        )
    host, port = _authority(authority)
    if port is None:
        port = 443 if scheme == "https" else 80
    return Url(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _scheme(scheme: str) -> Literal["http", "https"]:
    if scheme == "http":
        return "http"
    if scheme == "https":
        return "https"
    if scheme in ("ws", "wss"):
        raise Invalid(f"has the scheme {scheme}", f"write http{'s' if scheme == 'wss' else ''} instead")
    raise Invalid("has neither the scheme http nor https", f"write a URL such as {_EXAMPLE}")


def _authority(authority: str) -> tuple[str, int | None]:
    if authority.startswith("["):
        literal, closed, after = authority[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise Invalid("has brackets that do not match", 'write "http://[2001:db8::1]:8080/"')
        return _ipv6(literal), _port(after)
    if authority.count(":") > 1:
        raise Invalid("has more than one colon in its host", 'write IPv6 as "http://[2001:db8::1]:8080/"')
    host, colon, port = authority.partition(":")
    return _host(host), _port(colon + port)


def _port(text: str) -> int | None:
    digits = text.removeprefix(":")
    if not digits:
        return None  # RFC 3986 section 3.2.3: an empty port is the default one
    # isascii: int() would take the digits of other scripts.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise Invalid("has no valid port", "write a port from 1 to 65535 after the host")
    if not 1 <= int(digits) <= 65535:
        raise Invalid("has a port out of range", "write a port from 1 to 65535 after the host")
    return int(digits)


def _ipv6(literal: str) -> str:
    if "%" in literal:
        raise Invalid("has a zone in its address", "write an address of wider scope, or a name")
    try:
        return str(IPv6Address(literal))
    except AddressValueError:
        raise Invalid("has no IPv6 address in its brackets", 'write "http://[2001:db8::1]:8080/"') from None


def _host(host: str) -> str:
    if not host:
        raise Invalid("has no host", f"write a URL such as {_EXAMPLE}")
    if not host.isascii():
        raise Invalid("has letters beyond ASCII in its host", _punycode(host))
    labels = host.removesuffix(".").split(".")
    if len(host) > _HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid("has no valid host name", f"write a URL such as {_EXAMPLE}")
    # A name whose last label is a number is an address to every resolver (WHATWG URL, "ends in a
    # number"), and 10.1 would be 10.0.0.1.
    if labels[-1].isdigit():
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise Invalid("has no valid IPv4 address as its host", 'write four numbers as in "10.0.0.1"') from None
    return host.lower()


def host_and_port(text: str) -> tuple[str, int | None]:
    """``host[:port]``, an IPv6 literal in brackets, which are not part of the result."""
    return _authority(text)


def host(text: str) -> str:
    """A host name or an address literal by itself, without brackets."""
    try:
        return _ipv6(text.removeprefix("[").removesuffix("]")) if ":" in text else _host(text)
    except Invalid as exc:
        if not text.isascii():  # of which it says how to write it in ASCII
            raise
        raise Invalid(
            "is no host name or address", 'write one such as "vpn.example.com", without a scheme or a port'
        ) from exc


def _punycode(host: str) -> str:
    try:
        return f"write {quote(host.encode('idna').decode('ascii'))}"
    except UnicodeError:
        return "write the host name in ASCII (punycode)"
