"""The PROXY protocol, version 2: a header with the client's address, sent by a proxy before a connection's own bytes.

Untrusted input; raises PeerError only. Follows doc/proxy-protocol.txt of HAProxy, section 2.2::

     0                          12        13        14         16
    +--------------------------+----+----+----+----+----------+- - - - - - - - -+
    | \\r\\n\\r\\n\\0\\r\\nQUIT\\n     | 2  |cmd |fam |prot| len: u16 | addresses, TLVs |
    +--------------------------+----+----+----+----+----------+- - - - - - - - -+
                                                      big-endian   len bytes

Version 1, a line of text, is not supported: every proxy that can be configured to send version 1 can send version 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from ..errors import EndReason, PeerError

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
HEADER_BYTES: Final = 16
# Addresses and TLVs. Those of HAProxy stay below 1 KiB, even with all TLVs about TLS; a Unix address takes 216 bytes.
MAX_REST_BYTES: Final = 4096

_LOCAL: Final = 0x20  # version in the upper half, command in the lower
_PROXY: Final = 0x21
# Size of the addresses by family (upper half of the key) and transport (lower half). Others must be refused.
_ADDRESS_BYTES: Final = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_INET: Final = Struct("!4s4xH2x")
_INET6: Final = Struct("!16s16xH2x")


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
        self._total = HEADER_BYTES
        self.source: Source | None = None

    @property
    def started(self) -> bool:
        """Whether at least one byte was fed."""
        return bool(self._data)

    @property
    def needed(self) -> int:
        """How many bytes are missing; 0 if the header is complete."""
        return self._total - len(self._data)

    def feed(self, data: bytes | memoryview) -> None:
        """Parse at most `needed` bytes. Raises PeerError as soon as they cannot be a header."""
        had = len(self._data)
        self._data += data
        if not SIGNATURE.startswith(self._data[: len(SIGNATURE)]):
            raise _bad("no PROXY protocol header of version 2 came first")
        if had < HEADER_BYTES <= len(self._data):
            self._check_fixed()
        if not self.needed:
            self.source = self._read_source()

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
            address = IPv6Address(raw)
            return Source(address.ipv4_mapped or address, port)
        return None


def _bad(text: str) -> PeerError:
    return PeerError(text, reason=EndReason.BAD_PROXY_HEADER)
