"""The client's transport: a download and an upload, each replaced in time and mended when it breaks."""

from __future__ import annotations

import logging
import random
import secrets
import time
from contextlib import ExitStack
from typing import Final

import trio

from ..config.model import ClientConfig
from ..errors import HostError, PeerError
from ..host.plan import Plan
from ..host.ports import Host
from ..host.tls import client_context
from ..http.client import RESPONSE_S, check_status, open_connection, read_response, send_request
from ..http.heads import ResponseHead
from ..log import Log, Sparingly
from ..wire import control, params, tunconf
from ..wire.frames import ECHO_FIRST_BYTE, ECHO_PACKET_BYTES, GSO_TYPE_AT, HEADER_BYTES, LENGTH_BYTES, FrameReader
from ..wire.tunconf import TunConf
from ..wire.vnet import base_peer_accepts, is_bounded
from . import counters as why
from .client_streams import UPLOAD_SEEN_S, Download, Upload
from .counters import Counters
from .device import DeviceWriter
from .plans import client_plan
from .programmer import Programmer
from .rotation import Waits, keep_streaming
from .rtt import RoundTrip
from .sender import BASE_PINGING, MAX_CONTROLS, SILENT_KEEPALIVES, Sender, extended_pinging

TICK_S: Final = 1.0
# When an upload breaks, the download may be about to say why: a server that stops, or another machine.
HEARSAY_S: Final = 0.1
SUSPENDED_S: Final = 2.0  # a jump of the boot clock against the monotonic one by this much is a suspend
DEFAULT_KEEPALIVE_S: Final = 10.0  # PROTOCOL; until the server's PARAMS say otherwise
BASE_SILENCE_S: Final = 60.0  # PROTOCOL: a base server pings after 55 s
# Another machine took the token over. We ask now and then whether it is gone, and take nothing away from it.
YIELD_S: Final = (20.0, 40.0)


class TunnelClient:
    """The two streams of one client interface. The device comes later, when the server has told its address."""

    def __init__(self, config: ClientConfig, log: Log) -> None:
        """Raises HostError if the TLS options name a file that is of no use."""
        self._config = config
        self._log = log
        self._tls = client_context(config.tls) if config.server.scheme == "https" else None
        self._session_id = secrets.token_hex(16)
        self.counters = Counters()
        self.rtt = RoundTrip()
        self._sender = Sender(self.counters)
        self._waits = Waits()
        # What the server asks of the kernel, and what it shall be told to.
        self._plan: Plan | None = None
        self._planned = trio.Event()
        self._attached = trio.Event()
        self._writer: DeviceWriter
        self._programmer: Programmer
        # The newest streams, and what was agreed on the newest download.
        self._download: Download | None = None
        self._download_up = trio.Event()
        self._upload: Upload | None = None
        self._unseen: Upload | None = None  # an upload of which the server has seen nothing in time
        self._extended = False
        self._silence_s = BASE_SILENCE_S
        self._yielding = False
        self._complaints: dict[str, str] = {}
        self._goodbyes = Sparingly()

    # -- the device's side

    async def wait_for_plan(self) -> Plan:
        """What the server's first answer asks of the kernel."""
        await self._planned.wait()
        assert self._plan is not None
        return self._plan

    def attach(self, writer: DeviceWriter, programmer: Programmer) -> None:
        """The device is up: received frames go to ``writer``, changed parameters to ``programmer``."""
        self._writer, self._programmer = writer, programmer
        self._attached.set()

    def classify(self, view: memoryview, at: int) -> Sender | None:
        """All IPv4 goes to the server (see `device.Classify`)."""
        if view[at + HEADER_BYTES] >> 4 != 4:
            self.counters.drops[why.NOT_IPV4] += 1
            return None
        return self._sender

    # -- the two streams

    async def run_download(self) -> None:
        """GET after GET, for ever. The first answer makes the plan; a later one that differs changes it."""
        await keep_streaming(
            self._open_download, rotate_s=self._config.rotate_s, waits=self._waits, failed=self._download_failed
        )

    async def run_upload(self) -> None:
        """PUT after PUT, for ever, while a download shows that the server is there."""
        await keep_streaming(
            self._open_upload, rotate_s=self._config.rotate_s, waits=self._waits, failed=self._upload_failed
        )

    async def run_clock(self) -> None:
        """Keepalives, the ageing of the outbox, and the end of a download that fell silent; for ever."""
        asleep_s = _time_asleep()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            self._sender.tick(now, TICK_S)
            if self._download is not None:
                self._download.incoming.tick(now, self._silence_s)
            before_s, asleep_s = asleep_s, _time_asleep()
            if asleep_s - before_s > SUSPENDED_S:
                self.path_changed(f"this machine slept for {asleep_s - before_s:.0f} s", None)

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
        self._log.info("%s: renewing the streams", what)
        gone = PeerError("its local address is gone", reason="address-gone")
        for stream in (self._download, self._upload):
            if stream is not None and local_addresses is not None:
                local = stream.connection.local_address
                if local is not None and local not in local_addresses:
                    stream.end(gone)
        self._waits.cut()

    async def _open_download(self) -> Download:
        """Connect, GET, and do what the answer asks for. Raises PeerError."""
        url = self._config.server
        headers = [
            ("x-api-key", self._config.token.reveal()),
            (control.FEATURES_HEADER, control.offer()),
            (control.SESSION_HEADER, self._session_id),
        ]
        if self._yielding:
            headers.append((control.YIELD_HEADER, "1"))
        quiet = _rotation_is_quiet(self._download)
        connection = await open_connection(url, self._tls, self._config.transport_mark)
        with ExitStack() as undo:
            undo.callback(connection.close)
            await send_request(connection, "GET", url, headers)
            with trio.move_on_after(RESPONSE_S) as deadline:
                head, rest = await read_response(connection, "GET")
            if deadline.cancelled_caught:
                raise PeerError(f"{url.authority} did not answer within {RESPONSE_S:.0f} s", reason="silent")
            check_status(head, url)
            conf = _tun_conf(head, url.authority)
            extended = control.CTL in control.agree(head.headers.get(control.FEATURES_HEADER))
            # PARAMS follows, which says more than generation 1 can: no route shall go and come at every rotation.
            if self._plan is None or not extended:
                await self._configure(conf)
            await self._attached.wait()  # also if an earlier attempt was given up while it waited for this
            reader = FrameReader(head.body(), control=extended)
            frames = reader.prime(rest)
            undo.pop_all()
        kind = "extended" if extended else "base"
        self._log.log(quiet, "download from %s (%s): %s", connection.name, kind, _describe(conf))
        self._complaints.clear()
        self._yielding = False
        self._extended = extended
        self._keep_alive(DEFAULT_KEEPALIVE_S if extended else None)
        self._download = Download(connection, reader, frames, self._take, self.counters.ends)
        self._download_up.set()
        return self._download

    async def _open_upload(self) -> Upload:
        """Connect and begin a PUT, as soon as there is a download. Raises PeerError."""
        if self._upload is not None and self._upload.over:
            await trio.sleep(HEARSAY_S)
        await self._download_up.wait()
        quiet = _rotation_is_quiet(self._upload)
        url, extended = self._config.server, self._extended
        headers = [("x-api-key", self._config.token.reveal()), ("Transfer-Encoding", "chunked")]
        if extended:
            headers.append((control.SESSION_HEADER, self._session_id))
        connection = await open_connection(url, self._tls, self._config.transport_mark)
        with ExitStack() as undo:
            undo.callback(connection.close)
            await send_request(connection, "PUT", url, headers)
            undo.pop_all()
        self._log.log(quiet, "upload to %s", connection.name)
        unseen = self._upload_unseen if extended else None
        self._upload = Upload(connection, self._sender, self._check_answer, unseen, self.counters.ends)
        return self._upload

    def _download_failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        self._count_attempt(self._download, failure)
        self._download_is_down()
        if self._yielding:
            return random.uniform(*YIELD_S)
        self._complain("download", failure, wait_s)
        return None

    def _download_is_down(self) -> None:
        if self._download_up.is_set():  # else somebody may be waiting for this very event
            self._download_up = trio.Event()

    def _upload_failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        self._count_attempt(self._upload, failure)
        if not self._yielding:  # else the download has said why
            self._complain("upload", failure, wait_s)
        return None

    def _count_attempt(self, stream: Download | Upload | None, failure: PeerError | None) -> None:
        """Count a failure, unless it ended this stream, which has counted it."""
        if failure is not None and (stream is None or stream.failure is not failure):
            self.counters.ends[failure.reason] += 1

    def _upload_unseen(self) -> None:
        """The server has not said that the upload's first bytes came. If it still says something else, they are
        held back; if it says nothing at all, the path is down, and no proxy is to blame.

        It has said something if the download began with or after the upload, or brought something since; and the
        path is up if whoever is at the other end of the upload's connection took all of it. Else its next PING tells.
        """
        self._unseen = self._upload
        if self._upload is None or self._download is None:
            return
        path = self._upload.connection.path()
        taken = path is None or not (path.flying_bytes or path.unsent_bytes)
        if taken and self._download.heard_since(self._upload.began - UPLOAD_SEEN_S):
            self._blame_the_path()

    def _blame_the_path(self) -> None:
        if self._unseen is None or self._unseen.over:
            return
        self._unseen = None
        self._log.warning(
            "something between here and %s holds the upload back: no byte of it arrived within %.0f s; "
            "let the proxy stream request bodies (nginx: proxy_http_version 1.1 and proxy_request_buffering off)",
            self._config.server.authority,
            UPLOAD_SEEN_S,
        )

    def _check_answer(self, head: ResponseHead) -> None:
        check_status(head, self._config.server)

    # -- what comes down

    async def _configure(self, conf: TunConf) -> None:
        plan = client_plan(conf, self._config.mark)
        if self._plan is None:
            self._plan = plan
            self._planned.set()
        await self._attached.wait()
        if plan != self._plan:
            self._log.info("the server changed this interface: %s", _describe(conf))
            await self._programmer.apply(plan)
            self._plan = plan  # not before: cancelled in between, the next answer applies it again

    async def _take(self, reader: FrameReader, frames: list[tuple[int, int]]) -> None:
        view, write, counters = reader.view, self._writer.write, self.counters
        echoes: list[bytes] = []
        for start, stop in frames:
            first = view[start + HEADER_BYTES]
            if first >> 4 != 4:
                if first == ECHO_FIRST_BYTE and stop - start == HEADER_BYTES + ECHO_PACKET_BYTES:
                    if len(echoes) < MAX_CONTROLS:  # PROTOCOL wants each back; a flood is none of it
                        echoes.append(bytes(view[start:stop]))
                else:
                    self._take_other(first)
                continue
            if view[start + GSO_TYPE_AT] and not is_bounded(view[start:stop]):
                raise PeerError("super-packet of absurdly small packets", reason="bad-vnet")
            counters.rx_packets += 1
            counters.rx_bytes += stop - start - HEADER_BYTES
            if not write(view[start + LENGTH_BYTES : stop]):
                if not base_peer_accepts(view[start:stop]):
                    raise PeerError("frame with an impossible vnet header", reason="bad-vnet")
                counters.drops[why.DEVICE_REFUSED] += 1
        for echo in echoes:
            self._sender.send_control(echo)  # a generation 2 ping: the very same frame goes back
        if reader.controls:
            controls, reader.controls = reader.controls, []
            ping: bytes | None = None
            for kind, payload in controls:
                if kind == control.PING:
                    ping = payload
                else:
                    await self._take_control(kind, payload)
            if ping is not None:  # of several the last one is answered, see `serving`
                self._sender.send_control(control.encode(control.PONG, ping))
                self._blame_the_path()

    def _take_other(self, first: int) -> None:
        if first >> 4 == 6:
            self.counters.drops[why.NOT_IPV4] += 1
        else:
            raise PeerError("frame without an IP packet", reason="bad-frame")

    async def _take_control(self, kind: int, payload: bytes) -> None:
        if kind == control.PONG:
            self.rtt.sample(control.echoed_clock(payload), time.monotonic_ns())
            self._sender.answered()
            self._log.debug("round trip %s", self.rtt)
        elif kind == control.PARAMS:
            told = params.decode(payload)
            self._keep_alive(told.keepalive)
            await self._configure(TunConf(told.mtu, told.addresses, told.routes))
        elif kind == control.UPLOAD_SEEN and self._upload is not None:
            self._upload.seen.set()
            self._unseen = None
        elif kind == control.BYE:
            self._take_bye(control.bye_reason(payload))

    def _keep_alive(self, keepalive_s: float | None) -> None:
        """How both streams are kept alive and known to be dead; None: by the rules for a base server."""
        if keepalive_s is None:
            self._sender.pinging = BASE_PINGING
            self._silence_s = BASE_SILENCE_S
        else:
            self._sender.pinging = extended_pinging(keepalive_s)
            self._silence_s = SILENT_KEEPALIVES * keepalive_s

    def _take_bye(self, reason: str) -> None:
        if not reason.startswith(control.REPLACED):
            self._goodbyes.log(self._log, logging.INFO, trio.current_time(), f"the server says goodbye: {reason}")
            return
        self._yielding = True
        self._download_is_down()  # no upload either, until a download is ours again
        text = f"{reason.removeprefix(control.REPLACED)}; waiting until it is gone"
        self._goodbyes.log(self._log, logging.WARNING, trio.current_time(), text)
        if self._upload is not None:
            self._upload.end(PeerError("another machine uses this token", reason="replaced"))

    def _complain(self, stream: str, failure: PeerError | None, wait_s: float) -> None:
        """Log a failure; one that only repeats itself, quietly."""
        text = "ended by the server" if failure is None else str(failure)
        repeated = self._complaints.get(stream) == text
        level = logging.DEBUG if repeated else logging.INFO if failure is None else logging.WARNING
        self._log.log(level, "%s: %s; trying again in %.1f s", stream, text, wait_s)
        self._complaints[stream] = text


def _tun_conf(head: ResponseHead, authority: str) -> TunConf:
    value = head.headers.get("x-tun-conf")
    if value is None:
        raise PeerError(f"{authority} answered without x-tun-conf: no tapotun server at this URL", reason="bad-conf")
    return tunconf.decode(value)


def _time_asleep() -> float:
    """Seconds that this machine has been suspended since it booted (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _rotation_is_quiet(present: Download | Upload | None) -> int:
    """The log level of a stream's beginning: it is news only if it does not replace one that still runs."""
    return logging.INFO if present is None or present.over else logging.DEBUG


def _describe(conf: TunConf) -> str:
    text = f"address {', '.join(map(str, conf.addresses))}, MTU {conf.mtu}"
    return f"{text}, routes {', '.join(map(str, conf.routes))}" if conf.routes else text
