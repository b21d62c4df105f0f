"""One client interface: a download and an upload over HTTP, or one WebSocket for both, each replaced before it ends.

`states` has the states of a client and what changes them. `TunnelClient` opens the streams, acts on what the server
sends and on changes of this machine, and fires the events.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from ..config.model import ClientConfig, DeviceKind
from ..cooperative import Steps
from ..datapath.counters import Counters, DropReason, Transport
from ..datapath.receiver import Receiver, deliver_ethernet, deliver_to_device
from ..datapath.rtt import RoundTrip
from ..datapath.sender import AGENT_FRAME, Sender, keepalive_policy
from ..datapath.tun_io import DeviceWriter
from ..errors import EndReason, PeerError
from ..host.interfaces import Change, Host
from ..host.items import DesiredState
from ..host.net.resolver import Resolver
from ..host.net.segments import SegmentLimits
from ..host.net.sockets import Connection
from ..host.net.tls import TlsClient
from ..http.client import check_status
from ..http.heads import ResponseHead
from ..http.refusal import RefusedError
from ..log import Log
from ..netconf.reconciler import Reconciler
from ..netconf.transport_guard import TransportGuard
from ..peer.boottime import BootTime, SuspendDetector
from ..peer.info import PeerInfo
from ..peer.session_log import SessionLog
from ..status.duration import span
from ..status.model import InterfaceState, InterfaceStatus, PeerState
from ..wire import control, params
from ..wire.body import Body
from ..wire.frames import FrameRange, FrameReader, receive_buffer
from ..wire.websocket import WebSocketBody
from .ages import AgeLimits, StreamKind, is_cut
from .carrier import Carrier, SetCarrier
from .failure_log import FailureLog
from .flows import ClientFlows
from .outage import Outage
from .parameters import AttachedInterface, InterfaceParameters
from .path_mtu import PathMtu
from .path_watch import PathWatch
from .requests import Answer, FeatureOffer, Requests, passes_ipv6
from .rotation import SETTLED_S, OnFailure, OpenStream, RetryGate, keep_streaming
from .stall import Stall
from .states import Agreement, ClientEvent, ClientState, ClientStateMachine
from .status import client_status, with_refused_routes
from .streams import (
    Download,
    Upload,
    WebSocketStream,
    count_attempt,
    is_held_back,
    is_over,
    level_of,
    replaced_by_websocket,
    was_replaced,
    why_nothing_is_sent,
)
from .transport_choice import UPLOAD_SEEN_S, TransportSelector

TICK_S: Final = 1.0
# When an upload breaks, the reason may be about to arrive on the download: a stopping server, or another machine.
END_REASON_GRACE_S: Final = 0.1
DEFAULT_KEEPALIVE_S: Final = 10.0  # docs/protocol.md#timing; until the server's PARAMS say otherwise
# After another machine took the token over, requests at these intervals ask whether it is gone. They do not take the
# token back.
TAKEOVER_RETRY_S: Final = (20.0, 40.0)


class TunnelClient:
    """The streams of one client interface. The device is attached later, once the server has given it an address.

    Attributes:
        guard: keeps the connections of the streams out of the tunnel.
        counters, rtt, peer_info: for the status.
        sender: sends frames to the server.
        flows: where packets go, for `datapath.plane`.
        failure_log: logs failures of the streams, rate-limited.
        path_mtu: detects that the path drops large packets.
    """

    def __init__(
        self,
        config: ClientConfig,
        log: Log,
        *,
        require_free: Callable[[], None] = lambda: None,
        resolver: Resolver | None = None,
        tls: TlsClient | None = None,
        has_ipv6: Callable[[], bool] = lambda: True,
        ipv6_outside: Callable[[], bool] = lambda: True,
    ) -> None:
        """Raises HostError if the proxy that the environment names cannot be used.

        ``require_free``: called before each connection while the device does not exist; raises HostError if the device
        could not be made. ``resolver``: remembers the addresses of the server; None: use a new one, which knows none.
        ``tls``: from `open_tls`; needed if the server's URL is https. ``has_ipv6``: whether the interface
        can have IPv6; see `Host.has_ipv6`. ``ipv6_outside``: whether any interface of this machine can.
        """
        self._config, self._log = config, log
        self.counters, self.rtt, self.peer_info = Counters(), RoundTrip(), PeerInfo()
        self.sender = Sender(self.counters, AGENT_FRAME)
        self.flows = ClientFlows(self.sender, self.counters)
        self.failure_log = FailureLog(log)
        self.guard = TransportGuard(config.transport_mark, log)
        self._selector = TransportSelector(config.transport, config.server.authority, log)
        self.path_mtu = PathMtu(SegmentLimits(partial(self.failure_log.note, "path-mtu", logging.WARNING)))
        self._offer = FeatureOffer(self._selector.features, has_ipv6, log, config.device)
        self._requests = Requests(
            config, self._selector, self.guard, self.path_mtu.limits, resolver or Resolver(), tls, self._offer
        )
        self._parameters = InterfaceParameters(
            config.mark, self.guard, log, require_free, ipv6_outside, config.bridge, self._offer.ipv6_refused
        )
        self._machine = ClientStateMachine(log, self._selector.download_ended)
        self._carrier, self._agreement = Carrier(), Agreement()
        self._download_gate, self._upload_gate = RetryGate(), RetryGate()
        self._ages = AgeLimits(config.rotate_s, partial(self.failure_log.note, "ages"))
        self._probe_http_at = -math.inf  # HTTP is not tried again before this time
        # The newest streams, which may have ended.
        self._download: Download | WebSocketStream | None = None
        self._upload: Upload | None = None
        self._local_address: str | None = None  # of the newest download; None once this machine has lost it
        self._remote_address: str | None = None  # of the newest download
        self._next_upload: Upload | None = None  # a new upload whose arrival the server has not confirmed yet
        self._proven: Upload | None = None  # an upload that has probed HTTP with success, until `run_upload` runs it
        self._session_log = SessionLog(self.counters, self.rtt)
        self._farewell: str | None = None  # why the server ends the present session, if it has said so
        self._stall = Stall()
        self._outage = Outage()
        self._path_watch = PathWatch(
            config.name,
            self.guard,
            log,
            mark=config.transport_mark,
            on_change=self._follow,
            on_lapse=self.path_changed,
        )

    # -- for the status

    @property
    def state(self) -> PeerState:
        """Connected: packets pass both ways, as far as the server has said."""
        match self._machine.state:
            case ClientState.TAKEN_OVER:
                return "replaced"
            case ClientState.HTTP:
                passes = not is_over(self._upload) and self._selector.uploads_pass(trio.current_time())
            case ClientState.WEBSOCKET | ClientState.PROBING_HTTP:
                passes = True
            case ClientState.CONNECTING | ClientState.STOPPED:
                passes = False
        return "connected" if passes and not is_over(self._download) else "connecting"

    @property
    def transport(self) -> Transport | None:
        """The transport of the newest stream, also after its end; None: no stream was opened yet."""
        return self._agreement.transport

    @property
    def download(self) -> Download | WebSocketStream | None:
        """The newest download or WebSocket, which may be over; None: there was none yet."""
        return self._download

    @property
    def upload(self) -> Upload | None:
        """The newest PUT, which may be over; None: there was none yet, or a WebSocket has replaced it."""
        return self._upload

    @property
    def selector(self) -> TransportSelector:
        """Chooses the transport of the next stream."""
        return self._selector

    @property
    def desired(self) -> DesiredState | None:
        """The desired state of the host; None: the server has not answered yet."""
        return self._parameters.desired

    # -- see lifecycle.tunnel.Tunnel

    sessions: Final = None  # only a server has them

    @property
    def interface_state(self) -> InterfaceState:
        """Up while packets pass both ways."""
        return "up" if self.state == "connected" else "connecting"

    @property
    def problem(self) -> str | None:
        """Why the client is not connected, as far as that is known."""
        if self.state == "replaced":
            return "another machine uses this client's token"
        return self.failure_log.latest or self._selector.problem(trio.current_time())

    def peers(self) -> Iterator[tuple[str, TunnelClient]]:
        """The server, under its name in the status."""
        yield self._config.server.authority, self

    def last_seen(self) -> dict[str, BootTime]:
        """When the server was last heard, keyed by its name in the status; empty: never."""
        moment = self.peer_info.last_seen
        return {} if moment is None else {self._config.server.authority: moment}

    def restore_last_seen(self, moments: Mapping[str, BootTime]) -> None:
        """``moments``: what `last_seen` returned before the interface was restarted."""
        self.peer_info.seen_before = moments.get(self._config.server.authority)

    def status(self, common: InterfaceStatus) -> Steps[InterfaceStatus]:
        """``common``, completed with what the client knows, in one step."""
        yield from ()
        address = "" if self._download is None else self._download.connection.remote_address or ""
        limit, problem = self.path_mtu.limits.limit(address), self.path_mtu.limits.problem(address)
        server, conflicts = self._config.server.authority, self.guard.conflicts
        left_out = self.guard.push_filter.left_out
        status = client_status(common, self, server, self.desired, self.device, conflicts, left_out, limit, problem)
        return with_refused_routes(status, self._parameters.refused)

    # -- the device's side

    async def wait_for_parameters(self) -> DesiredState:
        """Wait for the server's first answer; returns the desired state that it gives. Cancel-safe."""
        desired = await self._parameters.wait_first()
        self.flows.ethernet = self.device == "tap"
        return desired

    @property
    def device(self) -> DeviceKind:
        """What the frames carry; "tun" before the server's first answer."""
        return self._parameters.device

    async def wait_device_changed(self) -> None:
        """Wait until the server's frames carry something else than `device`: replace this client. Cancel-safe."""
        await self._parameters.device_changed.wait()

    def attach(self, writer: DeviceWriter, reconciler: Reconciler, set_carrier: SetCarrier | None = None) -> None:
        """The device is up: received frames go to ``writer``, changed parameters to ``reconciler``.

        ``set_carrier``: of a TAP interface, which has no carrier at first.
        """
        self._carrier.attach(set_carrier)
        self._parameters.attach(writer, reconciler)

    async def reconfigure(self, config: ClientConfig) -> None:
        """Change the mark, the only field that changes without a new client. Raises HostError; the previous mark then
        stays in use."""
        await self._parameters.set_mark(config.mark)
        self._config = config

    # -- the tasks

    async def run_download(self) -> None:
        """Run one GET after the other, or one WebSocket after the other, for ever. The first answer gives the
        parameters of the interface; a later one that differs changes them."""
        try:
            await self._keep(self._open_download, self._download_gate, self._on_download_failure)
        finally:
            self._machine.fire(ClientEvent.STOP)
            self._session_log.end(self._log, "this client stops")

    async def run_upload(self) -> None:
        """Run one PUT after the other, for ever, while a download shows that the server can be reached."""
        await self._keep(self._open_upload, self._upload_gate, self._on_upload_failure)

    async def _keep(self, open_stream: OpenStream, gate: RetryGate, on_failure: OnFailure) -> None:
        try:
            await keep_streaming(
                open_stream,
                ages=self._ages,
                gate=gate,
                on_failure=on_failure,
                on_bug=self.failure_log.bug,
            )
        finally:  # the task that ends last closes a proven upload that was never run
            if self._proven is not None:
                self._proven.connection.close()

    async def run_clock(self) -> None:
        """Do once a second, for ever: send keepalives, drop packets that are too old, and end a silent download."""
        suspends = SuspendDetector()
        while True:
            for _ in range(2):
                await trio.sleep(TICK_S / 2)
                self._watch_segments(trio.current_time())
            now, silence_s = trio.current_time(), self._agreement.silence_s
            self.sender.tick(now, TICK_S)
            heard = self._download is not None and self._download.receiver.tick(now, silence_s)
            self.peer_info.tick(now, self.counters, heard=heard)
            connected = not is_over(self._download)
            self.guard.tick(now, connected=connected, heard=heard, silence_s=silence_s)
            self._carrier.tick(now, connected=connected)
            self._select_transport()
            if connected and self._offer.is_outdated(now):
                self._download_gate.rotate()
            for stream in (self._download, self._upload):
                if stream is not None and not stream.over:
                    self._ages.observe(stream.kind, stream.lifetime())
            self._end_outage()
            # Without a download no stall is reported: the failures of the download are the reason, and have been
            # logged.
            dropped = self.counters.drops[DropReason.QUEUE_AGE]
            if self._stall.tick(now, self.counters.tx_packets, dropped, tell=connected):
                self._log_stall()
            if slept_s := suspends.suspended_s():
                self.path_changed(f"this machine slept for {slept_s:.0f} s")

    def _watch_segments(self, now: float) -> None:
        """End a stream whose large segments are lost, so that the next one is opened with smaller ones."""
        streams = [stream for stream in (self._download, self._upload) if stream is not None and not stream.over]
        for ended in self.path_mtu.look(now, streams):
            # The other direction has its own connection, over the same path.
            (self._upload_gate if ended is self._download else self._download_gate).wake()
        carrier = self._download if self.transport == "websocket" else self._upload
        arrives = carrier is not None and not carrier.over and (carrier is self._download or self._upload_seen)
        if self._agreement.extended and arrives and not is_over(self._download):
            frame = self.path_mtu.due_ping(self._download, time.monotonic_ns())
            if frame is not None:
                self.sender.send_control(frame)

    @property
    def _upload_seen(self) -> bool:
        return self._upload is not None and self._upload.seen.is_set()

    def _end_outage(self) -> None:
        """If an outage has just ended, log how long it lasted."""
        if self.state == "connected" and (lasted_s := self._outage.end(trio.current_time())) is not None:
            self.failure_log.note("outage", logging.INFO, f"connected again after {span(lasted_s)}")

    def _log_stall(self) -> None:
        stream = self._download if self.transport == "websocket" else self._upload
        self.failure_log.note("stall", *self._stall.report(why_nothing_is_sent(stream, self.failure_log.latest)))

    async def watch_path(self, host: Host) -> None:
        """Renew the streams when their local address, their link or the route to the server changes; for ever
        (`PathWatch.run`)."""
        await self._path_watch.run(host)

    def _follow(self, change: Change | None, remotes: Collection[str], concerned: Collection[str]) -> None:
        """Renew the streams if the change affects them, or may help a client that has none. End streams whose local
        address is gone. The arguments are those of `path_watch.OnChange`."""
        renews = bool(concerned)
        restarts = False
        if change is not None:
            restarts = self.guard.has_lost_an_address(change.addresses)
            renews |= restarts
            # If no address is known, the server's name did not resolve, and any change may help.
            renews |= not remotes and is_over(self._download)
            for stream in (self._download, self._upload):
                if stream is None or stream.over:
                    continue
                renews |= stream.connection.local_address in change.touched_addresses
                if stream.connection.has_lost_its_address(change.addresses):
                    renews = True
                    stream.end(PeerError("its local address is gone", reason=EndReason.ADDRESS_GONE))
                    self._forget_path()
            # The streams may have ended before their local address was lost.
            if self._local_address is not None and self._local_address not in change.addresses:
                self._forget_path()
        if renews:
            routes = f"the route to {', '.join(sorted(concerned))} changed"
            self.path_changed(routes if change is None else change.what, restarts_attempts=restarts)
        elif change is not None:
            self._log.debug("%s: that concerns no stream", change.what)

    def _forget_path(self) -> None:
        """Forget what was learned about the path, because this machine has moved to another network."""
        self._local_address = None
        self._selector.path_changed()
        self._ages.forget()

    def path_changed(self, what: str, *, restarts_attempts: bool = False) -> None:
        """Something happened that streams may not have survived: replace them now, or try again now.

        ``restarts_attempts``: an attempt in progress cannot succeed, so begin it again at once.
        """
        self.failure_log.note("path", logging.INFO, f"{what}: renewing the streams")
        self.guard.mark_dirty()
        self.path_mtu.limits.forget()
        self._download_gate.wake(attempts_too=restarts_attempts)
        self._upload_gate.wake(attempts_too=restarts_attempts)

    # -- downloads and WebSockets

    async def _open_download(self) -> Download | WebSocketStream:
        """Open the next download: a GET, or a WebSocket, which is also an upload. Raises PeerError. Raises HostError if
        another process has taken the device's name meanwhile, because the streams of that process must not be taken
        over."""
        self._parameters.require_free_name()
        on_schedule = not self._download_gate.take_woken()
        replaces = not is_over(self._download)  # asked before the request: its answer ends the older stream
        probes = self._selector.probes_http(trio.current_time()) and self._machine.state is ClientState.WEBSOCKET
        # A WebSocket that is replaced early, before a proxy's limit ends it, leaves no time for a probe.
        on_schedule = on_schedule and trio.current_time() >= self._probe_http_at
        if probes and on_schedule and replaces and (download := await self._probe_http()) is not None:
            return download
        if self._selector.websocket:
            try:
                return await self._open_websocket(replaces=replaces)
            except PeerError as exc:
                if not self._selector.websocket_failed(exc, trio.current_time()):
                    raise
        try:
            return await self._open_get(replaces=replaces)
        except PeerError as exc:
            if not is_over(self._download) or self._yields or not self._selector.get_failed(exc, trio.current_time()):
                raise
            get_failure = exc.without_traceback()
        return await self._open_websocket_after(get_failure)

    async def _open_websocket_after(self, get_failure: PeerError) -> WebSocketStream:
        """Try a WebSocket because no GET passes. Raises PeerError: if a tapotun server refused the WebSocket, that
        refusal; otherwise ``get_failure``."""
        try:
            return await self._open_websocket(replaces=False)
        except PeerError as exc:
            self._selector.websocket_failed(exc, trio.current_time())
            if isinstance(exc, RefusedError) and exc.is_own:
                raise
            self._log.debug("nor a WebSocket: %s", exc)
            raise get_failure.without_traceback() from exc  # a copy: this frame holds the other one

    async def _open_get(self, *, replaces: bool) -> Download:
        """Send a GET, and apply the parameters of its answer. ``replaces``: another download or WebSocket was open when
        the attempt began. Raises PeerError."""
        memory = receive_buffer()  # allocated before the request: its answer ends the present download
        answer = await self._requests.get(yields=self._yields)
        with ExitStack() as undo:
            undo.callback(answer.connection.close)
            extended = control.CTL in answer.features
            answer, interface = await self._apply_answer(answer, answer.head.body(), extended=extended)
            reader = FrameReader(answer.head.body(), control=extended, memory=memory, ethernet=answer.device == "tap")
            frames = reader.prime(answer.rest)
            self._selector.offered = control.WS in answer.features
            self._selector.get_answered()
            deliver = partial(self._deliver, interface.writer)
            lane = partial(self.flows.lane, interface.writer)
            receiver = Receiver(answer.connection, reader, deliver, self._on_control, self.sender.send_control, lane)
            download = Download(answer.connection, receiver, frames, self.counters.ends, base=not extended)
            download.has_rest = bool(answer.rest)
            self._download_begins(download, "http", answer, replaces=replaces)
            undo.pop_all()
        return download

    async def _open_websocket(self, *, replaces: bool) -> WebSocketStream:
        """Open a WebSocket, which replaces both streams. ``replaces``: as for `_open_get`. Raises PeerError."""
        memory = receive_buffer()  # as for a GET
        answer = await self._requests.websocket(yields=self._yields)
        with ExitStack() as undo:
            undo.callback(answer.connection.close)
            answer, interface = await self._apply_answer(answer, WebSocketBody(masked=False), extended=True)
            self._selector.websocket_opened(trio.current_time())
            stream = WebSocketStream(
                answer.connection,
                answer.rest,
                self.sender,
                partial(self._deliver, interface.writer),
                self._on_control,
                self.counters.ends,
                memory,
                partial(self.flows.lane, interface.writer),
                ipv6=passes_ipv6(answer.features),
                ethernet=answer.device == "tap",
            )
            self._download_begins(stream, "websocket", answer, replaces=replaces)
            if self._upload is not None:
                self._upload.abandon(replaced_by_websocket())
            self._upload = None
            undo.pop_all()
        return stream

    async def _apply_answer(self, answer: Answer, body: Body, *, extended: bool) -> tuple[Answer, AttachedInterface]:
        """Apply the parameters that come with an answer. Returns it with everything that was received of it, and the
        interface, as soon as its device is up. Raises PeerError, HostError."""
        if self._download is None and passes_ipv6(answer.features):
            # The device comes up before the first stream begins. What it is sent meanwhile waits, in both families.
            self.sender.set_ipv6(True)
        answer = await self._parameters.receive_first(answer, body, self._config.server.authority)
        # On an extended download a PARAMS frame follows, which has the routes. This answer has none: applying it would
        # remove the routes, and the frame would add them again, at every rotation.
        if answer.conf is not None and (self.desired is None or not extended):
            await self._parameters.configure(answer.conf.settings)
        return answer, await self._parameters.wait_attached()  # an earlier attempt may have been given up in this wait

    @property
    def _yields(self) -> bool:
        """Whether another machine uses the token. The next request must not take it back, so it fails until the token
        is free."""
        return self._machine.state is ClientState.TAKEN_OVER

    def _download_begins(
        self, download: Download | WebSocketStream, transport: Transport, answer: Answer, *, replaces: bool
    ) -> None:
        """The stream is open. A session begins with it, or continues if it ``replaces`` another."""
        websocket = transport == "websocket"
        if websocket and not (replaces and self.transport == "websocket"):
            self._probe_http_at = trio.current_time() + self._config.rotate_s[0]
        keepalive_s = DEFAULT_KEEPALIVE_S if websocket or control.CTL in answer.features else None
        conf = answer.conf
        keepalive, silence_s = keepalive_policy(keepalive_s, 1 if conf is None else conf.generation)
        agreement = Agreement(
            transport=transport,
            extended=keepalive_s is not None,
            keepalive=keepalive,
            silence_s=silence_s,
            features=answer.features,
            agent=control.agent(answer.head.headers.get(control.AGENT_HEADER)),
            address=download.connection.name,
        )
        level = logging.DEBUG if replaces and transport == self.transport else logging.INFO
        kind = "extended" + (", Ethernet" if answer.device == "tap" else "") if agreement.extended else "base"
        stream = "WebSocket" if websocket else "download"
        gives = self._parameters.given_by(answer, first=self._download is None)
        text = f"{stream} from {agreement.address} ({kind}){gives}"
        self.failure_log.note("download", level, text)
        self.peer_info.mark_connected(
            agreement.address, agreement.agent, extended=agreement.extended, continues=replaces
        )
        self.peer_info.tls, self.peer_info.encrypted = download.connection.tls, download.connection.encrypted
        self._session_log.begin()
        self.guard.session_begins()
        # An upload that keeps failing is not news again after each rotation of the download.
        self.failure_log.clear(keep="upload" if replaces else None)
        self._farewell = None
        self.sender.keepalive = keepalive
        if is_over(self._download) and not (replaces and was_replaced(self._download)):
            self._selector.download_began(trio.current_time())
        self._agreement, self._download = agreement, download
        self.peer_info.ipv6 = control.INET6 in agreement.features
        self._set_ipv6(passes_ipv6(agreement.features), websocket=websocket)
        self._carrier.session_began()
        self._local_address = download.connection.local_address
        before, self._remote_address = self._remote_address, download.connection.remote_address
        if self._upload is not None and not replaces:
            self._upload.may_be_unseen = True
        self._machine.fire(ClientEvent.WEBSOCKET_OPENED if websocket else ClientEvent.HTTP_OPENED)
        if not replaces and is_over(self._upload):
            # The server is there again. An upload may have failed several times before the download did, so its next
            # attempt may be up to ten seconds away. Until then packets for the server would grow too old.
            self._upload_gate.wake()
        elif replaces and self._remote_address not in (None, before):
            self._upload_gate.rotate()  # the name has led to another server, and the upload belongs to the older one
        self._end_outage()

    def _set_ipv6(self, agreed: bool, *, websocket: bool) -> None:
        """Follow what was agreed on with a new download. What the server of an upload may get depends on the upload,
        too: nothing of IPv6 may reach a base server."""
        self.flows.set_ipv6(agreed)
        upload = self._upload
        if not agreed or not self.sender.streaming or (upload is not None and upload.number is not None):
            self.sender.set_ipv6(agreed)
        elif upload is not None and not websocket:
            self._upload_gate.rotate()

    async def _probe_http(self) -> Download | None:
        """Begin an upload over HTTP while the WebSocket continues. If the upload arrives, open a download and return
        it; otherwise return None."""
        self._machine.fire(ClientEvent.PROBE_BEGAN)
        self._probe_http_at = trio.current_time() + self._config.rotate_s[0]
        try:
            with ExitStack() as undo:
                number = self._selector.next_upload_number()
                upload = self._new_upload(await self._requests.put(number, self._remote_address, self.device), number)
                undo.callback(upload.connection.close)
                if await self._prove(upload):
                    download = await self._open_get(replaces=True)
                    undo.pop_all()
                    self._upload = upload
                    self._selector.http_works()
                    self._proven = upload
                    self._upload_gate.wake()
                    return download
                self._log.debug("uploads are still held back")
        except PeerError as exc:
            self._log.debug("cannot go back to HTTP: %s", exc)
        finally:
            self._machine.fire(ClientEvent.PROBE_ENDED)
        return None

    async def _prove(self, upload: Upload) -> bool:
        """Whether the server confirms that the upload arrives (`Upload.prove`). Raises PeerError."""
        self._next_upload = upload
        try:
            return await upload.prove()
        finally:
            self._next_upload = None

    def _on_download_failure(self, failure: PeerError | None, wait_s: float) -> float | None:
        """Called for each failure of a download or WebSocket, and of an attempt to open one (see `keep_streaming`)."""
        count_attempt(self.counters.ends, self._download, failure)
        self.path_mtu.stream_failed(failure)
        known = self._parameters.device_changed.is_set()  # logged by the one who replaces this client
        if not is_over(self._download):  # only a replacement failed: the present stream and the uploads continue
            self._machine.fire(ClientEvent.REPLACEMENT_FAILED)
            self.failure_log.log("download", failure, wait_s, known=known)
            return None
        self.peer_info.mark_disconnected()
        self._machine.fire(ClientEvent.LOST)
        self._outage.begin(trio.current_time())
        self._session_log.end(self._log, self._farewell or str(failure or "the server ended it"))
        if self._yields:
            return random.uniform(*TAKEOVER_RETRY_S)
        self.failure_log.log("WebSocket" if self.transport == "websocket" else "download", failure, wait_s, known=known)
        return None

    # -- uploads

    async def _open_upload(self) -> Upload:
        """Connect and begin a PUT, as soon as there is a download. Raises PeerError."""
        if self._proven is None and self._upload is not None and self._upload.over:
            await trio.sleep(END_REASON_GRACE_S)
        await self._machine.wait_uploads_allowed()
        on_schedule = not self._upload_gate.take_woken()
        if self._proven is not None:
            upload, self._proven = self._proven, None
        else:
            number = self._selector.next_upload_number() if self._agreement.extended else None
            with ExitStack() as undo:
                connection = await self._requests.put(number, self._remote_address, self.device)
                undo.callback(connection.close)
                if self.transport == "websocket":
                    raise replaced_by_websocket()
                if number is None and self._agreement.extended:  # it would carry no control frames and no IPv6
                    raise PeerError("the server became an extended one during the attempt", reason=EndReason.ENDED)
                upload = self._new_upload(connection, number)
                if number is not None:
                    older = self._upload
                    if on_schedule and older is not None and not older.over and older.seen.is_set():
                        await self._wait_until_seen(upload, number, older)
                        self._require_uploads_allowed()
                    if not upload.seen.is_set():
                        self._selector.upload_began(number, upload.began, follows=not is_over(self._upload))
                undo.pop_all()
        upload.may_be_unseen |= is_over(self._download)
        self.failure_log.note("upload", level_of(self._upload), f"upload to {upload.connection.name}")
        self._upload = upload
        self._end_outage()
        return upload

    def _require_uploads_allowed(self) -> None:
        """Raise PeerError if the download has ended meanwhile, or a WebSocket has replaced both streams."""
        if self.transport == "websocket":
            raise replaced_by_websocket()
        if not self._machine.uploads_allowed:
            raise PeerError("the download ended before the next upload was seen", reason=EndReason.ENDED)

    async def _wait_until_seen(self, upload: Upload, number: int, older: Upload) -> None:
        """Wait until the server has seen ``upload``, which is to replace ``older``, or until ``older`` has ended.

        Until then ``older`` carries the packets, because a proxy may hold the new upload while the server is busy. Not
        to be used after a change of the path, since ``older`` may have been lost with the old path.

        Raises PeerError if the server has not seen ``upload`` in time. Then ``older`` continues.
        """
        async with trio.open_nursery() as nursery:

            async def watch_older() -> None:
                await older.ended.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_older)
            failure: PeerError | None = None
            try:
                seen = await self._prove(upload)
            except PeerError as exc:
                failure = exc.without_traceback()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not older.over and not seen:
            self._selector.upload_began(number, upload.began, follows=True)
            self._select_transport()
            self._selector.upload_given_up()
            text = f"nothing of the next upload arrived within {UPLOAD_SEEN_S:.0f} s; the present one goes on"
            raise PeerError(text, reason=EndReason.SILENT)

    def _new_upload(self, connection: Connection, number: int | None) -> Upload:
        unseen = None if number is None else self._on_upload_unseen

        def takes_ipv6() -> bool:
            return number is not None and passes_ipv6(self._agreement.features)

        return Upload(connection, self.sender, self._check_upload, unseen, self.counters.ends, number, takes_ipv6)

    def _check_upload(self, head: ResponseHead, body: bytes, worked: bool) -> None:
        """Raise RefusedError unless the answer is a 200. ``worked``: the server has seen this upload."""
        served = self.transport == "http" and not is_over(self._download)
        check_status(head, self._config.server, body, method="PUT", served=served, worked=worked)

    def _on_upload_unseen(self) -> None:
        """The server has not confirmed the present upload within UPLOAD_SEEN_S."""
        self._select_transport()
        if is_held_back(self._upload, self._download):
            self._selector.warn_no_fallback(trio.current_time())

    def _select_transport(self) -> None:
        """If uploads are held back, replace the streams by a WebSocket. If the WebSocket gets no answer either, the
        path is down, and HTTP stays. The server reports arrived uploads on the download. So nothing is decided without
        a download, nor while segments of a stream are missing, since then the path loses data and no proxy holds it."""
        download, upload = self._download, self._upload
        if download is None or download.over or download.segments.missing:
            return
        if upload is not None and not upload.over and upload.segments.missing:
            return
        held = isinstance(download, Download) and download.brought_nothing
        if self._selector.try_websocket(trio.current_time(), download_held=held):
            self._download_gate.wake()

    def _on_upload_failure(self, failure: PeerError | None, wait_s: float) -> float | None:
        """As `_on_download_failure`, for uploads."""
        count_attempt(self.counters.ends, self._upload, failure)
        upload = self._upload
        if upload is not None and failure is upload.failure and upload.worked and upload.lifetime().age_s >= SETTLED_S:
            self.failure_log.clear("upload")  # it has worked since the last failure
        if upload is not None and failure is not None and failure is upload.failure:
            self._count_cut(upload, failure)
        self._selector.upload_failed(failure)
        self.path_mtu.stream_failed(failure)
        if self._upload is not None and self._upload.explained and failure is self._upload.failure:
            self._log.debug("upload: %s", failure)
        elif not self._yields and self.transport != "websocket":  # otherwise the download has logged the reason
            self.failure_log.log("upload", failure, wait_s)
        if self.transport != "websocket" and is_over(self._upload):
            self._outage.begin(trio.current_time())
        return None

    def _count_cut(self, upload: Upload, failure: PeerError) -> None:
        """Try a WebSocket if uploads that had arrived are ended on the path again and again."""
        foreign = isinstance(failure, RefusedError) and not failure.is_own
        if not upload.seen.is_set() or upload.explained or not (foreign or is_cut(failure)) or is_over(self._download):
            return
        timed = self._ages.limit(StreamKind.UPLOAD) is not None
        if self._selector.upload_cut(failure, trio.current_time(), timed=timed):
            self._download_gate.wake()

    # -- what the server sends

    async def _deliver(self, writer: DeviceWriter, reader: FrameReader, frames: list[FrameRange]) -> None:
        """Write the packets of one receive to the device. Raises PeerError, HostError."""
        if self.flows.ethernet:
            deliver_ethernet(reader.view, frames, writer, self.counters)
            return
        deliver_to_device(reader.view, frames, writer, self.counters, self.sender.send_control, ipv6=self.flows.ipv6)

    async def _on_control(self, kind: int, payload: bytes) -> None:
        """Handle one control frame. The receiver has already answered a PING. Raises PeerError, HostError."""
        if kind == control.PING:
            self._selector.warn_no_fallback(trio.current_time())
        elif kind == control.PONG:
            self.sender.answered()
            if not self.path_mtu.answered(payload):
                self.rtt.sample(control.echoed_clock(payload), time.monotonic_ns())
            self._log.debug("round trip %s", self.rtt)
        elif kind == control.PARAMS:
            offered = params.decode(payload, ipv6=control.INET6 in self._agreement.features)
            keepalive, silence_s = keepalive_policy(offered.keepalive)
            self._agreement = replace(self._agreement, keepalive=keepalive, silence_s=silence_s)
            self.sender.set_keepalive(keepalive)
            await self._parameters.apply_params(offered)
        elif kind == control.UPLOAD_SEEN:
            number = control.seen_number(payload)
            for upload in (self._upload, self._next_upload):
                if upload is not None and number in (None, upload.number):
                    upload.seen.set()
            self._selector.upload_seen(number, trio.current_time())
            self._end_outage()
        elif kind == control.BYE:
            self._take_bye(control.bye_reason(payload))

    def _take_bye(self, reason: str) -> None:
        text = reason.removeprefix(control.REPLACED)
        self._farewell = f"the server ended it: {text}"
        for stream in (self._download, self._upload):
            if stream is not None:
                stream.explained = True
        if reason.startswith(control.REPLACED):
            self._machine.fire(ClientEvent.TOKEN_TAKEN)
            self.failure_log.farewell(logging.WARNING, f"{text}; waiting until it is gone")
            end = PeerError("another machine uses this token", reason=EndReason.REPLACED)
        else:
            self.failure_log.farewell(logging.INFO, f"the server ends the session: {reason}")
            end = PeerError("the server ended the session", reason=EndReason.ENDED)
        if self._upload is not None:  # some proxies read the answer to an upload only after its end
            self._upload.end(end)
