"""``x-tun-conf``: the header's text, or (first byte odd) what is packed in it."""

from __future__ import annotations

import base64
import struct
from typing import Final

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.tunconf import decode, encode_generation_2

from .feeding import assert_printable

SEEDS: Final = [
    b"\0" + base64.b64encode(struct.pack("<HB4s", 1500, 24, b"\x0a\x0a\0\2")),
    b"\1" + struct.pack("<HB4s", 1500, 24, b"\x0a\x0a\0\2"),
    b"\1" + struct.pack("<HBB4sB4sB", 1500, 24, 1, b"\x0a\x0a\0\2", 1, b"\x0a\0\0\0", 8),
    b"\1" + struct.pack("<HBB4s4sB", 1500, 24, 2, b"\x0a\x0a\0\2", b"\x0a\x0a\0\3", 0),
]


def check(data: bytes) -> None:
    value = base64.b64encode(data[1:]).decode() if data[:1] and data[0] & 1 else data[1:].decode("latin-1")
    try:
        conf = decode(value)
    except PeerError as exc:
        assert_printable(exc)
        return
    assert 68 <= conf.mtu <= 65535
    assert 0 < len(conf.addresses) == len(set(conf.addresses))
    assert decode(encode_generation_2(conf)) == conf
