"""The server of one interface: its sessions, which session a request belongs to, and routing from the device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import product
from typing import Final, Literal

import trio

from ..config.model import AllowedClient, ServerConfig
from ..cooperative import PART, Steps, collect_in_steps, run_now
from ..datapath.counters import DropReason
from ..datapath.plane import BY_ADDRESSES, Flows, Plane, Verdict, current_plane
from ..datapath.sender import Sender
from ..datapath.tun_io import DeviceWriter
from ..digests import digest
from ..errors import SHORTAGES, EndReason, HostError, PeerError, RefusalReason, ShortageError, leaves
from ..families import IPInterface, stays_on_link
from ..host.interfaces import Host
from ..http.heads import BadRequest
from ..http.server import Exchange
from ..http.virtual_hosts import Endpoint, ListenerManager, Registration, VirtualHost
from ..log import Faults, Log, RateLimitedLog, flap_damped
from ..macs import NO_MAC
from ..peer.boottime import BootTime
from ..routing.router import ClientNetworks, Router
from ..routing.switch import SwitchRules
from ..status.model import InterfaceState, InterfaceStatus
from ..wire.frames import ADDRESSES, ROUTED_IPV6_HEAD, flow_of
from .handlers import is_of_another_session, serve_download, serve_upload, serve_websocket
from .machine_addresses import watch_addressed, watch_machine_addresses
from .segment import Segment, rules_in_steps
from .session import CACHE_ENTRIES, ClientHello, ClientParameters, ForwardingTable, PreviousParameters, Session
from .status import server_status

TICK_S: Final = 1.0
LOOP_S: Final = 10.0  # how long to drop packets that came back; then one passes, to test whether it still comes back
LOG_BURST: Final = 10  # log lines about refused tokens within ten seconds
_MADE_PER_STEP: Final = 10  # sessions; a step takes about a millisecond
_TICKED_PER_STEP: Final = 50  # sessions
ALGORITHMS: Final[tuple[Literal["sha1", "sha256"], ...]] = ("sha1", "sha256")


@dataclass(slots=True)
class Prepared:
    """The next config of a server, with everything that was made for it.

    Attributes:
        kept: sessions that stay, each with its new index, its new entry of the config, and its new parameters, which
            are None if they have not changed.
        removed: sessions whose client is no longer in the config.
        rules: for the switch of a TAP interface.
    """

    config: ServerConfig
    table: ForwardingTable
    router: Router
    removed: dict[tuple[str, str], Session]
    rules: SwitchRules = field(default_factory=SwitchRules)
    kept: list[tuple[Session, int, AllowedClient, ClientParameters | None]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    by_token: dict[tuple[str, str], Session] = field(default_factory=dict)


def _prepare(
    config: ServerConfig,
    table: ForwardingTable,
    before: ServerConfig | None,
    by_token: Mapping[tuple[str, str], Session],
    mac: bytes | None,
) -> Steps[Prepared]:
    """Make the router and the new sessions of ``config``, and change nothing.

    Args:
        before: the present config; None: there is none yet.
        by_token: the present sessions.
        mac: of a TAP interface; None: it is a TUN interface, or its address is not known.
    """
    networks = yield from collect_in_steps(ClientNetworks(c.addresses, c.routes, c.sources) for c in config.clients)
    router = yield from Router.in_steps(config.own_addresses, config.routes, networks, config.source_check)
    differs = before is None or replace(before, clients=()) != replace(config, clients=())
    prepared = Prepared(config, table, router, removed=dict(by_token))
    for index, client in enumerate(config.clients):
        key = client.token.algorithm, client.token.digest
        session = prepared.removed.pop(key, None)
        if session is None:
            session = Session(index, client, config, table)
        else:
            concerned = differs or client != session.client
            prepared.kept.append((session, index, client, ClientParameters(config, client) if concerned else None))
        prepared.sessions.append(session)
        prepared.by_token[key] = session
        if index % _MADE_PER_STEP == 0:
            yield
    if config.device == "tap":
        prepared.rules = yield from rules_in_steps(config, mac or NO_MAC, prepared.sessions)
    return prepared


def _last_seen(sessions: Iterable[Session]) -> dict[str, BootTime]:
    moments = ((session.client.name, session.peer_info.last_seen) for session in sessions)
    return {name: moment for name, moment in moments if moment is not None}


def _describe_failure(group: BaseExceptionGroup[PeerError]) -> tuple[bool, str, str, int]:
    """The first error of a group: whether the request was malformed, its reason, its text, and the log level."""
    exc = next(leaves(group))
    level = logging.WARNING if isinstance(exc, ShortageError) else logging.INFO
    return isinstance(exc, BadRequest), exc.reason, str(exc), level


class TunnelServer:
    """The sessions of one server interface, and the HTTP requests for them."""

    def __init__(
        self,
        config: ServerConfig,
        log: Log,
        writers: Sequence[DeviceWriter] = (),
        device_drops: Counter[str] | None = None,
        *,
        first: Prepared | None = None,
        mac: bytes | None = None,
        set_carrier: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Create the sessions of all clients. Nobody can connect before `run_transport`.

        Args:
            writers: one for each queue of the device; see `ForwardingTable`. Without writers, uploads cannot be served.
            device_drops: where the reader and the writers of the device count what they drop, by reason.
            first: made from ``config`` by `in_steps`.
            mac: of a TAP interface.
            set_carrier: of a TAP interface; see `Segment`.
        """
        if first is None:
            first = run_now(_prepare(config, ForwardingTable(writers), None, {}, mac))
        self._log = log
        self.device_drops: Counter[str] = Counter() if device_drops is None else device_drops
        self.refusals: Counter[str] = Counter()  # refused or failed requests, by reason
        self.registration = Registration()  # empty until it listens
        self._config = config
        self._table = first.table
        self._table.router, self._table.sessions = first.router, first.sessions
        self.sessions, self._by_token = first.sessions, first.by_token
        self._mac = mac
        if config.device == "tap":
            self._table.segment = Segment(first.rules, first.sessions, self.device_drops, log, set_carrier)
        self._verdicts = self._table.device_verdicts
        self._machine: frozenset[IPInterface] = frozenset()
        # The limit allows a burst, because tools such as fail2ban read the log and have to see each address.
        self._refusal_log = RateLimitedLog(burst=LOG_BURST)
        self._loop_log = flap_damped()
        self._loops: dict[bytes, Session] = {}  # keys of packets that came back recently, and their sessions
        self._faults = Faults()

    @property
    def endpoints(self) -> list[Endpoint]:
        """The open endpoints."""
        return self.registration.endpoints

    @property
    def segment(self) -> Segment | None:
        """Of a TAP interface; None: it is a TUN interface."""
        return self._table.segment

    @property
    def cached_verdicts(self) -> int:
        """How many pairs of addresses have a cached verdict, at most CACHE_ENTRIES."""
        return len(self._verdicts)

    # -- see lifecycle.tunnel.Tunnel

    interface_state: Final[InterfaceState] = "up"  # once it has started it can be reached
    problem: Final = None

    def status(self, common: InterfaceStatus) -> Steps[InterfaceStatus]:
        """``common``, completed with what the server knows, in steps."""
        return server_status(
            common, self.sessions, self.registration, self.device_drops, self.refusals, self._table.segment
        )

    def peers(self) -> Iterator[tuple[str, Session]]:
        """The name of each client, and its session."""
        return ((session.client.name, session) for session in self.sessions)

    def last_seen(self) -> dict[str, BootTime]:
        """When each client was last heard, by its name. Clients that were never heard are left out."""
        return _last_seen(self.sessions)

    def restore_last_seen(self, moments: Mapping[str, BootTime]) -> None:
        """``moments``: what `last_seen` returned before the interface or its clients were replaced. A session that has
        already heard its client keeps its own value."""
        if moments:
            for session in self.sessions:
                moment = moments.get(session.client.name)
                if moment is not None:
                    session.peer_info.seen_before = moment

    @classmethod
    def in_steps(
        cls,
        config: ServerConfig,
        log: Log,
        writers: Sequence[DeviceWriter],
        device_drops: Counter[str],
        *,
        mac: bytes | None = None,
        set_carrier: Callable[[bool], None] = lambda _: None,
    ) -> Steps[TunnelServer]:
        """As the constructor, in steps: each of thousands of sessions takes a tenth of a millisecond."""
        first = yield from _prepare(config, ForwardingTable(writers), None, {}, mac)
        return cls(config, log, writers, device_drops, first=first, mac=mac, set_carrier=set_carrier)

    def reconfigure(self, config: ServerConfig) -> None:
        """Follow a changed config, except for ``name``, ``listen``, ``path`` and ``ingress``, which stay as they are.

        A session stays if its client has the same token, even under another name or address. Other sessions end.
        """
        run_now(self.adopt(run_now(self.prepare(config))))

    def prepare(self, config: ServerConfig) -> Steps[Prepared]:
        """The first half of `reconfigure`: make everything new, and change nothing. No other reconfiguration may begin
        before `adopt`."""
        return _prepare(config, self._table, self._config, self._by_token, self._mac)

    def adopt(self, prepared: Prepared) -> Steps[None]:
        """The second half. The first step makes the whole change; the others notify the clients that it affects."""
        self._config, self._table.router = prepared.config, prepared.router.with_machine(self._machine)
        self.sessions = self._table.sessions = prepared.sessions
        self._by_token = prepared.by_token
        self._verdicts.clear()
        self._loops.clear()
        if self._table.segment is not None:
            self._table.segment.adopt(prepared.rules, prepared.sessions, prepared.removed.values())
        # For the operator, a client with a new token is still the same client.
        self.restore_last_seen(_last_seen(prepared.removed.values()))
        updates: list[tuple[Session, PreviousParameters]] = []
        for session, index, client, parameters in prepared.kept:
            before = session.reconfigure(index, client, prepared.config, parameters)
            if before is not None:
                updates.append((session, before))
        for session in prepared.removed.values():
            session.mark_removed()
        for session, before in updates:
            yield
            session.send_update(before)
        for number, session in enumerate(prepared.removed.values()):
            if number % PART == 0 or session.state != "offline":
                yield
            session.disconnect("its token is not in the config any more")

    async def watch_machine(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the router informed of this machine's addresses. Runs for ever. See `watch_machine_addresses`."""
        await watch_machine_addresses(host, self._log, self._set_machine, task_status=task_status)

    async def watch_addressed(
        self, host: Host, addressed: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the segment informed of the server's own addresses in it. Runs for ever. See
        `machine_addresses.watch_addressed`."""
        segment = self._table.segment
        assert segment is not None, "a TUN interface has no segment"
        name = self._config.name
        await watch_addressed(host, self._log, name, addressed, segment.set_addressed, task_status=task_status)

    def _set_machine(self, interfaces: frozenset[IPInterface]) -> None:
        self._machine = interfaces
        self._table.router = self._table.router.with_machine(interfaces)
        for session in self.sessions:
            session.forget_verdicts()

    def close(self) -> None:
        """The interface has ended. Leave no reference cycle: the garbage collector may never look at sessions."""
        for session in self.sessions:
            session.mark_removed()
        self.sessions = self._table.sessions = []
        if self._table.segment is not None:
            self._table.segment.close()
        self._by_token = {}
        self._verdicts.clear()
        self._loops.clear()
        self._table.router = Router((), (), ())

    # -- the device's side

    def classify(self, view: memoryview, at: int) -> Sender | None:
        """The sender of a frame from the device (see `tun_io.Classify`).

        A client that has no route to one of its own networks sends packets for that network to the server. The server's
        kernel routes them back into the device, and so on until their TTL expires. So a packet that comes back is
        dropped here. It cannot be dropped earlier, before it enters the device, because the kernel may have a more
        specific route for it that the config does not know.
        """
        first, key = ADDRESSES.unpack_from(view, at)
        if first >> 4 != 4:
            if first >> 4 != 6:
                self.device_drops[DropReason.NOT_IPV4] += 1
                return None
            payload_bytes, next_header, key = ROUTED_IPV6_HEAD.unpack_from(view, at)
            if not (payload_bytes or next_header):
                self.device_drops[DropReason.JUMBOGRAM] += 1
                return None
        to = self._verdicts.get(key)
        if to is None:
            to = self._decide(key)
            if to is None:
                return None
        if isinstance(to, bool):
            self.device_drops[DropReason.LOOP if to else _no_route(key)] += 1
            return None
        if first >> 4 == 6 and not to.ipv6:
            self.device_drops[DropReason.NOT_IPV4] += 1
            return None
        return to

    def flows(self, plane: Plane) -> Flows:
        """See `tun_io.FrameJudge`."""
        if self._verdicts.flows is None:
            self._verdicts.flows = Flows(plane, BY_ADDRESSES, self.device_drops)
        return self._verdicts.flows

    def judge(self, view: memoryview, at: int) -> Verdict:
        """See `tun_io.FrameJudge`."""
        flow, plane = flow_of(view, at), current_plane()
        if flow is None or plane is None:
            return None
        version, key = flow
        to = self._verdicts.get(key)
        if to is None:
            return None
        if isinstance(to, bool):
            return DropReason.LOOP if to else _no_route(key)
        return to.port(plane) if version == 4 or to.ipv6 else None

    def _decide(self, key: bytes) -> Sender | bool | None:
        """Ask the router, and cache the answer. None: a bug; this packet is dropped and the interface continues."""
        try:
            half = len(key) >> 1
            verdict = self._table.router.from_device(key[:half], key[half:])
            session = self.sessions[verdict] if verdict >= 0 else None
            to: Sender | bool = False if session is None else session.sender
            if session is not None and session.sends_into_device(key):
                to = True
                if len(self._loops) >= CACHE_ENTRIES:
                    self._forget_loops()
                self._loops[key] = session
                self._log_loop(session, key[half:])
            if len(self._verdicts) >= CACHE_ENTRIES:
                self._verdicts.clear()
            self._verdicts[key] = to
        except Exception as exc:  # noqa: BLE001 - logged with its traceback
            text = "packet from the device dropped"
            reason = self._faults.log(self._log, trio.current_time(), text, exc)
            bug = reason is EndReason.INTERNAL_ERROR
            self.device_drops[DropReason.INTERNAL_ERROR if bug else DropReason.NO_MEMORY] += 1
            return None
        return to

    def _forget_loops(self) -> None:
        """Let packets that came back pass once more, since the client may have its missing route by now."""
        for key, session in self._loops.items():
            self._verdicts.discard(key)
            session.forget_verdict(key)
        self._loops.clear()

    def _log_loop(self, session: Session, destination: bytes) -> None:
        text = (
            f"client {session.client.name} sends packets for {ip_address(destination)}, which is in its own networks: "
            "dropped, since they would go round in circles; the client's machine needs a route there"
        )
        self._loop_log.log(self._log, logging.WARNING, trio.current_time(), text)

    def only_sender(self) -> Sender | None:
        """See `tun_io.read_device`."""
        return self.sessions[0].sender if len(self.sessions) == 1 else None

    # -- the network's side

    async def run_transport(
        self, listeners: ListenerManager, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, report started, and serve until cancelled. Raises HostError if it cannot listen."""
        async with trio.open_nursery() as nursery:
            virtual_host = VirtualHost(self._config.path, self._config.ingress, nursery, self._serve, self._log)
            with listeners.register(self._config.listen, virtual_host) as self.registration:
                task_status.started()
                await trio.sleep_forever()

    async def _serve(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Serve one request. A bug in it ends this request and nothing else. Raises PeerError, and HostError, which
        ends the interface."""
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
        """A refused connection stays pending, with a token or without one, so that nobody can hold all descriptors."""
        session, method, name = self._authenticate(exchange), exchange.head.method, exchange.client
        if session is None:
            text = f"{name} refused: unknown or missing token"
            self._refusal_log.log(self._log, logging.WARNING, trio.current_time(), text)
            await self._refuse(exchange, 403, RefusalReason.BAD_TOKEN)
            return
        if method not in ("GET", "PUT"):
            text = f"{name} refused: method {method[:20]}"
            session.client_log.refused(text)
            await self._refuse(exchange, 405, RefusalReason.BAD_METHOD, (("Allow", "GET, PUT"),))
            return
        websocket = exchange.head.asks_for_websocket and ClientHello.of(exchange.head.headers).may_use_websocket
        stream = "WebSocket" if websocket else "download" if method == "GET" else "upload"
        session.log.debug("%s from %s begins", stream, name)
        if is_of_another_session(session, exchange):
            await self._refuse(exchange, 409, RefusalReason.OTHER_SESSION)
            return
        if not self._can_serve(session, exchange):
            if session.parameters.device == "tap":
                why, text = RefusalReason.NO_TAP, "this interface carries Ethernet, and the peer does not offer it"
            else:
                why = RefusalReason.NO_ADDRESS
                text = "this client has addresses of IPv6 only, and the peer does not offer IPv6"
            session.client_log.refused(f"{name} refused: {text}")
            await self._refuse(exchange, 406, why)
            return
        endpoint.pending.remove(exchange.connection)
        ending, failed = "this server stops", 0  # the values for a cancellation
        try:
            if websocket:
                await serve_websocket(session, exchange)
            elif method == "GET":
                await serve_download(session, exchange)
            else:
                await serve_upload(session, exchange)
            session.log.debug("%s from %s ended cleanly", stream, name)
            ending = "the client ended it"
        except* PeerError as group:
            # The two halves of a stream may have noticed the same end, each in its own way. No variable here may hold
            # the error: its traceback holds this frame, and the cycle would keep the stream's buffers in memory.
            is_request, reason, ending, level = _describe_failure(group)
            counter = self.refusals if is_request else session.counters.ends
            counter[reason] += 1
            session.client_log.stream_ended(level, f"{stream} from {name} ended: {ending}")
        except* HostError:
            raise
        except* Exception as group:  # noqa: BLE001 - logged with its traceback, counted, answered
            ending, text = "an internal error", f"{stream} from {name} ended"
            failed = self._count_fault(session.counters.ends, session.log, text, group)
        finally:
            session.stream_ended(ending)
        if failed:
            await exchange.fail(failed)
        elif exchange.reusable:
            endpoint.add_pending(exchange.connection)  # until its next request has shown a token

    @staticmethod
    def _can_serve(session: Session, exchange: Exchange) -> bool:
        """Whether the client can use what it gets. An upload with a session ID belongs to a download that was served;
        one without belongs to a base client, which knows nothing of Ethernet."""
        hello = ClientHello.of(exchange.head.headers)
        if exchange.head.method == "PUT":
            if hello.session_id is not None:
                return True
            if session.parameters.device == "tap":
                return False
        return session.parameters.serves(hello.features)

    async def _refuse(
        self, exchange: Exchange, status: int, reason: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.refusals[reason] += 1
        try:
            await exchange.refuse(status, headers=headers)
        except PeerError as exc:  # the client did not wait for the answer
            self._log.debug("%s: %s", exchange.client, exc)

    def _authenticate(self, exchange: Exchange) -> Session | None:
        # Only hashes are looked up, so the timing of the dict reveals nothing about a token.
        for token, algorithm in product(exchange.head.tokens, ALGORITHMS):
            session = self._by_token.get((algorithm, digest(algorithm, token.encode("latin-1")).hex()))
            if session is not None:
                return session
        return None

    async def run_clock(self) -> None:
        """Tick every session once a second, for ever: see `Session.tick`."""
        forget_at = trio.current_time() + LOOP_S
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            if now >= forget_at:
                self._forget_loops()
                forget_at = now + LOOP_S
            if self._table.segment is not None:
                self._table.segment.tick(now)
            for number, session in enumerate(self.sessions, 1):  # a reload replaces the list
                try:
                    session.tick(now, TICK_S)
                except Exception as exc:  # noqa: BLE001 - it ends that session, and no other one
                    self._end_session(session, exc)
                if number % _TICKED_PER_STEP == 0:
                    await trio.lowlevel.checkpoint()

    def _end_session(self, session: Session, exc: Exception) -> None:
        """End the streams of a session after a bug outside of its requests. Its client connects again."""
        self._count_fault(session.counters.ends, session.log, "session ended", exc)
        try:
            session.fail()
        except Exception as further:  # noqa: BLE001 - as above
            self._count_fault(session.counters.ends, session.log, "session not ended", further)


def _no_route(key: bytes) -> DropReason:
    """Why a packet from the device goes to no client."""
    return DropReason.LINK_LOCAL if stays_on_link(key) else DropReason.NO_ROUTE
