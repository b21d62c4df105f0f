"""What a session has carried and dropped. Plain integers, written by the data path, read by whoever asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from .. import errors

# What carries the frames: GET and PUT, or a WebSocket in place of both.
Transport: TypeAlias = Literal["http", "websocket"]

# Why a packet was dropped. Each is one label in the log's summary line.
NOT_IPV4: Final = "not-ipv4"
NO_ROUTE: Final = "no-route"
BAD_SOURCE: Final = "bad-source"  # the client may not use this source address
QUEUE_FULL: Final = "queue-full"  # the outbox held its limit of bytes
QUEUE_AGE: Final = "queue-age"  # it waited longer in the outbox than it is worth
CODEL: Final = "codel"  # the outbox had been standing for too long: its senders are to slow down
DEVICE_FULL: Final = "device-full"  # the TUN device took nothing for too long
NO_MEMORY: Final = "no-memory"  # there was none for a copy of the packet
DEVICE_REFUSED: Final = "device-refused"  # the kernel refused the packet
INTERNAL_ERROR: Final = errors.INTERNAL_ERROR  # a bug; the log has its traceback


@dataclass(slots=True)
class Counters:
    """One client's traffic as this end sees it. Bytes are IP packets, without frame headers."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)  # streams that ended uncleanly: PeerError.reason, or a bug

    def copy(self) -> Counters:
        """As they are now."""
        return replace(self, drops=Counter(self.drops), ends=Counter(self.ends))

    def since(self, before: Counters) -> Counters:
        """What was added since that copy."""
        return Counters(
            self.rx_packets - before.rx_packets,
            self.rx_bytes - before.rx_bytes,
            self.tx_packets - before.tx_packets,
            self.tx_bytes - before.tx_bytes,
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
