"""Computes the desired state of the kernel for each kind of interface. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from ..config.model import AllowedClient, Bridge, Mark, ServerConfig
from ..cooperative import PART, Steps
from ..families import IPAddress, IPInterface, IPNetwork, host_network, is_within, with_prefix
from ..host.items import Address, BridgeAddress, BridgePort, DesiredState, Item, OwnBridge, Route, Rule
from ..text import listed
from ..wire.settings import InterfaceSettings

_DEFAULT_ROUTES: Final[dict[int, IPNetwork]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


def desired_for_server_in_steps(config: ServerConfig) -> Steps[DesiredState]:
    """Return a server's addresses, its mark, and its routes to networks behind clients. Networks that the connected
    route already covers need no route. A TAP interface has its place in the bridge instead, and no routes.

    Runs in steps, and other tasks run between them: a server may have thousands of clients.
    """
    connected = [net.network for net in config.nets]
    further = (_further_address(ip, connected) for ip in config.ips)
    items: list[Item] = list(_address_items((*config.nets, *further), config.bridge))
    if config.device == "tap":
        return DesiredState(config.mtu, tuple(items))
    if config.install_routes:
        routes: dict[IPNetwork, Route] = {}
        for number, client in enumerate(config.clients, 1):
            for net in (*map(host_network, client.addresses), *client.routes):
                if net not in routes and not any(is_within(net, own) for own in connected):
                    routes[net] = Route(net)
            if number % PART == 0:
                yield
        items += routes.values()
    families = {net.version for net in config.nets}
    return DesiredState(config.mtu, (*items, *_mark_items(config.mark, families)))


def _address_items(addresses: Iterable[IPInterface], bridge: Bridge | None) -> Iterator[Item]:
    """The addresses, on the interface or on its bridge. The bridge comes first, then the interface as its port."""
    if bridge is None:
        yield from map(Address, addresses)
        return
    if bridge.create:
        yield OwnBridge(bridge.name)
    yield BridgePort(bridge.name, bridge.isolated, bridge.learning, bridge.bpdu_guard)
    for address in addresses:
        yield BridgeAddress(bridge.name, address)


def _further_address(ip: IPAddress, connected: Iterable[IPNetwork]) -> IPInterface:
    """One of a server's ``ips``: with the prefix length of the network that it lies in, otherwise by itself."""
    own = host_network(ip)
    return with_prefix(ip, next((net.prefixlen for net in connected if is_within(own, net)), own.prefixlen))


def pushed_routes(config: ServerConfig, client: AllowedClient) -> tuple[IPNetwork, ...]:
    """The networks that this client is asked to route into the tunnel.

    The networks behind the client itself are left out, and so is the network that its address connects it to. So are
    those of a family of which it has no address, since packets to them would have a source that is not the client's.
    This is fast for a client with many routes.
    """
    own: _Prefixes = {}
    for net in (*(each.network for each in config.nets), *client.routes):
        own.setdefault((net.version, net.prefixlen), set()).add(
            int(net.network_address) >> net.max_prefixlen - net.prefixlen
        )
    families = {address.version for address in client.addresses}
    return tuple(net for net in config.push_routes if net.version in families and not _is_within(net, own))


_Prefixes: TypeAlias = dict[tuple[int, int], set[int]]
"""Family and prefix length, to the prefixes of that length."""


def _is_within(net: IPNetwork, prefixes: _Prefixes) -> bool:
    first, length, bits = int(net.network_address), net.prefixlen, net.max_prefixlen
    return any(
        version == net.version and n <= length and first >> bits - n in firsts
        for (version, n), firsts in prefixes.items()
    )


def desired_for_client(conf: InterfaceSettings, mark: Mark | None, bridge: Bridge | None = None) -> DesiredState:
    """The addresses and routes that the server pushed, and the mark. The tunnel works without pushed routes that the
    kernel refuses.

    ``bridge``: of a TAP interface. Then the addresses are on the bridge, and there are no routes, since the port of a
    bridge can have none."""
    if bridge is not None:
        return DesiredState(conf.mtu, tuple(_address_items(conf.addresses, bridge)))
    routes = tuple(map(Route, conf.routes))
    families = {address.version for address in conf.addresses}
    items = (*map(Address, conf.addresses), *routes, *_mark_items(mark, families))
    return DesiredState(conf.mtu, items, frozenset(routes))


def _mark_items(mark: Mark | None, families: Iterable[int]) -> Iterator[Item]:
    """Policy routing in each family that the interface has: packets with the mark go into the tunnel. The route comes
    first, so that the rule never points to an empty table."""
    if mark is None:
        return
    for version in sorted(families):
        yield Route(_DEFAULT_ROUTES[version], mark.table)
        yield Rule(mark.value, mark.table, mark.mask, version)


def describe(conf: InterfaceSettings) -> str:
    """A phrase for a log line. A server may push hundreds of routes, so only the first are shown."""
    text = f"{f'address {listed(conf.addresses)}' if conf.addresses else 'no address'}, MTU {conf.mtu}"
    return f"{text}, routes {listed(conf.routes)}" if conf.routes else text
