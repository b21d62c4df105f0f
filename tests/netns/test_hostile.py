"""The daemon under siege, with a real kernel behind its TUN: crowds, impossible frames, a client that reads nothing.

What a unit test can show is shown there (tests/unit/test_hostile_*.py); here is what takes a process of its own: its
memory, its descriptors, and what the kernel thinks of a header.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.http.server import HEAD_S
from tests.harness import Host, Lab, Payload, Process, download, no_leaks, ping, upload, wait_for_ping, wait_until

from ..packets import frame, ip
from .dual import HUB, LAPTOP, dual_cable, dual_client, dual_config, forwards
from .injection import injected
from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, client_config, running, token

pytestmark = pytest.mark.netns

MALLORY: Final = "10.10.0.66"
MALLORY_6: Final = "fd00:10::66"
KEY: Final = f"Host: h\r\nx-api-key: {token('mallory')}\r\n"
GET: Final = f"GET /ip HTTP/1.1\r\n{KEY}\r\n".encode()
PUT: Final = f"PUT /ip HTTP/1.1\r\n{KEY}Transfer-Encoding: chunked\r\n\r\n".encode()
SESSION: Final = f"x-tun-features: ctl, inet6\r\nx-tun-session: {'6' * 32}\r\n"
GET_6: Final = f"GET /ip HTTP/1.1\r\n{KEY}{SESSION}\r\n".encode()
PUT_6: Final = f"PUT /ip HTTP/1.1\r\n{KEY}{SESSION}Transfer-Encoding: chunked\r\n\r\n".encode()
PATIENCE_S: Final = 10.0
# A connection may wait HEAD_S for its head, and then some seconds for the client to read the answer.
SETTLE_S: Final = 2 * HEAD_S
LOBBY: Final = 256

# Opens connections without a token, each of which says something else or nothing, and holds all of them.
_CROWD: Final = """
import resource, socket, sys, time
count = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
hellos = [b"", b"G", b"GET /ip HTTP/1.1\\r\\nx-api-key: wrong\\r\\n\\r\\n", b"PUT / HTTP/1.1\\r\\na: " + b"x" * 9000,
          b"\\x16\\x03\\x01", b"GET / HTTP/1.1\\r\\n\\r\\n"]
held = []
for n in range(count):
    sock = socket.create_connection((sys.argv[2], 8080), 20)
    try:
        sock.sendall(hellos[n % len(hellos)])
    except OSError:
        pass
    held.append(sock)
    if len(held) > hard - 64:
        held.pop(0).close()
print("all came", flush=True)
time.sleep(60)
"""


# Sends datagrams to an address, without end: about 10,000 a second, 100 Mbit/s, far more than a reader that reads
# nothing takes, and not so many that reading them is all that a daemon under coverage on a shared core can do.
_FLOOD: Final = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _ in range(100):
        sock.sendto(bytes(1400), (sys.argv[1], 9))
    time.sleep(0.01)
"""


def memory_bytes(process: Process, field: str = "VmRSS") -> int:
    """``VmRSS``: what it has now; ``VmHWM``: the most it ever had."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


@contextmanager
def memory_grows_below(process: Process, limit_bytes: int, what: str) -> Iterator[None]:
    """And prints by how much, at the most."""
    before = memory_bytes(process)
    Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on
    yield
    peak = memory_bytes(process, "VmHWM")
    sys.stdout.write(f"\n[measured] {what}: resident {before / 2**20:.1f} MiB before, at most {peak / 2**20:.1f} MiB\n")
    assert peak - before < limit_bytes


@contextmanager
def siege(lab: Lab, *, counting: bool = False) -> Iterator[tuple[Host, Host, Process]]:
    """A server that knows laptop and mallory, and laptop connected to it; the server's daemon. ``counting``: it says
    at its end why streams ended (see `ends`)."""
    server, client = dual_cable(lab)
    config = dual_config(dual_client(), dual_client("mallory", (MALLORY, MALLORY_6)))
    start = injected(server, [config], ENDS, name="tapotun") if counting else running(server, config)
    with start as daemon:
        daemon.wait_for_log("started: ")
        with running(client, client_config(), until=UPLOADING):
            wait_for_ping(client, HUB[0])  # so the server has accepted both streams: bodies count its descriptors
            yield server, client, daemon
            assert all(ping(client, address).ok for address in HUB)
            assert "restarting in" not in daemon.log
            assert " ERROR " not in daemon.log


ENDS = """\
import atexit, json
from tapotun_trio.server import session

made, counters = [], session.Counters


def keep():
    made.append(counters())
    return made[-1]


session.Counters = keep
atexit.register(lambda: print("ended:", json.dumps(sum((it.ends for it in made), type(made[0].ends)()))))
"""


def ends(daemon: Process) -> dict[str, int]:
    """Why streams ended at a daemon that is counting, once it has stopped."""
    wait_until(lambda: "ended: {" in daemon.log, PATIENCE_S, "the daemon's last words", daemon.tail)
    found: dict[str, int] = json.loads(daemon.log.rpartition("ended: ")[2].splitlines()[0])
    return found


@contextmanager
def connected(client: Host, *parts: bytes, receive_buffer_bytes: int | None = None) -> Iterator[socket.socket]:
    """A connection to the server on which these were sent."""
    with client.socket() as sock:
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(PATIENCE_S)
        sock.connect((SERVER, 8080))
        sock.sendall(b"".join(parts))
        yield sock


def test_ten_thousand_without_a_token(lab: Lab) -> None:
    """So many descriptors as the lobby has places; the tunnel goes on, and a client with a token comes in."""
    with siege(lab) as (_, client, daemon), no_leaks(fds_of=[daemon], settle_s=SETTLE_S):
        start = daemon.fds()["socket"]
        peak = 0
        with memory_grows_below(daemon, 48 * 2**20, "10,000 strangers"):
            with client.start([sys.executable, "-c", _CROWD, "10000", SERVER], name="crowd") as crowd:

                def all_came() -> bool:
                    nonlocal peak
                    peak = max(peak, daemon.fds()["socket"] - start)
                    assert ping(client, TUNNEL_SERVER, count=1).ok
                    return "all came" in crowd.log

                wait_until(all_came, 120, "ten thousand connections", crowd.tail)
                with connected(client, GET) as sock:
                    assert sock.recv(15) == b"HTTP/1.1 200 OK"
                crowd.kill()
        sys.stdout.write(f"\n[measured] 10,000 strangers: at most {peak} descriptors\n")
        assert peak <= LOBBY + 32
        assert daemon.log.count("unknown or missing token") < 60


def vnet(flags: int = 0, gso: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr_len, gso_size, start, offset, 0)


def impossible_headers(ip_bytes: int) -> Iterator[bytes]:
    """Every field at its limits and beyond, with and without a checksum, for every kind of GSO. ``ip_bytes``: where
    the transport header begins."""
    for flags in (0, 1, 4, 0xFF):
        for gso in (0, 1, 2, 3, 4, 5, 0x7F, 0x80, 0x81, 0xFF):
            yield vnet(flags, gso)
            yield vnet(flags, gso, gso_size=65535, start=ip_bytes, offset=16)
            yield vnet(flags, gso, gso_size=1, start=ip_bytes, offset=16)
            yield vnet(flags, gso, hdr_len=65535, gso_size=100, start=ip_bytes, offset=16)
            yield vnet(flags, gso, hdr_len=1, gso_size=100, start=65535, offset=65535)
            yield vnet(flags, gso, gso_size=100, start=32767, offset=2)
            yield vnet(flags, gso, gso_size=100, start=0, offset=0)
            yield vnet(flags, gso, gso_size=100, start=ip_bytes - 1, offset=65535)


@pytest.mark.usefixtures("each_plane")
@pytest.mark.parametrize(
    "to",
    [*HUB, *LAPTOP, "192.0.2.77", "2001:db8:2::77"],
    ids=["server", "server-6", "client", "client-6", "forwarded", "forwarded-6"],
)
def test_impossible_headers(lab: Lab, to: str) -> None:
    """Whatever a header says, it ends one upload at most: neither of the two kernels' refusals ends an interface."""
    me, ip_bytes = (MALLORY_6, 40) if ":" in to else (MALLORY, 20)
    packets = [ip(me, to, bytes(n), protocol) for n, protocol in ((0, 253), (100, 6), (100, 17), (3000, 6))]
    frames = [frame(packet, header) for header in impossible_headers(ip_bytes) for packet in packets]
    put = PUT_6 if ":" in to else PUT
    with siege(lab, counting=True) as (server, client, daemon), no_leaks(fds_of=[daemon], settle_s=SETTLE_S):
        forwards(server)
        refused = 0
        with connected(client, GET_6) as agreed:  # with which mallory may send either family
            assert b"inet6" in agreed.recv(4096)
            while frames:
                with connected(client, put) as sock:
                    refused += _send_until_refused(sock, frames)
        sys.stdout.write(f"\n[measured] {refused} uploads ended for their headers\n")
    assert refused
    # The last of all frames may be refused after the last moment that we gave the server.
    assert ends(daemon)["bad-vnet"] - refused in (0, 1)


def _send_until_refused(sock: socket.socket, frames: list[bytes]) -> bool:
    """Send frame after frame, giving the server a moment to close after each. Returns whether it did."""
    while frames:
        one = frames.pop()
        try:
            sock.sendall(b"%x\r\n%b\r\n" % (len(one), one))
            sock.settimeout(0.004)
            if sock.recv(1) == b"":
                return True
        except TimeoutError:
            sock.settimeout(PATIENCE_S)
        except OSError:
            return True
    return False


def test_one_that_reads_nothing(lab: Lab) -> None:
    """A flood for mallory, who never reads, beside transfers that are checked, in both directions."""
    with siege(lab) as (server, client, daemon), no_leaks(fds_of=[daemon], settle_s=SETTLE_S):
        with connected(client, GET, receive_buffer_bytes=4096), Payload(5_000_000) as payload:
            with memory_grows_below(daemon, 40 * 2**20, "a download that nobody reads, under a flood"):
                with server.start([sys.executable, "-c", _FLOOD, MALLORY], name="flood") as flooding:
                    for move in (upload, download):
                        done = move(client, server, TUNNEL_SERVER, payload)
                        sys.stdout.write(
                            f"\n[measured] {move.__name__} beside it: {done.gbit_s:.2f} Gbit/s, all of it\n"
                        )
                    flooding.stop()


@pytest.mark.usefixtures("each_plane")
def test_authenticated_garbage(lab: Lab) -> None:
    """Each ends its upload, and is counted with its reason; not each is logged. Nothing else."""
    bodies = {
        "bad-frame": b"5\r\n\5\0abc\r\n",
        "bad-chunk": b"-5\r\n",
        "no IP": b"22\r\n\x14\0" + bytes(32) + b"\r\n",
        "control": b"7\r\n\1\0\2\xff\xff\xff\xff\r\n",
    }
    with siege(lab, counting=True) as (_, client, daemon), no_leaks(fds_of=[daemon], settle_s=SETTLE_S):
        with memory_grows_below(daemon, 16 * 2**20, "1,000 uploads of garbage"):
            for n in range(1000):
                with connected(client, PUT, list(bodies.values())[n % len(bodies)]) as sock:
                    with suppress(ConnectionResetError):
                        assert sock.recv(1) == b""
        assert 0 < daemon.log.count(" INFO    tun0 mallory: upload from") < 500  # lines are limited
    counted = ends(daemon)
    assert counted["bad-frame"] == 750
    assert counted["bad-chunk"] == 250
