"""Hosts and the links between them: small machines made of namespaces.

A host is a network, a mount and a PID namespace, kept alive by its PID 1, a ``cat`` that reads from us. When
our end of that pipe closes, for any reason, SIGKILL of the test run included, ``cat`` ends, the kernel
kills every other process of that PID namespace with it, and with the last process the network namespace goes,
and with that its interfaces with everything that was set on them. No mount point under /run/netns can be left over
because none is made.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from . import namespaces
from .errors import CommandError, HarnessError, wait_until
from .process import STOP_S, Process
from .signals import take_signals
from .tools import TOOL_PATH, finish, list_listeners, run_ip

START_S: Final = 10.0
_ALL: Final = namespaces.MOUNT | namespaces.PID | namespaces.NET
_IPV6: Final = Path("/proc/sys/net/ipv6")

# PID 1. Its own /proc and /sys show the host as it is, and its own /run has its own daemons' sockets only; where a
# container forbids the mounts, the outer ones do. SIGCHLD ignored, so that orphans are reaped without anyone's doing;
# `cat` inherits that.
_PID_1: Final = """
mount --make-rprivate / || exit 1
mount -t proc proc /proc 2>/dev/null
mount -t sysfs sysfs /sys 2>/dev/null
mount -t tmpfs -o mode=755 tmpfs /run 2>/dev/null
trap '' CHLD
echo ready
exec cat
"""

Addresses = str | Sequence[str]


class Host:
    """A machine of its own, with ``lo`` up and nothing else yet. Use it as a context manager, or `Lab.host`.

    At the end every process in it is killed, and the kernel removes its namespaces.
    """

    def __init__(self, name: str) -> None:
        """The name is for logs and errors."""
        self.name = name
        self.processes: list[Process] = []
        self._undo = ExitStack()
        self._init: subprocess.Popen[str] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._pidfd = -1
        self._hosts_file: Path | None = None
        self._interfaces = 0

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _start(self, undo: ExitStack) -> None:
        self.tmp = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        undo.callback(shutil.rmtree, self.tmp, ignore_errors=True)
        undo.callback(self._end)
        try:
            namespaces.call_in_new(_ALL, self._fork_init)
        except OSError as exc:
            raise HarnessError(
                f"cannot make namespaces for {self.name} (root, or `unshare -Urnm`, can): {exc}"
            ) from exc
        assert self._init is not None
        assert self._init.stdout is not None
        readable, _, _ = select.select([self._init.stdout], [], [], START_S)
        if not readable or self._init.stdout.readline() != "ready\n":
            raise HarnessError(f"PID 1 of {self.name} did not start: see its words on standard error")
        self._pidfd = os.pidfd_open(self._init.pid)
        undo.callback(os.close, self._pidfd)
        # Addresses are usable at once, and nobody configures interfaces behind the test's back.
        for scope in ("all", "default"):
            if _IPV6.exists():
                self.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
                self.sysctl(f"net.ipv6.conf.{scope}.accept_ra", 0)
        self.ip("link set lo up")

    def _fork_init(self) -> None:
        # Kept here, not returned: a Ctrl-C while the thread works loses what it returns.
        self._init = subprocess.Popen(
            ["sh", "-c", _PID_1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is the test's, not PID 1's
            text=True,
            cwd="/",
        )

    def _end(self) -> None:
        if self._init is None:
            return
        # PID 1 first, which takes everything along at once. Its own end is complete only after we have
        # reaped the others (pid_namespaces(7)), so it is waited for last.
        with self._init as init:
            init.kill()
            for process in self.processes:
                process.close()
            for child in self._children:
                child.wait(STOP_S)
            init.wait(STOP_S)

    @property
    def pid(self) -> int:
        """The PID of its PID 1, as the test sees it."""
        if self._init is None:
            raise HarnessError(f"{self.name} is not running: use it in a `with` statement")
        return self._init.pid

    # Processes

    def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Process:
        """Start a daemon inside this host; see `Process`.

        `name` is for logs (default: the program's), `env` is added to our own environment, `cwd` defaults to
        our own working directory. Raises CommandError if the program is not there.
        """
        name = name or Path(argv[0]).name
        log = os.memfd_create(f"log of {name}")
        try:
            popen = self._popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except BaseException:
            os.close(log)
            raise
        process = Process(f"{self.name}/{name}", popen, log)
        self.processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 10.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside this host to its end; standard output and error are in the answer.

        Raises CommandError if it fails (unless `check` is false), WaitError after `timeout` seconds,
        having killed it.
        """
        pipe = subprocess.PIPE
        popen = self._popen(argv, env=env, cwd=None, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        return finish(popen, argv, timeout=timeout, check=check, where=f"on {self.name}")

    def _popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> subprocess.Popen[bytes]:
        cwd = cwd or Path.cwd()  # asked for out here: inside, the thread's is /

        def fork() -> subprocess.Popen[bytes]:
            child = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={**_environment(), "PATH": TOOL_PATH, **(env or {})},
                cwd=cwd,
                start_new_session=True,  # so that Ctrl-C in a terminal leaves the stopping to us
            )
            self._children.append(child)
            return child

        self._children = [child for child in self._children if child.poll() is None]
        try:
            return namespaces.call_inside(self._pidfd, _ALL, fork)
        except FileNotFoundError as exc:
            raise CommandError(f"cannot run {argv[0]} on {self.name}: {exc}") from exc

    # The network inside

    def ip(self, command: str) -> list[dict[str, Any]]:
        """``ip -j COMMAND`` in this host; the parsed answer, empty for a command that prints nothing.

        Raises CommandError with ip's own message.
        """
        # Only the network namespace is entered: outer PIDs and /proc/PID paths keep their meaning.
        return namespaces.call_inside(self._pidfd, namespaces.NET, lambda: run_ip(command, self.name))

    def socket(
        self,
        family: socket.AddressFamily = socket.AF_INET,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        protocol: int = 0,
    ) -> socket.socket:
        """A socket of this host for the test itself: what it sends leaves from here. Close it yourself."""
        return namespaces.call_inside(self._pidfd, namespaces.NET, lambda: socket.socket(family, kind, protocol))

    def sysctl(self, name: str, value: str | int) -> None:
        """Set e.g. ``net.ipv4.ip_forward`` in this host. Raises HarnessError if there is no such setting."""
        path = Path("/proc/sys", *name.split("."))
        try:
            namespaces.call_inside(self._pidfd, namespaces.NET, lambda: path.write_text(f"{value}\n", "ascii"))
        except OSError as exc:
            raise HarnessError(f"cannot set {name} = {value} on {self.name}: {exc}") from exc

    def hosts(self, names: Mapping[str, str]) -> None:
        """Give this host a /etc/hosts of its own, with these names (``{"vpn.example.com": "192.0.2.1"}``).

        Everything that starts in here afterwards, or asks again, sees them. A second call replaces the first.
        """
        lines = [f"127.0.0.1 localhost {self.name}", "::1 localhost"]
        lines += [f"{address} {name}" for name, address in names.items()]
        first = self._hosts_file is None
        self._hosts_file = self.tmp / "hosts"
        self._hosts_file.write_text("\n".join([*lines, ""]), encoding="ascii")
        if first:  # later calls write into the file that is mounted already
            self.run(["mount", "--bind", self._hosts_file, "/etc/hosts"])

    def listening(self) -> set[str]:
        """What listens in here, as ``tcp 127.0.0.1:8080``, ``udp [::]:53`` or ``unix /run/x.sock``."""
        return set(namespaces.call_inside(self._pidfd, namespaces.NET, list_listeners))

    def wait_for_listener(self, port: int, timeout: float = START_S, *, by: Process | None = None) -> None:
        """Wait until something listens on that TCP port, at most `timeout` seconds.

        Raises WaitError; with `by`, the process that ought to, it carries its log, and its end is a
        ProcessError at once.
        """

        def probe() -> bool:
            if by is not None:
                by.check_running()
            return any(listener.startswith("tcp ") and listener.endswith(f":{port}") for listener in self.listening())

        detail = by.tail if by is not None else str
        wait_until(probe, timeout, f"a listener on TCP port {port} of {self.name}", detail)

    def next_interface(self) -> str:
        """A name for the next Ethernet interface: eth0, eth1 ..."""
        self._interfaces += 1
        return f"eth{self._interfaces - 1}"


@dataclass(frozen=True)
class Link:
    """A cable between two hosts: a veth pair. It is gone with the first of them, or after `remove`."""

    a: Host
    a_interface: str
    b: Host
    b_interface: str

    def remove(self) -> None:
        """Take the cable away, both interfaces with it."""
        self.a.ip(f"link del {self.a_interface}")


def _environment() -> dict[str, str]:
    """Ours, but for the proxies of this machine, which nothing inside can reach."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def connect(a: Host, a_addresses: Addresses, b: Host, b_addresses: Addresses, *, mtu: int = 1500) -> Link:
    """Lay a cable between two hosts, each end with one or more addresses (``"192.0.2.1/24"``).

    The interfaces are called eth0, eth1 ... in each host, and are up when this returns. `mtu` is in bytes.
    """
    link = Link(a, a.next_interface(), b, b.next_interface())
    # Both ends are born where they belong. Nothing exists in our own namespace for a moment.
    a.ip(
        f"link add {link.a_interface} mtu {mtu} type veth"
        f" peer name {link.b_interface} mtu {mtu} netns /proc/{b.pid}/ns/net"
    )
    ends = ((a, link.a_interface, a_addresses), (b, link.b_interface, b_addresses))
    for host, interface, addresses in ends:
        for address in [addresses] if isinstance(addresses, str) else addresses:
            host.ip(f"address add {address} dev {interface}")
        host.ip(f"link set {interface} up")
    for host, interface, _ in ends:
        wait_until(lambda: _is_ready(host, interface), START_S, f"{interface} of {host.name} to be up")  # noqa: B023
    return link


def _is_ready(host: Host, interface: str) -> bool:
    """The kernel sees a carrier, has given the interface its link-local address, and has made the local routes of its
    IPv6 addresses, each in its own time.

    Before that IPv6 is not usable, and a leak check would find an address or a route that nobody set.
    """
    (link,) = host.ip(f"address show {interface}")
    if link["operstate"] != "UP" or not _IPV6.exists():
        return bool(link["operstate"] == "UP")
    addresses = {address["local"]: address["scope"] for address in link["addr_info"] if address["family"] == "inet6"}
    local = {route["dst"] for route in host.ip(f"-6 route show table local dev {interface}")}
    return "link" in addresses.values() and set(addresses) <= local


class Lab:
    """Several hosts that end together. A context manager; everything in it is gone afterwards."""

    def __init__(self) -> None:
        """Nothing happens before the `with`."""
        self.hosts: list[Host] = []
        self._undo = ExitStack()

    def host(self, name: str) -> Host:
        """A new running host."""
        host = self._undo.enter_context(Host(name))
        self.hosts.append(host)
        return host

    def link(self, a: Host, a_addresses: Addresses, b: Host, b_addresses: Addresses, *, mtu: int = 1500) -> Link:
        """See `connect`."""
        return connect(a, a_addresses, b, b_addresses, mtu=mtu)

    @property
    def processes(self) -> list[Process]:
        """Every process ever started in here; their logs stay readable after their end."""
        return [process for host in self.hosts for process in host.processes]

    def __enter__(self) -> Self:
        take_signals()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()
