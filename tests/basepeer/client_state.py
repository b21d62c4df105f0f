"""What the streams of one deployed client share: its options, its pool, what it is about to send."""

import contextlib
import queue
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Final
from urllib.parse import urlsplit

from .http1 import Chunking
from .journal import Exited, Journal, Timers
from .link import Broken, Link, Pool
from .outbox import Outbox
from .wire import Conf, Frame, WireError, decode_conf, frame_fault, parse_as

_CONNECT_S: Final = 10.0


@dataclass(eq=False)
class ClientState:
    """Options of a deployed client, and its state. Give options by keyword.

    url: http:// or https://; `unix:` is what a proxy in front is for.
    ca_file: for https://, who may vouch for the server.
    token: raw.
    generation: 1 or 2. Of `x-tun-conf`: another one "makes a deployed client exit". Of the pings: a generation 2
        client sends none of its own, and gives up a PUT without a byte. And of a GET's end: for generation 2 a
        clean one "counts as success, and its next GET then comes only at its next rotation".
    expect_continue, accept: headers that a deployed client "may send".
    keepalive, swap_roles: reuse connections, and for the other role first.
    proxied: a proxy stands in between, so its own habits are not held against the server.
    http10: speak HTTP/1.0 as nginx does to an upstream; goes with put_whole.
    put_whole: PUT what is queued with a Content-Length, again and again, as a buffering proxy does.
    resume_tail: after `break_put`, the next PUT starts with the tail of the frame.
    on_packet: called with each frame in a stream's thread; without it they go to `received`.
    on_conf: called with each GET's x-tun-conf before the first PUT.
    tell: called with each violation at once.
    """

    url: str
    token: str
    _: KW_ONLY
    generation: int = 1
    expect_continue: bool = True
    accept: bool = True
    keepalive: bool = True
    swap_roles: bool = True
    proxied: bool = False
    ca_file: str | None = None
    http10: bool = False
    put_whole: bool = False
    resume_tail: bool = False
    chunking: Chunking = field(default_factory=Chunking)
    timers: Timers = field(default_factory=Timers)
    seed: int | None = None
    on_packet: Callable[[Frame], None] | None = None
    on_conf: Callable[[Conf], None] | None = None
    tell: Callable[[str], None] | None = None

    journal: Journal = field(init=False)
    pool: Pool = field(init=False)
    outbox: Outbox = field(init=False, default_factory=Outbox)
    received: queue.Queue[Frame] = field(init=False, default_factory=queue.Queue)
    stopping: threading.Event = field(init=False, default_factory=threading.Event)
    exited: str | None = field(init=False, default=None)
    deaf: bool = field(init=False, default=False)
    conf: Conf | None = field(init=False, default=None)
    carry: bytes = field(init=False, default=b"")
    tail: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r}: not http[s]://host[:port]/path")
        if self.http10 and not self.put_whole:
            raise ValueError("http10 needs put_whole: HTTP/1.0 has no chunked body")
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=self.ca_file)
            # In 1.3 tickets follow the handshake: bytes to read, and nothing to receive.
            self._tls.maximum_version = ssl.TLSVersion.TLSv1_2
        self._address = (parts.hostname, parts.port or (443 if self._tls else 80))
        self._host = parts.netloc
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._random = random.Random(self.seed)
        self.journal = Journal(f"base client {self.token}", self.tell)
        self.pool = Pool(self.journal, swap=self.swap_roles, strict=not self.proxied)

    def connect(self) -> Link:
        """A kept-alive connection's successor. Raises Broken."""
        try:
            sock = socket.create_connection(self._address, timeout=_CONNECT_S)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
        except OSError as exc:
            raise Broken(f"connect: {exc}") from exc
        return Link(sock, self.timers.give_up_s)

    def request(self, method: str, *extra: str) -> bytes:
        """ "What a deployed client sends, exactly": these headers, in this order and case."""
        lines = [
            f"{method} {self._target} HTTP/{'1.0' if self.http10 else '1.1'}",
            f"Host: {self._host}",
            *(["Accept: */*"] if self.accept else []),
            "Accept-Encoding: deflate, gzip, br, zstd",
            f"x-api-key:{self.token}",
            *extra,
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def retry_delay_s(self) -> float:
        """ "After an error a base client waits 3-10 s (random) and tries again"; generation 2: 5-10 s."""
        return self._random.uniform(*(self.timers.retry_s if self.generation == 1 else self.timers.retry_2_s))

    def rotation_s(self) -> float:
        """After how long a generation 2 client replaces its GET: "every 7-15" minutes."""
        return self._random.uniform(*self.timers.rotate_2_s)

    def rotation_due(self) -> None:
        """A GET is that old; there is nothing to replace it here."""

    def configured(self, values: list[str]) -> Conf:
        """Take a 200's x-tun-conf.

        "Never send a deployed client a GET 200 without `x-tun-conf` (it exits)"; "`peers` set to the wrong generation
        makes a deployed client exit": raises Exited.
        """
        try:
            if not values:
                raise WireError("GET 200 without x-tun-conf")
            _, conf = decode_conf(values[0])
            parse_as(self.generation, values[0])
        except WireError as exc:
            raise self.exit(str(exc)) from exc
        self.conf = conf
        if self.on_conf is not None:
            self.on_conf(conf)
        return conf

    def exit(self, reason: str) -> Exited:
        """A deployed client's process would end here. Returns what the caller raises."""
        self.journal.violation(f"{reason}: a deployed client exits")
        self.exited = reason
        self.stopping.set()
        self.ring()
        self.journal.event("exit", reason)
        return Exited(reason)

    def ring(self) -> None:
        """Wake all streams; there are none here."""

    def opened(self, role: str) -> None:
        """A stream of this role carries frames now."""

    def lose_framing(self, reason: str) -> None:
        """From here on this client "is then deaf": it reads, and understands nothing."""
        self.journal.violation(f"{reason}: a deployed client is deaf from here")
        self.deaf = True
        self.journal.event("deaf", reason)

    def arrived(self, frame: Frame) -> None:
        """One frame from the server; it reaches the TUN where nothing is wrong with it."""
        if frame.is_ping:
            self.journal.event("ping")
            return
        fault = frame_fault(frame)
        if fault is None and frame.is_echo and self.generation == 1:
            fault = "generation 2 ping for a generation 1 client"
        if fault is not None:
            self.journal.violation(fault)
        elif frame.is_echo:
            # "the client echoes the very same frame on its PUT ... and never writes it to its TUN"
            self.outbox.put(frame.encode())
            self.journal.event("echo")
        else:
            self._deliver(frame)

    def _deliver(self, frame: Frame) -> None:
        total = int.from_bytes(frame.packet[2:4], "big")
        if total != len(frame.packet):
            self.journal.remark(f"IPv4 total length {total} in a frame of L = {len(frame.packet)}")
        if self.on_packet is not None:
            self.on_packet(frame)
        else:
            self.received.put(frame)

    def recv(self, timeout_s: float = 10.0) -> Frame:
        """The next frame that came, for clients without `on_packet`; raises TimeoutError."""
        with contextlib.suppress(queue.Empty):
            return self.received.get(timeout=timeout_s)
        raise TimeoutError(f"{self.journal.who}: no frame; violations {self.journal.violations}")
