"""The states of a client, the events that change them, and the one place where they change.

::

                 HTTP_OPENED             WEBSOCKET_OPENED
    CONNECTING ───────────────▶ HTTP ───────────────────────▶ WEBSOCKET ◀──┐
                                 ▲                               │ PROBE_  │ PROBE_
                                 │                               ▼ BEGAN   │ ENDED
                                 └──────── HTTP_OPENED ───── PROBING_HTTP ─┘

- LOST leads from HTTP and WEBSOCKET back to CONNECTING.
- TOKEN_TAKEN leads from each of these states to TAKEN_OVER; the next HTTP_OPENED or WEBSOCKET_OPENED leads out of it.
- STOP leads to STOPPED, the last state.

`TRANSITIONS` has every pair of state and event that can happen. Any other pair is a bug, and raises KeyError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import trio

from ..datapath.counters import Transport
from ..datapath.sender import BASE_KEEPALIVE, BASE_SILENCE_S, KeepalivePolicy
from ..log import Log


class ClientState(Enum):
    """What carries the frames of a client at present. The values are for the log."""

    CONNECTING = "connecting"  # nothing: the first stream, or the next one after a failure, is not open yet
    HTTP = "HTTP"  # a download, and the uploads that may be opened while it is there
    WEBSOCKET = "WebSocket"  # one WebSocket, in both directions
    PROBING_HTTP = "probing HTTP"  # still the WebSocket, while an upload over HTTP is tried
    TAKEN_OVER = "taken over"  # nothing: another machine uses the token, and this client waits until it is gone
    STOPPED = "stopped"  # nothing, for ever


class ClientEvent(Enum):
    """An event that may change the state. The values are for the log."""

    HTTP_OPENED = "download opened"
    WEBSOCKET_OPENED = "WebSocket opened"
    PROBE_BEGAN = "rotation of the WebSocket"
    PROBE_ENDED = "end of the probe"  # if the probe succeeded, HTTP_OPENED came before this
    REPLACEMENT_FAILED = "replacement failed"  # the present download or WebSocket continues
    LOST = "download lost"  # the present download or WebSocket has ended, or none could be opened
    TOKEN_TAKEN = "token taken"  # the server said so
    STOP = "stop"


_S, _E = ClientState, ClientEvent

TRANSITIONS: Final[Mapping[tuple[ClientState, ClientEvent], ClientState]] = {
    (_S.CONNECTING, _E.HTTP_OPENED): _S.HTTP,
    (_S.CONNECTING, _E.WEBSOCKET_OPENED): _S.WEBSOCKET,
    (_S.CONNECTING, _E.LOST): _S.CONNECTING,
    (_S.CONNECTING, _E.TOKEN_TAKEN): _S.TAKEN_OVER,  # the last frame of a stream that has been given up
    (_S.CONNECTING, _E.STOP): _S.STOPPED,
    (_S.HTTP, _E.HTTP_OPENED): _S.HTTP,  # a rotation
    (_S.HTTP, _E.WEBSOCKET_OPENED): _S.WEBSOCKET,
    (_S.HTTP, _E.PROBE_ENDED): _S.HTTP,
    (_S.HTTP, _E.REPLACEMENT_FAILED): _S.HTTP,
    (_S.HTTP, _E.LOST): _S.CONNECTING,
    (_S.HTTP, _E.TOKEN_TAKEN): _S.TAKEN_OVER,
    (_S.HTTP, _E.STOP): _S.STOPPED,
    (_S.WEBSOCKET, _E.HTTP_OPENED): _S.HTTP,  # the path changed, so HTTP comes first again
    (_S.WEBSOCKET, _E.WEBSOCKET_OPENED): _S.WEBSOCKET,  # a rotation
    (_S.WEBSOCKET, _E.PROBE_BEGAN): _S.PROBING_HTTP,
    (_S.WEBSOCKET, _E.REPLACEMENT_FAILED): _S.WEBSOCKET,
    (_S.WEBSOCKET, _E.LOST): _S.CONNECTING,
    (_S.WEBSOCKET, _E.TOKEN_TAKEN): _S.TAKEN_OVER,
    (_S.WEBSOCKET, _E.STOP): _S.STOPPED,
    (_S.PROBING_HTTP, _E.HTTP_OPENED): _S.HTTP,
    (_S.PROBING_HTTP, _E.PROBE_ENDED): _S.WEBSOCKET,
    (_S.PROBING_HTTP, _E.TOKEN_TAKEN): _S.TAKEN_OVER,
    (_S.TAKEN_OVER, _E.HTTP_OPENED): _S.HTTP,
    (_S.TAKEN_OVER, _E.WEBSOCKET_OPENED): _S.WEBSOCKET,
    (_S.TAKEN_OVER, _E.PROBE_ENDED): _S.TAKEN_OVER,
    (_S.TAKEN_OVER, _E.REPLACEMENT_FAILED): _S.TAKEN_OVER,
    (_S.TAKEN_OVER, _E.LOST): _S.TAKEN_OVER,
    (_S.TAKEN_OVER, _E.TOKEN_TAKEN): _S.TAKEN_OVER,
    (_S.TAKEN_OVER, _E.STOP): _S.STOPPED,
}

# Whether uploads are allowed from this event on. Any other event leaves that as it is.
_UPLOADS: Final[Mapping[ClientEvent, bool]] = {
    ClientEvent.HTTP_OPENED: True,
    ClientEvent.WEBSOCKET_OPENED: False,
    ClientEvent.LOST: False,
    ClientEvent.TOKEN_TAKEN: False,
}


class ClientStateMachine:
    """Holds the state, changes it, logs each change, and lets uploads begin or makes them wait.

    Attributes:
        state: the present one. Nothing else writes it.
    """

    __slots__ = ("_log", "_on_uploads_held", "_uploads_allowed", "state")

    def __init__(self, log: Log, on_uploads_held: Callable[[], None]) -> None:
        """``on_uploads_held``: called after each event that forbids uploads, even if they were forbidden before."""
        self.state = ClientState.CONNECTING
        self._log = log
        self._on_uploads_held = on_uploads_held
        self._uploads_allowed = trio.Event()

    @property
    def uploads_allowed(self) -> bool:
        """Whether uploads may be opened: there is a download over HTTP, so the server can be reached."""
        return self._uploads_allowed.is_set()

    async def wait_uploads_allowed(self) -> None:
        """Wait until uploads are allowed. They may be forbidden again by the time this returns. Cancel-safe."""
        await self._uploads_allowed.wait()

    def fire(self, event: ClientEvent) -> None:
        """Change the state by `TRANSITIONS`. Raises KeyError for a pair that is not there, which is a bug."""
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if before is not self.state:
            self._log.debug("state: %s -> %s (%s)", before.value, self.state.value, event.value)
        allowed = _UPLOADS.get(event)
        if allowed:
            self._uploads_allowed.set()
        elif allowed is not None:
            if self._uploads_allowed.is_set():  # otherwise keep the event: a task may be waiting for it
                self._uploads_allowed = trio.Event()
            self._on_uploads_held()


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the newest download or WebSocket agreed on with the server. It is never changed, only replaced as a whole.
    Before the first answer it has the defaults, which are those of a base server.

    Attributes:
        transport: None: no stream was opened yet.
        extended: both ends speak the extended protocol, so there are control frames.
        keepalive: how the streams are kept alive.
        silence_s: a download on which nothing arrives for this long is dead.
        features: the features that both ends support.
        agent: the server's program and version, if it says so.
        address: the server's address, for logs.
    """

    transport: Transport | None = None
    extended: bool = False
    keepalive: KeepalivePolicy = BASE_KEEPALIVE
    silence_s: float = BASE_SILENCE_S
    features: frozenset[str] = frozenset()
    agent: str | None = None
    address: str = ""
