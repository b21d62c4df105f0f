"""The parameters that the server gives a client's interface, and their application once the device exists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final, NamedTuple

import trio

from ..config.model import Bridge, DeviceKind, Mark
from ..datapath.tun_io import DeviceWriter
from ..errors import EndReason, HostError, PeerError
from ..families import IPAddress, IPNetwork, is_within
from ..host.items import MAIN_TABLE, Address, DesiredState, Item, ItemsRefused, Route
from ..host.net.dial import has_default_route_past
from ..log import Log, flap_damped
from ..netconf.desired import describe, desired_for_client
from ..netconf.reconciler import Reconciler
from ..netconf.transport_guard import TransportGuard
from ..text import listed
from ..wire import control, params
from ..wire.body import Body
from ..wire.control import MAX_PAYLOAD_BYTES
from ..wire.frames import FrameReader
from ..wire.params import Params
from ..wire.settings import InterfaceSettings
from .requests import Answer, no_tun_conf

# What counts as all of a family. Of IPv6: all global unicast addresses that IANA gives away (RFC 4291 section 2.4).
_ALL: Final[dict[int, IPNetwork]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("2000::/3")}

# How long the first frame may take after the head, which a proxy may have passed on alone.
FIRST_PARAMS_S: Final = 5.0
MAX_FIRST_BYTES: Final = 2 * MAX_PAYLOAD_BYTES  # the largest PARAMS frame, and framing around it
_MARK_ON_TAP: Final = (
    'the server\'s interface carries Ethernet frames, into which "mark" cannot route packets; remove "mark" from this '
    "client's config"
)


class AttachedInterface:
    """The interface of a client while its device exists.

    Attributes:
        writer: writes received packets to the device.
        desired: the state that the reconciler has applied.
    """

    __slots__ = ("_reconciler", "desired", "writer")

    def __init__(self, writer: DeviceWriter, reconciler: Reconciler, desired: DesiredState) -> None:
        """``desired``: the state with which ``reconciler`` was started."""
        self.writer = writer
        self.desired = desired
        self._reconciler = reconciler

    @property
    def refused(self) -> Mapping[Item, str]:
        """As `InterfaceParameters.refused`."""
        return self._reconciler.refused

    async def apply(self, desired: DesiredState) -> None:
        """Have the reconciler apply ``desired``. Raises HostError; then the previous state is in effect again. If this
        is cancelled, either state may be in effect."""
        await self._reconciler.apply(desired)
        self.desired = desired  # set last: if this is cancelled before, the next answer applies it again


class InterfaceParameters:
    """The parameters of one client interface. The first ones are for the task that makes the device; later ones are
    applied to the attached interface.

    Attributes:
        device: what the frames carry; "tun" before the first answer.
        device_changed: set when the server's frames no longer carry what the device was made for, so that the interface
            has to be replaced.
    """

    def __init__(
        self,
        mark: Mark | None,
        guard: TransportGuard,
        log: Log,
        require_free: Callable[[], None],
        ipv6_outside: Callable[[], bool] = lambda: True,
        bridge: Bridge | None = None,
        note_ipv6_refused: Callable[[], None] = lambda: None,
    ) -> None:
        """``require_free``: raises HostError if the device could not be made. ``ipv6_outside``: whether any
        interface of this machine has IPv6. ``bridge``: what a TAP interface is a port of.
        ``note_ipv6_refused``: called when the kernel has refused IPv6 on the running interface."""
        self._mark = mark
        self._bridge = bridge
        self._guard = guard
        self._log = log
        self._changes = flap_damped()
        self._require_free = require_free
        self._ipv6_outside = ipv6_outside
        self._note_ipv6_refused = note_ipv6_refused
        self._leaks_told: frozenset[_Leak] = frozenset()
        self.device: DeviceKind = "tun"
        self.device_changed = trio.Event()
        self._conf: InterfaceSettings | None = None  # the newest
        self._first: DesiredState | None = None
        self._first_known = trio.Event()
        self._interface: AttachedInterface | None = None
        self._attached = trio.Event()
        self._dns: tuple[IPAddress, ...] = ()  # what the server offered last

    @property
    def desired(self) -> DesiredState | None:
        """The desired state of the host; None: the server has not answered yet."""
        return self._first if self._interface is None else self._interface.desired

    async def wait_first(self) -> DesiredState:
        """Wait for the server's first answer; returns the desired state that it gives. Cancel-safe."""
        await self._first_known.wait()
        assert self._first is not None
        return self._first

    @property
    def settings(self) -> InterfaceSettings | None:
        """What the server asked for last; None: it has not answered yet."""
        return self._conf

    def require_free_name(self) -> None:
        """Raise HostError if the device could not be made. Does nothing after the first answer."""
        if self._first is None:
            self._require_free()

    @property
    def refused(self) -> Mapping[Item, str]:
        """The pushed settings that the kernel refused, each with the reason."""
        return {} if self._interface is None else self._interface.refused

    def attach(self, writer: DeviceWriter, reconciler: Reconciler) -> None:
        """The device is up, and ``reconciler`` was started with the result of `wait_first`."""
        assert self._first is not None, "no server has answered"
        self._interface = AttachedInterface(writer, reconciler, self._first)
        self._attached.set()

    async def wait_attached(self) -> AttachedInterface:
        """The interface, once its device is up. Cancel-safe."""
        await self._attached.wait()
        assert self._interface is not None
        return self._interface

    async def configure(self, conf: InterfaceSettings) -> None:
        """Apply what the server asks for. Waits for the interface to be attached.

        Raises PeerError if this would cut the client off from the server, HostError if the host refuses it.
        """
        self._guard.refuse_own(conf.addresses)
        before, self._conf = self._conf, conf
        desired = desired_for_client(conf, self._mark, self._bridge)
        self._warn_about_leak(desired)
        if self._first is None:
            self._first = desired
            self._first_known.set()
        interface = await self.wait_attached()
        if desired != interface.desired:
            if conf != before:
                self._log_change(f"the server changed this interface: {describe(conf)}")
            await interface.apply(desired)

    def _warn_about_leak(self, desired: DesiredState) -> None:
        """Warn if all of one family goes into the tunnel, and not all of the other one, which this machine has too."""
        leaks = frozenset(leak for leak in _leaking(desired) if self._has_outside(leak.version, desired))
        for leak in leaks - self._leaks_told:
            taken, left = f"IPv{10 - leak.version}", f"IPv{leak.version}"
            if leak.table == MAIN_TABLE:
                text = f"all of {taken} goes into the tunnel, but not all of {left}: "
                text += f"other {left} traffic of this machine goes outside of it"
            else:
                text = f"of packets with mark {self._mark} all of {taken} goes into the tunnel, but not all of {left}: "
                text += f"other {left} packets with that mark go outside of it"
            self._changes.log(self._log, logging.WARNING, trio.current_time(), text)
        self._leaks_told = leaks

    def _has_outside(self, version: int, desired: DesiredState) -> bool:
        """Whether packets of an IP version can go past the tunnel."""
        if version == 6:
            return self._ipv6_outside()
        # Not by the tunnel's own routes, which are there already if this is a later answer. Packets with the mark use
        # the main table too, if the mark's has nothing of this version.
        return has_default_route_past(
            [net for table, net in _routed(desired) if (table, net.version) == (MAIN_TABLE, 4)]
        )

    async def receive_first(self, answer: Answer, body: Body, authority: str) -> Answer:
        """If IPv6 or Ethernet was agreed on, and no parameters are known yet, receive PARAMS from the stream, and apply
        them: the answer itself has at most the part of IPv4.

        Not cancel-safe: what was received is lost with the stream.

        Args:
            body: a decoder for the body of the answer.
            authority: host and port of the server, for errors.

        Returns the answer with everything that was received, PARAMS included.

        Raises PeerError if the answer has no address, and the stream begins with something else, or with nothing for
        FIRST_PARAMS_S; or if the frames carry something else than the device was made for; otherwise as `configure`.
        """
        self._follow_device(answer.device)
        if not answer.features & {control.INET6, control.TAP} or self._first is not None:
            return answer
        received, controls = await _first_controls(answer, body)
        if controls and controls[0][0] == control.PARAMS:
            await self.apply_params(params.decode(controls[0][1], ipv6=control.INET6 in answer.features))
        elif answer.device == "tap":
            text = f"{authority} agreed on Ethernet frames, and did not begin with the parameters of the interface"
            raise PeerError(text, reason=EndReason.BAD_PARAMS)
        elif answer.conf is None:
            raise PeerError(no_tun_conf(answer.head, authority), reason=EndReason.BAD_CONF)
        return replace(answer, rest=received)

    def given_by(self, answer: Answer, *, first: bool) -> str:
        """What an answer gives the interface, for the end of a log line; empty if only the PARAMS that follow say it.

        ``first``: there was no download before it, so that its PARAMS have come with it (`receive_first`).
        """
        settings = None if answer.conf is None else answer.conf.settings
        if answer.features & {control.INET6, control.TAP}:  # the answer itself does not have all
            settings = self.settings if first else None
        return "" if settings is None else f": {describe(settings)}"

    def _follow_device(self, device: DeviceKind) -> None:
        """The frames of a new download carry this. Raises PeerError if the device was made for something else."""
        if self._first is None:
            self.device = device
        elif device != self.device:
            self.device_changed.set()
            carries = "Ethernet frames" if device == "tap" else "IP packets"
            raise PeerError(f"the server's interface carries {carries} now", reason=EndReason.OTHER_DEVICE)

    async def set_mark(self, mark: Mark | None) -> None:
        """Change the fwmark of policy routing (None: no mark). Raises HostError; the previous mark then stays in
        use."""
        if mark is not None and self._first is not None and self.device == "tap":
            raise HostError(_MARK_ON_TAP)
        before, self._mark = self._mark, mark
        try:
            if self._conf is not None:
                await self.configure(self._conf)
        except HostError:
            self._mark = before
            raise

    def _log_change(self, text: str) -> None:
        """Log a change. The rate is limited, because the server may change something with every PARAMS frame."""
        self._changes.log(self._log, logging.INFO, trio.current_time(), text)

    async def apply_params(self, offered: Params) -> None:
        """As `configure`, for a PARAMS frame. Also raises PeerError, instead of HostError, if IPv6 was switched off on
        the interface a moment ago, as by two programs that disagree: a stream without it is possible."""
        if offered.device != self.device:
            text = f'the server\'s parameters say "device": "{offered.device}", and it has agreed on {self.device} only'
            raise PeerError(text, reason=EndReason.BAD_PARAMS)
        if self.device == "tap" and self._mark is not None:
            raise PeerError(_MARK_ON_TAP, reason=EndReason.OTHER_DEVICE)
        if offered.dns != self._dns and offered.dns:
            self._log_change(f"the server offers DNS at {listed(offered.dns)}; not set here")
        self._dns = offered.dns
        before = self._conf
        try:
            await self.configure(offered.settings)
        except ItemsRefused as exc:
            if not exc.lacks_ipv6:
                raise
            self._conf = before  # what the reconciler has put back
            self._note_ipv6_refused()
            raise PeerError(str(exc), reason=EndReason.NO_ADDRESS_FAMILY) from exc


class _Leak(NamedTuple):
    """An IP version of which not everything goes into the interface by this table, although all of the other one
    does."""

    version: int
    table: int


def _leaking(desired: DesiredState) -> set[_Leak]:
    """Each table is looked at by itself: the table of a mark has the packets with the mark only, and the main table
    those without it."""
    by_table: dict[int, list[IPNetwork]] = {}
    for table, network in _routed(desired):
        by_table.setdefault(table, []).append(network)
    found: set[_Leak] = set()
    for table, networks in by_table.items():
        taken = {version for version in _ALL if _takes_all(version, networks)}
        if len(taken) == 1:
            found |= {_Leak(version, table) for version in _ALL.keys() - taken}
    return found


def _routed(desired: DesiredState) -> Iterator[tuple[int, IPNetwork]]:
    """What goes into the interface, each with its table."""
    for item in desired.items:
        if isinstance(item, Route):
            yield item.table, item.network
        elif isinstance(item, Address):
            yield MAIN_TABLE, item.interface.network


def _takes_all(version: int, networks: Iterable[IPNetwork]) -> bool:
    joined: Iterable[IPNetwork]
    if version == 4:
        joined = collapse_addresses(each for each in networks if isinstance(each, IPv4Network))
    else:
        joined = collapse_addresses(each for each in networks if isinstance(each, IPv6Network))
    return any(is_within(_ALL[version], network) for network in joined)


async def _first_controls(answer: Answer, body: Body) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Receive until the first frame is complete, for FIRST_PARAMS_S and up to MAX_FIRST_BYTES.

    That is less than the buffer of the stream has room for, whatever framing is in between.

    Returns everything that was received of the body, and the control frames in it. Raises PeerError, ShortageError.
    """
    reader = FrameReader(body, control=True, ethernet=answer.device == "tap")
    received = bytearray(answer.rest)
    frames = reader.prime(answer.rest)
    with trio.move_on_after(FIRST_PARAMS_S):
        while not (frames or reader.controls or reader.ended) and len(received) <= MAX_FIRST_BYTES:
            count = 0
            if not reader.pending:
                space = reader.space()[: MAX_FIRST_BYTES + 1 - len(received)]
                count = await answer.connection.receive(space)
                received += space[:count]
                if not count:
                    reader.eof()
            frames = reader.feed(count)
    return bytes(received), reader.controls
