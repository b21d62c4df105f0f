"""What a root object has beside its interfaces: ``admin``, ``log`` and ``update``.

Untrusted input; raises `Invalid` only, whose words never show a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Final, cast

from . import fields
from .common import LoadContext
from .decode import Node
from .diagnostics import MASK, quote
from .fields import Invalid
from .model import (
    AdminConfig,
    ClientConfig,
    InterfaceConfig,
    ListenAddress,
    LogConfig,
    LogFormat,
    LogLevel,
    Secret,
    ServerConfig,
    TcpAddress,
    TokenHash,
    UnixAddress,
)

LOOPBACK: Final = "127.0.0.1"
_EXAMPLE: Final = '"127.0.0.1:9433"'
_PORT: Final = re.compile(r"[0-9]{1,5}")
_HASH: Final = re.compile(r"[0-9a-f]{40}|sha256:.*", re.IGNORECASE | re.DOTALL)


def read_admin(root: Node, interfaces: Iterable[InterfaceConfig], reading: LoadContext) -> AdminConfig | None:
    """None if there is none, or errors were reported. After all ``interfaces``."""
    node = root.get("admin", Node)
    if node is None:
        return None
    path, port = node.at("listen"), node.get("listen", int)
    endpoint: ListenAddress | None = None if port is None else TcpAddress(LOOPBACK, port)
    if endpoint is None:
        endpoint = reading.parse(path, node.get("listen", str), listen)
    text = node.get("token", str)
    token = reading.parse(node.at("token"), text, admin_token)
    if endpoint is None:
        return None
    reading.claims.admin_listener(path, endpoint)
    if isinstance(endpoint, TcpAddress) and not ip_address(endpoint.address).is_loopback:
        own = {
            str(it) for server in interfaces if isinstance(server, ServerConfig) for it in (server.net.ip, *server.ips)
        }
        has_clients = any(isinstance(it, ClientConfig) for it in interfaces)  # whose address their server tells
        if endpoint.address in own or (has_clients and ":" not in endpoint.address):
            endpoint = replace(endpoint, early=True)
        _judge_exposed(node, endpoint, reading, in_tunnel=endpoint.address in own)
    return AdminConfig(endpoint, token)


def _judge_exposed(node: Node, endpoint: TcpAddress, reading: LoadContext, *, in_tunnel: bool) -> None:
    if "token" not in node.given:
        reading.findings.error(
            node.at("token"),
            "",
            f"is missing, and others can reach {endpoint.address}",
            'add the "sha256:..." that tapotun token prints, or listen on 127.0.0.1',
        )
    elif not in_tunnel:
        reading.findings.warning(
            node.at("listen"),
            quote(endpoint.address),
            "is not loopback, and plain HTTP shows the token to whoever is on the way",
            "listen on 127.0.0.1 behind a proxy that ends TLS, or on an address within a tunnel",
        )


def read_log(root: Node) -> LogConfig:
    """The defaults stand where errors were reported."""
    node = root.get("log", Node)
    if node is None:
        return LogConfig()
    level = cast("LogLevel | None", node.get("level", str))
    form = cast("LogFormat | None", node.get("format", str))
    return LogConfig(level or "info", form or "text")


def warn_update(root: Node, reading: LoadContext) -> None:
    """This version does not update itself; a file that is also for one that does is no error."""
    if root.get("update", dict) is not None:
        reading.findings.warning(
            root.at("update"), "", "has no effect: this version does not update itself", "remove it, or let it wait"
        )


def listen(text: str) -> ListenAddress:
    """``ADDRESS:PORT``, ``[IPV6]:PORT``, ``PORT`` (of 127.0.0.1) or ``unix:/path``."""
    if text[:5].lower() == "unix:":
        endpoint = fields.listener(text)
        assert isinstance(endpoint, UnixAddress)
        return endpoint
    if text != text.strip():
        raise Invalid("has white space at its ends", f"write {quote(text.strip())}")
    if _PORT.fullmatch(text):
        return TcpAddress(LOOPBACK, _port(text))
    if text.startswith(("/", ".")):
        raise Invalid("is a path without unix:", f"write {quote('unix:' + text)}")
    address, colon, port = text.rpartition(":")
    if not text or text == ":":
        raise Invalid("is no address with a port", f"write one such as {_EXAMPLE}")
    if "]" in port or not colon or (":" in address and not address.startswith("[")):
        raise _without_port(text)
    if not _PORT.fullmatch(port):
        raise Invalid("has no port from 1 to 65535 behind its last colon", f"write it as in {_EXAMPLE}")
    return TcpAddress(_address(address, port), _port(port))


def _without_port(text: str) -> Invalid:
    literal = text.removeprefix("[").removesuffix("]")
    try:
        address = ip_address(literal)
    except ValueError:
        return Invalid("is no address with a port", f'write one such as {_EXAMPLE} or "[::1]:9433"')
    shown = f"[{address}]" if address.version == 6 else str(address)
    return Invalid("has no port", f'write it, as in "{shown}:9433"')


def _address(text: str, port: str) -> str:
    if text == "localhost":
        raise Invalid("has a name, not an address", f'write "127.0.0.1:{port}" or "[::1]:{port}"')
    if text in ("", "*"):
        raise Invalid("names no address", f'write "0.0.0.0:{port}" for every address, or "{port}" for loopback')
    if text.startswith("["):
        literal = text[1:].removesuffix("]")
        if not text.endswith("]") or ":" not in literal:
            raise Invalid("has brackets that hold no IPv6 address", f'write "[::1]:{port}"')
        text = literal
    try:
        found = fields.listener(text)
    except Invalid as exc:
        raise Invalid(f"has an address that {exc.problem}", f"write one such as {_EXAMPLE}") from exc
    assert isinstance(found, str)
    return found


def _port(text: str) -> int:
    if not 1 <= int(text) <= 65535:
        raise Invalid("has a port out of range", "write one from 1 to 65535")
    return int(text)


def is_raw_token(value: object) -> bool:
    """Whether it is, or was meant to be, a token itself and not its hash."""
    return isinstance(value, str) and not _HASH.fullmatch(value)


def admin_token(text: str) -> TokenHash | Secret:
    """A hash, as servers know their clients' tokens by, or else the token itself."""
    if not is_raw_token(text):
        return fields.token_hash(text)
    try:
        return fields.raw_token(text)
    except Invalid as exc:
        remedy = 'write the "sha256:..." that tapotun token prints' if not text else exc.remedy
        raise Invalid(exc.problem, remedy, shown=MASK) from exc
