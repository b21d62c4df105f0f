"""What carries a client's frames: GET and PUT, or a WebSocket where something on the way holds a PUT back.

HTTP comes first. An upload of which the server has seen nothing within UPLOAD_SEEN_S is held back; that is said once,
and a WebSocket takes its place until the next rotation, when HTTP is tried again. Where no WebSocket passes either,
HTTP stays, and a WebSocket is tried again now and then.

No clock of its own: times are seconds on whatever monotonic clock the caller reads.
"""

from __future__ import annotations

import logging
import math
from typing import Final

from ..config.model import TransportChoice
from ..errors import PeerError
from ..log import Log
from ..wire import control

UPLOAD_SEEN_S: Final = 3.0  # docs/protocol.md#upload_seen: after that something buffers the upload
# Where neither upload nor WebSocket passes, a WebSocket is tried again after this, then twice that, and so on.
RETRY_S: Final = 60.0
RETRY_LIMIT_S: Final = 3600.0

_REMEMBERED: Final = 8  # uploads, of which the server may still say that it has seen them

_REMEDY: Final = (
    "nginx: proxy_http_version 1.1 and proxy_request_buffering off; Apache: SetEnv proxy-prefetch-nonblocking 1; "
    "`tapotun probe` finds out more"
)


class TransportSelector:
    """Which of them the next stream is to be.

    Attributes:
        websocket: the next stream is to be one.
        offered: the server's newest answer said that it may be.
        automatic: the config leaves the choice to us.
        features: what to offer the server.
    """

    __slots__ = (
        "_authority",
        "_begun",
        "_follows",
        "_log",
        "_next_try",
        "_number",
        "_pause_s",
        "_unseen_since",
        "_warned",
        "automatic",
        "features",
        "offered",
        "websocket",
    )

    def __init__(self, choice: TransportChoice, authority: str, log: Log) -> None:
        """``authority``: the server's, for people."""
        self.automatic = choice == "auto"
        self.features = control.SUPPORTED - {control.WS} if choice == "http" else control.SUPPORTED
        self.websocket = choice == "websocket"
        self.offered = False
        self._authority = authority
        self._log = log
        self._number = 0
        self._begun: dict[int, float] = {}
        self._unseen_since: float | None = None
        self._follows = False
        self._warned: str | None = None  # with which consequence
        self._pause_s = RETRY_S
        self._next_try = -math.inf

    # -- what happens to uploads

    def number(self) -> int:
        """A number for an upload of which the server will say that it came."""
        self._number = self._number % 999_999_999 + 1
        return self._number

    def upload_begins(self, number: int, now: float, *, follows: bool = False) -> None:
        """One that breaks before it was seen is followed by another, so all of them together have UPLOAD_SEEN_S: a
        proxy may refuse in less what it holds back. ``follows``: it replaces one that still runs."""
        self._follows = follows
        if self._unseen_since is None:
            self._unseen_since = now
        self._begun[number] = now
        if len(self._begun) > _REMEMBERED:
            del self._begun[next(iter(self._begun))]

    def upload_seen(self, number: int | None, now: float) -> None:
        """The server has seen one; None: the newest. What was delivered late was held back all the same."""
        begun = self._begun.get(self._number if number is None else number, -math.inf)
        if now - begun < UPLOAD_SEEN_S:
            self._unseen_since = None
            self._warned = None

    def download_ends(self) -> None:
        """Nobody is there who could say that an upload came."""
        self._unseen_since = None

    def held_back(self, now: float) -> bool:
        """No upload has arrived for so long that something must be holding them back, or the path is down."""
        return self._unseen_since is not None and now - self._unseen_since >= UPLOAD_SEEN_S

    def passes(self, now: float) -> bool:
        """Uploads arrive, as far as one knows: the newest one, or, while that has time, the one that it follows."""
        return self._unseen_since is None or (self._follows and not self.held_back(now))

    # -- what follows from it

    @property
    def no_fallback(self) -> bool:
        """Nothing but HTTP is left to us."""
        return not (self.automatic and self.offered)

    def change(self, now: float) -> bool:
        """Whether a WebSocket is to be tried now. If so, the next stream is to be one."""
        if self.no_fallback or self.websocket or now < self._next_try or not self.held_back(now):
            return False
        self.websocket = True
        return True

    def changed(self) -> None:
        """A WebSocket carries the frames. Whether it may the next time too, is seen then."""
        if self._unseen_since is not None:
            self.warn_held_back("using a WebSocket instead")
        self._unseen_since = None
        self._pause_s = RETRY_S
        self._next_try = -math.inf

    def fails(self, failure: PeerError, now: float, *, established: bool) -> bool:
        """A WebSocket could not be had. Returns whether HTTP is to be tried in its place, at once.

        ``established``: the newest stream is or was a WebSocket. Then what a proxy says whose server restarts is no
        sign that none passes.
        """
        if self.automatic and (
            failure.reason.rules_out_websocket if established else failure.reason.suggests_no_websocket
        ):
            self.warn_held_back(f"a WebSocket does not pass either ({failure}); staying with HTTP")
            self._next_try = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, RETRY_LIMIT_S)
            self.back_to_http()
            return True
        if not established:
            self.back_to_http()
        return False

    def back_to_http(self) -> None:
        """If that is left to us."""
        self.websocket &= not self.automatic

    def forget(self) -> None:
        """The path is another one: what was learnt of the old one says nothing of it."""
        self._unseen_since = None
        self._pause_s = RETRY_S
        self._next_try = -math.inf
        self.back_to_http()

    def warn_no_fallback(self, now: float) -> None:
        """That, where nothing can be done about it, and the server has shown that it is there."""
        if self.no_fallback and self.held_back(now):
            self.warn_held_back()

    def warn_held_back(self, consequence: str = "") -> None:
        """Say that uploads are held back, what we do about that, and what a person can. Once, until one arrives."""
        again, self._warned = self._warned == consequence, consequence
        self._log.log(
            logging.DEBUG if again else logging.WARNING,
            "something between here and %s holds the upload back: no byte of it arrived within %.0f s; "
            "let the proxy stream request bodies (%s)%s",
            self._authority,
            UPLOAD_SEEN_S,
            _REMEDY,
            f"; {consequence}" if consequence else "",
        )
