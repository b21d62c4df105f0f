"""The Ethernet segment of one TAP interface at a server: moves frames between its clients and its device.

Read `Segment.from_client` first. `routing.switch` decides; here is what keeps its decisions for the data path, and what
tells people of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import trio

from ..config.model import ServerConfig
from ..cooperative import PART, Steps
from ..datapath.counters import DropReason
from ..datapath.plane import BY_MACS, BY_MACS_GUARDED, DeliverNow, Flows, Lane, Plane, Verdict, current_plane
from ..datapath.verdicts import Verdicts
from ..errors import EndReason
from ..host.interfaces import AddressedLink
from ..log import FLAPPING_BURST, FLAPPING_S, Faults, Log, RateLimitedLog
from ..macs import MAC_BYTES, is_station, mac_text
from ..routing.address_guard import AddressGuard, is_ordinary, learn_from_device
from ..routing.link_local import LinkLocalTable
from ..routing.switch import (
    BAD_MAC,
    DEVICE,
    FLOOD,
    ISOLATED,
    RESERVED_MAC,
    SAME_SIDE,
    Move,
    Switch,
    SwitchRules,
)
from ..status.macs import MacStatus
from ..wire.frames import ETHERNET_HEAD, HEADER_BYTES, MACS, FrameRange
from ..wire.vnet import is_bounded, validate_ethernet_vnet

if TYPE_CHECKING:
    from ..datapath.tun_io import DeviceWriter
    from .session import Session

CACHE_ENTRIES: Final = 4096  # verdicts of one port; see `session.CACHE_ENTRIES`
# All verdicts are forgotten this often. Then each flow is decided again, so the switch learns which addresses are used.
REFRESH_S: Final = 15.0
# A client whose streams break is back sooner in most cases. Without a carrier a bridge that speaks STP would then block
# its port for half a minute.
LOST_S: Final = 3.0
# The longest frame of an ordinary Ethernet, with a tag. To the storm limit a longer one counts as several, because a
# super-packet or a jumbo frame takes as much of everybody's path; see `_weight`.
ORDINARY_BYTES: Final = 1518
# A storm is over after this time without a frame that was too much. The next one is told again.
STORM_OVER_S: Final = 10.0
_ROWS_PER_STEP: Final = 500


class Everybody(Enum):
    """The verdict to flood: to all others. It is never kept."""

    ELSE = auto()


# Where frames go: to a client, into the device, or nowhere.
To: TypeAlias = "Session | Literal[True] | DropReason"
_FLOOD: Final = Everybody.ELSE

_REASONS: Final[Mapping[int, DropReason]] = {
    BAD_MAC: DropReason.BAD_MAC,
    RESERVED_MAC: DropReason.RESERVED_MAC,
    SAME_SIDE: DropReason.SAME_SIDE,
    ISOLATED: DropReason.ISOLATED,
}


def rules_in_steps(config: ServerConfig, own: bytes, sessions: Sequence[Session]) -> Steps[SwitchRules]:
    """What the switch needs to know of a config.

    Args:
        own: the MAC address of the interface.
        sessions: one for each client of the config, in its order.
    """
    pinned = dict.fromkeys(config.macs, DEVICE)
    pins: dict[int, tuple[bytes, ...]] = {}
    addresses: dict[int, frozenset[bytes]] = {}
    for number, (session, client) in enumerate(zip(sessions, config.clients, strict=True)):
        port = session.port
        if client.macs:
            pins[port] = client.macs
            pinned.update(dict.fromkeys(client.macs, port))
        if client.addresses:
            addresses[port] = frozenset(address.packed for address in client.addresses)
        if number % PART == 0:
            yield
    pinned.pop(own, None)  # it needs no pin
    servers = frozenset(address.packed for address in config.own_addresses)
    return SwitchRules(
        own=own,
        pinned=pinned,
        pins=pins,
        isolate=config.isolate,
        forwards_reserved=config.bpdu == "forward",
        storm_limit=config.storm_limit,
        guard=AddressGuard(addresses, servers) if config.arp_guard else None,
    )


class MacTable(NamedTuple):
    """``rows`` of the table, at most as many as were asked for, and how many it has."""

    rows: list[MacStatus]
    total: int


class _Port:
    """What the segment keeps of one client.

    Attributes:
        verdicts: by destination and source.
        flooded: how many of its frames were sent to all others.
        guarded: whether the plane's copies of the verdicts were made with BY_MACS_GUARDED.
        storm_at: when the last frame was dropped that was too much.
    """

    __slots__ = ("flooded", "guarded", "misuse_log", "move_log", "session", "storm_at", "storm_log", "verdicts")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.verdicts: Verdicts[To] = Verdicts()
        self.flooded = 0
        self.guarded = False
        self.storm_at = float("-inf")
        # Made with the first line. Not `flap_damped`: that also writes each line that is too much at level debug, and
        # here every frame may cause one.
        self.misuse_log: RateLimitedLog | None = None
        self.move_log: RateLimitedLog | None = None
        self.storm_log: RateLimitedLog | None = None


class Segment:
    """The switch of one server, with the verdicts that the data path keeps.

    Attributes:
        flooded: how many frames of the device were sent to all clients.
    """

    def __init__(
        self,
        rules: SwitchRules,
        sessions: Iterable[Session],
        device_drops: Counter[str],
        log: Log,
        set_carrier: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """
        Args:
            device_drops: where frames of the device are counted that are dropped.
            set_carrier: is told whether any client has a stream, when that changes. May raise HostError.
        """
        self._rules = rules  # as the config has them
        self._bridge_mac: bytes | None = None  # the interface's own, if it is no port
        self._more_addresses: frozenset[bytes] = frozenset()
        self.switch = Switch(self._with_bridge(rules))
        self._link_local = LinkLocalTable(self.switch.owner_of)
        self.flooded = 0
        self._device_drops = device_drops
        self._log = log
        self._set_carrier = set_carrier
        self._has_carrier = False
        self._lost_at: float | None = None  # since when the carrier has been there without a stream
        self._sessions = {session.port: session for session in sessions}
        self._ports: dict[int, _Port] = {}  # of those that have sent something
        self._streaming: dict[int, Session] = {}  # maybe some that no longer do
        self._device_verdicts: Verdicts[To] = Verdicts()
        self._refreshed_at = self._expired_at = float("-inf")
        self._faults = Faults()
        self._move_log: RateLimitedLog | None = None
        self._misuse_log: RateLimitedLog | None = None

    @property
    def has_guard(self) -> bool:
        """Whether what clients claim is checked (``arp_guard``)."""
        return self._rules.guard is not None

    # -- what changes

    def adopt(self, rules: SwitchRules, sessions: Iterable[Session], removed: Iterable[Session]) -> None:
        """Follow a changed config. ``removed``: sessions whose client it no longer has. They are about to be marked so,
        which ends what the plane does for them: see `change_lane`."""
        now = trio.current_time()
        self._rules = rules
        self.switch.set_rules(self._with_bridge(rules))
        self._sessions = {session.port: session for session in sessions}
        for session in removed:
            self._streaming.pop(session.port, None)
            self.switch.remove_port(session.port, now)
            self._link_local.remove_port(session.port)
        if rules.guard is None:
            self._link_local.clear()  # nobody would note who has what
        self._forget_verdicts(now)

    def began(self, session: Session) -> None:
        """The session is about to have a stream to its client. Raises HostError."""
        if not session.removed:
            self._streaming[session.port] = session
            self._update_carrier(up=True)

    def ended(self, session: Session) -> None:
        """The session has no stream any more, in either direction: its client is offline."""
        self._streaming.pop(session.port, None)
        now = trio.current_time()
        self.switch.forget(session.port, now)
        self._follow_switch(now)

    def tick(self, now: float) -> None:
        """To be called once a second. Raises HostError.

        The carrier goes down only here, LOST_S after the last stream has ended: a client that connects again at once
        does not make a bridge start anew.
        """
        for port, session in list(self._streaming.items()):
            if not session.sender.streaming and session.state == "offline":
                del self._streaming[port]
        if not self._has_carrier or any(session.sender.streaming for session in self._streaming.values()):
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at >= LOST_S:
            self._update_carrier(up=False)
        if now - self._expired_at >= REFRESH_S:  # also if moves have the verdicts forgotten all the time
            self._expired_at = now
            self.switch.expire(now)
        if now - self._refreshed_at >= REFRESH_S or self.switch.stale_soon or self.switch.stale:
            self._forget_verdicts(now)

    def set_addressed(self, link: AddressedLink) -> None:
        """What the bridge has now that the interface is a port of, or the interface itself. It is the server's own:
        what the server itself sends comes from there, and other programs may have given it further IP addresses."""
        addresses = frozenset(address.packed for address in link.addresses)
        moved, changed = link.mac != self._bridge_mac, addresses != self._more_addresses
        self._bridge_mac, self._more_addresses = link.mac, addresses
        if moved or (changed and self.has_guard):  # new rules have all verdicts forgotten
            self.switch.set_rules(self._with_bridge(self._rules))

    def _with_bridge(self, rules: SwitchRules) -> SwitchRules:
        """The rules, in which the bridge's MAC address is pinned to the server's side, whatever a client's ``macs``
        say; and no client may claim its other addresses."""
        mac = self._bridge_mac
        if mac is not None and mac != rules.own:
            rules = replace(rules, pinned={**rules.pinned, mac: DEVICE})
        if rules.guard is not None and self._more_addresses:
            rules = replace(rules, guard=rules.guard.with_servers(self._more_addresses))
        return rules

    def close(self) -> None:
        """The interface has ended: leave no reference cycle."""
        self._sessions.clear()
        self._ports.clear()
        self._streaming.clear()
        self._device_verdicts.clear()
        self._set_carrier = lambda _: None

    def _update_carrier(self, *, up: bool) -> None:
        self._lost_at = None
        if up != self._has_carrier:
            self._has_carrier = up
            self._set_carrier(up)

    def _forget_verdicts(self, now: float) -> None:
        """Forget all verdicts, and the plane's copies."""
        self.switch.stale = self.switch.stale_soon = False
        self._refreshed_at = now
        if self._device_verdicts:
            self._device_verdicts.clear()
        for port in self._ports.values():
            if port.verdicts:
                port.verdicts.clear()

    def _follow_switch(self, now: float) -> None:
        """What a decision has changed."""
        if self.switch.stale:
            self._forget_verdicts(now)
        move, self.switch.moved = self.switch.moved, None
        if move is not None:
            self._tell_move(move, now)

    # -- frames of a client

    def from_client(
        self, session: Session, view: memoryview, frames: Sequence[FrameRange], device: DeviceWriter
    ) -> None:
        """Forward the frames of one receive. What goes to the device is written at the end, in order; what goes to
        clients is sent at once, adjacent frames together.

        A frame with a vnet header that no kernel takes is dropped. Unlike on a TUN interface it is not the client's
        fault: a bridge passes on what a virtual machine has made up. Raises HostError if the device is gone.
        """
        port = self._port(session)
        verdicts, guard, counters = port.verdicts, self.switch.rules.guard, session.counters
        unpack, unpack_key = ETHERNET_HEAD.unpack_from, MACS.unpack_from
        inward: list[FrameRange] = []
        flooded: list[FrameRange] = []
        run_to: Session | None = None
        run_at = run_end = packets = rx_packets = rx_bytes = 0
        try:
            for frame in frames:
                start, stop, count = frame
                length, gso_type, gso_size = unpack(view, start)
                (key,) = unpack_key(view, start)
                rx_packets += count
                rx_bytes += count * length
                packet_at = start + HEADER_BYTES
                if (
                    guard is not None
                    and not is_ordinary(view, packet_at, packet_at + length)
                    and self._refuses_claim(guard, session.port, view[packet_at : packet_at + length])
                ):
                    counters.drops[DropReason.ARP_GUARD] += count
                    continue
                to: To | Literal[Everybody.ELSE] | None = verdicts.get(key)
                if to is None:
                    to = self._decide(session.port, verdicts, key)
                    if to is DropReason.BAD_MAC:
                        self._tell_misuse(port, key)
                if isinstance(to, DropReason):
                    counters.drops[to] += count
                elif to is True:
                    if gso_type and not is_bounded(length, gso_size):
                        counters.drops[DropReason.DEVICE_REFUSED] += count
                    else:
                        inward.append(frame)
                # The frames of a block do not differ in what this checks.
                elif not validate_ethernet_vnet(view[start:stop]):
                    counters.drops[DropReason.DEVICE_REFUSED] += count
                elif to is _FLOOD:
                    allowed = self._allowed(port, count, _weight(length, gso_type, gso_size))
                    if allowed:
                        frame = start, start + allowed * ((stop - start) // count), allowed
                        inward.append(frame)
                        flooded.append(frame)
                else:
                    if to is not run_to or start != run_end:
                        if run_to is not None:
                            run_to.sender.send(view[run_at:run_end], packets)
                        run_to, run_at, packets = to, start, 0
                    run_end = stop
                    packets += count
        finally:  # the frames before a bad one are good
            counters.rx_packets += rx_packets
            counters.rx_bytes += rx_bytes
            if run_to is not None:
                run_to.sender.send(view[run_at:run_end], packets)
            if flooded and not self.switch.rules.isolate:
                self._flood(session, view, flooded)
            device.write_all(view, inward, counters.drops)

    def _refuses_claim(self, guard: AddressGuard, port: int, frame: memoryview) -> bool:
        """Whether the guard refuses the frame. It does not see one whose source the switch is going to refuse, for
        nobody may claim anything with that."""
        if not self.switch.may_use(port, bytes(frame[MAC_BYTES : 2 * MAC_BYTES])):
            return False
        return guard.refuses(port, frame, self._link_local, trio.current_time())

    def _port(self, session: Session) -> _Port:
        port = self._ports.get(session.port)
        if port is None:
            port = self._ports[session.port] = _Port(session)
        return port

    def _flood(self, origin: Session | None, view: memoryview, frames: Sequence[FrameRange]) -> None:
        """Send these frames to all clients that have a stream, with one call for each. ``origin``: but to this one.

        So they may overtake frames to a single client, or be overtaken. The frames of one flow are not among both: what
        comes from one side teaches nothing of where anything is on another.
        """
        receivers = [each for each in self._streaming.values() if each is not origin and each.sender.streaming]
        if not receivers:
            return
        (first, stop, packets), *others = frames
        for at, end, count in others:
            if at != stop:
                break
            stop, packets = end, packets + count
        else:
            others = []
        data: memoryview | bytes = view[first:stop]
        if others:
            packets = sum([count for _, _, count in frames])
            try:
                data = _joined(view, frames)
            except MemoryError:  # then each by itself; a sender drops and counts what it cannot copy
                for at, end, count in frames:
                    for session in receivers:
                        session.sender.send(view[at:end], count)
                return
        for session in receivers:
            session.sender.send(data, packets)

    def _allowed(self, port: _Port, count: int, weight: int) -> int:
        """How many of so many frames of the client may be flooded now, each of which counts as ``weight``. Counts both
        kinds."""
        now = trio.current_time()
        allowed = self.switch.may_flood(port.session.port, count, now, weight)
        port.flooded += allowed
        if allowed < count:
            port.session.counters.drops[DropReason.STORM] += count - allowed
            if now - port.storm_at >= STORM_OVER_S:
                self._tell_storm(port, now)
            port.storm_at = now
        return allowed

    def _decide(self, port: int, verdicts: Verdicts[To], key: bytes) -> To | Literal[Everybody.ELSE]:
        """Ask the switch, and keep the answer if it may be kept."""
        now = trio.current_time()
        destination, source = key[:MAC_BYTES], key[MAC_BYTES:]
        number = self.switch.decide(port, destination, source, now)
        self._follow_switch(now)
        if number == FLOOD:
            return _FLOOD
        to: To
        if number == DEVICE:
            to = True
        elif number < 0:
            to = _REASONS[number]
        else:
            to = self._sessions[number]
        if self.switch.is_settled(port, source):
            if len(verdicts) >= CACHE_ENTRIES:
                verdicts.clear()
            verdicts[key] = to
        return to

    # -- frames of the device

    def from_device(self, view: memoryview, frames: list[FrameRange]) -> None:
        """Forward the frames of one burst; see `tun_io.read_device`. Never raises: a bug costs one frame."""
        verdicts, unpack_key, guarded = self._device_verdicts, MACS.unpack_from, self.has_guard
        flooded: list[FrameRange] = []
        run_to: Session | None = None
        run_at = run_end = packets = 0
        for frame in frames:
            start, stop, count = frame
            (key,) = unpack_key(view, start)
            to: To | Literal[Everybody.ELSE] | None = verdicts.get(key)
            if to is None:
                to = self._decide_for_device(key)
            if to is _FLOOD:
                flooded.append(frame)
                self.flooded += count
                if guarded:
                    self._note_claims(view, start)
            elif to is True or isinstance(to, DropReason):
                self._device_drops[DropReason.SAME_SIDE if to is True else to] += count
            else:
                if to is not run_to or start != run_end:
                    if run_to is not None:
                        run_to.sender.send(view[run_at:run_end], packets)
                    run_to, run_at, packets = to, start, 0
                run_end = stop
                packets += count
        if run_to is not None:
            run_to.sender.send(view[run_at:run_end], packets)
        if flooded:
            self._flood(None, view, flooded)

    def _note_claims(self, view: memoryview, at: int) -> None:
        """Note which link-local addresses a frame to everybody claims. Routers advertise themselves by such frames, and
        hosts look for their neighbours by them. Frames to one client may be the plane's."""
        packet_at = at + HEADER_BYTES
        end = packet_at + (view[at] | view[at + 1] << 8)
        try:
            if not is_ordinary(view, packet_at, end):
                learn_from_device(view[packet_at:end], self._link_local, trio.current_time())
        except Exception as exc:  # noqa: BLE001 - logged with its traceback
            text = "what a frame from the device claims was not noted"
            self._faults.log(self._log, trio.current_time(), text, exc)

    def _decide_for_device(self, key: bytes) -> To | Literal[Everybody.ELSE]:
        try:
            to = self._decide(DEVICE, self._device_verdicts, key)
            if to is DropReason.BAD_MAC:
                self._tell_device_misuse(key[MAC_BYTES:])
            return to
        except Exception as exc:  # noqa: BLE001 - logged with its traceback
            reason = self._faults.log(self._log, trio.current_time(), "frame from the device dropped", exc)
            return DropReason.INTERNAL_ERROR if reason is EndReason.INTERNAL_ERROR else DropReason.NO_MEMORY

    # -- the plane

    def flows(self, plane: Plane) -> Flows:
        """See `tun_io.FrameJudge`."""
        if self._device_verdicts.flows is None:
            self._device_verdicts.flows = Flows(plane, BY_MACS, self._device_drops, ethernet=True)
        return self._device_verdicts.flows

    def judge(self, view: memoryview, at: int) -> Verdict:
        """See `tun_io.FrameJudge`."""
        plane = current_plane()
        return None if plane is None else _verdict(self._device_verdicts, view, at, plane)

    def lane(self, session: Session, outlet: int, deliver: DeliverNow, plane: Plane) -> Lane:
        """Where the plane puts the frames of a client: as `from_client`."""
        port = self._port(session)
        guarded = self.has_guard
        if port.verdicts.flows is not None and port.guarded != guarded:
            port.verdicts.flows.hand_back()
            port.verdicts.flows = None
        if port.verdicts.flows is None:
            rules = BY_MACS_GUARDED if guarded else BY_MACS
            port.verdicts.flows = Flows(plane, rules, session.counters.drops, ethernet=True)
            port.guarded = guarded
        verdicts = port.verdicts

        def judge(view: memoryview, at: int) -> Verdict:
            packet_at = at + HEADER_BYTES
            if guarded and not is_ordinary(view, packet_at, packet_at + (view[at] | view[at + 1] << 8)):
                return None  # each needs a look
            return _verdict(verdicts, view, at, plane)

        return Lane(port.verdicts.flows, outlet, deliver, judge, session.counters)

    def change_lane(self, session: Session) -> None:
        """What the session's frames are decided by has changed, and maybe where they go. A session that was removed
        gets no other lane."""
        port = self._ports.pop(session.port, None) if session.removed else self._ports.get(session.port)
        if port is not None:
            port.verdicts.clear()
            if port.verdicts.flows is not None:
                port.verdicts.flows.hand_back()

    # -- for people

    def flooded_by(self, session: Session) -> int:
        """How many frames of the client were sent to all others."""
        port = self._ports.get(session.port)
        return 0 if port is None else port.flooded

    def table_in_steps(self, most: int) -> Steps[MacTable]:
        """The table, at most so many rows. If there are more, each port gets its share, of what was seen last."""
        total = len(self.switch)
        per_port = None if total <= most else max(most // max(self.switch.ports, 1), 1)
        rows: list[MacStatus] = []
        for row in self.switch.rows(trio.current_time(), per_port):
            rows.append(
                MacStatus(
                    mac=mac_text(row.mac),
                    client=self._client(row.port),
                    age_s=None if row.age_s is None else round(row.age_s, 1),
                    pinned=row.pinned,
                )
            )
            if len(rows) >= most:
                break
            if len(rows) % _ROWS_PER_STEP == 0:
                yield
        return MacTable(rows, total)

    def _client(self, port: int) -> str | None:
        session = self._sessions.get(port)
        return None if session is None else session.client.name

    def _side(self, port: int) -> str:
        client = self._client(port)
        if client is not None:
            return f"client {client}"
        return "the server's side" if port == DEVICE else "a client that is gone"

    def _tell_storm(self, port: _Port, now: float) -> None:
        if port.storm_log is None:
            port.storm_log = _damped()
        limit = self.switch.rules.storm_limit
        text = (
            f"sends more than {limit} frames a second to everybody: the others are dropped; is there a loop, for which "
            'bridges need STP ("bpdu": "forward")? Otherwise raise storm_limit'
        )
        port.storm_log.log(port.session.log, logging.WARNING, now, text)

    def _tell_move(self, move: Move, now: float) -> None:
        text = f"{mac_text(move.mac)} is behind {self._side(move.now)} now, and was behind {self._side(move.before)}"
        session = self._sessions.get(move.now)
        if session is None:
            limited = self._move_log = self._move_log or _damped()
            limited.log(self._log, logging.INFO, now, text)
        else:
            port = self._port(session)
            limited = port.move_log = port.move_log or _damped()
            limited.log(session.log, logging.INFO, now, text)

    def _tell_misuse(self, port: _Port, key: bytes) -> None:
        rules, source = self.switch.rules, key[MAC_BYTES:]
        if source in (rules.own, self._bridge_mac):
            # Without a bridge, it is what another program has made the interface's address.
            what = "interface" if source == rules.own else "bridge or interface"
            why = f"which is the address of this server's {what}; is there a loop?"
        elif source in rules.pinned:
            owner = rules.pinned[source]
            why = f"which is among the macs of {'this server' if owner == DEVICE else self._side(owner)}"
        elif port.session.port in rules.pins and is_station(source):
            why = "which is not among its macs; add it there, if this client may use it"
        else:
            return
        limited = port.misuse_log = port.misuse_log or _damped()
        text = f"frames from {mac_text(source)} are dropped, {why}"
        limited.log(port.session.log, logging.WARNING, trio.current_time(), text)

    def _tell_device_misuse(self, source: bytes) -> None:
        owner = self.switch.rules.pinned.get(source)
        if owner is None:
            return
        limited = self._misuse_log = self._misuse_log or _damped()
        text = f"frames from {mac_text(source)} on the server's side are dropped, which is among the macs of "
        text += f"{self._side(owner)}; is that machine there, or is there a loop?"
        limited.log(self._log, logging.WARNING, trio.current_time(), text)


def _weight(length: int, gso_type: int, gso_size: int) -> int:
    """As how many frames one counts to the storm limit. Each receiver's kernel cuts a super-packet into pieces, and
    somebody may ask for tiny ones."""
    by_length = -(-length // ORDINARY_BYTES)
    return max(by_length, -(-length // gso_size)) if gso_type and gso_size else by_length


def _joined(view: memoryview, frames: Sequence[FrameRange]) -> bytes:
    return b"".join([view[at:end] for at, end, _ in frames])


def _damped() -> RateLimitedLog:
    return RateLimitedLog(FLAPPING_S, burst=FLAPPING_BURST)


def _verdict(verdicts: Mapping[bytes, To], view: memoryview, at: int, plane: Plane) -> Verdict:
    (key,) = MACS.unpack_from(view, at)
    to = verdicts.get(key)
    if to is None or to is True or isinstance(to, DropReason):
        return to
    return to.sender.port(plane)
