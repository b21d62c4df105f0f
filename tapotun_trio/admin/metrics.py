"""Metrics for Prometheus, from one snapshot of the process. docs/metrics.md documents all of them, as a test checks.

Names follow Prometheus' rules: base units, and counters end in ``_total``. An unknown value has no sample, instead of a
zero. Counters have the values of the status: they restart at zero with their interface, which rate() handles.

Labels are names from the config, and reasons from a fixed set. A value that the other end chooses (its address, the
name of its software) is not a label, since each value would create another time series.

Importing this module costs 2 MB and 80 ms, for prometheus_client: only a process with an admin listener imports it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar, get_args

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

from ..datapath.counters import DropReason
from ..errors import EndReason, RefusalReason
from ..status.model import InterfaceState, InterfaceStatus, ListenerStatus, PeerStatus, ProcessStatus, UpdateStatus
from ..text import one_line

_OPENMETRICS: Final = "application/openmetrics-text"
_CLASSIC: Final = "text/plain"
_END: Final = b"# EOF\n"  # the last line of OpenMetrics
_SLICE: Final = 25  # interfaces, listeners or peers in one step
_PART: Final = 25  # samples written in one step; a step of either kind takes about half a millisecond
_UNITS: Final = ("bytes", "seconds")

_INTERFACE_LABELS: Final = ("interface", "kind")
_LISTENER_LABELS: Final = ("address",)
# At a server, `client` is set and `server` is empty; at a client it is the reverse. An empty label counts as absent.
_PEER_LABELS: Final = ("interface", "client", "server")

T = TypeVar("T")
# Pairs of label values and the object that they identify. No two objects have the same values.
Labelled: TypeAlias = dict[tuple[str, ...], T]


def render(status: ProcessStatus, accept: str | None = None) -> tuple[bytes, str]:
    """The page and its content type.

    OpenMetrics, or Prometheus' older text format if ``accept`` has text/plain and not OpenMetrics. ``accept``: the
    request's header, untrusted input.
    """
    parts, content_type = render_in_parts(status, accept)
    return b"".join(parts), content_type


def render_in_parts(status: ProcessStatus, accept: str | None = None) -> tuple[Iterator[bytes], str]:
    """As `render`, in parts between which other tasks can run: the page of a thousand clients takes longer than packets
    should wait."""
    # Only one of two formats is chosen, because the library would copy the requested version into the response.
    asked = {part.partition(";")[0].strip().lower() for part in (accept or "").split(",")}
    classic = _CLASSIC in asked and _OPENMETRICS not in asked
    encode, content_type = choose_encoder(_CLASSIC if classic else _OPENMETRICS)
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    ProcessCollector(registry=registry)
    end = b"" if classic else _END

    def parts() -> Iterator[bytes]:
        name = ""
        for family in registry.collect():
            head = encode(_Family(family, [])).removesuffix(end)
            if family.name != name:  # otherwise this is a further piece of the same family
                name = family.name
                yield head
            for at in range(0, len(family.samples), _PART):
                part = encode(_Family(family, family.samples[at : at + _PART]))
                yield part.removeprefix(head).removesuffix(end)
        yield end

    return parts(), content_type


class _Family(CollectorRegistry):
    """One family with some of its samples."""

    def __init__(self, family: Metric, samples: list[Sample]) -> None:
        super().__init__()
        self._family = copy(family)
        self._family.samples = samples

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


class _Gauge(NamedTuple, Generic[T]):
    """A gauge. ``read`` returns None if the value is unknown."""

    name: str
    text: str
    read: Callable[[T], float | None]


class _Counter(NamedTuple, Generic[T]):
    """A counter. ``name`` is without ``_total``. ``read`` returns None if there is nothing to count."""

    name: str
    text: str
    read: Callable[[T], int | None]


class _Reasons(NamedTuple, Generic[T]):
    """A counter with one more label, the reason.

    ``expected``: reasons with a zero before they happen, because rate() ignores the first sample of a series.
    """

    name: str
    text: str
    read: Callable[[T], Mapping[str, int]]
    expected: Callable[[T], Iterable[str]] = lambda _: ()


_Row: TypeAlias = _Gauge[T] | _Counter[T] | _Reasons[T]

_REFUSALS: Final = (
    RefusalReason.BAD_METHOD,
    RefusalReason.BAD_TOKEN,
    EndReason.INTERNAL_ERROR,
    RefusalReason.NO_ADDRESS,
    RefusalReason.OTHER_SESSION,
)
_TAP_REFUSALS: Final = tuple(
    RefusalReason.NO_TAP if reason == RefusalReason.NO_ADDRESS else reason for reason in _REFUSALS
)
_DEVICE_DROPS: Final = (
    DropReason.INTERNAL_ERROR,
    DropReason.JUMBOGRAM,
    DropReason.LINK_LOCAL,
    DropReason.LOOP,
    DropReason.NO_ROUTE,
    DropReason.NOT_IPV4,
)

_TAP_DROPS: Final = (
    DropReason.BAD_MAC,
    DropReason.INTERNAL_ERROR,
    DropReason.RESERVED_MAC,
    DropReason.SAME_SIDE,
)


_INTERFACE: Final[tuple[_Row[InterfaceStatus], ...]] = (
    _Gauge(
        "tapotun_interface_up",
        "1: a server listens, a client's streams carry packets.",
        lambda status: status.state in ("up", "degraded"),
    ),
    _Gauge(
        "tapotun_interface_state_since_timestamp_seconds",
        "When the interface entered its current state.",
        lambda status: _unix(status.since),
    ),
    _Gauge("tapotun_interface_mtu_bytes", "MTU of the interface.", lambda status: status.mtu_bytes),
    _Counter(
        "tapotun_interface_restarts",
        "How often the interface failed and was started again.",
        lambda status: status.restarts,
    ),
    _Gauge(
        "tapotun_interface_degraded",
        "1: something that it needs on this machine is missing, because another program took it away.",
        lambda status: status.degraded is not None,
    ),
    _Counter(
        "tapotun_interface_repairs",
        "How often something that another program took away was put back.",
        lambda status: status.repairs,
    ),
    _Gauge(
        "tapotun_interface_macs",
        "MAC addresses in the table of a server's TAP interface, behind all clients and the server.",
        lambda status: status.macs,
    ),
    _Counter(
        "tapotun_interface_macs_learned",
        "MAC addresses that the switch of a server's TAP interface has found.",
        lambda status: status.macs_learned,
    ),
    _Counter(
        "tapotun_interface_macs_moved",
        "How often a MAC address was behind one client or the server, and then behind another.",
        lambda status: status.macs_moved,
    ),
    _Counter(
        "tapotun_interface_macs_evicted",
        "MAC addresses that were forgotten because there were too many behind a client or the server.",
        lambda status: status.macs_evicted,
    ),
    _Counter(
        "tapotun_interface_flooded_packets",
        "Frames from a server's TAP interface that were sent to all clients.",
        lambda status: status.flooded_packets,
    ),
    _Reasons(
        "tapotun_interface_dropped_packets",
        "Packets from the interface's device that were delivered to no peer, by reason.",
        lambda status: status.device_drops,
        lambda status: (_DEVICE_DROPS if status.macs is None else _TAP_DROPS) if status.kind == "server" else (),
    ),
    _Reasons(
        "tapotun_interface_refused_requests",
        "Refused or failed requests to the interface, by reason.",
        lambda status: status.refusals,
        lambda status: (_REFUSALS if status.macs is None else _TAP_REFUSALS) if status.kind == "server" else (),
    ),
)

_LISTENER: Final[tuple[_Row[ListenerStatus], ...]] = (
    _Reasons(
        "tapotun_listener_refused_connections",
        "Connections and requests to the address that reached no interface, by reason.",
        lambda status: status.refusals,
    ),
)

_BY_SWITCH: Final = {
    DropReason.ARP_GUARD,
    DropReason.BAD_MAC,
    DropReason.ISOLATED,
    DropReason.RESERVED_MAC,
    DropReason.SAME_SIDE,
    DropReason.STORM,
}
_BY_ROUTER: Final = {
    DropReason.BAD_SOURCE,
    DropReason.JUMBOGRAM,
    DropReason.LINK_LOCAL,
    DropReason.NOT_IPV4,
}
_OF_NO_PEER: Final = {DropReason.NO_ROUTE, DropReason.LOOP, DropReason.INTERNAL_ERROR}
_DROPS: Final = tuple(sorted(set(DropReason) - _OF_NO_PEER - _BY_SWITCH))
_TAP_CLIENT_DROPS: Final = tuple(sorted(set(DropReason) - _OF_NO_PEER - _BY_ROUTER))

_PEER: Final[tuple[_Row[PeerStatus], ...]] = (
    _Gauge("tapotun_client_connected", "1: packets pass both ways.", lambda status: status.state == "connected"),
    _Gauge(
        "tapotun_client_replaced",
        "1: another machine uses this client's token.",
        lambda status: status.state == "replaced",
    ),
    _Gauge(
        "tapotun_client_connected_since_timestamp_seconds",
        "When the current connection without a break began.",
        lambda status: _unix(status.connected_since),
    ),
    _Gauge(
        "tapotun_client_last_frame_timestamp_seconds",
        "When anything was last received from the other end, including a ping.",
        lambda status: _unix(status.last_frame_at),
    ),
    _Counter(
        "tapotun_client_receive_bytes",
        "IP packets from the other end, without framing.",
        lambda status: status.rx_bytes,
    ),
    _Counter(
        "tapotun_client_transmit_bytes", "IP packets to the other end, without framing.", lambda status: status.tx_bytes
    ),
    _Counter("tapotun_client_receive_packets", "IP packets from the other end.", lambda status: status.rx_packets),
    _Counter("tapotun_client_transmit_packets", "IP packets to the other end.", lambda status: status.tx_packets),
    _Gauge(
        "tapotun_client_rtt_last_seconds",
        "The last round trip of a ping through the streams, including the time in their queues.",
        lambda status: _from_ms(status.rtt.last_ms),
    ),
    _Gauge(
        "tapotun_client_rtt_smoothed_seconds",
        "The round trip, smoothed as in RFC 6298.",
        lambda status: _from_ms(status.rtt.smoothed_ms),
    ),
    _Gauge("tapotun_client_rtt_min_seconds", "The minimum round trip.", lambda status: _from_ms(status.rtt.min_ms)),
    _Gauge("tapotun_client_outbox_bytes", "Queued data to send, with framing.", lambda status: status.outbox.bytes),
    _Gauge("tapotun_client_outbox_packets", "Packets that wait to be sent.", lambda status: status.outbox.packets),
    _Gauge(
        "tapotun_client_macs",
        "MAC addresses behind a client of a server's TAP interface.",
        lambda status: status.macs,
    ),
    _Counter(
        "tapotun_client_macs_learned",
        "MAC addresses that were found behind such a client.",
        lambda status: status.macs_learned,
    ),
    _Counter(
        "tapotun_client_macs_moved",
        "How often a MAC address was elsewhere, and then behind such a client.",
        lambda status: status.macs_moved,
    ),
    _Counter(
        "tapotun_client_macs_evicted",
        "MAC addresses that were forgotten because there were too many behind such a client.",
        lambda status: status.macs_evicted,
    ),
    _Counter(
        "tapotun_client_flooded_packets",
        "Frames from a client of a server's TAP interface that were sent to all others.",
        lambda status: status.flooded_packets,
    ),
    _Reasons(
        "tapotun_client_dropped_packets",
        "Packets dropped, by reason.",
        lambda status: status.drops,
        lambda status: _DROPS if status.macs is None else _TAP_CLIENT_DROPS,
    ),
    _Reasons(
        "tapotun_client_stream_ends",
        "Broken streams and failed attempts to open one, by reason.",
        lambda status: status.stream_ends,
    ),
    _Counter(
        "tapotun_client_plane_packets",
        "IP packets in either direction that the native plane moved.",
        lambda status: status.plane_packets,
    ),
    _Counter("tapotun_client_reconnects", "How often it reconnected after a break.", lambda status: status.reconnects),
)


class _Snapshot(Collector):
    def __init__(self, status: ProcessStatus) -> None:
        self._status, interfaces = status, status.interfaces
        self._interfaces = _labelled(((interface.name, interface.kind), interface) for interface in interfaces)
        # Interfaces may share a listener.
        self._listeners = _labelled(((listener.address,), listener) for each in interfaces for listener in each.listen)
        self._peers = _labelled(
            ((each.name, peer.name, "") if each.kind == "server" else (each.name, "", peer.name), peer)
            for each in interfaces
            for peer in each.peers
        )

    def collect(self) -> Iterator[Metric]:
        """A family with many samples is yielded in several consecutive pieces."""
        yield from _of_process(self._status)
        for some in _slices(self._interfaces):
            yield _states(some)
        yield from _families(_INTERFACE, _INTERFACE_LABELS, self._interfaces)
        yield from _families(_LISTENER, _LISTENER_LABELS, self._listeners)
        for peers in _slices(self._peers):
            yield _transports(peers)
        yield from _families(_PEER, _PEER_LABELS, self._peers)


def _of_process(status: ProcessStatus) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "tapotun_build",
        "The running program.",
        {"version": one_line(status.version), "python": platform.python_version()},
    )
    successful = GaugeMetricFamily(
        "tapotun_config_last_reload_successful", "0: the last reload failed and changed nothing.", labels=()
    )
    at = GaugeMetricFamily(
        "tapotun_config_last_reload_timestamp_seconds",
        "When the config was last reloaded, successfully or not.",
        labels=(),
        unit="seconds",
    )
    plane = GaugeMetricFamily("tapotun_plane_running", "1 for the kind of plane that moves packets.", labels=("kind",))
    if status.plane is not None:
        plane.add_metric((status.plane.kind,), 1)
    yield plane
    if status.last_reload is not None:
        successful.add_metric((), status.last_reload.error is None)
        at.add_metric((), status.last_reload.at.timestamp())
    yield successful
    yield at
    yield from _of_update(status.update)


def _of_update(update: UpdateStatus | None) -> Iterator[Metric]:
    """Without samples if the config does not look for updates; the first ones come with the first check."""
    available = GaugeMetricFamily(
        "tapotun_update_available", "1: there is a newer version than the running one.", labels=()
    )
    successful = GaugeMetricFamily(
        "tapotun_update_last_check_successful",
        "0: the last check for updates, or what followed of it, failed.",
        labels=(),
    )
    at = GaugeMetricFamily(
        "tapotun_update_last_check_timestamp_seconds",
        "When updates were last looked for successfully.",
        labels=(),
        unit="seconds",
    )
    refused = GaugeMetricFamily(
        "tapotun_update_refused", "How many versions did not start here, and were taken back.", labels=()
    )
    if update is not None:
        if update.checked_at is not None:
            available.add_metric((), update.available is not None)
            at.add_metric((), update.checked_at.timestamp())
        if update.checked_at is not None or update.error is not None:
            successful.add_metric((), update.error is None)
        refused.add_metric((), len(update.refused))
    yield from (available, successful, at, refused)


def _states(interfaces: Labelled[InterfaceStatus]) -> Metric:
    family = StateSetMetricFamily("tapotun_interface_state", "1 for the current state.", labels=_INTERFACE_LABELS)
    for labels, interface in interfaces.items():
        family.add_metric(labels, {state: state == interface.state for state in get_args(InterfaceState)})
    return family


def _transports(peers: Labelled[PeerStatus]) -> Metric:
    family = InfoMetricFamily("tapotun_client", "About the newest stream.", labels=_PEER_LABELS)
    for labels, peer in peers.items():
        if peer.transport is not None and peer.extended is not None:
            protocol = "extended" if peer.extended else "base"
            family.add_metric(labels, {"transport": peer.transport, "protocol": protocol})
    return family


def _families(rows: Iterable[_Row[T]], names: Sequence[str], things: Labelled[T]) -> Iterator[Metric]:
    for row in rows:
        for some in _slices(things):
            yield _family(row, names, some)


def _family(row: _Row[T], names: Sequence[str], things: Labelled[T]) -> Metric:
    unit = next((unit for unit in _UNITS if row.name.endswith(f"_{unit}")), "")
    match row:
        case _Gauge(name, text, read):
            gauge = GaugeMetricFamily(name, text, labels=names, unit=unit)
            for labels, thing in things.items():
                if (value := read(thing)) is not None:
                    gauge.add_metric(labels, value)
            return gauge
        case _Counter(name, text, count):
            counter = CounterMetricFamily(name, text, labels=names, unit=unit)
            for labels, thing in things.items():
                if (number := count(thing)) is not None:
                    counter.add_metric(labels, number)
            return counter
        case _Reasons(name, text, counts_of, expected):
            counter = CounterMetricFamily(name, text, labels=(*names, "reason"), unit=unit)
            for labels, thing in things.items():
                numbers = {one_line(reason): number for reason, number in counts_of(thing).items()}
                for reason, number in {**dict.fromkeys(expected(thing), 0), **numbers}.items():
                    counter.add_metric((*labels, reason), number)
            return counter


def _slices(things: Labelled[T]) -> Iterator[Labelled[T]]:
    """``things``, a few at a time. If there are none, one empty slice, so that the family still gets its header."""
    items = iter(things.items())
    yield dict(islice(items, _SLICE))
    while some := dict(islice(items, _SLICE)):
        yield some


def _labelled(pairs: Iterable[tuple[tuple[str, ...], T]]) -> Labelled[T]:
    """The objects by the values of their labels. Of several with the same values only the first is kept, since
    Prometheus refuses a page with two samples of one series; the config and the code prevent that case."""
    found: Labelled[T] = {}
    for labels, thing in pairs:
        found.setdefault(tuple(map(one_line, labels)), thing)
    return found


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _from_ms(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
