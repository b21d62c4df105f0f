"""The server's transport: who a request is from, and the GET and PUT of each client."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Final, Literal

import trio

from ..config.model import AllowedClient, ServerConfig
from ..cooperative import PART, Steps, collect_in_steps, run_now
from ..datapath.counters import DropReason
from ..datapath.sender import Sender
from ..datapath.tun_io import DeviceWriter
from ..errors import SHORTAGES, HostError, PeerError, RefusalReason, ShortageError, leaves
from ..http.acceptor import Admission, Endpoint, ListenerManager, VirtualHost
from ..http.heads import BadRequest
from ..http.server import Exchange
from ..log import Faults, Log, RateLimitedLog
from ..routing.router import ClientNetworks, Router
from ..status.model import InterfaceState, InterfaceStatus
from ..wire.frames import ADDRESSES, FrameRange, FrameReader
from .handlers import is_of_another_session, serve_download, serve_upload, serve_websocket
from .session import CACHE_ENTRIES, ClientHello, Session, Telling, Told
from .status import server_status

TICK_S: Final = 1.0
LOG_BURST: Final = 10  # lines about strangers within ten seconds
_MAKING: Final = 10  # sessions that are made in one step, a millisecond
_TICKED: Final = 50  # sessions whose clock ticks in one step
ALGORITHMS: Final[tuple[Literal["sha1", "sha256"], ...]] = ("sha1", "sha256")


@dataclass(slots=True)
class Prepared:
    """A config that a server is to have, with all that it needs for it.

    ``kept``: sessions that go on, the index and the client that they get, and what that is told, if it is news.
    ``gone``: those whose client the config has no longer.
    """

    config: ServerConfig
    router: Router
    gone: dict[tuple[str, str], Session]
    kept: list[tuple[Session, int, AllowedClient, Told | None]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    by_token: dict[tuple[str, str], Session] = field(default_factory=dict)


def _told_by(group: BaseExceptionGroup[PeerError]) -> tuple[bool, str, str, int]:
    """Of the first error: whether the request itself was malformed, its reason, its text, and the log level."""
    exc = next(leaves(group))
    level = logging.WARNING if isinstance(exc, ShortageError) else logging.INFO
    return isinstance(exc, BadRequest), exc.reason, str(exc), level


class TunnelServer:
    """The sessions of one server interface and the HTTP in front of them."""

    def __init__(self, config: ServerConfig, log: Log) -> None:
        self._log = log
        self.device_drops: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()  # requests that came to nothing, by reason
        self._verdicts: dict[bytes, Sender | bool] = {}
        self.sessions: list[Session] = []
        self._by_token: dict[tuple[str, str], Session] = {}
        self._config = config
        self.reconfigure(config)
        self.admission = Admission()  # none, until it listens
        # Not one line only: what locks addresses out by the log has to see each of them.
        self._refusals = RateLimitedLog(burst=LOG_BURST)
        self._faults = Faults()
        self._writers: Sequence[DeviceWriter]

    @property
    def endpoints(self) -> list[Endpoint]:
        """Where it is reached."""
        return self.admission.endpoints

    # -- see lifecycle.tunnel.Tunnel

    interface_state: Final[InterfaceState] = "up"  # once it has started it can be reached
    problem: Final = None

    def status(self, common: InterfaceStatus) -> Steps[InterfaceStatus]:
        """``common`` with what the server knows, in steps."""
        return server_status(common, self.sessions, self.admission, self.device_drops, self.refusals)

    @classmethod
    def in_steps(cls, config: ServerConfig, log: Log) -> Steps[TunnelServer]:
        """Makes one, in steps: each of thousands of sessions takes a tenth of a millisecond."""
        server = cls(replace(config, clients=()), log)
        yield from server.adopt((yield from server.prepare(config)))
        return server

    def reconfigure(self, config: ServerConfig) -> None:
        """Serve as this says from now on; but for ``name``, ``listen``, ``path`` and ``ingress``, which are what they
        were. A client is the same if it has its token, whatever its name and address; others end."""
        run_now(self.adopt(run_now(self.prepare(config))))

    def prepare(self, config: ServerConfig) -> Steps[Prepared]:
        """The first half of `reconfigure`, which makes all that is new and changes nothing. Until `adopt` nobody else
        may reconfigure this server."""
        networks = yield from collect_in_steps(ClientNetworks(c.ip, c.routes, c.sources) for c in config.clients)
        router = yield from Router.in_steps((config.net.ip, *config.ips), config.routes, networks, config.source_check)
        differs = replace(self._config, clients=()) != replace(config, clients=())
        it = Prepared(config, router, gone=self._by_token.copy())
        for index, client in enumerate(config.clients):
            key = client.token.algorithm, client.token.digest
            session = it.gone.pop(key, None)
            if session is None:
                session = Session(index, client, config, router)
            else:
                concerned = differs or client != session.client
                it.kept.append((session, index, client, Told(config, client) if concerned else None))
            it.sessions.append(session)
            it.by_token[key] = session
            if index % _MAKING == 0:
                yield
        return it

    def adopt(self, it: Prepared) -> Steps[None]:
        """The second half. Its first step makes the change, whole; the others tell the clients that it concerns."""
        self._config, self._router = it.config, it.router
        self.sessions, self._by_token = it.sessions, it.by_token
        self._verdicts.clear()
        telling: list[tuple[Session, Telling]] = []
        for session, index, client, told in it.kept:
            before = session.reconfigure(index, client, it.config, it.router, told)
            if before is not None:
                telling.append((session, before))
        for session in it.gone.values():
            session.leave()
        for session, before in telling:
            yield
            session.tell(before)
        for number, session in enumerate(it.gone.values()):
            if number % PART == 0 or session.state != "offline":
                yield
            session.dismiss("its token is not in the config any more")

    def close(self) -> None:
        """The interface has ended. No cycle may be left: the garbage collector may never look at sessions."""
        for session in self.sessions:
            session.leave()
        self.sessions, self._by_token = [], {}
        self._verdicts.clear()
        self._router = Router((), (), ())

    # -- the device's side

    def classify(self, view: memoryview, at: int) -> Sender | None:
        """Whose a frame from the device is (see `device.Classify`)."""
        first, key = ADDRESSES.unpack_from(view, at)
        if first >> 4 != 4:
            self.device_drops[DropReason.NOT_IPV4] += 1
            return None
        to = self._verdicts.get(key)
        if to is None:
            to = self._decide(key)
            if to is None:
                return None
        if isinstance(to, bool):
            self.device_drops[DropReason.NO_ROUTE] += 1
            return None
        return to

    def _decide(self, key: bytes) -> Sender | bool | None:
        """Ask the router, and remember what it says. None: a bug, which costs this packet and not the interface."""
        try:
            verdict = self._router.from_device(key[:4], key[4:])
            to = self.sessions[verdict].sender if verdict >= 0 else False
            if len(self._verdicts) >= CACHE_ENTRIES:
                self._verdicts.clear()
            self._verdicts[key] = to
        except Exception as exc:  # noqa: BLE001 - logged with its traceback
            text = "packet from the device dropped"
            self._faults.log(self._log, trio.current_time(), text, exc)
            self.device_drops[DropReason.INTERNAL_ERROR] += 1
            return None
        return to

    def only_sender(self) -> Sender | None:
        """See `device.read_device`."""
        return self.sessions[0].sender if len(self.sessions) == 1 else None

    # -- the network's side

    async def run_transport(
        self,
        writers: Sequence[DeviceWriter],
        listeners: ListenerManager,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be reachable, report started, and serve until cancelled. Raises HostError if an endpoint cannot be had.

        ``writers``: of the device's queues. Each client has one, and shares it where there are more clients.
        """
        self._writers = writers
        async with trio.open_nursery() as nursery:
            virtual_host = VirtualHost(self._config.path, self._config.ingress, nursery, self._serve, self._log)
            with listeners.register(self._config.listen, virtual_host) as self.admission:
                task_status.started()
                await trio.sleep_forever()

    async def _serve(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """One request. The boundary of whatever goes wrong in it, a bug included: it ends this request and nothing
        else. Raises HostError, which is the interface's, and PeerError."""
        try:
            await self._answer(exchange, endpoint)
        except* (HostError, PeerError):
            raise
        except* Exception as group:  # noqa: BLE001 - logged with its traceback, counted, answered
            text = f"request of {exchange.client} ended"
            await exchange.fail(self._count_fault(self.refusals, self._log, text, group))

    def _count_fault(self, counter: Counter[str], log: Log, text: str, exc: BaseException) -> int:
        """Returns the status to answer with."""
        reason = self._faults.log(log, trio.current_time(), text, exc)
        counter[reason] += 1
        return 503 if reason in SHORTAGES else 500

    async def _answer(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Whoever is refused stays in the lobby, token or not: nobody may hold all descriptors."""
        session, method, name = self._authenticate(exchange), exchange.head.method, exchange.client
        if session is None:
            text = f"{name} refused: unknown or missing token"
            self._refusals.log(self._log, logging.WARNING, trio.current_time(), text)
            await self._refuse(exchange, 403, RefusalReason.BAD_TOKEN)
            return
        if method not in ("GET", "PUT"):
            text = f"{name} refused: method {method[:20]}"
            session.refusals.log(session.log, logging.WARNING, trio.current_time(), text)
            await self._refuse(exchange, 405, RefusalReason.BAD_METHOD, (("Allow", "GET, PUT"),))
            return
        websocket = exchange.head.asks_for_websocket and ClientHello.of(exchange.head.headers).may_use_websocket
        stream = "WebSocket" if websocket else "download" if method == "GET" else "upload"
        session.log.debug("%s from %s begins", stream, name)
        if is_of_another_session(session, exchange):
            await self._refuse(exchange, 409, RefusalReason.OTHER_SESSION)
            return
        endpoint.pending.leave(exchange.connection)
        why, failed = "this server stops", 0  # if it is cancelled
        try:
            if websocket:
                await serve_websocket(session, exchange, self._forward)
            elif method == "GET":
                await serve_download(session, exchange)
            else:
                await serve_upload(session, exchange, self._forward)
            session.log.debug("%s from %s ended cleanly", stream, name)
            why = "the client ended it"
        except* PeerError as group:
            # Its halves may have noticed the same end each in its way. No variable here may hold the error: its
            # traceback holds this frame, and the cycle would keep the stream's buffers until it is collected.
            is_request, reason, why, level = _told_by(group)
            counter = self.refusals if is_request else session.counters.ends
            counter[reason] += 1
            session.endings.log(session.log, level, trio.current_time(), f"{stream} from {name} ended: {why}")
        except* HostError:
            raise
        except* Exception as group:  # noqa: BLE001 - logged with its traceback, counted, answered
            why, text = "an internal error", f"{stream} from {name} ended"
            failed = self._count_fault(session.counters.ends, session.log, text, group)
        finally:
            session.depart(why)
        if failed:
            await exchange.fail(failed)
        elif exchange.reusable:
            endpoint.add_pending(exchange.connection)  # until its next request

    async def _refuse(
        self, exchange: Exchange, status: int, reason: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.refusals[reason] += 1
        try:
            await exchange.refuse(status, headers=headers)
        except PeerError as exc:  # it did not wait for the answer
            self._log.debug("%s: %s", exchange.client, exc)

    def _authenticate(self, exchange: Exchange) -> Session | None:
        # Only hashes are compared, so the time that a dict takes tells nothing about a token.
        for token, algorithm in product(exchange.head.tokens, ALGORITHMS):
            # Not "for security" in FIPS' sense: a host that forbids SHA-1 shall still know deployed tokens.
            digest = hashlib.new(algorithm, token.encode("latin-1"), usedforsecurity=False).hexdigest()
            session = self._by_token.get((algorithm, digest))
            if session is not None:
                return session
        return None

    def _forward(self, session: Session, reader: FrameReader, frames: list[FrameRange]) -> None:
        if not session.gone:
            writer = self._writers[session.index % len(self._writers)]
            session.forward(reader.view, frames, writer, self.sessions)

    async def run_clock(self) -> None:
        """Keepalive pings, ageing of outboxes, and the end of uploads that fell silent; for ever."""
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            for number, session in enumerate(self.sessions, 1):  # a reload makes another list
                try:
                    session.tick(now, TICK_S)
                except Exception as exc:  # noqa: BLE001 - that session's, and none of the others
                    self._end_session(session, exc)
                if number % _TICKED == 0:
                    await trio.lowlevel.checkpoint()

    def _end_session(self, session: Session, exc: Exception) -> None:
        """A bug outside of its requests ends a session's streams. Its client connects again."""
        self._count_fault(session.counters.ends, session.log, "session ended", exc)
        try:
            session.fail()
        except Exception as further:  # noqa: BLE001 - as above
            self._count_fault(session.counters.ends, session.log, "session not ended", further)
