"""What the program is meant to reach, as ratios within one run. Printed with a mark, never asserted. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from .results import Results

# Of what openssl says decryption costs, with what the same bytes cost over http.
TLS_FACTOR: Final = 1.25


@dataclass(frozen=True)
class Verdict:
    """One target: what it was, what was seen (None: not measured), and which side of the bound is good."""

    what: str
    seen: float | None
    bound: float
    at_least: bool
    unit: str = ""
    how: str = ""

    @property
    def passed(self) -> bool | None:
        """None if it was not measured."""
        if self.seen is None:
            return None
        return self.seen >= self.bound if self.at_least else self.seen <= self.bound

    @property
    def mark(self) -> str:
        """One word."""
        return {True: "pass", False: "MISS", None: "-"}[self.passed]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {**asdict(self), "unit": self.unit.strip(), "passed": self.passed}

    def __str__(self) -> str:
        seen = f"{self.seen:.2f}" if self.seen is not None else "-"
        sign = ">=" if self.at_least else "<="
        text = f"{self.mark:4}  {self.what:52} {seen:>7} {sign} {self.bound:.2f}{self.unit}"
        return f"{text}  ({self.how})" if self.how else text


# What, metric, the bound to the C relay, and whether more is better.
_TO_RELAY: Final = (
    ("TCP one stream up, of the C relay", "tcp_up", 0.95, True),
    ("TCP one stream down, of the C relay", "tcp_down", 0.95, True),
    ("TCP 8 streams, of the C relay", "tcp_8", 0.95, True),
    ("CPU per GB up, both ends, of the C relay", "cpu_up", 1.2, False),
    ("CPU per GB down, both ends, of the C relay", "cpu_down", 1.2, False),
    ("64 B UDP at < 1 % loss, of the C relay", "udp64", 1.2, True),
    ("64 B UDP under blast, of the C relay", "udp64_blast", 1.5, True),
    ("64 B UDP, 8 flows at < 1 % loss, of the C relay", "udp64_8", 1.0, True),
)
_ADDED: Final = (
    ("idle ping, added, of what the C relay adds", "ping_idle", 1.6),
    ("ping beside an upload, added, likewise", "ping_up", 1.2),
    ("ping beside a download, added, likewise", "ping_down", 1.2),
)


def verdicts(results: Results) -> list[Verdict]:
    """All of them, in the order in which they are printed."""
    return [*_to_relay(results), *_tls(results), *_own(results)]


def _to_relay(results: Results) -> Iterator[Verdict]:
    for what, metric, bound, at_least in _TO_RELAY:
        yield Verdict(what, _median_ratio(results, metric, "http", "relay"), bound, at_least)
    for what, metric, bound in _ADDED:
        yield Verdict(what, _median_ratio(results, metric, "http", "relay", above="veth"), bound, at_least=False)
    for label, metric in (("64 B UDP", "udp64"), ("1400 B UDP", "udp1400")):
        blast = _over(results.median(f"{metric}_blast", "http"), results.median(metric, "http"))
        yield Verdict(f"{label} under blast, of its rate at < 1 % loss", blast, 1.0, at_least=True)


def _tls(results: Results) -> Iterator[Verdict]:
    yield Verdict(
        "https down, of curl through the same nginx",
        _over(results.median("tcp_down", "https"), results.median("curl", "https")),
        0.9,
        at_least=True,
    )
    http, https = (results.median("cpu_down_client", variant) for variant in ("http", "https"))
    decrypt = results.openssl_s_per_gb
    if http is None or https is None or decrypt is None:
        yield Verdict("client's CPU per GB down over https", None, TLS_FACTOR, at_least=False)
        return
    floor = decrypt + http
    how = f"{https:.3f} s/GB, of {results.cipher} {decrypt:.3f} + http {http:.3f} = {floor:.3f} s/GB"
    yield Verdict("client's CPU per GB down, https of (openssl + http)", https / floor, TLS_FACTOR, False, how=how)


def _own(results: Results) -> Iterator[Verdict]:
    for variant in ("http", "https"):
        yield Verdict(f"peak RSS of the client, {variant}", results.median("rss_client", variant), 36, False, " MB")
    # 0.3 MB for its one client.
    yield Verdict("peak RSS of the server, one client", results.median("rss_server", "http"), 36.3, False, " MB")
    for variant in ("http", "https"):
        yield Verdict(f"start to first ping, {variant}", results.median("start", variant), 0.8, False, " s")


def _median_ratio(results: Results, metric: str, variant: str, base: str, above: str | None = None) -> float | None:
    ratio = results.ratio(metric, variant, base, above=above)
    return ratio.median if ratio is not None else None


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
