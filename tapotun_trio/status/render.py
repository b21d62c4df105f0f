"""The status as text for people, in the style of `wg show`, fitted to the terminal's width. Uses no clock.

Untrusted input: names from peers and other processes are reduced to one line without control characters, and cut to
the space that they have.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from ..text import one_line, shorten
from .duration import ago
from .model import (
    InterfaceStatus,
    LeftOutStatus,
    PeerState,
    PeerStatus,
    PlaneStatus,
    ProcessStatus,
    TransportConflictStatus,
    UpdateStatus,
)

WIDTH: Final = 80
MIN_WIDTH: Final = 40
TEXT_CHARS: Final = 800  # the longest sentence
COMMAND_CHARS: Final = 10_000  # two paths, each of at most PATH_MAX
LIST_LIMIT: Final = 8  # items shown of a longer list; --json has all of them

ASSUMED_ROWS: Final = 60  # of a screen, if the output is not a terminal
SILENT_S: Final = 60.0  # more than any keepalive
_NAME_COLUMNS: Final = 12  # the minimum width of the names in the table
_TROUBLE: Final[tuple[PeerState, ...]] = ("replaced", "connecting", "offline", "connected")  # the worst first

_LABEL: Final = 12  # columns, including the colon and the space after it
_RESET: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"
_RED, _GREEN, _YELLOW = "\x1b[31m", "\x1b[32m", "\x1b[33m"
_STATE_COLOURS: Final = {"up": _GREEN, "connected": _GREEN, "offline": "", "failed": _RED, "replaced": _RED}


def render(
    processes: Iterable[ProcessStatus],
    now: datetime,
    *,
    width: int = WIDTH,
    rows: int | None = None,
    full: bool = False,
    colour: bool = False,
) -> str:
    """Render a block for each process, with a block for each peer, or a table if these would not fit on a screen.

    Args:
        width: columns of the terminal.
        rows: rows of the terminal; None: the output is no terminal.
        full: use blocks for any number of peers.
        colour: use ANSI colours.
    """
    page = _Page(max(width, MIN_WIDTH), colour)
    for process in processes:
        page.process(process, now, rows=rows, full=full)
    return page.text


class _Page:
    def __init__(self, width: int, colour: bool) -> None:
        self._width = width
        self._colour = colour
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def process(self, process: ProcessStatus, now: datetime, *, rows: int | None, full: bool) -> None:
        if self._lines:
            self._lines.append("")
        name = "" if process.name == str(process.pid) else f" {process.name}"
        head = f"tapotun {process.version}{name}, pid {process.pid}, up for {ago(process.started_at, now)}, "
        self._lines.append(self._cut(head, keep=process.config_file))
        reload = process.last_reload
        if reload is not None and reload.error is not None:
            text = f"refused {ago(reload.at, now)} ago, the old config stays in use: {reload.error}"
            self._text("", "reload", text, _RED)
        if process.plane is not None:
            self._plane(process.plane, process.interfaces)
        if process.update is not None:
            self._update(process.update, now)
        for interface in process.interfaces:
            self._interface(interface, now)
            before = len(self._lines)
            for peer in interface.peers:
                self._peer(peer, now)
            many = len(self._lines) - before > (ASSUMED_ROWS if rows is None else rows)
            if many and not full and len(interface.peers) > 1:
                del self._lines[before:]
                self._table(interface.peers, now)

    def _plane(self, plane: PlaneStatus, interfaces: Iterable[InterfaceStatus]) -> None:
        if plane.kind != "native":
            self._field("", "plane", [f"{plane.kind}: {plane.why}"])
            return
        peers = [peer for interface in interfaces for peer in interface.peers]
        packets = sum(peer.rx_packets + peer.tx_packets for peer in peers)
        share = [f"{sum(peer.plane_packets for peer in peers) / packets:.0%} of the packets"] if packets else []
        self._field("", "plane", ["native", *share])

    def _update(self, update: UpdateStatus, now: datetime) -> None:
        for text, command, colour in _update_lines(update):
            if command is None:
                self._text("", "update", text, colour)
                continue
            whole = one_line(f"{text}; {command}")
            if columns(whole) <= self._width - _LABEL:
                self._text("", "update", whole, colour)
            else:  # on a line of its own, however long: wrapped, it could not be copied
                self._text("", "update", f"{text}:", colour)
                self._lines.append(f"  {shorten(one_line(command), COMMAND_CHARS)}")
        if update.checked_at is not None and update.available is None and update.error is None:
            self._text("", "update", f"up to date {ago(update.checked_at, now)} ago")

    def _interface(self, interface: InterfaceStatus, now: datetime) -> None:
        self._head("", "interface", interface.name, _GREEN)
        verb = "up" if interface.state == "up" else interface.state
        self._field(
            "  ",
            "state",
            [f"{interface.kind}, {verb} for {ago(interface.since, now)}"],
            _STATE_COLOURS.get(interface.state, _YELLOW),
        )
        if interface.state == "failed":
            self._text("  ", "why", interface.last_error or "not known", _RED)
        elif interface.problem is not None and interface.degraded is None:
            self._text("  ", "why", interface.problem, _YELLOW)
        if interface.degraded is not None:
            self._text("  ", "degraded", interface.degraded, _YELLOW)
        self._field("  ", "device", _device(interface))
        mtu = [] if interface.mtu_bytes is None else [f"MTU {interface.mtu_bytes}"]
        # Only a TAP interface may have none for good.
        none = ["none"] if mtu and interface.device == "tap" else []
        self._field("  ", "addresses", [*(interface.addresses or none), *mtu])
        path = "" if interface.path is None else f" {interface.path}"
        self._field("  ", "listening", [f"{at.address}{path}" for at in interface.listen])
        for at in interface.listen:
            if at.problem is not None:
                self._text("  ", "problem", f"{at.address}: {at.problem}", _RED)
        self._field("  ", "switch", _switch(interface.macs, interface.flooded_packets))
        self._field("  ", "dropped", _reasons(interface.device_drops))
        refused = dict(interface.refusals)
        for at in interface.listen:
            for reason, count in at.refusals.items():
                refused[reason] = refused.get(reason, 0) + count
        self._field("  ", "refused", _reasons(refused))
        if interface.restarts and interface.state != "failed":
            last = "" if interface.last_error is None else f", the last because of: {interface.last_error}"
            self._text("  ", "restarts", f"{interface.restarts}{last}")
        if interface.repairs:
            self._text("  ", "repairs", f"what others took away was put back {_times(interface.repairs)}")
        for conflict in interface.transport_conflicts[:LIST_LIMIT]:
            self._text("  ", "transport", conflict_text(conflict), _YELLOW)
        if len(interface.transport_conflicts) > LIST_LIMIT:
            self._text("  ", "", f"and {len(interface.transport_conflicts) - LIST_LIMIT} more routes")
        for left_out in interface.left_out[:LIST_LIMIT]:
            self._text("  ", "left out", left_out_text(left_out), _YELLOW)
        if len(interface.left_out) > LIST_LIMIT:
            self._text("  ", "", f"and {len(interface.left_out) - LIST_LIMIT} more")

    def _peer(self, peer: PeerStatus, now: datetime) -> None:
        self._head("  ", "peer", peer.name, _YELLOW)
        since = "" if peer.connected_since is None else f" for {ago(peer.connected_since, now)}"
        again = [f"reconnected {_times(peer.reconnects)}"] if peer.reconnects else []
        self._field("    ", "state", [f"{peer.state}{since}", *again], _STATE_COLOURS.get(peer.state, _YELLOW))
        self._field("    ", "endpoint", _endpoint(peer))
        self._field("    ", "addresses", peer.addresses)
        self._field("    ", "routes", peer.routes)
        for route, why in list(peer.refused_routes.items())[:LIST_LIMIT]:
            self._text("    ", "refused", f"{route}, by the kernel of this machine: {why}", _RED)
        if len(peer.refused_routes) > LIST_LIMIT:
            self._text("    ", "", f"and {len(peer.refused_routes) - LIST_LIMIT} more routes")
        self._field("    ", "sources", peer.sources)
        if peer.endpoint is None and not peer.stream_ends:
            return  # the peer has never connected
        if peer.last_frame_at is not None:
            self._field("    ", "last heard", [f"{ago(peer.last_frame_at, now)} ago"])
        self._field("    ", "received", [_traffic(peer.rx_bytes, peer.rx_packets, peer.rates.rx_bits_per_s)])
        self._field("    ", "sent", [_traffic(peer.tx_bytes, peer.tx_packets, peer.rates.tx_bits_per_s)])
        rtt = peer.rtt
        if rtt.last_ms is not None and rtt.smoothed_ms is not None and rtt.min_ms is not None:
            figures = f"{_ms(rtt.last_ms)}, mean {_ms(rtt.smoothed_ms)}, min {_ms(rtt.min_ms)}"
            self._field("    ", "round trip", [figures])
        if peer.path_problem is not None:
            self._text("    ", "path", peer.path_problem, _YELLOW)
        self._field("    ", "switch", _switch(peer.macs, peer.flooded_packets))
        if peer.outbox.packets:
            self._field("    ", "waiting", [f"{size(peer.outbox.bytes)} in {_count(peer.outbox.packets, 'packet')}"])
        self._field("    ", "dropped", _reasons(peer.drops))
        self._field("    ", "ended", _reasons(peer.stream_ends))

    def _table(self, peers: Sequence[PeerStatus], now: datetime) -> None:
        """Write a line for each peer. Peers with trouble come first."""
        counts = Counter(peer.state for peer in peers)
        states = [f"{counts[state]} {state}" for state in _TROUBLE if counts[state]]
        self._field("  ", "peers", [f"{len(peers)}", *states, "tapotun status --full has all about each"])
        columns_shown = list(_COLUMNS)
        name_width = self._name_width(columns_shown)
        while name_width < _NAME_COLUMNS and len(columns_shown) > 1:
            columns_shown.pop()
            name_width = self._name_width(columns_shown)
        titles = "".join(f" {column.title:<{column.width}}" for column in columns_shown)
        self._lines += ["", f"  {'PEER':<{name_width}}{titles}".rstrip()]
        for peer in sorted(peers, key=lambda peer: (_rank(peer, now), peer.name)):
            name = _padded(one_line(peer.name), name_width)
            cells = [_padded(column.text(peer, now), column.width) for column in columns_shown]
            if self._colour and (colour := _STATE_COLOURS.get(peer.state, _YELLOW)):
                cells[0] = f"{colour}{cells[0]}{_RESET}"
            self._lines.append(f"  {' '.join([name, *cells])}".rstrip())

    def _name_width(self, columns_shown: Sequence[_Column]) -> int:
        return self._width - 2 - sum(column.width + 1 for column in columns_shown)

    def _head(self, indent: str, kind: str, name: str, colour: str) -> None:
        self._lines.append("")
        room = self._width - len(indent) - len(kind) - 2
        shown = fit(one_line(name), room)
        if self._colour:
            self._lines.append(f"{indent}{_BOLD}{colour}{kind}{_RESET}: {colour}{shown}{_RESET}")
        else:
            self._lines.append(f"{indent}{kind}: {shown}")

    def _field(self, indent: str, label: str, items: list[str], colour: str = "") -> None:
        """Add ``label: item, item, ...``, wrapped between items. Adds nothing if there are no items."""
        if not items:
            return
        if len(items) > LIST_LIMIT + 1:
            items = [*items[:LIST_LIMIT], f"and {len(items) - LIST_LIMIT} more"]
        room = self._width - len(indent) - _LABEL
        pieces = [fit(one_line(item), room - 1) for item in items]
        self._rows(indent, label, [*(f"{piece}," for piece in pieces[:-1]), pieces[-1]], colour)

    def _text(self, indent: str, label: str, text: str, colour: str = "") -> None:
        """Add a sentence, wrapped and cut only if it is very long: its end is often the remedy."""
        room = self._width - len(indent) - _LABEL
        words = shorten(one_line(text), TEXT_CHARS).split()
        self._rows(indent, label, [part for word in words for part in _split(word, room)], colour)

    def _rows(self, indent: str, label: str, pieces: list[str], colour: str) -> None:
        """Add the pieces, wrapped between them. No piece may be wider than a row."""
        room = self._width - len(indent) - _LABEL
        rows = [""]
        for piece in pieces:
            joined = f"{rows[-1]} {piece}" if rows[-1] else piece
            if columns(joined) <= room:
                rows[-1] = joined
            else:
                rows.append(piece)
        for i, row in enumerate(rows):
            named = f"{label}:" if i == 0 else ""
            padding = " " * (_LABEL - len(named))
            if self._colour:
                named = f"{_BOLD}{named}{_RESET}" if named else ""
                row = f"{colour}{row}{_RESET}" if colour else row
            self._lines.append(f"{indent}{named}{padding}{row}")

    def _cut(self, head: str, *, keep: str) -> str:
        """Both on one line. If it is too long, ``keep`` loses its beginning: the end of a path matters most."""
        head, tail = one_line(head), one_line(keep)
        room = max(self._width - columns(head), 1)
        while columns(tail) > room:
            tail = f"…{tail[2:]}" if len(tail) > 1 else ""
        return fit(head + tail, self._width)


class _Column(NamedTuple):
    """A column of the table of peers, except the column of names."""

    title: str
    width: int
    text: Callable[[PeerStatus, datetime], str]


def _rank(peer: PeerStatus, now: datetime) -> int:
    """The sort key of a peer in the table: peers that need attention come first, peers never seen last."""
    never = peer.state == "offline" and peer.endpoint is None and not peer.stream_ends
    if never:
        return len(_TROUBLE) + 2
    if peer.state == "connected":
        silent = peer.last_frame_at is not None and (now - peer.last_frame_at).total_seconds() > SILENT_S
        return len(_TROUBLE) + (0 if silent or peer.outbox.packets else 1)
    return _TROUBLE.index(peer.state)


def _since(peer: PeerStatus, now: datetime) -> str:
    return "" if peer.connected_since is None else _short(peer.connected_since, now)


def _heard(peer: PeerStatus, now: datetime) -> str:
    return "never" if peer.last_frame_at is None else _short(peer.last_frame_at, now)


def _short(then: datetime, now: datetime) -> str:
    """The time between ``then`` and ``now`` in its largest unit."""
    return " ".join(ago(then, now).split()[:2])


def _smoothed(peer: PeerStatus, now: datetime) -> str:
    del now
    return "" if peer.rtt.smoothed_ms is None else _ms(peer.rtt.smoothed_ms)


def _in_and_out(peer: PeerStatus, now: datetime) -> str:
    del now
    return f"{rate(peer.rates.rx_bits_per_s)}, {rate(peer.rates.tx_bits_per_s)}"


def _again(peer: PeerStatus, now: datetime) -> str:
    del now
    return f"{peer.reconnects}" if peer.reconnects else ""


_COLUMNS: Final = (
    _Column("STATE", 10, lambda peer, now: peer.state),
    _Column("HEARD", 8, _heard),
    _Column("IN, OUT", 24, _in_and_out),
    _Column("RTT", 8, _smoothed),
    _Column("FOR", 6, _since),
    _Column("AGAIN", 5, _again),
)


def _padded(text: str, width: int) -> str:
    shown = fit(text, width)
    return shown + " " * (width - columns(shown))


def conflict_text(conflict: TransportConflictStatus) -> str:
    """The conflict and what was done about it. `tapotun doctor` uses the same text."""
    outcome = {
        "excepted": f"its own connections use host route {conflict.host_route}",
        "left-out": "it is left out; remove it from the server's config",
        "withdrawn": "withdrawn until there is a session again",
        "captured": "it leads the tunnel into itself; remove it",
    }
    return f"route {conflict.route} covers {conflict.address}: {outcome[conflict.action]}"


def left_out_text(left_out: LeftOutStatus) -> str:
    """What is left out, and why. `tapotun doctor` uses the same text."""
    attached = f"{left_out.device} attaches this machine to {left_out.network}"
    match left_out.reason:
        case "attached":
            return f"pushed route {left_out.route}: {attached}, which wins"
        case "tunnel-network":
            return f"the tunnel's network {left_out.route}: {attached}, which wins; the server's net should be another"
        case "tunnel-address" if left_out.network == left_out.route:
            own = f"the tunnel's address {left_out.route}"
            return f"{own}: {left_out.device} has it too; the server's net should be another"
        case "tunnel-address":
            own = f"the tunnel's address {left_out.route}"
            return f"{own}: {attached}, where a machine with that address cannot be reached"
        case "martian":
            return f"pushed route {left_out.route}: no packet is ever routed there; remove it from the server's config"


def _update_lines(update: UpdateStatus) -> Iterator[tuple[str, str | None, str]]:
    """What an operator should know of updates, each with the command to type, if there is one, and its colour."""
    if update.available is not None:
        version = update.available
        if version in update.refused:
            yield f"{version} is available; it did not start here, and is not installed again", None, _RED
        elif update.downloaded is not None and update.downloaded_version == version:
            yield f"{version} is available, and lies in {update.downloaded}", update.command, _YELLOW
        else:
            yield f"{version} is available", update.command, _YELLOW
    if update.obstacle is not None:
        yield f"only reported: {update.obstacle}", None, _YELLOW
    if update.error is not None:
        yield f"the last check failed: {update.error}", None, _RED


def _endpoint(peer: PeerStatus) -> list[str]:
    if peer.endpoint is None:
        return []
    over = {"http": " over HTTP", "websocket": " over a WebSocket", None: ""}[peer.transport]
    if peer.tls is not None:
        over = f"{over.replace(' over HTTP', ' over HTTPS')} ({peer.tls})"
    software = peer.agent or ("extended" if peer.extended else "base protocol")
    # If this end knows the TLS version, that says enough. Otherwise a proxy has reported the encryption.
    words = {True: "" if peer.tls else "encrypted up to its proxy", False: "not encrypted", None: ""}[peer.encrypted]
    wants_ipv6 = any(":" in address for address in peer.addresses)
    inside = {True: "carries IPv6", False: "without IPv6" if wants_ipv6 else "", None: ""}[peer.ipv6]
    return [f"{peer.endpoint}{over}", software, *filter(None, [inside, words])]


def _traffic(amount_bytes: int, packets: int, bits_per_s: float) -> str:
    return f"{size(amount_bytes)} in {_count(packets, 'packet')}, now {rate(bits_per_s)}"


def _reasons(counts: Mapping[str, int]) -> list[str]:
    return [f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda it: (-it[1], it[0])) if count]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _device(interface: InterfaceStatus) -> list[str]:
    """What a TAP interface is in its segment; nothing of other interfaces."""
    if interface.device != "tap":
        return []
    return [
        "TAP" if interface.mac is None else f"TAP {interface.mac}",
        *([] if interface.bridge is None else [f"port of bridge {interface.bridge}"]),
    ]


def _switch(macs: int | None, flooded: int | None) -> list[str]:
    """What the switch of a TAP interface knows and has flooded; nothing of other interfaces."""
    if macs is None:
        return []
    return [
        f"{macs} MAC address" if macs == 1 else f"{macs} MAC addresses",
        *([f"{_count(flooded, 'packet')} flooded"] if flooded else []),
    ]


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def size(amount_bytes: int) -> str:
    """A size such as ``1.23 MiB``: three digits and a binary prefix."""
    return _scaled(float(amount_bytes), 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), whole=True)


def rate(bits_per_s: float) -> str:
    """A rate such as ``93.1 Mbit/s``: three digits and a decimal prefix, as links are sold."""
    return _scaled(bits_per_s, 1000, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"), whole=True)


def _scaled(value: float, base: int, units: tuple[str, ...], *, whole: bool) -> str:
    """``whole``: the smallest unit has no fractions."""
    at = 0
    while value >= base - 0.5 and at < len(units) - 1:
        value /= base
        at += 1
    if at == 0 and whole:
        return f"{value:.0f} {units[0]}"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {units[at]}"


def columns(text: str) -> int:
    """The width of the text in terminal columns (Unicode UAX #11; combining marks have none)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1
        for c in text
    )


def _split(word: str, limit: int) -> list[str]:
    """The word in pieces of at most ``limit`` columns."""
    pieces = [""]
    for c in word:
        if columns(pieces[-1] + c) > limit:
            pieces.append("")
        pieces[-1] += c
    return pieces


def fit(text: str, limit: int) -> str:
    """The text cut to at most ``limit`` columns. The last one is an ellipsis if something was cut."""
    if columns(text) <= limit:
        return text
    while text and columns(text) > limit - 1:
        text = text[: max(limit - 1, 0)] if len(text) > 2 * limit else text[:-1]
    return f"{text}…"
