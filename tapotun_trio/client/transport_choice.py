"""The choice of a client's transport: GET and PUT, or a WebSocket where something on the path stops one of them.

The client starts with HTTP. If the server has seen nothing of an upload within UPLOAD_SEEN_S, something on the path
holds uploads back or refuses them. The client logs this once and replaces the two streams by a WebSocket. At each
rotation of the WebSocket it tries HTTP first. If no WebSocket passes either, the client stays with HTTP, and tries a
WebSocket again now and then.

Something on the path may also refuse a GET or hold its answer back. Some proxies forward the head of an answer only
together with a part of its body, and some locations accept only WebSockets. Then the client tries a WebSocket in the
same attempt. If the WebSocket does not pass, the pause before the next one is the same as for uploads. If it passes,
the client sends no GET for GET_RETRY_S: a GET that reaches the server ends the WebSocket, even if the proxy then keeps
its answer.

Something may also end uploads again and again that have arrived: at a size (nginx's client_max_body_size, 1 MiB by
default), or at ages that do not agree, so that they cannot be replaced in time. Then the client tries a WebSocket as
well, and no upload for GET_RETRY_S.

No clock of its own: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Final

from ..config.model import TransportChoice
from ..errors import EndReason, PeerError
from ..http.refusal import RefusedError
from ..log import Log, flap_damped
from ..wire import control

UPLOAD_SEEN_S: Final = 3.0  # docs/protocol.md#upload_seen: after that something buffers the upload
# Where neither upload nor WebSocket passes, a WebSocket is tried again after this, then twice that, and so on.
RETRY_S: Final = 60.0
RETRY_LIMIT_S: Final = 3600.0

# A server answers a GET at once. An answer that takes longer than this is held back, or the path is down.
GET_ANSWER_S: Final = 5.0
GET_RETRY_S: Final = 3600.0
# Statuses with which a proxy does not refuse GETs as such: login required, rate limit, server down.
NOT_OF_THE_PATH: Final = frozenset({401, 407, 408, 429, 500, 502, 503, 504, 511})
_CLOSED_IN_A_ROW: Final = 3  # GETs that were closed without an answer; a server that restarts closes one or two

# So many uploads that had arrived were ended on the path within CUTS_S, while the download lived: the next one is not
# expected to last longer. One with a 413 shows that the size is limited, so another one with a 413 is enough.
CUTS: Final = 4
CUTS_BY_SIZE: Final = 2
CUTS_S: Final = 60.0

_REMEMBERED: Final = 8  # uploads about which the server may still say that it has seen them
_LAST_NUMBER: Final = 999_999_999  # x-tun-upload has up to 9 digits (docs/protocol.md)

_REMEDY: Final = (
    "nginx: proxy_http_version 1.1 and proxy_request_buffering off; Apache: SetEnv proxy-prefetch-nonblocking 1; "
    "`tapotun probe` finds out more"
)


class TransportState(Enum):
    """The kind of the next stream, and the reason for it."""

    HTTP = "HTTP"  # uploads arrive, as far as is known
    TRYING_WEBSOCKET = "trying a WebSocket"  # uploads are held back
    WEBSOCKET = "WebSocket"  # a WebSocket carried the frames last
    WEBSOCKET_BLOCKED = "no WebSocket"  # uploads are held back and no WebSocket passes: HTTP, until the next try
    # The config leaves no choice: no event changes these states.
    HTTP_ONLY = "HTTP only"
    WEBSOCKET_ONLY = "WebSocket only"


class TransportEvent(Enum):
    """An event that may change the state."""

    HELD_BACK = "uploads are held back or refused"
    CUT = "uploads are ended again and again"
    GET_FAILS = "no GET passes"
    WEBSOCKET_OPENED = "a WebSocket was opened"
    WEBSOCKET_RULED_OUT = "no WebSocket passes"
    WEBSOCKET_FAILED = "no WebSocket this time"  # the path is down, or the server restarts
    HTTP_WORKS = "HTTP works"  # a probe's upload arrived, or a GET was answered after earlier ones were not
    PATH_CHANGED = "another path"


_S, _E = TransportState, TransportEvent

# Any other pair leaves the state as it is. A WebSocket that opens or fails in the state HTTP was begun before the path
# changed, so it says nothing about the present path.
TRANSITIONS: Final[Mapping[tuple[TransportState, TransportEvent], TransportState]] = {
    (_S.HTTP, _E.HELD_BACK): _S.TRYING_WEBSOCKET,
    (_S.WEBSOCKET_BLOCKED, _E.HELD_BACK): _S.TRYING_WEBSOCKET,
    (_S.HTTP, _E.CUT): _S.TRYING_WEBSOCKET,
    (_S.WEBSOCKET_BLOCKED, _E.CUT): _S.TRYING_WEBSOCKET,
    (_S.HTTP, _E.GET_FAILS): _S.TRYING_WEBSOCKET,
    (_S.WEBSOCKET_BLOCKED, _E.GET_FAILS): _S.TRYING_WEBSOCKET,
    (_S.TRYING_WEBSOCKET, _E.WEBSOCKET_OPENED): _S.WEBSOCKET,
    (_S.TRYING_WEBSOCKET, _E.WEBSOCKET_RULED_OUT): _S.WEBSOCKET_BLOCKED,
    (_S.TRYING_WEBSOCKET, _E.WEBSOCKET_FAILED): _S.HTTP,
    (_S.TRYING_WEBSOCKET, _E.PATH_CHANGED): _S.HTTP,
    (_S.WEBSOCKET, _E.WEBSOCKET_RULED_OUT): _S.WEBSOCKET_BLOCKED,
    (_S.WEBSOCKET, _E.HTTP_WORKS): _S.HTTP,
    (_S.WEBSOCKET, _E.PATH_CHANGED): _S.HTTP,
    (_S.WEBSOCKET_BLOCKED, _E.HTTP_WORKS): _S.HTTP,
    (_S.WEBSOCKET_BLOCKED, _E.PATH_CHANGED): _S.HTTP,
}
_FIXED: Final[Mapping[TransportChoice, TransportState]] = {
    "http": TransportState.HTTP_ONLY,
    "websocket": TransportState.WEBSOCKET_ONLY,
}


class TransportSelector:
    """Decides what the next stream is to be.

    Attributes:
        state: the decision. Only `_fire` writes it.
        offered: whether the server's newest answer to a GET offered WebSockets; None: no GET was answered yet.
        features: the features to offer the server.
    """

    __slots__ = (
        "_authority",
        "_began",
        "_closed",
        "_cut",
        "_cuts",
        "_download_held",
        "_explanation",
        "_follows",
        "_get_failure",
        "_gets_from",
        "_given_up",
        "_lines",
        "_log",
        "_next_try",
        "_number",
        "_pause_s",
        "_refusal",
        "_refused",
        "_unseen_since",
        "_warned",
        "_websocket_worked",
        "features",
        "offered",
        "state",
    )

    def __init__(self, choice: TransportChoice, authority: str, log: Log) -> None:
        """``authority``: host and port of the server, for logs."""
        self.state = _FIXED.get(choice, TransportState.HTTP)
        self.features = control.SUPPORTED - {control.WS} if choice == "http" else control.SUPPORTED
        self.offered: bool | None = None
        self._authority = authority
        self._log = log
        self._lines = flap_damped()
        self._number = 0
        self._began: dict[int, float] = {}  # the newest uploads
        self._unseen_since: float | None = None  # the time since which no upload has arrived; None: the newest one has
        self._follows = False  # the newest upload replaces one that still runs
        self._given_up = False  # the newest upload was given up, so the one that it was to replace continues
        self._warned: str | None = None  # the consequence that the newest warning named
        self._pause_s = RETRY_S
        self._next_try = -math.inf
        self._explanation: str | None = None  # the newest warning of `warn_held_back`
        self._refusal: PeerError | None = None  # of the newest upload that was refused
        self._refused = 0  # the number of that upload
        self._get_failure: PeerError | None = None  # why the last WebSocket was tried, if the reason was a failed GET
        self._gets_from = -math.inf  # after a GET has failed, HTTP is not probed before this time
        self._download_held = False  # the newest WebSocket was tried because the download was held back
        self._closed = 0  # GETs in a row that were closed without an answer
        self._websocket_worked = False  # whether one has worked on this path
        self._cuts: deque[tuple[float, EndReason]] = deque(maxlen=CUTS)  # when uploads that had arrived were ended
        self._cut: PeerError | None = None  # how, if a WebSocket was tried for that

    @property
    def automatic(self) -> bool:
        """Whether the config leaves the choice to us."""
        return self.state not in (TransportState.HTTP_ONLY, TransportState.WEBSOCKET_ONLY)

    @property
    def websocket(self) -> bool:
        """Whether the next stream is to be a WebSocket."""
        return self.state in (
            TransportState.TRYING_WEBSOCKET,
            TransportState.WEBSOCKET,
            TransportState.WEBSOCKET_ONLY,
        )

    def _fire(self, event: TransportEvent) -> None:
        """The one place that changes the state."""
        before, self.state = self.state, TRANSITIONS.get((self.state, event), self.state)
        if before is not self.state:
            self._log.debug("transport: %s -> %s (%s)", before.value, self.state.value, event.value)

    # -- whether uploads arrive

    def next_upload_number(self) -> int:
        """A number under which the server will say that it has seen this upload."""
        self._number = self._number % _LAST_NUMBER + 1
        return self._number

    def upload_began(self, number: int, now: float, *, follows: bool = False) -> None:
        """An upload begins. If it breaks before it was seen, the next one gets only the rest of UPLOAD_SEEN_S: a proxy
        that holds uploads back may refuse each of them sooner than that. ``follows``: it replaces one that still
        runs."""
        self._follows, self._given_up = follows, False
        if self._unseen_since is None:
            self._unseen_since = now
        self._began[number] = now
        if len(self._began) > _REMEMBERED:
            del self._began[next(iter(self._began))]

    def upload_seen(self, number: int | None, now: float) -> None:
        """The server has seen this upload; None: the newest. An upload that it saw too late counts as held back."""
        began = self._began.get(self._number if number is None else number, -math.inf)
        if now - began < UPLOAD_SEEN_S:
            self._unseen_since = self._refusal = None
            self._warned = None

    def upload_given_up(self) -> None:
        """The newest upload was given up. The one that it was to replace continues."""
        self._given_up = True
        if not self.websocket:  # otherwise this time is the reason for the WebSocket that is being tried
            self._unseen_since = None

    def upload_failed(self, failure: PeerError | None) -> None:
        """An upload ended with this failure. If the server has seen nothing of it, it was refused or closed without an
        answer, and not held back."""
        if failure is None or self._unseen_since is None:
            return
        # The segments were too large for any transport. The next upload has smaller ones.
        if failure.reason is EndReason.PATH_MTU:
            self._unseen_since = self._refusal = None
        elif isinstance(failure, RefusedError) or failure.reason.is_one_way:
            # An answer says more than a connection that broke, which is often how the same refusal shows.
            if isinstance(failure, RefusedError) or not isinstance(self._refusal, RefusedError):
                self._refusal = failure.without_traceback()
            self._refused = self._number

    def upload_cut(self, failure: PeerError, now: float, *, timed: bool) -> bool:
        """Something on the path has ended an upload that had arrived, and the download lives. Returns whether to try a
        WebSocket now, since that has happened again and again.

        ``timed``: a limit on the time of uploads is known, so they are replaced before it.
        """
        by_size = failure.reason == EndReason.http(413)
        if timed and not by_size:
            return False
        self._cuts.append((now, failure.reason))
        recent = [reason for at, reason in self._cuts if now - at <= CUTS_S]
        enough = len(recent) >= CUTS or (by_size and recent.count(failure.reason) >= CUTS_BY_SIZE)
        if not enough or self.no_fallback or self.websocket or now < self._next_try:
            return False
        self._cut = failure.without_traceback()
        self._fire(TransportEvent.CUT)
        return True

    def download_ended(self) -> None:
        """The server can no longer say that an upload arrived."""
        self._unseen_since = self._refusal = None
        self._cuts.clear()

    def download_began(self, now: float) -> None:
        """A download began after the previous one had ended. What the server said about an upload on the previous one
        may be lost. The server repeats it on the new one, so UPLOAD_SEEN_S begins again."""
        if self._unseen_since is not None:
            self._unseen_since = now
            self._began[self._number] = now

    def held_back(self, now: float) -> bool:
        """Whether no upload has arrived for UPLOAD_SEEN_S: something must be holding them back, or the path is down."""
        return self._unseen_since is not None and now - self._unseen_since >= UPLOAD_SEEN_S

    def problem(self, now: float) -> str | None:
        """Why nothing passes one way, as it was logged; None: both ways work, or it is not known yet."""
        return self._explanation if self._download_held or self.held_back(now) else None

    def uploads_pass(self, now: float) -> bool:
        """Whether uploads arrive, as far as is known. They do if the newest one was seen. They also do if the one that
        it replaces still runs, and the newest may still be seen in time or was given up."""
        return self._unseen_since is None or (self._follows and (self._given_up or not self.held_back(now)))

    # -- whether a GET is answered

    def get_answer_s(self, now: float, limit_s: float) -> float:
        """How long to wait for the answer to a GET: ``limit_s``, or less if a WebSocket can be tried next."""
        hasty = self.state is TransportState.WEBSOCKET or self._tries_after_get(now)
        return min(GET_ANSWER_S, limit_s) if hasty else limit_s

    def get_failed(self, failure: PeerError, now: float) -> bool:
        """A GET has failed, and there is no other download. Returns whether to try a WebSocket now. If so, the caller
        reports the result with `websocket_opened` or `websocket_failed`."""
        self._closed = self._closed + 1 if failure.reason == EndReason.CLOSED else 0
        refused = isinstance(failure, RefusedError) and not failure.is_own and failure.status not in NOT_OF_THE_PATH
        stopped = refused or failure.reason in (EndReason.SILENT, EndReason.BAD_CONF)
        if not (stopped or self._closed >= _CLOSED_IN_A_ROW) or not self._tries_after_get(now):
            return False
        self._get_failure = failure.without_traceback()
        self._fire(TransportEvent.GET_FAILS)
        return True

    def get_answered(self) -> None:
        """A GET was answered with 200."""
        self._closed = 0
        if self._get_failure is not None:
            self._get_failure = None
            self._fire(TransportEvent.HTTP_WORKS)
            self._begin_anew()

    def _tries_after_get(self, now: float) -> bool:
        """Whether to try a WebSocket after a failed GET. Not if the server is known not to accept one, and not before
        the next try is due."""
        state = self.state in (TransportState.HTTP, TransportState.WEBSOCKET_BLOCKED)
        return state and self.offered is not False and now >= self._next_try

    def probes_http(self, now: float) -> bool:
        """Whether HTTP may be tried while a WebSocket works."""
        return self.automatic and now >= self._gets_from

    # -- what to do about it

    @property
    def no_fallback(self) -> bool:
        """Whether only HTTP can be used."""
        return not (self.automatic and self.offered)

    def try_websocket(self, now: float, *, download_held: bool = False) -> bool:
        """Choose a WebSocket if it is time to try one. Returns whether this call chose it.

        ``download_held``: nothing of the download has arrived after its head, so the server's confirmation of an upload
        cannot arrive either.
        """
        if self.no_fallback or self.websocket or now < self._next_try or not self.held_back(now):
            return False
        self._download_held = download_held
        self._fire(TransportEvent.HELD_BACK)
        return True

    def websocket_opened(self, now: float) -> None:
        """A WebSocket carries the frames."""
        if self._get_failure is not None:
            if self.state is TransportState.TRYING_WEBSOCKET:
                text = f"{self._get_failure}; using a WebSocket instead"
                self._lines.log(self._log, logging.WARNING, now, text)
            self._leave_http(now)
        elif self._cut is not None:
            if self.state is TransportState.TRYING_WEBSOCKET:
                self._warn_cut(now, "using a WebSocket instead")
            self._leave_http(now)
        elif self._unseen_since is not None:
            self.warn_held_back(now, "using a WebSocket instead")
        self._fire(TransportEvent.WEBSOCKET_OPENED)
        self._begin_anew()
        self._websocket_worked = True

    def _leave_http(self, now: float) -> None:
        """Do not try HTTP for GET_RETRY_S."""
        if now >= self._gets_from:
            self._gets_from = now + GET_RETRY_S

    def _warn_cut(self, now: float, consequence: str) -> None:
        text = f"uploads to {self._authority} arrive, and are ended again and again: {self._cut}; {consequence}"
        self._lines.log(self._log, logging.WARNING, now, text)

    def websocket_failed(self, failure: PeerError, now: float) -> bool:
        """A WebSocket could not be opened. Returns whether to try HTTP at once instead.

        Once a WebSocket has worked, the answers of a proxy whose server restarts do not rule WebSockets out.
        """
        if self._given_up:
            self._unseen_since = None
        rules_out = {
            TransportState.TRYING_WEBSOCKET: failure.reason.suggests_no_websocket,
            TransportState.WEBSOCKET: failure.reason.rules_out_websocket,
        }
        if not rules_out.get(self.state, False):
            if self.state is TransportState.TRYING_WEBSOCKET:
                self._cut = None
            self._fire(TransportEvent.WEBSOCKET_FAILED)
            return False
        by_get = self._get_failure is not None  # the failure of the GET is logged instead, and says more
        if self._cut is not None:
            self._warn_cut(now, f"a WebSocket does not pass either ({failure}); staying with HTTP")
            self._cut = None
        elif not by_get:
            self.warn_held_back(now, f"a WebSocket does not pass either ({failure}); staying with HTTP")
        if not (by_get and self._websocket_worked):  # otherwise the server is down; GETs and WebSockets alternate
            self._next_try = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, RETRY_LIMIT_S)
        self._fire(TransportEvent.WEBSOCKET_RULED_OUT)
        return True

    def http_works(self) -> None:
        """An upload over HTTP arrived while a WebSocket carried the frames."""
        self._get_failure = self._cut = None
        self._fire(TransportEvent.HTTP_WORKS)

    def path_changed(self) -> None:
        """Forget what was learned about the old path, since it says nothing about the new one."""
        self._fire(TransportEvent.PATH_CHANGED)
        self._begin_anew()
        self._get_failure, self._gets_from, self._closed = None, -math.inf, 0
        self._cut = None
        self._websocket_worked = False

    def _begin_anew(self) -> None:
        self._unseen_since = self._refusal = None
        self._cuts.clear()
        self._download_held = False
        self._pause_s = RETRY_S
        self._next_try = -math.inf

    def warn_no_fallback(self, now: float) -> None:
        """Warn if uploads are held back or refused and only HTTP can be used. Call this when the server has just shown
        that the path is up."""
        if self.no_fallback and self.held_back(now):
            self.warn_held_back(now)

    def warn_held_back(self, now: float, consequence: str = "") -> None:
        """Warn that uploads are held back or refused, and name the remedy and the ``consequence``. Further calls only
        log at debug level until an upload arrives or the consequence changes."""
        again, self._warned = self._warned == consequence, consequence
        waits = self._number != self._refused and now - self._began.get(self._number, now) >= UPLOAD_SEEN_S
        if self._download_held:
            text = (
                f"something between here and {self._authority} holds the download back: nothing came behind the head "
                f"of its answer within {UPLOAD_SEEN_S:.0f} s; let the proxy stream responses (nginx: proxy_buffering "
                "off; `tapotun probe` finds out more)"
            )
        elif self._refusal is not None and not waits:  # the newest upload may still be refused like the one before
            text = f"no upload to {self._authority} passes: {self._refusal}"
        else:
            text = (
                f"something between here and {self._authority} holds the upload back: no byte of it arrived within "
                f"{UPLOAD_SEEN_S:.0f} s; let the proxy stream request bodies ({_REMEDY})"
            )
        text = f"{text}; {consequence}" if consequence else text
        self._explanation = text
        if again:
            self._log.debug("%s", text)
        else:
            self._lines.log(self._log, logging.WARNING, now, text)
