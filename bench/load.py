"""What goes through a variant, and what it shows: TCP, UDP, pings, a file by curl."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.harness import CommandError, Host, WaitError
from tests.harness.tools import family_of

from .accounts import Account
from .search import Found, Probe, lossless_rate
from .variants import NAME, SERVER, TapotunTls, Variant

IPERF_PORT: Final = 5201
_GRACE_S: Final = 8.0
_BUSY_S: Final = 5.0
_TIMES: Final = re.compile(r"time=([\d.]+) ms")


# TCP


@dataclass(frozen=True)
class Tcp:
    """One run of iperf3. `cpu_s` is of the variant's processes as in `Variant.pids`; a GB is 10^9 bytes of payload.

    `congestion` is what iperf3's own sender used.
    """

    gbit_s: float
    gb: float
    retransmits: int
    cpu_s: tuple[float, ...]
    machine_cpu_s: float
    congestion: str


@contextmanager
def iperf_server(variant: Variant) -> Iterator[None]:
    """iperf3 listening on the variant's server, for all runs of the bench."""
    with variant.server.start(["iperf3", "-s", "-p", str(IPERF_PORT)]) as daemon:
        variant.server.wait_for_listener(IPERF_PORT, by=daemon)
        yield


def congestion_options(name: str | None) -> list[str]:
    """What tells iperf3 to use that congestion control, at whichever end sends; None is the machine's default."""
    return ["-C", name] if name is not None else []


def tcp(variant: Variant, *options: str, seconds: int, source: Host | None = None, address: str | None = None) -> Tcp:
    """iperf3 from the variant's client (or another host) to its server, or to another address of that. Raises
    CommandError, WaitError."""
    account = Account(variant.pids)
    end = _iperf(source or variant.client, address or variant.address, *options, seconds=seconds)["end"]
    used = account.used()
    received = end["sum_received"]
    return Tcp(
        gbit_s=received["bits_per_second"] / 1e9,
        gb=received["bytes"] / 1e9,
        retransmits=end["sum_sent"].get("retransmits", 0),
        cpu_s=used.processes,
        machine_cpu_s=used.machine,
        congestion=end.get("sender_tcp_congestion", "unknown"),
    )


def _iperf(host: Host, address: str, *options: str, seconds: int) -> dict[str, Any]:
    argv = ["iperf3", "-J", "-c", address, "-p", str(IPERF_PORT), "-t", str(seconds), *options]
    deadline = time.monotonic() + _BUSY_S
    while True:
        done = host.run(argv, check=False, timeout=seconds + _GRACE_S)
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
        if done.returncode == 0 and "error" not in answer:
            return answer
        # The server may have yet to notice the end of the run before. Then it says that it is busy, or just closes. A
        # run that had begun is not repeated: what ended it is the variant's.
        if answer.get("intervals") or time.monotonic() > deadline:
            raise CommandError(f"`{' '.join(argv)}`: {answer.get('error', done.stderr.strip())}")
        time.sleep(0.05)


# UDP


@dataclass(frozen=True)
class Udp:
    """One run of udpflood; rates are packets per second. `steady` is the rate of arrivals while sending went on."""

    offered: float
    steady: float
    loss: float
    duplicates: int
    reordered: int


def udp(
    flood: Path,
    variant: Variant,
    size: int,
    rate: float,
    seconds: float,
    flows: int = 1,
    address: str | None = None,
) -> Udp:
    """From client to server: `size` bytes of payload, `rate` packets a second, or as fast as they go if that is 0.
    `address`: another one of the server.

    Raises CommandError, WaitError.
    """
    address = address or variant.address
    family = family_of(address)
    with ExitStack() as stack:
        tx = stack.enter_context(variant.client.socket(family, socket.SOCK_DGRAM))
        rxs = [stack.enter_context(variant.server.socket(family, socket.SOCK_DGRAM)) for _ in range(flows)]
        for rx in rxs:
            rx.bind((address, 0))
        fds = [tx.fileno(), *(rx.fileno() for rx in rxs)]
        argv = [str(flood), str(fds[0]), ",".join(map(str, fds[1:])), str(size), f"{rate:.0f}", f"{seconds:g}"]
        try:
            done = subprocess.run(
                argv, pass_fds=fds, capture_output=True, text=True, check=False, timeout=seconds + _GRACE_S
            )
        except subprocess.TimeoutExpired:
            raise WaitError(f"waited {seconds + _GRACE_S:g} s for `{' '.join(argv)}`") from None
    if done.returncode != 0:
        raise CommandError(f"`{' '.join(argv)}` failed with {done.returncode}: {done.stderr.strip()}")
    counts = json.loads(done.stdout)
    return Udp(
        offered=counts["sent"] / counts["send_s"],
        steady=counts["steady"] / counts["steady_s"],
        loss=1 - counts["received"] / counts["sent"] if counts["sent"] else 0.0,
        duplicates=counts["duplicates"],
        reordered=counts["reordered"],
    )


def search(
    flood: Path,
    variant: Variant,
    size: int,
    *,
    bounds: tuple[float, float],
    probes: int,
    seconds: float,
    flows: int = 1,
) -> Found:
    """The highest rate at which less than 1 % is lost. Raises as `udp`."""

    def probe(rate: float) -> Probe:
        result = udp(flood, variant, size, rate, seconds, flows)
        return Probe(rate, result.offered, result.loss)

    return lossless_rate(probe, *bounds, probes)


# Pings


def pings_us(variant: Variant, count: int, every_s: float) -> list[float]:
    """Round trips in microseconds, from the client to the server. Raises CommandError if fewer than half came back."""
    argv = ["ping", "-n", "-c", str(count), "-i", str(every_s), "-W", "1", variant.address]
    done = variant.client.run(argv, check=False, timeout=count * every_s * 4 + _GRACE_S, env={"LC_ALL": "C"})
    found = [float(ms) * 1000 for ms in _TIMES.findall(done.stdout)]
    if len(found) < count / 2:
        raise CommandError(f"`{' '.join(argv)}`: only {len(found)} of {count} came back")
    return found


def pings_under_load_us(variant: Variant, *options: str, seconds: int, every_s: float) -> list[float]:
    """Round trips while one TCP stream runs, its first quarter of a second left out. Raises as `pings_us`."""
    argv = ["iperf3", "-c", variant.address, "-p", str(IPERF_PORT), "-t", str(seconds + 1), *options]
    with variant.client.start(argv, name="load") as load:
        variant.client.run(["sleep", "0.25"])
        # `-w` ends it in time even where each round trip is longer than the pause.
        keepalive = ["ping", "-n", "-i", str(every_s), "-w", str(seconds), "-W", "1", variant.address]
        done = variant.client.run(keepalive, check=False, timeout=seconds + _GRACE_S, env={"LC_ALL": "C"})
        if not load.running:
            raise CommandError(f"the load ended before the pings did\n{load.tail()}")
        load.stop()
    found = [float(ms) * 1000 for ms in _TIMES.findall(done.stdout)]
    if len(found) < seconds / every_s / 10:
        raise CommandError(f"`{' '.join(keepalive)}`: only {len(found)} came back")
    return found


# TLS without the tunnel


def curl_gbit_s(variant: TapotunTls, seconds: int) -> float:
    """What curl gets of nginx's static file, over TLS, in at most that many seconds. Raises CommandError."""
    argv = ["curl", "-sS", "-o", "/dev/null", "--cacert", str(variant.ca_file), "--max-time", str(seconds)]
    argv += ["-w", "%{http_code} %{speed_download}", f"https://{NAME}/static"]
    done = variant.client.run(argv, check=False, timeout=seconds + _GRACE_S)
    found = re.fullmatch(r"200 (\d+)(?:\.\d+)?", done.stdout.strip())
    if done.returncode not in (0, 28) or found is None:  # 28: the time was up, which is how it should end
        raise CommandError(f"`{' '.join(argv)}`: {done.stderr.strip() or done.stdout.strip()}")
    return int(found[1]) * 8 / 1e9


def negotiated_cipher(variant: TapotunTls) -> str:
    """The cipher that nginx and the client's OpenSSL agree on, as `openssl speed -evp` calls it."""
    context = ssl.create_default_context(cafile=str(variant.ca_file))
    with variant.client.socket() as sock:
        sock.settimeout(_GRACE_S)
        sock.connect((SERVER, 443))
        with context.wrap_socket(sock, server_hostname=NAME) as secure:
            agreed = secure.cipher()
    assert agreed is not None
    return evp_name(agreed[0])


def evp_name(suite: str) -> str:
    """``TLS_AES_256_GCM_SHA384`` or ``ECDHE-RSA-AES256-GCM-SHA384`` as ``aes-256-gcm``. Raises ValueError."""
    if "CHACHA20" in suite:
        return "chacha20-poly1305"
    found = re.search(r"AES[-_]?(128|256)[-_]GCM", suite)
    if found is None:
        raise ValueError(f"no EVP name is known for the cipher suite {suite}")
    return f"aes-{found[1]}-gcm"


def openssl_s_per_gb(cipher: str) -> float:
    """CPU seconds to decrypt 10^9 bytes in records of 16 KiB, as `openssl speed` says. Raises CommandError."""
    argv = ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", "16384", "-decrypt", "-evp", cipher]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        raise CommandError("openssl is not installed: apt-get install openssl") from None
    # +F:number:name:bytes per second, one for each block size
    found = re.search(r"^\+F:\d+:[^:]+:([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or found is None:
        raise CommandError(f"`{' '.join(argv)}`: {done.stderr.strip()[-300:]}")
    return 1e9 / float(found[1])
