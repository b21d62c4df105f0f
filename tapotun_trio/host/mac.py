"""The MAC address of a TAP interface: the same at every start, and another one on every machine."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final, Literal

# The first byte: of one station, and administered locally (IEEE 802), so that it is never a network card's. It is the
# highest of these. A bridge whose address nobody has set takes the lowest of its ports'
# (br_stp_recalculate_bridge_id, net/bridge/br_stp_if.c). Its address must not change because of ours: its machine would
# lose its DHCP lease. libvirt's ports have fe:54:00 for the same reason, and ours are above those.
_HIGHEST: Final = 0xFE
_ABOVE: Final = 0x80

# machine-id(5), and its place before systemd. They are made once, when the system is installed.
_FILES: Final = ("etc/machine-id", "var/lib/dbus/machine-id")
_BOOT_ID: Final = "proc/sys/kernel/random/boot_id"  # random(4)
_ID: Final = re.compile(r"[0-9a-f]{32}")


def derive_mac(name: str, role: Literal["server", "client"], secret: bytes, machine_id: bytes) -> bytes:
    """Return a MAC address that depends on all arguments, locally administered and of one station. It is numerically
    high, so that a bridge keeps its own. Pure.

    Args:
        name: of the interface.
        secret: what only this tunnel has, such as the hash of a token. It cannot be computed from the MAC address.
        machine_id: see `machine_id`.
    """
    parts = (b"tapotun-trio MAC address", name.encode(errors="surrogateescape"), role.encode(), secret, machine_id)
    digest = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
    return bytes([_HIGHEST, digest[1] | _ABOVE]) + digest[2:6]


def machine_id(root: Path = Path("/")) -> bytes:
    """Return the ID of this installation, from machine-id(5).

    A machine without that file (OpenWrt, or a container) gets an ID that lasts until it boots again, and so do its MAC
    addresses: the ``mac`` of the config sets one that stays. Without /proc the result is empty, and the MAC addresses
    depend on the tunnel alone. Blocking, for less than a millisecond.
    """
    for name in (*_FILES, _BOOT_ID):
        try:
            text = (root / name).read_text(encoding="ascii").strip().replace("-", "").lower()
        except (OSError, UnicodeError):
            continue
        if _ID.fullmatch(text) and text.strip("0"):  # while a system boots first, it says "uninitialized"
            return bytes.fromhex(text)
    return b""
