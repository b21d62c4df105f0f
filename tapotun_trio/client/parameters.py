"""The parameters that the server gives a client's interface, and their application once the device exists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from ..config.model import Mark
from ..datapath.tun_io import DeviceWriter
from ..errors import HostError
from ..families import IPAddress
from ..host.items import DesiredState, Item
from ..log import Log, flap_damped
from ..netconf.desired import describe, desired_for_client
from ..netconf.reconciler import Reconciler
from ..netconf.transport_guard import TransportGuard
from ..text import listed
from ..wire.params import Params
from ..wire.settings import InterfaceSettings


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
    applied to the attached interface."""

    def __init__(self, mark: Mark | None, guard: TransportGuard, log: Log, require_free: Callable[[], None]) -> None:
        """``require_free``: raises HostError if the device could not be made."""
        self._mark = mark
        self._guard = guard
        self._log = log
        self._changes = flap_damped()
        self._require_free = require_free
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
        desired = desired_for_client(conf, self._mark)
        if self._first is None:
            self._first = desired
            self._first_known.set()
        interface = await self.wait_attached()
        if desired != interface.desired:
            if conf != before:
                self._log_change(f"the server changed this interface: {describe(conf)}")
            await interface.apply(desired)

    async def set_mark(self, mark: Mark | None) -> None:
        """Change the fwmark of policy routing (None: no mark). Raises HostError; the previous mark then stays in
        use."""
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
        """As `configure`, for a PARAMS frame."""
        if offered.dns != self._dns and offered.dns:
            self._log_change(f"the server offers DNS at {listed(offered.dns)}; not set here")
        self._dns = offered.dns
        await self.configure(offered.settings)
