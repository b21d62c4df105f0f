"""Offloads of an interface, switched by ioctl: linux/ethtool.h, linux/sockios.h. Saves the bench a tool to install."""

from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.harness import Host

_SIOCETHTOOL: Final = 0x8946
# ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO; the command that asks is the one before each.
_SET: Final = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}


def get(host: Host, interface: str, feature: str) -> bool:
    """Whether `tso`, `gso` or `gro` is on. Raises OSError."""
    return bool(_ethtool(host, interface, _SET[feature] - 1, 0))


def put(host: Host, interface: str, feature: str, on: bool) -> None:
    """Switch it. Raises OSError."""
    _ethtool(host, interface, _SET[feature], int(on))


@contextmanager
def switched(host: Host, interface: str, **features: bool) -> Iterator[None]:
    """Switched so while the body runs: ``switched(host, "eth0", tso=False, gso=False)``."""
    before = {feature: get(host, interface, feature) for feature in features}
    try:
        for feature, on in features.items():
            put(host, interface, feature, on)
        yield
    finally:
        for feature, on in before.items():
            put(host, interface, feature, on)


def _ethtool(host: Host, interface: str, command: int, data: int) -> int:
    value = ctypes.create_string_buffer(struct.pack("=II", command, data))  # struct ethtool_value
    request = struct.pack("16sP16x", interface.encode("ascii"), ctypes.addressof(value))  # struct ifreq
    with host.socket() as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    answer: int = struct.unpack_from("=II", value)[1]
    return answer
