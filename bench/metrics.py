"""What is reported: names, units, and which variant is better. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Metric:
    """One row of the table. `decimals` is for its values; ratios always have two."""

    key: str
    label: str
    unit: str
    higher_is_better: bool
    decimals: int = 2


def _rate(key: str, label: str) -> Metric:
    return Metric(key, label, "Gbit/s", True)


def _packets(key: str, label: str) -> Metric:
    return Metric(key, label, "kpps", True, 1)


def _trip(key: str, label: str) -> Metric:
    return Metric(key, label, "us", False, 0)


def _cost(key: str, label: str) -> Metric:
    return Metric(key, label, "s/GB", False, 3)


METRICS: Final = (
    _rate("tcp_up", "TCP, one stream, up"),
    _rate("tcp_down", "TCP, one stream, down"),
    _rate("tcp_8", "TCP, 8 streams, up"),
    _packets("udp64", "UDP 64 B, loss < 1 %"),
    _packets("udp64_blast", "UDP 64 B, blast, delivered"),
    _packets("udp64_8", "UDP 64 B, 8 flows, loss < 1 %"),
    _packets("udp64_8_blast", "UDP 64 B, 8 flows, blast, delivered"),
    _packets("udp1400", "UDP 1400 B, loss < 1 %"),
    _packets("udp1400_blast", "UDP 1400 B, blast, delivered"),
    _rate("forward_gro", "forwarded TCP, GRO on"),
    _rate("forward_plain", "forwarded TCP, 1500-byte frames"),
    _trip("ping_idle", "ping, idle, mean"),
    _trip("ping_idle_p99", "ping, idle, 99 %"),
    _trip("ping_up", "ping, upload beside, mean"),
    _trip("ping_up_p99", "ping, upload beside, 99 %"),
    _trip("ping_down", "ping, download beside, mean"),
    _trip("ping_down_p99", "ping, download beside, 99 %"),
    _cost("cpu_up", "CPU, up, both ends"),
    _cost("cpu_up_client", "CPU, up, client's end"),
    _cost("cpu_up_machine", "CPU, up, whole machine"),
    _cost("cpu_down", "CPU, down, both ends"),
    _cost("cpu_down_client", "CPU, down, client's end"),
    _cost("cpu_down_machine", "CPU, down, whole machine"),
    Metric("rss_client", "peak RSS, client's end", "MB", False, 1),
    Metric("rss_server", "peak RSS, server's end", "MB", False, 1),
    Metric("start", "start to first ping", "s", False, 3),
    _rate("curl", "curl, static file over TLS"),
)
BY_KEY: Final = {metric.key: metric for metric in METRICS}
