"""Authentication: the admin token, the read-only token, and the sessions of browsers that have logged in with one.

Only hashes of the tokens and of session identifiers are kept. They are compared in constant time.
"""

from __future__ import annotations

import math
import os
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..config.model import Secret, TokenHash
from ..digests import are_equal, digest
from ..http.heads import RequestHead
from .browser import COOKIE, is_same_origin, session_ids
from .limits import Limiter

SESSION_S: Final = 12 * 3600.0
MAX_SESSIONS: Final = 64  # another login ends the oldest session
CSRF_HEADER: Final = "x-csrf-token"

NO_TOKEN: Final = 'no token is configured: add "token" to "admin" in the config (tapotun token makes one) and reload'
READ_ONLY: Final = "this login may only read: use the token of admin.token, not that of admin.read_token"
_NOT_LOGGED_IN: Final = "not logged in: send the admin token, or log in at /"
_OTHER_ORIGIN: Final = (
    "the request's Origin is not this Host; a proxy must forward Host (nginx: proxy_set_header Host $http_host)"
)


class Refused(Exception):
    """A request that gets an error. ``headers``: extra headers of the response. The text is one line for a person."""

    def __init__(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class WrongToken(Refused):
    """A wrong token, which may be an attempt to guess it."""

    def __init__(self) -> None:
        super().__init__(401, "this is not the admin token", ("WWW-Authenticate", "Bearer"))


@dataclass(slots=True, eq=False)
class Session:
    """The session of a browser that has logged in.

    ``until``: when the browser must log in again. ``may_act``: whether it may change anything, and not only read.
    """

    csrf: str = field(repr=False)
    until: float
    may_act: bool
    ended: bool = False

    def is_over(self, now: float) -> bool:
        return self.ended or now >= self.until


@dataclass(frozen=True, slots=True)
class Visitor:
    """An authenticated client.

    ``session``: None if the request itself carries the token. ``may_act``: whether it may change anything, and not
    only read.
    """

    session: Session | None
    may_act: bool


class Access:
    """Checks requests against the tokens. ``now`` is trio's time, and ``address`` comes from `limited_as`."""

    def __init__(self, token: TokenHash | Secret | None, read_token: TokenHash | Secret | None = None) -> None:
        """``token`` grants full access; ``read_token`` grants only reading."""
        self._token = _hashed(token)
        self._read_token = _hashed(read_token)
        self._sessions: dict[bytes, Session] = {}  # oldest first, which is also the order in which they expire
        self._limiter = Limiter()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions of browsers, oldest first. Expired sessions are included until the next login."""
        return tuple(self._sessions.values())

    @property
    def has_token(self) -> bool:
        return self._token is not None or self._read_token is not None

    def see(self, head: RequestHead, address: str, now: float) -> Visitor:
        """Allow a request that only reads. It needs either token or a session. Raises Refused."""
        if not self.has_token:
            raise Refused(403, NO_TOKEN)
        if head.tokens:
            return Visitor(None, self._check(head.tokens, address, now))
        session = self._find(head.headers, now)
        if session is None:
            raise Refused(401, _NOT_LOGGED_IN, ("WWW-Authenticate", "Bearer"))
        return Visitor(session, session.may_act)

    def watch(self, head: RequestHead, address: str, now: float) -> Visitor:
        """As `see`, and the Origin must match: CORS does not keep another site's page from opening a WebSocket.

        Raises Refused.
        """
        visitor = self.see(head, address, now)
        if visitor.session is not None:
            self._check_origin(head.headers)
        return visitor

    def confirm(self, head: RequestHead, address: str, now: float) -> Visitor:
        """As `watch`, and a browser must send its session's CSRF token. Raises Refused."""
        visitor = self.watch(head, address, now)
        session, shown = visitor.session, head.headers.get(CSRF_HEADER, "")
        if session is not None and not _same(shown, session.csrf):
            raise Refused(403, "the X-CSRF-Token is missing or not this session's; load the page again")
        return visitor

    def act(self, head: RequestHead, address: str, now: float) -> Visitor:
        """As `confirm`, but also refuse the read-only token. Raises Refused."""
        visitor = self.confirm(head, address, now)
        if not visitor.may_act:
            raise Refused(403, READ_ONLY)
        return visitor

    def log_in(self, token: str, head: RequestHead, address: str, now: float) -> tuple[str, Session]:
        """Begin a session. Returns its identifier, for the cookie, and the session. Raises Refused, for example if the
        token is wrong."""
        if not self.has_token:
            raise Refused(403, NO_TOKEN)
        if "origin" in head.headers:
            self._check_origin(head.headers)
        may_act = self._check([token], address, now)
        for key in [key for key, session in self._sessions.items() if session.is_over(now)]:
            del self._sessions[key]
        if len(self._sessions) >= MAX_SESSIONS:
            self._end(next(iter(self._sessions)))
        identifier = _new_secret()
        session = Session(_new_secret(), now + SESSION_S, may_act)
        self._sessions[_key(identifier)] = session
        return identifier, session

    def log_out(self, session: Session) -> None:
        """End the session and all its open connections."""
        for key, other in list(self._sessions.items()):
            if other is session:
                self._end(key)

    def _end(self, key: bytes) -> None:
        self._sessions.pop(key).ended = True

    def _find(self, headers: Mapping[str, str], now: float) -> Session | None:
        found = (self._sessions.get(_key(identifier)) for identifier in session_ids(headers))
        return next((session for session in found if session is not None and not session.is_over(now)), None)

    def _check(self, shown: list[str], address: str, now: float) -> bool:
        """Whether one of these tokens grants full access. Raises Refused if none of them is valid."""
        wait_s = self._limiter.wait_s(address, now)
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise Refused(429, f"too many wrong tokens: wait {seconds} s", ("Retry-After", str(seconds)))
        may_act = any(_is_token(token, self._token) for token in shown)
        if not may_act and not any(_is_token(token, self._read_token) for token in shown):
            self._limiter.failed(address, now)
            raise WrongToken()
        return may_act

    @staticmethod
    def _check_origin(headers: Mapping[str, str]) -> None:
        if not is_same_origin(headers):
            raise Refused(403, _OTHER_ORIGIN)


def _new_secret() -> str:
    """256 random bits. `secrets` has the same, but imports `hmac`, which loads OpenSSL."""
    return urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()


def cookie(identifier: str, *, secure: bool) -> tuple[str, str]:
    """The header that sets the session cookie. An empty identifier gives the header that deletes it."""
    age_s = int(SESSION_S) if identifier else 0
    value = f"{COOKIE}={identifier}; Max-Age={age_s}; Path=/; HttpOnly; SameSite=Strict"
    return "Set-Cookie", f"{value}; Secure" if secure else value


def _hashed(token: TokenHash | Secret | None) -> TokenHash | None:
    if isinstance(token, Secret):
        return TokenHash("sha256", digest("sha256", token.reveal().encode()).hex())
    return token


def _is_token(shown: str, known: TokenHash | None) -> bool:
    if known is None:
        return False
    # Headers are decoded as Latin-1 and the config is ASCII. But JSON may contain any character, even surrogates.
    found = digest(known.algorithm, shown.encode("utf-8", "surrogatepass"))
    return _same(found.hex(), known.digest)


def _key(identifier: str) -> bytes:
    """The key in a dict: a hash, so that the timing of a lookup reveals nothing about identifiers."""
    return digest("sha256", identifier.encode())


def _same(shown: str, known: str) -> bool:
    return are_equal(shown.encode("utf-8", "surrogatepass"), known.encode())
