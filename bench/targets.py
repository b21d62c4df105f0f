"""What the program is meant to reach, as ratios within one run. Printed with a mark, never asserted. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from .plan import PLANE_OFF, TAP
from .results import Results


@dataclass(frozen=True)
class Verdict:
    """One target: what it was, what was seen (None: not measured), and which side of the bound is good.

    `plane_off` is what was seen without the native data path, `to_default` what it comes to beside a relay on the
    machine's default congestion control; None where that was not measured or makes no difference.
    """

    what: str
    seen: float | None
    bound: float
    at_least: bool
    unit: str = ""
    how: str = ""
    plane_off: float | None = None
    to_default: float | None = None

    @property
    def passed(self) -> bool | None:
        """None if it was not measured."""
        if self.seen is None:
            return None
        return self.seen >= self.bound if self.at_least else self.seen <= self.bound

    @property
    def mark(self) -> str:
        """One word."""
        return {True: "met", False: "missed", None: "-"}[self.passed]

    @property
    def target(self) -> str:
        """``>= 0.95``, with its unit."""
        return f"{'>=' if self.at_least else '<='} {self.bound:.2f}{self.unit}"

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {**asdict(self), "unit": self.unit.strip(), "passed": self.passed}

    def __str__(self) -> str:
        text = f"{self.mark:6}  {self.what:52} {number(self.seen):>7} {self.target}"
        return f"{text}  ({self.how})" if self.how else text


def number(value: float | None) -> str:
    """Two decimals, or ``-``."""
    return f"{value:.2f}" if value is not None else "-"


# What is seen of a target: by the variant over http, by the one over https, and by the relay to compare with.
_See = Callable[[Results, str, str, str], float | None]


@dataclass(frozen=True)
class _Target:
    what: str
    bound: float
    at_least: bool
    see: _See
    unit: str = ""
    of_relay: bool = False

    def verdict(self, results: Results) -> Verdict:
        off = (PLANE_OFF["http"], PLANE_OFF["https"])
        return Verdict(
            self.what,
            self.see(results, "http", "https", "relay"),
            self.bound,
            self.at_least,
            self.unit,
            plane_off=self.see(results, *off, "relay"),
            to_default=self.see(results, "http", "https", "relay-default") if self.of_relay else None,
        )


def _of_relay(what: str, metric: str, bound: float, *, at_least: bool) -> _Target:
    def see(results: Results, http: str, _https: str, relay: str) -> float | None:
        ratio = results.ratio(metric, http, relay)
        return ratio.median if ratio is not None else None

    return _Target(what, bound, at_least, see, of_relay=True)


def _added(what: str, metric: str, bound: float) -> _Target:
    """What the tunnel adds to no tunnel, of what the relay adds."""

    def see(results: Results, http: str, _https: str, relay: str) -> float | None:
        ratio = results.ratio(metric, http, relay, above="veth")
        return ratio.median if ratio is not None else None

    return _Target(what, bound, False, see, of_relay=True)


def _itself(what: str, metric: str, bound: float, *, at_least: bool, unit: str = "", tls: bool = False) -> _Target:
    """A value, not a ratio."""

    def see(results: Results, http: str, https: str, _relay: str) -> float | None:
        return results.median(metric, https if tls else http)

    return _Target(what, bound, at_least, see, unit)


def _of_own(what: str, metric: str, base: str, bound: float) -> _Target:
    """One metric over another one of the same variant and round."""

    def see(results: Results, http: str, _https: str, _relay: str) -> float | None:
        ratio = results.over(metric, http, base, http)
        return ratio.median if ratio is not None else None

    return _Target(what, bound, True, see)


def _of_tun(what: str, metric: str, bound: float) -> _Target:
    """What the tunnel carries as Ethernet frames, of what it carries as IP packets. It is not measured without the
    plane."""

    def see(results: Results, http: str, _https: str, _relay: str) -> float | None:
        ratio = results.ratio(metric, TAP, http) if http not in PLANE_OFF.values() else None
        return ratio.median if ratio is not None else None

    return _Target(what, bound, True, see)


def _of_curl(results: Results, _http: str, https: str, _relay: str) -> float | None:
    ratio = results.over("tcp_down", https, "curl", "https")
    return ratio.median if ratio is not None else None


def _tls_cpu(results: Results, http: str, https: str, _relay: str) -> float | None:
    """The client's CPU for a byte over https, of what openssl says that its decryption costs and http's cost."""
    ratios = [
        cost / (openssl + plain)
        for cost, openssl, plain in zip(
            results.by_round("cpu_down_client", https),
            results.by_round("openssl", "https"),
            results.by_round("cpu_down_client", http),
            strict=True,
        )
        if cost is not None and openssl is not None and plain is not None
    ]
    return statistics.median(ratios) if ratios else None


# All that were set for the program, in this order.
_TARGETS: Final = (
    _of_relay("TCP, one stream up, of the C relay", "tcp_up", 0.95, at_least=True),
    _of_relay("TCP, one stream down, of the C relay", "tcp_down", 0.95, at_least=True),
    _of_relay("TCP, 8 streams, of the C relay", "tcp_8", 0.95, at_least=True),
    _of_relay("CPU s/GB up, both ends, of the C relay", "cpu_up", 1.15, at_least=False),
    _of_relay("CPU s/GB down, both ends, of the C relay", "cpu_down", 1.15, at_least=False),
    _added("idle ping, added, of what the C relay adds", "ping_idle", 1.2),
    _added("ping beside an upload, added, likewise", "ping_up", 1.5),
    _of_relay("UDP 64 B, one flow, < 1 % loss, of the C relay", "udp64", 1.2, at_least=True),
    _of_relay("UDP 64 B, one flow, blast, of the C relay", "udp64_blast", 1.5, at_least=True),
    _of_own("TCP over IPv6, one stream up, of IPv4", "tcp_up_6", "tcp_up", 0.95),
    _of_own("TCP over IPv6, one stream down, of IPv4", "tcp_down_6", "tcp_down", 0.95),
    _of_own("TCP over IPv6, 8 streams, of IPv4", "tcp_8_6", "tcp_8", 0.95),
    _of_own("UDP 64 B over IPv6, blast, of IPv4", "udp64_blast_6", "udp64_blast", 0.95),
    _of_tun("TCP over TAP, one stream up, of TUN", "tcp_up", 0.9),
    _of_tun("TCP over TAP, one stream down, of TUN", "tcp_down", 0.9),
    _itself("eight clients up, Jain's index", "jain_up", 0.97, at_least=True),
    _itself("eight clients down, Jain's index", "jain_down", 0.97, at_least=True),
    _of_own("the eight beside a ninth, of without it", "eight_fast", "eight_alone", 0.95),
    _of_own("the eight beside a slow ninth, of without it", "eight_slow", "eight_alone", 0.95),
    _Target("https down, of curl through the same nginx", 0.9, True, _of_curl),
    _Target("client's CPU s/GB down, https of openssl + http", 1.3, False, _tls_cpu),
    _itself("peak RSS of a client, http", "rss_client", 36, at_least=False, unit=" MB"),
    _itself("peak RSS of a client, https", "rss_client", 36, at_least=False, unit=" MB", tls=True),
    _itself("peak RSS of a server, one client", "rss_server", 36, at_least=False, unit=" MB"),
)
# These cannot be measured here, and are printed so that nobody looks for them in vain.
_NOT_TO_BE_HAD: Final = (
    ("TCP, of the deployed D program", 1.8, True),
    ("CPU, of the deployed D program", 0.5, False),
    ("idle ping, of the deployed D program", 1.0, False),
)
_WHY_NOT: Final = "not to be had: docs/performance-notes.md, The bench"
_FURTHER: Final = (
    _added("ping beside a download, added, of the C relay's", "ping_down", 1.2),
    _of_relay("UDP 64 B, 8 flows, < 1 % loss, of the C relay", "udp64_8", 1.0, at_least=True),
    _of_own("UDP 64 B, blast, of its rate at < 1 % loss", "udp64_blast", "udp64", 1.0),
    _of_own("UDP 1400 B, blast, of its rate at < 1 % loss", "udp1400_blast", "udp1400", 1.0),
    _itself("start to first ping, http", "start", 0.8, at_least=False, unit=" s"),
    _itself("start to first ping, https", "start", 0.8, at_least=False, unit=" s", tls=True),
)


def verdicts(results: Results) -> list[Verdict]:
    """Every target, in the order in which they are printed."""
    found = [target.verdict(results) for target in _TARGETS]
    found += [Verdict(what, None, bound, at_least, how=_WHY_NOT) for what, bound, at_least in _NOT_TO_BE_HAD]
    return found


def further(results: Results) -> list[Verdict]:
    """What else the program keeps to."""
    return [target.verdict(results) for target in _FURTHER]
