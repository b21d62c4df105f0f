"""A deployed base server: request after request on a connection, judged strictly."""

import contextlib
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from types import TracebackType
from typing import Final, Self

from . import checks
from .http1 import Chunking, Head, HttpError
from .journal import Exited, Journal, Timers
from .link import Broken, Link
from .outbox import Outbox
from .routing import ClientSpec, Router
from .server_seat import MAX_QUEUE_AGE_S, MAX_QUEUE_BYTES, Seat
from .server_streams import GetAnswer, PutAnswer
from .wire import Conf, Frame, sha1

_LINGER_S: Final = 1.0


@dataclass(eq=False)
class BaseServer:
    """Listens when it is entered (or by `start`), and leaves no thread or socket behind when it is left.

    `server["test"]` is the Seat of the client with that raw token. Options, by keyword:

    generation: of the `x-tun-conf` and of the pings.
    http10: answer in HTTP/1.0, "an unchunked body that ends with the connection".
    proxied: a proxy stands in between, so HTTP/1.0 and Content-Length are not held against the client.
    exits: a frame that ends a deployed server ends this one; else it is only recorded.
    router: base routing between the clients; without it each client's frames wait in `Seat.recv`.
    on_local: gets what the router sends into the TUN; without it that waits in `local`.
    get_lifetime_s: a GET is ended cleanly after this long.
    max_age_s: queued frames older than this are dropped; None keeps them, for tests on slow machines.
    chunking: how the GET's body is cut.
    tell: called with each violation at once.

    Events to wait for: request, get-open, get-end, get-broken, the same for put, refused, scripted,
    ping, ping-sent, echo, exit, violation.
    """

    clients: Iterable[ClientSpec]
    _: KW_ONLY
    host: str = "127.0.0.1"
    port: int = 0
    generation: int = 1
    mtu: int = 1500
    prefix: int = 24
    http10: bool = False
    proxied: bool = False
    exits: bool = True
    router: Router | None = None
    get_lifetime_s: float = 3600.0
    max_age_s: float | None = MAX_QUEUE_AGE_S
    chunking: Chunking = field(default_factory=Chunking)
    timers: Timers = field(default_factory=Timers)
    on_local: Callable[[Frame], None] | None = None
    tell: Callable[[str], None] | None = None

    journal: Journal = field(init=False)
    seats: dict[str, Seat] = field(init=False, default_factory=dict)
    local: queue.Queue[Frame] = field(init=False, default_factory=queue.Queue)
    stopping: threading.Event = field(init=False, default_factory=threading.Event)
    exited: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.journal = Journal("base server", self.tell)
        for spec in self.clients:
            conf = Conf(self.mtu, self.prefix, (spec.ip,), spec.pushed)
            outbox = Outbox(MAX_QUEUE_BYTES, self.max_age_s)
            self.seats[spec.token_sha1] = Seat(spec, conf, self.generation, self.journal, outbox)
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._threads: list[threading.Thread] = []
        self._script: dict[str, deque[str]] = {"GET": deque(), "PUT": deque()}
        self._listener = socket.socket()

    def start(self) -> None:
        """Listen; `port` tells where. Raises OSError."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self.host, self.port))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def stop(self) -> None:
        """End the GETs cleanly, cut the rest, join every thread. May be called twice."""
        self.stopping.set()
        self._shut()
        for seat in self.seats.values():
            for _ in range(seat.unanswered(self.timers.echo_s)):
                self.journal.violation(f"{seat.spec.ip}: generation 2 ping was not echoed")
            for thread in seat.ring():
                thread.join(_LINGER_S)
        while threads := self._alive():
            self._cut()
            for thread in threads:
                thread.join(_LINGER_S)
        self._listener.close()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        with self._lock:
            for link in self._links:
                link.abort()

    def _alive(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def __getitem__(self, token: str) -> Seat:
        return self.seats[sha1(token)]

    @property
    def url(self) -> str:
        """Where it listens; "The path is free"."""
        return f"http://{self.host}:{self.port}/ip"

    @property
    def violations(self) -> list[str]:
        """What clients did that the base protocol forbids."""
        return self.journal.violations

    @property
    def remarks(self) -> list[str]:
        """What clients did that is merely odd."""
        return self.journal.remarks

    def wait(self, kind: str, count: int = 1, timeout_s: float = 10.0) -> None:
        """Block until `count` events of `kind` were seen; raises TimeoutError."""
        self.journal.wait(kind, count, timeout_s)

    def script(self, method: str, *answers: str) -> None:
        """Answer the next requests of a method wrongly.

        "no-conf": a GET 200 without x-tun-conf. "early": a PUT's final 200 before its body has ended.
        "drop": close without an answer. A status line's rest such as "502 Bad Gateway": just that.
        """
        self._script[method].extend(answers)

    def inject(self, frame: Frame) -> bool:
        """A frame from the server's TUN; False where the router drops it."""
        spec = self.router.from_tun(frame.packet) if self.router is not None else None
        if spec is None:
            return False
        self.seats[spec.token_sha1].send(frame)
        return True

    def arrived(self, seat: Seat, frame: Frame) -> None:
        """A good frame from a client goes where the base routing sends it."""
        if self.router is None:
            seat.received.put(frame)
        elif (spec := self.router.from_client(frame.packet, seat.spec)) is not None:
            self.seats[spec.token_sha1].send(frame)
        elif self.on_local is not None:
            self.on_local(frame)
        else:
            self.local.put(frame)

    def exit(self, reason: str) -> Exited:
        """A deployed server's process would end here. Returns what the caller raises."""
        self.journal.violation(f"{reason}: a deployed server exits")
        self.exited = reason
        self.stopping.set()
        for seat in self.seats.values():
            seat.ring()
        self._shut()
        self._cut()
        self.journal.event("exit", reason)
        return Exited(reason)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=f"base server {target.__name__}")
        with self._lock:
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            link = Link(sock, self.timers.give_up_s)
            with self._lock:
                self._links.add(link)
            self._spawn(self._serve, link)

    def _serve(self, link: Link) -> None:
        """ "So a server serves request after request on a connection." """
        try:
            while not self.stopping.is_set():
                head = link.read_head(None)
                if head is None or not self._answer(link, head):
                    return
        except HttpError as exc:
            self.journal.violation(str(exc))
        except (Broken, Exited):
            return
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def _answer(self, link: Link, head: Head) -> bool:
        method = head.request()[0]
        self.journal.event("request", head.start)
        for fault in checks.request_faults(head, proxied=self.proxied):
            self.journal.violation(f"{head.start}: {fault}")
        if head.every("x-tun-session") and method == "PUT":
            self.journal.remark("x-tun-session on a PUT, though the GET agreed on nothing")
        seat = self.seats.get(sha1("".join(head.every("x-api-key"))))
        if seat is None:
            # "Unknown or missing token: `403` at once, before any body is read."
            self.journal.event("refused", method)
            return self._refuse(link, "403 Forbidden")
        if self._script.get(method):
            self.journal.event("scripted", self._script[method][0])
            return self._play(link, self._script[method].popleft())
        if method == "GET":
            return GetAnswer(self, seat, link, head).run()
        if method == "PUT":
            return PutAnswer(self, seat, link, head).run()
        return self._refuse(link, "405 Method Not Allowed")

    def _refuse(self, link: Link, status: str) -> bool:
        """ "Refusal: `403 Forbidden`, `Connection: close`, a short body"."""
        text = f"{status}\n"
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
        link.send((head + text).encode())
        link.finish()
        # Close only when the client has: a reset would eat the answer.
        while link.wait(None, _LINGER_S) and link.read():
            pass
        return False

    def _play(self, link: Link, answer: str) -> bool:
        """An answer out of the script; none of them leaves the connection usable."""
        if answer == "drop":
            return False
        if answer == "no-conf":
            link.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            link.wait(None, _LINGER_S)
            return False
        if answer == "early":
            link.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
            while link.wait(None, _LINGER_S) and link.read():
                pass
            return False
        return self._refuse(link, answer)
