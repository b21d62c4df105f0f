"""One client as a deployed server sees it, and the handle by which a test plays with it."""

import contextlib
import queue
import threading
import time
from typing import Final, Protocol

from .journal import Journal
from .link import Bell
from .outbox import Outbox
from .routing import ClientSpec
from .wire import PING, Conf, Frame, echo_ping

MAX_QUEUE_BYTES: Final = 12 << 20  # "at most 12 MiB of frames per client"
MAX_QUEUE_AGE_S: Final = 0.1  # "drops queued frames older than 100 ms"


class Answering(Protocol):
    """A GET or PUT that is being answered."""

    bell: Bell
    thread: threading.Thread

    def order(self, what: str) -> None:
        """Have its thread do something."""


class Seat:
    """A client's queue, its streams and its pings.

    send, recv: frames to and from the client. ping: one now. end_get: finish its GET cleanly.
    drop_get, drop_put: cut a connection, within a frame on demand.
    """

    def __init__(self, spec: ClientSpec, conf: Conf, generation: int, journal: Journal, outbox: Outbox) -> None:
        self.spec = spec
        self.conf = conf
        self.generation = generation
        self.journal = journal
        self.outbox = outbox
        self.received: queue.Queue[Frame] = queue.Queue()
        self._lock = threading.Lock()
        self._streams: dict[str, list[Answering]] = {"GET": [], "PUT": []}
        self._echoes: dict[bytes, float] = {}

    def send(self, *frames: Frame) -> None:
        """Queue frames for the client's GET."""
        for frame in frames:
            self.outbox.put(frame.encode())

    def send_packet(self, packet: bytes) -> None:
        """Queue a packet with an empty virtio header."""
        self.send(Frame(packet))

    def send_raw(self, data: bytes) -> None:
        """Queue bytes that need not be a frame: for what a broken server may send."""
        self.outbox.put(data)

    def recv(self, timeout_s: float = 10.0) -> Frame:
        """The next frame from the client, where no router takes it; raises TimeoutError."""
        with contextlib.suppress(queue.Empty):
            return self.received.get(timeout=timeout_s)
        raise TimeoutError(f"no frame from {self.spec.ip}; violations {self.journal.violations}")

    def ping(self) -> bytes:
        """Queue a ping as this generation sends it, and return it."""
        data = self.new_ping()
        self.outbox.put(data)
        return data

    def new_ping(self) -> bytes:
        """Generation 1: two zero bytes. Generation 2: a frame whose echo is expected from now on."""
        if self.generation == 1:
            return PING
        data = echo_ping().encode()
        with self._lock:
            self._echoes[data] = time.monotonic()
        return data

    def echoed(self, frame: Frame) -> str | None:
        """ "the client echoes the very same frame on its PUT"; a fault where it is another one."""
        with self._lock:
            if self._echoes.pop(frame.encode(), None) is not None:
                return None
        return "echo of a generation 2 ping that was never sent, or not the very same frame"

    def unanswered(self, older_than_s: float) -> int:
        """How many pings had that long to come back and did not; they are forgotten here."""
        limit = time.monotonic() - older_than_s
        with self._lock:
            lost = [data for data, at in self._echoes.items() if at < limit]
            for data in lost:
                del self._echoes[data]
        return len(lost)

    def end_get(self) -> None:
        """Finish the GET cleanly, as after "exactly 60 minutes"."""
        self._order("GET", "end")

    def drop_get(self, *, mid_frame: bool = False) -> None:
        """Cut the GET's connection, with `mid_frame` after half of a frame."""
        self._order("GET", "drop-mid" if mid_frame else "drop")

    def drop_put(self) -> None:
        """Cut the PUT's connection."""
        self._order("PUT", "drop")

    def _order(self, method: str, what: str) -> None:
        with self._lock:
            streams = self._streams[method][-1:]
        for stream in streams:
            stream.order(what)

    def begin(self, method: str, stream: Answering) -> None:
        """A stream of the client starts; "the newest GET of a token gets all frames from then on"."""
        with self._lock:
            self._streams[method].append(stream)
        if method == "GET":
            self.outbox.claim(stream.bell)

    def over(self, method: str, stream: Answering) -> None:
        """A stream has ended."""
        with self._lock:
            self._streams[method].remove(stream)
        if method == "GET":
            self.outbox.release(stream.bell)

    def ring(self) -> list[threading.Thread]:
        """Wake all streams, to see that the server stops. Returns the threads of the GETs."""
        with self._lock:
            for streams in self._streams.values():
                for stream in streams:
                    stream.bell.ring()
            return [stream.thread for stream in self._streams["GET"]]
