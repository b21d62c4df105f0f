"""The fields of a TAP interface, of a server or a client: from type-checked JSON (`Node`) to values of `model`. The
rules are those of `validate`.

A field that the kind of interface has no use for is an error, so that nobody relies on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from . import parsers
from .context import LoadContext
from .model import Bridge
from .typecheck import Node

MAX_TAP_MTU: Final = 65513  # a frame has at most 65535 bytes; less the Ethernet header and two VLAN tags

OF_TAP_SERVER: Final = ("bridge", "mac", "isolate", "arp_guard", "bpdu", "storm_limit")
OF_TAP_CLIENT: Final = ("bridge", "mac")

# Fields that have no use on a TAP interface, and what to do instead.
_MARK_REMEDY: Final = "remove it; a rule and a route of your own can send marked packets to a gateway in the segment"
_HOSTS_ROUTE: Final = "the machines in the segment have routes of their own"
OF_TUN_SERVER: Final = {
    "mark": _MARK_REMEDY,
    "routes": f"remove it; {_HOSTS_ROUTE}",
    "push_routes": f"remove it; {_HOSTS_ROUTE}, by DHCP for example",
    "install_routes": "remove it",
    "source_check": 'remove it; "arp_guard" and the "macs" of a client say what a client may claim',
}
OF_TUN_CLIENT: Final = {"mark": _MARK_REMEDY}
OF_ALLOWED_TUN_CLIENT: Final = {
    "routes": f"remove it; {_HOSTS_ROUTE}",
    "sources": f"remove it; {_HOSTS_ROUTE}",
}


def refuse_on_tap(node: Node, remedies: Mapping[str, str], context: LoadContext) -> None:
    """Report the given ones of these fields. ``remedies``: of each field."""
    for name, remedy in remedies.items():
        if _is_given(node, name):
            problem = "is not for a TAP interface: Ethernet frames are forwarded by their MAC addresses, not routed"
            context.findings.error(node.at(name), "", problem, remedy)


def refuse_on_tun(node: Node, names: Iterable[str], context: LoadContext) -> None:
    """Report the given ones of these fields, which need a TAP interface."""
    for name in names:
        if _is_given(node, name):
            remedy = 'set "device": "tap", or remove it'
            context.findings.error(node.at(name), "", "is for a TAP interface only", remedy)


def _is_given(node: Node, name: str) -> bool:
    """Whether the file has the field. An empty list says nothing, and templates write it."""
    return name in node.given and node.get(name, list) != []


def validate_bridge(node: Node, context: LoadContext) -> Bridge | None:
    """None: invalid, or not given."""
    options = node.get("bridge", Node)
    if options is None:
        name = context.parse_field(node, "bridge", parsers.parse_bridge_name)
        bridge = None if name is None else Bridge(name)
        name_path = create_path = node.at("bridge")
    else:
        name = context.parse_field(options, "name", parsers.parse_bridge_name)
        flags = {field: options.get(field, bool) for field in ("create", "isolated", "learning", "bpdu_guard")}
        given = {field: value for field, value in flags.items() if value is not None}
        bridge = None if name is None else Bridge(name, **given)
        name_path, create_path = options.at("name"), options.at("create")
    if bridge is not None:
        context.conflicts.bridge(name_path, create_path, bridge)
    return bridge


def validate_mac(node: Node, context: LoadContext) -> bytes | None:
    """The MAC address of the interface. None: invalid, or not given."""
    mac = context.parse_field(node, "mac", parsers.parse_mac)
    if mac is not None:
        context.conflicts.mac(node.at("mac"), mac)
    return mac
