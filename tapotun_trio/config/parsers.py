"""Single texts of the file: names, addresses, networks, tokens, listeners. URLs are in `urls`.

Untrusted input. Every parser takes the text and returns its typed value, or raises `InvalidValue`, whose text never
repeats a value that may be a token.
"""

from __future__ import annotations

import codecs
import re
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, Literal

from .. import macs
from ..families import IPAddress, IPInterface, IPNetwork, host_network, network_of, with_prefix
from ..text import one_line
from .diagnostics import MASK, InvalidValue, quote
from .model import ListenAddress, Secret, TcpAddress, TokenHash, UnixAddress
from .placeholders import PROBLEM, is_placeholder

IFNAME_BYTES: Final = 15  # IFNAMSIZ less the NUL, linux/if.h
UNIX_PATH_BYTES: Final = 107  # sun_path less the NUL, linux/un.h
CLIENT_NAME_CHARS: Final = 64
URL_PATH_CHARS: Final = 1024
UNIX: Final = "unix"  # in trusted_proxies: any process that connects to a Unix socket
LOOPBACK: Final = "127.0.0.1"  # where a port without an address listens
TOKEN_FILE_BYTES: Final = 64 * 1024
PEM_FILE_BYTES: Final = 64 * 1024 * 1024  # the system's own bundle has 0.2 MB
TOKEN_CHARS: Final = 4096  # half of what nginx accepts as one header line by default
HEADER_NAME_CHARS: Final = 64
HEADER_VALUE_CHARS: Final = 4096  # the same limit as for a token
LOGIN_BYTES: Final = 1024  # user:password

_SHA1_HEX: Final = re.compile(r"[0-9a-f]{40}")
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
_MAC_DIGITS: Final = re.compile(r"[0-9A-Fa-f]{12}")
_SOCKET_MODE: Final = re.compile(r"0?[0-7]{3}")
_PREFIX: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_HEX_MASK: Final = re.compile(r"0[xX][0-9a-fA-F]{1,8}")
_LIKE_HASH: Final = re.compile(r"[0-9a-f]{40}|sha256:.*", re.IGNORECASE | re.DOTALL)

# The names that useradd and adduser allow, and names from a directory service such as LDAP or Active Directory.
_USER_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@\\-]{0,62}\$?")

_MAC_EXAMPLE: Final = "02:00:5e:10:00:01"
_ADMIN_EXAMPLE: Final = '"127.0.0.1:9433"'

_NEW_HASH: Final = "write the hash of the raw token, which printf %s TOKEN | sha1sum or tapotun token prints"


# ------------------------------------------------------------------ names


def parse_interface_name(text: str, example: str = "tun0") -> str:
    """1 to 15 bytes that the kernel accepts as the name of a new interface.

    Follows ``dev_valid_name`` (net/core/dev.c), which counts byte 0xa0 as white space, and
    ``sysctl_dev_name_is_allowed``. Also refuses ``%``, which TUNSETIFF takes for a pattern.
    """
    size = len(text.encode())
    if not text:
        raise InvalidValue("is empty", f"write a name such as {quote(example)}")
    if size > IFNAME_BYTES:
        raise InvalidValue(f"has {size} bytes", f"choose a name of at most {IFNAME_BYTES} bytes")
    if text in (".", "..", "all", "default", "lo"):
        raise InvalidValue("is a name that Linux reserves", f"choose another, such as {quote(example)}")
    bad = next((c for c in text if c in "/:%" or c.isspace() or not c.isprintable()), None)
    if bad is not None:
        what = "white space" if bad.isspace() else quote(bad)
        raise InvalidValue(f"has {what} in it", "use letters, digits, - and _ only")
    if b"\xa0" in text.encode():
        raise InvalidValue("has a character that the kernel refuses", "use letters a to z, digits, - and _")
    _refuse_unseen(text)
    return text


def parse_bridge_name(text: str) -> str:
    """The name of a bridge, which is an interface."""
    return parse_interface_name(text, "br0")


def parse_client_name(text: str) -> str:
    """A client's name in logs and metrics: printable, without white space at its ends."""
    if not text:
        raise InvalidValue("is empty", "write a name, or leave it out to use the address")
    if len(text) > CLIENT_NAME_CHARS:
        raise InvalidValue(f"has {len(text)} characters", f"choose a name of at most {CLIENT_NAME_CHARS}")
    if not text.isprintable() or text != text.strip():
        raise InvalidValue("has control characters, or spaces at its ends", "write one line of printable text")
    _refuse_unseen(text)
    return text


def _refuse_unseen(name: str) -> None:
    if one_line(name) != name:
        problem = "has characters that look blank or draw over their neighbours"
        raise InvalidValue(problem, "choose a name that can be read in a list")


def parse_user_name(text: str) -> str:
    """Parse the name of an ordinary user. Only the start of the process shows whether this machine has such a user."""
    if text == "root":
        raise InvalidValue("keeps every file of this machine writable", "leave it out, or name an ordinary user")
    if text.isdecimal():
        raise InvalidValue("is a number", 'write the name of the user, such as "tapotun"')
    if not _USER_NAME.fullmatch(text):
        raise InvalidValue("is not the name of a user", 'write one such as "tapotun"')
    return text


_CHANNEL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


def parse_channel(text: str) -> str:
    """Parse the name of an update channel, which becomes a directory of the repository."""
    if not _CHANNEL.fullmatch(text):
        raise InvalidValue("is not the name of a channel", 'write one such as "stable": a to z, 0 to 9, . _ -')
    return text


# ------------------------------------------------------------------ durations

_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, least: str, most: str) -> float:
    """Parse a duration such as ``12h``: a number and one of s, m, h, d. ``least`` and ``most`` have the same form.

    Returns seconds.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidValue("is not a duration", 'write one such as "30m", "12h" or "1d"')
    seconds = float(int(match[1]) * _UNITS[match[2]])
    if not _seconds(least) <= seconds <= _seconds(most):
        raise InvalidValue("is out of range", f'write one from "{least}" to "{most}"')
    return seconds


def _seconds(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1]]


# ------------------------------------------------------------------ addresses


def parse_address(text: str) -> IPAddress:
    """An address of either family that a host can have inside a tunnel."""
    _refuse_space(text)
    address = _address(text)
    if address is not None:
        return _unicast(address)
    bare, slash, _ = text.partition("/")
    if slash and _address(bare):
        raise InvalidValue("has a prefix length where an address belongs", f"write {quote(bare)}")
    _refuse_brackets(text)
    raise InvalidValue("is not an IP address", 'write one such as "10.10.0.2" or "fd00:10::2"')


def parse_server_net(text: str) -> IPInterface:
    """One network of a server's ``net``: its own address with the prefix length, such as ``10.10.0.1/24``."""
    own, prefix = _split(text, "an address with prefix length", ("10.10.0.1/24", "fd00:10::1/64"), bare_prefix=(24, 64))
    _refuse_mapped(own, f"/{prefix - 96 if prefix >= 96 else 24}")
    net = with_prefix(_unicast(own), prefix)
    if prefix == 0:
        raise InvalidValue(
            "would send all traffic of this machine into the tunnel",
            f'write the prefix length of the tunnel\'s network, such as "{own}/{24 if own.version == 4 else 64}"',
        )
    kind = reserved_address_kind(own, net.network)
    if kind is not None:
        raise InvalidValue(
            f"is the {kind} address of {net.network}",
            f'write the server\'s own address, such as "{net.network[1]}/{prefix}"',
        )
    return net


def parse_network(text: str) -> IPNetwork:
    """A network of either family without host bits, such as ``10.60.0.0/24``."""
    start, prefix = _split(text, "a network", ("10.60.0.0/24", "fd00:60::/64"), bare_prefix=(32, 128))
    network = network_of(start, prefix)
    if prefix >= 96:
        _refuse_mapped(network.network_address, f"/{prefix - 96}")
    _refuse_mapped(start, "/32")
    if network.network_address != start:
        raise InvalidValue(
            f"has host bits set beyond /{prefix}",
            f'write "{network}" for the network, or "{host_network(start)}" for this one address',
        )
    return network


def reserved_address_kind(address: IPAddress, net: IPNetwork) -> str | None:
    """The kind of ``address`` if no host of ``net`` may have it: "network", "broadcast" or "subnet-router anycast" (RFC
    4291 section 2.6.1); otherwise None.

    A network of one or two addresses has none of them (RFC 3021, RFC 6164).
    """
    if net.max_prefixlen - net.prefixlen < 2:
        return None
    if address == net.network_address:
        return "network" if net.version == 4 else "subnet-router anycast"
    if net.version == 4 and address == net.broadcast_address:
        return "broadcast"
    return None


def _split(text: str, what: str, examples: tuple[str, str], *, bare_prefix: tuple[int, int]) -> tuple[IPAddress, int]:
    """The address and the n of ``address/n``.

    ``examples``, ``bare_prefix``: for IPv4 and for IPv6. ``bare_prefix`` is the n to suggest if there is none.
    """
    _refuse_space(text)
    start, slash, prefix = text.rpartition("/")
    address = _address(start if slash else text)
    if address is None:
        _refuse_brackets(text)
        raise InvalidValue(f"is not {what}", f'write one such as "{examples[0]}" or "{examples[1]}"')
    _refuse_zone(address)
    family = 0 if address.version == 4 else 1
    if not slash:
        raise InvalidValue("has no prefix length", f'write it, as in "{address}/{bare_prefix[family]}"')
    if _PREFIX.fullmatch(prefix) and int(prefix) <= address.max_prefixlen:
        return address, int(prefix)
    mask = _address(prefix)
    length = _netmask_length(mask) if mask is not None and mask.version == address.version else None
    if length is not None:
        raise InvalidValue("has a netmask", f'write its prefix length: "{address}/{length}"')
    problem = f"has no prefix length from 0 to {address.max_prefixlen}"
    raise InvalidValue(problem, f'write one such as "{examples[family]}"')


def _netmask_length(mask: IPAddress) -> int | None:
    ones, bits = int(mask).bit_count(), mask.max_prefixlen
    return ones if int(mask) == (1 << bits) - (1 << (bits - ones)) else None


def _unicast(address: IPAddress) -> IPAddress:
    example = "10.10.0.2" if address.version == 4 else "fd00:10::2"
    _refuse_zone(address)
    _refuse_mapped(address)
    if address.is_loopback:
        kind = "a loopback address"
    elif address.is_multicast:
        kind = "a multicast address"
    elif address.version == 6 and address.is_link_local:
        # As `martians` has it: not 169.254.0.0/16.
        raise InvalidValue("is link-local, and every link has such addresses", f"choose an address such as {example}")
    elif address.version == 6 and address.is_unspecified:
        kind = "the unspecified address"
    elif address.version == 4 and int(address) >> 24 == 0:
        kind = "in 0.0.0.0/8, which no host may use"
    elif address.version == 4 and int(address) == 2**32 - 1:
        kind = "the broadcast address"
    else:
        return address
    raise InvalidValue(f"is {kind}", f"choose a unicast address such as {example}")


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _refuse_space(text: str) -> None:
    if text != text.strip():
        raise InvalidValue("has white space at its ends", f"write {quote(text.strip())}")


def _refuse_brackets(text: str) -> None:
    bare = text.replace("[", "").replace("]", "")
    if bare != text and _address(bare.partition("/")[0]):
        raise InvalidValue("has brackets", f"write {quote(bare)}")


def _refuse_zone(address: IPAddress) -> None:
    """Refuse ``fe80::1%eth0``. The zone is a link of this machine, which means nothing at the other end."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise InvalidValue(
            "has a zone",
            "write an address of wider scope" if address.is_link_local else "leave out the % and what follows it",
        )


def _refuse_mapped(address: IPAddress, length: str = "") -> None:
    """Refuse an IPv4-mapped address (RFC 4291 section 2.5.5.2). ``length`` follows the IPv4 address in the remedy."""
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if inner is not None:
        raise InvalidValue("is an IPv4-mapped IPv6 address", f'write "{inner}{length}"')


def parse_mac(text: str) -> bytes:
    """The MAC address of one station: neither multicast nor broadcast."""
    _refuse_space(text)
    try:
        mac = macs.parse_mac(text)
    except ValueError:
        digits = re.sub("[.:-]", "", text)
        if _MAC_DIGITS.fullmatch(digits):
            colons = macs.mac_text(bytes.fromhex(digits))
            raise InvalidValue("is not in the form of a MAC address", f"write {quote(colons)}") from None
        raise InvalidValue("is not a MAC address", f"write one such as {quote(_MAC_EXAMPLE)}") from None
    if macs.is_station(mac):
        return mac
    kinds = {macs.NO_MAC: "no address, because all its bits are 0", macs.BROADCAST: "the broadcast address"}
    kind = kinds.get(mac, "a multicast address")
    raise InvalidValue(f"is {kind}", f"write the address of one station, such as {quote(_MAC_EXAMPLE)}")


# ------------------------------------------------------------------ tokens


def parse_token_hash(text: str) -> TokenHash:
    """The hash of a token in a server's config. A refused text may be the raw token, so it is never shown."""
    if _SHA1_HEX.fullmatch(text):
        return TokenHash("sha1", text)
    scheme, colon, digest = text.partition(":")
    if scheme == "sha256" and _SHA256_HEX.fullmatch(digest):
        return TokenHash("sha256", digest)
    if is_placeholder(text):
        raise InvalidValue(PROBLEM, _NEW_HASH, shown=MASK)
    lower = text.lower()
    if _SHA1_HEX.fullmatch(lower) or (lower.startswith("sha256:") and _SHA256_HEX.fullmatch(lower[7:])):
        raise InvalidValue("is a hash in capital letters", "write it in lower case", shown=MASK)
    if colon and scheme.lower() == "sha1" and _SHA1_HEX.fullmatch(digest.lower()):
        raise InvalidValue("is a SHA-1 with a prefix", "write its 40 digits alone, in lower case", shown=MASK)
    if colon and scheme.lower() == "sha256":
        raise InvalidValue("is not a SHA-256 hash", "write sha256: and 64 digits of lower-case hex", shown=MASK)
    if _SHA256_HEX.fullmatch(lower):
        raise InvalidValue(
            "looks like a SHA-256 without its prefix, or like a raw token",
            f"write sha256: before the hash; for a raw token, {_NEW_HASH}",
            shown=MASK,
        )
    if _HEX.fullmatch(text) and 36 <= len(text) <= 44:
        raise InvalidValue(
            f"has {len(text)} hex digits and a SHA-1 has 40",
            f"copy all of it, or {_NEW_HASH}",
            shown=MASK,
        )
    raise InvalidValue(
        "is not a hash; it looks like the raw token, which belongs on the client only",
        _NEW_HASH,
        shown=MASK,
    )


def looks_hashed(text: str) -> bool:
    """Whether a raw token has the form of a hash, which belongs into a server's config."""
    lower = text.lower()
    return bool(_SHA1_HEX.fullmatch(lower) or (lower.startswith("sha256:") and _SHA256_HEX.fullmatch(lower[7:])))


def parse_raw_token(text: str) -> Secret:
    """A raw token, which must fit into an HTTP header: printable ASCII, no space at its ends (RFC 9110 section 5.5).

    The caller checks whether it looks like a hash.
    """
    if not text:
        raise InvalidValue("is empty", "write the raw token", shown=MASK)
    if len(text) > TOKEN_CHARS:
        raise InvalidValue(f"has more than {TOKEN_CHARS} characters", "write a shorter token", shown=MASK)
    if not text.isascii() or not text.isprintable():
        raise InvalidValue(
            "has characters that an HTTP header cannot carry",
            "use printable ASCII without line breaks; tapotun token makes such a token",
            shown=MASK,
        )
    if text != text.strip():
        raise InvalidValue("starts or ends with a space", "remove the space", shown=MASK)
    return Secret(text)


def secret_line(data: bytes, what: str = "token") -> str:
    """Return the token or password in a file, which is its only line that is not blank. A byte order mark is skipped,
    as in a config.

    Each byte becomes one character, so that the caller can see and refuse non-ASCII bytes. Raises InvalidValue.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidValue("is UTF-16", "save the file as UTF-8 or ASCII", shown=MASK)
    lines = [line for line in data.removeprefix(codecs.BOM_UTF8).splitlines() if line.strip()]
    if len(lines) > 1:
        raise InvalidValue(f"has {len(lines)} lines", f"keep one {what}, on one line", shown=MASK)
    return lines[0].decode("latin-1") if lines else ""


def parse_token_file(data: bytes) -> Secret:
    """Parse the token in the content of a file (`secret_line`). The caller checks whether it looks like a hash."""
    return parse_raw_token(secret_line(data))


def is_raw_token(value: object) -> bool:
    """Whether an admin ``token`` or ``read_token`` is, or was meant to be, the token itself instead of its hash."""
    return isinstance(value, str) and not _LIKE_HASH.fullmatch(value)


def parse_admin_token(text: str) -> TokenHash | Secret:
    """Parse the admin ``token`` or ``read_token``: a hash, as for a server's clients, or else the token itself."""
    if not is_raw_token(text):
        return parse_token_hash(text)
    try:
        return parse_raw_token(text)
    except InvalidValue as exc:
        remedy = 'write the "sha256:..." that tapotun token prints' if not text else exc.remedy
        raise InvalidValue(exc.problem, remedy, shown=MASK) from exc


# ------------------------------------------------------------------ further headers of a client, Basic auth

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token, RFC 9110 section 5.6.2
_TOKEN_REMEDY: Final = 'remove it; "auth_header" chooses the header that carries the token'
_OURS_REMEDY: Final = "remove it; the tunnel sets it itself"
_BODY_REMEDY: Final = "remove it; it would change what the answer is, and the tunnel needs the answer as it is"
_FORBIDDEN_HEADERS: Final = {
    "host": 'remove it; it is the host of the URL. To ask a certificate for another name, set "server_name" in "tls"',
    "x-api-key": _TOKEN_REMEDY,
    "authorization": 'for Basic auth, write "user" and "password_file" instead; "auth_header" is for the token',
    "proxy-authorization": 'write the login of an outgoing proxy into "proxy", http://user:pass@host:port',
    **dict.fromkeys(
        # Headers that frame the request, or that concern only one connection (RFC 9110 section 7.6.1).
        (
            *("content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive"),
            *("proxy-connection", "expect", "http2-settings", "content-encoding", "content-range"),
        ),
        _OURS_REMEDY,
    ),
    **dict.fromkeys(
        # Headers that ask for another answer than a complete 200 without a content coding.
        (
            *("accept-encoding", "range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
            *("if-range", "max-forwards", "x-http-method-override", "x-http-method", "x-method-override"),
        ),
        _BODY_REMEDY,
    ),
}
_FORBIDDEN_PREFIXES: Final = ("sec-websocket-", "x-tun-")


def parse_header_name(text: str) -> str:
    """Parse the name of a further header. Refuses headers that the tunnel or HTTP itself needs."""
    if not _HEADER_NAME.fullmatch(text):
        raise InvalidValue("is not the name of a header", "use letters, digits and - only, without a colon")
    if len(text) > HEADER_NAME_CHARS:
        raise InvalidValue(f"has {len(text)} characters", f"choose a name of at most {HEADER_NAME_CHARS}")
    lower = text.lower()
    remedy = _FORBIDDEN_HEADERS.get(lower)
    if remedy is None and lower.startswith(_FORBIDDEN_PREFIXES):
        remedy = _OURS_REMEDY
    if remedy is not None:
        raise InvalidValue("is a header that cannot be set here", remedy)
    return text


def parse_header_value(text: str) -> Secret:
    """Parse the value of a further header: printable Latin-1, no space at its ends (RFC 9110 section 5.5)."""
    if not text:
        raise InvalidValue("is empty", "write a value, or remove the header", shown=MASK)
    if len(text) > HEADER_VALUE_CHARS:
        raise InvalidValue(f"has more than {HEADER_VALUE_CHARS} characters", "write a shorter value", shown=MASK)
    if not text.isprintable():
        raise InvalidValue(
            "has characters that an HTTP header cannot carry", "remove line breaks and control characters", shown=MASK
        )
    if max(text) > "\xff":
        raise InvalidValue(
            "has letters beyond Latin-1", "write them as the other end expects them in ASCII", shown=MASK
        )
    if text != text.strip():
        raise InvalidValue("starts or ends with a space", "remove the space", shown=MASK)
    return Secret(text)


def parse_user(text: str) -> str:
    """Parse the user name of Basic auth. It is encoded as UTF-8 (RFC 7617 section 2.1); each character of the result
    stands for one byte."""
    if not text:
        raise InvalidValue("is empty", "write the user's name")
    if ":" in text:
        raise InvalidValue("has a colon, where Basic auth begins the password", "write a user without one")
    if not text.isprintable():
        raise InvalidValue("has control characters", "write one line of printable text")
    if len(text.encode()) > LOGIN_BYTES // 2:
        raise InvalidValue(f"has more than {LOGIN_BYTES // 2} bytes", "choose a shorter name")
    return text.encode().decode("latin-1")


def parse_password(text: str) -> Secret:
    """Parse the password of Basic auth. Each character stands for one byte."""
    if not text:
        raise InvalidValue("is empty", "write the password", shown=MASK)
    if len(text) > LOGIN_BYTES // 2:
        raise InvalidValue(f"has more than {LOGIN_BYTES // 2} bytes", "choose a shorter one", shown=MASK)
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise InvalidValue("has control characters or several lines", "write the password alone", shown=MASK)
    return Secret(text)


# ------------------------------------------------------------------ listeners


def parse_url_path(text: str) -> str:
    """A server's ``path``. Requests are compared with it byte for byte, so nothing is normalised."""
    if not text.startswith("/"):
        raise InvalidValue("does not start with /", 'write it as in "/tun1"')
    bad = next((c for c in text if not "!" <= c <= "~" or c in "?#"), None)
    if bad is not None:
        raise InvalidValue(f"has {quote(bad)} in it", "write a path of printable ASCII without space, ? or #")
    if len(text) > URL_PATH_CHARS:
        raise InvalidValue(f"has {len(text)} characters", f"choose a path of at most {URL_PATH_CHARS}")
    return text


def parse_listener(text: str) -> str | UnixAddress:
    """An element of ``listen``: an address literal of either family, or ``unix:/path``."""
    return _unix(text) if text[:5].lower() == "unix:" else _listen_literal(text)


def _listen_literal(text: str) -> str:
    """An address literal of either family, in its canonical form."""
    _refuse_space(text)
    if "/" in text:
        raise InvalidValue("is a path without unix:, or a network", 'write "unix:/path" or an address')
    literal = text.removeprefix("[").removesuffix("]")
    try:
        address = ip_address(literal)
    except ValueError:
        raise _not_an_address(text) from None
    if literal != text:
        raise InvalidValue("has brackets", f"write {quote(literal)}")
    if isinstance(address, IPv6Address):
        if address.is_link_local:
            raise InvalidValue(
                "is link-local, for which an interface would have to be named",
                'write "::" or an address of wider scope',
            )
        _refuse_zone(address)
        if address.ipv4_mapped is not None:
            raise InvalidValue("is an IPv4-mapped IPv6 address", f'write "{address.ipv4_mapped}"')
    if address.is_multicast or str(address) == "255.255.255.255":
        raise InvalidValue("is not the address of a single host", "write an address of this machine")
    return str(address)


def parse_socket_mode(text: str) -> int:
    """``listen_mode``: permission bits in octal, as for chmod(1), such as ``0660``."""
    if not _SOCKET_MODE.fullmatch(text):
        raise InvalidValue("is not a file mode", 'write three octal digits, as in "0660"')
    mode = int(text, 8)
    if not mode & 0o222:
        raise InvalidValue("lets nobody connect, because that needs write permission", 'write one such as "0660"')
    return mode


def parse_trusted_proxy(text: str) -> IPNetwork | Literal["unix"]:
    """An element of ``trusted_proxies``: a network or a single address of either family, or ``unix``."""
    _refuse_space(text)
    if text.lower().startswith(UNIX):
        if text == UNIX:
            return "unix"
        raise InvalidValue("names a socket", 'write "unix" to trust every connection to a Unix socket of "listen"')
    literal, _, _ = text.partition("/")
    if literal.startswith("["):
        raise InvalidValue("has brackets", "write the address without them, and without a port")
    try:
        ip_address(literal)
    except ValueError:
        raise InvalidValue(
            "is not an address or a network", 'write one such as "127.0.0.1" or "10.0.0.0/8", or "unix"'
        ) from None
    if "%" in literal:
        raise InvalidValue("has a zone", "leave out the % and what follows it")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise InvalidValue(
            "has no prefix length that fits", f'write it as in "{literal}/{24 if "." in literal else 64}"'
        ) from None
    if network.prefixlen >= 96:
        _refuse_mapped(network.network_address, f"/{network.prefixlen - 96}")
    _refuse_mapped(ip_address(literal), f"/{min(network.prefixlen, 32)}")  # the length was meant for the IPv4 address
    if ip_address(literal) != network.network_address:
        raise InvalidValue(
            f"has host bits set beyond /{network.prefixlen}",
            f'write "{network}" for the network, or "{literal}" for this one address',
        )
    return network


def _not_an_address(text: str) -> InvalidValue:
    bare, colon, port = text.rpartition(":")
    bare = bare.removeprefix("[").removesuffix("]")
    if colon and port.isdecimal() and bare:
        return InvalidValue("has a port", f'write {quote(bare)} here, and the port in "port"')
    if text == "localhost":
        return InvalidValue("is a name, not an address", 'write ["127.0.0.1", "::1"]')
    if text in ("*", ""):
        return InvalidValue("is not an address", 'write ["0.0.0.0", "::"] for every address')
    return InvalidValue("is not an address", 'write an address literal such as "127.0.0.1", or "unix:/path"')


def _unix(text: str) -> UnixAddress:
    _refuse_space(text)
    path = text[5:]
    example = '"unix:/run/tapotun.sock"'
    if not text.startswith("unix:"):
        raise InvalidValue("has unix: in capital letters", f"write {quote('unix:' + path)}")
    if not path.startswith("/"):
        raise InvalidValue("has no absolute path", f"write it as in {example}")
    if not path.isprintable():
        raise InvalidValue("has control characters in its path", f"write it as in {example}")
    if path.endswith(("/", "/.", "/..")):
        raise InvalidValue("names a directory", f"write the socket's own path, as in {example}")
    size = len(path.encode())
    if size > UNIX_PATH_BYTES:
        raise InvalidValue(f"has a path of {size} bytes", f"choose one of at most {UNIX_PATH_BYTES} bytes")
    return UnixAddress(path)


def parse_mask(text: str) -> int:
    """Parse the mask of a fwmark, such as ``0xff``: a uint32 above 0."""
    if not _HEX_MASK.fullmatch(text):
        raise InvalidValue("is not a hexadecimal number of up to 32 bits", 'write one such as "0xff"')
    mask = int(text, 16)
    if not mask:
        raise InvalidValue("has no bit, so that every packet would match", 'write a mask such as "0xff"')
    return mask


def parse_admin_listen(text: str) -> ListenAddress:
    """The admin ``listen``: ``ADDRESS:PORT``, ``[IPV6]:PORT``, ``PORT`` (of 127.0.0.1) or ``unix:/path``."""
    if text[:5].lower() == "unix:":
        return _unix(text)
    _refuse_space(text)
    if _PORT.fullmatch(text):
        return TcpAddress(LOOPBACK, _port(text))
    if text.startswith(("/", ".")):
        raise InvalidValue("is a path without unix:", f"write {quote('unix:' + text)}")
    address, colon, port = text.rpartition(":")
    if not text or text == ":":
        raise InvalidValue("is not an address with a port", f"write one such as {_ADMIN_EXAMPLE}")
    if "]" in port or not colon or (":" in address and not address.startswith("[")):
        raise _without_port(text)
    if not _PORT.fullmatch(port):
        raise InvalidValue("has no port from 1 to 65535 after its last colon", f"write it as in {_ADMIN_EXAMPLE}")
    return TcpAddress(_admin_address(address, port), _port(port))


def _without_port(text: str) -> InvalidValue:
    literal = text.removeprefix("[").removesuffix("]")
    try:
        address = ip_address(literal)
    except ValueError:
        return InvalidValue("is not an address with a port", f'write one such as {_ADMIN_EXAMPLE} or "[::1]:9433"')
    shown = f"[{address}]" if address.version == 6 else str(address)
    return InvalidValue("has no port", f'write it, as in "{shown}:9433"')


def _admin_address(text: str, port: str) -> str:
    """The address before a port. ``port`` is for the remedies."""
    if text == "localhost":
        raise InvalidValue("has a name, not an address", f'write "127.0.0.1:{port}" or "[::1]:{port}"')
    if text in ("", "*"):
        raise InvalidValue("names no address", f'write "0.0.0.0:{port}" for every address, or "{port}" for loopback')
    literal = text
    if text.startswith("["):
        literal = text[1:].removesuffix("]")
        if not text.endswith("]") or ":" not in literal:
            raise InvalidValue("has brackets that hold no IPv6 address", f'write "[::1]:{port}"')
    try:
        return _listen_literal(literal)
    except InvalidValue as exc:
        raise InvalidValue(f"has an address that {exc.problem}", f"write one such as {_ADMIN_EXAMPLE}") from exc


def _port(text: str) -> int:
    if not 1 <= int(text) <= 65535:
        raise InvalidValue("has a port out of range", "write one from 1 to 65535")
    return int(text)
