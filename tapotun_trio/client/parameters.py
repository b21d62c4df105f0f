"""What the server asks of this machine's network, and its application to the interface once that exists."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import trio

from ..config.model import Mark
from ..datapath.tun_io import DeviceWriter
from ..errors import HostError
from ..host.items import DesiredState
from ..log import Log
from ..netconf.desired import describe, desired_for_client
from ..netconf.reconciler import Reconciler
from ..netconf.transport_guard import TransportGuard
from ..wire.params import Params
from ..wire.tunconf import TunConf


class AttachedInterface:
    """The interface of a client while its device exists: where packets go, and who changes its addresses and routes.

    Attributes:
        writer: takes the received packets.
        desired: what the reconciler was given last.
    """

    __slots__ = ("_reconciler", "desired", "writer")

    def __init__(self, writer: DeviceWriter, reconciler: Reconciler, desired: DesiredState) -> None:
        """``desired``: what ``reconciler`` runs with."""
        self.writer = writer
        self.desired = desired
        self._reconciler = reconciler

    async def apply(self, desired: DesiredState) -> None:
        """Make the host as ``desired``. Raises HostError; then it is as it was before. Cancelled, it may be either, and
        the next call applies what it is given once more."""
        await self._reconciler.apply(desired)
        self.desired = desired  # not before: cancelled in between, the next answer applies it again


class InterfaceParameters:
    """The parameters of one client interface: from the first answer, through the making of the device, to each later
    change."""

    def __init__(self, mark: Mark | None, guard: TransportGuard, log: Log, require_free: Callable[[], None]) -> None:
        """``require_free``: raises HostError if the device could not be made."""
        self._mark = mark
        self._guard = guard
        self._log = log
        self._require_free = require_free
        self._conf: TunConf | None = None  # the newest
        self._first: DesiredState | None = None
        self._first_known = trio.Event()
        self._interface: AttachedInterface | None = None
        self._attached = trio.Event()
        self._dns: tuple[IPv4Address | IPv6Address, ...] = ()  # what the server offered last

    @property
    def desired(self) -> DesiredState | None:
        """What the host's network is to be; None: no server has answered yet."""
        return self._first if self._interface is None else self._interface.desired

    async def wait_first(self) -> DesiredState:
        """What the server's first answer asks for. Cancel-safe."""
        await self._first_known.wait()
        assert self._first is not None
        return self._first

    def require_free_name(self) -> None:
        """Before the first answer: raise HostError if the device could not be made."""
        if self._first is None:
            self._require_free()

    def attach(self, writer: DeviceWriter, reconciler: Reconciler) -> None:
        """The device is up, and ``reconciler`` runs with the first parameters."""
        assert self._first is not None, "no server has answered"
        self._interface = AttachedInterface(writer, reconciler, self._first)
        self._attached.set()

    async def wait_attached(self) -> AttachedInterface:
        """The interface, once its device is up. Cancel-safe."""
        await self._attached.wait()
        assert self._interface is not None
        return self._interface

    async def configure(self, conf: TunConf) -> None:
        """The server asks for ``conf``. Returns when the host is so.

        Raises PeerError if that would cut the client off from the server; HostError if the host refuses it.
        """
        self._guard.refuse_own(conf.addresses)
        before, self._conf = self._conf, conf
        desired = desired_for_client(conf, self._mark)
        if self._first is None:
            self._first = desired
            self._first_known.set()
        interface = await self.wait_attached()
        if desired != interface.desired:
            if conf != before:
                self._log.info("the server changed this interface: %s", describe(conf))
            await interface.apply(desired)

    async def set_mark(self, mark: Mark | None) -> None:
        """Have another mark. Raises HostError; then it has the one before."""
        before, self._mark = self._mark, mark
        try:
            if self._conf is not None:
                await self.configure(self._conf)
        except HostError:
            self._mark = before
            raise

    async def take_params(self, offered: Params) -> None:
        """As `configure`, with what came in a PARAMS frame."""
        if offered.dns != self._dns and offered.dns:
            self._log.info("the server offers DNS at %s; not set here", ", ".join(map(str, offered.dns)))
        self._dns = offered.dns
        await self.configure(TunConf(offered.mtu, offered.addresses, offered.routes))
