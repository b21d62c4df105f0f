"""Many clients in one process: `python -m bench.scaling.fakeclients CONFIG FIFO`.

They speak the wire as its specification has it, with plain sockets, and have no TUN: what is measured is the server,
so the clients must cost little. CONFIG is JSON: `server` (address), `port`, `clients` (each `token` and `sources`,
its addresses), `destination`, `keepalive_s` (null: deployed peers, which do not know control frames).

Says "ready" on standard error when every client has its GET's 200 and its PUT open. From the FIFO it takes

    send RATE SECONDS

and sends so many UDP packets of 64 bytes a second over all clients in turn, PER_CHUNK at a time, from each client's
own addresses to the destination; then says "sent N".
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.packets import frame, ipv4

PER_CHUNK: Final = 32
_PAYLOAD_BYTES: Final = 64
_DISCARD: Final = 9  # RFC 863
_ANSWER_S: Final = 20.0
_PING: Final = 2
_PONG: Final = 3
_BUFFER: Final = bytearray(1 << 20)


class FakeClient:
    """One GET and one PUT. `keepalive_s` is None for a deployed peer."""

    def __init__(self, where: tuple[str, int], token: str, *, keepalive_s: float | None) -> None:
        """Connects. Raises OSError, RuntimeError for any answer but a 200."""
        self._extended = keepalive_s is not None
        headers = f"Host: {where[0]}\r\nx-api-key: {token}\r\n"
        if self._extended:
            headers += f"x-tun-session: {os.urandom(16).hex()}\r\n"
        self.get = socket.create_connection(where, _ANSWER_S)
        features = "x-tun-features: ctl\r\n" if self._extended else ""
        self.get.sendall(f"GET /ip HTTP/1.1\r\n{headers}{features}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.get.recv(65536)
            if not piece:
                raise RuntimeError(f"the server closed instead of answering: {head[:200]!r}")
            head += piece
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the server answered {head[:200]!r}")
        self._unread = bytearray(head.split(b"\r\n\r\n", 1)[1])  # of the body, with its chunks
        self._frames = bytearray()
        self.put = socket.create_connection(where, _ANSWER_S)
        self.put.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.put.sendall(f"PUT /ip HTTP/1.1\r\n{headers}Transfer-Encoding: chunked\r\n\r\n".encode())
        self.chunks: list[bytes] = []  # what it sends, in turn
        # Their clocks are not in step, as those of 500 machines would not be.
        self.next_ping = time.monotonic() + (keepalive_s or 0) * int.from_bytes(os.urandom(2), "big") / 65536
        self.get.setblocking(False)

    def ping(self, now: float, keepalive_s: float) -> None:
        """Send a PING if it is time."""
        if now >= self.next_ping:
            self.next_ping += keepalive_s
            self._send_control(_PING, struct.pack("<Q", time.monotonic_ns()))

    def take(self) -> None:
        """Read what has come; answer PINGs. Raises RuntimeError if the server ends it."""
        try:
            count = self.get.recv_into(_BUFFER)
        except BlockingIOError:
            return
        if not count:
            raise RuntimeError("the server has ended a download")
        if self._extended:
            self._unread += memoryview(_BUFFER)[:count]
            self._dechunk()
            self._look_for_pings()

    def _dechunk(self) -> None:
        while (end := self._unread.find(b"\r\n")) >= 0:
            size = int(self._unread[:end], 16)
            if len(self._unread) < end + 2 + size + 2:
                return
            self._frames += self._unread[end + 2 : end + 2 + size]
            del self._unread[: end + 2 + size + 2]

    def _look_for_pings(self) -> None:
        """0 is a base ping, 1 a control frame (kind u8, length u32), anything else the length of a packet."""
        while len(self._frames) >= 2:
            length = int.from_bytes(self._frames[:2], "little")
            if length == 0:
                del self._frames[:2]
                continue
            if length > 1:
                whole = 14 + length
            elif len(self._frames) < 7:
                return
            else:
                whole = 7 + int.from_bytes(self._frames[3:7], "little")
            if len(self._frames) < whole:
                return
            if length == 1 and self._frames[2] == _PING:
                self._send_control(_PONG, bytes(self._frames[7:whole]))
            del self._frames[:whole]

    def _send_control(self, kind: int, payload: bytes) -> None:
        data = struct.pack("<HBI", 1, kind, len(payload)) + payload
        self.put.sendall(b"%x\r\n%b\r\n" % (len(data), data))


def packets_chunk(sources: list[str], destination: str) -> bytes:
    """A chunk of PER_CHUNK frames, from the sources in turn: UDP without a checksum, which IPv4 allows (RFC 768)."""
    datagram = struct.pack("!HHHH", 4000, _DISCARD, 8 + _PAYLOAD_BYTES, 0) + bytes(_PAYLOAD_BYTES)
    frames = (ipv4(sources[number % len(sources)], destination, datagram, protocol=17) for number in range(PER_CHUNK))
    data = b"".join(frame(packet) for packet in frames)
    return b"%x\r\n%b\r\n" % (len(data), data)


class Crowd:
    """All of them, and the orders."""

    def __init__(self, config: dict[str, Any], fifo: str) -> None:
        """Connects every client. Raises as `FakeClient`."""
        self._keepalive_s: float | None = config["keepalive_s"]
        where = (config["server"], config["port"])
        self._poll = select.epoll()
        self._clients: list[FakeClient] = []
        self._by_fd: dict[int, FakeClient] = {}
        for settings in config["clients"]:
            client = FakeClient(where, settings["token"], keepalive_s=self._keepalive_s)
            sources, destination = settings["sources"], config["destination"]
            for start in range(0, len(sources), PER_CHUNK):
                client.chunks.append(packets_chunk(sources[start : start + PER_CHUNK], destination))
            self._clients.append(client)
            self._by_fd[client.get.fileno()] = client
            self._poll.register(client.get.fileno(), select.EPOLLIN)
        self._fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)  # O_RDWR: it never ends
        self._poll.register(self._fifo, select.EPOLLIN)

    def run(self) -> None:
        """For ever."""
        while True:
            self._turn(0.25)

    def _turn(self, timeout: float) -> None:
        for fd, _ in self._poll.poll(timeout):
            if fd == self._fifo:
                for line in os.read(fd, 4096).decode("ascii").splitlines():
                    _, rate, seconds = line.split()
                    self._send(float(rate), float(seconds))
            else:
                self._by_fd[fd].take()
        if self._keepalive_s is not None:
            now = time.monotonic()
            for client in self._clients:
                client.ping(now, self._keepalive_s)

    def _send(self, rate: float, seconds: float) -> None:
        begun = time.monotonic()
        chunks = 0
        while (now := time.monotonic()) < begun + seconds:
            due = (now - begun) * rate / PER_CHUNK
            while chunks < due:
                lap, turn = divmod(chunks, len(self._clients))
                client = self._clients[turn]
                client.put.sendall(client.chunks[lap % len(client.chunks)])
                chunks += 1
            time.sleep(0.001)
        say(f"sent {chunks * PER_CHUNK}")


def say(text: str) -> None:
    """To the process that started us."""
    print(text, file=sys.stderr, flush=True)


def main(config: str, fifo: str) -> None:
    """Runs until it is killed."""
    crowd = Crowd(json.loads(Path(config).read_text("utf-8")), fifo)
    say("ready")
    crowd.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
