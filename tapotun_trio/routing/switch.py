"""A learning Ethernet switch: which port a frame of a TAP interface goes to.

Its ports are the clients, by a number that a session keeps for its life, and `DEVICE`, the TAP interface of the server.
Nothing here knows what is behind a port. Times are seconds on any monotonic clock.

A verdict is a small integer: the port that gets the frame, or one of the negative constants below.

Everything that a client can make this remember is bounded for that client, and takes nothing away from another one: the
number of its addresses, the frames that it floods, and how often its moves make the data path forget its verdicts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from ..macs import NO_MAC, is_group, is_reserved, is_station
from .address_guard import AddressGuard
from .link_local import SERVERS_SIDE

DEVICE: Final = SERVERS_SIDE  # the server's TAP interface
FLOOD: Final = -2  # to all ports but the one that it came from
BAD_MAC: Final = -3  # this port may not use the source address: drop
RESERVED_MAC: Final = -4  # bridges do not forward frames to this address: drop
SAME_SIDE: Final = -5  # the destination is where the frame came from: drop
ISOLATED: Final = -6  # from a client to a client, which the config forbids: drop

AGE_S: Final = 300.0  # IEEE 802.1D section 7.9.2, and the default of Linux
# An address may move once in this time. Of a loop each frame comes back many times a second.
MOVE_S: Final = 1.0
MAX_CLIENT_MACS: Final = 1024
MAX_DEVICE_MACS: Final = 8192  # behind the server there may be a whole site
# How often the moves of one port make all verdicts be forgotten at once, and of all ports together. Further ones take
# effect with the next `tick`, so that clients that let addresses flap do not slow down others.
MOVES_BURST: Final = 8.0
MOVES_PER_S: Final = 1.0
ALL_MOVES_PER_S: Final = 10.0


class TokenBucket:
    """Allows ``burst`` at once, and ``per_s`` on average."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens, self._at = burst, now

    def take(self, wanted: int, per_s: float, burst: float, now: float, each: int = 1) -> int:
        """How many of ``wanted`` are allowed now. ``each``: how many tokens one of them takes."""
        self._tokens = min(burst, self._tokens + max(now - self._at, 0.0) * per_s)
        self._at = now
        allowed = min(wanted, int(self._tokens) // each)
        self._tokens -= allowed * each
        return allowed


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """What a config says.

    Attributes:
        own: the MAC address of the server's interface, which is always behind `DEVICE`.
        pinned: addresses that are always behind one port, and may come from there only. `DEVICE` may have some, too.
        pins: the same, by port. A client that has some may use no other addresses.
        isolate: clients reach `DEVICE` only.
        forwards_reserved: frames to reserved addresses are flooded.
        storm_limit: how many frames per second of one client may be flooded.
        guard: the guard of ``arp_guard``, or None.
    """

    own: bytes = NO_MAC
    pinned: Mapping[bytes, int] = field(default_factory=dict)
    pins: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)
    isolate: bool = False
    forwards_reserved: bool = False
    storm_limit: int = 2000
    guard: AddressGuard | None = None


class Row(NamedTuple):
    """One address of the table. ``age_s``: since a frame of it needed a decision; None: never seen."""

    mac: bytes
    port: int
    age_s: float | None
    pinned: bool


@dataclass(slots=True)
class TableCounts:
    """What has become of the addresses of one port, or of all ports. None of it is ever taken back.

    Attributes:
        learned: addresses that were nowhere, and are behind the port now.
        moved: those that were behind another port.
        evicted: those that the port's limit has pushed out.
    """

    learned: int = 0
    moved: int = 0
    evicted: int = 0


class Move(NamedTuple):
    """An address was behind one port, and is behind another one now."""

    mac: bytes
    before: int
    now: int


_NO_COUNTS: Final = TableCounts()


class _Entry:
    __slots__ = ("asked", "moved_at", "port", "seen_at")

    def __init__(self, port: int, seen_at: float, moved_at: float) -> None:
        self.port, self.seen_at, self.moved_at = port, seen_at, moved_at
        self.asked = False  # a verdict that somebody keeps may name its port


class Switch:
    """The table of addresses, and the decisions.

    Attributes:
        rules: as the config has them; `set_rules` changes them.
        stale: verdicts that somebody keeps are wrong now. Who forgets them sets it to false.
        stale_soon: the same, but they may wait for the next tick.
        moved: the last move that nobody has looked at yet. Who looks at it sets it to None.
        counts: of all ports.
    """

    __slots__ = (
        "_all_moves",
        "_by_port",
        "_counts",
        "_floods",
        "_moves",
        "_seen",
        "_where",
        "counts",
        "moved",
        "rules",
        "stale",
        "stale_soon",
    )

    def __init__(self, rules: SwitchRules) -> None:
        self.rules = rules
        self.stale = self.stale_soon = False
        self.moved: Move | None = None
        self._where: dict[bytes, _Entry] = {}
        self._by_port: dict[int, OrderedDict[bytes, _Entry]] = {}  # the one that was seen longest ago first
        self._seen: dict[bytes, float] = {}  # of pinned addresses
        self._floods: dict[int, TokenBucket] = {}
        self._moves: dict[int, TokenBucket] = {}
        self._all_moves: TokenBucket | None = None
        self.counts = TableCounts()
        self._counts: dict[int, TableCounts] = {}

    def set_rules(self, rules: SwitchRules) -> None:
        """Follow a changed config. What was learned stays, unless the new rules contradict it."""
        self.rules = rules
        self.stale = True
        for mac in rules.pinned:
            self._remove(mac)
        self._remove(rules.own)
        for port in rules.pins:
            self._drop_learned(port)
        self._seen = {mac: at for mac, at in self._seen.items() if mac in rules.pinned}

    # -- decisions

    def decide(self, port: int, destination: bytes, source: bytes, now: float) -> int:
        """The verdict for a frame that came from this port. Learns where its source is."""
        if not self.may_use(port, source):
            return BAD_MAC
        if is_reserved(destination) and not self.rules.forwards_reserved:
            return RESERVED_MAC
        self._learn(port, source, now)
        to = None if is_group(destination) else self.port_of(destination, now)
        if to is None:
            return FLOOD
        if to == port:
            return SAME_SIDE
        if self.rules.isolate and to != DEVICE != port:
            return ISOLATED
        return to

    def may_use(self, port: int, source: bytes) -> bool:
        """Whether frames from this port may have this source."""
        if not is_station(source):
            return False
        owner = self.owner_of(source)
        return port not in self.rules.pins if owner is None else owner == port

    def owner_of(self, mac: bytes) -> int | None:
        """The only port that the address may be behind, as the rules say; None: it may be behind any."""
        return DEVICE if mac == self.rules.own else self.rules.pinned.get(mac)

    def port_of(self, mac: bytes, now: float) -> int | None:
        """Where the address is; None: not known."""
        owner = self.owner_of(mac)
        if owner is not None:
            return owner
        entry = self._where.get(mac)
        if entry is None or now - entry.seen_at >= AGE_S:
            return None
        entry.asked = True
        return entry.port

    def is_settled(self, port: int, source: bytes) -> bool:
        """Whether the table has the source behind this port, or the port may not use it. Only then may a verdict be
        kept: otherwise nothing would be learned from the next frame."""
        if source == self.rules.own or source in self.rules.pinned or not self.may_use(port, source):
            return True
        entry = self._where.get(source)
        return entry is not None and entry.port == port

    def may_flood(self, port: int, frames: int, now: float, each: int = 1) -> int:
        """How many of so many frames from this port may be flooded now. ``each``: as how many one of them counts."""
        if port == DEVICE:
            return frames
        limit = float(self.rules.storm_limit)
        bucket = self._floods.get(port)
        if bucket is None:
            bucket = self._floods[port] = TokenBucket(limit, now)
        # One frame that counts as more than the limit passes when its tokens have been saved up.
        return bucket.take(frames, limit, max(limit, float(each)), now, each)

    # -- the table

    def _learn(self, port: int, mac: bytes, now: float) -> None:
        if mac == self.rules.own:
            return
        if mac in self.rules.pinned:
            self._seen[mac] = now
            return
        entry, moved_at, moves = self._where.get(mac), float("-inf"), False
        if entry is not None:
            if entry.port == port:
                if now - entry.seen_at >= AGE_S:  # it was forgotten, whether `expire` has come by or not
                    self._count_new(port, moved=False)
                entry.seen_at = now
                self._by_port[port].move_to_end(mac)
                return
            if now - entry.seen_at < AGE_S:
                if now - entry.moved_at < MOVE_S:
                    return
                moved_at, moves = now, True
                self.moved = Move(mac, entry.port, port)
                self._note_stale(port, now)
            self._remove(mac)
        self._count_new(port, moved=moves)
        table = self._by_port.get(port)
        if table is None:
            table = self._by_port[port] = OrderedDict()
        elif len(table) >= (MAX_DEVICE_MACS if port == DEVICE else MAX_CLIENT_MACS):
            oldest, gone = table.popitem(last=False)
            del self._where[oldest]
            self.stale_soon |= gone.asked  # if it shows up elsewhere, that is no move any more
            if now - gone.seen_at < AGE_S:
                self.counts.evicted += 1
                self._counts[port].evicted += 1
        self._where[mac] = table[mac] = _Entry(port, now, moved_at)

    def _count_new(self, port: int, *, moved: bool) -> None:
        for counts in (self.counts, self._counts.setdefault(port, TableCounts())):
            if moved:
                counts.moved += 1
            else:
                counts.learned += 1

    def _note_stale(self, port: int, now: float) -> None:
        own = self._moves.get(port)
        if own is None:
            own = self._moves[port] = TokenBucket(MOVES_BURST, now)
        if self._all_moves is None:
            self._all_moves = TokenBucket(ALL_MOVES_PER_S, now)
        if own.take(1, MOVES_PER_S, MOVES_BURST, now) and self._all_moves.take(
            1, ALL_MOVES_PER_S, ALL_MOVES_PER_S, now
        ):
            self.stale = True
        else:
            self.stale_soon = True

    def _remove(self, mac: bytes) -> None:
        entry = self._where.pop(mac, None)
        if entry is not None:
            table = self._by_port[entry.port]
            del table[mac]
            if not table:
                del self._by_port[entry.port]

    def _drop_learned(self, port: int) -> bool:
        table = self._by_port.pop(port, None)
        for mac in table or ():
            del self._where[mac]
        return bool(table)

    def forget(self, port: int, now: float) -> None:
        """Nobody is behind this port any more."""
        if self._drop_learned(port):
            self._note_stale(port, now)
        for mac in self.rules.pins.get(port, ()):
            self._seen.pop(mac, None)

    def remove_port(self, port: int, now: float) -> None:
        """The port is gone for good: as `forget`, and its limits are forgotten, too."""
        self.forget(port, now)
        self._floods.pop(port, None)
        self._moves.pop(port, None)
        self._counts.pop(port, None)

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        for port, table in list(self._by_port.items()):
            while table and now - next(iter(table.values())).seen_at >= AGE_S:
                mac, _ = table.popitem(last=False)
                del self._where[mac]
            if not table:
                del self._by_port[port]

    # -- for people

    def __len__(self) -> int:
        """How many addresses the table has, pinned ones and the server's own included."""
        return len(self._where) + len(self.rules.pinned) + (self.rules.own != NO_MAC)

    def size(self, port: int) -> int:
        """How many of them are behind this port."""
        if port == DEVICE:
            pinned = sum(owner == DEVICE for owner in self.rules.pinned.values()) + (self.rules.own != NO_MAC)
        else:
            pinned = len(self.rules.pins.get(port, ()))
        return len(self._by_port.get(port, ())) + pinned

    def counts_of(self, port: int) -> TableCounts:
        """What has become of the addresses of this port."""
        return self._counts.get(port, _NO_COUNTS)

    @property
    def ports(self) -> int:
        """Behind how many ports there is any address that was learned."""
        return len(self._by_port)

    def rows(self, now: float, per_port: int | None = None) -> Iterator[Row]:
        """The table: pinned addresses first, then those of each port, the one that was seen last first. What changes
        meanwhile may be missing.

        ``per_port``: at most so many that were learned at each port.
        """
        rules = self.rules
        if rules.own != NO_MAC:
            yield Row(rules.own, DEVICE, None, pinned=True)
        for mac, port in rules.pinned.items():
            seen_at = self._seen.get(mac)
            yield Row(mac, port, None if seen_at is None else max(now - seen_at, 0.0), pinned=True)
        for port in list(self._by_port):
            newest = islice(reversed(self._by_port.get(port, {}).items()), per_port)
            for mac, seen_at in [(mac, entry.seen_at) for mac, entry in newest]:
                yield Row(mac, port, max(now - seen_at, 0.0), pinned=False)
