"""Is everything as it was? Compares a host before and after.

Looked at: interfaces, addresses, routes of all tables and rules (both families), listening sockets,
processes, and on request the file descriptors of given processes. Left out is what changes by itself:
lifetimes, counters, states of queues.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .errors import LeakError, WaitError, wait_until
from .host import Host
from .process import Process
from .tools import run_ip

SETTLE_S: Final = 2.0

# Fields of `ip -j` that come and go without anyone's doing.
_RESTLESS: Final = frozenset({"valid_life_time", "preferred_life_time", "expires", "cache", "metrics", "tentative"})

Facts = Counter[str]


def snapshot(host: Host | None) -> Facts:
    """What there is on a host now, one readable line each, counted.

    Without a host: the interfaces, addresses, routes and rules of our own network namespace, but not its
    sockets and processes, which are other people's business.
    """
    ip = host.ip if host is not None else run_ip
    facts = Facts()
    for link in ip("link show"):
        up = "up" if "UP" in link["flags"] else "down"
        facts[f"interface {link['ifname']} mtu {link['mtu']} {up} {link.get('address', '')}".rstrip()] += 1
    for link in ip("address show"):
        for address in link.get("addr_info", []):
            facts[f"address {_words(address)} dev {link['ifname']}"] += 1
    for family in ("-4", "-6"):
        for route in ip(f"{family} route show table all"):
            facts[f"route {family} {_words(route)}"] += 1
        for rule in ip(f"{family} rule show"):
            facts[f"rule {family} {_words(rule)}"] += 1
    if host is not None:
        facts.update(f"listener {listener}" for listener in host.listening())
        facts.update(f"process {process}" for process in _processes(host))
    return facts


def changes(before: Facts, after: Facts) -> list[str]:
    """What differs: ``+ route ...`` is there now and was not, ``- address ...`` the other way round."""
    lines = [f"+ {fact}" for fact in (after - before).elements()]
    lines += [f"- {fact}" for fact in (before - after).elements()]
    return sorted(lines, key=lambda line: (line[2:], line[0]))


@contextmanager
def no_leaks(*hosts: Host | None, fds_of: Sequence[Process] = (), settle_s: float = SETTLE_S) -> Iterator[None]:
    """Whatever the body does to these hosts is undone at its end (None: our own network namespace).

    The kernel takes things apart in the background, so a difference has `settle_s` seconds to vanish. Of descriptors,
    only those that were added count: a process may have had one too many for a moment when the body began.
    Raises LeakError with one line for each that stays; nothing if the body itself raised.
    """
    before = [snapshot(host) for host in hosts]
    fds_before = _fds(fds_of)
    yield

    def differences() -> list[str]:
        found = []
        for host, facts in zip(hosts, before, strict=True):
            where = host.name if host is not None else "this machine"
            found += [f"{where}: {line}" for line in changes(facts, snapshot(host))]
        return found + changes(Facts(), _fds(fds_of) - fds_before)

    try:
        wait_until(lambda: not differences(), settle_s, "everything to be as before")
    except WaitError:
        if found := differences():
            raise LeakError("\n".join(["not as before:", *found])) from None


def _fds(processes: Iterable[Process]) -> Facts:
    facts = Facts()
    for process in processes:
        for kind, count in process.fds().items():
            facts[f"fd of {process.name}: {kind}"] += count
    return facts


def _words(fields: dict[str, Any]) -> str:
    """One object of `ip -j` as one line; fields in ip's own order."""
    kept = {key: value for key, value in fields.items() if key not in _RESTLESS and value != []}
    return " ".join(f"{key} {value}" for key, value in kept.items())


def _processes(host: Host) -> Iterator[str]:
    """The command lines of everything in the host's PID namespace but its PID 1."""
    namespace = os.readlink(f"/proc/{host.pid}/ns/pid")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == host.pid:
            continue
        try:
            if os.readlink(entry / "ns/pid") != namespace:
                continue
            command = (entry / "cmdline").read_bytes().rstrip(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is somebody else's
        if command:  # without one it is a zombie that its parent has yet to reap
            yield command.replace(b"\0", b" ").decode(errors="replace")
