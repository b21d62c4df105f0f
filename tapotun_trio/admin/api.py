"""The HTTP API: the table of routes, the permission of each, and its handler.

docs/admin.md documents the routes. Requests are untrusted input: a bad one gets an error response. `PeerError` is not
handled here: the owner of the connection does that.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from time import perf_counter
from typing import Final, NamedTuple, TypeAlias, TypeVar

import msgspec
import trio
from msgspec import Struct

from .. import __version__
from ..control.handlers import Process, mac_tables, process_status
from ..control.protocol import DisconnectArguments, ReloadArguments
from ..errors import TapotunError, is_peers_fault
from ..http.heads import BadRequest
from ..http.server import Exchange
from ..lifecycle.registry import NoSuchPeerError, Registry
from ..log import Faults, RateLimitedLog, process_logger
from ..status.model import ProcessStatus
from .access import NO_TOKEN, Access, Refused, Visitor, WrongToken, cookie
from .answers import JSON, Answer, decode, document, error, text
from .browser import limited_as
from .events import Events
from .health import not_ready
from .history import History
from .live import serve_live
from .metrics import render_in_parts
from .pages import Page

MAX_BODY_BYTES: Final = 16 * 1024
MAX_LIVE: Final = 16  # WebSockets
TURN_S: Final = (0.0005, 0.004)  # the shortest and the longest turn of a long task, after which other tasks run
SHOWN_MACS: Final = 1000  # addresses of each interface
STATUS_AGE_S: Final = 0.5  # a status that several WebSockets share is at most this old

# A request's target may be an absolute URL (RFC 9112 section 3.2.2).
_ABSOLUTE: Final = re.compile(r"^https?://[^/?#]*", re.IGNORECASE)

T = TypeVar("T")

# Reloads the config; with ``dry_run`` it only compares. Returns one line for each change; raises TapotunError.
Reload: TypeAlias = Callable[[bool], Awaitable[list[str]]]


class Permission(Enum):
    """Which requests may use a route."""

    EVERYBODY = "everybody"
    EVERYBODY_WITHOUT_TOKEN = "everybody, if no token is configured"
    WATCHERS = "with a token, or with a session"
    WATCHERS_LIVE = "as above, and from a page of this server"
    CONFIRMED = "as above, and with the session's CSRF token"
    ACTORS = "as above, and not with the read-only token"


class Request(NamedTuple):
    """One request. ``address``: for counting its failures; ``visitor``: None on a route for everybody."""

    exchange: Exchange
    address: str
    visitor: Visitor | None


# None: the handler has sent the response itself.
Handler: TypeAlias = Callable[[Request], Awaitable[Answer | None]]


class Login(Struct, forbid_unknown_fields=True):
    token: str


class AdminApi:
    """The routes of one admin listener.

    Args:
        reload: completes even if its caller is cancelled.
        on_authenticated: called for the connection of an authenticated request.
    """

    def __init__(
        self,
        access: Access,
        pages: dict[str, Page],
        events: Events,
        history: History,
        process: Process,
        registry: Registry,
        reload: Reload,
        on_authenticated: Callable[[Exchange], None],
    ) -> None:
        self.retiring = False  # another listener takes over: connections close after their next response
        self._access = access
        self._events = events
        self._history = history
        self._process = process
        self._registry = registry
        self._reload = reload
        self._on_authenticated = on_authenticated
        self.live = 0  # number of open WebSockets
        self._unauthenticated = RateLimitedLog()
        self._faults = Faults()
        self._rendering = trio.Lock()
        self._status: tuple[float, str] | None = None
        self._status_lock = trio.Lock()
        self.routes: dict[str, dict[str, tuple[Permission, Handler]]] = {
            "/healthz": {"GET": (Permission.EVERYBODY, self._healthz)},
            "/readyz": {"GET": (Permission.EVERYBODY, self._readyz)},
            "/metrics": {"GET": (Permission.EVERYBODY_WITHOUT_TOKEN, self._metrics)},
            "/api/login": {"POST": (Permission.EVERYBODY, self._log_in)},
            "/api/logout": {"POST": (Permission.CONFIRMED, self._log_out)},
            "/api/session": {"GET": (Permission.WATCHERS, self._session)},
            "/api/status": {"GET": (Permission.WATCHERS, self._show_status)},
            "/api/macs": {"GET": (Permission.WATCHERS, self._show_macs)},
            "/api/events": {"GET": (Permission.WATCHERS, self._show_events)},
            "/api/history": {"GET": (Permission.WATCHERS, self._show_history)},
            "/api/disconnect": {"POST": (Permission.ACTORS, self._disconnect)},
            "/api/reload": {"POST": (Permission.ACTORS, self._reload_config)},
            "/api/live": {"GET": (Permission.WATCHERS_LIVE, self._watch)},
            **{path: {"GET": (Permission.EVERYBODY, partial(self._page, page))} for path, page in pages.items()},
        }

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request. Raises PeerError; an internal error is logged and answered with 500."""
        path = _ABSOLUTE.sub("", exchange.head.target).partition("?")[0]
        plain = not path.startswith("/api/")
        close = self.retiring
        try:
            answer = await self._answer(exchange, path)
        except Refused as exc:
            if isinstance(exc, WrongToken):
                line = f"admin: {exchange.client} sent a wrong token"
                self._unauthenticated.log(process_logger(), logging.WARNING, trio.current_time(), line)
            answer = error(exc.status, str(exc), *exc.headers, plain=plain)
        except BadRequest as exc:
            answer, close = error(exc.status, str(exc), plain=plain), True
        except Exception as exc:
            if is_peers_fault(exc):
                raise
            # The error ends only this request. If the response has begun, the connection is closed without a second
            # response.
            self._faults.log(process_logger(), trio.current_time(), "admin: request ended", exc)
            answer, close = (
                None if exchange.answered else error(500, "internal error; the log has its traceback", plain=plain),
                True,
            )
        if answer is not None:
            await exchange.respond(answer.status, answer.fields(), answer.body, close=close or self.retiring)

    async def _answer(self, exchange: Exchange, path: str) -> Answer | None:
        head = exchange.head
        methods = self.routes.get(path)
        if methods is None:
            raise Refused(404, "there is no such page")
        method = "GET" if head.method == "HEAD" else head.method
        if method not in methods:
            allowed = [*methods, *(["HEAD"] if "GET" in methods else [])]
            raise Refused(405, f"{path} accepts {' and '.join(allowed)}", ("Allow", ", ".join(allowed)))
        permission, handler = methods[method]
        address = limited_as(exchange.connection.remote_address, head.headers)
        visitor = self._admit(permission, exchange, address)
        if visitor is not None:
            self._on_authenticated(exchange)
        return await handler(Request(exchange, address, visitor))

    def _admit(self, permission: Permission, exchange: Exchange, address: str) -> Visitor | None:
        """Check the permission. Returns the visitor; None: a route for everybody. Raises Refused."""
        head, now = exchange.head, trio.current_time()
        if permission is Permission.EVERYBODY or (
            permission is Permission.EVERYBODY_WITHOUT_TOKEN and not self._access.has_token
        ):
            return None
        if permission is Permission.ACTORS:
            return self._access.act(head, address, now)
        if permission is Permission.CONFIRMED:
            return self._access.confirm(head, address, now)
        if permission is Permission.WATCHERS_LIVE:
            return self._access.watch(head, address, now)
        return self._access.see(head, address, now)

    # ------------------------------------------------------------------ for other programs

    async def _healthz(self, request: Request) -> Answer:
        return text(200, "ok")

    async def _readyz(self, request: Request) -> Answer:
        reasons = not_ready(self._registry)
        return text(503, "\n".join(reasons)) if reasons else text(200, "ready")

    async def _metrics(self, request: Request) -> Answer:
        async with self._rendering:  # one at a time, so that many scrapes at once do not delay packets
            parts, kind = render_in_parts(await self._process_status(), request.exchange.head.headers.get("accept"))
            return Answer(200, await join_cooperatively(parts), kind)

    # ------------------------------------------------------------------ for the panel and other clients with a token

    async def _page(self, page: Page, request: Request) -> Answer:
        if not self._access.has_token:
            raise Refused(403, NO_TOKEN)
        headers = ("ETag", page.tag), ("Cache-Control", "no-cache")
        if page.is_known(request.exchange.head.headers.get("if-none-match", "")):
            return Answer(304, headers=headers)
        return Answer(200, page.body, page.kind, headers)

    async def _log_in(self, request: Request) -> Answer:
        head = request.exchange.head
        login = await self._read(request, Login)
        identifier, session = self._access.log_in(login.token, head, request.address, trio.current_time())
        self._on_authenticated(request.exchange)
        limited = "" if session.may_act else ", read-only"
        process_logger().info("admin: %s logged in%s", request.exchange.client, limited)
        return Answer(204, headers=(cookie(identifier, secure=_is_secure(request)),))

    async def _log_out(self, request: Request) -> Answer:
        await request.exchange.read_body(MAX_BODY_BYTES)
        assert request.visitor is not None
        if request.visitor.session is None:
            raise Refused(400, "there is no session to end: the request itself has the token")
        self._access.log_out(request.visitor.session)
        return Answer(204, headers=(cookie("", secure=_is_secure(request)),))

    async def _session(self, request: Request) -> Answer:
        assert request.visitor is not None
        session, may_act = request.visitor.session, request.visitor.may_act
        return document(
            {
                "csrf": None if session is None else session.csrf,
                "may_act": may_act,
                "name": self._process.name,
                "version": __version__,
                "pid": os.getpid(),
            }
        )

    async def _show_status(self, request: Request) -> Answer:
        return document(await self._process_status())

    async def _show_macs(self, request: Request) -> Answer:
        return document({"interfaces": await mac_tables(self._registry, [], SHOWN_MACS)})

    async def _show_events(self, request: Request) -> Answer:
        return document({"events": self._events.since(0)})

    async def _show_history(self, request: Request) -> Answer:
        return Answer(200, await join_cooperatively(self._history.document()), JSON)

    async def _disconnect(self, request: Request) -> Answer:
        arguments = await self._read(request, DisconnectArguments)
        try:
            sessions = self._registry.disconnect(arguments.interface, arguments.client)
        except NoSuchPeerError as exc:
            raise Refused(404, str(exc)) from exc
        where = "" if arguments.interface is None else f"{arguments.interface} "
        process_logger().info("admin: %s disconnected %s%s", request.exchange.client, where, arguments.client)
        return document({"sessions": sessions})

    async def _reload_config(self, request: Request) -> Answer:
        arguments = await self._read(request, ReloadArguments)
        if not arguments.dry_run:
            process_logger().info("admin: %s requested a reload", request.exchange.client)
        try:
            return document({"changes": await self._reload(arguments.dry_run)})
        except TapotunError as exc:
            raise Refused(409, str(exc)) from exc

    async def _watch(self, request: Request) -> None:
        assert request.visitor is not None
        session = request.visitor.session
        if self.live >= MAX_LIVE:
            raise Refused(503, f"{MAX_LIVE} panels are open already; close one")
        self.live += 1
        try:
            await serve_live(
                request.exchange,
                self._status_message,
                self._events,
                lambda: self.retiring or (session is not None and session.is_over(trio.current_time())),
            )
        finally:
            self.live -= 1

    # ------------------------------------------------------------------

    async def _read(self, request: Request, kind: type[T]) -> T:
        return decode(await request.exchange.read_body(MAX_BODY_BYTES), kind)

    async def _process_status(self) -> ProcessStatus:
        return await process_status(self._process, self._registry, [])

    async def _status_message(self) -> str:
        async with self._status_lock:
            now = trio.current_time()
            if self._status is None or now - self._status[0] >= STATUS_AGE_S:
                at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                message = {"type": "status", "at": at, "status": await self._process_status()}
                self._status = now, msgspec.json.encode(message).decode()
            return self._status[1]


async def join_cooperatively(parts: Iterable[bytes]) -> bytes:
    """Join parts that take long to make, with pauses in which packets pass.

    A turn lasts as long as the previous turn of the other tasks, within the limits of `TURN_S`. With shorter turns a
    scrape would not end in time on a busy machine.
    """
    joined, begun, others_s = bytearray(), perf_counter(), 0.0
    for part in parts:
        joined += part
        paused = perf_counter()
        if paused - begun >= min(max(others_s, TURN_S[0]), TURN_S[1]):
            await trio.lowlevel.checkpoint()
            begun = perf_counter()
            others_s = begun - paused
    return bytes(joined)


def _is_secure(request: Request) -> bool:
    """Whether the browser uses https, according to its proxy. A forged header only makes the browser withhold the
    cookie."""
    return request.exchange.head.headers.get("x-forwarded-proto", "").strip().lower() == "https"
