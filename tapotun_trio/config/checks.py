"""What may stand only once: names, addresses, tokens, routes, marks, listeners.

Entries are told to `ConflictChecker` in the order of the file, and the later of two that clash is reported,
with the path of the earlier. Every check is a look-up, so a file of ten thousand routes is no
slower per route than one of ten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from ipaddress import IPv4Address, IPv4Network
from typing import TypeAlias

from .diagnostics import MASK, Findings, quote, show
from .model import IngressOptions, ListenAddress, Mark, Secret, TokenHash, UnixAddress, Url, listen_key

Path: TypeAlias = str

_WILDCARDS = ("0.0.0.0", "::")
# Fields of Reception, and what the file calls them.
_INGRESS = {
    "trusted": "trusted_proxies",
    "trusts_unix": "trusted_proxies",
    "proxy_protocol": "proxy_protocol",
    "socket_mode": "listen_mode",
}
_SHARE = ', or give each a "path" of its own'


class ConflictChecker:
    """What all entries of one file take for themselves."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._names: dict[str, Path] = {}
        self._addresses: dict[IPv4Address, Path] = {}
        self._nets: list[tuple[IPv4Network, Path]] = []
        self._routes: dict[IPv4Network, Path] = {}
        self._logins: dict[tuple[Url, str], Path] = {}
        self._marks: dict[int, tuple[int, Path]] = {}
        self._tables: dict[int, Path] = {}
        self._tcp: dict[tuple[bool, int], dict[str, Path]] = {}
        self._url_paths: dict[tuple[ListenAddress, str | None], Path] = {}
        self._receptions: dict[ListenAddress, tuple[IngressOptions, Path]] = {}
        self._clashing_ports: set[Path] = set()

    def name(self, path: Path, name: str) -> None:
        """An interface's name."""
        earlier = self._names.setdefault(name, path)
        if earlier != path:
            self._findings.error(path, quote(name), f"is already used at {earlier}", "choose another")

    def address(self, path: Path, address: IPv4Address) -> bool:
        """An address of this machine or of a client. Whether it was free."""
        earlier = self._addresses.setdefault(address, path)
        if earlier == path:
            return True
        self._findings.error(path, quote(str(address)), f"is already used at {earlier}", "choose another address")
        return False

    def net(self, path: Path, network: IPv4Network) -> None:
        """A server's network; `finish` compares them."""
        self._nets.append((network, path))

    def kernel_route(self, path: Path, network: IPv4Network) -> None:
        """A route that will be programmed. The caller has judged the clients of one server."""
        earlier = self._routes.setdefault(network, path)
        if earlier != path:
            self._findings.error(
                path,
                quote(str(network)),
                f"is already used at {earlier}, and this machine can route it to one of them only",
                'leave it with one, or set "install_routes": false',
            )

    def login(self, path: Path, server: Url, token: Secret) -> None:
        """A client entry's token at its server."""
        earlier = self._logins.setdefault((server, token.reveal()), path)
        if earlier != path:
            self._findings.error(
                path,
                MASK,
                f"is used by {earlier} at the same server, and each would end the other's streams",
                "give each client a token of its own",
            )

    def mark(self, path: Path, mark: Mark) -> None:
        """Policy routing."""
        table, earlier = self._marks.setdefault(mark.value, (mark.table, path))
        if table != mark.table:
            self._findings.error(
                f"{path}.table",
                show(mark.table),
                f"differs from table {table} that {earlier} has for mark {mark.value}",
                "use one table for one mark, or another mark",
            )
        sharer = self._tables.setdefault(mark.table, path)
        if sharer != path:
            self._findings.warning(
                f"{path}.table",
                show(mark.table),
                f"is the table of {sharer} too, and a table has room for one default route",
                "give each interface a table of its own",
            )

    def listener(self, path: Path, endpoint: ListenAddress, url_path: str | None) -> None:
        """A listening socket. ``path`` is an element of ``listen``, or ``port`` for the default
        addresses. IPv6 sockets are V6ONLY, so the families never clash.
        Entries share an endpoint if they differ in ``url_path``."""
        if isinstance(endpoint, UnixAddress):
            earlier = self._url_paths.setdefault((listen_key(endpoint), url_path), path)
            if earlier != path:
                self._findings.error(
                    path,
                    quote(f"unix:{endpoint.path}"),
                    f"is already used at {earlier}",
                    "choose another socket" + _or_share(path, earlier),
                )
            return
        family = self._tcp.setdefault((":" in endpoint.address, endpoint.port), {})
        same = self._url_paths.setdefault((listen_key(endpoint), url_path), path)
        clash = None if same == path else same
        remedy = "choose another port or another address to listen on" + _or_share(path, same)
        if endpoint.address not in family:
            others = family if endpoint.address in _WILDCARDS else _WILDCARDS
            clash = next((family[other] for other in others if other in family), None)
            remedy = "choose another port or another address to listen on"
        family.setdefault(endpoint.address, path)
        # The default has two addresses at one path, which need only one line.
        if clash is not None and path not in self._clashing_ports:
            self._clashing_ports.add(path)
            by_port = path.endswith(".port")
            self._findings.error(
                path,
                show(endpoint.port) if by_port else quote(endpoint.address),
                f"clashes with {clash} on port {endpoint.port}",
                remedy,
            )

    def admin_listener(self, path: Path, endpoint: ListenAddress) -> None:
        """The process's own listening socket, which it shares with no interface; after all of theirs."""
        if isinstance(endpoint, UnixAddress):
            key = listen_key(endpoint)
            clash = next((it for (taken, _), it in self._url_paths.items() if taken == key), None)
            value, where = quote(f"unix:{endpoint.path}"), ""
        else:
            family = self._tcp.get((":" in endpoint.address, endpoint.port), {})
            others = family if endpoint.address in _WILDCARDS else (endpoint.address, *_WILDCARDS)
            clash = next((family[other] for other in others if other in family), None)
            value, where = show(endpoint.port), f" on port {endpoint.port}"
        if clash is not None:
            self._findings.error(path, value, f"clashes with {clash}{where}", "choose another port or socket")

    def ingress(self, path: Path, endpoints: Iterable[ListenAddress], ingress: IngressOptions) -> None:
        """How an entry wants connections received, which it must agree on with whom it shares an endpoint.
        ``path`` is the entry's."""
        differ: dict[str, Path] = {}
        for endpoint in endpoints:
            ours = ingress.at(endpoint)
            theirs, earlier = self._receptions.setdefault(listen_key(endpoint), (ours, path))
            for field in fields(IngressOptions):
                if getattr(theirs, field.name) != getattr(ours, field.name):
                    differ.setdefault(_INGRESS[field.name], earlier)
        for name, earlier in differ.items():
            self._findings.error(
                f"{path}.{name}",
                "",
                f"differs from {earlier}.{name}, and both listen on the same endpoint",
                "write the same in both",
            )

    def finish(self) -> None:
        """What can be said only when all entries are known."""
        widest: tuple[IPv4Network, Path] | None = None
        for network, path in sorted(self._nets, key=lambda net: net[0]):
            if widest is None or not network.subnet_of(widest[0]):
                widest = network, path
                continue
            # A narrower network inside a wider one can be meant; the same twice cannot work.
            report = self._findings.error if network == widest[0] else self._findings.warning
            report(
                path,
                quote(str(network)),
                f"overlaps the network {widest[0]} of {widest[1]}",
                "give each server a network of its own",
            )


def _or_share(path: Path, earlier: Path) -> str:
    """What two entries can do beside: one alone has one ``path``."""
    return "" if path.partition(".")[0] == earlier.partition(".")[0] else _SHARE


class ServerConflictChecker:
    """What the clients of one server take for themselves. ``owner`` is the path of a client."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._tokens: dict[TokenHash, Path] = {}
        self._names: dict[str, Path] = {}
        self._prefixes: dict[IPv4Network, tuple[Path, Path]] = {}
        self._sources: dict[IPv4Address, tuple[Path, Path]] = {}

    def token(self, path: Path, token: TokenHash) -> None:
        """A client's token. The same token as SHA-1 here and SHA-256 there cannot be seen."""
        earlier = self._tokens.setdefault(token, path)
        if earlier != path:
            self._findings.error(
                path,
                quote(f"{token.digest[:8]}…"),
                f"is already used at {earlier}",
                "give each client a token of its own",
            )

    def default_name(self, path: Path, address: IPv4Address) -> None:
        """The address as the name of a client without one; before any given name."""
        self._names.setdefault(str(address), path)

    def name(self, path: Path, name: str) -> None:
        """A client's given name."""
        earlier = self._names.setdefault(name, path)
        if earlier != path:
            self._findings.error(path, quote(name), f"already names the client of {earlier}", "choose another")

    def address(self, path: Path, address: IPv4Address, owner: Path) -> None:
        """An address as the /32 that routing makes of it; before any route. That it is used once
        is for `ConflictChecker.address`."""
        self._prefixes.setdefault(IPv4Network(address), (path, owner))

    def route(self, path: Path, network: IPv4Network, owner: Path) -> bool:
        """A client's route. Whether it was free: two clients with the same prefix cannot both
        win."""
        earlier, holder = self._prefixes.setdefault(network, (path, owner))
        if earlier == path:
            return True
        if holder != owner:
            self._findings.error(path, quote(str(network)), f"is already used at {earlier}", "leave it with one")
        elif earlier != f"{owner}.ip":
            self._findings.warning(path, quote(str(network)), f"is already used at {earlier}", "remove one")
        return False

    def source(self, path: Path, address: IPv4Address, owner: Path) -> None:
        """An address whose packets leave by this client. It may be another client's own address:
        that is how one client becomes the way out for another."""
        earlier, holder = self._sources.setdefault(address, (path, owner))
        if earlier == path:
            return
        if holder != owner:
            self._findings.error(path, quote(str(address)), f"is already used at {earlier}", "leave it with one")
        else:
            self._findings.warning(path, quote(str(address)), f"is already used at {earlier}", "remove one")
