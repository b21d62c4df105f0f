"""What is reported: names, units, and which variant is better. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Metric:
    """One row of the table. `decimals` is for its values; ratios always have two.

    `step` is the step of a round that measures it, if that has another name. `of_a_process`: it can only be had where
    there is a process that tunnels.
    """

    key: str
    label: str
    unit: str
    higher_is_better: bool
    decimals: int = 2
    step: str = ""
    of_a_process: bool = False

    @property
    def measured_in(self) -> str:
        """The name of its step."""
        return self.step or self.key


def _rate(key: str, label: str, step: str = "") -> Metric:
    return Metric(key, label, "Gbit/s", True, step=step)


def _packets(key: str, label: str) -> Metric:
    return Metric(key, label, "kpps", True, 1)


def _trip(key: str, label: str) -> Metric:
    return Metric(key, label, "us", False, 0, step=key.removesuffix("_p99"))


def _cost(key: str, label: str, step: str, *, of_a_process: bool = True) -> Metric:
    return Metric(key, label, "s/GB", False, 3, step=step, of_a_process=of_a_process)


METRICS: Final = (
    _rate("tcp_up", "TCP, one stream, up"),
    _rate("tcp_down", "TCP, one stream, down"),
    _rate("tcp_8", "TCP, 8 streams, up"),
    _rate("tcp_up_6", "TCP over IPv6, one stream, up"),
    _rate("tcp_down_6", "TCP over IPv6, one stream, down"),
    _rate("tcp_8_6", "TCP over IPv6, 8 streams, up"),
    _packets("udp64", "UDP 64 B, loss < 1 %"),
    _packets("udp64_blast", "UDP 64 B, blast, delivered"),
    _packets("udp64_blast_6", "UDP 64 B over IPv6, blast, delivered"),
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
    _cost("cpu_up", "CPU, up, both ends", "tcp_up"),
    _cost("cpu_up_client", "CPU, up, client's end", "tcp_up"),
    _cost("cpu_up_machine", "CPU, up, whole machine", "tcp_up", of_a_process=False),
    _cost("cpu_down", "CPU, down, both ends", "tcp_down"),
    _cost("cpu_down_client", "CPU, down, client's end", "tcp_down"),
    _cost("cpu_down_machine", "CPU, down, whole machine", "tcp_down", of_a_process=False),
    Metric("jain_up", "eight clients up, Jain's index", "", True, 3, step="fair"),
    Metric("jain_down", "eight clients down, Jain's index", "", True, 3, step="fair"),
    _rate("eight_alone", "eight clients down, together", step="fair"),
    _rate("eight_fast", "the same beside a ninth", step="fair"),
    _rate("eight_slow", "the same beside a slow ninth", step="fair"),
    Metric("rss_client", "peak RSS, client's end", "MB", False, 1, step="start"),
    Metric("rss_server", "peak RSS, server's end", "MB", False, 1, step="start"),
    Metric("start", "start to first ping", "s", False, 3),
    _rate("curl", "curl, static file over TLS"),
    Metric("openssl", "openssl speed, decryption", "s/GB", False, 3),
)
BY_KEY: Final = {metric.key: metric for metric in METRICS}
