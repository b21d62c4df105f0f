"""The parts of which all rtnetlink messages consist. No I/O.

Follows linux/netlink.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Any, Literal

from pyroute2.netlink import NLM_F_REQUEST

from .socket import HEADER


def attribute_numbers(message: Any) -> dict[str, int]:
    """The attribute numbers of a pyroute2 message class: the positions in its map of names."""
    return {name: number for number, (name, *_) in enumerate(message.nla_map)}


def read_sender(message: memoryview) -> int:
    """Return the netlink port number of the program whose request caused the notification; 0 for the kernel itself."""
    sender: int = HEADER.unpack_from(message)[4]
    return sender


def read_number(payload: memoryview | None, order: Literal["little", "big"] = sys.byteorder) -> int:
    """The value of an integer attribute, by default in host order; 0 if the attribute is absent."""
    return 0 if payload is None else int.from_bytes(payload, order)


def encode(
    message_class: Any, kind: int, flags: int, fields: dict[str, int], attrs: Sequence[tuple[str, object]]
) -> bytearray:
    message = message_class()
    message.update(fields)
    message["attrs"] = attrs
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message.encode()
    return bytearray(message.data)


def attribute(number: int, payload: bytes) -> bytes:
    """struct nlattr (length u16, type u16) and the padded payload, for what pyroute2 cannot encode."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, number) + payload + b"\0" * (-length % 4)


def append(message: bytearray, number: int, payload: bytes) -> bytearray:
    """The message with one more attribute."""
    message += attribute(number, payload)
    struct.pack_into("=I", message, 0, len(message))
    return message
