"""Frames, pings and `x-tun-conf` of the base protocol, written from PROTOCOL.md alone.

     0        2             14                14+L
     +--------+-------------+------------------+
     | L: u16 | vnet hdr 12 | IP packet, L byte |        20 <= L <= 65535
     +--------+-------------+------------------+
     | 0: u16 |                                           generation 1 ping
     +--------+

Nothing here knows which side it is, and nothing here shares code with the daemon.
"""

import base64
import binascii
import hashlib
import ipaddress
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from . import vnet

PING: Final = b"\0\0"
MIN_PACKET: Final = 20
MAX_PACKET: Final = 65535
ECHO_BYTES: Final = 48
ECHO_MARK: Final = 0x10
CONF_1_BYTES: Final = 7

_HEAD_BYTES: Final = 2 + vnet.SIZE
_ROUTE: Final = struct.Struct("<4sB")


class WireError(ValueError):
    """Bytes that no base peer may send."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One packet and the virtio header in front of it; no packet at all is a generation 1 ping."""

    packet: bytes
    header: bytes = vnet.NONE

    def encode(self) -> bytes:
        """The frame as it crosses the wire: "L counts the IP packet only, not the vnet header"."""
        return struct.pack("<H", len(self.packet)) + (self.header + self.packet if self.packet else b"")

    @property
    def is_ping(self) -> bool:
        """Generation 1: "just two zero bytes, ignored by the receiver"."""
        return not self.packet

    @property
    def is_echo(self) -> bool:
        """Generation 2: "packet starts with byte `0x10` (IP version 1)"."""
        return bool(self.packet) and self.packet[0] >> 4 == 1


def echo_ping() -> Frame:
    """A fresh generation 2 ping: L = 48, byte 0x10, "and then a u64 timestamp", then noise.

    The noise proves that "the client echoes the very same frame".
    """
    head = struct.pack("<BQ", ECHO_MARK, time.time_ns())
    return Frame(head + os.urandom(ECHO_BYTES - len(head)))


def frame_fault(frame: Frame) -> str | None:
    """Why a whole frame with a packet in it may not reach a base peer; None where it may."""
    version = frame.packet[0] >> 4
    if version == 1:
        if len(frame.packet) != ECHO_BYTES or frame.packet[0] != ECHO_MARK:
            return f"a ping of {len(frame.packet)} bytes that starts with {frame.packet[0]:#04x}"
        return None
    if version == 6:
        return "IPv6 packet for a base peer"
    if version != 4:
        return f"packet starts with {frame.packet[0]:#04x}: no IP packet"
    return vnet.refusal(frame.header, frame.packet)


class FrameReader:
    """Cuts a byte stream into frames: "a frame may start or end anywhere" in chunks and segments."""

    def __init__(self, carry: bytes = b"") -> None:
        self._buffer = bytearray(carry)

    @property
    def rest(self) -> bytes:
        """The half frame that is left: empty on a frame boundary."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield each frame that is whole now; a generator, so iterate it to its end.

        Raises WireError where L is 1 to 19: "an error in base". Framing is lost then for good.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 2:
            length = int.from_bytes(buffer[:2], "little")
            if length == 0:
                del buffer[:2]
                yield Frame(b"")
                continue
            if length < MIN_PACKET:
                what = "extended control frame at a base peer" if length == 1 else "bad frame"
                raise WireError(f"{what}: L = {length}")
            end = _HEAD_BYTES + length
            if end > len(buffer):
                return
            frame = Frame(bytes(buffer[_HEAD_BYTES:end]), bytes(buffer[2:_HEAD_BYTES]))
            del buffer[:end]
            yield frame


@dataclass(frozen=True)
class Conf:
    """What `x-tun-conf` carries.

    | generation | layout |
    |---|---|
    | 1 | `mtu:u16 prefix:u8 ip:4B` - 7 bytes |
    | 2 | `mtu:u16 prefix:u8 n:u8 ip:4B*n m:u8 (ip:4B prefix:u8)*m` |
    """

    mtu: int
    prefix: int
    ips: tuple[str, ...]
    routes: tuple[str, ...] = ()

    def encode(self, generation: int) -> str:
        """The header's value. Generation 1 has room for the first address only."""
        head = struct.pack("<HB", self.mtu, self.prefix)
        ips = [ipaddress.IPv4Address(ip).packed for ip in self.ips]
        if generation == 1:
            return base64.b64encode(head + ips[0]).decode()
        nets = [ipaddress.IPv4Network(route) for route in self.routes]
        routes = [_ROUTE.pack(net.network_address.packed, net.prefixlen) for net in nets]
        body = bytes([len(ips)]) + b"".join(ips) + bytes([len(routes)]) + b"".join(routes)
        return base64.b64encode(head + body).decode()


def decode_conf(value: str) -> tuple[int, Conf]:
    """Generation and content of an `x-tun-conf`: "7 bytes is generation 1". Raises WireError."""
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise WireError(f"x-tun-conf {value!r} is not base64") from exc
    if len(raw) == CONF_1_BYTES:
        mtu, prefix, ip = struct.unpack("<HB4s", raw)
        return 1, _checked(Conf(mtu, prefix, (str(ipaddress.IPv4Address(ip)),)))
    try:
        mtu, prefix, count = struct.unpack_from("<HBB", raw)
        at = 4 + 4 * count
        ips = tuple(str(ipaddress.IPv4Address(raw[i : i + 4])) for i in range(4, at, 4))
        (route_count,) = struct.unpack_from("<B", raw, at)
        pairs = [_ROUTE.unpack_from(raw, at + 1 + _ROUTE.size * i) for i in range(route_count)]
        routes = tuple(str(ipaddress.IPv4Network((ip, bits))) for ip, bits in pairs)
    except (struct.error, ValueError) as exc:
        raise WireError(f"x-tun-conf {value!r} ({len(raw)} bytes) fits no generation: {exc}") from exc
    if len(raw) != at + 1 + _ROUTE.size * route_count:
        raise WireError(f"x-tun-conf {value!r}: {len(raw)} bytes is not the length it tells")
    if not ips:
        raise WireError(f"x-tun-conf {value!r} gives no address")
    return 2, _checked(Conf(mtu, prefix, ips, routes))


def parse_as(generation: int, value: str) -> None:
    """What a deployed client's parser finds in an `x-tun-conf`: it knows its own generation only. Raises WireError
    with its words."""
    size = len(base64.b64decode(value, validate=False))
    if generation == 1 and size > CONF_1_BYTES:
        raise WireError(f"{size - CONF_1_BYTES} bytes were not parsed")
    if generation == 2 and size == CONF_1_BYTES:
        raise WireError("can't read uint variable")


def _checked(conf: Conf) -> Conf:
    if conf.mtu < 68 or conf.prefix > 32:
        raise WireError(f"x-tun-conf with mtu {conf.mtu} and prefix /{conf.prefix}")
    return conf


def sha1(token: str) -> str:
    """ "The server knows only the lowercase-hex SHA-1 of the token"."""
    return hashlib.sha1(token.encode()).hexdigest()
