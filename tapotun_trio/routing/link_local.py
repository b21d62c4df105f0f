"""Which link-local address of IPv6 belongs to whom on an Ethernet segment: first come, first served.

No config knows these addresses, since each host makes up its own (RFC 4862 section 5.3). So the first one that claims
an address by neighbour discovery has it, as in RFC 6620. With that rule alone somebody could claim in advance what
another host is going to use, so it has these exceptions:

- What comes from the server's side always counts, and stays its own. There the routers are, and it is trusted.
- An address that is made from a MAC address (RFC 4291 appendix A) belongs to that MAC address: to the port where it is
  pinned, or to anybody who sends from it.
- A host that claims its address from the same MAC address behind another port has moved.

So nobody takes an address without its MAC address, and who may use that is for the switch to decide.

Times are seconds on any monotonic clock. Addresses have 16 bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

SERVERS_SIDE: Final = -1  # the port of the server's TAP interface

# How long an address belongs to a client that claims it no more. Hosts that use IPv6 claim their addresses much more
# often. On the server's side there is no limit: a host there may answer only in frames to one client, which are not
# looked at.
HELD_S: Final = 3600.0
# Of one port. Behind a client there may be a site; behind the server, too.
MAX_CLIENT_ADDRESSES: Final = 256
MAX_SERVER_ADDRESSES: Final = 4096

_PREFIX: Final = b"\xfe\x80" + bytes(6)  # fe80::/64, which all addresses are in that are used
_MIDDLE: Final = b"\xff\xfe"


def is_link_local(address: bytes) -> bool:
    """Whether it is in fe80::/10. Addresses of IPv4 are not."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def mac_in(address: bytes) -> bytes | None:
    """The MAC address that a link-local address is made from (RFC 4291 appendix A); None: it is made in another way."""
    if not address.startswith(_PREFIX) or address[11:13] != _MIDDLE:
        return None
    return bytes([address[8] ^ 2]) + address[9:11] + address[13:]


class _Holder:
    __slots__ = ("mac", "port", "seen_at")

    def __init__(self, port: int, mac: bytes, seen_at: float) -> None:
        self.port, self.mac, self.seen_at = port, mac, seen_at


class LinkLocalTable:
    """Who has which address. What one port can make this remember is bounded, and takes nothing from another port."""

    __slots__ = ("_by_port", "_holders", "_owner_of")

    def __init__(self, owner_of: Callable[[bytes], int | None]) -> None:
        """``owner_of``: the port that a MAC address is pinned to; None: it is not pinned."""
        self._owner_of = owner_of
        self._holders: dict[bytes, _Holder] = {}
        self._by_port: dict[int, OrderedDict[bytes, None]] = {}  # what was claimed longest ago first

    def __len__(self) -> int:
        return len(self._holders)

    def may_claim(self, port: int, mac: bytes, address: bytes, now: float) -> bool:
        """Whether a frame from this port may claim a link-local address.

        ``mac``: the frame's source, which the port may use.
        """
        if port == SERVERS_SIDE:
            return True
        made_from = mac_in(address)
        if made_from is not None:
            owner = self._owner_of(made_from)
            if owner is not None:
                return owner == port
            if made_from == mac:
                return True
        holder = self._holders.get(address)
        if holder is None or port == holder.port or mac == holder.mac:
            return True
        return holder.port != SERVERS_SIDE and now - holder.seen_at >= HELD_S

    def claim(self, port: int, mac: bytes, address: bytes, now: float) -> None:
        """A frame has claimed what it may claim.

        Raises MemoryError. Then the address may have no holder, and may still stand among those of the port."""
        holder = self._holders.get(address)
        if holder is not None and holder.port == port:
            # The first MAC address stays: anyone who got the address by the MAC address of its owner cannot keep it by
            # another one.
            holder.seen_at = now
            self._by_port[port].move_to_end(address)
            return
        made = _Holder(port, mac, now)
        table = self._by_port.setdefault(port, OrderedDict())
        if holder is not None:
            del self._holders[address]
            self._by_port[holder.port].pop(address, None)
        if len(table) >= (MAX_SERVER_ADDRESSES if port == SERVERS_SIDE else MAX_CLIENT_ADDRESSES):
            oldest, _ = table.popitem(last=False)
            self._forget(port, oldest)
        table[address] = None
        self._holders[address] = made

    def _forget(self, port: int, address: bytes) -> None:
        """The port has the address no more. See `claim` for why it may be another port's now."""
        holder = self._holders.get(address)
        if holder is not None and holder.port == port:
            del self._holders[address]

    def remove_port(self, port: int) -> None:
        """The port is gone for good."""
        for address in self._by_port.pop(port, ()):
            self._forget(port, address)

    def clear(self) -> None:
        self._holders.clear()
        self._by_port.clear()
