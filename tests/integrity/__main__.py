"""One end of a checked stream: `python -m tests.integrity DIRECTORY udp|listen|connect ...`.

Says ``ready`` when it listens. UDP: SIGUSR2 lets it send. SIGUSR1: send no more. SIGTERM: write what was counted
into the directory, print an account as one line of JSON, and end (TCP ends by itself once both directions have).
"""

from __future__ import annotations

import argparse
import json
import mmap
import random
import select
import signal
import socket
import sys
import threading
import time
from array import array
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Final

from .arrivals import Arrivals
from .live import LIVE_BYTES, Live

# A packet: hash over all that follows, number, time of sending, noise that differs from packet to packet.
HASH_BYTES: Final = 8
NUMBERS: Final = Struct("!QQ")
_NOISE: Final = random.Random(2).randbytes(1 << 17)
_SHIFTS: Final = 4093
# An end that was not given the CPU for a while does not make up for it at once: that would test queues.
_LONGEST_BURST: Final = 20
# The kernel's buffer for what comes while we are not given the CPU; what it drops would look lost under way.
_BUFFER_BYTES: Final = 32 << 20
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h

BLOCK_BYTES: Final = 64 * 1024


class Orders:
    """What signals asked for."""

    def __init__(self) -> None:
        self.silent = threading.Event()
        self.done = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: self.silent.set())
        signal.signal(signal.SIGUSR2, lambda *_: self.silent.clear())
        signal.signal(signal.SIGTERM, lambda *_: self.done.set())


def _family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def packet(number: int, sent_ns: int, size: int) -> bytes:
    """A datagram of `size` bytes."""
    shift = number % _SHIFTS
    body = NUMBERS.pack(number, sent_ns) + _NOISE[shift : shift + size - HASH_BYTES - NUMBERS.size]
    return blake2b(body, digest_size=HASH_BYTES).digest() + body


def run_udp(args: argparse.Namespace, live: Live, orders: Orders) -> None:
    """Send at the rate, and receive, until the order to end."""
    family = _family_of(args.peer)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    sock.setblocking(False)
    sock.bind(("", args.port))
    target = (args.peer, args.port)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    arrivals, sent, cells = Arrivals(), array("Q"), live.cells
    corrupted = 0
    pause_ns = int(1e9 / args.rate)
    orders.silent.set()  # until the other end can hear us
    print("ready", flush=True)
    due_ns = time.monotonic_ns()
    while not orders.done.is_set():
        now_ns = time.monotonic_ns()
        silent = orders.silent.is_set()
        if silent:
            due_ns = now_ns + 10_000_000
        cells[5] = silent
        due_ns = max(due_ns, now_ns - _LONGEST_BURST * pause_ns)
        while due_ns <= now_ns:
            due_ns += pause_ns
            stamp_ns = time.monotonic_ns()
            try:
                sock.sendto(packet(len(sent), stamp_ns, args.size), target)
            except OSError:  # no route, no address, or no room: it was not sent
                cells[2] += 1
            else:
                sent.append(stamp_ns)
                cells[0] = len(sent)
        for _ in range(64):
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error that came back for something we sent
                continue
            body = data[HASH_BYTES:]
            if len(data) != args.size or blake2b(body, digest_size=HASH_BYTES).digest() != data[:HASH_BYTES]:
                corrupted += 1
                continue
            number, stamp_ns = NUMBERS.unpack_from(body)
            arrived_ns = time.monotonic_ns()
            arrivals.take(number, arrived_ns)
            cells[1] = arrivals.received
            if stamp_ns > cells[3]:
                cells[4] = arrived_ns
                cells[3] = stamp_ns
        else:
            continue
        poller.poll(max(0.0, (due_ns - time.monotonic_ns()) / 1e6))
    (args.directory / "sent").write_bytes(sent.tobytes())
    (args.directory / "arrived").write_bytes(arrivals.arrived_ns.tobytes())
    account = {
        "received": arrivals.received,
        "duplicated": arrivals.duplicated,
        "corrupted": corrupted,
        "reordered": arrivals.reordered,
        "extent": arrivals.extent,
        "late_ns": arrivals.late_ns,
    }
    print(json.dumps(account), flush=True)


def run_tcp(args: argparse.Namespace, live: Live, orders: Orders) -> None:
    """One connection, until both directions have ended. Raises OSError, ValueError: a byte that was not sent."""
    if args.role == "listen":
        with socket.create_server((args.address, args.port), family=_family_of(args.address), backlog=1) as ears:
            print("ready", flush=True)
            sock, _ = ears.accept()
    else:
        print("ready", flush=True)
        sock = socket.create_connection((args.address, args.port), timeout=10)
        sock.settimeout(None)
    with sock:
        sending = threading.Thread(target=_send_blocks, args=(sock, args, live, orders), daemon=True)
        sending.start()
        _receive_blocks(sock, live)
        sending.join()
    print(json.dumps({"sent": live.sent, "received": live.received}), flush=True)


def _send_blocks(sock: socket.socket, args: argparse.Namespace, live: Live, orders: Orders) -> None:
    with suppress(OSError):  # the receiving side of the same connection will say what happened
        _send_until_told(sock, args, live, orders)


def _send_until_told(sock: socket.socket, args: argparse.Namespace, live: Live, orders: Orders) -> None:
    number, cells = 0, live.cells
    block = bytearray(_NOISE[:BLOCK_BYTES])
    due = time.monotonic()
    while not (args.silent or orders.silent.is_set()):
        block[:8] = number.to_bytes(8, "big")
        sock.sendall(block)
        number += 1
        cells[0] = number * BLOCK_BYTES
        if args.rate:
            due = max(due + BLOCK_BYTES / args.rate, time.monotonic() - 0.1)
            orders.silent.wait(max(0.0, due - time.monotonic()))
    sock.shutdown(socket.SHUT_WR)


def _receive_blocks(sock: socket.socket, live: Live) -> None:
    number, cells = 0, live.cells
    expected, block = bytearray(_NOISE[:BLOCK_BYTES]), bytearray(BLOCK_BYTES)
    view = memoryview(block)
    while True:
        at = 0
        while at < BLOCK_BYTES:
            received = sock.recv_into(view[at:])
            if received == 0:
                if at:
                    raise ValueError(f"the stream ended within block {number}")
                return
            at += received
        expected[:8] = number.to_bytes(8, "big")
        if block != expected:
            raise ValueError(f"block {number} is not as it was sent")
        number += 1
        cells[1] = number * BLOCK_BYTES


def main() -> int:
    """The exit code is 0, or 1 after an error that a person can read."""
    parser = argparse.ArgumentParser(prog="python -m tests.integrity", description=__doc__)
    parser.add_argument("directory", type=Path)
    roles = parser.add_subparsers(dest="role", required=True)
    udp = roles.add_parser("udp")
    udp.add_argument("--peer", required=True)
    udp.add_argument("--size", type=int, default=1000)
    for name in ("listen", "connect"):
        tcp = roles.add_parser(name)
        tcp.add_argument("--address", required=True)
        tcp.add_argument("--silent", action="store_true", help="receive only")
    for role in roles.choices.values():
        role.add_argument("--port", type=int, required=True)
        role.add_argument("--rate", type=float, default=0.0, help="packets or bytes a second; TCP: 0 for no limit")
    args = parser.parse_args()
    with (args.directory / "live").open("r+b") as file:
        live = Live(mmap.mmap(file.fileno(), LIVE_BYTES))
    orders = Orders()
    try:
        run_udp(args, live, orders) if args.role == "udp" else run_tcp(args, live, orders)
    except (OSError, ValueError) as exc:
        print(f"error: {exc}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    # The interpreter takes its handlers away as it ends, and this order may still come: it would end us with a signal.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.exit(status)
