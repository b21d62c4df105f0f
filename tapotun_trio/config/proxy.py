"""The HTTP proxy through which a client connects: from its config, or from the environment as curl reads it.

Untrusted input; raises `Invalid` only, whose words never show a login.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Final

from .diagnostics import MASK, quote
from .fields import Invalid
from .model import NO_PROXY, NoProxy, Proxy, Secret, Url
from .url import host_and_port

_EXAMPLE: Final = '"http://proxy.example.com:3128"'
_CHARS: Final = 4096
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A host, and what can only be meant as its port; behind a scheme that people give proxies, since user://password may be
# what is left of a login.
_NO_LOGIN: Final = re.compile(r"((?i:https?|socks[45]?[ah]?|ftp)://)?([^:@]*|\[[0-9A-Fa-f:.]*\])(:[0-9]{0,5})?/?")


def proxy(text: str) -> Proxy | NoProxy:
    """``http://[user:pass@]host:port``, user and password percent-encoded where they must be, or ``none``."""
    if text == "none":
        return NO_PROXY
    return _proxy(text, bare=False)


def from_environment(url: Url, environ: Mapping[str, str]) -> tuple[str, Proxy] | None:
    """The variable that names a proxy for this URL, and the proxy; None: there is none, or `bypassed`.

    As curl has it: the lower-case name first, and no HTTP_PROXY, which a web server sets to whatever a client sent
    it as a header `Proxy`. An empty variable counts as none. Invalid's text names the variable.
    """
    names = ["http_proxy"] if url.scheme == "http" else ["https_proxy", "HTTPS_PROXY"]
    name = next((name for name in (*names, "all_proxy", "ALL_PROXY") if environ.get(name)), None)
    if name is None or bypassed(url.host, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    try:
        return name, _proxy(environ[name], bare=True)
    except Invalid as exc:
        raise Invalid(f"the environment's {name} {exc.problem}", f'{exc.remedy}, or set "proxy" in the config') from exc


def bypassed(host: str, no_proxy: str) -> bool:
    """Whether a list of names (with all below them), addresses and networks, or ``*``, has this host. Never raises:
    what is none of these matches nothing."""
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


def _proxy(text: str, *, bare: bool) -> Proxy:
    """``bare``: the scheme may be left out."""
    try:
        return _parse(text, bare=bare)
    except Invalid as exc:
        before, at, after = text.rpartition("@")
        scheme = _SCHEME.match(before if at else text)
        begin = scheme.group() if scheme else ""
        if at:
            exc.shown = quote(f"{begin}{MASK}@{after}")
        else:  # user:pass, perhaps, whose @host was forgotten
            exc.shown = quote(text if _NO_LOGIN.fullmatch(text) else f"{begin}{MASK}")
        raise


def _parse(text: str, *, bare: bool) -> Proxy:
    if len(text) > _CHARS:
        raise Invalid(f"has more than {_CHARS} characters", "write a shorter URL")
    if not text.isascii() or any(c.isspace() or not c.isprintable() for c in text):
        raise Invalid("has white space, control characters or letters beyond ASCII", "write them percent-encoded")
    match = _SCHEME.match(text)
    if match is None and not bare:
        raise Invalid("is no proxy's URL", f'write one such as {_EXAMPLE}, or "none"')
    if match is not None and match.group(1).lower() != "http":
        scheme = match.group(1).lower()
        raise Invalid(f"has the scheme {scheme}", f"use a proxy that speaks HTTP, such as {_EXAMPLE}")
    rest = text[match.end() :] if match else text
    login, at, authority = rest.rpartition("@")
    authority, _, path = authority.partition("/")
    if path or "?" in authority or "#" in authority:
        raise Invalid("has a path", "remove what stands behind the port; write / in a password as %2F")
    host, port = host_and_port(authority)
    if port is None:
        raise Invalid("has no port", f"write it, as in {_EXAMPLE}")
    return Proxy(host, port, _login(login) if at else None)


def _login(text: str) -> Secret:
    """``user:pass``, decoded. The bytes are kept as Latin-1; RFC 7617 does not say what they are in."""
    from urllib.parse import unquote_to_bytes  # most clients need none of it

    user, _, password = text.partition(":")
    decoded = [unquote_to_bytes(part).decode("latin-1") for part in (user, password)]
    if not decoded[0] or ":" in decoded[0]:
        raise Invalid("has no user name before its password, or one with a colon", "write user:pass before the @")
    if any(ord(c) < 0x20 or ord(c) == 0x7F for part in decoded for c in part):
        raise Invalid("has control characters in its login", "write the login as the proxy knows it")
    return Secret(":".join(decoded))
