"""Computes the desired state of the kernel for each kind of interface. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv4Network
from typing import Final

from ..config.model import AllowedClient, Mark, ServerConfig
from ..cooperative import PART, Steps
from ..host.items import Address, DesiredState, Item, Route, Rule
from ..text import listed
from ..wire.tunconf import TunConf

_DEFAULT_ROUTE: Final = IPv4Network("0.0.0.0/0")


def desired_for_server_in_steps(config: ServerConfig) -> Steps[DesiredState]:
    """Return a server's addresses, its mark, and its routes to networks behind clients. Networks that the connected
    route already covers need no route.

    Runs in steps, and other tasks run between them: a server may have thousands of clients.
    """
    own = config.net.network
    first, mask, length = int(own.network_address), int(own.netmask), own.prefixlen
    items: list[Item] = [Address(config.net)]
    items += (Address(IPv4Interface((ip, own.prefixlen if ip in own else 32))) for ip in config.ips)
    if config.install_routes:
        routes: dict[IPv4Network, Route] = {}
        for number, client in enumerate(config.clients, 1):
            if int(client.ip) & mask != first:
                routes.setdefault(IPv4Network(client.ip), Route(IPv4Network(client.ip)))
            for net in client.routes:
                if (int(net.network_address) & mask != first or net.prefixlen < length) and net not in routes:
                    routes[net] = Route(net)
            if number % PART == 0:
                yield
        items += routes.values()
    return DesiredState(config.mtu, (*items, *_mark_items(config.mark)))


def pushed_routes(config: ServerConfig, client: AllowedClient) -> tuple[IPv4Network, ...]:
    """The networks that this client is asked to route into the tunnel.

    The networks behind the client itself are left out, and so is the network that its address connects it to. This is
    fast for a client with many routes.
    """
    own: dict[int, set[int]] = {}  # prefix length to the prefixes
    for net in (config.net.network, *client.routes):
        own.setdefault(net.prefixlen, set()).add(int(net.network_address) >> 32 - net.prefixlen)
    return tuple(net for net in config.push_routes if not _is_within(net, own))


def _is_within(net: IPv4Network, prefixes: dict[int, set[int]]) -> bool:
    first, length = int(net.network_address), net.prefixlen
    return any(n <= length and first >> 32 - n in bits for n, bits in prefixes.items())


def desired_for_client(conf: TunConf, mark: Mark | None) -> DesiredState:
    """The addresses and routes that the server pushed, and the mark. The tunnel works without pushed routes that the
    kernel refuses."""
    routes = tuple(map(Route, conf.routes))
    return DesiredState(conf.mtu, (*map(Address, conf.addresses), *routes, *_mark_items(mark)), frozenset(routes))


def _mark_items(mark: Mark | None) -> Iterable[Item]:
    """Policy routing: packets with the mark go into the tunnel. The route comes first, so that the rule never points
    to an empty table."""
    return () if mark is None else (Route(_DEFAULT_ROUTE, mark.table), Rule(mark.value, mark.table, mark.mask))


def describe(conf: TunConf) -> str:
    """A phrase for a log line. A server may push hundreds of routes, so only the first are shown."""
    text = f"address {listed(conf.addresses)}, MTU {conf.mtu}"
    return f"{text}, routes {listed(conf.routes)}" if conf.routes else text
