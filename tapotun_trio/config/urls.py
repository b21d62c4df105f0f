"""The URL to which a client connects, and the HTTP proxy through which it connects.

The proxy comes from the config, or from the environment as curl reads it.

Untrusted input; every parser raises `InvalidValue` only. Its text never shows a login, a password or a query. Parsing
is stricter than RFC 3986: it refuses fragments, which have no meaning here, and white space and control characters,
which ``urllib`` would silently correct.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Literal

from ..families import IPAddress
from .diagnostics import MASK, InvalidValue, quote
from .model import NO_PROXY, NoProxy, Proxy, Secret, Url
from .parsers import LOGIN_BYTES

_URL_CHARS: Final = 4096  # half of what nginx accepts as one request line by default
_BROADCAST: Final = IPv4Address("255.255.255.255")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_CHARS: Final = 253  # RFC 1035, without the final dot
# The name of an interface, of at most IFNAMSIZ - 1 bytes, in the characters that RFC 6874 allows without encoding; or
# its number, for an interface with a stranger name.
_ZONE: Final = re.compile(r"[A-Za-z0-9._~-]{1,15}")
_PATH: Final = re.compile(r"[/?#].*", re.DOTALL)
# A host with an optional port, or text like an IPv6 literal. Any other authority may be user:password without the
# @host.
_NO_PASSWORD: Final = re.compile(r"[^:]*(:[0-9]{0,5})?|\[.*|[0-9A-Fa-f:.]*", re.DOTALL)
_URL_EXAMPLE: Final = '"https://vpn.example.com/ip"'
_PROXY_EXAMPLE: Final = '"http://proxy.example.com:3128"'
# A scheme that people write for proxies, a host, and a text that can only be meant as its port. Any other text may be
# the rest of a login: user://password.
_NO_LOGIN: Final = re.compile(r"((?i:https?|socks[45]?[ah]?|ftp)://)?([^:@]*|\[[0-9A-Fa-f:.]*\])(:[0-9]{0,5})?/?")


# ------------------------------------------------------------------ the server's URL


def parse_url(text: str) -> tuple[Url, Secret | None]:
    """Parse an http or https URL. Returns also the login in it, ``user:pass``, percent-decoded; None: it has none.

    The host becomes lower case; path and query are unchanged.
    """
    try:
        return _parse_url(text)
    except InvalidValue as exc:
        exc.shown = _without_secrets(text)
        raise


def _without_secrets(text: str) -> str:
    """Return the URL for a finding. A login before an ``@`` is masked, and a query too, because it may contain a key.

    Text that may be a login without its ``@host`` is masked too.
    """
    scheme = _SCHEME.match(text) or re.match(r"https?:", text, re.IGNORECASE)
    begin = scheme.group() if scheme else ""
    _, at, after = text.rpartition("@")
    if at:
        text = f"{begin}{MASK}@{after}"
    elif not _NO_PASSWORD.fullmatch(_PATH.sub("", text.removeprefix(begin))):
        text = f"{begin}{MASK}"
    before, question, _ = text.partition("?")
    return quote(f"{before}?{MASK}" if question else text)


def _parse_url(text: str) -> tuple[Url, Secret | None]:
    if len(text) > _URL_CHARS:
        raise InvalidValue(f"has more than {_URL_CHARS} characters", "write a shorter URL")
    if not text:
        raise InvalidValue("is empty", f"write a URL such as {_URL_EXAMPLE}")
    if any(c.isspace() or not c.isprintable() for c in text):
        raise InvalidValue("has white space or control characters", "remove them, or write a space as %20")
    match = _SCHEME.match(text)
    if match is None:
        if re.match(r"https?:", text, re.IGNORECASE):
            raise InvalidValue("has no // after its scheme", f"write a URL such as {_URL_EXAMPLE}")
        raise InvalidValue("has no scheme", f'write "http://..." or "https://...", such as {_URL_EXAMPLE}')
    scheme = _scheme(match.group(1).lower())
    rest = text[match.end() :]
    cut = min((i for i in (rest.find(c) for c in "/?#") if i >= 0), default=len(rest))
    authority, target = rest[:cut], rest[cut:]
    if "@" in target and "@" not in authority and not _NO_PASSWORD.fullmatch(authority):
        raise InvalidValue(f"has a {target[0]} in its password", f"write it as %{ord(target[0]):02X}")
    if "#" in target:
        raise InvalidValue("has a fragment, which is never sent", "remove the # and what follows it")
    if not target.isascii():
        raise InvalidValue("has letters beyond ASCII in its path", "write them percent-encoded")
    given, at, authority = authority.rpartition("@")
    login = _url_login(given) if at else None
    host, port = _split_authority(authority)
    if port is None:
        port = 443 if scheme == "https" else 80
    return Url(scheme, host, port, target if target.startswith("/") else f"/{target}"), login


def _url_login(text: str) -> Secret:
    """Return the login of the server's URL, for Basic auth."""
    if not text.isascii():
        raise InvalidValue("has letters beyond ASCII in its login", "write them percent-encoded")
    if ":" not in text:
        raise InvalidValue(
            "has a user name without a password",
            'write user:password before the @, or leave it out and use "user" and "password_file"',
        )
    login = _login(text)
    if not login.reveal().partition(":")[2]:
        raise InvalidValue("has an empty password", "write user:password before the @")
    if len(login.reveal()) > LOGIN_BYTES:
        raise InvalidValue(f"has a login of more than {LOGIN_BYTES} bytes", "choose a shorter password")
    return login


def _scheme(scheme: str) -> Literal["http", "https"]:
    if scheme == "http":
        return "http"
    if scheme == "https":
        return "https"
    if scheme in ("ws", "wss"):
        raise InvalidValue(f"has the scheme {scheme}", f"write http{'s' if scheme == 'wss' else ''} instead")
    raise InvalidValue("has neither the scheme http nor https", f"write a URL such as {_URL_EXAMPLE}")


# ------------------------------------------------------------------ host and port


def parse_host(text: str) -> str:
    """A host name or an address literal alone. Brackets around an IPv6 literal are removed."""
    try:
        return str(_ipv6(text.removeprefix("[").removesuffix("]"))) if ":" in text else _host(text)
    except InvalidValue as exc:
        if not text.isascii():  # exc says how to write it in ASCII
            raise
        raise InvalidValue(
            "is not a host name or address", 'write one such as "vpn.example.com", without a scheme or a port'
        ) from exc


def _split_authority(authority: str) -> tuple[str, int | None]:
    """``host[:port]``. Brackets around an IPv6 literal are removed, and its zone is decoded: ``fe80::1%eth0``."""
    if authority.startswith("["):
        literal, closed, after = authority[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise InvalidValue("has brackets that do not match", 'write "http://[2001:db8::1]:8080/"')
        return _host_on_link(literal), _port(after)
    if authority.count(":") > 1:
        raise InvalidValue("has more than one colon in its host", 'write IPv6 as "http://[2001:db8::1]:8080/"')
    host, colon, port = authority.partition(":")
    host = _host(host)
    if host.replace(".", "").isdigit():
        _require_one_machine(IPv4Address(host))
    return host, _port(colon + port)


def _require_one_machine(address: IPAddress) -> None:
    """Refuse an address to which nobody can connect, or which Linux takes for another one."""
    this, other = "[::1]", "http://[2001:db8::1]:8080/"
    if address.version == 4:
        this, other = "127.0.0.1", "http://10.0.0.1:8080/"
    if address.is_unspecified:
        raise InvalidValue("has the unspecified address as its host", f'write "{this}" for this machine')
    if address.is_multicast:
        raise InvalidValue("has a multicast address as its host", f'write one such as "{other}"')
    if address == _BROADCAST:
        raise InvalidValue("has the broadcast address as its host", f'write one such as "{other}"')


def _port(text: str) -> int | None:
    digits = text.removeprefix(":")
    if not digits:
        return None  # RFC 3986 section 3.2.3: an empty port is the default one
    # isascii: int() would accept the digits of other scripts.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise InvalidValue("has no valid port", "write a port from 1 to 65535 after the host")
    if not 1 <= int(digits) <= 65535:
        raise InvalidValue("has a port out of range", "write a port from 1 to 65535 after the host")
    return int(digits)


def _ipv6(literal: str) -> IPv6Address:
    if "%" in literal:
        raise InvalidValue("has a zone in its address", "leave out the % and what follows it")
    try:
        return IPv6Address(literal)
    except AddressValueError:
        raise InvalidValue("has no IPv6 address in its brackets", 'write "http://[2001:db8::1]:8080/"') from None


def _host_on_link(literal: str) -> str:
    """An IPv6 address to connect to. A link-local one needs a zone, written after %25 (RFC 6874 section 2)."""
    start, percent, zone = literal.partition("%")
    address = _ipv6(start)
    if address.ipv4_mapped is not None:
        raise InvalidValue("is an IPv4-mapped IPv6 address", f"write {quote(str(address.ipv4_mapped))}")
    _require_one_machine(address)
    if not address.is_link_local:
        return str(_ipv6(literal))
    if not percent:
        raise InvalidValue("is link-local and has no zone", f'write the interface to it, as in "[{address}%25eth0]"')
    if not zone.startswith("25") or not _ZONE.fullmatch(zone := zone[2:]):
        raise InvalidValue("has no valid zone", f'write %25 and the interface, as in "[{address}%25eth0]"')
    return f"{address}%{zone}"


def _host(host: str) -> str:
    if not host:
        raise InvalidValue("has no host", f"write a URL such as {_URL_EXAMPLE}")
    if not host.isascii():
        raise InvalidValue("has letters beyond ASCII in its host", _punycode(host))
    labels = host.removesuffix(".").split(".")
    if len(host) > _HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidValue("has no valid host name", f"write a URL such as {_URL_EXAMPLE}")
    # Every resolver treats a name whose last label is a number as an address (WHATWG URL, "ends in a number"): 10.1
    # would be 10.0.0.1.
    if labels[-1].isdigit():
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise InvalidValue("has no valid IPv4 address as its host", 'write four numbers as in "10.0.0.1"') from None
    return host.lower()


def _punycode(host: str) -> str:
    try:
        return f"write {quote(host.encode('idna').decode('ascii'))}"
    except UnicodeError:
        return "write the host name in ASCII (punycode)"


# ------------------------------------------------------------------ the proxy


def parse_proxy(text: str) -> Proxy | NoProxy:
    """``none``, or ``http://[user:pass@]host:port`` with user and password percent-encoded where necessary."""
    if text == "none":
        return NO_PROXY
    return _parse_proxy_url(text, scheme_optional=False)


def proxy_from_environment(url: Url, environ: Mapping[str, str]) -> tuple[str, Proxy] | None:
    """The environment's proxy for a URL: the name of the variable and the proxy, or None if there is none.

    Follows curl. The lower-case name comes first. HTTP_PROXY is not read, because a web server that runs CGI programs
    sets it to the request header ``Proxy``, which any client can send. An empty variable counts as unset, and
    ``no_proxy`` may exempt the host. Raises InvalidValue, whose text names the variable.
    """
    names = ["http_proxy"] if url.scheme == "http" else ["https_proxy", "HTTPS_PROXY"]
    name = next((name for name in (*names, "all_proxy", "ALL_PROXY") if environ.get(name)), None)
    if name is None or bypasses_proxy(url.host, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    try:
        return name, _parse_proxy_url(environ[name], scheme_optional=True)
    except InvalidValue as exc:
        remedy = f'{exc.remedy}, or set "proxy" in the config'
        raise InvalidValue(f"the environment's {name} {exc.problem}", remedy) from exc


def bypasses_proxy(host: str, no_proxy: str) -> bool:
    """Whether ``no_proxy`` lists this host.

    The list has names, which include their subdomains, addresses, networks, or ``*`` for every host. Never raises: an
    entry that is none of these matches nothing.
    """
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    name = host.lower().rstrip(".")
    for entry in re.split(r"[,\s]+", no_proxy):
        if entry == "*":
            return True
        if address is not None:
            try:
                network = ip_network(entry.replace("[", "").replace("]", ""), strict=False)
            except ValueError:
                continue
            if address.version == network.version and address in network:
                return True
        elif (suffix := entry.lower().strip(".")) and (name == suffix or name.endswith(f".{suffix}")):
            return True
    return False


def _parse_proxy_url(text: str, *, scheme_optional: bool) -> Proxy:
    """Parse a proxy's URL. An error shows the URL with its login masked."""
    try:
        return _split_proxy_url(text, scheme_optional=scheme_optional)
    except InvalidValue as exc:
        before, at, after = text.rpartition("@")
        scheme = _SCHEME.match(before if at else text)
        begin = scheme.group() if scheme else ""
        if at:
            exc.shown = quote(f"{begin}{MASK}@{after}")
        else:  # the text may be user:pass without the @host
            exc.shown = quote(text if _NO_LOGIN.fullmatch(text) else f"{begin}{MASK}")
        raise


def _split_proxy_url(text: str, *, scheme_optional: bool) -> Proxy:
    if len(text) > _URL_CHARS:
        raise InvalidValue(f"has more than {_URL_CHARS} characters", "write a shorter URL")
    if not text.isascii() or any(c.isspace() or not c.isprintable() for c in text):
        raise InvalidValue("has white space, control characters or letters beyond ASCII", "write them percent-encoded")
    match = _SCHEME.match(text)
    if match is None and not scheme_optional:
        raise InvalidValue("is not the URL of a proxy", f'write one such as {_PROXY_EXAMPLE}, or "none"')
    if match is not None and match.group(1).lower() != "http":
        scheme = match.group(1).lower()
        raise InvalidValue(f"has the scheme {scheme}", f"use a proxy that speaks HTTP, such as {_PROXY_EXAMPLE}")
    rest = text[match.end() :] if match else text
    login, at, authority = rest.rpartition("@")
    authority, _, path = authority.partition("/")
    if path or "?" in authority or "#" in authority:
        raise InvalidValue("has a path", "remove what follows the port; write / in a password as %2F")
    host, port = _split_authority(authority)
    if port is None:
        raise InvalidValue("has no port", f"write it, as in {_PROXY_EXAMPLE}")
    return Proxy(host, port, _login(login) if at else None)


def _login(text: str) -> Secret:
    """``user:pass``, decoded. Each byte becomes one Latin-1 character; RFC 7617 leaves the encoding open."""
    from urllib.parse import unquote_to_bytes  # imported here, because most clients have no proxy

    user, _, password = text.partition(":")
    decoded = [unquote_to_bytes(part).decode("latin-1") for part in (user, password)]
    if not decoded[0] or ":" in decoded[0]:
        raise InvalidValue("has no user name before its password, or one with a colon", "write user:pass before the @")
    if any(ord(c) < 0x20 or ord(c) == 0x7F for part in decoded for c in part):
        raise InvalidValue("has control characters in its login", "write the login as the other end knows it")
    return Secret(":".join(decoded))
