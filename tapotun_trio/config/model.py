"""A valid config file as typed values. `load` makes them; the rest of the program reads nothing else of the config."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import ClassVar, Final, Literal, TypeAlias

from ..families import IPAddress, IPInterface, IPNetwork
from ..text import shorten

SourceCheck: TypeAlias = Literal["strict", "loose", "off"]
TransportChoice: TypeAlias = Literal["auto", "http", "websocket"]
TlsVersion: TypeAlias = Literal["1.2", "1.3"]
AuthHeader: TypeAlias = Literal["x-api-key", "authorization", "both"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["text", "json"]
PlaneMode: TypeAlias = Literal["auto", "off"]
UpdateMode: TypeAlias = Literal["check", "download", "apply"]
DeviceKind: TypeAlias = Literal["tun", "tap"]
"""What the frames of an interface carry: packets of IP, or frames of Ethernet."""
BpduMode: TypeAlias = Literal["drop", "forward"]

FULL_MASK: Final = 0xFFFF_FFFF  # compares all bits of a fwmark
STORM_FRAMES: Final = 2000  # per second: a video of 20 Mbit/s by multicast, and far less than a loop makes


_SHOWN_PATH_CHARS: Final = 200


class Secret(str):
    """A string that cannot be printed by accident: str, repr and format give ``***``. `reveal` gives the characters."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> str:
        """The characters themselves, for the code that sends or compares them."""
        return str.__str__(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """fwmark policy routing: packets whose mark equals ``value`` in the bits of ``mask`` use routing table ``table``.
    All are uint32; ``value`` has no bit outside of ``mask``."""

    value: int
    table: int
    mask: int = FULL_MASK

    def matches(self, mark: int) -> bool:
        """Whether the rule matches packets with this mark."""
        return (mark ^ self.value) & self.mask == 0

    def __str__(self) -> str:
        """Return the mark in the notation of `ip rule`."""
        return str(self.value) if self.mask == FULL_MASK else f"{self.value:#x}/{self.mask:#x}"


@dataclass(frozen=True, slots=True)
class TokenHash:
    """What a server stores of a token: lowercase hex of its SHA-1 or SHA-256."""

    algorithm: Literal["sha1", "sha256"]
    digest: str


@dataclass(frozen=True, slots=True)
class Bridge:
    """The Linux bridge that a TAP interface is a port of, and the options of that port.

    Attributes:
        create: make the bridge, and remove it at the end; otherwise it exists.
        isolated: the port exchanges frames only with ports that are not isolated.
        learning: the bridge learns which MAC addresses are behind the port.
        bpdu_guard: the bridge switches the port off when a BPDU arrives through it.
    """

    name: str
    create: bool = False
    isolated: bool = False
    learning: bool = True
    bpdu_guard: bool = False


@dataclass(frozen=True, slots=True)
class AllowedClient:
    """One entry of a server's ``clients``.

    Attributes:
        name: for logs, status and metrics: the config's, or the first address. Without one, on a TAP interface, the
            first MAC address, or its place in the list.
        addresses: the client's own: at most one of each family, IPv4 first. On a TAP interface maybe none.
        macs: the only MAC addresses that may be behind this client, and behind no other; empty: any.
    """

    name: str
    token: TokenHash
    addresses: tuple[IPAddress, ...]
    routes: tuple[IPNetwork, ...] = ()
    sources: tuple[IPAddress, ...] = ()
    macs: tuple[bytes, ...] = ()

    @property
    def ipv4(self) -> IPv4Address | None:
        return next((each for each in self.addresses if isinstance(each, IPv4Address)), None)

    @property
    def ipv6(self) -> IPv6Address | None:
        return next((each for each in self.addresses if isinstance(each, IPv6Address)), None)


ListenScope: TypeAlias = tuple[Literal["ipv4", "ipv6", "unix"], int]


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address literal of either family and a port to listen on.

    ``optional``: the address is from the default, so a machine without that family skips it. ``early``: one of our own
    interfaces brings the address, or may bring it, so no warning is due if it is missing at the start.
    """

    is_unix: ClassVar[Literal[False]] = False

    address: str
    port: int
    optional: bool = False
    early: bool = field(default=False, compare=False)

    @property
    def literal(self) -> str:
        """The address as it is written in ``listen``, without the port."""
        return self.address

    @property
    def key(self) -> TcpAddress:
        """Equal for two addresses that are the same to the kernel."""
        return replace(self, optional=False)

    @property
    def scope(self) -> ListenScope:
        """Equal for two addresses that the kernel compares with each other. IPv6 sockets are V6ONLY, so an IPv4 and an
        IPv6 address never conflict."""
        return "ipv6" if ":" in self.address else "ipv4", self.port

    @property
    def is_wildcard(self) -> bool:
        """Whether the address conflicts with every other address of its scope."""
        return self.address in ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket to listen on. The properties are those of `TcpAddress`."""

    is_unix: ClassVar[Literal[True]] = True
    is_wildcard: ClassVar[Literal[False]] = False
    port: ClassVar[None] = None

    path: str

    @property
    def literal(self) -> str:
        return f"unix:{self.path}"

    @property
    def key(self) -> UnixAddress:
        # normpath keeps two leading slashes, as POSIX allows; to Linux they are one.
        return UnixAddress(posixpath.normpath("/" + self.path.lstrip("/")))

    @property
    def scope(self) -> ListenScope:
        return "unix", 0


ListenAddress: TypeAlias = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True)
class IngressOptions:
    """How connections are accepted. Interfaces that share an endpoint have the same options.

    ``trusted``: addresses of the proxies whose statement of a client's address is believed. ``trusts_unix``: the same
    for any process that connects to a Unix socket. ``proxy_protocol``: every connection begins with a PROXY protocol
    header, and only trusted proxies are served. ``socket_mode``: the permissions of a Unix socket.
    """

    trusted: tuple[IPNetwork, ...] = ()
    trusts_unix: bool = False
    proxy_protocol: bool = False
    socket_mode: int = 0o660

    def at(self, endpoint: ListenAddress) -> IngressOptions:
        """The options that have an effect at an endpoint; the others have their defaults."""
        if endpoint.is_unix:
            return self
        return IngressOptions(trusted=self.trusted, proxy_protocol=self.proxy_protocol)

    def trusts(self, address: IPAddress) -> bool:
        """Whether the peer with this address is a trusted proxy."""
        return any(address in network for network in self.trusted)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """An interface definition with ``port`` or ``net``.

    Attributes:
        nets: its own address with the prefix length of its network, at most one of each family, IPv4 first. Empty only
            on a TAP interface.
        mtu: the MTU of the interface at both ends, in bytes.
        routes: networks that are local to the server.
        push_routes: networks that clients are asked to route into the tunnel; each once, at most 255 of each family.
        push_dns: name servers that extended clients are informed of.
        peers: the protocol generation used with base clients.
        keepalive_s: time between two pings with an extended client.
        path: the only URL path that is answered; None: every path that no other interface on the endpoint has.
        ingress: how connections are accepted at its endpoints.
        device: what its frames carry.
        bridge, mac, macs, isolate, arp_guard, bpdu, storm_limit: of a TAP interface only. ``mac``: of the interface;
            None: one that stays the same is derived. ``macs``: those of machines on the server's side, which no client
            may use. ``isolate``: clients reach the server's side only. ``arp_guard``: a client that has an ``ip`` may
            claim no other address by ARP or neighbour discovery, and no client an address that is another one's or the
            server's. ``bpdu``: what becomes of frames to reserved addresses. ``storm_limit``: how many frames per
            second of one client may be flooded.
    """

    kind: ClassVar[Literal["server"]] = "server"

    name: str
    nets: tuple[IPInterface, ...]
    listen: tuple[ListenAddress, ...]
    mtu: int = 1500
    ips: tuple[IPAddress, ...] = ()
    routes: tuple[IPNetwork, ...] = ()
    push_routes: tuple[IPNetwork, ...] = ()
    push_dns: tuple[IPAddress, ...] = ()
    clients: tuple[AllowedClient, ...] = ()
    mark: Mark | None = None
    install_routes: bool = True
    source_check: SourceCheck = "loose"
    peers: Literal[1, 2] = 1
    keepalive_s: float = 10.0
    path: str | None = None
    ingress: IngressOptions = field(default_factory=IngressOptions)
    device: DeviceKind = "tun"
    bridge: Bridge | None = None
    mac: bytes | None = None
    macs: tuple[bytes, ...] = ()
    isolate: bool = False
    arp_guard: bool = False
    bpdu: BpduMode = "drop"
    storm_limit: int = STORM_FRAMES

    @property
    def net4(self) -> IPv4Interface | None:
        """Its IPv4 address and network."""
        return next((net for net in self.nets if isinstance(net, IPv4Interface)), None)

    @property
    def net6(self) -> IPv6Interface | None:
        """Its IPv6 address and network."""
        return next((net for net in self.nets if isinstance(net, IPv6Interface)), None)

    @property
    def own_addresses(self) -> tuple[IPAddress, ...]:
        """All addresses of the server inside the tunnel."""
        return (*(net.ip for net in self.nets), *self.ips)


def is_pushed_to_base_clients(route: IPNetwork, peers: int | None) -> bool:
    """Whether base clients get a route of ``push_routes``: only those of generation 2 do, and only IPv4.

    Unlike extended clients, they do not keep their own connections out of it.
    """
    return peers == 2 and route.version == 4


@dataclass(frozen=True, slots=True)
class Url:
    """The URL to which a client connects.

    ``host`` is a name or an address literal without brackets; an IPv6 link-local one has its zone, as in
    ``fe80::1%eth0``. ``target`` is the request target in origin form (path and query), at least ``/``.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str

    @property
    def host_without_zone(self) -> str:
        """The host as it is sent to others, to which a zone means nothing (RFC 6874 section 1)."""
        return self.host.partition("%")[0]

    @property
    def host_header(self) -> str:
        """The value of the Host header: host, in brackets if IPv6, and the port unless it is the scheme's default."""
        return self._with_port(self.host_without_zone)

    @property
    def authority(self) -> str:
        """As `host_header`, for people: with the zone, as ``ping`` and ``ss`` have it (``[fe80::1%eth0]:8080``)."""
        return self._with_port(self.host)

    def _with_port(self, host: str) -> str:
        host = f"[{host}]" if ":" in host else host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL for people, shortened. The query is masked, because it may contain a key."""
        path, question, _ = self.target.partition("?")
        authority = self.authority.replace("%", "%25")  # RFC 6874 section 2
        return f"{self.scheme}://{authority}{shorten(path, _SHOWN_PATH_CHARS)}{question and '?***'}"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How a client verifies an https server, and which certificate it shows. Files are absolute paths of PEM files.

    Attributes:
        ca_file: certificates to trust instead of the system's.
        insecure: verify neither the chain nor the name.
        cert_file: the client's own certificate, with its key unless that is in ``key_file``.
        server_name: the name to ask for (SNI) and to verify, instead of the URL's host.
    """

    ca_file: str | None = None
    insecure: bool = False
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    min_version: TlsVersion = "1.2"


TlsOption: TypeAlias = Literal["ca_file", "cert_file", "key_file"]


@dataclass(frozen=True, slots=True)
class TlsProblem:
    """Why a file that the TLS options name cannot be used; only a TLS library can find that out.

    ``problem`` is a verb and its object, which follow the file's name in a finding.
    """

    option: TlsOption
    problem: str
    remedy: str


TlsValidator: TypeAlias = Callable[[TlsConfig], TlsProblem | None]
"""Loads the files of the TLS options and returns the first problem. `host.net.tls_files` has one."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An outgoing HTTP proxy. ``host`` is as in `Url`; ``login`` is user:pass."""

    host: str
    port: int
    login: Secret | None = None

    @property
    def authority(self) -> str:
        """Host and port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NoProxy(Enum):
    """Connect without a proxy, also if the environment names one."""

    NO_PROXY = "none"


NO_PROXY: Final = NoProxy.NO_PROXY


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """An interface definition with ``server``.

    Attributes:
        rotate_s: each stream is replaced after a random time between these two limits.
        transport: what carries the frames.
        auth_header: the header that carries the token.
        headers: further headers of every request to the server, in the order of the file. No two have the same name.
        login: ``user:pass`` for Basic auth at the server's URL (RFC 7617). Each character stands for one byte.
        proxy: None: the environment decides.
        transport_mark: fwmark of the transport's own sockets, or None.
        device: what the frames have to carry; None: what the server says.
        bridge, mac: of a TAP interface only, as in `ServerConfig`.
    """

    kind: ClassVar[Literal["client"]] = "client"

    name: str
    server: Url
    token: Secret
    mark: Mark | None = None
    tls: TlsConfig = field(default_factory=TlsConfig)
    rotate_s: tuple[float, float] = (420.0, 900.0)
    transport: TransportChoice = "auto"
    auth_header: AuthHeader = "x-api-key"
    headers: tuple[tuple[str, Secret], ...] = ()
    login: Secret | None = None
    proxy: Proxy | NoProxy | None = None
    transport_mark: int | None = None
    device: DeviceKind | None = None
    bridge: Bridge | None = None
    mac: bytes | None = None


InterfaceConfig: TypeAlias = ServerConfig | ClientConfig


def addressed(config: InterfaceConfig) -> str:
    """The name of what has the addresses: the interface, or the bridge that it is a port of."""
    return config.name if config.bridge is None else config.bridge.name


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin listener.

    ``token``: the token that grants full access, or its hash. None: nobody has full access. ``read_token``: a token, or
    its hash, that allows seeing everything and changing nothing. Without both, only the public paths are served.
    """

    listen: ListenAddress
    token: TokenHash | Secret | None = None
    read_token: TokenHash | Secret | None = None

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.read_token is not None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Level and format of the log. Options of the command line override it."""

    level: LogLevel = "info"
    format: LogFormat = "text"


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """Where new versions of this program come from, and what is done about them.

    Attributes:
        url: the repository; ``target`` ends with a slash.
        login: ``user:pass`` for Basic auth at the repository. Each character stands for one byte.
        mode: report a new version; also fetch it; also install it.
        channel: which of the repository's versions, such as ``stable``.
        every_s: time between two checks.
        spread_s: each check waits for a random part of this time, so that machines do not check together.
        root_file: the absolute path of the trusted root metadata; None: the program's own.
        proxy: None: the environment decides.
    """

    url: Url
    login: Secret | None = None
    mode: UpdateMode = "check"
    channel: str = "stable"
    every_s: float = 86400.0
    spread_s: float = 21600.0
    root_file: str | None = None
    proxy: Proxy | NoProxy | None = None
    tls: TlsConfig = field(default_factory=TlsConfig)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file.

    Attributes:
        warnings: the findings that do not prevent a start, a line each.
        user: the name of the user to become after the start; None: the process keeps its user.
        plane: whether `datapath.plane` moves packets, where it can.
        update: None: new versions are not looked for.
        files: the absolute paths of this file and of all files that it names. A reload reads them again.
    """

    interfaces: tuple[InterfaceConfig, ...]
    warnings: tuple[str, ...] = ()
    admin: AdminConfig | None = None
    log: LogConfig = field(default_factory=LogConfig)
    user: str | None = None
    plane: PlaneMode = "auto"
    update: UpdateConfig | None = None
    files: tuple[str, ...] = field(default=(), compare=False)
