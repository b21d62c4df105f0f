"""A deployed base client: two endless requests, renewed for ever, judged strictly."""

import threading
import time
from types import TracebackType
from typing import Self

from .client_get import GetStream
from .client_put import PutStream, WholePutStream
from .client_state import ClientState
from .client_streams import Outcome, Stream
from .wire import Frame


class BaseClient(ClientState):
    """Connects when it is entered (or by `start`), and leaves no thread or socket behind when it is left.

    `violations` holds every deviation of the server from the base protocol. Options: see ClientState.
    Events to wait for with `wait`: get-open, get-end, get-broken, get-status, the same for put,
    put-early, refused, ping, ping-sent, echo, swap, resume, deaf, away, exit, violation.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lock = threading.Lock()
        self._current: dict[str, Stream] = {}
        self._threads: list[threading.Thread] = []
        self._streams: list[Stream] = []

    def start(self) -> None:
        """GET first; the PUT follows when `x-tun-conf` is there."""
        with self._lock:
            self._begin("GET")

    def stop(self) -> None:
        """End the PUT's body cleanly, drop the GET, join every thread. May be called twice."""
        self.stopping.set()
        for deadline_s in (self.timers.answer_s, 5.0):
            self.ring()
            with self._lock:
                streams, threads = list(self._streams), list(self._threads)
            for thread in threads:
                thread.join(deadline_s)
            for stream in streams:
                if (link := stream.link) is not None:
                    link.abort()
        self.pool.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def violations(self) -> list[str]:
        """What the server did that PROTOCOL forbids."""
        return self.journal.violations

    @property
    def remarks(self) -> list[str]:
        """What the server did that is merely odd."""
        return self.journal.remarks

    def wait(self, kind: str, count: int = 1, timeout_s: float = 10.0) -> None:
        """Block until `count` events of `kind` were seen; raises TimeoutError."""
        self.journal.wait(kind, count, timeout_s)

    def wait_connected(self, timeout_s: float = 10.0) -> None:
        """Block until a GET and a PUT have opened; raises TimeoutError."""
        self.wait("get-open", 1, timeout_s)
        if not self.put_whole:
            self.wait("put-open", 1, timeout_s)

    def send(self, *frames: Frame) -> None:
        """Queue frames for the PUT."""
        for frame in frames:
            self.outbox.put(frame.encode())

    def send_packet(self, packet: bytes) -> None:
        """Queue a packet with an empty virtio header."""
        self.send(Frame(packet))

    def send_raw(self, data: bytes) -> None:
        """Queue bytes that need not be a frame: for what a broken client may send."""
        self.outbox.put(data)

    def rotate_get(self) -> None:
        """ "A client replaces each stream now and then ..., opening the new one before the old one ends"."""
        self._replace("GET")

    def rotate_put(self) -> None:
        """The same for the PUT: the old one's body ends once the new one takes frames."""
        self._replace("PUT")

    def end_put(self) -> None:
        """Generation 1: "its client ends a PUT ... The follow-up comes at once".

        Ends the stream of this moment: wait for its put-open first, or it may be one that ends anyway.
        """
        self._stream("PUT").order("end")

    def break_get(self) -> None:
        """Drop the GET's connection, as a network does; half a frame is not held against the server."""
        self._stream("GET").order("break")

    def break_put(self, frame: Frame | None = None, at: int = 0) -> None:
        """Drop the PUT's connection, after `at` bytes of a frame if one is given.

        With `resume_tail` the next PUT starts with the rest of that frame.
        """
        stream = self._stream("PUT")
        if frame is not None and isinstance(stream, PutStream):
            stream.cut = (frame.encode(), at)
            stream.bell.ring()
        else:
            stream.order("break")

    def opened(self, role: str) -> None:
        """A GET has its 200: time for the first PUT."""
        if role == "GET":
            with self._lock:
                if "PUT" not in self._current:
                    self._begin("PUT")

    def ring(self) -> None:
        """Have every stream look at `stopping`."""
        with self._lock:
            for stream in self._streams:
                stream.bell.ring()

    def _stream(self, role: str) -> Stream:
        with self._lock:
            return self._current[role]

    def _replace(self, role: str) -> None:
        with self._lock:
            if role in self._current:
                self._begin(role, self._current[role])

    def _begin(self, role: str, before: Stream | None = None) -> None:
        """Start a thread that carries streams of a role from now on. Called under the lock."""
        if self.stopping.is_set():
            return
        stream = self._new(role, before)
        thread = threading.Thread(target=self._carry, args=(stream,), name=f"base client {role} {len(self._threads)}")
        self._threads.append(thread)
        thread.start()

    def _new(self, role: str, before: Stream | None = None) -> Stream:
        kind = GetStream if role == "GET" else WholePutStream if self.put_whole else PutStream
        stream = kind(self, before)
        self._current[role] = stream
        self._streams = [*(s for s in self._streams if s.bell.fileno() >= 0), stream]
        return stream

    def _carry(self, stream: Stream) -> None:
        """Run stream after stream, until one is replaced or the client stops."""
        while True:
            outcome = stream.run()
            if outcome is Outcome.STOP or self.stopping.wait(self._delay_s(stream, outcome)):
                return
            with self._lock:
                if self._current[stream.role] is not stream or self.stopping.is_set():
                    return
                stream = self._new(stream.role)

    def rotation_due(self) -> None:
        """A GET of generation 2 replaces itself."""
        self.rotate_get()

    def _delay_s(self, stream: Stream, outcome: Outcome) -> float:
        if isinstance(stream, GetStream) and outcome is Outcome.CLEAN and self.generation == 2:
            return self._away_s(stream)
        if outcome is Outcome.ERROR:
            return self.retry_delay_s()
        return self.timers.reput_s if outcome is Outcome.EARLY else 0.0

    def _away_s(self, stream: GetStream) -> float:
        """ "the clean end of a GET counts as success, and its next GET then comes only at its next rotation"."""
        with self._lock:
            if self._current["GET"] is not stream:
                return 0.0
        if self.stopping.is_set():
            return 0.0
        note = self.journal.remark if self.proxied else self.journal.violation
        note("GET ended cleanly, and no newer one replaces it: a generation 2 client is away until its next rotation")
        self.journal.event("away")
        return max(0.0, stream.rotate_at - time.monotonic())
