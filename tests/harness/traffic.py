"""Traffic between hosts: ping, echoes, iperf3. Checked transfers are in `transfer`.

The sockets are made inside the hosts but used by threads of the test, so that an echo is plain Python, its
errors are exceptions, and nothing has to be started or parsed.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from .errors import CommandError, wait_until
from .host import Host
from .tools import family_of

_CHUNK_BYTES: Final = 1 << 20
_AGAIN_S: Final = 1.0  # after which a datagram is sent again
_UNREACHABLE: Final = re.compile(r"(network|host) is unreachable|no route to host", re.IGNORECASE)


# Ping


@dataclass(frozen=True)
class PingResult:
    """What ping counted. Round trips are in milliseconds, None without a reply."""

    sent: int
    received: int
    min_ms: float | None
    avg_ms: float | None
    max_ms: float | None
    output: str = field(repr=False)

    @property
    def ok(self) -> bool:
        """The path works: a request was answered. On a busy machine another one may have grown too old in a queue."""
        return self.received > 0


def ping(
    host: Host,
    address: str,
    *,
    count: int = 3,
    size: int = 56,
    interval: float = 0.01,
    wait: float = 1.0,
    dont_fragment: bool = False,
    mark: int | None = None,
    source: str | None = None,
) -> PingResult:
    """Send `count` pings with `size` bytes of payload from a host, `interval` seconds apart.

    `wait` bounds the wait for a reply, in seconds; `mark` sets the fwmark, `source` an address or interface.
    No answer and no route are results; raises CommandError for what ping does not understand.
    """
    argv = ["ping", "-n", "-c", str(count), "-s", str(size), "-i", str(interval), "-W", str(wait)]
    argv += ["-M", "do"] if dont_fragment else []
    argv += ["-m", str(mark)] if mark is not None else []
    argv += ["-I", source] if source is not None else []
    timeout = count * (interval + wait) + 10
    done = host.run([*argv, address], env={"LC_ALL": "C"}, check=False, timeout=timeout)
    output = done.stdout + done.stderr
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    if counts is None:
        if _UNREACHABLE.search(output):
            return PingResult(0, 0, None, None, None, output)
        raise CommandError(f"`{' '.join([*argv, address])}` on {host.name}: {output.strip()}")
    times = re.search(r"min/avg/max/mdev = ([\d.]+)/([\d.]+)/([\d.]+)/", output)
    low, mean, high = (float(value) for value in times.groups()) if times else (None, None, None)
    return PingResult(int(counts[1]), int(counts[2]), low, mean, high, output)


def wait_for_ping(host: Host, address: str, timeout: float = 10.0, **options: Any) -> PingResult:
    """Ping until an answer comes, at most `timeout` seconds; options as for `ping`. Raises WaitError."""
    last: list[PingResult] = []

    def probe() -> PingResult | None:
        last[:] = [ping(host, address, **{"count": 1, "wait": 0.2, **options})]
        return last[0] if last[0].received else None

    return wait_until(probe, timeout, f"{address} to answer {host.name}", lambda: last[0].output)


# Echo


@contextmanager
def tcp_echo(host: Host, address: str, port: int = 0) -> Iterator[int]:
    """Answers every TCP connection to that address with its own bytes. Yields the port."""
    with host.socket(family_of(address)) as ears:
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ears.bind((address, port))
        ears.listen()
        open_now: set[socket.socket] = set()

        def converse(peer: socket.socket) -> None:
            with peer, suppress(OSError):  # a peer that breaks off has had its answer
                while data := peer.recv(_CHUNK_BYTES):
                    peer.sendall(data)
            open_now.discard(peer)

        def serve() -> None:
            with suppress(OSError):  # the shutdown below is how it ends
                while True:
                    peer, _ = ears.accept()
                    open_now.add(peer)
                    threading.Thread(target=converse, args=(peer,), daemon=True).start()

        with _thread(serve, stop=lambda: ears.shutdown(socket.SHUT_RDWR)):
            yield ears.getsockname()[1]
        for peer in list(open_now):
            with suppress(OSError):  # gone by itself meanwhile
                peer.shutdown(socket.SHUT_RDWR)


@contextmanager
def udp_echo(host: Host, address: str, port: int = 0) -> Iterator[int]:
    """Sends every UDP datagram to that address back to where it came from. Yields the port."""
    with host.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with suppress(TimeoutError, ConnectionRefusedError):  # the latter: ICMP for an older answer
                    data, peer = sock.recvfrom(65535)
                    sock.sendto(data, peer)

        # A datagram socket has no shutdown that wakes a reader, so it looks up now and then.
        sock.settimeout(0.05)
        with _thread(serve, stop=ended.set):
            yield sock.getsockname()[1]


def udp_exchange(
    host: Host, address: str, port: int, data: bytes, *, timeout: float = 10.0, mark: int | None = None
) -> bytes | None:
    """Send a datagram from a host and return the answer, or None after `timeout` seconds without one.

    It is sent again now and then: on a busy machine a datagram may grow too old in a queue.
    """
    with host.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        if mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.connect((address, port))
        deadline = time.monotonic() + timeout
        while (remaining_s := deadline - time.monotonic()) > 0:
            sock.settimeout(min(_AGAIN_S, remaining_s))
            with suppress(TimeoutError):
                sock.send(data)
                return sock.recv(65535)
        return None


@contextmanager
def _thread(target: Callable[[], None], stop: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(5)


# iperf3


@dataclass(frozen=True)
class Iperf:
    """One run of iperf3. Rates are in Gbit/s of payload; `raw` is its whole JSON."""

    sent_gbit_s: float
    received_gbit_s: float
    retransmits: int | None
    lost_percent: float | None
    raw: dict[str, Any] = field(repr=False)


def iperf3(
    client: Host,
    server: Host,
    address: str,
    *options: str,
    seconds: int = 2,
    port: int = 5201,
) -> Iperf:
    """Run ``iperf3`` between two hosts for `seconds`; the options go to its client (``-R``, ``-u``).

    Raises CommandError with iperf3's own words, WaitError.
    """
    with server.start(["iperf3", "-s", "-1", "-B", address, "-p", str(port)]) as daemon:
        server.wait_for_listener(port, by=daemon)
        argv = ["iperf3", "-J", "-c", address, "-p", str(port), "-t", str(seconds), *options]
        done: subprocess.CompletedProcess[str] = client.run(argv, check=False, timeout=seconds + 20)
        answer = json.loads(done.stdout or "{}")
        if done.returncode != 0 or "error" in answer:
            raise CommandError(f"`{' '.join(argv)}`: {answer.get('error', done.stderr)}\n{daemon.tail()}")
        daemon.wait()
    end = answer["end"]
    sent, received = end.get("sum_sent", end.get("sum")), end.get("sum_received", end.get("sum"))
    return Iperf(
        sent_gbit_s=sent["bits_per_second"] / 1e9,
        received_gbit_s=received["bits_per_second"] / 1e9,
        retransmits=sent.get("retransmits"),
        lost_percent=end["sum"]["lost_percent"] if "lost_percent" in end.get("sum", {}) else None,
        raw=answer,
    )
