"""The PROXY protocol, versions 1 and 2: a header with the client's address, sent by a proxy before a connection's own
bytes.

Untrusted input; raises PeerError only. Follows doc/proxy-protocol.txt of HAProxy. Version 1 (section 2.1) is a line of
text, of at most 107 bytes::

    PROXY TCP4 203.0.113.7 192.0.2.1 51234 443\\r\\n      or TCP6, in the same way
    PROXY UNKNOWN\\r\\n                                   perhaps followed by words without meaning

Version 2 (section 2.2) is binary::

     0                          12        13        14         16
    +--------------------------+----+----+----+----+----------+- - - - - - - - -+
    | \\r\\n\\r\\n\\0\\r\\nQUIT\\n     | 2  |cmd |fam |prot| len: u16 | addresses, TLVs |
    +--------------------------+----+----+----+----+----------+- - - - - - - - -+
                                                      big-endian   len bytes
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from ..errors import EndReason, PeerError

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
SIGNATURE_V1: Final = b"PROXY "
HEADER_BYTES: Final = 16
# Addresses and TLVs. Those of HAProxy stay below 1 KiB, even with all TLVs about TLS; a Unix address takes 216 bytes.
MAX_REST_BYTES: Final = 4096
MIN_LINE_BYTES: Final = 15  # of version 1: PROXY UNKNOWN and CRLF
MAX_LINE_BYTES: Final = 107

_LOCAL: Final = 0x20  # version in the upper half, command in the lower
_PROXY: Final = 0x21
# Size of the addresses by family (upper half of the key) and transport (lower half). Others must be refused.
_ADDRESS_BYTES: Final = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_INET: Final = Struct("!4s4xH2x")
_INET6: Final = Struct("!16s16xH2x")
_TLS_HANDSHAKE: Final = 0x16  # RFC 8446 section 5.1
_CRLF: Final = b"\r\n"
_BARE: Final = re.compile(rb"\r[^\n]|(?<!\r)\n")  # a CR or LF that is not part of a CRLF
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Source:
    """The client's address and TCP port."""

    address: IPv4Address | IPv6Address
    port: int


class ProxyHeaderParser:
    """Parses one header. Feed it at most `needed` bytes at a time: what follows the header is not part of it.

    Attributes:
        source: the client's address, once the header is complete. None: the connection is the proxy's own (a health
            check), or the proxy does not know the address, or it is not an IP address.
    """

    __slots__ = ("_data", "_total", "source")

    def __init__(self) -> None:
        self._data = bytearray()
        self._total = MIN_LINE_BYTES  # no header of either version is shorter
        self.source: Source | None = None

    @property
    def started(self) -> bool:
        """Whether at least one byte was fed."""
        return bool(self._data)

    @property
    def needed(self) -> int:
        """The minimum number of bytes that are missing; 0 if the header is complete."""
        return self._total - len(self._data)

    def feed(self, data: bytes | memoryview) -> None:
        """Parse at most `needed` bytes. Raises PeerError as soon as they cannot be a header."""
        had = len(self._data)
        self._data += data
        if SIGNATURE.startswith(self._data[: len(SIGNATURE)]):
            self._total = max(self._total, HEADER_BYTES)
            if had < HEADER_BYTES <= len(self._data):
                self._check_fixed()
            if not self.needed:
                self.source = self._read_source()
        elif SIGNATURE_V1.startswith(self._data[: len(SIGNATURE_V1)]):
            self._feed_line()
        elif self._data[0] == _TLS_HANDSHAKE:
            raise _bad("TLS came first, and no PROXY protocol header")
        else:
            raise _bad("no PROXY protocol header came first")

    # -- version 1

    def _feed_line(self) -> None:
        if _BARE.search(self._data) or _CRLF in self._data[: MIN_LINE_BYTES - len(_CRLF)]:
            raise _malformed("the line's end is in the wrong place")
        if len(self._data) < MIN_LINE_BYTES:
            return
        if self._data.endswith(_CRLF):
            self.source = _read_line(self._data[: -len(_CRLF)].decode("latin-1"))
            return
        if len(self._data) >= MAX_LINE_BYTES:
            raise _malformed(f"the line is longer than {MAX_LINE_BYTES} bytes")
        missing = 1 if self._data.endswith(b"\r") else len(_CRLF)
        self._total = min(len(self._data) + missing, MAX_LINE_BYTES)

    # -- version 2

    def _check_fixed(self) -> None:
        command, family = self._data[12:14]
        length = int.from_bytes(self._data[14:16], "big")
        if command not in (_LOCAL, _PROXY):
            raise _bad(f"version and command {command:#04x} of a PROXY protocol header are unknown")
        if length > MAX_REST_BYTES:
            raise _bad(f"a PROXY protocol header of {length} bytes; the limit is {MAX_REST_BYTES}")
        if command == _PROXY:
            addresses = _ADDRESS_BYTES.get(family)
            if addresses is None:
                raise _bad(f"family and transport {family:#04x} of a PROXY protocol header are unknown")
            if length < addresses:
                raise _bad(f"a PROXY protocol header whose {length} bytes cannot hold its addresses")
        self._total = HEADER_BYTES + length

    def _read_source(self) -> Source | None:
        command, family = self._data[12:14]
        if command == _PROXY and family >> 4 == 1:
            raw, port = _INET.unpack_from(self._data, HEADER_BYTES)
            return Source(IPv4Address(raw), port)
        if command == _PROXY and family >> 4 == 2:
            raw, port = _INET6.unpack_from(self._data, HEADER_BYTES)
            return Source(_unmapped(IPv6Address(raw)), port)
        return None


def version_of(begin: bytes | bytearray) -> int | None:
    """The version of the PROXY protocol header that begins with these bytes; 0: more bytes may make it one; None: it
    is none. For readers that do not expect a header, to report it as an error."""
    if begin.startswith(SIGNATURE):
        return 2
    if begin.startswith(SIGNATURE_V1):
        return 1
    return 0 if SIGNATURE.startswith(begin) or SIGNATURE_V1.startswith(begin) else None


def _read_line(line: str) -> Source | None:
    """The source in a line of version 1. ``line``: without its CRLF."""
    protocol, *words = line.removeprefix("PROXY ").split(" ")
    if protocol == "UNKNOWN":
        return None
    if protocol not in ("TCP4", "TCP6"):
        raise _malformed("neither TCP4 nor TCP6 nor UNKNOWN")
    if len(words) != 4:
        raise _malformed("not two addresses and two ports")
    source, _ = (_address(word, protocol) for word in words[:2])
    port, _ = (_port(word) for word in words[2:])
    return Source(source, port)


def _address(word: str, protocol: str) -> IPv4Address | IPv6Address:
    try:
        if protocol == "TCP4":
            return IPv4Address(word)
        if "%" not in word:  # a zone names an interface of another machine, which has no meaning here
            return _unmapped(IPv6Address(word))
    except AddressValueError:
        pass
    raise _malformed(f"an address that is none of {protocol}")


def _port(word: str) -> int:
    if _PORT.fullmatch(word) and int(word) <= 65535:
        return int(word)
    raise _malformed("a port that is none")


def _unmapped(address: IPv6Address) -> IPv4Address | IPv6Address:
    return address.ipv4_mapped or address


def _malformed(what: str) -> PeerError:
    return _bad(f"a malformed PROXY protocol header of version 1: {what}")


def _bad(text: str) -> PeerError:
    return PeerError(text, reason=EndReason.BAD_PROXY_HEADER)
