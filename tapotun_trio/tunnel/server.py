"""The server's transport: who a request is from, and the GET and PUT of each client."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final, Literal

import trio

from ..config.model import ServerConfig
from ..errors import PeerError, ShortageError, failing_alone, leaves
from ..http.server import Exchange
from ..log import Log, Sparingly
from ..routing.router import ClientNetworks, Router
from ..wire.frames import ADDRESSES, FrameReader, Span
from . import counters as why
from .device import DeviceWriter
from .frontdoor import Entrance, FrontDoor, Tenant
from .sender import Sender
from .serving import is_of_another_session, serve_download, serve_upload, serve_websocket
from .session import CACHE_ENTRIES, Session, Visit

TICK_S: Final = 1.0
LOG_BURST: Final = 10  # lines about strangers within ten seconds
ALGORITHMS: Final[tuple[Literal["sha1", "sha256"], ...]] = ("sha1", "sha256")


class TunnelServer:
    """The sessions of one server interface and the HTTP in front of them."""

    def __init__(self, config: ServerConfig, log: Log) -> None:
        self._log = log
        self.device_drops: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()  # requests that came to nothing, by reason
        self._verdicts: dict[bytes, Sender | bool] = {}
        self.sessions: list[Session] = []
        self._config = config
        self.reconfigure(config)
        self.entrances: list[Entrance] = []
        # Not one line only: what locks addresses out by the log has to see each of them.
        self._refusals = Sparingly(burst=LOG_BURST)
        self._writers: Sequence[DeviceWriter]

    def reconfigure(self, config: ServerConfig) -> None:
        """Serve as this says from now on, in one step; but for ``name``, ``listen``, ``path`` and ``reception``, which
        are what they were. A client is the same if it has its token, whatever its name and address; others end."""
        differs = replace(self._config, clients=()) != replace(config, clients=())
        self._config = config
        self._router = Router(
            (config.net.ip, *config.ips),
            config.routes,
            [ClientNetworks(c.ip, c.routes, c.sources) for c in config.clients],
            config.source_check,
        )
        before = {session.client.token: session for session in self.sessions}
        self.sessions = []
        for index, client in enumerate(config.clients):
            session = before.pop(client.token, None)
            if session is None:
                session = Session(index, client, config, self._router)
            else:
                session.reconfigure(index, client, config, self._router, differs=differs)
            self.sessions.append(session)
        self._by_token = {
            (c.token.algorithm, c.token.digest): s for c, s in zip(config.clients, self.sessions, strict=True)
        }
        self._verdicts.clear()
        for session in before.values():
            session.gone = True
            session.dismiss("its token is not in the config any more")

    # -- the device's side

    def classify(self, view: memoryview, at: int) -> Sender | None:
        """Whose a frame from the device is (see `device.Classify`)."""
        first, key = ADDRESSES.unpack_from(view, at)
        if first >> 4 != 4:
            self.device_drops[why.NOT_IPV4] += 1
            return None
        to = self._verdicts.get(key)
        if to is None:
            verdict = self._router.from_device(key[:4], key[4:])
            to = self.sessions[verdict].sender if verdict >= 0 else False
            if len(self._verdicts) >= CACHE_ENTRIES:
                self._verdicts.clear()
            self._verdicts[key] = to
        if isinstance(to, bool):
            self.device_drops[why.NO_ROUTE] += 1
            return None
        return to

    def sole(self) -> Sender | None:
        """See `device.read_device`."""
        return self.sessions[0].sender if len(self.sessions) == 1 else None

    # -- the network's side

    async def run_transport(
        self,
        writers: Sequence[DeviceWriter],
        door: FrontDoor,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be reachable, report started, and serve until cancelled. Raises HostError if an endpoint cannot be had.

        ``writers``: of the device's queues. Each client has one, and shares it where there are more clients.
        """
        self._writers = writers
        async with trio.open_nursery() as nursery:
            tenant = Tenant(self._config.path, self._config.reception, nursery, self._serve, self._log)
            with door.admit(self._config.listen, tenant) as self.entrances:
                task_status.started()
                await trio.sleep_forever()

    async def _serve(self, exchange: Exchange, entrance: Entrance) -> None:
        """One request. Whoever is refused stays in the lobby, token or not: nobody may hold all descriptors."""
        session, method, name = self._authenticate(exchange), exchange.head.method, exchange.client
        if session is None:
            text = f"{name} refused: unknown or missing token"
            self._refusals.log(self._log, logging.WARNING, trio.current_time(), text)
            await self._refuse(exchange, 403, "bad-token")
            return
        if method not in ("GET", "PUT"):
            text = f"{name} refused: method {method[:20]}"
            session.refusals.log(session.log, logging.WARNING, trio.current_time(), text)
            await self._refuse(exchange, 405, "bad-method", (("Allow", "GET, PUT"),))
            return
        websocket = exchange.head.asks_for_websocket and Visit.of(exchange.head.headers).may_use_websocket
        stream = "WebSocket" if websocket else "download" if method == "GET" else "upload"
        session.log.debug("%s from %s begins", stream, name)
        if is_of_another_session(session, exchange):
            await self._refuse(exchange, 409, "other-session")
            return
        entrance.lobby.leave(exchange.connection)
        why = "this server stops"  # if it is cancelled
        try:
            with failing_alone("cannot serve this request"):
                if websocket:
                    await serve_websocket(session, exchange, self._forward)
                elif method == "GET":
                    await serve_download(session, exchange)
                else:
                    await serve_upload(session, exchange, self._forward)
            session.log.debug("%s from %s ended cleanly", stream, name)
            why = "the client ended it"
        except* PeerError as group:
            exc = next(leaves(group))  # its halves may have noticed the same end each in its way
            session.counters.ends[exc.reason] += 1
            why = str(exc)
            level = logging.WARNING if isinstance(exc, ShortageError) else logging.INFO
            session.endings.log(session.log, level, trio.current_time(), f"{stream} from {name} ended: {why}")
        finally:
            session.depart(why)
        if exchange.reusable:
            entrance.enter_lobby(exchange.connection)  # until its next request

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

    def _forward(self, session: Session, reader: FrameReader, frames: list[Span]) -> None:
        if not session.gone:
            writer = self._writers[session.index % len(self._writers)]
            session.forward(reader.view, frames, writer, self.sessions)

    async def run_clock(self) -> None:
        """Keepalive pings, ageing of outboxes, and the end of uploads that fell silent; for ever."""
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            for session in self.sessions:
                session.tick(now, TICK_S)
