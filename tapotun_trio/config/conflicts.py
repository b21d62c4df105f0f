"""What may be used only once in a file: names, addresses, tokens, routes, marks, listeners.

Entries are registered in the order of the file. Of two that conflict, the later one is reported, with the path of the
earlier one. Every check is a look-up, so that a file of ten thousand routes takes no longer per route than one of ten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Final, TypeAlias

from ..families import IPAddress, IPNetwork, host_network, is_within
from ..macs import mac_text
from .diagnostics import MASK, Findings, quote, show
from .model import Bridge, IngressOptions, ListenAddress, ListenScope, Mark, Secret, TokenHash, Url

Path: TypeAlias = str

# Fields of IngressOptions, and their names in the file.
_INGRESS_FIELDS: Final = {
    "trusted": "trusted_proxies",
    "trusts_unix": "trusted_proxies",
    "proxy_protocol": "proxy_protocol",
    "socket_mode": "listen_mode",
}


class ConflictChecker:
    """What the entries of one file have claimed so far."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._names: dict[str, Path] = {}
        self._bridges: list[tuple[str, Path]] = []
        self._made_bridges: dict[str, Path] = {}
        self._macs: dict[bytes, Path] = {}
        self._addresses: dict[IPAddress, Path] = {}
        self._nets: list[tuple[IPNetwork, Path]] = []
        self._routes: dict[IPNetwork, Path] = {}
        self._logins: dict[tuple[Url, str], Path] = {}
        self._marks: dict[Mark, Path] = {}
        self._tables: dict[int, Path] = {}
        self._listeners: dict[ListenScope, dict[ListenAddress, Path]] = {}  # by scope, then by key
        self._wildcards: dict[ListenScope, Path] = {}
        self._url_paths: dict[tuple[ListenAddress, str | None], Path] = {}
        self._ingress: dict[ListenAddress, tuple[IngressOptions, Path]] = {}
        self._reported_listeners: set[Path] = set()

    def name(self, path: Path, name: str) -> None:
        """Register an interface's name."""
        earlier = self._names.setdefault(name, path)
        if earlier != path:
            self._findings.error(path, quote(name), f"is already used at {earlier}", "choose another")

    def bridge(self, name_path: Path, create_path: Path, bridge: Bridge) -> None:
        """Register the bridge of a TAP interface. Several may have one bridge; `finish` compares it with the
        interfaces' names."""
        self._bridges.append((bridge.name, name_path))
        if bridge.create:
            earlier = self._made_bridges.setdefault(bridge.name, create_path)
            if earlier != create_path:
                problem = f"makes the bridge that {earlier} makes"
                self._findings.error(create_path, "true", problem, "leave it with one of them")

    def mac(self, path: Path, mac: bytes) -> None:
        """Register the MAC address of a TAP interface."""
        earlier = self._macs.setdefault(mac, path)
        if earlier != path:
            problem = f"is already used at {earlier}"
            self._findings.error(path, quote(mac_text(mac)), problem, "give each interface an address of its own")

    def address(self, path: Path, address: IPAddress) -> bool:
        """Register an address of this machine or of a client. Returns whether it was free."""
        earlier = self._addresses.setdefault(address, path)
        if earlier == path:
            return True
        self._findings.error(path, quote(str(address)), f"is already used at {earlier}", "choose another address")
        return False

    def net(self, path: Path, network: IPNetwork) -> None:
        """Register a server's network; `finish` compares them."""
        self._nets.append((network, path))

    def kernel_route(self, path: Path, network: IPNetwork) -> None:
        """Register a route that will be added to the kernel's table.

        `ServerConflictChecker.route` compares the clients of one server; this compares servers.
        """
        earlier = self._routes.setdefault(network, path)
        if earlier != path:
            self._findings.error(
                path,
                quote(str(network)),
                f"is already used at {earlier}, and this machine can route it to one of them only",
                'leave it with one, or set "install_routes": false',
            )

    def login(self, path: Path, server: Url, token: Secret) -> None:
        """Register a client entry's token at its server."""
        earlier = self._logins.setdefault((server, token.reveal()), path)
        if earlier != path:
            self._findings.error(
                path,
                MASK,
                f"is used by {earlier} at the same server, and each would end the other's streams",
                "give each client a token of its own",
            )

    def mark(self, path: Path, mark: Mark) -> None:
        """Register the policy routing of an entry."""
        for other, earlier in self._marks.items():
            common = mark.mask & other.mask
            if mark.table == other.table or (mark.value ^ other.value) & common:
                continue  # both send the same packets to the same table, or match different packets
            if common in (mark.mask, other.mask):  # one mark matches all packets of the other
                same = (mark.value, mark.mask) == (other.value, other.mask)
                self._findings.error(
                    f"{path}.table",
                    show(mark.table),
                    f"differs from table {other.table} that {earlier} has for mark {other}",
                    "use one table for one mark, or another mark"
                    if same
                    else f"use one table for both, or marks that exclude each other: mark {mark} does not exclude it",
                )
                break
        self._marks.setdefault(mark, path)
        first_user = self._tables.setdefault(mark.table, path)
        if first_user != path:
            self._findings.warning(
                f"{path}.table",
                show(mark.table),
                f"is the table of {first_user} too, and a table has room for one default route",
                "give each interface a table of its own",
            )

    def listener(self, path: Path, endpoint: ListenAddress, url_path: str | None) -> None:
        """Register a listening socket.

        ``path`` is an element of ``listen``, or ``port`` for the default addresses. Entries share an endpoint if they
        differ in ``url_path``.
        """
        sharer = self._url_paths.setdefault((endpoint.key, url_path), path)
        other = None if sharer == path else sharer
        could_share = other is not None and _entry(path) != _entry(other)
        in_scope = self._listeners.setdefault(endpoint.scope, {})
        if endpoint.key not in in_scope:
            other, could_share = self._overlapping(endpoint), False
            in_scope[endpoint.key] = path
            if endpoint.is_wildcard:
                self._wildcards[endpoint.scope] = path
        # The two default addresses have one path, which needs only one finding.
        if other is not None and path not in self._reported_listeners:
            self._reported_listeners.add(path)
            choice = "another socket" if endpoint.is_unix else "another port or another address to listen on"
            share = ', or give each a "path" of its own' if could_share else ""
            self._report_listener(path, endpoint, other, f"choose {choice}{share}", by_port=path.endswith(".port"))

    def admin_listener(self, path: Path, endpoint: ListenAddress) -> None:
        """Register the process's own listening socket, which it shares with no interface.

        It must be registered after the listeners of all interfaces.
        """
        other = self._listeners.get(endpoint.scope, {}).get(endpoint.key) or self._overlapping(endpoint)
        if other is not None:
            self._report_listener(path, endpoint, other, "choose another port or socket", by_port=True)

    def _overlapping(self, endpoint: ListenAddress) -> Path | None:
        """The path of a listener at another address that overlaps, because one of the two is a wildcard."""
        if endpoint.is_wildcard:
            return next(iter(self._listeners.get(endpoint.scope, {}).values()), None)
        return self._wildcards.get(endpoint.scope)

    def _report_listener(self, path: Path, endpoint: ListenAddress, other: Path, remedy: str, *, by_port: bool) -> None:
        """``by_port``: show the port instead of the address, if there is one."""
        value, where = quote(endpoint.literal), ""
        if endpoint.port is not None:
            where = f" on port {endpoint.port}"
            if by_port:
                value = show(endpoint.port)
        self._findings.error(path, value, f"clashes with {other}{where}", remedy)

    def ingress(self, path: Path, endpoints: Iterable[ListenAddress], ingress: IngressOptions) -> None:
        """Register an entry's ingress options. Entries that share an endpoint must have the same.

        ``path`` is the path of the entry.
        """
        differences: dict[str, Path] = {}
        for endpoint in endpoints:
            new = ingress.at(endpoint)
            first, earlier = self._ingress.setdefault(endpoint.key, (new, path))
            for field in fields(IngressOptions):
                if getattr(first, field.name) != getattr(new, field.name):
                    differences.setdefault(_INGRESS_FIELDS[field.name], earlier)
        for name, earlier in differences.items():
            self._findings.error(
                f"{path}.{name}",
                "",
                f"differs from {earlier}.{name}, and both listen on the same endpoint",
                "write the same in both",
            )

    def finish(self) -> None:
        """Compare what can be compared only when all entries are registered: the servers' networks; bridges with the
        interfaces' names."""
        for name, path in self._bridges:
            if (interface := self._names.get(name)) is not None:
                problem = f"is the name of the interface at {interface}, which is no bridge"
                self._findings.error(path, quote(name), problem, 'write the name of a bridge, such as "br0"')
        widest: tuple[IPNetwork, Path] | None = None
        for network, path in sorted(self._nets, key=lambda net: (net[0].version, net[0])):
            if widest is None or not is_within(network, widest[0]):
                widest = network, path
                continue
            # A narrower network inside a wider one can be intended; the same network twice cannot work.
            report = self._findings.error if network == widest[0] else self._findings.warning
            report(
                path,
                quote(str(network)),
                f"overlaps the network {widest[0]} of {widest[1]}",
                "give each server a network of its own",
            )


def _entry(path: Path) -> Path:
    """The path of the interface definition that a path is in."""
    return path.partition(".")[0]


class ServerConflictChecker:
    """What the clients of one server have claimed so far. ``owner`` is the path of the client that claims."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._tokens: dict[TokenHash, Path] = {}
        self._names: dict[str, Path] = {}
        self._macs: dict[bytes, tuple[Path, Path]] = {}
        self._prefixes: dict[IPNetwork, tuple[Path, Path]] = {}
        self._sources: dict[IPAddress, tuple[Path, Path]] = {}

    def token(self, path: Path, token: TokenHash) -> None:
        """Register a client's token. The same token as SHA-1 for one client and as SHA-256 for another is not
        noticed."""
        earlier = self._tokens.setdefault(token, path)
        if earlier != path:
            self._findings.error(
                path,
                quote(f"{token.digest[:8]}…"),
                f"is already used at {earlier}",
                "give each client a token of its own",
            )

    def default_name(self, path: Path, name: str) -> None:
        """Register the name of a client without a given name, such as its address. It must come before any given
        name."""
        self._names.setdefault(name, path)

    def name(self, path: Path, name: str) -> None:
        """Register a client's given name."""
        earlier = self._names.setdefault(name, path)
        if earlier != path:
            self._findings.error(path, quote(name), f"already names the client of {earlier}", "choose another")

    def mac(self, path: Path, mac: bytes, owner: Path) -> None:
        """Register a MAC address that only this client may use, or that is the server's own."""
        earlier, holder = self._macs.setdefault(mac, (path, owner))
        if earlier == path:
            return
        if holder != owner:
            problem = f"is already used at {earlier}"
            self._findings.error(path, quote(mac_text(mac)), problem, "leave it with one")
        else:
            self._findings.warning(path, quote(mac_text(mac)), f"is already used at {earlier}", "remove one")

    def address(self, path: Path, address: IPAddress, owner: Path) -> None:
        """Register an address as the /32 or /128 prefix that routing makes of it. It must come before any route.

        `ConflictChecker.address` reports an address that is used twice.
        """
        self._prefixes.setdefault(host_network(address), (path, owner))

    def route(self, path: Path, network: IPNetwork, owner: Path) -> bool:
        """Register a client's route. Returns whether it was free: one prefix cannot lead to two clients."""
        earlier, holder = self._prefixes.setdefault(network, (path, owner))
        if earlier == path:
            return True
        if holder != owner:
            self._findings.error(path, quote(str(network)), f"is already used at {earlier}", "leave it with one")
        elif not earlier.startswith(f"{owner}.ip"):  # its own address: ip, or an element of it
            self._findings.warning(path, quote(str(network)), f"is already used at {earlier}", "remove one")
        return False

    def source(self, path: Path, address: IPAddress, owner: Path) -> None:
        """Register an address whose packets leave by this client.

        It may be another client's own address: that is how one client becomes the exit for another.
        """
        earlier, holder = self._sources.setdefault(address, (path, owner))
        if earlier == path:
            return
        if holder != owner:
            self._findings.error(path, quote(str(address)), f"is already used at {earlier}", "leave it with one")
        else:
            self._findings.warning(path, quote(str(address)), f"is already used at {earlier}", "remove one")
