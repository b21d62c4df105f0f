"""A server's interface definition, and what a client's has too: from type-checked JSON (`Node`) to values of `model`.

Untrusted input. Every error is reported to the `LoadContext`, and validation continues with the rest. A function
returns None only after it has reported an error, unless its docstring says otherwise.

Choices of this program:

- A client's ``ip`` must be in ``net``: a client learns only the prefix of ``net`` and its own address, and could not
  reach its server otherwise. An address of ``ips`` may be outside, which causes a warning: clients need a route to it
  that they do not get.
- On a TAP interface ``net`` and a client's ``ip`` may be missing. What is said about routes is refused there, and what
  is said about Ethernet on a TUN interface.
- A family is carried only if ``net`` has a network of it, and to and from a client only if its ``ip`` has an address of
  it. So an address or network of another family is an error anywhere in the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, TypeVar, cast

from ..families import IPAddress, IPInterface, IPNetwork, is_within
from ..macs import mac_text
from ..martians import is_hostless, martian_kind
from . import parsers
from .conflicts import ServerConflictChecker
from .context import LoadContext
from .diagnostics import quote, show
from .model import (
    AllowedClient,
    BpduMode,
    Bridge,
    DeviceKind,
    IngressOptions,
    ListenAddress,
    Mark,
    ServerConfig,
    SourceCheck,
    TcpAddress,
    UnixAddress,
    is_pushed_to_base_clients,
)
from .structs import PUSHED_ROUTES
from .typecheck import Node
from .validate_tap import (
    MAX_TAP_MTU,
    OF_ALLOWED_TUN_CLIENT,
    OF_TAP_SERVER,
    OF_TUN_SERVER,
    refuse_on_tap,
    refuse_on_tun,
    validate_bridge,
    validate_mac,
)

_Value = TypeVar("_Value", IPAddress, IPInterface, IPNetwork)

_DEFAULT_LISTEN: Final = ("127.0.0.1", "::1")

# linux/rtnetlink.h: RT_TABLE_UNSPEC, _DEFAULT, _MAIN, _LOCAL. A default route in one of them would
# take packets that carry no mark.
_RESERVED_TABLES: Final = {
    0: "the kernel's name for the main table",
    253: "the default table of this machine",
    254: "the main table of this machine",
    255: "the local table of this machine",
}

_NET_EXAMPLE: Final = '["10.10.0.1/24", "fd00:10::1/64"]'
_IPV6_MTU: Final = 1280  # RFC 8200 section 5; Linux takes IPv6 off an interface with less (IPV6_MIN_MTU)


# ------------------------------------------------------------------ every interface


def validate_name(node: Node, context: LoadContext) -> str | None:
    """The interface's name."""
    name = context.parse_field(node, "name", parsers.parse_interface_name)
    if name is not None:
        context.conflicts.name(node.at("name"), name)
    return name


def validate_mark(node: Node, context: LoadContext) -> Mark | None:
    """Policy routing. None: invalid, or not given."""
    mark_node = node.get("mark", Node)
    if mark_node is None:
        return None
    value, table = mark_node.get("value", int), mark_node.get("table", int)
    mask = mark_node.get("mask", int) or context.parse_field(mark_node, "mask", parsers.parse_mask)
    if value and mask and value & ~mask:
        context.findings.error(
            mark_node.at("value"),
            f"{value} ({value:#x})",
            f"has bits outside of the mask {mask:#x}, so no packet could match",
            f"write {quote(f'{mask | value:#x}')} as the mask" + (f", or {value & mask} here" if value & mask else ""),
        )
    if value == 0:
        # The kernel gives a rule with fwmark 0 the mask 0 (net/core/fib_rules.c).
        context.findings.error(mark_node.at("value"), "0", "would match every packet", "choose a mark from 1 on")
    if table in _RESERVED_TABLES:
        context.findings.error(
            mark_node.at("table"),
            show(table),
            f"is {_RESERVED_TABLES[table]}, where a default route would take all traffic",
            "choose a table of its own, such as 100",
        )
    if not value or table is None or not mask or value & ~mask:
        return None
    mark = Mark(value, table, mask)
    context.conflicts.mark(mark_node.path, mark)
    return mark


# ------------------------------------------------------------------ a server


def validate_server(node: Node, context: LoadContext) -> ServerConfig | None:
    """A server's definition."""
    return _ServerValidator(node, context).validate()


@dataclass(frozen=True, slots=True)
class _ClientAddresses:
    """What is valid of the addresses of one client.

    Attributes:
        addresses: IPv4 first.
        families: their versions of IP; both if an address is invalid.
        macs: the pinned MAC addresses, each once.
        default_name: the client's name unless it has a given one.
        is_complete: whether no address is missing that the client must have.
    """

    addresses: tuple[IPAddress, ...]
    families: frozenset[int]
    macs: tuple[bytes, ...]
    default_name: str
    is_complete: bool


class _ServerValidator:
    """One server's definition.

    ``_nets`` has the server's networks that are valid, and their paths. ``_families`` are the versions of IP that it
    carries; both if one of the networks is invalid, which is reported. ``_device`` is None if it is invalid.
    """

    def __init__(self, node: Node, context: LoadContext) -> None:
        self._node = node
        self._context = context
        self._findings = context.findings
        self._conflicts = ServerConflictChecker(context.findings)  # between the clients of this server
        self._device = cast("DeviceKind | None", node.get("device", str))
        self._nets: dict[IPInterface, str] = {}
        self._families = frozenset({4, 6})

    def validate(self) -> ServerConfig | None:
        node, context = self._node, self._context
        name = validate_name(node, context)
        if self._device == "tun":
            refuse_on_tun(node, OF_TAP_SERVER, context)
        elif self._device == "tap":
            refuse_on_tap(node, OF_TUN_SERVER, context)
        mark = None if self._device == "tap" else validate_mark(node, context)
        bridge, mac = self._validate_segment()
        url_path = context.parse_field(node, "path", parsers.parse_url_path)
        listen = self._validate_listen(url_path)
        ingress = self._validate_ingress(listen)
        self._validate_nets()
        mtu = self._validate_mtu()
        ips = self._validate_ips()
        routes = () if self._device == "tap" else self._validate_local_routes()
        peers = cast("Literal[1, 2] | None", node.get("peers", int))
        push_routes = self._validate_pushed(listen, ips, peers)
        push_dns = self._carried(context.parse_list(node, "push_dns", parsers.parse_address))
        macs = tuple(dict.fromkeys(mac for _, mac in self._validate_macs(node)))
        clients = self._validate_clients()
        install_routes = node.get("install_routes", bool)
        source_check = cast("SourceCheck | None", node.get("source_check", str))
        keepalive_s = node.get("keepalive", float)
        isolate, arp_guard = node.get("isolate", bool), node.get("arp_guard", bool)
        bpdu, storm_limit = cast("BpduMode | None", node.get("bpdu", str)), node.get("storm_limit", int)
        if name is None or self._device is None or mtu is None or not (self._nets or self._device == "tap"):
            return None
        if install_routes is None or source_check is None or peers is None or keepalive_s is None:
            return None
        if isolate is None or arp_guard is None or bpdu is None or storm_limit is None:
            return None
        return ServerConfig(
            name=name,
            nets=tuple(self._nets),
            listen=listen,
            mtu=mtu,
            ips=ips,
            routes=routes,
            push_routes=push_routes,
            push_dns=tuple(dict.fromkeys(address for _, address in push_dns)),
            clients=clients,
            mark=mark,
            install_routes=install_routes,
            source_check=source_check,
            peers=peers,
            keepalive_s=keepalive_s,
            path=url_path,
            ingress=ingress,
            device=self._device,
            bridge=bridge,
            mac=mac,
            macs=macs,
            isolate=isolate,
            arp_guard=arp_guard,
            bpdu=bpdu,
            storm_limit=storm_limit,
        )

    # --- Ethernet ---

    def _validate_segment(self) -> tuple[Bridge | None, bytes | None]:
        """What only a TAP interface has: its bridge and its MAC address. Warns of what has no effect together."""
        node = self._node
        if self._device == "tun":
            return None, None
        bridge, mac = validate_bridge(node, self._context), validate_mac(node, self._context)
        if mac is not None:
            self._conflicts.mac(node.at("mac"), mac, node.path)
        if self._device == "tap" and "peers" in node.given:
            problem = "has no effect on a TAP interface, which base clients cannot use"
            self._findings.warning(node.at("peers"), "", problem, "remove it")
        if bridge is not None and bridge.bpdu_guard and node.get("bpdu", str) == "forward":
            problem = f"lets any client switch the port off that bpdu_guard protects in bridge {bridge.name}"
            self._findings.warning(node.at("bpdu"), '"forward"', problem, 'remove one, or set "bpdu": "drop"')
        return bridge, mac

    # --- addresses and pushed routes ---

    def _validate_nets(self) -> None:
        """Set ``_nets`` and ``_families``."""
        if "net" not in self._node.given:
            if self._device == "tap":
                self._families = frozenset()
            elif self._device == "tun":
                self._findings.error(self._node.at("net"), "", "is missing", 'add "net": "10.10.0.1/24"')
            return
        good, is_complete = self._one_of_each(self._node, "net", parsers.parse_server_net, "network")
        for path, net in good:
            if self._context.conflicts.address(path, net.ip):
                self._context.conflicts.net(path, net.network)
            self._conflicts.address(path, net.ip, self._node.path)
        self._nets = {net: path for path, net in good}
        if is_complete:
            self._families = frozenset(net.version for net in self._nets)

    def _one_of_each(
        self, node: Node, name: str, parser: Callable[[str], _Value], noun: str
    ) -> tuple[list[tuple[str, _Value]], bool]:
        """Path and value of at most one element of each family, IPv4 first; and whether none was invalid."""
        parsed = self._context.parse_list(node, name, parser)
        first: dict[int, tuple[str, _Value]] = {}
        for path, value in parsed:
            earlier, _ = first.setdefault(value.version, (path, value))
            if earlier != path:
                problem = f"is IPv{value.version}, and so is {earlier}"
                self._findings.error(path, quote(str(value)), problem, f"write one {noun} of each family")
        is_complete = 0 < len(parsed) == len(node.texts(name))
        return [first[version] for version in sorted(first)], is_complete

    def _validate_mtu(self) -> int | None:
        mtu = self._node.get("mtu", int)
        if mtu is None:
            return None
        if self._device == "tap":
            if mtu < _IPV6_MTU:
                problem = "is too small for a TAP interface: a bridge has the smallest MTU of its ports, and below "
                problem += f"{_IPV6_MTU} it loses IPv6"
                self._findings.error(self._node.at("mtu"), show(mtu), problem, f"write at least {_IPV6_MTU}")
            elif mtu > MAX_TAP_MTU:
                problem = "is too large for a TAP interface, whose frames have an Ethernet header too"
                self._findings.error(self._node.at("mtu"), show(mtu), problem, f"write at most {MAX_TAP_MTU}")
        elif mtu < _IPV6_MTU and any(net.version == 6 for net in self._nets):
            self._findings.error(
                self._node.at("mtu"),
                show(mtu),
                f"is too small for IPv6, which needs {_IPV6_MTU} (RFC 8200)",
                f'write at least {_IPV6_MTU}, or remove the IPv6 network from "net"',
            )
        return mtu

    def _carried(self, values: list[tuple[str, _Value]]) -> list[tuple[str, _Value]]:
        """Those of a family that this server carries. The others are reported."""
        return [(path, value) for path, value in values if self._check_family(path, value)]

    def _check_family(self, path: str, value: IPAddress | IPNetwork) -> bool:
        if value.version in self._families:
            return True
        family = f"IPv{value.version}"
        problem, remedy = f'is {family}, and "net" has no {family} network', f'add one to "net", as in {_NET_EXAMPLE}'
        self._findings.error(path, quote(str(value)), problem, remedy)
        return False

    def _validate_ips(self) -> tuple[IPAddress, ...]:
        """Further addresses of the server; those that are valid."""
        ips = self._context.parse_list(self._node, "ips", parsers.parse_address)
        for path, ip in ips:
            self._context.conflicts.address(path, ip)
            self._conflicts.address(path, ip, self._node.path)
            if self._check_family(path, ip):
                self._check_further_address(path, ip)
        return tuple(ip for _, ip in ips)

    def _check_further_address(self, path: str, ip: IPAddress) -> None:
        net = self._net_of(ip)
        if net is not None and not self._check_usable(path, ip, net) and ip not in net:
            self._findings.warning(
                path,
                quote(str(ip)),
                f"is outside net {net}, and clients are given no route to it",
                "choose an address in it, or route it on the clients",
            )

    def _net_of(self, value: IPAddress | IPNetwork) -> IPNetwork | None:
        """The server's network of that family; None if it is invalid or missing, which is reported."""
        return next((net.network for net in self._nets if net.version == value.version), None)

    def _check_usable(self, path: str, ip: IPAddress, net: IPNetwork) -> bool:
        """Report the network, broadcast or subnet-router anycast address of ``net``. Returns whether it reported
        one."""
        kind = parsers.reserved_address_kind(ip, net)
        if kind is not None:
            self._findings.error(path, quote(str(ip)), f"is the {kind} address of {net}", "choose another address")
        return kind is not None

    def _validate_local_routes(self) -> tuple[IPNetwork, ...]:
        routes = self._carried(self._context.parse_list(self._node, "routes", parsers.parse_network))
        for path, route in routes:
            # Of IPv4 they are accepted, because earlier versions did that; they have no effect.
            if route.version == 6 and is_hostless(route) and not route.is_multicast:
                problem = f"is {martian_kind(route)}, where no packet is ever routed"
                self._findings.error(path, quote(str(route)), problem, "remove it")
        return tuple(route for _, route in routes)

    def _validate_pushed(
        self, listen: tuple[ListenAddress, ...], ips: tuple[IPAddress, ...], peers: int | None
    ) -> tuple[IPNetwork, ...]:
        """The ``push_routes``, without repetitions, because a client's kernel would refuse a second route. Also warns
        if clients reach the server at an address within ``net``, which they route into the tunnel, or base clients at
        one within a pushed route."""
        if self._device == "tap":
            pushed: list[tuple[str, IPNetwork]] = []
        else:
            pushed = self._pushed_routes()
        own = {*(net.ip for net in self._nets), *ips}
        outside = [address for address in _listen_addresses(listen) if address not in own]
        for net, path in self._nets.items():
            if (covered := _first_covered(net.network, outside)) is not None:
                self._warn_covers(path, net, covered)
        good: dict[IPNetwork, str] = {}
        for path, route in self._carried(pushed):
            earlier = good.setdefault(route, path)
            inside = self._net_of(route)
            if earlier != path:
                problem, remedy = f"is already used at {earlier}", "remove one"
            elif inside is not None and is_within(route, inside):
                problem, remedy = f"is in net {inside}, to which clients have a route anyway", "remove it"
            elif (kind := martian_kind(route)) is not None:
                problem = f"is {kind}, where no packet is ever routed, and clients refuse it"
                self._findings.error(path, quote(str(route)), problem, "remove it")
                continue
            elif not is_pushed_to_base_clients(route, peers):
                continue  # extended clients keep their own connections out of it
            elif route.prefixlen == 0:
                problem = "routes the base clients' own connections to this server into the tunnel too"
                remedy = "write only the networks that are behind this server, or, if there are no base clients, "
                remedy += '"peers": 1'
            elif (covered := _first_covered(route, outside)) is not None:
                self._warn_covers(path, route, covered)
                continue
            else:
                continue
            self._findings.warning(path, quote(str(route)), problem, remedy)
        return tuple(good)

    def _pushed_routes(self) -> list[tuple[str, IPNetwork]]:
        """Path and value of every valid element of ``push_routes``. Reports too many of one family."""
        routes = self._context.parse_list(self._node, "push_routes", parsers.parse_network)
        for version in (4, 6):
            count = sum(route.version == version for _, route in routes)
            if count > PUSHED_ROUTES:
                problem = f"has {count} IPv{version} networks"
                remedy = f"write at most {PUSHED_ROUTES} of each family"
                self._findings.error(self._node.at("push_routes"), "[...]", problem, remedy)
        return routes

    def _warn_covers(self, path: str, value: IPInterface | IPNetwork, covered: IPAddress) -> None:
        self._findings.warning(
            path,
            quote(str(value)),
            f"covers {covered}, on which this server listens: it routes the clients' own connections into the tunnel",
            "write only networks without it; extended clients add a host route around the tunnel, base clients lose "
            "their connection",
        )

    # --- listening ---

    def _validate_listen(self, url_path: str | None) -> tuple[ListenAddress, ...]:
        """The addresses to listen on; incomplete or empty only if errors were reported."""
        endpoints = self._given_endpoints() if "listen" in self._node.given else self._default_endpoints()
        for path, endpoint in endpoints:
            self._context.conflicts.listener(path, endpoint, url_path)
        return tuple(endpoint for _, endpoint in endpoints)

    def _default_endpoints(self) -> list[tuple[str, ListenAddress]]:
        path, port = self._node.at("port"), self._node.get("port", int)
        if "port" not in self._node.given:
            self._report_missing_port()
        if port is None:
            return []
        return [(path, TcpAddress(address, port, optional=True)) for address in _DEFAULT_LISTEN]

    def _given_endpoints(self) -> list[tuple[str, ListenAddress]]:
        node, port = self._node, self._node.get("port", int)
        if node.get("listen", list) == []:
            self._findings.error(node.at("listen"), "[]", "names no address", 'leave it out, or write "127.0.0.1"')
        endpoints: list[tuple[str, ListenAddress]] = []
        needs_port = False
        for path, listener in self._context.parse_list(node, "listen", parsers.parse_listener):
            if isinstance(listener, UnixAddress):
                endpoints.append((path, listener))
                continue
            needs_port = True
            if port is not None:
                endpoints.append((path, TcpAddress(listener, port)))
        if needs_port and "port" not in node.given:
            self._report_missing_port()
        if port is not None and endpoints and not needs_port:
            self._findings.warning(
                node.at("port"),
                show(port),
                'is not used, because "listen" names Unix sockets only',
                "remove it, or listen on an address too",
            )
        return endpoints

    def _report_missing_port(self) -> None:
        remedy = 'add "port": 8080, or let "listen" name Unix sockets only'
        self._findings.error(self._node.at("port"), "", "is missing", remedy)

    def _validate_ingress(self, listen: tuple[ListenAddress, ...]) -> IngressOptions:
        """How connections are accepted; defaults where errors were reported."""
        node = self._node
        trusted = self._context.parse_list(node, "trusted_proxies", parsers.parse_trusted_proxy)
        networks = [(path, proxy) for path, proxy in trusted if proxy != "unix"]
        unix_paths = [path for path, proxy in trusted if proxy == "unix"]
        for path, network in networks:
            if network.prefixlen == 0:
                self._findings.warning(
                    path,
                    quote(str(network)),
                    "trusts everyone: any client can forge its address, also in the log",
                    "write the addresses of your proxies only",
                )
        if listen and not any(endpoint.is_unix for endpoint in listen):
            ignored = [(path, '"unix"') for path in unix_paths]
            if "listen_mode" in node.given:
                ignored.append((node.at("listen_mode"), ""))
            for path, value in ignored:
                self._findings.warning(path, value, 'has no effect: "listen" names no Unix socket', "remove it")
        proxy_protocol = bool(node.get("proxy_protocol", bool))
        if proxy_protocol and not node.get("trusted_proxies", list):
            self._findings.error(
                node.at("trusted_proxies"),
                "[]" if "trusted_proxies" in node.given else "",
                'names no proxy, and with "proxy_protocol" only trusted proxies are served',
                'write their addresses, such as ["127.0.0.1", "::1"], or "unix" for those on a Unix socket',
            )
        mode = self._context.parse_field(node, "listen_mode", parsers.parse_socket_mode)
        ingress = IngressOptions(
            trusted=tuple(sorted({network for _, network in networks}, key=lambda net: (net.version, net))),
            trusts_unix=bool(unix_paths),
            proxy_protocol=proxy_protocol,
            socket_mode=IngressOptions().socket_mode if mode is None else mode,
        )
        self._context.conflicts.ingress(node.path, listen, ingress)
        return ingress

    # --- clients ---

    def _validate_clients(self) -> tuple[AllowedClient, ...]:
        """The clients without errors.

        All addresses are registered first, because a name or a route may conflict with the address of a client further
        down.
        """
        if self._node.get("clients", list) == []:
            value = "[]" if "clients" in self._node.given else ""
            self._findings.warning(self._node.at("clients"), value, "lists no client, so none can connect", "add one")
        nodes = self._node.nodes("clients")
        addresses = [self._validate_client_addresses(node, number) for number, node in enumerate(nodes, 1)]
        clients = [self._validate_client(node, ips) for node, ips in zip(nodes, addresses, strict=True)]
        return tuple(client for client in clients if client is not None)

    def _validate_client_addresses(self, client: Node, number: int) -> _ClientAddresses:
        """``number``: of the client, from 1."""
        needs_ip = self._device != "tap" or "ip" in client.given
        if self._device == "tun" and "ip" not in client.given:
            self._findings.error(client.at("ip"), "", "is missing", 'add "ip": "10.10.0.2"')
        good, is_complete = self._one_of_each(client, "ip", parsers.parse_address, "address")
        for path, ip in good:
            if self._check_family(path, ip) and (net := self._net_of(ip)) is not None:
                if ip not in net:
                    self._findings.error(path, quote(str(ip)), f"is outside net {net}", "choose an address in it")
                else:
                    self._check_usable(path, ip, net)
            self._context.conflicts.address(path, ip)
            self._conflicts.address(path, ip, client.path)
        families = frozenset(ip.version for _, ip in good) if is_complete else frozenset({4, 6})
        macs = self._validate_macs(client)
        path, name = client.path, f"client {number}"
        if good:
            path, name = good[0][0], str(good[0][1])
        elif macs:
            path, name = macs[0][0], mac_text(macs[0][1])
        if "name" not in client.given:
            self._conflicts.default_name(path, name)
        pinned = tuple(dict.fromkeys(mac for _, mac in macs))
        return _ClientAddresses(tuple(ip for _, ip in good), families, pinned, name, bool(good) or not needs_ip)

    def _validate_macs(self, owner: Node) -> list[tuple[str, bytes]]:
        """Path and value of each valid MAC address that is pinned to a client or, if ``owner`` is the server, to its
        side."""
        if self._device == "tun":
            refuse_on_tun(owner, ("macs",), self._context)
            return []
        macs = self._context.parse_list(owner, "macs", parsers.parse_mac)
        for path, mac in macs:
            self._conflicts.mac(path, mac, owner.path)
        return macs

    def _validate_client(self, client: Node, ips: _ClientAddresses) -> AllowedClient | None:
        token = self._context.parse_field(client, "token", parsers.parse_token_hash)
        if token is not None:
            self._conflicts.token(client.at("token"), token)
        name = self._context.parse_field(client, "name", parsers.parse_client_name)
        if name is not None:
            self._conflicts.name(client.at("name"), name)
        routes: tuple[IPNetwork, ...] = ()
        sources: tuple[IPAddress, ...] = ()
        if self._device == "tap":
            refuse_on_tap(client, OF_ALLOWED_TUN_CLIENT, self._context)
        else:
            routes, sources = self._validate_client_routes(client, ips), self._validate_client_sources(client, ips)
        if token is None or not ips.is_complete:
            return None
        return AllowedClient(
            name=name or ips.default_name,
            token=token,
            addresses=ips.addresses,
            routes=routes,
            sources=sources,
            macs=ips.macs,
        )

    def _check_client_family(self, path: str, value: IPAddress | IPNetwork, ips: _ClientAddresses) -> bool:
        """Report an address or network that no packet of this client can have. Returns whether one can."""
        if not self._check_family(path, value):
            return False
        if value.version in ips.families:
            return True
        family = f"IPv{value.version}"
        problem, remedy = f"is {family}, and this client has no {family} address", 'add one to its "ip"'
        self._findings.error(path, quote(str(value)), problem, remedy)
        return False

    def _validate_client_routes(self, client: Node, ips: _ClientAddresses) -> tuple[IPNetwork, ...]:
        installs = self._node.get("install_routes", bool)
        good: list[IPNetwork] = []
        for path, route in self._context.parse_list(client, "routes", parsers.parse_network):
            if not self._check_client_family(path, route, ips):
                continue
            # The kernel routes IPv6 multicast by its table "local", so it would never use a route of ours.
            if is_hostless(route) and not (route.is_multicast and route.version == 4):
                problem = f"is {martian_kind(route)}, where no host can be"
                self._findings.error(path, quote(str(route)), problem, "remove it")
                continue
            if route.is_multicast:
                problem = (
                    "is multicast: of all packets, this client gets only those that this machine itself sends there"
                )
                self._findings.warning(path, quote(str(route)), problem, "remove it, unless this is intended")
            good.append(route)
            net = self._net_of(route)
            is_inside = net is not None and is_within(route, net)
            if not self._conflicts.route(path, route, client.path) or is_inside or not installs:
                continue
            self._context.conflicts.kernel_route(path, route)
            if route.prefixlen == 0:
                self._findings.warning(
                    path,
                    quote(str(route)),
                    "sends the traffic of this machine itself to this client too",
                    'set "install_routes": false to forward only what comes through the tunnel',
                )
        return tuple(good)

    def _validate_client_sources(self, client: Node, ips: _ClientAddresses) -> tuple[IPAddress, ...]:
        good: list[IPAddress] = []
        for path, source in self._context.parse_list(client, "sources", parsers.parse_address):
            if not self._check_client_family(path, source, ips):
                continue
            good.append(source)
            self._conflicts.source(path, source, client.path)
            if source in ips.addresses:
                self._findings.warning(
                    path,
                    quote(str(source)),
                    "is this client's own address, so its packets would come back to it",
                    "remove it",
                )
        return tuple(good)


def _listen_addresses(listen: tuple[ListenAddress, ...]) -> list[IPAddress]:
    """The addresses at which clients may reach this server, as far as the config names them."""
    addresses = [ip_address(endpoint.literal) for endpoint in listen if not endpoint.is_unix]
    return [address for address in addresses if not (address.is_unspecified or address.is_loopback)]


def _first_covered(network: IPNetwork, addresses: list[IPAddress]) -> IPAddress | None:
    return next((address for address in addresses if address in network), None)
