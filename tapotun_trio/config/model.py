"""What a valid config file says, in typed values. `load` makes these; the rest of the program reads nothing else."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, TypeAlias

SourceCheck: TypeAlias = Literal["strict", "loose", "off"]
TransportChoice: TypeAlias = Literal["auto", "http", "websocket"]
TlsVersion: TypeAlias = Literal["1.2", "1.3"]
AuthHeader: TypeAlias = Literal["x-api-key", "authorization", "both"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["text", "json"]


class Secret(str):
    """A string that never shows itself by accident: repr and format give ``***``. Use `reveal`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> str:
        """The characters themselves, for the one place that sends them."""
        return str.__str__(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """fwmark policy routing: packets marked ``value`` use routing table ``table``. Both uint32."""

    value: int
    table: int


@dataclass(frozen=True, slots=True)
class TokenHash:
    """How a server knows a token: lowercase hex of its SHA-1 or SHA-256."""

    algorithm: Literal["sha1", "sha256"]
    digest: str


@dataclass(frozen=True, slots=True)
class AllowedClient:
    """One entry of a server's ``clients``. ``name`` is for people: the config's, else its address."""

    name: str
    token: TokenHash
    ip: IPv4Address
    routes: tuple[IPv4Network, ...] = ()
    sources: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address literal of either family and a port. ``optional``: from the default, so a machine without
    that family skips it. ``early``: an interface of ours brings the IPv4 address, or may bring it, so it is no surprise
    that it is not there at the start."""

    address: str
    port: int
    optional: bool = False
    early: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str


ListenAddress: TypeAlias = TcpAddress | UnixAddress


def listen_key(endpoint: ListenAddress) -> ListenAddress:
    """The same for endpoints that are one to the kernel."""
    if isinstance(endpoint, UnixAddress):
        # normpath leaves two leading slashes alone, for POSIX; Linux sees one.
        return UnixAddress(posixpath.normpath("/" + endpoint.path.lstrip("/")))
    return replace(endpoint, optional=False)


@dataclass(frozen=True, slots=True)
class IngressOptions:
    """How connections are received. Interfaces that share an endpoint have the same.

    ``trusted``: proxies with these addresses are believed what they say of a client's; ``trusts_unix``: so is whoever
    connects to a Unix socket. ``proxy_protocol``: every connection begins with a PROXY protocol header, and only
    trusted ones are served. ``socket_mode``: the permissions of a Unix socket.
    """

    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    trusts_unix: bool = False
    proxy_protocol: bool = False
    socket_mode: int = 0o660

    def at(self, endpoint: ListenAddress) -> IngressOptions:
        """What of it matters at an endpoint."""
        if isinstance(endpoint, UnixAddress):
            return self
        return IngressOptions(trusted=self.trusted, proxy_protocol=self.proxy_protocol)

    def trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self.trusted)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """An interface definition with ``port`` or ``net``. ``mtu`` is in bytes and holds at both ends.

    ``push_routes``: what clients are told to route into the tunnel, each once and at most 255. ``push_dns``: name
    servers that they are told of. ``peers``: the generation that base clients are spoken to in. ``keepalive_s``:
    between pings with clients of ours. ``path``: the only one that is answered, None: every one that no other interface
    on the endpoint has. ``ingress``: what else there is to its endpoints.
    """

    name: str
    net: IPv4Interface
    listen: tuple[ListenAddress, ...]
    mtu: int = 1500
    ips: tuple[IPv4Address, ...] = ()
    routes: tuple[IPv4Network, ...] = ()
    push_routes: tuple[IPv4Network, ...] = ()
    push_dns: tuple[IPv4Address, ...] = ()
    clients: tuple[AllowedClient, ...] = ()
    mark: Mark | None = None
    install_routes: bool = True
    source_check: SourceCheck = "loose"
    peers: Literal[1, 2] = 1
    keepalive_s: float = 10.0
    path: str | None = None
    ingress: IngressOptions = field(default_factory=IngressOptions)


@dataclass(frozen=True, slots=True)
class Url:
    """Where a client connects. ``host`` is a name or an address literal without brackets; ``target`` is the
    origin-form request target (path and query), at least ``/``."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The value of the Host header: host, in brackets if IPv6, and the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """``ca_file``: trust this PEM bundle instead of the system's. ``cert_file``: the client's own certificate, with its
    key unless that is in ``key_file``. ``server_name``: what to ask for and to check instead of the URL's host.
    ``insecure``: check neither chain nor name. Files are absolute paths."""

    ca_file: str | None = None
    insecure: bool = False
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    min_version: TlsVersion = "1.2"


TlsOption: TypeAlias = Literal["ca_file", "cert_file", "key_file"]


@dataclass(frozen=True, slots=True)
class TlsProblem:
    """What makes a file that the TLS options name useless, as only a TLS library can say it. ``problem`` is a verb and
    its object, to stand behind the file."""

    option: TlsOption
    problem: str
    remedy: str


TlsValidator: TypeAlias = Callable[[TlsConfig], TlsProblem | None]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An outgoing HTTP proxy. ``host`` is a name or an address literal without brackets; ``login``: user:pass."""

    host: str
    port: int
    login: Secret | None = None

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NoProxy(Enum):
    """Never a proxy, whatever the environment says."""

    NO_PROXY = "none"


NO_PROXY: Final = NoProxy.NO_PROXY


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """An interface definition with ``server``.

    ``rotate_s``: each stream is replaced after a random time between these. ``transport``: what carries the frames.
    ``transport_mark``: fwmark of the transport's own sockets, or None. ``auth_header``: what carries the token.
    ``proxy``: None: what the environment says.
    """

    name: str
    server: Url
    token: Secret
    mark: Mark | None = None
    tls: TlsConfig = field(default_factory=TlsConfig)
    rotate_s: tuple[float, float] = (420.0, 900.0)
    transport: TransportChoice = "auto"
    auth_header: AuthHeader = "x-api-key"
    proxy: Proxy | NoProxy | None = None
    transport_mark: int | None = None


InterfaceConfig: TypeAlias = ServerConfig | ClientConfig


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin listener. ``token``: whoever shows it may see and do everything, known by its hash or as it is; None:
    nobody may, and what is open to all is all there is."""

    listen: ListenAddress
    token: TokenHash | Secret | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the log has, and how, unless the command line says otherwise."""

    level: LogLevel = "info"
    format: LogFormat = "text"


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file. ``warnings`` are findings that do not stop a start, formatted as the errors are."""

    interfaces: tuple[InterfaceConfig, ...]
    warnings: tuple[str, ...] = ()
    admin: AdminConfig | None = None
    log: LogConfig = field(default_factory=LogConfig)
