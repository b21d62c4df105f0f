"""Validates the settings that concern the whole process: ``admin``, ``log``, ``plane``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import cast

from ..digests import digest
from . import parsers
from .context import LoadContext
from .diagnostics import MASK, quote
from .model import (
    AdminConfig,
    InterfaceConfig,
    ListenAddress,
    LogConfig,
    LogFormat,
    LogLevel,
    PlaneMode,
    Secret,
    ServerConfig,
    TcpAddress,
    TokenHash,
)
from .typecheck import Node


def validate_admin(root: Node, interfaces: Iterable[InterfaceConfig], context: LoadContext) -> AdminConfig | None:
    """Validate the admin listener. None: invalid, or not given. Call this after all ``interfaces`` are validated."""
    node = root.get("admin", Node)
    if node is None:
        return None
    port = node.get("listen", int)
    endpoint: ListenAddress | None
    if port is not None:
        endpoint = TcpAddress(parsers.LOOPBACK, port)
    else:
        endpoint = context.parse_field(node, "listen", parsers.parse_admin_listen)
    token = context.parse_field(node, "token", parsers.parse_admin_token)
    read_token = context.parse_field(node, "read_token", parsers.parse_admin_token)
    if token is not None and read_token is not None and _are_same_token(token, read_token):
        problem = f"is the token of {node.at('token')} too, and would not be limited to reading"
        context.findings.error(node.at("read_token"), MASK, problem, "make another one with tapotun token")
    if endpoint is None:
        return None
    context.conflicts.admin_listener(node.at("listen"), endpoint)
    if isinstance(endpoint, TcpAddress) and not ip_address(endpoint.address).is_loopback:
        endpoint = _validate_exposed(node, endpoint, interfaces, context)
    return AdminConfig(endpoint, token, read_token)


def _are_same_token(one: TokenHash | Secret, other: TokenHash | Secret) -> bool:
    """Whether both are the same token. Hashes by different algorithms cannot be compared and count as different."""
    if isinstance(one, TokenHash) and isinstance(other, Secret):
        return _is_hash_of(one, other)
    if isinstance(one, Secret) and isinstance(other, TokenHash):
        return _is_hash_of(other, one)
    return one == other


def _is_hash_of(known: TokenHash, token: Secret) -> bool:
    return digest(known.algorithm, token.reveal().encode()).hex() == known.digest


def _validate_exposed(
    node: Node, endpoint: TcpAddress, interfaces: Iterable[InterfaceConfig], context: LoadContext
) -> TcpAddress:
    """Check an admin address that other machines can reach; it needs a token. Returns the address. Its ``early`` is set
    if the address comes from one of the interfaces."""
    own: set[str] = set()
    has_clients = False  # the server gives a client its addresses, so they may be any
    for interface in interfaces:
        if isinstance(interface, ServerConfig):
            own.update(map(str, interface.own_addresses))
        else:
            has_clients = True
    is_in_tunnel = endpoint.address in own
    if "token" not in node.given and "read_token" not in node.given:
        context.findings.error(
            node.at("token"),
            "",
            f"is missing, and others can reach {endpoint.address}",
            'add the "sha256:..." that tapotun token prints, or listen on 127.0.0.1',
        )
    elif not is_in_tunnel:
        context.findings.warning(
            node.at("listen"),
            quote(endpoint.address),
            "is not loopback, and over plain HTTP anyone on the path can read the token",
            "listen on 127.0.0.1 behind a proxy that ends TLS, or on an address within a tunnel",
        )
    return replace(endpoint, early=is_in_tunnel or has_clients)


def validate_log(root: Node) -> LogConfig:
    """Return the log's settings, with defaults where errors were reported."""
    node = root.get("log", Node)
    if node is None:
        return LogConfig()
    level = cast("LogLevel | None", node.get("level", str))
    form = cast("LogFormat | None", node.get("format", str))
    return LogConfig(level or "info", form or "text")


def validate_plane(root: Node) -> PlaneMode:
    """Return whether the plane may be used, ``auto`` if an error was reported."""
    return cast("PlaneMode | None", root.get("plane", str)) or "auto"
