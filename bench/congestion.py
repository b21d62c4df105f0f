"""Which congestion control the sockets of a variant really use: what `ss -ti` says of those that have sent something.

BBR and cubic differ by more than most changes of a program do, so a ratio means nothing unless both sides of it use the
same one. A default says little: the tunnel chooses for itself (tapotun_trio/datapath/congestion.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import CommandError, Host

from .variants import Variant

# The ports on which the ends of a variant listen, and who that is.
PORTS: Final = {7000: "server", 8080: "server", 443: "nginx"}
# A socket that has sent less than this carries no packets: it has sent a request's head, or a relay's first byte.
_CARRIES_BYTES: Final = 20_000
# What ss prints in front of the name, as iproute2's misc/ss.c has it (tcp_stats_print).
_FLAGS: Final = frozenset(("ts", "sack", "ecn", "ecnseen", "fastopen"))
_DEFAULT: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(frozen=True)
class Socket:
    """One line of ``ss -HtinO state established``."""

    local_port: int
    peer_port: int
    congestion: str
    sent_bytes: int


def parse(output: str) -> list[Socket]:
    """Every line of ``ss -HtinO state established``. Raises CommandError for a line that has no such shape."""
    return [_parse_line(line) for line in output.splitlines() if line.strip()]


def _parse_line(line: str) -> Socket:
    words = line.split()
    try:
        local, peer = (int(word.rpartition(":")[2]) for word in words[2:4])
        congestion = next(word for word in words[4:] if word not in _FLAGS)
        # ss leaves a counter out while it is zero.
        sent = next((int(word.partition(":")[2]) for word in words if word.startswith("bytes_sent:")), 0)
    except (ValueError, StopIteration) as exc:
        raise CommandError(f"a line of ss -ti cannot be read: {line!r}") from exc
    if ":" in congestion:  # the name was left out
        raise CommandError(f"ss -ti names no congestion control: {line!r}")
    return Socket(local, peer, congestion, sent)


def senders(sockets: Iterable[Socket], *, on_client: bool, ports: Mapping[int, str] = PORTS) -> dict[str, Counter[str]]:
    """Bytes sent, by who sends (``client``, ``server``, ``nginx``) and by congestion control.

    `on_client`: the sockets are the client machine's; on the server's machine nginx has connections to both sides.
    `ports`: who listens where.
    """
    found: dict[str, Counter[str]] = {}
    for socket in sockets:
        if socket.sent_bytes < _CARRIES_BYTES:
            continue
        if socket.local_port in ports:
            who = ports[socket.local_port]
        elif socket.peer_port in ports:
            who = "client" if on_client else "nginx"
        else:
            continue  # of the load
        found.setdefault(who, Counter())[socket.congestion] += socket.sent_bytes
    return found


def look(variant: Variant, ports: Mapping[int, str] = PORTS) -> dict[str, Counter[str]]:
    """As `senders`, of both machines of a variant. Raises HarnessError."""
    ask = ["ss", "-HtinO", "state", "established"]
    found: dict[str, Counter[str]] = {}
    for host in (variant.client, variant.server):
        sockets = parse(host.run(ask, env={"LC_ALL": "C"}).stdout)
        found.update(senders(sockets, on_client=host is variant.client, ports=ports))
    return found


def of_the_tunnel(found: Mapping[str, Counter[str]]) -> Counter[str]:
    """Of the two ends together, without the proxy between them."""
    return sum((found[end] for end in ("client", "server") if end in found), Counter())


def machine_default(host: Host | None = None) -> str:
    """The default of a host, or of this machine. Raises HarnessError, OSError."""
    if host is None:
        return _DEFAULT.read_text("ascii").strip()
    return host.run(["cat", _DEFAULT]).stdout.strip()
