"""The shape of the JSON file: names, types, ranges and defaults of all fields.

Nothing else defines them. `typecheck` compares values with these annotations and takes ranges and examples for its
findings from their metadata. `schema` makes a JSON Schema of them. docs/config.md explains each field, and a test
compares it with this file. The syntax of texts (addresses, URLs) is in `parsers` and `urls`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from .model import (
    STORM_FRAMES,
    AuthHeader,
    BpduMode,
    DeviceKind,
    LogFormat,
    LogLevel,
    PlaneMode,
    SourceCheck,
    TlsVersion,
    TransportChoice,
    UpdateMode,
)

SECRET: Final = {"secret": True}
"""`Meta.extra` of a field whose value must never be shown."""
SECRET_TEXT: Final = {"secret": "text"}
"""As `SECRET`, but only a text is secret; other values may be shown."""


def _text(description: str, *examples: str, **schema: Any) -> Meta:
    return Meta(description=description, examples=list(examples), extra_json_schema=schema)


def _each_family(description: str, ipv4: str, ipv6: str) -> Meta:
    """The `Meta` of a value, or a list of at most one value of each family."""
    return Meta(description=f"{description}, or one of each family", examples=[ipv4, [ipv4, ipv6]])


def _uint32(description: str, *examples: int, least: int = 0) -> Meta:
    return Meta(ge=least, le=2**32 - 1, description=description, examples=list(examples))


# Types of elements, so that a list and a single value are checked in the same way.
Address = Annotated[
    str, _text("an IPv4 or IPv6 address", "10.10.0.2", "fd00:10::2", anyOf=[{"format": "ipv4"}, {"format": "ipv6"}])
]
Network = Annotated[str, _text("an IPv4 or IPv6 network", "10.60.0.0/24", "fd00:60::/64")]
Listen = Annotated[str, _text("an address literal or unix:/path", "127.0.0.1", "unix:/run/t.sock")]
Trusted = Annotated[str, _text('a network, an address or "unix"', "127.0.0.1", "::1", "unix")]
Seconds = Annotated[float, Meta(ge=0.1, le=86400)]
Mac = Annotated[str, _text("a MAC address of one station", "02:00:5e:10:00:01")]

_PROXY: Final = Meta(
    description='connect through this HTTP proxy; "none": no proxy, even if the environment names one',
    examples=["http://proxy.example.com:3128"],
    extra=SECRET,  # it may contain a login
)
DURATION: Final = "^[0-9]{1,6}[smhd]$"
"""A number of seconds, minutes, hours or days; `parsers.parse_duration` reads it."""

_ONE_OR_TWO: Final = Meta(min_length=1, max_length=2)

PUSHED_ROUTES: Final = 255
"""How many networks of one family a server can push: x-tun-conf of generation 2 has their number in one byte."""

CLIENT_MACS: Final = 1024
"""How many MAC addresses of one client can be pinned: as many as the hub's switch learns of one."""


class RawMark(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """fwmark policy routing."""

    value: Annotated[int, _uint32("the fwmark", 100)]
    table: Annotated[int, _uint32("the routing table of packets with that mark", 100)]
    mask: (
        Annotated[
            str,
            _text(
                "the bits of a packet's mark that have to be those of value, in hexadecimal",
                "0xff",
                pattern="^0[xX][0-9a-fA-F]{1,8}$",
            ),
        ]
        | Annotated[int, _uint32("the same as a number", 255, least=1)]
    ) = "0xffffffff"


class RawBridge(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The Linux bridge that a TAP interface is a port of."""

    name: Annotated[str, _text("the bridge's name", "br0", minLength=1, maxLength=15)]
    create: Annotated[bool, Meta(description="make the bridge, and remove it at the end; otherwise it exists")] = False
    isolated: Annotated[
        bool, Meta(description="the port exchanges frames only with ports that are not isolated themselves")
    ] = False
    learning: Annotated[bool, Meta(description="the bridge learns which MAC addresses are behind the port")] = True
    bpdu_guard: Annotated[
        bool, Meta(description="the bridge disables the port when a BPDU of a spanning tree arrives there")
    ] = False


BridgeOption = (
    Annotated[str, _text("the bridge that the TAP interface is a port of", "br0", minLength=1, maxLength=15)]
    | RawBridge
)
_MAC: Final = _text("the MAC address of the TAP interface, instead of one that is derived", "02:00:5e:10:00:01")


class RawTls(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a client verifies an https server, and which certificate it shows."""

    ca_file: (
        Annotated[
            str,
            _text("trust this PEM bundle instead of the system's", "/etc/ssl/corp.pem"),
        ]
        | UnsetType
    ) = UNSET
    cert_file: (
        Annotated[str, _text("the client's own certificate, PEM, with its chain", "/etc/tapotun/client.pem")]
        | UnsetType
    ) = UNSET
    key_file: (
        Annotated[str, _text("its key, PEM, unless it is in cert_file", "/etc/tapotun/client.key")] | UnsetType
    ) = UNSET
    server_name: (
        Annotated[str, _text("the name to ask for and to verify, instead of the URL's", "vpn.example.com")] | UnsetType
    ) = UNSET
    min_version: Annotated[TlsVersion, Meta(description="refuse older versions of TLS")] = "1.2"
    insecure: Annotated[bool, Meta(description="verify neither the certificate's chain nor its name")] = False


class RawAllowedClient(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One entry of a server's ``clients``."""

    token: Annotated[
        str,
        Meta(
            description="lowercase hex SHA-1 of the raw token, or sha256:<hex>",
            examples=["<hash of the raw token>"],
            extra=SECRET,  # it may be a raw token by mistake
        ),
    ]
    ip: (
        Annotated[
            Address | Annotated[list[Address], _ONE_OR_TWO],
            _each_family("the client's address", "10.10.0.2", "fd00:10::2"),
        ]
        | UnsetType
    ) = UNSET
    routes: Annotated[list[Network], Meta(description="networks behind this client")] = []
    sources: Annotated[list[Address], Meta(description="packets from these addresses leave by this client")] = []
    macs: Annotated[
        list[Mac],
        Meta(
            max_length=CLIENT_MACS,
            description="on a TAP interface: the only MAC addresses behind this client, and behind no other",
        ),
    ] = []
    name: Annotated[str, _text("shown in logs instead of the address", "laptop")] | UnsetType = UNSET


class RawInterface(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The fields that both kinds of interface definition have."""

    name: Annotated[str, _text("the interface's name", "tun0", minLength=1, maxLength=15)]
    mark: RawMark | UnsetType = UNSET


class RawServer(RawInterface, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An interface definition with ``port``, ``net`` or ``listen``."""

    port: Annotated[int, Meta(ge=1, le=65535, description="HTTP port", examples=[8080])] | UnsetType = UNSET
    listen: Listen | list[Listen] | UnsetType = UNSET
    listen_mode: Annotated[str, _text("permissions of the Unix sockets", "0660")] = "0660"
    path: Annotated[str, _text("the only path that is answered", "/tun1")] | UnsetType = UNSET
    trusted_proxies: Annotated[
        list[Trusted],
        Meta(max_length=1000, description="proxies whose X-Forwarded-For, Forwarded or PROXY header is believed"),
    ] = []
    proxy_protocol: Annotated[bool, Meta(description="connections begin with a PROXY protocol header")] = False
    device: Annotated[DeviceKind, Meta(description="what the interface carries: IP packets, or Ethernet frames")] = (
        "tun"
    )
    net: (
        Annotated[
            str | Annotated[list[str], _ONE_OR_TWO],
            _each_family("the server's address and prefix", "10.10.0.1/24", "fd00:10::1/64"),
        ]
        | UnsetType
    ) = UNSET
    mtu: Annotated[
        int, Meta(ge=68, le=65535, description="MTU of the interface at both ends, in bytes", examples=[1500])
    ] = 1500
    ips: Annotated[list[Address], Meta(description="further addresses of the server")] = []
    routes: Annotated[list[Network], Meta(description="networks treated as local")] = []
    push_routes: Annotated[
        list[Network],
        # `validate` counts them, because the limit is for each family.
        Meta(
            description=f"networks for clients to route into the tunnel, at most {PUSHED_ROUTES} of each family",
            extra_json_schema={"maxItems": 2 * PUSHED_ROUTES},
        ),
    ] = []
    push_dns: Annotated[
        list[Address], Meta(max_length=8, description="name servers announced to extended clients")
    ] = []
    clients: Annotated[list[RawAllowedClient], Meta(description="who may connect")] = []
    install_routes: Annotated[bool, Meta(description="program kernel routes to the clients' networks")] = True
    source_check: Annotated[SourceCheck, Meta(description="which source addresses a client may use")] = "loose"
    peers: Annotated[Literal[1, 2], Meta(description="the protocol generation used with base clients")] = 1
    keepalive: Annotated[
        float,
        Meta(
            ge=1,
            le=50,
            description="seconds between pings with extended clients; a stream silent for three of them is dead",
            examples=[10],
        ),
    ] = 10.0
    bridge: BridgeOption | UnsetType = UNSET
    mac: Annotated[str, _MAC] | UnsetType = UNSET
    macs: Annotated[
        list[Mac],
        Meta(
            max_length=CLIENT_MACS,
            description="on a TAP interface: MAC addresses of machines on the server's side, which no client may use",
        ),
    ] = []
    isolate: Annotated[bool, Meta(description="clients reach the server's side only, not one another")] = False
    arp_guard: Annotated[
        bool,
        Meta(description="clients claim no address of another one or of the server by ARP or neighbour discovery"),
    ] = False
    bpdu: Annotated[
        BpduMode, Meta(description="what becomes of frames to 01:80:c2:00:00:00 to 0f, such as those of spanning trees")
    ] = "drop"
    storm_limit: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="frames per second of one client that are sent to everybody",
            examples=[STORM_FRAMES],
        ),
    ] = STORM_FRAMES


class RawClient(RawInterface, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An interface definition with ``server``."""

    server: Annotated[
        str,
        Meta(
            description="where to connect; user:password@ before the host is for Basic auth",
            examples=["https://vpn.example.com/ip"],
            extra_json_schema={"format": "uri"},
            extra=SECRET_TEXT,  # it may contain a login
        ),
    ]
    token: Annotated[str, Meta(description="the raw token", examples=["<raw token>"], extra=SECRET)] | UnsetType = UNSET
    token_file: (
        Annotated[str, _text("a file that holds the raw token, relative to this one", "/etc/tapotun/token")] | UnsetType
    ) = UNSET
    tls: RawTls | UnsetType = UNSET
    rotate_s: Annotated[
        tuple[Seconds, Seconds],
        Meta(
            description="each stream is replaced after a random number of seconds between these", examples=[[420, 900]]
        ),
    ] = (420.0, 900.0)
    transport: Annotated[
        TransportChoice,
        Meta(description="GET and PUT, a WebSocket, or a WebSocket only where the path buffers or refuses GET or PUT"),
    ] = "auto"
    auth_header: Annotated[
        AuthHeader,
        Meta(description="the header that carries the token; a base server knows x-api-key only"),
    ] = "x-api-key"
    headers: (
        Annotated[
            dict[str, str],
            Meta(
                max_length=32,
                description="further headers of every request to the server",
                examples=[{"CF-Access-Client-Id": "<id>.access"}],
                extra=SECRET,
            ),
        ]
        | UnsetType
    ) = UNSET
    user: Annotated[str, _text("the user for Basic auth at the server's URL", "branch-a")] | UnsetType = UNSET
    password_file: (
        Annotated[str, _text("a file that holds the password for Basic auth", "/etc/tapotun/password")] | UnsetType
    ) = UNSET
    proxy: Annotated[str, _PROXY] | UnsetType = UNSET
    transport_mark: (
        Annotated[
            int,
            _uint32(
                "fwmark of the transport's own sockets, so that policy routing can keep them out of the tunnel",
                51,
                least=1,
            ),
        ]
        | UnsetType
    ) = UNSET
    device: (
        Annotated[DeviceKind, Meta(description="what the interface has to carry; otherwise the server decides")]
        | UnsetType
    ) = UNSET
    bridge: BridgeOption | UnsetType = UNSET
    mac: Annotated[str, _MAC] | UnsetType = UNSET


class RawAdmin(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The admin listener: health, metrics, panel."""

    listen: (
        Annotated[str, _text("ADDRESS:PORT, [IPV6]:PORT, PORT of loopback, or unix:/path", "127.0.0.1:9433")]
        | Annotated[int, Meta(ge=1, le=65535, description="a port of 127.0.0.1")]
    )
    token: (
        Annotated[
            str,
            Meta(
                description="grants full access: sha256:<hex>, lowercase hex SHA-1, or the token itself",
                examples=["<sha256: and the hash of a token>"],
                extra=SECRET,
            ),
        ]
        | UnsetType
    ) = UNSET
    read_token: (
        Annotated[
            str,
            Meta(
                description="lets its holder look and change nothing; written as token is",
                examples=["<sha256: and the hash of another token>"],
                extra=SECRET,
            ),
        ]
        | UnsetType
    ) = UNSET


class RawLog(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The log. Options of the command line win over it."""

    level: Annotated[LogLevel, Meta(description="the least severe level that is logged")] = "info"
    format: Annotated[LogFormat, Meta(description="lines for people, or for programs")] = "text"


class RawUpdate(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """New versions of the program: where they come from, and what is done about them."""

    url: Annotated[
        str,
        Meta(
            description="the repository; user:password@ before the host is for Basic auth",
            examples=["https://updates.example.com/tapotun/"],
            extra_json_schema={"format": "uri"},
            extra=SECRET_TEXT,  # it may contain a login
        ),
    ]
    mode: Annotated[UpdateMode, Meta(description="report a new version, also fetch it, or also install it")] = "check"
    channel: Annotated[str, _text("which of the repository's versions", "stable")] = "stable"
    every: Annotated[str, _text("the time between two checks", "1d", pattern=DURATION)] = "1d"
    spread: Annotated[
        str,
        _text(
            "a check waits for a random part of this time, so that machines do not check together",
            "6h",
            pattern=DURATION,
        ),
    ] = "6h"
    root_file: (
        Annotated[
            str,
            _text("the root metadata of the repository, whose keys are trusted", "/etc/tapotun/update-root.json"),
        ]
        | UnsetType
    ) = UNSET
    proxy: Annotated[str, _PROXY] | UnsetType = UNSET
    tls: RawTls | UnsetType = UNSET


class RawRoot(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The file if its root is an object. The root may also be the array of interface definitions alone."""

    interfaces: Annotated[
        # Each is a RawServer or a RawClient. `load` decides which, because msgspec needs a tag for a union of structs.
        list[Any],
        Meta(description="the interface definitions", examples=[[{"name": "tun0"}]]),
    ]
    admin: RawAdmin | UnsetType = UNSET
    log: RawLog | UnsetType = UNSET
    user: (
        Annotated[str, _text("run as this ordinary user, with the capabilities that are needed", "tapotun")] | UnsetType
    ) = UNSET
    plane: (
        Annotated[PlaneMode, Meta(description="whether packets take the native fast path where it can be had")]
        | UnsetType
    ) = UNSET
    update: RawUpdate | UnsetType = UNSET
    schema: (
        Annotated[str, _text("for editors: where tapotun.schema.json is", "/usr/share/tapotun/tapotun.schema.json")]
        | UnsetType
    ) = field(default=UNSET, name="$schema")


NAMES: Final[dict[type[Struct], str]] = {
    RawServer: "a server",
    RawClient: "a client",
    RawAllowedClient: 'an entry of "clients"',
    RawMark: '"mark"',
    RawBridge: '"bridge"',
    RawTls: '"tls"',
    RawRoot: "the file's root object",
    RawAdmin: '"admin"',
    RawLog: '"log"',
    RawUpdate: '"update"',
}
"""Every object that a file may hold, and its name in findings."""

PARTS_OF_PROCESS: Final[tuple[type[Struct], ...]] = (RawAdmin, RawLog, RawUpdate)
"""The objects with settings of the process. A field in them that is named like a field of an interface means something
else."""
