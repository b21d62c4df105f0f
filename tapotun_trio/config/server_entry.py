"""A server's definition to a `ServerConfig`.

A choice of ours: a client's ``ip`` must lie in ``net``, because a client is told the
prefix of ``net`` and its own address only, and could not reach its server otherwise. An address of
``ips`` may lie elsewhere, which is a warning: clients need a route to it that they are not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final, Literal, cast

from . import fields
from .checks import ServerConflictChecker
from .common import LoadContext
from .decode import Node
from .diagnostics import quote, show
from .model import AllowedClient, IngressOptions, ListenAddress, ServerConfig, SourceCheck, TcpAddress, UnixAddress

DEFAULT_LISTEN: Final = ("127.0.0.1", "::1")


def read_server(node: Node, reading: LoadContext) -> ServerConfig | None:
    """None only if errors were reported."""
    name = reading.name(node)
    mark = reading.mark(node)
    url_path = reading.parse(node.at("path"), node.get("path", str), fields.url_path)
    listen = _listen(node, url_path, reading)
    ingress = _ingress(node, listen, reading)
    net = _net(node, reading)
    ips = reading.each(node, "ips", fields.ipv4_address)
    own = ServerConflictChecker(reading.findings)
    if net is not None:
        own.address(node.at("net"), net.ip, node.path)
    for path, ip in ips:
        reading.claims.address(path, ip)
        own.address(path, ip, node.path)
        if net is not None:
            _further_address(path, ip, net.network, reading)
    routes = reading.each(node, "routes", fields.ipv4_network)
    own_addresses = {net.ip, *(ip for _, ip in ips)} if net is not None else set()
    outside = [it for it in _listen_addresses(listen) if it not in own_addresses]
    push_routes = _push_routes(node, net, outside, reading)
    if net is not None and (covered := _covered(net.network, outside)) is not None:
        _warn_of_covering(node.at("net"), net, covered, reading)
    clients = _clients(node, net, own, reading)
    mtu = node.get("mtu", int)
    install_routes = node.get("install_routes", bool)
    source_check = cast("SourceCheck | None", node.get("source_check", str))
    peers = cast("Literal[1, 2] | None", node.get("peers", int))
    keepalive_s = node.get("keepalive", float)
    if name is None or net is None or mtu is None:
        return None
    if install_routes is None or source_check is None or peers is None or keepalive_s is None:
        return None
    return ServerConfig(
        name=name,
        net=net,
        listen=listen,
        mtu=mtu,
        ips=tuple(ip for _, ip in ips),
        routes=tuple(route for _, route in routes),
        push_routes=push_routes,
        push_dns=tuple(dict.fromkeys(it for _, it in reading.each(node, "push_dns", fields.ipv4_address))),
        clients=clients,
        mark=mark,
        install_routes=install_routes,
        source_check=source_check,
        peers=peers,
        keepalive_s=keepalive_s,
        path=url_path,
        ingress=ingress,
    )


def _net(node: Node, reading: LoadContext) -> IPv4Interface | None:
    path = node.at("net")
    net = reading.parse(path, node.get("net", str), fields.server_net)
    if net is not None and reading.claims.address(path, net.ip):
        reading.claims.net(path, net.network)
    return net


def _further_address(path: str, ip: IPv4Address, net: IPv4Network, reading: LoadContext) -> None:
    edge = fields.edge_of(ip, net)
    if edge is not None:
        reading.findings.error(path, quote(str(ip)), f"is the {edge} address of {net}", "choose another address")
    elif ip not in net:
        reading.findings.warning(
            path,
            quote(str(ip)),
            f"is outside net {net}, and clients are given no route to it",
            "choose an address in it, or route it on the clients",
        )


def _listen_addresses(listen: tuple[ListenAddress, ...]) -> list[IPv4Address]:
    """Where clients may reach this server, as far as the config says it."""
    texts = [it.address for it in listen if isinstance(it, TcpAddress) and ":" not in it.address]
    return [it for it in map(IPv4Address, texts) if not (it.is_unspecified or it.is_loopback)]


def _covered(network: IPv4Network, addresses: list[IPv4Address]) -> IPv4Address | None:
    return next((it for it in addresses if it in network), None)


def _warn_of_covering(
    path: str, value: IPv4Interface | IPv4Network, covered: IPv4Address, reading: LoadContext
) -> None:
    reading.findings.warning(
        path,
        quote(str(value)),
        f"covers {covered}, on which this server listens: it leads the clients' own streams into the tunnel",
        "write only networks without it; clients of this program make a host route past it, deployed ones stay dead",
    )


def _push_routes(
    node: Node, net: IPv4Interface | None, outside: list[IPv4Address], reading: LoadContext
) -> tuple[IPv4Network, ...]:
    """Each once: a client's kernel would refuse it the second time. ``outside``: where this server listens outside of
    the tunnel."""
    good: dict[IPv4Network, str] = {}
    for path, route in reading.each(node, "push_routes", fields.ipv4_network):
        earlier = good.setdefault(route, path)
        if earlier != path:
            problem, remedy = f"is already used at {earlier}", "remove one"
        elif net is not None and route.subnet_of(net.network):
            problem, remedy = f"is in net {net.network}, to which clients have a route anyway", "remove it"
        elif route.prefixlen == 0:
            problem = "leads the clients' own streams to this server into the tunnel too"
            remedy = "write only the networks that are behind this server"
        elif (covered := _covered(route, outside)) is not None:
            _warn_of_covering(path, route, covered, reading)
            continue
        else:
            continue
        reading.findings.warning(path, quote(str(route)), problem, remedy)
    return tuple(good)


# --- listening ---


def _listen(node: Node, url_path: str | None, reading: LoadContext) -> tuple[ListenAddress, ...]:
    """What to listen on; incomplete or empty only if errors were reported."""
    path, port = node.at("port"), node.get("port", int)
    if "listen" not in node.given:
        if "port" not in node.given:
            _port_missing(path, reading)
        if port is None:
            return ()
        default = [TcpAddress(address, port, optional=True) for address in DEFAULT_LISTEN]
        for endpoint in default:
            reading.claims.listener(path, endpoint, url_path)
        return tuple(default)
    return _given_listen(node, port, url_path, reading)


def _given_listen(
    node: Node, port: int | None, url_path: str | None, reading: LoadContext
) -> tuple[ListenAddress, ...]:
    listeners = reading.each(node, "listen", fields.listener)
    if node.get("listen", list) == []:
        reading.findings.error(node.at("listen"), "[]", "names no address", 'leave it out, or write "127.0.0.1"')
    endpoints: list[tuple[str, ListenAddress]] = []
    wants_port = False
    for path, listener in listeners:
        if isinstance(listener, UnixAddress):
            endpoints.append((path, listener))
            continue
        wants_port = True
        if port is not None:
            endpoints.append((path, TcpAddress(listener, port)))
    if wants_port and "port" not in node.given:
        _port_missing(node.at("port"), reading)
    if port is not None and endpoints and not wants_port:
        reading.findings.warning(
            node.at("port"),
            show(port),
            'is not used, for "listen" names Unix sockets only',
            "remove it, or listen on an address too",
        )
    for path, endpoint in endpoints:
        reading.claims.listener(path, endpoint, url_path)
    return tuple(endpoint for _, endpoint in endpoints)


def _ingress(node: Node, listen: tuple[ListenAddress, ...], reading: LoadContext) -> IngressOptions:
    """The defaults stand where errors were reported."""
    trusted = reading.each(node, "trusted_proxies", fields.trusted_proxy)
    networks = [(path, it) for path, it in trusted if it != "unix"]
    unix = [path for path, it in trusted if it == "unix"]
    protocol, path = bool(node.get("proxy_protocol", bool)), node.at("trusted_proxies")
    for place, network in networks:
        if network.prefixlen == 0:
            reading.findings.warning(
                place,
                quote(str(network)),
                "lets whoever connects say what its address is, in the log too",
                "write the addresses of your proxies only",
            )
    if listen and not any(isinstance(it, UnixAddress) for it in listen):
        for place, value in [(place, '"unix"') for place in unix] + (
            [(node.at("listen_mode"), "")] if "listen_mode" in node.given else []
        ):
            reading.findings.warning(place, value, 'means nothing, for "listen" names no Unix socket', "remove it")
    if protocol and not node.get("trusted_proxies", list):
        reading.findings.error(
            path,
            "[]" if "trusted_proxies" in node.given else "",
            'has nobody, and with "proxy_protocol" only trusted proxies are served',
            'write their addresses, such as ["127.0.0.1", "::1"], or "unix" for those on a Unix socket',
        )
    mode = reading.parse(node.at("listen_mode"), node.get("listen_mode", str), fields.socket_mode)
    ingress = IngressOptions(
        trusted=tuple(sorted({network for _, network in networks}, key=lambda it: (it.version, it))),
        trusts_unix=bool(unix),
        proxy_protocol=protocol,
        socket_mode=IngressOptions().socket_mode if mode is None else mode,
    )
    reading.claims.ingress(node.path, listen, ingress)
    return ingress


def _port_missing(path: str, reading: LoadContext) -> None:
    reading.findings.error(path, "", "is missing", 'add "port": 8080, or let "listen" name Unix sockets only')


# --- clients ---


@dataclass(frozen=True, slots=True)
class _Client:
    """One of ``clients`` half read: what it is and, where it is right, its address."""

    node: Node
    ip: IPv4Address | None


def _clients(
    node: Node, net: IPv4Interface | None, own: ServerConflictChecker, reading: LoadContext
) -> tuple[AllowedClient, ...]:
    """The clients without errors. All addresses are known before the first name or route, which
    may clash with one further down."""
    if node.get("clients", list) == []:
        value = "[]" if "clients" in node.given else ""
        reading.findings.warning(node.at("clients"), value, "has nobody who may connect", "add the clients")
    half = [_Client(client, _ip(client, net, own, reading)) for client in node.nodes("clients")]
    whole = [_client(client, net, node, own, reading) for client in half]
    return tuple(client for client in whole if client is not None)


def _ip(
    client: Node, net: IPv4Interface | None, own: ServerConflictChecker, reading: LoadContext
) -> IPv4Address | None:
    path = client.at("ip")
    ip = reading.parse(path, client.get("ip", str), fields.ipv4_address)
    if ip is None:
        return None
    if net is not None:
        _in_net(path, ip, net.network, reading)
    reading.claims.address(path, ip)
    own.address(path, ip, client.path)
    if "name" not in client.given:
        own.default_name(path, ip)
    return ip


def _in_net(path: str, ip: IPv4Address, net: IPv4Network, reading: LoadContext) -> None:
    edge = fields.edge_of(ip, net)
    if ip not in net:
        reading.findings.error(path, quote(str(ip)), f"is outside net {net}", "choose an address in it")
    elif edge is not None:
        reading.findings.error(
            path,
            quote(str(ip)),
            f"is the {edge} address of {net}",
            "choose another address",
        )


def _client(
    client: _Client, net: IPv4Interface | None, server: Node, own: ServerConflictChecker, reading: LoadContext
) -> AllowedClient | None:
    node = client.node
    token = reading.parse(node.at("token"), node.get("token", str), fields.token_hash)
    if token is not None:
        own.token(node.at("token"), token)
    name = reading.parse(node.at("name"), node.get("name", str), fields.client_name)
    if name is not None:
        own.name(node.at("name"), name)
    routes = _routes(node, net, server, own, reading)
    sources = _sources(client, own, reading)
    if token is None or client.ip is None:
        return None
    return AllowedClient(
        name=name or str(client.ip),
        token=token,
        ip=client.ip,
        routes=routes,
        sources=sources,
    )


def _routes(
    node: Node, net: IPv4Interface | None, server: Node, own: ServerConflictChecker, reading: LoadContext
) -> tuple[IPv4Network, ...]:
    installs = server.get("install_routes", bool)
    good: list[IPv4Network] = []
    for path, route in reading.each(node, "routes", fields.ipv4_network):
        good.append(route)
        inside = net is not None and _is_within(route, net.network)
        if not own.route(path, route, node.path) or inside or not installs:
            continue
        reading.claims.kernel_route(path, route)
        if route.prefixlen == 0:
            reading.findings.warning(
                path,
                quote(str(route)),
                "sends the traffic of this machine itself to this client too",
                'set "install_routes": false to forward only what comes through the tunnel',
            )
    return tuple(good)


def _is_within(inner: IPv4Network, outer: IPv4Network) -> bool:
    """As `inner.subnet_of(outer)`, which would leave two more addresses in each of thousands of networks."""
    first = int(inner.network_address) & int(outer.netmask)
    return inner.prefixlen >= outer.prefixlen and first == int(outer.network_address)


def _sources(client: _Client, own: ServerConflictChecker, reading: LoadContext) -> tuple[IPv4Address, ...]:
    good: list[IPv4Address] = []
    for path, source in reading.each(client.node, "sources", fields.ipv4_address):
        good.append(source)
        own.source(path, source, client.node.path)
        if source == client.ip:
            reading.findings.warning(
                path,
                quote(str(source)),
                "is this client's own address, so that its packets would come back to it",
                "remove it",
            )
    return tuple(good)
