"""What a session has carried and dropped: plain integers, written by the data path and read by status and metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Self, TypeAlias

# What carries the frames: a GET and a PUT, or one WebSocket instead of both.
Transport: TypeAlias = Literal["http", "websocket"]


class DropReason(StrEnum):
    """Why a packet was dropped. The values are labels in logs, status and metrics.

    Attributes:
        meaning: the reason in one phrase, for the panel.
    """

    meaning: str

    ARP_GUARD = "arp-guard", "by ARP or neighbour discovery it claims an address that is not its client's"
    BAD_MAC = "bad-mac", "the source MAC address is another one's, is not of a station, or is not the client's"
    BAD_SOURCE = "bad-source", "the client may not use this source address"
    CODEL = "codel", "the queue was too long for too long; the drop tells senders to slow down"
    DEVICE_FULL = "device-full", "the TUN or TAP interface accepted nothing for too long"
    DEVICE_REFUSED = "device-refused", "the kernel refused the packet"
    INTERNAL_ERROR = "internal-error", "an error in this program; the log has its traceback"
    ISOLATED = "isolated", "clients of this interface reach the server's side only"
    JUMBOGRAM = "jumbogram", "an IPv6 packet that says that it is longer than 65,535 bytes"
    LINK_LOCAL = (
        "link-local",
        "IPv6 to a multicast address, or from or to a link-local one, which never leaves its link",
    )
    LOOP = "loop", "it came from the client that it was going to: the client has no route to a network of its own"
    NO_MEMORY = "no-memory", "this machine had no free memory for the packet"
    NO_ROUTE = "no-route", "no client has this destination"
    NOT_IPV4 = "not-ipv4", "not IPv4, and the two ends have not agreed on IPv6"
    QUEUE_AGE = "queue-age", "it waited too long in the send queue"
    QUEUE_FULL = "queue-full", "the send queue was full"
    RESERVED_MAC = "reserved-mac", "to an address such as that of spanning trees, which bridges do not forward"
    SAME_SIDE = "same-side", "it came from the side where its destination is"
    STORM = "storm", "the client sends more frames to everybody than storm_limit allows"

    def __new__(cls, value: str, meaning: str) -> Self:
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member


@dataclass(slots=True)
class Counters:
    """One client's traffic as this end sees it. Bytes are those of IP packets, without frame headers.

    Attributes:
        plane_packets: how many of the packets `plane` moved, in both directions.
    """

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    plane_packets: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)  # streams that failed, by EndReason

    def copy(self) -> Counters:
        """A copy that does not change any more."""
        return replace(self, drops=Counter(self.drops), ends=Counter(self.ends))

    def since(self, before: Counters) -> Counters:
        """What was counted since ``before`` was copied."""
        return Counters(
            self.rx_packets - before.rx_packets,
            self.rx_bytes - before.rx_bytes,
            self.tx_packets - before.tx_packets,
            self.tx_bytes - before.tx_bytes,
            self.plane_packets - before.plane_packets,
            self.drops - before.drops,
            self.ends - before.ends,
        )

    def summary(self) -> str:
        """One phrase for a log line."""
        text = f"received {self.rx_packets} packets, {self.rx_bytes} bytes; "
        text += f"sent {self.tx_packets} packets, {self.tx_bytes} bytes"
        if self.drops:
            text += "; dropped " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.drops.items()))
        return text
