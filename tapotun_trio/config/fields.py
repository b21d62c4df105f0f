"""What single texts of the file must look like: names, addresses, networks, tokens, listeners.

Untrusted input. Every parser takes the text and returns its typed value or raises `Invalid`, whose
words never repeat a text that may be a token.
"""

from __future__ import annotations

import re
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Literal

from .diagnostics import MASK, quote
from .model import Secret, TokenHash, UnixAddress

IFNAME_BYTES: Final = 15  # IFNAMSIZ less the NUL, linux/if.h
UNIX_PATH_BYTES: Final = 107  # sun_path less the NUL, linux/un.h
CLIENT_NAME_CHARS: Final = 64
URL_PATH_CHARS: Final = 1024
UNIX: Final = "unix"  # among trusted_proxies: whoever connects to a Unix socket
TOKEN_CHARS: Final = 4096  # half of what nginx takes as one header line by default

_SHA1_HEX: Final = re.compile(r"[0-9a-f]{40}")
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
_SOCKET_MODE: Final = re.compile(r"0?[0-7]{3}")
_PREFIX: Final = re.compile(r"[0-9]|[12][0-9]|3[0-2]")

_NEW_HASH: Final = "write the hash of the raw token, which printf %s TOKEN | sha1sum or tapotun token prints"


class Invalid(Exception):
    """What is wrong with a text and what to write instead.

    ``shown`` replaces the value in the finding, for a value of which only a part may be shown.
    """

    def __init__(self, problem: str, remedy: str, *, shown: str | None = None) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.shown = shown


# --- names ---


def interface_name(text: str) -> str:
    """1 to 15 bytes that the kernel takes as the name of a new interface.

    Follows ``dev_valid_name`` (net/core/dev.c), which counts byte 0xa0 as white space, and
    ``sysctl_dev_name_is_allowed``. Refuses ``%`` too, in which TUNSETIFF sees a pattern.
    """
    size = len(text.encode())
    if not text:
        raise Invalid("is empty", 'write a name such as "tun0"')
    if size > IFNAME_BYTES:
        raise Invalid(f"has {size} bytes", f"choose a name of at most {IFNAME_BYTES} bytes")
    if text in (".", "..", "all", "default", "lo"):
        raise Invalid("is a name that Linux keeps for itself", 'choose another, such as "tun0"')
    bad = next((c for c in text if c in "/:%" or c.isspace() or not c.isprintable()), None)
    if bad is not None:
        what = "white space" if bad.isspace() else quote(bad)
        raise Invalid(f"has {what} in it", "use letters, digits, - and _ only")
    if b"\xa0" in text.encode():
        raise Invalid("has a letter that the kernel refuses", "use letters a to z, digits, - and _")
    return text


def client_name(text: str) -> str:
    """A client's name in logs and metrics: printable, no space at its ends."""
    if not text:
        raise Invalid("is empty", "write a name, or leave it out to have the address")
    if len(text) > CLIENT_NAME_CHARS:
        raise Invalid(f"has {len(text)} characters", f"choose a name of at most {CLIENT_NAME_CHARS}")
    if not text.isprintable() or text != text.strip():
        raise Invalid("has control characters, or spaces at its ends", "write one line of printable text")
    return text


# --- addresses ---


def ipv4_address(text: str) -> IPv4Address:
    """An address that one host can have."""
    _refuse_space(text)
    found = _ipv4(text)
    if found is not None:
        return _host(found)
    bare, slash, _ = text.partition("/")
    if slash and _ipv4(bare):
        raise Invalid("has a prefix length where an address belongs", f"write {quote(bare)}")
    _refuse_ipv6(text, "an address")
    raise Invalid("is not an IPv4 address", 'write one such as "10.10.0.2"')


def server_net(text: str) -> IPv4Interface:
    """A server's ``net``: its own address and the prefix length of its network, ``10.10.0.1/24``."""
    own, prefix = _split(text, "an address with prefix length", "10.10.0.1/24", bare_prefix=24)
    found = IPv4Interface((_host(own), prefix))
    if prefix == 0:
        raise Invalid(
            "would send all traffic of this machine into the tunnel",
            f'write the prefix length of the tunnel\'s network, such as "{own}/24"',
        )
    edge = edge_of(own, found.network)
    if edge is not None:
        raise Invalid(
            f"is the {edge} address of {found.network}",
            f'write the server\'s own address, such as "{found.network[1]}/{prefix}"',
        )
    return found


def ipv4_network(text: str) -> IPv4Network:
    """A network without host bits, ``10.60.0.0/24``."""
    start, prefix = _split(text, "a network", "10.60.0.0/24", bare_prefix=32)
    meant = IPv4Network((start, prefix), strict=False)
    if meant.network_address != start:
        raise Invalid(
            f"has host bits set beyond /{prefix}",
            f'write "{meant}" for the network, or "{start}/32" for this one address',
        )
    return meant


def edge_of(address: IPv4Address, net: IPv4Network) -> str | None:
    """Which address of ``net`` that no host may have this is, if any. A network of one or two
    addresses has no such (RFC 3021)."""
    if net.prefixlen > 30:
        return None
    if address == net.network_address:
        return "network"
    if address == net.broadcast_address:
        return "broadcast"
    return None


def _split(text: str, what: str, example: str, *, bare_prefix: int) -> tuple[IPv4Address, int]:
    """``a.b.c.d/n``. ``bare_prefix`` is the n to suggest for an address without one."""
    _refuse_space(text)
    start, slash, prefix = text.rpartition("/")
    address = _ipv4(start if slash else text)
    if address is None:
        _refuse_ipv6(text, what)
        raise Invalid(f"is not {what}", f'write one such as "{example}"')
    if not slash:
        raise Invalid("has no prefix length", f'write it, as in "{address}/{bare_prefix}"')
    if _PREFIX.fullmatch(prefix):
        return address, int(prefix)
    mask = _ipv4(prefix)
    length = None if mask is None else _netmask_length(mask)
    if length is not None:
        raise Invalid("has a netmask", f'write its prefix length: "{address}/{length}"')
    raise Invalid("has no prefix length from 0 to 32", f'write one such as "{example}"')


def _netmask_length(mask: IPv4Address) -> int | None:
    ones = int(mask).bit_count()
    return ones if int(mask) == (2**32 - 1) ^ (2 ** (32 - ones) - 1) else None


def _host(address: IPv4Address) -> IPv4Address:
    if address.is_loopback:
        kind = "a loopback address"
    elif address.is_multicast:
        kind = "a multicast address"
    elif int(address) >> 24 == 0:
        kind = "in 0.0.0.0/8, which no host may use"
    elif int(address) == 2**32 - 1:
        kind = "the broadcast address"
    else:
        return address
    raise Invalid(f"is {kind}", "choose a unicast address such as 10.10.0.2")


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None


def _refuse_space(text: str) -> None:
    if text != text.strip():
        raise Invalid("has white space at its ends", f"write {quote(text.strip())}")


def _refuse_ipv6(text: str, what: str) -> None:
    try:
        IPv6Address(text.partition("/")[0])
    except AddressValueError:
        return
    raise Invalid("is IPv6, which is not supported inside the tunnel yet", f"write {what} of IPv4")


# --- tokens ---


def token_hash(text: str) -> TokenHash:
    """How a server's config names a token. What it refuses may be the raw token itself."""
    if _SHA1_HEX.fullmatch(text):
        return TokenHash("sha1", text)
    scheme, colon, digest = text.partition(":")
    if scheme == "sha256" and _SHA256_HEX.fullmatch(digest):
        return TokenHash("sha256", digest)
    lower = text.lower()
    if _SHA1_HEX.fullmatch(lower) or (lower.startswith("sha256:") and _SHA256_HEX.fullmatch(lower[7:])):
        raise Invalid("is a hash in capital letters", "write it in lower case", shown=MASK)
    if colon and scheme.lower() == "sha1" and _SHA1_HEX.fullmatch(digest.lower()):
        raise Invalid("is a SHA-1 with a prefix", "write its 40 digits alone, in lower case", shown=MASK)
    if colon and scheme.lower() == "sha256":
        raise Invalid("is no SHA-256", "write sha256: and 64 digits of lower-case hex", shown=MASK)
    if _SHA256_HEX.fullmatch(lower):
        raise Invalid(
            "looks like a SHA-256 without its prefix, or like a raw token",
            f"write sha256: before the hash; of a raw token {_NEW_HASH}",
            shown=MASK,
        )
    if _HEX.fullmatch(text) and 36 <= len(text) <= 44:
        raise Invalid(
            f"has {len(text)} hex digits and a SHA-1 has 40",
            f"copy all of it, or {_NEW_HASH}",
            shown=MASK,
        )
    raise Invalid(
        "is not a hash; it looks like the raw token, which belongs on the client only",
        _NEW_HASH,
        shown=MASK,
    )


def looks_hashed(text: str) -> bool:
    """Whether a client's token is what belongs into a server's config."""
    lower = text.lower()
    return bool(_SHA1_HEX.fullmatch(lower) or (lower.startswith("sha256:") and _SHA256_HEX.fullmatch(lower[7:])))


def raw_token(text: str) -> Secret:
    """A client's token, which must fit into an HTTP header: printable ASCII, no space at its ends
    (RFC 9110 section 5.5). Whether it looks like a hash is for the caller."""
    if not text:
        raise Invalid("is empty", "write the raw token", shown=MASK)
    if len(text) > TOKEN_CHARS:
        raise Invalid(f"has more than {TOKEN_CHARS} characters", "write a shorter token", shown=MASK)
    if not text.isascii() or not text.isprintable():
        raise Invalid(
            "has characters that an HTTP header cannot carry",
            "use printable ASCII without line breaks; tapotun token makes such a token",
            shown=MASK,
        )
    if text != text.strip():
        raise Invalid("starts or ends with a space", "remove the space", shown=MASK)
    return Secret(text)


# --- listeners ---


def url_path(text: str) -> str:
    """A server's ``path``, as it stands in a request: compared byte for byte, so nothing is normalised."""
    if not text.startswith("/"):
        raise Invalid("does not start with /", 'write it as in "/tun1"')
    bad = next((c for c in text if not "!" <= c <= "~" or c in "?#"), None)
    if bad is not None:
        raise Invalid(f"has {quote(bad)} in it", "write a path of printable ASCII without space, ? and #")
    if len(text) > URL_PATH_CHARS:
        raise Invalid(f"has {len(text)} characters", f"choose a path of at most {URL_PATH_CHARS}")
    return text


def listener(text: str) -> str | UnixAddress:
    """An element of ``listen``: an address literal of either family, or ``unix:/path``."""
    _refuse_space(text)
    if text[:5].lower() == "unix:":
        return _unix(text)
    if "/" in text:
        raise Invalid("is a path without unix:, or a network", 'write "unix:/path" or an address')
    literal = text.removeprefix("[").removesuffix("]")
    try:
        found = ip_address(literal)
    except ValueError:
        raise _not_an_address(text) from None
    if literal != text:
        raise Invalid("has brackets", f"write {quote(literal)}")
    if isinstance(found, IPv6Address):
        if found.scope_id is not None or found.is_link_local:
            raise Invalid(
                "is link-local, for which an interface would have to be named",
                'write "::" or an address of wider scope',
            )
        if found.ipv4_mapped is not None:
            raise Invalid("is IPv4 in IPv6's clothes", f'write "{found.ipv4_mapped}"')
    if found.is_multicast or str(found) == "255.255.255.255":
        raise Invalid("is no address of a single host", "write an address of this machine")
    return str(found)


def socket_mode(text: str) -> int:
    """``listen_mode``: permission bits as chmod(1) takes them, ``0660``."""
    if not _SOCKET_MODE.fullmatch(text):
        raise Invalid("is no mode", 'write three octal digits, as in "0660"')
    mode = int(text, 8)
    if not mode & 0o222:
        raise Invalid("lets nobody connect, for which one has to write to a socket", 'write one such as "0660"')
    return mode


def trusted_proxy(text: str) -> IPv4Network | IPv6Network | Literal["unix"]:
    """An element of ``trusted_proxies``: a network or a single address of either family, or ``unix``."""
    _refuse_space(text)
    if text.lower().startswith(UNIX):
        if text == UNIX:
            return "unix"
        raise Invalid("names a socket", 'write "unix" for whoever connects to a Unix socket of "listen"')
    literal, _, _ = text.partition("/")
    if literal.startswith("["):
        raise Invalid("has brackets", "write the address without them, and without a port")
    try:
        ip_address(literal)
    except ValueError:
        raise Invalid(
            "is not an address or a network", 'write one such as "127.0.0.1" or "10.0.0.0/8", or "unix"'
        ) from None
    if "%" in literal:
        raise Invalid("has a zone", "leave out what begins with %")
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise Invalid(
            "has no prefix length that fits", f'write it as in "{literal}/{24 if "." in literal else 64}"'
        ) from None
    if isinstance(meant, IPv6Network) and meant.network_address.ipv4_mapped is not None and meant.prefixlen >= 96:
        inner = IPv4Network((meant.network_address.ipv4_mapped, meant.prefixlen - 96))
        raise Invalid("is IPv4 in IPv6's clothes", f'write "{inner}"')
    if ip_address(literal) != meant.network_address:
        raise Invalid(
            f"has host bits set beyond /{meant.prefixlen}",
            f'write "{meant}" for the network, or "{literal}" for this one address',
        )
    return meant


def _not_an_address(text: str) -> Invalid:
    bare, colon, port = text.rpartition(":")
    bare = bare.removeprefix("[").removesuffix("]")
    if colon and port.isdecimal() and bare:
        return Invalid("has a port", f'write {quote(bare)} here, and the port in "port"')
    if text == "localhost":
        return Invalid("is a name, not an address", 'write ["127.0.0.1", "::1"]')
    if text in ("*", ""):
        return Invalid("is not an address", 'write ["0.0.0.0", "::"] for every address')
    return Invalid("is not an address", 'write an address literal such as "127.0.0.1", or "unix:/path"')


def _unix(text: str) -> UnixAddress:
    path = text[5:]
    example = '"unix:/run/tapotun.sock"'
    if not text.startswith("unix:"):
        raise Invalid("has unix: in capital letters", f"write {quote('unix:' + path)}")
    if not path.startswith("/"):
        raise Invalid("has no absolute path", f"write it as in {example}")
    if not path.isprintable():
        raise Invalid("has control characters in its path", f"write it as in {example}")
    if path.endswith(("/", "/.", "/..")):
        raise Invalid("names a directory", f"write the socket's own path, as in {example}")
    size = len(path.encode())
    if size > UNIX_PATH_BYTES:
        raise Invalid(f"has a path of {size} bytes", f"choose one of at most {UNIX_PATH_BYTES} bytes")
    return UnixAddress(path)
