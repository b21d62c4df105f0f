"""`make demo`: two machines, a tunnel between them, real traffic, and nothing left afterwards.

The machines are network namespaces on this one (see `tests.harness`); the two daemons are real processes with
the config files in ``conf/demo``. Exit code 0 if everything that it shows was as it should be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from tests.harness import (
    ROOT,
    HarnessError,
    Host,
    Lab,
    LeakError,
    Payload,
    Process,
    Transfer,
    WaitError,
    changes,
    download,
    missing,
    ping,
    snapshot,
    tapotun,
    upload,
    wait_for_ping,
    wait_until,
)
from tests.harness.leaks import SETTLE_S, Facts
from tests.harness.needs import DEMO_TOOLS

CABLE_SERVER, CABLE_CLIENT = "192.0.2.1", "192.0.2.2"
TUNNEL_SERVER, TUNNEL_CLIENT = "10.10.0.1", "10.10.0.2"
MIB: Final = 1 << 20
TRANSFER_S: Final = 60.0  # for one transfer; a healthy one takes seconds
STOP_S: Final = 1.0  # promised by the program: SIGTERM takes everything down in under a second

PICTURE: Final = f"""
   client                                        server
   {TUNNEL_CLIENT}  tun0 ==== HTTP over TCP ==== tun0  {TUNNEL_SERVER}
   {CABLE_CLIENT}  eth0 -------- cable -------- eth0  {CABLE_SERVER}
"""


class Screen:
    """Calm output: one line for each step, which on a terminal shows its progress while it lasts."""

    REFRESH_S: Final = 0.1
    PLAIN_REFRESH_S: Final = 5.0

    def __init__(self) -> None:
        """Writes to standard output."""
        self._live = sys.stdout.isatty()
        self._next_refresh = 0.0
        self._title = ""

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """A step. What the body puts into the list is its result, shown at the end; an exception, that it failed."""
        self._title = title
        self._next_refresh = time.monotonic() + (0 if self._live else self.PLAIN_REFRESH_S)
        result: list[str] = []
        self.progress("...")
        try:
            yield result
        except BaseException as exc:
            self._finish("--" if isinstance(exc, KeyboardInterrupt) else "FAIL", "")
            raise
        self._finish("ok", ", ".join(result))

    def progress(self, text: str) -> None:
        """What the current step is doing. Cheap to call often."""
        now = time.monotonic()
        if now < self._next_refresh:
            return
        self._next_refresh = now + (self.REFRESH_S if self._live else self.PLAIN_REFRESH_S)
        line = f"   ..   {self._title:<30} {text}"
        if self._live:
            # Cut to the width: a line that wraps cannot be written over.
            sys.stdout.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        else:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _finish(self, verdict: str, text: str) -> None:
        if self._live:
            sys.stdout.write("\r\x1b[K")
        self.say(f"   {verdict:<4} {self._title:<30} {text}".rstrip())

    def say(self, text: str = "") -> None:
        """A line of its own."""
        print(text, flush=True)


@dataclass(frozen=True)
class Measured:
    """One transfer each way, and the average round trip in milliseconds."""

    up: Transfer
    down: Transfer
    ping_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of the file, default 1024")
    parser.add_argument("--stop", type=float, default=STOP_S, metavar="S", help="time to stop in, default %(default)s")
    options = parser.parse_args(argv)
    _become_root_of_a_namespace()
    if lines := missing(DEMO_TOOLS):
        print("The demo cannot run here: " + "; ".join(lines), file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Screen()
    began = time.monotonic()
    try:
        run(screen, _affordable(options.size, screen) * MIB, options.stop)
    except KeyboardInterrupt:
        screen.say("\ninterrupted; both machines are gone, and everything on them")
        return 130
    except HarnessError as exc:
        screen.say(f"\n{exc}\n\nThe demo failed; both machines are gone, and everything on them.")
        return 1
    screen.say(f"\nEverything was as it should be. {time.monotonic() - began:.0f} s")
    return 0


def run(screen: Screen, size: int, stop_s: float = STOP_S) -> None:
    """Everything that there is to see. Raises HarnessError for anything that is not as it should be."""
    with ExitStack() as stack:
        screen.say(PICTURE)
        with screen.step("two machines and a cable") as result:
            lab = stack.enter_context(Lab())
            server, client = lab.host("server"), lab.host("client")
            lab.link(server, f"{CABLE_SERVER}/24", client, f"{CABLE_CLIENT}/24")
            before = {host: snapshot(host) for host in (server, client)}
            result.append("nothing outside them is touched")
        with screen.step(f"a file of {_size(size)}") as result:
            payload = stack.enter_context(Payload(size))
            result.append(f"sha256 {payload.sha256[:16]}...")
        plain = _measure(screen, client, server, CABLE_SERVER, payload, "cable")

        with screen.step("server and client start") as result:
            server_daemon = tapotun(server, ROOT / "conf/demo/server.json")
            server.wait_for_listener(8080, by=server_daemon)
            client_daemon = tapotun(client, ROOT / "conf/demo/client.json")
            _wait_for_tunnel(client, client_daemon)
            result.append("with the files in conf/demo")
        tunnel = _measure(screen, client, server, TUNNEL_SERVER, payload, "tunnel")
        _compare(screen, plain, tunnel)
        for host in (client, server):
            _show_routes(screen, host)
        screen.say()
        with screen.step("both stop on SIGTERM") as result:
            result += [_stop(client_daemon, "client", stop_s), _stop(server_daemon, "server", stop_s)]
        with screen.step("nothing is left") as result:
            _check_nothing_left(before)
            result.append("as before, both machines together:")
        screen.say(f"        {_inventory(before)}")


def _measure(screen: Screen, client: Host, server: Host, address: str, payload: Payload, way: str) -> Measured:
    with screen.step(f"{way}: ping") as result:
        answer = ping(client, address, count=10)
        if not answer.ok or answer.avg_ms is None:
            raise HarnessError(f"ping to {address}: {answer.received} of {answer.sent} answers")
        result.append(f"{answer.received} of {answer.sent} answered, {answer.avg_ms:.2f} ms")
    found: dict[str, Transfer] = {}
    for move, title in ((upload, "client to server"), (download, "server to client")):

        def progress(received: int) -> None:
            screen.progress(f"{_size(received)} of {_size(payload.size)}")

        with screen.step(f"{way}: {title}") as result:
            transfer = move(client, server, address, payload, timeout=TRANSFER_S, progress=progress)
            result.append(f"{_size(payload.size)}, checksum right, {transfer.gbit_s:.1f} Gbit/s")
        found[title] = transfer
    return Measured(found["client to server"], found["server to client"], answer.avg_ms)


def _wait_for_tunnel(client: Host, daemon: Process) -> None:
    try:
        wait_for_ping(client, TUNNEL_SERVER)
    except HarnessError as exc:
        raise HarnessError(f"no answer through the tunnel: {exc}\n{daemon.tail()}") from exc


def _compare(screen: Screen, plain: Measured, tunnel: Measured) -> None:
    screen.say(f"\n   {'':<22}{'cable':>14}{'tunnel':>14}   tunnel/cable")
    for title, bare, carried in (
        ("client to server", plain.up, tunnel.up),
        ("server to client", plain.down, tunnel.down),
    ):
        ratio = carried.gbit_s / bare.gbit_s
        speeds = f"{bare.gbit_s:>7.1f} Gbit/s{carried.gbit_s:>7.1f} Gbit/s"
        screen.say(f"   {title:<22}{speeds}   {ratio:.0%}")
    screen.say(f"   {'ping':<22}{plain.ping_ms:>11.2f} ms{tunnel.ping_ms:>11.2f} ms")


def _show_routes(screen: Screen, host: Host) -> None:
    screen.say(f"\n   routes of the {host.name}")
    for line in host.run(["ip", "route", "show"]).stdout.splitlines():
        screen.say(f"      {line.rstrip()}")


def _stop(daemon: Process, name: str, stop_s: float) -> str:
    start = time.monotonic()
    code = daemon.stop(stop_s)
    if code != 0:
        raise HarnessError(f"the {name} ended with exit code {code}\n{daemon.tail()}")
    return f"{name} in {time.monotonic() - start:.2f} s"


def _check_nothing_left(before: Mapping[Host, Facts]) -> None:
    def differences() -> list[str]:
        return [f"{host.name}: {line}" for host, facts in before.items() for line in changes(facts, snapshot(host))]

    try:
        wait_until(lambda: not differences(), SETTLE_S, "everything to be as before")
    except WaitError:
        raise LeakError("\n".join(["not as before:", *differences()])) from None


def _inventory(before: Mapping[Host, Facts]) -> str:
    # "route -4 dst ...": the first word of a fact is its kind.
    kinds = Counter(fact.split()[0] for facts in before.values() for fact in facts.elements())
    return ", ".join(
        f"{kinds[kind]} {plural}"
        for kind, plural in (
            ("interface", "interfaces"),
            ("address", "addresses"),
            ("route", "routes"),
            ("rule", "rules"),
            ("listener", "listeners"),
            ("process", "processes"),
        )
    )


def _size(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


def _affordable(size_mib: int, screen: Screen) -> int:
    """The file's size in MiB: as wished, or less where memory is short (it is held twice, in memory)."""
    fields = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free_mib = next(int(field[1]) for field in fields if field[0] == "MemAvailable:") >> 10
    # A container's limit does not show there.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
        free_mib = min(free_mib, int(text) >> 20)
    while size_mib * 5 // 2 > free_mib and size_mib > 1:
        size_mib //= 2
        screen.say(f"{free_mib} MiB of memory are free here, so the file is only {size_mib} MiB.")
    return size_mib


def _become_root_of_a_namespace() -> None:
    """As an ordinary user, start again as root of a user namespace, where the kernel allows that."""
    if os.geteuid() == 0:
        return
    enter = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*enter, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        os.execvp(enter[0], [*enter, sys.executable, "-m", "tools.demo", *sys.argv[1:]])
    sys.exit("The demo needs root here: this kernel gives its users no namespaces of their own.")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
