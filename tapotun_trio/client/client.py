"""The client's transport: download and upload, or a WebSocket for both; replaced in time and mended when they break."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import trio

from ..config.model import ClientConfig
from ..cooperative import Steps
from ..datapath.counters import Counters, DropReason, Transport
from ..datapath.rtt import RoundTrip
from ..datapath.sender import AGENT_FRAME, BASE_SILENCE_S, Sender, keepalive_policy
from ..datapath.sorting import deliver
from ..datapath.tun_io import DeviceWriter
from ..errors import EndReason, HostError, PeerError
from ..host.interfaces import Host
from ..host.items import DesiredState
from ..host.net.sockets import Connection
from ..host.netlink.rewatch import Rewatch
from ..http.client import check_status
from ..log import Faults, Log, RateLimitedLog
from ..netconf.desired import describe, desired_for_client
from ..netconf.reconciler import Reconciler
from ..netconf.transport_guard import TransportGuard
from ..peer.boottime import Sleeps
from ..peer.info import PeerInfo
from ..peer.session_log import SessionLog
from ..status.model import InterfaceState, InterfaceStatus, PeerState
from ..wire import control, params
from ..wire.frames import HEADER_BYTES, FrameRange, FrameReader, receive_buffer
from ..wire.tunconf import TunConf
from .failure_log import FailureLog
from .requests import Answer, Requests
from .rotation import Failed, Open, RetryGate, keep_streaming
from .stall import Stall
from .status import client_status
from .streams import Download, Upload, count_attempt, is_over, level_of, moved, shows_who_holds_back
from .transport_choice import TransportSelector
from .websocket_stream import WebSocketStream

TICK_S: Final = 1.0
# When an upload breaks, the download may be about to say why: a server that stops, or another machine.
END_REASON_GRACE_S: Final = 0.1
DEFAULT_KEEPALIVE_S: Final = 10.0  # docs/protocol.md#timing; until the server's PARAMS say otherwise
# Another machine took the token over. We ask now and then whether it is gone, and take nothing away from it.
TAKEOVER_RETRY_S: Final = (20.0, 40.0)


class TunnelClient:
    """The two streams of one client interface. The device comes later, when the server has told its address."""

    def __init__(self, config: ClientConfig, log: Log, *, require_free: Callable[[], None] = lambda: None) -> None:
        """Raises HostError if the TLS options name a file that is of no use.

        ``require_free``: called before each connection while the device does not exist; raises HostError if it could
        not be made.
        """
        self._config = config
        self._require_free = require_free
        self._log = log
        self._selector = TransportSelector(config.transport, config.server.authority, log)
        self.guard = TransportGuard(config.transport_mark, log)
        self._requests = Requests(config, self._selector, self.guard)
        self.transport: Transport | None = None  # of the newest stream; None: none came yet
        self.counters = Counters()
        self.rtt = RoundTrip()
        self.peer_info = PeerInfo()
        self.sender = Sender(self.counters, AGENT_FRAME)
        self._session_log = SessionLog(self.counters, self.rtt)
        self._goodbye: str | None = None  # why the server ends the present session
        self._download_gate, self._upload_gate = RetryGate(), RetryGate()
        # What the server asks of the kernel, and what it shall be told to.
        self.desired: DesiredState | None = None
        self._conf: TunConf | None = None
        self._desired_known, self._attached = trio.Event(), trio.Event()
        self._writer: DeviceWriter
        self._reconciler: Reconciler
        # The newest streams, and what was agreed on the newest download.
        self._download: Download | WebSocketStream | None = None
        self._download_up = trio.Event()
        self._upload: Upload | None = None
        self._proven: Upload | None = None  # one that arrives and was not run yet
        self._replaces = self._extended = self._yielding = False
        self._at_rotation = True  # the next download is opened because it is time, and not in a hurry
        self._silence_s = BASE_SILENCE_S
        self.failure_log = FailureLog(log)
        self._goodbyes = RateLimitedLog()
        self._faults = Faults()
        self._stall, self._stall_told = Stall(), False
        self._dns: tuple[IPv4Address | IPv6Address, ...] = ()  # as the server told last

    # -- the device's side

    async def wait_for_parameters(self) -> DesiredState:
        """What the server's first answer asks of the kernel."""
        await self._desired_known.wait()
        assert self.desired is not None
        return self.desired

    def attach(self, writer: DeviceWriter, reconciler: Reconciler) -> None:
        """The device is up: received frames go to ``writer``, changed parameters to ``reconciler``."""
        self._writer, self._reconciler = writer, reconciler
        self._attached.set()

    async def reconfigure(self, config: ClientConfig) -> None:
        """Once attached: have another mark. Raises HostError; then it has the one before."""
        before, self._config = self._config, config
        try:
            if self._conf is not None:
                await self._configure(self._conf)
        except HostError:
            self._config = before
            raise

    def classify(self, view: memoryview, at: int) -> Sender | None:
        """All IPv4 goes to the server (see `device.Classify`)."""
        if view[at + HEADER_BYTES] >> 4 != 4:
            self.counters.drops[DropReason.NOT_IPV4] += 1
            return None
        return self.sender

    # -- the two streams

    async def run_download(self) -> None:
        """GET after GET, for ever. The first answer makes the plan; a later one that differs changes it."""
        try:
            await self._keep(self._open_download, self._download_gate, self._download_failed)
        finally:
            self._session_log.end(self._log, "this client stops")

    async def run_upload(self) -> None:
        """PUT after PUT, for ever, while a download shows that the server is there."""
        await self._keep(self._open_upload, self._upload_gate, self._upload_failed)

    async def _keep(self, open_stream: Open, gate: RetryGate, failed: Failed) -> None:
        try:
            await keep_streaming(
                open_stream, rotate_s=self._config.rotate_s, gate=gate, failed=failed, fault=self._fault
            )
        finally:  # whichever of the two ends last closes what neither runs any more
            if self._proven is not None:
                self._proven.connection.close()

    def _fault(self, exc: Exception) -> None:
        self._faults.log(self._log, trio.current_time(), "stream ended", exc)

    async def run_clock(self) -> None:
        """Keepalives, the ageing of the outbox, and the end of a download that fell silent; for ever."""
        sleeps = Sleeps()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            self.sender.tick(now, TICK_S)
            heard = self._download is not None and self._download.incoming.tick(now, self._silence_s)
            self.peer_info.tick(now, self.counters, heard=heard)
            self.guard.tick(now, connected=not is_over(self._download), heard=heard, silence_s=self._silence_s)
            self._select_transport()
            if self._stall.tick(now, self.counters.tx_packets, self.counters.drops[DropReason.QUEUE_AGE]):
                self._tell_of_stall()
            if slept_s := sleeps.last_s():
                self.path_changed(f"this machine slept for {slept_s:.0f} s", None)

    def _tell_of_stall(self) -> None:
        """Only while there is a download: without one its failures are the reason, and have been logged."""
        stall = self._stall
        if stall.over:
            if not self._stall_told:
                return
            self._stall_told = False
            text = f"the upload goes on after {stall.lasted_s:.0f} s; {stall.dropped} packets had grown too old"
            self.failure_log.note("stall", logging.INFO, text)
        elif not is_over(self._download):
            self._stall_told = True
            text = f"nothing was sent for {stall.lasted_s:.0f} s, and {stall.dropped} packets grew too old: "
            self.failure_log.note("stall", logging.WARNING, text + self._what_holds_the_upload())

    def _what_holds_the_upload(self) -> str:
        stream = self._download if self.transport == "websocket" else self._upload
        if stream is None or stream.over:
            return f"there is no upload ({self.failure_log.latest or 'it is being opened'})"
        path = stream.connection.path()
        if path is None:
            return "the other end takes nothing"
        return (
            f"{path.flying_bytes} bytes are not acknowledged, {path.unsent_bytes} wait in the socket, "
            f"round trip {path.rtt_s * 1e3:.0f} ms"
        )

    async def watch_path(self, host: Host) -> None:
        """Renew the streams whenever this machine's addresses, links or default routes change; for ever. While the
        host cannot tell, the streams are left to find out by themselves."""

        async def watch() -> None:
            async with host.open_changes() as changes:
                if retry.lapsed:
                    self.path_changed("this machine's addresses and routes may have changed unseen", None)
                retry.worked()
                async for change in changes:
                    self.path_changed(change.what, change.addresses)

        retry = Rewatch(self._log, "a lost path will be noticed later, by its silence")
        await retry.keep(watch)

    def path_changed(self, what: str, local_addresses: frozenset[str] | None) -> None:
        """Something happened that streams may not have survived: replace them now, or try again now.

        ``local_addresses``: those that this machine still has; a stream from another one is ended. None: not known.
        """
        self.failure_log.note("path", logging.INFO, f"{what}: renewing the streams")
        self.guard.stir()
        for stream in (self._download, self._upload):
            if stream is not None and stream.connection.has_lost_its_address(local_addresses):
                stream.end(PeerError("its local address is gone", reason=EndReason.ADDRESS_GONE))
                self._selector.forget()
        self._at_rotation = False
        self._download_gate.wake()
        self._upload_gate.wake()

    async def _open_download(self) -> Download | WebSocketStream:
        """The next download: a GET, or a WebSocket, which is an upload too. Raises PeerError; HostError if the name of
        the device is somebody else's meanwhile: then nobody's streams are to be taken over."""
        if self.desired is None:
            self._require_free()
        at_rotation, self._at_rotation = self._at_rotation, True
        self._replaces = not is_over(self._download)  # asked now: with the answer the server ends the older one
        established = self.transport == "websocket"
        tries_http = established and self._selector.automatic and at_rotation and not is_over(self._download)
        if tries_http and (download := await self._try_http()) is not None:
            return download
        if self._selector.websocket:
            try:
                return await self._open_websocket()
            except PeerError as exc:
                if not self._selector.fails(exc, trio.current_time(), established=established):
                    raise
        return await self._open_get()

    async def _open_get(self) -> Download:
        """GET, and do what the answer asks for. Raises PeerError."""
        memory = receive_buffer()  # before we ask: with its answer the server ends the present download
        answer = await self._requests.get(yields=self._yielding)
        with ExitStack() as undo:
            undo.callback(answer.connection.close)
            extended = control.CTL in answer.features
            # PARAMS follows, which says more than generation 1 can: no route shall go and come at every rotation.
            if self.desired is None or not extended:
                await self._configure(answer.conf)
            await self._attached.wait()  # also if an earlier attempt was given up while it waited for this
            reader = FrameReader(answer.head.body(), control=extended, memory=memory)
            frames = reader.prime(answer.rest)
            self._selector.offered = control.WS in answer.features
            self._extended = extended
            download = Download(answer.connection, reader, frames, self._take, self.counters.ends)
            self._download_begins(download, "http", answer)
            self._download_up.set()
            undo.pop_all()
        return download

    async def _open_websocket(self) -> WebSocketStream:
        """A WebSocket, in place of whatever there is. Raises PeerError."""
        memory = receive_buffer()  # as for a GET
        answer = await self._requests.websocket(yields=self._yielding)
        with ExitStack() as undo:
            undo.callback(answer.connection.close)
            if self.desired is None:
                await self._configure(answer.conf)
            await self._attached.wait()
            self._selector.changed()
            self._extended = True
            stream = WebSocketStream(
                answer.connection, answer.rest, self.sender, self._take, self.counters.ends, memory
            )
            self._download_begins(stream, "websocket", answer)
            self._download_is_down()  # in so far as no upload is to begin beside this
            if self._upload is not None:
                self._upload.abandon(moved())
            self._upload = None
            undo.pop_all()
        return stream

    def _download_begins(self, download: Download | WebSocketStream, transport: Transport, answer: Answer) -> None:
        stream = "WebSocket" if transport == "websocket" else "download"
        kind = "extended" if self._extended else "base"
        level = logging.DEBUG if self._replaces and transport == self.transport else logging.INFO
        text = f"{stream} from {download.connection.name} ({kind}): {describe(answer.conf)}"
        self.failure_log.note("download", level, text)
        agent = control.agent(answer.head.headers.get(control.AGENT_HEADER))
        self.peer_info.arrive(download.connection.name, agent, extended=self._extended, continues=self._replaces)
        self._session_log.begin()
        self.guard.session_begins()
        self.failure_log.clear()
        self._yielding, self._goodbye = False, None
        keepalive_s = DEFAULT_KEEPALIVE_S if self._extended else None
        self.sender.keepalive, self._silence_s = keepalive_policy(keepalive_s, answer.conf.generation)
        self._download, self.transport = download, transport
        if not self._replaces and is_over(self._upload):
            # The server is there again. An upload may have failed several times before the download noticed, and would
            # wait for up to ten seconds now, while everything for the server grows too old.
            self._upload_gate.wake()

    async def _try_http(self) -> Download | None:
        """While a WebSocket carries on: begin an upload, and if it arrives, go back to HTTP. None if it does not."""
        try:
            with ExitStack() as undo:
                number = self._selector.number()
                self._upload = upload = self._new_upload(await self._requests.put(number), number)
                undo.callback(upload.connection.close)
                undo.callback(setattr, self, "_upload", None)
                if await upload.prove():
                    download = await self._open_get()
                    undo.pop_all()
                    self._selector.back_to_http()
                    self._proven = upload
                    self._upload_gate.wake()
                    return download
                self._log.debug("uploads are still held back")
        except PeerError as exc:
            self._log.debug("HTTP again: %s", exc)
        return None

    async def _open_upload(self) -> Upload:
        """Connect and begin a PUT, as soon as there is a download. Raises PeerError."""
        if self._proven is None and self._upload is not None and self._upload.over:
            await trio.sleep(END_REASON_GRACE_S)
        await self._download_up.wait()
        if self._proven is not None:
            upload, self._proven = self._proven, None
        else:
            with ExitStack() as undo:
                connection = await self._requests.put(number := self._selector.number() if self._extended else None)
                undo.callback(connection.close)
                if self.transport == "websocket":
                    raise moved()
                upload = self._new_upload(connection, number)
                if number is not None:
                    self._selector.upload_begins(number, trio.current_time(), follows=not is_over(self._upload))
                undo.pop_all()
        self.failure_log.note("upload", level_of(self._upload), f"upload to {upload.connection.name}")
        self._upload = upload
        return upload

    def _new_upload(self, connection: Connection, number: int | None) -> Upload:
        unseen, check = None if number is None else self._upload_unseen, partial(check_status, url=self._config.server)
        return Upload(connection, self.sender, check, unseen, self.counters.ends, number)

    def _upload_unseen(self) -> None:
        self._select_transport()
        if shows_who_holds_back(self._download, self._upload):
            self._selector.warn_no_fallback(trio.current_time())

    def _select_transport(self) -> None:
        """Where uploads are held back, go on with a WebSocket. Not if nobody answers that either: then the path is
        down, and no proxy is to blame."""
        if self._selector.change(trio.current_time()):
            self._at_rotation = False
            self._download_gate.wake()

    @property
    def state(self) -> PeerState:
        """Connected: packets pass both ways, as far as the server has said."""
        if self._yielding:
            return "replaced"
        upward = not is_over(self._upload) and self._selector.passes(trio.current_time())
        if is_over(self._download) or not (upward or self.transport == "websocket"):
            return "connecting"
        return "connected"

    # -- see lifecycle.tunnel.Tunnel

    sessions: Final = None  # only a server has them

    @property
    def interface_state(self) -> InterfaceState:
        """Up while packets pass both ways."""
        return "up" if self.state == "connected" else "connecting"

    @property
    def problem(self) -> str | None:
        """Why it is not connected, as far as it is known."""
        return "another machine uses this client's token" if self.state == "replaced" else self.failure_log.latest

    def status(self, common: InterfaceStatus) -> Steps[InterfaceStatus]:
        """``common`` with what the client knows, in one step."""
        yield from ()
        return client_status(common, self, self._config.server.authority, self.desired, self.guard.conflicts)

    def _download_failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        count_attempt(self.counters.ends, self._download, failure)
        if not is_over(self._download):  # an attempt to replace it: the present one goes on, and so do the uploads
            self.failure_log.log("download", failure, wait_s)
            return None
        self.peer_info.leave()
        self._download_is_down()
        self._session_log.end(self._log, self._goodbye or str(failure or "the server ended it"))
        if self._yielding:
            return random.uniform(*TAKEOVER_RETRY_S)
        self.failure_log.log("WebSocket" if self.transport == "websocket" else "download", failure, wait_s)
        return None

    def _download_is_down(self) -> None:
        self._selector.download_ends()
        if self._download_up.is_set():  # else somebody may be waiting for this very event
            self._download_up = trio.Event()

    def _upload_failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        count_attempt(self.counters.ends, self._upload, failure)
        if not self._yielding and self.transport != "websocket":  # else the download has said why
            self.failure_log.log("upload", failure, wait_s)
        return None

    # -- what comes down

    async def _configure(self, conf: TunConf) -> None:
        self.guard.refuse_own(conf.addresses)
        told, self._conf, desired = self._conf, conf, desired_for_client(conf, self._config.mark)
        if self.desired is None:
            self.desired = desired
            self._desired_known.set()
        await self._attached.wait()
        if desired != self.desired:
            if conf != told:
                self._log.info("the server changed this interface: %s", describe(conf))
            await self._reconciler.apply(desired)
            self.desired = desired  # not before: cancelled in between, the next answer applies it again

    async def _take(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        echoes, inward = list[bytes](), list[FrameRange]()
        try:
            deliver(reader.view, frames, self.counters, inward, echoes)
        finally:  # at a bad frame too: what stood before it is good
            self._writer.write_all(reader.view, inward, self.counters.drops)
        for echo in echoes:
            self.sender.send_control(echo)  # a generation 2 ping: the very same frame goes back
        if reader.controls:
            controls, reader.controls = reader.controls, []
            ping: bytes | None = None
            for kind, payload in controls:
                if kind == control.PING:
                    ping = payload
                else:
                    await self._take_control(kind, payload)
            if ping is not None:  # of several the last one is answered, see `serving`
                self.sender.send_control(control.encode(control.PONG, ping))
                self._selector.warn_no_fallback(trio.current_time())

    async def _take_control(self, kind: int, payload: bytes) -> None:
        if kind == control.PONG:
            self.rtt.sample(control.echoed_clock(payload), time.monotonic_ns())
            self.sender.answered()
            self._log.debug("round trip %s", self.rtt)
        elif kind == control.PARAMS:
            told = params.decode(payload)
            if told.device != "tun":
                raise PeerError(
                    f"the server wants a {told.device} device, we have tun only", reason=EndReason.BAD_PARAMS
                )
            keepalive, self._silence_s = keepalive_policy(told.keepalive)
            self.sender.set_keepalive(keepalive)
            if told.dns != self._dns and told.dns:
                self._log.info("the server offers DNS at %s; not set here", ", ".join(map(str, told.dns)))
            self._dns = told.dns
            await self._configure(TunConf(told.mtu, told.addresses, told.routes))
        elif kind == control.UPLOAD_SEEN:
            number = control.seen_number(payload)
            if self._upload is not None and number in (None, self._upload.number):
                self._upload.seen.set()
            self._selector.upload_seen(number, trio.current_time())
        elif kind == control.BYE:
            self._take_bye(control.bye_reason(payload))

    def _take_bye(self, reason: str) -> None:
        said = reason.removeprefix(control.REPLACED)
        self._goodbye = f"the server said goodbye: {said}"
        if not reason.startswith(control.REPLACED):
            self._goodbyes.log(self._log, logging.INFO, trio.current_time(), f"the server says goodbye: {reason}")
            return
        self._yielding = True
        self._download_is_down()  # no upload either, until a download is ours again
        self._goodbyes.log(self._log, logging.WARNING, trio.current_time(), f"{said}; waiting until it is gone")
        if self._upload is not None:
            self._upload.end(PeerError("another machine uses this token", reason=EndReason.REPLACED))
