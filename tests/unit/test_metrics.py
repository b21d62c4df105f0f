"""What Prometheus gets: every number of the status under its name, whatever names an operator or a peer thought of."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from tapotun_trio.admin.metrics import render, render_in_parts
from tapotun_trio.datapath.counters import DropReason
from tapotun_trio.status import model
from tapotun_trio.status.model import (
    InterfaceStatus,
    LeftOutStatus,
    ListenerStatus,
    OutboxStatus,
    PeerStatus,
    PlaneStatus,
    ProcessStatus,
    RateStatus,
    ReloadStatus,
    RoundTripStatus,
    TransportConflictStatus,
    UpdateStatus,
)
from tapotun_trio.text import one_line

from ..tables import table
from .test_render import HUB

ROOT: Final = Path(__file__).parents[2]
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CLASSIC: Final = "text/plain; version=0.0.4; charset=utf-8"

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


def families(page: bytes) -> list[Metric]:
    return list(parse_openmetrics(page.decode()))  # type: ignore[no-untyped-call]


def numbers(found: list[Metric]) -> dict[Series, float]:
    """Every sample, without what the kernel tells of this process, which is never the same twice."""
    samples = [sample for family in found for sample in family.samples if not sample.name.startswith("process_")]
    series = [(it.name, frozenset((k, v) for k, v in it.labels.items() if v)) for it in samples]
    assert [it for it, times in Counter(series).items() if times > 1] == []
    return dict(zip(series, [it.value for it in samples], strict=True))


def page_of(status: ProcessStatus) -> dict[Series, float]:
    return numbers(families(render(status)[0]))


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


# ------------------------------------------------------------------ a hub and a client, number by number

PEER: Final = PeerStatus(name="a", state="offline")
A: Final = {"interface": "corp0", "client": "branch-a"}
B: Final = {"interface": "corp0", "client": "branch-b"}
C: Final = {"interface": "tun0", "server": "hub.example:443"}
CORP: Final = {"interface": "corp0", "kind": "server"}
TUN: Final = {"interface": "tun0", "kind": "client"}
T0: Final = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC).timestamp()  # test_render's NOW


def hub() -> ProcessStatus:
    """test_render's, with a client that was replaced, and a reload that went wrong."""
    corp, tun = HUB.interfaces
    tun = msgspec.structs.replace(tun, peers=[PeerStatus(name="hub.example:443", state="replaced", tx_packets=7)])
    reload = ReloadStatus(at=datetime.fromtimestamp(T0, UTC), error="/etc/tapotun/hub.json: line 3")
    update = UpdateStatus(
        mode="apply",
        channel="stable",
        installation="pyz",
        checked_at=datetime.fromtimestamp(T0 - 60, UTC),
        available="0.2.0",
        error="no answer",
        refused=["0.1.5"],
    )
    return msgspec.structs.replace(
        HUB, interfaces=[corp, tun], last_reload=reload, plane=PlaneStatus(kind="native"), update=update
    )


def of(name: str, **values: float) -> dict[Series, float]:
    """A metric of the peers, which are called by one letter here."""
    return {series(f"tapotun_client_{name}", **{"a": A, "b": B, "c": C}[peer]): it for peer, it in values.items()}


def none_of(name: str, reasons: Iterable[str], **labels: str) -> dict[Series, float]:
    """Zeros, for what has not happened yet."""
    return {series(name, reason=it, **labels): 0 for it in reasons}


DROPS: Final = {
    "queue-age",
    "queue-full",
    "codel",
    "bad-source",
    "jumbogram",
    "link-local",
    "not-ipv4",
    "device-full",
    "device-refused",
    "no-memory",
}
TAP_DROPS: Final = {"arp-guard", "bad-mac", "isolated", "reserved-mac", "same-side", "storm"}


def test_every_number() -> None:
    states = ("starting", "connecting", "up", "degraded", "failed")
    assert page_of(hub()) == {
        series("tapotun_build_info", version="0.1.0", python=sys.version.split()[0]): 1,
        series("tapotun_plane_running", kind="native"): 1,
        series("tapotun_config_last_reload_successful"): 0,
        series("tapotun_config_last_reload_timestamp_seconds"): T0,
        series("tapotun_update_available"): 1,
        series("tapotun_update_last_check_successful"): 0,
        series("tapotun_update_last_check_timestamp_seconds"): T0 - 60,
        series("tapotun_update_refused"): 1,
        **{series("tapotun_interface_state", tapotun_interface_state=it, **CORP): it == "up" for it in states},
        **{series("tapotun_interface_state", tapotun_interface_state=it, **TUN): it == "failed" for it in states},
        series("tapotun_interface_up", **CORP): 1,
        series("tapotun_interface_up", **TUN): 0,
        series("tapotun_interface_state_since_timestamp_seconds", **CORP): T0 - 76 * 3600,
        series("tapotun_interface_state_since_timestamp_seconds", **TUN): T0 - 9,
        series("tapotun_interface_mtu_bytes", **CORP): 1400,
        series("tapotun_interface_restarts_total", **CORP): 1,
        series("tapotun_interface_restarts_total", **TUN): 2,
        series("tapotun_interface_degraded", **CORP): 0,
        series("tapotun_interface_degraded", **TUN): 0,
        series("tapotun_interface_repairs_total", **CORP): 0,
        series("tapotun_interface_repairs_total", **TUN): 0,
        series("tapotun_interface_dropped_packets_total", reason="no-route", **CORP): 12,
        series("tapotun_interface_dropped_packets_total", reason="loop", **CORP): 0,
        series("tapotun_interface_dropped_packets_total", reason="not-ipv4", **CORP): 3,
        series("tapotun_interface_refused_requests_total", reason="bad-token", **CORP): 17,
        **none_of("tapotun_interface_dropped_packets_total", ("internal-error", "jumbogram", "link-local"), **CORP),
        **none_of(
            "tapotun_interface_refused_requests_total",
            ("bad-method", "internal-error", "no-address", "other-session"),
            **CORP,
        ),
        series("tapotun_listener_refused_connections_total", reason="unknown-path", address="127.0.0.1:8080"): 3,
        series("tapotun_listener_refused_connections_total", reason="unknown-path", address="[::1]:8080"): 1,
        series("tapotun_client_info", transport="http", protocol="extended", **A): 1,
        **of("connected", a=1, b=0, c=0),
        **of("replaced", a=0, b=0, c=1),
        **of("connected_since_timestamp_seconds", a=T0 - 125 * 60),
        **of("last_frame_timestamp_seconds", a=T0 - 1),
        **of("receive_bytes_total", a=1_299_000_000, b=0, c=0),
        **of("transmit_bytes_total", a=3_565_158, b=0, c=0),
        **of("receive_packets_total", a=1_234_567, b=0, c=0),
        **of("transmit_packets_total", a=1, b=0, c=7),
        **of("rtt_last_seconds", a=0.01234),
        **of("rtt_smoothed_seconds", a=1.3005),
        **of("rtt_min_seconds", a=0.0119),
        **of("outbox_bytes", a=65_550, b=0, c=0),
        **of("outbox_packets", a=45, b=0, c=0),
        **of("reconnects_total", a=4, b=0, c=0),
        **of("plane_packets_total", a=0, b=0, c=0),
        series("tapotun_client_dropped_packets_total", reason="queue-age", **A): 2,
        series("tapotun_client_dropped_packets_total", reason="codel", **A): 40,
        **none_of("tapotun_client_dropped_packets_total", DROPS - {"queue-age", "codel"}, **A),
        **none_of("tapotun_client_dropped_packets_total", DROPS, **B),
        **none_of("tapotun_client_dropped_packets_total", DROPS, **C),
        series("tapotun_client_stream_ends_total", reason="broken", **A): 3,
        series("tapotun_client_stream_ends_total", reason="silent", **A): 1,
    }


def test_what_can_happen_has_a_zero_before_it_does() -> None:
    """Else rate() would not see the first time. Whoever adds a reason comes by here."""
    server = InterfaceStatus(name="tun0", kind="server", state="up", since=HUB.started_at, peers=[PEER])
    found = page_of(msgspec.structs.replace(HUB, interfaces=[server]))
    reasons: dict[str, set[str]] = {}
    for name, labels in found:
        if "reason" in dict(labels):
            reasons.setdefault(name, set()).add(dict(labels)["reason"])
    assert reasons == {
        "tapotun_client_dropped_packets_total": DROPS,
        "tapotun_interface_dropped_packets_total": {
            "internal-error",
            "jumbogram",
            "link-local",
            "loop",
            "no-route",
            "not-ipv4",
        },
        "tapotun_interface_refused_requests_total": {
            "bad-method",
            "bad-token",
            "internal-error",
            "no-address",
            "other-session",
        },
    }
    assert DROPS | TAP_DROPS | {"internal-error", "loop", "no-route"} == set(DropReason)


def test_what_can_happen_on_a_tap_interface_has_a_zero_too() -> None:
    zeros: dict[str, Any] = dict.fromkeys(("macs_learned", "macs_moved", "macs_evicted", "flooded_packets"), 0)
    peer = msgspec.structs.replace(PEER, macs=0, **zeros)
    server = InterfaceStatus(
        name="tun0", kind="server", state="up", since=HUB.started_at, peers=[peer], macs=1, **zeros
    )
    found = page_of(msgspec.structs.replace(HUB, interfaces=[server]))
    reasons: dict[str, set[str]] = {}
    for name, labels in found:
        if "reason" in dict(labels):
            reasons.setdefault(name, set()).add(dict(labels)["reason"])
    assert reasons == {
        "tapotun_client_dropped_packets_total": (DROPS | TAP_DROPS)
        - {"bad-source", "jumbogram", "link-local", "not-ipv4"},
        "tapotun_interface_dropped_packets_total": {"bad-mac", "internal-error", "reserved-mac", "same-side"},
        "tapotun_interface_refused_requests_total": {
            "bad-method",
            "bad-token",
            "internal-error",
            "no-tap",
            "other-session",
        },
    }
    one = {"interface": "tun0", "kind": "server"}
    assert found[series("tapotun_interface_macs", **one)] == 1
    assert found[series("tapotun_client_macs", interface="tun0", client="a")] == 0
    for name in zeros:
        assert found[series(f"tapotun_interface_{name}_total", **one)] == 0
        assert found[series(f"tapotun_client_{name}_total", interface="tun0", client="a")] == 0


def test_the_kernel_tells_of_this_process() -> None:
    found = {it.name: it.value for family in families(render(HUB)[0]) for it in family.samples}
    assert 1 <= found["process_open_fds"] <= found["process_max_fds"]
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_start_time_seconds"] > 1e9


def test_interfaces_that_share_a_listener() -> None:
    """Both tell of it; Prometheus would not take it twice."""
    listener = ListenerStatus(address="127.0.0.1:8080", refusals={"evicted": 2})
    both = [InterfaceStatus(name=it, kind="server", state="up", since=HUB.started_at, listen=[listener]) for it in "ab"]
    page = page_of(msgspec.structs.replace(HUB, interfaces=both))
    assert page[series("tapotun_listener_refused_connections_total", reason="evicted", address="127.0.0.1:8080")] == 2


# ------------------------------------------------------------------ the two formats


@table(
    "accept expected",
    ("none", None, OPENMETRICS),
    ("empty", "", OPENMETRICS),
    ("curl", "*/*", OPENMETRICS),
    ("a browser", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", OPENMETRICS),
    (
        "Prometheus 2.42",
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        OPENMETRICS,
    ),
    ("VictoriaMetrics", "text/plain;version=0.0.4;q=1,*/*;q=0.1", CLASSIC),
    ("text", "text/plain", CLASSIC),
    ("capitals", "Text/Plain; Version=0.0.4", CLASSIC),
    ("not a number", "application/openmetrics-text;version=x.y", OPENMETRICS),
    ("a version to come", 'application/openmetrics-text;version="2.0.0";escaping=allow-utf-8', OPENMETRICS),
    ("hostile", "text/plain;version=1.0.0\x85x: y,;;=,\xff", CLASSIC),
)
def test_the_format_that_is_asked_for(accept: str | None, expected: str) -> None:
    page, content_type = render(HUB, accept)
    assert content_type == expected
    assert page.endswith(b"# EOF\n") is (expected == OPENMETRICS)


@given(st.text())
def test_any_accept_header_has_an_answer(accept: str) -> None:
    assert render(HUB, accept)[1] in (OPENMETRICS, CLASSIC)


@pytest.mark.parametrize("accept", [None, "text/plain"])
def test_in_parts_none_of_which_is_long(accept: str | None) -> None:
    server = msgspec.structs.replace(
        HUB.interfaces[0], peers=[PeerStatus(name=f"client-{number}", state="connected") for number in range(500)]
    )
    status = msgspec.structs.replace(HUB, interfaces=[server])
    found, content_type = render_in_parts(status, accept)
    parts = list(found)
    assert max(part.count(b"\n") for part in parts) == 25
    page, same = render(status, accept)
    assert content_type == same
    # But for what the kernel told, which comes last and may have changed.
    assert b"".join(parts).partition(b"# HELP process")[0] == page.partition(b"# HELP process")[0]
    if accept is None:
        assert len(numbers(families(page))) > 500 * 15
        assert page.endswith(b"# EOF\n")
    lines = [line for line in page.splitlines() if line.startswith(b"# ")]
    assert len(set(lines)) == len(lines)


def test_what_is_done_for_one_part_does_not_grow_with_the_peers() -> None:
    """Not only what is written is bounded, but what is looked at before: packets wait for either."""
    looks = 0

    class Drops(dict[str, int]):
        def items(self) -> Any:
            nonlocal looks
            looks += 1
            return super().items()

    peers = [PeerStatus(name=f"client-{number}", state="connected", drops=Drops(codel=1)) for number in range(500)]
    server = msgspec.structs.replace(HUB.interfaces[0], peers=peers)
    parts, _ = render_in_parts(msgspec.structs.replace(HUB, interfaces=[server]))
    assert looks == 0
    most = before = 0
    for _ in parts:
        most, before = max(most, looks - before), looks
    assert looks == 500
    assert most == 25


# ------------------------------------------------------------------ whatever the status says

hostile = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=("Cs", "Cc", "Zl", "Zp", "Cf")), max_size=6),  # surrogates, controls, separators
    st.sampled_from(['a"} 1\n# EOF\n', "\\", '\\"', "\\n", "\r\n", "\x00", "{le=", "tun0", "a", " ", "é", "\u2028"]),
)
counts = st.integers(0, 2**63)
moments = st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1), timezones=st.just(UTC))
by_reason = st.dictionaries(hostile, counts, max_size=3)
milliseconds = st.none() | st.floats(0, 1e9)

peers = st.builds(
    PeerStatus,
    name=hostile,
    state=st.sampled_from(["connected", "connecting", "replaced", "offline"]),
    endpoint=st.none() | hostile,
    transport=st.sampled_from([None, "http", "websocket"]),
    extended=st.none() | st.booleans(),
    agent=st.none() | hostile,
    connected_since=st.none() | moments,
    last_frame_at=st.none() | moments,
    rx_packets=counts,
    rx_bytes=counts,
    tx_packets=counts,
    tx_bytes=counts,
    rtt=st.builds(RoundTripStatus, last_ms=milliseconds, smoothed_ms=milliseconds, min_ms=milliseconds),
    outbox=st.builds(OutboxStatus, bytes=counts, packets=counts),
    drops=by_reason,
    stream_ends=by_reason,
    reconnects=counts,
)
interfaces = st.builds(
    InterfaceStatus,
    name=hostile,
    kind=st.sampled_from(["server", "client"]),
    state=st.sampled_from(["starting", "connecting", "up", "failed"]),
    since=moments,
    mtu_bytes=st.none() | st.integers(0, 65535),
    listen=st.lists(st.builds(ListenerStatus, address=hostile, refusals=by_reason), max_size=2),
    path=st.none() | hostile,
    device_drops=by_reason,
    refusals=by_reason,
    restarts=counts,
    last_error=st.none() | hostile,
    peers=st.lists(peers, max_size=3),
)
processes = st.builds(
    ProcessStatus,
    version=hostile,
    pid=counts,
    name=hostile,
    config_file=hostile,
    started_at=moments,
    last_reload=st.none() | st.builds(ReloadStatus, at=moments, error=st.none() | hostile),
    interfaces=st.lists(interfaces, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # this machine may be busy
@given(processes)
def test_any_status_is_a_page_that_can_be_read(status: ProcessStatus) -> None:
    openmetrics, classic = (render(status, accept)[0] for accept in (None, "text/plain"))
    found = families(openmetrics)
    values = numbers(found)
    assert values == numbers(list(parse_classic(classic.decode())))
    assert all(math.isfinite(value) and value >= 0 for value in values.values())
    assert len({family.name for family in found}) == len(found)
    for family in found:
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter")
            assert all(value == one_line(value) for value in sample.labels.values())
    names = {dict(labels).get("interface", "") for name, labels in values if name == "tapotun_interface_up"}
    assert names == {one_line(it.name) for it in status.interfaces}
    clients = {dict(labels).get("client", "") for name, labels in values if name == "tapotun_client_connected"}
    expected = {one_line(peer.name) for it in status.interfaces if it.kind == "server" for peer in it.peers}
    assert expected <= clients <= expected | {""}


# ------------------------------------------------------------------ nothing is forgotten

WHOLE: Final = ProcessStatus(
    version="1.0",
    pid=1,
    name="hub",
    config_file="/etc/tapotun/hub.json",
    started_at=HUB.started_at,
    last_reload=ReloadStatus(at=HUB.started_at),
    plane=PlaneStatus(kind="native"),
    update=UpdateStatus(mode="check", channel="stable", installation="pyz", checked_at=HUB.started_at),
    interfaces=[
        InterfaceStatus(
            name="tun0",
            kind="server",
            state="up",
            since=HUB.started_at,
            mtu_bytes=1400,
            listen=[ListenerStatus(address="127.0.0.1:8080", refusals={"x": 1})],
            device_drops={"x": 1},
            refusals={"x": 1},
            macs=2,
            macs_learned=5,
            macs_moved=6,
            macs_evicted=7,
            flooded_packets=3,
            transport_conflicts=[
                TransportConflictStatus(route="203.0.113.0/24", address="203.0.113.10", action="excepted")
            ],
            left_out=[LeftOutStatus(route="10.60.0.0/24", reason="attached", network="10.60.0.0/16", device="eth0")],
            peers=[
                PeerStatus(
                    name="a",
                    state="connected",
                    transport="http",
                    macs=1,
                    macs_learned=8,
                    macs_moved=9,
                    macs_evicted=10,
                    flooded_packets=4,
                    extended=True,
                    connected_since=HUB.started_at,
                    last_frame_at=HUB.started_at,
                    rtt=RoundTripStatus(last_ms=1.0, smoothed_ms=1.0, min_ms=1.0),
                    drops={"x": 1},
                    stream_ends={"x": 1},
                )
            ],
        )
    ],
)

LABEL: Final = {"a label of many"}
# Where a field of the status is found, by struct and field.
EXPORTED: Final[dict[str, set[str]]] = {
    "ProcessStatus.version": {"tapotun_build_info"},
    "PlaneStatus.kind": {"tapotun_plane_running"},
    "ReloadStatus.at": {"tapotun_config_last_reload_timestamp_seconds"},
    "ReloadStatus.error": {"tapotun_config_last_reload_successful"},
    "UpdateStatus.checked_at": {"tapotun_update_last_check_timestamp_seconds"},
    "UpdateStatus.available": {"tapotun_update_available"},
    "UpdateStatus.error": {"tapotun_update_last_check_successful"},
    "UpdateStatus.refused": {"tapotun_update_refused"},
    "InterfaceStatus.name": LABEL,
    "InterfaceStatus.kind": LABEL,
    "InterfaceStatus.state": {"tapotun_interface_up", "tapotun_interface_state"},
    "InterfaceStatus.since": {"tapotun_interface_state_since_timestamp_seconds"},
    "InterfaceStatus.mtu_bytes": {"tapotun_interface_mtu_bytes"},
    "InterfaceStatus.device_drops": {"tapotun_interface_dropped_packets_total"},
    "InterfaceStatus.refusals": {"tapotun_interface_refused_requests_total"},
    "InterfaceStatus.restarts": {"tapotun_interface_restarts_total"},
    "InterfaceStatus.degraded": {"tapotun_interface_degraded"},
    "InterfaceStatus.repairs": {"tapotun_interface_repairs_total"},
    "ListenerStatus.address": {"tapotun_listener_refused_connections_total"},
    "ListenerStatus.refusals": {"tapotun_listener_refused_connections_total"},
    "PeerStatus.name": LABEL,
    "PeerStatus.state": {"tapotun_client_connected", "tapotun_client_replaced"},
    "PeerStatus.transport": {"tapotun_client_info"},
    "PeerStatus.extended": {"tapotun_client_info"},
    "PeerStatus.connected_since": {"tapotun_client_connected_since_timestamp_seconds"},
    "PeerStatus.last_frame_at": {"tapotun_client_last_frame_timestamp_seconds"},
    "PeerStatus.rx_packets": {"tapotun_client_receive_packets_total"},
    "PeerStatus.rx_bytes": {"tapotun_client_receive_bytes_total"},
    "PeerStatus.tx_packets": {"tapotun_client_transmit_packets_total"},
    "PeerStatus.tx_bytes": {"tapotun_client_transmit_bytes_total"},
    "RoundTripStatus.last_ms": {"tapotun_client_rtt_last_seconds"},
    "RoundTripStatus.smoothed_ms": {"tapotun_client_rtt_smoothed_seconds"},
    "RoundTripStatus.min_ms": {"tapotun_client_rtt_min_seconds"},
    "OutboxStatus.bytes": {"tapotun_client_outbox_bytes"},
    "OutboxStatus.packets": {"tapotun_client_outbox_packets"},
    "PeerStatus.drops": {"tapotun_client_dropped_packets_total"},
    "PeerStatus.stream_ends": {"tapotun_client_stream_ends_total"},
    "PeerStatus.reconnects": {"tapotun_client_reconnects_total"},
    "PeerStatus.plane_packets": {"tapotun_client_plane_packets_total"},
    "PeerStatus.macs": {"tapotun_client_macs"},
    "PeerStatus.macs_learned": {"tapotun_client_macs_learned_total"},
    "PeerStatus.macs_moved": {"tapotun_client_macs_moved_total"},
    "PeerStatus.macs_evicted": {"tapotun_client_macs_evicted_total"},
    "PeerStatus.flooded_packets": {"tapotun_client_flooded_packets_total"},
    "InterfaceStatus.macs": {"tapotun_interface_macs"},
    "InterfaceStatus.macs_learned": {"tapotun_interface_macs_learned_total"},
    "InterfaceStatus.macs_moved": {"tapotun_interface_macs_moved_total"},
    "InterfaceStatus.macs_evicted": {"tapotun_interface_macs_evicted_total"},
    "InterfaceStatus.flooded_packets": {"tapotun_interface_flooded_packets_total"},
}
NOT_EXPORTED: Final = {
    "ProcessStatus.schema": "it is the JSON document's",
    "ProcessStatus.pid": "Prometheus has a process's start time, which is enough to see a restart",
    "ProcessStatus.name": "Prometheus names what it scrapes itself: instance",
    "PeerStatus.last_seen_at": "the last frame, for a peer that is there; of one that is gone, for people",
    "ProcessStatus.hostname": "no number, and the scraper has it as instance",
    "ProcessStatus.config_file": "no number, and the same for ever",
    "ProcessStatus.started_at": "process_start_time_seconds, from the kernel",
    "ReloadStatus.changes": "text for people",
    "PlaneStatus.why": "text for people",
    "UpdateStatus.mode": "no number, and the config's",
    "UpdateStatus.channel": "no number, and the config's",
    "UpdateStatus.installation": "no number, and the same for ever",
    "UpdateStatus.command": "text for people",
    "UpdateStatus.downloaded": "text for people",
    "UpdateStatus.downloaded_version": "text for people",
    "UpdateStatus.obstacle": "text for people",
    "InterfaceStatus.bridge": "no number",
    "InterfaceStatus.mac": "no number",
    "InterfaceStatus.addresses": "text for people; a client's are told by its server",
    "InterfaceStatus.device": "no number, and the config's",
    "InterfaceStatus.path": "no number",
    "InterfaceStatus.problem": "text for people, any number of them",
    "InterfaceStatus.last_error": "text for people, any number of them",
    "TransportConflictStatus.route": "text for people, any number of them",
    "TransportConflictStatus.address": "text for people, any number of them",
    "TransportConflictStatus.action": "said by the log once, and by the doctor",
    "TransportConflictStatus.host_route": "text for people, any number of them",
    "LeftOutStatus.route": "text for people, any number of them",
    "LeftOutStatus.reason": "said by the log once, and by the doctor",
    "LeftOutStatus.network": "text for people, any number of them",
    "LeftOutStatus.device": "text for people, any number of them",
    "ListenerStatus.problem": "text for people",
    "PeerStatus.endpoint": "another one with each connection: a series more each time",
    "PeerStatus.agent": "the other end chooses it, as often as it likes: a series more each time",
    "PeerStatus.addresses": "text for people",
    "PeerStatus.tls": "text for people",
    "PeerStatus.encrypted": "no number, and often not known",
    "PeerStatus.ipv6": "no number, and not known before the first stream",
    "PeerStatus.refused_routes": "text for people, any number of them",
    "PeerStatus.routes": "text for people, any number of them",
    "PeerStatus.sources": "text for people, any number of them",
    "PeerStatus.segment_limit_bytes": "the log says it once, and stream ends for path-mtu are counted",
    "PeerStatus.path_problem": "text for people",
    "RateStatus.rx_bits_per_s": "rate() of tapotun_client_receive_bytes_total",
    "RateStatus.tx_bits_per_s": "rate() of tapotun_client_transmit_bytes_total",
}
# The structs, and those fields that only hold one of them.
STRUCTS: Final = (
    ProcessStatus,
    ReloadStatus,
    PlaneStatus,
    UpdateStatus,
    InterfaceStatus,
    ListenerStatus,
    TransportConflictStatus,
    LeftOutStatus,
    PeerStatus,
    RateStatus,
    RoundTripStatus,
    OutboxStatus,
)
HOLDERS: Final = {
    "ProcessStatus.last_reload",
    "ProcessStatus.plane",
    "ProcessStatus.update",
    "ProcessStatus.interfaces",
    "InterfaceStatus.listen",
    "InterfaceStatus.transport_conflicts",
    "InterfaceStatus.left_out",
    "InterfaceStatus.peers",
    "PeerStatus.rates",
    "PeerStatus.rtt",
    "PeerStatus.outbox",
}


def test_every_field_is_exported_or_has_a_reason() -> None:
    assert set(STRUCTS) == {
        it for it in vars(model).values() if isinstance(it, type) and issubclass(it, msgspec.Struct)
    } - {msgspec.Struct}
    fields = {f"{struct.__name__}.{field}" for struct in STRUCTS for field in struct.__struct_fields__}
    assert fields == EXPORTED.keys() | NOT_EXPORTED.keys() | HOLDERS
    assert not EXPORTED.keys() & NOT_EXPORTED.keys()


def changed(value: object) -> object:
    """Another one of its kind; None where it is text that may be missing."""
    others: dict[object, object] = {"up": "failed", "connected": "replaced", "http": "websocket", "server": "client"}
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1000
        case datetime():
            return datetime.fromtimestamp(value.timestamp() + 1000, UTC)
        case Mapping():
            return {**value, "y": 5}
        case str() if value in others:
            return others[value]
        case list():
            return ["other"]
        case str() | None:
            return "other"
    raise AssertionError(value)


def with_another(status: Any, struct: str, field: str) -> Any:
    """The same status, but for that field in every such struct."""
    if isinstance(status, list):
        return [with_another(it, struct, field) for it in status]
    if not isinstance(status, msgspec.Struct):
        return status
    inner = {name: with_another(getattr(status, name), struct, field) for name in status.__struct_fields__}
    if type(status).__name__ == struct:
        inner[field] = changed(getattr(status, field))
    return type(status)(**inner)


@pytest.mark.parametrize("place", sorted(EXPORTED.keys() | NOT_EXPORTED.keys()))
def test_a_field_changes_its_metrics_and_no_other(place: str) -> None:
    struct, field = place.split(".")
    status = with_another(WHOLE, struct, field)
    assert status != WHOLE
    before, after = page_of(WHOLE), page_of(status)
    differ = {name for (name, _), _ in before.items() ^ after.items()}
    expected = EXPORTED.get(place, set())
    if expected == LABEL:
        assert len(differ) > 5
    else:
        assert differ == expected


# ------------------------------------------------------------------ who pays for it


def test_a_process_without_an_admin_listener_does_not_load_it() -> None:
    script = "import sys, tapotun_trio.cli, tapotun_trio.app; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
