"""The order of the measurements. Each step does only what the one before has shown to be possible and harmless."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from ..client.requests import download_fields, no_tun_conf, upload_fields
from ..config.model import ClientConfig, DeviceKind
from ..errors import EndReason, PeerError, leaves
from ..host.net.sockets import Connection
from ..http.client import answered, check_status
from ..wire import control, tunconf
from ..wire.frames import BASE_PING, FrameReader
from .ages import BEYOND, BEYOND_S, AgeSearch
from .identify import identify
from .idle import measure_idle
from .measured import Ages, Direction, Http, Idle, Measured, WebSocket
from .path import Path
from .remedies import NAMES
from .segments import LossWatch
from .streams import Answer, Opener, Receiver, Uploader, read_answer, read_page
from .traffic import large_packets, padding, round_trips, throughput, wait_for_first
from .verdict import may_replace_get
from .websocket import try_websocket

HEAD_S: Final = 6.0  # for the response to a GET; a client waits 30 s
MAX_PAIRS: Final = 3  # pairs of streams in the search for an age limit
AT_ONCE_S: Final = 1.0  # an upload that is answered within this time was refused, and not ended for its silence
GOODBYE_S: Final = 3.0
GOODBYE_PINGS: Final = 3
GOODBYE_PAUSE_S: Final = 0.1
_BYE: Final = "the probe is done"
_PINGED: Final = "this server serves extended clients only, and is never silent towards them"
# The whole body of a tapotun server's response to a refused request.
_OWN_PAGES: Final = (b"403\n", b"404\n", b"405\n", b"409\n")


# These forward a refusal at once, even before the request has ended. Apache waits for the end of the request. Proxies
# in Go (Caddy, Traefik) first read up to 256 KiB of the request (net/http/server.go, maxPostHandlerReadBytes).
_FORWARDS_EARLY_REFUSALS: Final = frozenset({"nginx", "haproxy", "none"})


class _Taken(Exception):
    """Another client has taken the token over."""


async def measure(config: ClientConfig, idle_limit_s: float, measured: Measured, age_limit_s: float = 0.0) -> None:
    """Fill ``measured`` in, step by step, so that it is valid even if this is cancelled. Closes every connection.

    Raises HostError if a TLS file or the proxy of the environment is unusable.
    """
    path = Path(config)
    measured.outgoing_proxy = None if path.proxy is None else path.proxy.authority
    if not await path.explore(measured):
        return
    opener = Opener(config, path.open)
    try:
        await _Steps(config, idle_limit_s, measured, opener, path, age_limit_s).run()
    except* _Taken:
        measured.token_in_use = True
        measured.not_tested.append("the rest: a client with this token connected")
        # The other client's request ended our streams; the path is not at fault.
        measured.idle, measured.download = None, Direction()
        if measured.upload.state != "streams" or measured.upload.status is None:
            measured.upload = Direction("streams" if measured.upload.state == "streams" else "not-tested")
    except* PeerError as group:
        measured.not_tested += [f"the rest: {exc}" for exc in leaves(group)]
    finally:
        opener.close()


class _Steps:
    def __init__(
        self,
        config: ClientConfig,
        idle_limit_s: float,
        measured: Measured,
        opener: Opener,
        path: Path,
        age_limit_s: float,
    ) -> None:
        self._config = config
        self._idle_limit_s = idle_limit_s
        self._age_limit_s = age_limit_s
        self._measured = measured
        self._opener = opener
        self._path = path
        self._http = Http()
        self._numbers = 0
        self._features = control.SUPPORTED
        self._serves_base = False  # whether the server would serve a base client with this token
        self._ours = False  # whether the server may still have streams of this probe

    async def run(self) -> None:
        try:
            await self._measure()
        finally:
            if self._ours or self._measured.websocket.ok:
                with trio.move_on_after(GOODBYE_S, shield=True):
                    await self._leave()

    async def _measure(self) -> None:
        measured, http = self._measured, self._http
        answer = await self._get()
        if answer is None:
            return
        connection, found = answer
        if http.status == 409:
            measured.token_in_use = True
            measured.not_tested.append(
                "download, round trip, throughput, WebSocket, idle timeouts: the token is in use"
            )
            await self._refused_upload(upload_fields(self._config, self._opener.session_id, 1, "tun"), 409)
        elif http.status == 200 and http.error is None:
            if http.server == "extended":
                self._ours = True
                while not await self._streams(connection, found):
                    connection, found = await self._download_again()
                if measured.download.state == "held-back":
                    await self._held_download()
                await self._websocket()
            else:
                measured.download.state = "streams"
                connection.close()
                measured.not_tested.append("round trip, throughput, WebSocket: the base protocol cannot measure them")
                await self._refused_upload([("Transfer-Encoding", "chunked")], 403)
            await self._idle()
            await self._ages()
        elif control.WS in self._features and may_replace_get(http):
            await self._websocket()

    def _taken(self) -> _Taken:
        self._ours = False
        return _Taken()

    async def _leave(self) -> None:
        """Make the server end the last download of this probe. Otherwise a proxy that does not notice that the probe
        has left may keep the download open, and the server believes that a client uses the token.

        A newer stream of the same session ends the older ones. So a WebSocket is opened and closed. If no WebSocket
        passes, a new GET is reset: the proxy notices the reset when it forwards the server's answers to PINGs. This has
        no effect if another client has taken the token.
        """
        self._features = control.SUPPORTED  # without the features there would be no PINGs
        if self._measured.websocket.ok:
            await try_websocket(WebSocket(), self._opener, self._download_fields(), GOODBYE_S)
            return
        try:
            connection, _ = await self._download_again()
            async with trio.open_nursery() as nursery:
                up = await self._opener.upload(nursery, self._upload_fields())
                connection.abort()
                for _ in range(GOODBYE_PINGS):
                    await up.send(up.ping()[1])
                    await trio.sleep(GOODBYE_PAUSE_S)
                await up.finish(GOODBYE_S, control.bye(_BYE))
                nursery.cancel_scope.cancel()
        except* (PeerError, _Taken):
            pass  # the server is down, or another client has the token; either ends the download

    # -- the GET

    def _download_fields(self) -> list[tuple[str, str]]:
        """The client's header fields, changed so that they do not take the token over from another client."""
        return download_fields(self._config, self._opener.session_id, self._features, yields=True)

    async def _get(self) -> tuple[Connection, Answer] | None:
        """The connection and the response; None: there was no response."""
        measured, http = self._measured, self._http
        try:
            connection = await self._opener.request("GET", self._download_fields())
            began, address, state = trio.current_time(), connection.remote_address, connection.segments()
            with trio.move_on_after(HEAD_S):
                answer = await answered(connection, self._path.limits, partial(read_answer, connection, "GET"))
                http.ms = (trio.current_time() - began) * 1e3
                measured.http = http
                await self._describe(connection, answer)
                return connection, answer
            connection.close()
            await self._unanswered()
        except PeerError as exc:
            measured.http = http
            if exc.reason is EndReason.PATH_MTU:
                self._path.note_limit(measured.path_mtu, address, None if state is None else state.mss)
                if measured.path_mtu.passing_bytes is not None:
                    return await self._get()
            http.error = str(exc)
            if exc.reason is not EndReason.PATH_MTU:
                await self._websocket()
        return None

    async def _download_again(self) -> tuple[Connection, Answer]:
        """Repeat the GET that was answered before. Raises PeerError, trio.TooSlowError, and _Taken."""
        connection = await self._opener.request("GET", self._download_fields())
        with trio.fail_after(HEAD_S):
            answer = await read_answer(connection, "GET")
        if answer.head.status == 409:
            raise self._taken()
        check_status(answer.head, self._config.server)
        return connection, answer

    async def _describe(self, connection: Connection, answer: Answer) -> None:
        http, head, url = self._http, answer.head, self._config.server
        self._identify(answer)
        http.status = head.status
        page = b"" if head.status == 200 else await read_page(connection, answer)
        http.own = page in _OWN_PAGES
        try:
            check_status(head, url, page)
        except PeerError as exc:
            http.error = str(exc)
            if head.status in (403, 404) and not http.own and b"<" in page:
                answered = f"{url.shown} answered {head.status}"
                http.error = f"{answered} with a page of its own: it is not the tapotun server's response"
            else:
                http.own |= head.status == 403
            return
        agreed = control.agree(head.headers.get(control.FEATURES_HEADER))
        in_params = control.CTL in agreed and agreed & {control.INET6, control.TAP}
        self._serves_base = "x-tun-conf" in head.headers
        if not self._serves_base and not in_params:
            http.error = no_tun_conf(head, url.authority)
            return
        http.server = "extended" if control.CTL in agreed else "base"
        http.device = _device(agreed)
        if http.device == "tun":
            http.ipv4, http.ipv6 = "x-tun-conf" in head.headers, agreed >= {control.CTL, control.INET6}
        self._features = agreed or self._features

    def _identify(self, answer: Answer) -> None:
        http, headers = self._http, answer.head.headers
        tls = self._measured.tls
        http.proxies = identify(
            headers, answer.names, https=tls is not None, issuer=None if tls is None else tls.issuer
        )
        http.proxy = http.proxies[0]
        http.server_header, http.via = headers.get("server"), headers.get("via")

    async def _unanswered(self) -> None:
        """The GET got no response: find out whether only the download is held back, or everything.

        A refusal is a complete response, so it passes a proxy that holds back an endless one.
        """
        measured, http, url = self._measured, self._http, self._config.server
        measured.http = http
        http.error = f"{url.authority} did not answer within {HEAD_S:.0f} s"
        connection = await self._opener.request("GET", [])
        began = trio.current_time()
        with trio.move_on_after(HEAD_S):
            answer = await read_answer(connection, "GET")
            http.ms = (trio.current_time() - began) * 1e3
            self._identify(answer)
            measured.download.state = "held-back"
            measured.download.error = (
                f"a request without a token was answered ({answer.head.status}), the one with the token was not"
            )
        connection.close()
        await self._websocket()
        if measured.download.state != "held-back":
            return
        if measured.websocket.ok:  # a server with WebSockets knows control frames
            http.server = "extended"
            await self._held_download()

    async def _held_download(self) -> None:
        """Measure how many bytes the proxy holds back: PINGs go up, and their PONGs collect in the proxy."""
        measured, opener = self._measured, self._opener
        connection = await opener.request("GET", self._download_fields())
        answered = trio.Event()

        async def wait() -> None:
            try:
                answer = await read_answer(connection, "GET")
                if answer.rest or await connection.receive(memoryview(bytearray(1))):
                    answered.set()
            except PeerError as exc:
                measured.download.error = str(exc)
            opener.progress.notify()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.1)  # the server must see the download first, to accept the upload in its session
            up = await opener.upload(nursery, self._upload_fields())
            sent = 16
            for power in range(10, 20):
                while sent < 1 << power and not up.ended and not answered.is_set():
                    size = min((1 << power) - sent, control.MAX_PAYLOAD_BYTES - 1024)
                    await up.send(up.ping(max(8, size), bytes(size))[1])
                    sent += size
                    # PINGs are sent one at a time, because the server answers only the last of several.
                    if await opener.progress.until(lambda: answered.is_set() or up.ended, 0.25):
                        break
                if answered.is_set():
                    measured.download.held_bytes = sent
                    break
            nursery.cancel_scope.cancel()

    # -- the upload, and measurements through both streams

    def _upload_fields(self) -> list[tuple[str, str]]:
        self._numbers += 1
        device = self._http.device or "tun"
        return upload_fields(self._config, self._opener.session_id, self._numbers, device)

    @asynccontextmanager
    async def _receiving(self, connection: Connection, answer: Answer) -> AsyncIterator[tuple[Receiver, trio.Nursery]]:
        """Receive the download's frames while the block runs."""
        is_tap = self._http.device == "tap"
        reader = FrameReader(answer.head.body(), control=control.CTL in self._features, ethernet=is_tap)
        down = Receiver(connection, reader, self._opener.progress)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(down.run, answer.rest)
            yield down, nursery
            nursery.cancel_scope.cancel()
        connection.close()

    async def _streams(self, connection: Connection, answer: Answer) -> bool:
        """Measure both streams. Returns False if large segments were lost and smaller ones should be tried."""
        measured = self._measured
        watch = LossWatch(self._path.limits)
        watch.add(connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run, nursery.cancel_scope)
            await self._measure_streams(connection, answer, watch)
            nursery.cancel_scope.cancel()
        if watch.failure is None:
            return True
        connection.close()
        path_mtu = measured.path_mtu
        self._path.note_limit(path_mtu, watch.address, watch.lost_bytes)
        measured.download, measured.upload, measured.rtt, measured.throughput = Direction(), Direction(), None, None
        if path_mtu.passing_bytes is None:
            measured.not_tested.append(f"the streams: {watch.failure}")
        return path_mtu.passing_bytes is None

    async def _measure_streams(self, connection: Connection, answer: Answer, watch: LossWatch) -> None:
        measured, progress = self._measured, self._opener.progress
        began = trio.current_time()
        measured.download.state = "streams"
        rtt_s = (self._http.ms or 0.0) / 1e3
        async with self._receiving(connection, answer) as (down, nursery):
            if not await progress.until(lambda: down.params is not None or down.ended, HEAD_S):
                measured.download.state = "held-back"
                measured.download.error = (
                    f"the head of the response arrived, and nothing after it within {HEAD_S:.0f} s"
                )
            elif down.params is None:
                measured.download.state, measured.download.error = "broken", str(down.failure or "it ended at once")
            if down.params is None:
                return
            self._http.keepalive_s = down.params.keepalive
            up = await self._opener.upload(nursery, self._upload_fields())
            watch.add(up.connection)
            down.answer = up.answer
            number = self._numbers
            pinged: list[int] = []

            def fill(size: int) -> bytes:
                if pinged:
                    return padding(size)
                first, ping = up.ping()
                pinged.append(first)
                return ping

            def arrived() -> bool:
                return number in down.seen or (bool(pinged) and down.pong >= pinged[0])

            if await wait_for_first(measured.upload, up, progress, arrived, fill, rtt_s):
                measured.rtt = await round_trips(up, down, progress)
                if await large_packets(up, down, progress) and measured.path_mtu.ok is None:
                    measured.path_mtu.ok = True
                measured.throughput = await throughput(up, down, progress, rtt_s)
                if up.ended and not down.replaced:
                    measured.upload.status, measured.upload.ended_after_bytes = up.status, up.sent_bytes
                    measured.upload.ended_after_s = up.ended_at - up.began_at
                    measured.upload.error = None if up.failure is None else str(up.failure)
            if down.failure is not None and measured.download.state == "streams":
                measured.download.state, measured.download.error = "broken", str(down.failure)
                measured.download.ended_after_s = down.ended_at - began
            if down.replaced:
                raise self._taken()
            if not up.ended:
                await up.finish(GOODBYE_S, control.bye(_BYE))

    async def _refused_upload(self, fields: list[tuple[str, str]], status: int) -> None:
        """Test whether uploads stream where the server accepts none. It refuses an upload as soon as it has the head,
        without reading the body. Only base pings are sent, which have no effect."""
        measured, opener = self._measured, self._opener
        async with trio.open_nursery() as nursery:
            up = await opener.upload(nursery, fields)
            zeros = lambda size: bytes(size + size % 2)  # noqa: E731
            refused = partial(lambda up: up.status == status, up)
            await wait_for_first(measured.upload, up, opener.progress, refused, zeros, (self._http.ms or 0.0) / 1e3)
            nursery.cancel_scope.cancel()
        early = all(kind in _FORWARDS_EARLY_REFUSALS for kind in self._http.proxies)
        if measured.upload.state != "streams" and measured.upload.status != 413 and not early:
            measured.upload = Direction()
            names = " or ".join(NAMES[kind] for kind in self._http.proxies if kind not in _FORWARDS_EARLY_REFUSALS)
            measured.not_tested.append(
                f"upload: only a refused one could be tried, and {names} may forward a refusal only when the upload, "
                "or much of it, has arrived"
            )

    # -- the rest

    async def _websocket(self) -> None:
        if control.WS not in self._features:
            self._measured.not_tested.append("WebSocket: the server does not support it")
            return
        agreed = await try_websocket(self._measured.websocket, self._opener, self._download_fields(), HEAD_S)
        if agreed and self._http.device is None:  # no GET was answered
            self._http.device = _device(agreed)

    @property
    def _untestable_reason(self) -> str:
        """Why limits on silence and age cannot be measured with a GET and a PUT; empty: they can."""
        measured = self._measured
        if "held-back" in (measured.upload.state, measured.download.state):
            return "streams are held back"
        return "uploads are refused" if measured.upload.state == "broken" else ""

    async def _idle(self) -> None:
        measured = self._measured
        if not self._idle_limit_s or (reason := self._untestable_reason):
            cause = reason if self._idle_limit_s else "--idle-limit 0"
            measured.not_tested.append(f"idle timeouts: {cause}")
            return
        # The probe acts as a base client here, because a server sends nothing to a base client for 55 s.
        if not self._serves_base:
            measured.not_tested.append(f"idle timeouts: {_PINGED}")
            return
        connection, answer = await self._base_download()
        if answer is None or answer.head.status != 200:
            measured.not_tested.append("idle timeouts: a second download was not answered with 200")
            return
        self._features = frozenset()
        measured.idle = Idle(self._idle_limit_s)
        async with self._receiving(connection, answer) as (down, nursery):
            up = await self._opener.upload(nursery, upload_fields(self._config, "", None, "tun"))
            if _takes_pings(answer):
                await up.send(BASE_PING)
            await measure_idle(measured.idle, up, down, self._opener.progress, self._still_ours)
        if measured.idle.upload_s is not None and measured.idle.upload_s < AT_ONCE_S and up.refusal is not None:
            measured.upload_refused = up.refusal  # although the first upload was not
            measured.idle.upload_s = measured.idle.upload_status = None
            measured.idle.upload_tested_s = 0.0
        if down.clean and measured.idle.download_s is None:
            measured.not_tested.append("idle timeout of a download: the server ended it")

    async def _ages(self) -> None:
        """Search for age limits: up to --age-limit, and up to any age at which a stream has ended earlier."""
        measured, idle = self._measured, self._measured.idle
        ended = [measured.download.ended_after_s, measured.upload.ended_after_s]
        if idle is not None:
            ended += [idle.download_s, idle.upload_s]
        limit_s = max([self._age_limit_s, *(BEYOND * at_s + BEYOND_S for at_s in ended if at_s is not None)])
        reason = self._untestable_reason or ("" if self._http.server == "extended" else "a base server")
        if not limit_s or reason:
            cause = reason if limit_s else "--age-limit 0"
            measured.not_tested.append(f"limits on the age of a stream: {cause}")
            return
        self._features = control.SUPPORTED
        measured.ages = Ages(limit_s)
        search = AgeSearch(measured.ages)
        for _ in range(MAX_PAIRS):
            try:
                connection, answer = await self._download_again()
            except trio.TooSlowError:
                measured.not_tested.append("limits on the age of a stream: a further download was not answered")
                return
            async with self._receiving(connection, answer) as (down, nursery):
                up = await search.watch(partial(self._answering_upload, nursery, down), down, self._opener.progress)
                if down.replaced:
                    raise self._taken()
                if not up.ended:
                    await up.finish(GOODBYE_S, control.bye(_BYE))
            if not search.next_s:
                return
        measured.not_tested.append("limits on the age of a stream: streams were ended at ages that do not agree")

    async def _answering_upload(self, nursery: trio.Nursery, down: Receiver) -> Uploader:
        """Open an upload that also carries the PONGs for the PINGs on ``down``. Raises PeerError."""
        up = await self._opener.upload(nursery, self._upload_fields())
        down.answer = up.answer
        return up

    async def _base_download(self) -> tuple[Connection, Answer | None]:
        """A GET without features, as a base client sends it. None: no response. Raises _Taken."""
        extras = {control.FEATURES_HEADER}
        if self._http.server == "base":  # a base server ignores the extended headers
            extras |= {control.YIELD_HEADER, control.SESSION_HEADER}
        fields = [field for field in self._download_fields() if field[0] not in extras]
        connection = await self._opener.request("GET", fields)
        answer: Answer | None = None
        with trio.move_on_after(HEAD_S):
            answer = await read_answer(connection, "GET")
        if answer is not None and answer.head.status == 409:
            raise self._taken()
        return connection, answer

    async def _still_ours(self) -> bool:
        """Whether no other client has taken the token over. A base server does not say, which counts as no."""
        if self._http.server != "extended":
            return False
        connection, answer = await self._base_download()
        connection.close()
        return answer is not None and answer.head.status == 200


def _device(agreed: frozenset[str]) -> DeviceKind:
    """What the frames carry where these features were agreed on."""
    return "tap" if agreed >= {control.CTL, control.TAP} else "tun"


def _takes_pings(answer: Answer) -> bool:
    """Whether the server accepts base pings. For a generation 2 server they are malformed, so it ends the upload."""
    try:
        return tunconf.decode(answer.head.headers.get("x-tun-conf", "")).generation == 1
    except PeerError:
        return False
