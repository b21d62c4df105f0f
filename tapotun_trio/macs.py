"""MAC addresses of Ethernet (IEEE 802), as 6 bytes. Pure."""

from __future__ import annotations

import re
from typing import Final

MAC_BYTES: Final = 6
BROADCAST: Final = b"\xff" * MAC_BYTES
NO_MAC: Final = bytes(MAC_BYTES)

_TEXT: Final = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}", re.IGNORECASE | re.ASCII)
# IEEE 802.1Q table 8-1: addresses of the protocols between two neighbours, such as those of spanning trees.
_RESERVED_PREFIX: Final = b"\x01\x80\xc2\x00\x00"


def parse_mac(text: str) -> bytes:
    """``02:00:5e:10:00:01``, or with hyphens. Raises ValueError."""
    if _TEXT.fullmatch(text) is None:
        raise ValueError("not a MAC address")
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def mac_text(mac: bytes) -> str:
    """As `ip link` writes it."""
    return mac.hex(":")


def is_group(mac: bytes) -> bool:
    """Whether it is an address of many: multicast or broadcast."""
    return bool(mac[0] & 1)


def is_reserved(mac: bytes) -> bool:
    """Whether bridges do not forward frames to it: 01:80:c2:00:00:00 to :0f."""
    return mac[:5] == _RESERVED_PREFIX and mac[5] < 0x10


def is_station(mac: bytes) -> bool:
    """Whether an interface may have it: neither zeros nor an address of many."""
    return mac != NO_MAC and not is_group(mac)
