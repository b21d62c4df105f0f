"""Checked streams: traffic between two hosts of a lab in which every loss, repetition, exchange and change shows.

    with CheckedUdp(client, "10.10.0.2", server, "10.10.0.1", rate=1000) as udp:
        ...                                       # break something, mend it
        seconds = udp.wait_for_flow(time.monotonic_ns(), timeout=5)
        there, back = udp.finish()
    assert (there.lost, there.duplicated, there.corrupted) == (0, 0, 0), there

Both ends are processes of their own (`python -m tests.integrity`), so that the test may be busy with other things
and the stream does not stop for it. A UDP packet carries its number, the time it was sent, and a hash over all of
it; a TCP stream is numbered blocks, compared byte by byte. Both flow in both directions at once.

What the ends count is in a file in memory while they run, and exact to the packet at the end. Times are
CLOCK_MONOTONIC in nanoseconds, which all namespaces of a machine share.
"""

from __future__ import annotations

import json
import mmap
import signal
import sys
import time
from array import array
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from tests.harness import ROOT, Host, Process, WaitError, wait_until

from .live import LIVE_BYTES, Live

SETTLE_S: Final = 3.0  # how long the last packets may take once nothing new is sent


@dataclass(frozen=True)
class Direction:
    """What became of the packets of one direction."""

    name: str
    sent: int
    received: int
    duplicated: int
    corrupted: int
    reordered: int
    extent: int
    late_s: float
    sent_ns: array[int] = field(repr=False)
    arrived_ns: array[int] = field(repr=False)

    @property
    def lost(self) -> int:
        """Packets that never came."""
        return self.sent - self.received

    @property
    def faultless(self) -> bool:
        """Every packet came, once and unchanged. Their order is another matter."""
        return self.sent > 0 and (self.lost, self.duplicated, self.corrupted) == (0, 0, 0)

    def lost_between(self, start_ns: int, end_ns: int) -> int:
        """How many of those sent in that time never came."""
        first, last = (bisect_left(self.sent_ns, at) for at in (start_ns, end_ns))
        came = self.arrived_ns
        return sum(number >= len(came) or not came[number] for number in range(first, last))

    def losses(self) -> list[tuple[int, int]]:
        """Runs of lost packets: when the first of each was sent, and how many."""
        runs: list[tuple[int, int]] = []
        came, before = self.arrived_ns, -2
        for number, sent_ns in enumerate(self.sent_ns):
            if number < len(came) and came[number]:
                continue
            if number == before + 1:
                runs[-1] = runs[-1][0], runs[-1][1] + 1
            else:
                runs.append((sent_ns, 1))
            before = number
        return runs

    @property
    def worst_delay_s(self) -> float:
        """The longest that a packet was under way."""
        delays = (came - sent for sent, came in zip(self.sent_ns, self.arrived_ns, strict=False) if came)
        return max(delays, default=0) / 1e9

    def __str__(self) -> str:
        text = f"{self.name}: {self.sent} sent, {self.lost} lost, {self.duplicated} duplicated"
        text += f", {self.corrupted} corrupted, {self.reordered} reordered"
        if self.reordered:
            text += f" (by up to {self.extent} packets, {self.late_s * 1e3:.1f} ms)"
        return f"{text}, delay up to {self.worst_delay_s * 1e3:.0f} ms"


class _End:
    """One process of a pair, and what it counts."""

    def __init__(self, host: Host, name: str, arguments: list[str]) -> None:
        self.directory = host.tmp / f"{name}-{len(host.processes)}"
        self.directory.mkdir()
        live = self.directory / "live"
        live.write_bytes(bytes(LIVE_BYTES))
        with live.open("r+b") as file:
            self.live = Live(mmap.mmap(file.fileno(), LIVE_BYTES))
        argv = [sys.executable, "-m", "tests.integrity", str(self.directory), *arguments]
        self.process: Process = host.start(argv, name=name, cwd=ROOT)
        self.name = host.name

    def wait_ready(self) -> None:
        self.process.wait_for_log("^ready$")

    def numbers(self, name: str) -> array[int]:
        numbers = array("Q")
        numbers.frombytes((self.directory / name).read_bytes())
        return numbers

    def end(self) -> dict[str, int]:
        """Stop it, and return its own last account."""
        assert self.process.stop(10) == 0, self.process.tail()
        account: dict[str, int] = json.loads(self.process.log.splitlines()[-1])
        return account


class _Pair:
    """Two ends as a context manager, which stops them at its end in any case."""

    def __init__(self, a: _End, b: _End) -> None:
        self.a, self.b = a, b

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for end in (self.a, self.b):
            end.process.close()

    def _stop_sending(self) -> None:
        for end in (self.a, self.b):
            end.process.signal(signal.SIGUSR1)

    def tail(self) -> str:
        """The last words of both, for an error."""
        return f"{self.a.name}: {self.a.live}\n{self.b.name}: {self.b.live}\n{self.a.process.tail()}"


class CheckedUdp(_Pair):
    """UDP between two addresses, both ways, from the moment that it is made until `finish`.

    It survives that an end has no route or address for a while: what could not be sent is not counted as sent.
    """

    def __init__(
        self,
        a: Host,
        a_address: str,
        b: Host,
        b_address: str,
        *,
        rate: float = 1000.0,
        size: int = 1000,
        port: int = 7000,
    ) -> None:
        """`rate` is packets a second each way, `size` the bytes of UDP payload."""
        common = ["--port", str(port), "--rate", str(rate), "--size", str(size)]
        super().__init__(
            _End(a, "checked-udp", ["udp", "--peer", b_address, *common]),
            _End(b, "checked-udp", ["udp", "--peer", a_address, *common]),
        )
        for end in (self.a, self.b):
            end.wait_ready()
        for end in (self.a, self.b):
            end.process.signal(signal.SIGUSR2)

    def wait_for_flow(self, since_ns: int | None = None, timeout: float = 10.0) -> float:
        """Wait until both directions brought something that was sent after `since_ns` (default: now).

        Returns how many seconds after `since_ns` that was, in the slower direction. Raises WaitError.
        """
        since = time.monotonic_ns() if since_ns is None else since_ns
        lives = (self.a.live, self.b.live)

        def probe() -> bool:
            return all(live.newest_sent_ns > since for live in lives)

        left = timeout - (time.monotonic_ns() - since) / 1e9
        wait_until(probe, max(0.0, left), f"traffic in both directions ({timeout:g} s from the start)", self.tail)
        return max(0.0, (max(live.newest_arrived_ns for live in lives) - since) / 1e9)

    def flows(self, since_ns: int) -> tuple[bool, bool]:
        """Whether something sent after that has come: from a to b, and back."""
        return self.b.live.newest_sent_ns > since_ns, self.a.live.newest_sent_ns > since_ns

    def silent_s(self) -> float:
        """How long nothing has come, in the direction where that is longer."""
        newest_ns = min(live.newest_arrived_ns for live in (self.a.live, self.b.live))
        return max(0.0, (time.monotonic_ns() - newest_ns) / 1e9)

    def finish(self) -> tuple[Direction, Direction]:
        """Stop sending, give the last packets time to come, and return the account of a to b, and back."""
        self._stop_sending()

        def complete() -> bool:
            a, b = self.a.live, self.b.live
            # One that has not yet obeyed may send another when all that was sent so far has come.
            return a.silent and b.silent and a.received == b.sent and b.received == a.sent

        with suppress(WaitError):  # then some are lost, and the account says how many
            wait_until(complete, SETTLE_S, "the last packets")
        accounts = self.a.end(), self.b.end()
        return self._direction(self.a, self.b, accounts[1]), self._direction(self.b, self.a, accounts[0])

    @staticmethod
    def _direction(sender: _End, receiver: _End, account: dict[str, int]) -> Direction:
        sent_ns, arrived_ns = sender.numbers("sent"), receiver.numbers("arrived")
        return Direction(
            f"{sender.name} -> {receiver.name}",
            sent=len(sent_ns),
            received=account["received"],
            duplicated=account["duplicated"],
            corrupted=account["corrupted"],
            reordered=account["reordered"],
            extent=account["extent"],
            late_s=account["late_ns"] / 1e9,
            sent_ns=sent_ns,
            arrived_ns=arrived_ns,
        )


class CheckedTcp(_Pair):
    """One TCP connection, full or at a rate in each direction, every byte compared.

    A break of it, or a byte that is not what was sent, shows in `finish`; an outage does not: TCP waits.
    """

    def __init__(
        self,
        opener: Host,
        listener: Host,
        address: str,
        *,
        rate: float = 0.0,
        port: int = 7001,
        both_ways: bool = True,
    ) -> None:
        """`address` is the listener's. `rate` is bytes a second each way, 0 for as fast as it goes; without
        `both_ways` only the opener sends."""
        common = ["--address", address, "--port", str(port), "--rate", str(rate)]
        silent = [] if both_ways else ["--silent"]
        b = _End(listener, "checked-tcp", ["listen", *common, *silent])
        b.wait_ready()
        super().__init__(_End(opener, "checked-tcp", ["connect", *common]), b)

    def bytes_received(self) -> tuple[int, int]:
        """So far: at the listener, and at the opener."""
        return self.b.live.received, self.a.live.received

    def wait_for_flow(self, timeout: float = 10.0) -> None:
        """Wait until more bytes have come at the listener. Raises WaitError."""
        before = self.b.live.received
        wait_until(lambda: self.b.live.received > before, timeout, "bytes over TCP", self.tail)

    def finish(self, timeout: float = 20.0) -> tuple[int, int]:
        """End both directions. Returns the bytes that came at the listener, and at the opener.

        Raises AssertionError if a byte was wrong or missing, or the connection broke; WaitError.
        """
        self._stop_sending()
        for end in (self.a, self.b):
            assert end.process.wait(timeout) == 0, end.process.tail()
        a, b = self.a.live, self.b.live
        assert (a.sent, b.sent) == (b.received, a.received), self.tail()
        return b.received, a.received

    def throughput(self, seconds: float) -> float:
        """Gbit/s of both directions together over that time from now on."""
        before = sum(self.bytes_received())
        time.sleep(seconds)
        return (sum(self.bytes_received()) - before) * 8 / seconds / 1e9
