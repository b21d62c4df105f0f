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
from ..errors import HostError, PeerError
from ..host.plan import Plan
from ..host.ports import Host
from ..host.sockets import Connection
from ..http.client import check_status
from ..log import Log, Sparingly
from ..status.model import PeerState
from ..wire import control, params
from ..wire.frames import HEADER_BYTES, FrameReader, Span
from ..wire.tunconf import TunConf
from . import counters as why
from .carrier import Carrier
from .client_streams import Download, Upload, count_attempt, is_over, level_of, moved, shows_who_holds_back
from .client_websocket import WebSocketStream
from .clocks import Sleeps
from .complaints import Complaints
from .counters import Counters, Transport
from .device import DeviceWriter
from .plans import client_plan, describe
from .presence import Presence
from .programmer import Programmer
from .requests import Answer, Requests
from .rotation import Failed, Open, Waits, keep_streaming
from .rtt import RoundTrip
from .sender import BASE_SILENCE_S, WHO_WE_ARE, Sender, keeping_alive
from .sorting import sort_frames
from .summary import Summary

TICK_S: Final = 1.0
# When an upload breaks, the download may be about to say why: a server that stops, or another machine.
HEARSAY_S: Final = 0.1
DEFAULT_KEEPALIVE_S: Final = 10.0  # PROTOCOL; until the server's PARAMS say otherwise
# Another machine took the token over. We ask now and then whether it is gone, and take nothing away from it.
YIELD_S: Final = (20.0, 40.0)


class TunnelClient:
    """The two streams of one client interface. The device comes later, when the server has told its address."""

    def __init__(self, config: ClientConfig, log: Log) -> None:
        """Raises HostError if the TLS options name a file that is of no use."""
        self._config = config
        self._log = log
        self._carrier = Carrier(config.transport, config.server.authority, log)
        self._requests = Requests(config, self._carrier)
        # Called before each connection while there is no device: raises HostError if it could not be made.
        self.require_free: Callable[[], None] = lambda: None
        self.transport: Transport | None = None  # of the newest stream; None: none came yet
        self.counters = Counters()
        self.rtt = RoundTrip()
        self.presence = Presence()
        self.sender = Sender(self.counters, WHO_WE_ARE)
        self._summary = Summary(self.counters, self.rtt)
        self._goodbye: str | None = None  # why the server ends the present session
        self._download_waits, self._upload_waits = Waits(), Waits()
        # What the server asks of the kernel, and what it shall be told to.
        self.plan: Plan | None = None
        self._conf: TunConf | None = None
        self._planned, self._attached = trio.Event(), trio.Event()
        self._writer: DeviceWriter
        self._programmer: Programmer
        # The newest streams, and what was agreed on the newest download.
        self._download: Download | WebSocketStream | None = None
        self._download_up = trio.Event()
        self._upload: Upload | None = None
        self._proven: Upload | None = None  # one that arrives and was not run yet
        self._replaces = self._extended = self._yielding = False
        self._at_rotation = True  # the next download is opened because it is time, and not in a hurry
        self._silence_s = BASE_SILENCE_S
        self.complaints = Complaints(log)
        self._goodbyes = Sparingly()
        self._dns: tuple[IPv4Address | IPv6Address, ...] = ()  # as the server told last

    # -- the device's side

    async def wait_for_plan(self) -> Plan:
        """What the server's first answer asks of the kernel."""
        await self._planned.wait()
        assert self.plan is not None
        return self.plan

    def attach(self, writer: DeviceWriter, programmer: Programmer) -> None:
        """The device is up: received frames go to ``writer``, changed parameters to ``programmer``."""
        self._writer, self._programmer = writer, programmer
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
            self.counters.drops[why.NOT_IPV4] += 1
            return None
        return self.sender

    # -- the two streams

    async def run_download(self) -> None:
        """GET after GET, for ever. The first answer makes the plan; a later one that differs changes it."""
        try:
            await self._keep(self._open_download, self._download_waits, self._download_failed)
        finally:
            self._summary.end(self._log, "this client stops")

    async def run_upload(self) -> None:
        """PUT after PUT, for ever, while a download shows that the server is there."""
        await self._keep(self._open_upload, self._upload_waits, self._upload_failed)

    async def _keep(self, open_stream: Open, waits: Waits, failed: Failed) -> None:
        try:
            await keep_streaming(open_stream, rotate_s=self._config.rotate_s, waits=waits, failed=failed)
        finally:  # whichever of the two ends last closes what neither runs any more
            if self._proven is not None:
                self._proven.connection.close()

    async def run_clock(self) -> None:
        """Keepalives, the ageing of the outbox, and the end of a download that fell silent; for ever."""
        sleeps = Sleeps()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            self.sender.tick(now, TICK_S)
            heard = self._download is not None and self._download.incoming.tick(now, self._silence_s)
            self.presence.tick(now, self.counters, heard=heard)
            self._change_carrier()
            if slept_s := sleeps.last_s():
                self.path_changed(f"this machine slept for {slept_s:.0f} s", None)

    async def watch_path(self, host: Host) -> None:
        """Renew the streams whenever this machine's addresses, links or default routes change; for ever, unless
        the host cannot tell: then the streams are left to find out by themselves."""
        try:
            async with host.open_changes() as changes:
                async for change in changes:
                    self.path_changed(change.what, change.addresses)
        except HostError as exc:
            self._log.warning("%s; a lost path will be noticed later, by its silence", exc)

    def path_changed(self, what: str, local_addresses: frozenset[str] | None) -> None:
        """Something happened that streams may not have survived: replace them now, or try again now.

        ``local_addresses``: those that this machine still has; a stream from another one is ended. None: not known.
        """
        self.complaints.news("path", logging.INFO, f"{what}: renewing the streams")
        for stream in (self._download, self._upload):
            if stream is not None and stream.connection.has_lost_its_address(local_addresses):
                stream.end(PeerError("its local address is gone", reason="address-gone"))
                self._carrier.forget()
        self._at_rotation = False
        self._download_waits.cut()
        self._upload_waits.cut()

    async def _open_download(self) -> Download | WebSocketStream:
        """The next download: a GET, or a WebSocket, which is an upload too. Raises PeerError; HostError if the name of
        the device is somebody else's meanwhile: then nobody's streams are to be taken over."""
        if self.plan is None:
            self.require_free()
        at_rotation, self._at_rotation = self._at_rotation, True
        self._replaces = not is_over(self._download)  # asked now: with the answer the server ends the older one
        established = self.transport == "websocket"
        tries_http = established and self._carrier.automatic and at_rotation and not is_over(self._download)
        if tries_http and (download := await self._try_http()) is not None:
            return download
        if self._carrier.websocket:
            try:
                return await self._open_websocket()
            except PeerError as exc:
                if not self._carrier.fails(exc, trio.current_time(), established=established):
                    raise
        return await self._open_get()

    async def _open_get(self) -> Download:
        """GET, and do what the answer asks for. Raises PeerError."""
        answer = await self._requests.get(yields=self._yielding)
        with ExitStack() as undo:
            undo.callback(answer.connection.close)
            extended = control.CTL in answer.features
            # PARAMS follows, which says more than generation 1 can: no route shall go and come at every rotation.
            if self.plan is None or not extended:
                await self._configure(answer.conf)
            await self._attached.wait()  # also if an earlier attempt was given up while it waited for this
            reader = FrameReader(answer.head.body(), control=extended)
            frames = reader.prime(answer.rest)
            undo.pop_all()
        self._carrier.offered = control.WS in answer.features
        self._extended = extended
        download = Download(answer.connection, reader, frames, self._take, self.counters.ends)
        self._download_begins(download, "http", answer)
        self._download_up.set()
        return download

    async def _open_websocket(self) -> WebSocketStream:
        """A WebSocket, in place of whatever there is. Raises PeerError."""
        answer = await self._requests.websocket(yields=self._yielding)
        with ExitStack() as undo:
            undo.callback(answer.connection.close)
            if self.plan is None:
                await self._configure(answer.conf)
            await self._attached.wait()
            undo.pop_all()
        self._carrier.changed()
        self._extended = True
        stream = WebSocketStream(answer.connection, answer.rest, self.sender, self._take, self.counters.ends)
        self._download_begins(stream, "websocket", answer)
        self._download_is_down()  # in so far as no upload is to begin beside this
        if self._upload is not None:
            self._upload.abandon(moved())
        self._upload = None
        return stream

    def _download_begins(self, download: Download | WebSocketStream, transport: Transport, answer: Answer) -> None:
        stream = "WebSocket" if transport == "websocket" else "download"
        kind = "extended" if self._extended else "base"
        level = logging.DEBUG if self._replaces and transport == self.transport else logging.INFO
        text = f"{stream} from {download.connection.name} ({kind}): {describe(answer.conf)}"
        self.complaints.news("download", level, text)
        agent = control.agent(answer.head.headers.get(control.AGENT_HEADER))
        self.presence.arrive(download.connection.name, agent, extended=self._extended, continues=self._replaces)
        self._summary.begin()
        self.complaints.clear()
        self._yielding, self._goodbye = False, None
        self.sender.pinging, self._silence_s = keeping_alive(DEFAULT_KEEPALIVE_S if self._extended else None)
        self._download, self.transport = download, transport

    async def _try_http(self) -> Download | None:
        """While a WebSocket carries on: begin an upload, and if it arrives, go back to HTTP. None if it does not."""
        try:
            with ExitStack() as undo:
                number = self._carrier.number()
                self._upload = upload = self._new_upload(await self._requests.put(number), number)
                undo.callback(upload.connection.close)
                undo.callback(setattr, self, "_upload", None)
                if await upload.prove():
                    download = await self._open_get()
                    undo.pop_all()
                    self._carrier.back_to_http()
                    self._proven = upload
                    self._upload_waits.cut()
                    return download
                self._log.debug("uploads are still held back")
        except PeerError as exc:
            self._log.debug("HTTP again: %s", exc)
        return None

    async def _open_upload(self) -> Upload:
        """Connect and begin a PUT, as soon as there is a download. Raises PeerError."""
        if self._proven is None and self._upload is not None and self._upload.over:
            await trio.sleep(HEARSAY_S)
        await self._download_up.wait()
        if self._proven is not None:
            upload, self._proven = self._proven, None
        else:
            connection = await self._requests.put(number := self._carrier.number() if self._extended else None)
            if self.transport == "websocket":
                connection.close()
                raise moved()
            upload = self._new_upload(connection, number)
            if number is not None:
                self._carrier.upload_begins(number, trio.current_time(), follows=not is_over(self._upload))
        self.complaints.news("upload", level_of(self._upload), f"upload to {upload.connection.name}")
        self._upload = upload
        return upload

    def _new_upload(self, connection: Connection, number: int | None) -> Upload:
        unseen, check = None if number is None else self._upload_unseen, partial(check_status, url=self._config.server)
        return Upload(connection, self.sender, check, unseen, self.counters.ends, number)

    def _upload_unseen(self) -> None:
        self._change_carrier()
        if shows_who_holds_back(self._download, self._upload):
            self._carrier.blame_if_helpless(trio.current_time())

    def _change_carrier(self) -> None:
        """Where uploads are held back, go on with a WebSocket. Not if nobody answers that either: then the path is
        down, and no proxy is to blame."""
        if self._carrier.change(trio.current_time()):
            self._at_rotation = False
            self._download_waits.cut()

    @property
    def state(self) -> PeerState:
        """Connected: packets pass both ways, as far as the server has said."""
        if self._yielding:
            return "replaced"
        upward = not is_over(self._upload) and self._carrier.passes(trio.current_time())
        if is_over(self._download) or not (upward or self.transport == "websocket"):
            return "connecting"
        return "connected"

    def _download_failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        count_attempt(self.counters.ends, self._download, failure)
        self.presence.leave()
        self._download_is_down()
        self._summary.end(self._log, self._goodbye or str(failure or "the server ended it"))
        if self._yielding:
            return random.uniform(*YIELD_S)
        self.complaints.log("WebSocket" if self.transport == "websocket" else "download", failure, wait_s)
        return None

    def _download_is_down(self) -> None:
        self._carrier.download_ends()
        if self._download_up.is_set():  # else somebody may be waiting for this very event
            self._download_up = trio.Event()

    def _upload_failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        count_attempt(self.counters.ends, self._upload, failure)
        if not self._yielding and self.transport != "websocket":  # else the download has said why
            self.complaints.log("upload", failure, wait_s)
        return None

    # -- what comes down

    async def _configure(self, conf: TunConf) -> None:
        told, self._conf, plan = self._conf, conf, client_plan(conf, self._config.mark)
        if self.plan is None:
            self.plan = plan
            self._planned.set()
        await self._attached.wait()
        if plan != self.plan:
            if conf != told:
                self._log.info("the server changed this interface: %s", describe(conf))
            await self._programmer.apply(plan)
            self.plan = plan  # not before: cancelled in between, the next answer applies it again

    async def _take(self, reader: FrameReader, frames: list[Span]) -> None:
        echoes, inward = list[bytes](), list[Span]()
        try:
            sort_frames(reader.view, frames, self.counters, inward, echoes)
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
                self._carrier.blame_if_helpless(trio.current_time())

    async def _take_control(self, kind: int, payload: bytes) -> None:
        if kind == control.PONG:
            self.rtt.sample(control.echoed_clock(payload), time.monotonic_ns())
            self.sender.answered()
            self._log.debug("round trip %s", self.rtt)
        elif kind == control.PARAMS:
            told = params.decode(payload)
            if told.device != "tun":
                raise PeerError(f"the server wants a {told.device} device, we have tun only", reason="bad-params")
            pinging, self._silence_s = keeping_alive(told.keepalive)
            self.sender.go_on_with(pinging)
            if told.dns != self._dns and told.dns:
                self._log.info("the server offers DNS at %s; not set here", ", ".join(map(str, told.dns)))
            self._dns = told.dns
            await self._configure(TunConf(told.mtu, told.addresses, told.routes))
        elif kind == control.UPLOAD_SEEN:
            number = control.seen_number(payload)
            if self._upload is not None and number in (None, self._upload.number):
                self._upload.seen.set()
            self._carrier.upload_seen(number, trio.current_time())
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
            self._upload.end(PeerError("another machine uses this token", reason="replaced"))
