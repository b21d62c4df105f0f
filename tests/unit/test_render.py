"""What people read of status: golden pages at 80 columns, and hostile words that stay in their place."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.status.duration import ago
from tapotun_trio.status.model import (
    InterfaceStatus,
    LeftOutStatus,
    ListenerStatus,
    OutboxStatus,
    PeerState,
    PeerStatus,
    ProcessStatus,
    RateStatus,
    ReloadStatus,
    RoundTripStatus,
    TransportConflictStatus,
    UpdateStatus,
)
from tapotun_trio.status.render import MIN_WIDTH, columns, fit, rate, render, size
from tapotun_trio.text import one_line

from ..tables import table

NOW: Final = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
ANSI: Final = re.compile(r"\x1b\[\d+m")


def before(**units: int) -> datetime:
    return NOW - timedelta(**units)


HUB: Final = ProcessStatus(
    version="0.1.0",
    pid=4242,
    name="hub",
    config_file="/etc/tapotun/hub.json",
    started_at=before(days=3, hours=4),
    interfaces=[
        InterfaceStatus(
            name="corp0",
            kind="server",
            state="up",
            since=before(days=3, hours=4),
            addresses=["10.50.0.1/24", "10.50.0.254/24"],
            mtu_bytes=1400,
            listen=[
                ListenerStatus(address="127.0.0.1:8080", refusals={"unknown-path": 3}),
                ListenerStatus(address="[::1]:8080", refusals={"unknown-path": 1}),
            ],
            path="/tun1",
            device_drops={"no-route": 12, "not-ipv4": 3},
            refusals={"bad-token": 17},
            restarts=1,
            last_error="corp0 is gone",
            peers=[
                PeerStatus(
                    name="branch-a",
                    state="connected",
                    endpoint="198.51.100.7:51234",
                    transport="http",
                    extended=True,
                    agent="tapotun-trio/0.1.0",
                    addresses=["10.50.0.2"],
                    routes=[f"10.60.{i}.0/24" for i in range(12)],
                    sources=["192.168.100.10"],
                    connected_since=before(hours=2, minutes=5),
                    last_frame_at=before(seconds=1),
                    rx_packets=1_234_567,
                    rx_bytes=1_299_000_000,
                    tx_packets=1,
                    tx_bytes=3_565_158,
                    rates=RateStatus(rx_bits_per_s=93_100_000.0, tx_bits_per_s=1234.0),
                    rtt=RoundTripStatus(last_ms=12.34, smoothed_ms=1300.5, min_ms=11.9),
                    outbox=OutboxStatus(bytes=65_550, packets=45),
                    drops={"queue-age": 2, "codel": 40},
                    stream_ends={"broken": 3, "silent": 1},
                    reconnects=4,
                ),
                PeerStatus(name="branch-b", state="offline", addresses=["10.50.0.3"], routes=["10.70.0.0/24"]),
            ],
        ),
        InterfaceStatus(
            name="tun0",
            kind="client",
            state="failed",
            since=before(seconds=9),
            restarts=2,
            last_error="tun0: the name is taken",
            transport_conflicts=[
                TransportConflictStatus(
                    route="203.0.113.0/24",
                    address="203.0.113.10",
                    action="excepted",
                    host_route="203.0.113.10 via 192.0.2.1 dev eth0",
                )
            ],
            left_out=[
                LeftOutStatus(route="10.60.1.0/24", reason="attached", network="10.60.0.0/16", device="eth1"),
                LeftOutStatus(route="10.10.0.0/24", reason="tunnel-network", network="10.10.0.0/24", device="eth1"),
                LeftOutStatus(route="127.0.0.0/8", reason="martian"),
            ],
            peers=[],
        ),
    ],
)

PAGE: Final = """\
tapotun 0.1.0 hub, pid 4242, up for 3 d 4 h, /etc/tapotun/hub.json

interface: corp0
  state:      server, up for 3 d 4 h
  addresses:  10.50.0.1/24, 10.50.0.254/24, MTU 1400
  listening:  127.0.0.1:8080 /tun1, [::1]:8080 /tun1
  dropped:    12 no-route, 3 not-ipv4
  refused:    17 bad-token, 4 unknown-path
  restarts:   1, the last because of: corp0 is gone

  peer: branch-a
    state:      connected for 2 h 5 min, reconnected 4 times
    endpoint:   198.51.100.7:51234 over HTTP, tapotun-trio/0.1.0
    addresses:  10.50.0.2
    routes:     10.60.0.0/24, 10.60.1.0/24, 10.60.2.0/24, 10.60.3.0/24,
                10.60.4.0/24, 10.60.5.0/24, 10.60.6.0/24, 10.60.7.0/24,
                and 4 more
    sources:    192.168.100.10
    last heard: 1 s ago
    received:   1.21 GiB in 1234567 packets, now 93.1 Mbit/s
    sent:       3.40 MiB in 1 packet, now 1.23 kbit/s
    round trip: 12.3 ms, mean 1.3 s, min 11.9 ms
    waiting:    64.0 KiB in 45 packets
    dropped:    40 codel, 2 queue-age
    ended:      3 broken, 1 silent

  peer: branch-b
    state:      offline
    addresses:  10.50.0.3
    routes:     10.70.0.0/24

interface: tun0
  state:      client, failed for 9 s
  why:        tun0: the name is taken
  transport:  route 203.0.113.0/24 covers 203.0.113.10: its own connections use
              host route 203.0.113.10 via 192.0.2.1 dev eth0
  left out:   pushed route 10.60.1.0/24: eth1 attaches this machine to
              10.60.0.0/16, which wins
  left out:   the tunnel's network 10.10.0.0/24: eth1 attaches this machine to
              10.10.0.0/24, which wins; the server's net should be another
  left out:   pushed route 127.0.0.0/8: no packet is ever routed there; remove
              it from the server's config
"""


def test_the_page_at_80_columns() -> None:
    assert render([HUB], NOW) == PAGE
    assert max(map(len, PAGE.splitlines())) <= 80


def test_colours_change_no_column() -> None:
    coloured = render([HUB], NOW, colour=True)
    assert ANSI.sub("", coloured) == PAGE
    assert "\x1b[32mcorp0\x1b[0m" in coloured
    assert "\x1b" not in PAGE


def test_several_processes() -> None:
    page = render([HUB, HUB], NOW)
    assert page == f"{PAGE}\n{PAGE}"
    assert render([], NOW) == ""


HOSTILE: Final = "\x1b[2J\x1b]0;owned\x07\r\nroot@host:~# \u202e\ud800" + "漢" * 90


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_whatever_they_call_themselves(width: int) -> None:
    peer = PeerStatus(
        name=HOSTILE,
        state="connected",
        endpoint=HOSTILE,
        agent=HOSTILE,
        routes=[HOSTILE] * 20,
        drops={HOSTILE: 1},
        connected_since=NOW + timedelta(hours=1),
    )
    interface = InterfaceStatus(
        name=HOSTILE, kind="client", state="failed", since=NOW, last_error=HOSTILE, addresses=[HOSTILE], peers=[peer]
    )
    process = ProcessStatus(
        version=HOSTILE,
        pid=-1,
        name=HOSTILE,
        config_file=HOSTILE,
        started_at=NOW,
        interfaces=[interface],
        last_reload=ReloadStatus(at=NOW, error=HOSTILE),
    )
    lines = render([process], NOW, width=width).split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(map(columns, lines)) <= max(width, MIN_WIDTH)
    assert len(lines) < 60
    render([process], NOW, width=width).encode()


def test_an_error_is_told_to_its_end() -> None:
    """Which says what to do. It may be longer than a line, and have longer words."""
    why = "cannot create TUN interface tun0: the name is taken; stop that process, or choose another name"
    errors = f"hub.json: [0].net: 10.10.0.1 is no network; write 10.10.0.1/24; [1].{'x' * 90}: is not known"
    interface = InterfaceStatus(name="tun0", kind="client", state="failed", since=NOW, last_error=why)
    process = ProcessStatus(
        version="0.1.0",
        pid=7,
        name="hub",
        config_file="/hub.json",
        started_at=NOW,
        last_reload=ReloadStatus(at=before(minutes=3), error=errors),
        interfaces=[interface],
    )
    assert render([process], NOW).splitlines() == [
        "tapotun 0.1.0 hub, pid 7, up for 0 s, /hub.json",
        "reload:     refused 3 min ago, the old config stays in use: hub.json: [0].net:",
        "            10.10.0.1 is no network; write 10.10.0.1/24;",
        "            [1].xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "            xxxxxxxxxxxxxxxxxxxxxxxxxx: is not known",
        "",
        "interface: tun0",
        "  state:      client, failed for 0 s",
        "  why:        cannot create TUN interface tun0: the name is taken; stop that",
        "              process, or choose another name",
    ]
    good = msgspec.structs.replace(process, last_reload=ReloadStatus(at=before(minutes=3), changes=["tun0: added"]))
    assert "reload" not in render([good], NOW)


def test_a_long_path_keeps_its_end() -> None:
    process = ProcessStatus(
        version="0.1.0", pid=7, name="7", config_file="/very/long" * 20 + "/hub.json", started_at=NOW
    )
    (line,) = render([process], NOW).splitlines()
    assert line.startswith("tapotun 0.1.0, pid 7, up for 0 s, …")
    assert line.endswith("/hub.json")
    assert len(line) == 80


@table(
    "seconds said",
    ("now", 0, "0 s"),
    ("the future", -5, "0 s"),
    ("a minute", 60, "1 min"),
    ("more", 61, "1 min 1 s"),
    ("hours", 3 * 3600 + 59, "3 h"),
    ("days", 86400 * 400 + 3600, "400 d 1 h"),
)
def test_ago(seconds: int, said: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == said


@table(
    "amount said",
    ("none", 0, "0 B"),
    ("just below", 1023, "1023 B"),
    ("one", 1024, "1.00 KiB"),
    ("rounded up", 1024 * 1024 - 1, "1.00 MiB"),
    ("tens", 10 * 1024, "10.0 KiB"),
    ("hundreds", 1000 * 1024, "1000 KiB"),
    ("a uint64", 2**64 - 1, "16.0 EiB"),
)
def test_size(amount: int, said: str) -> None:
    assert size(amount) == said


def test_rate() -> None:
    assert [rate(it) for it in (0, 999, 1000, 6.5e9, 1e16)] == [
        "0 bit/s",
        "999 bit/s",
        "1.00 kbit/s",
        "6.50 Gbit/s",
        "10000 Tbit/s",
    ]


@given(st.text(max_size=60), st.integers(1, 50))
def test_fit(text: str, limit: int) -> None:
    fitted = fit(text, limit)
    assert columns(fitted) <= limit
    assert fitted == text or (fitted.endswith("…") and text.startswith(fitted[:-1]))


# ------------------------------------------------------------------ many peers


def peer(name: str, state: PeerState = "connected", **fields: Any) -> PeerStatus:
    settings = {"endpoint": "198.51.100.7:51234", "transport": "http", "last_frame_at": before(seconds=2)}
    return PeerStatus(name=name, state=state, **{**settings, **fields})


def hub(peers: list[PeerStatus]) -> ProcessStatus:
    interface = InterfaceStatus(name="hub", kind="server", state="up", since=NOW, peers=peers)
    return ProcessStatus(
        version="0.1.0", pid=7, name="7", config_file="/hub.json", started_at=NOW, interfaces=[interface]
    )


def rows_of(page: str) -> list[str]:
    """The names in the table, from the top."""
    lines = page.splitlines()
    (title,) = [at for at, line in enumerate(lines) if line.startswith("  PEER ")]
    return [line.split()[0] for line in lines[title + 1 :]]


def test_many_peers_are_a_line_each_with_trouble_first() -> None:
    peers = [peer(f"b{at:03}", connected_since=before(hours=at)) for at in range(200)]
    peers[17] = peer("b017", "offline")
    peers[23] = peer("b023", "connecting")
    peers[42] = peer("b042", "replaced")
    peers[50] = peer("b050", last_frame_at=before(minutes=3))
    peers[60] = peer("b060", outbox=OutboxStatus(bytes=9, packets=1))
    peers[99] = PeerStatus(name="b099", state="offline")  # has never been there
    page = render([hub(peers)], NOW)
    names = rows_of(page)
    assert names[:6] == ["b042", "b023", "b017", "b050", "b060", "b000"]
    assert names[-1] == "b099"
    assert sorted(names) == [f"b{at:03}" for at in range(200)]
    assert len(page.splitlines()) < 210
    assert "200, 1 replaced, 1 connecting, 2 offline, 196 connected" in page
    assert "tapotun status --full has all about each" in page
    full = render([hub(peers)], NOW, full=True)
    assert full.count("  peer: ") == 200
    assert "PEER" not in full
    assert len(full.splitlines()) > 1000


@pytest.mark.parametrize("width", [1, 40, 60, 80, 132])
def test_the_table_fits(width: int) -> None:
    """Names that are long, wide, blank, or would draw over their neighbours; the columns stay in line."""
    names = ["a" * 64, "漢" * 64, "\u3164", "\u2800", "a" + "\u0301" * 63, "\u0301", "\ufdfd" * 64, HOSTILE, "", "b"]
    peers = [peer(name, rates=RateStatus(rx_bits_per_s=9.99e8), reconnects=12345678) for name in names]
    page = render([hub(peers)], NOW, width=width, rows=5)
    lines = page.splitlines()
    assert max(map(columns, lines)) <= max(width, MIN_WIDTH)
    (title,) = [at for at, line in enumerate(lines) if line.startswith("  PEER ")]
    column = lines[title].index("STATE")
    for line in lines[title + 1 :]:
        assert line == one_line(line)
        cut = next(at for at in range(len(line)) if columns(line[:at]) == column and line[at:].startswith("connected"))
        assert line[:cut].endswith(" ")
    plain = render([hub(peers)], NOW, width=width, rows=5, colour=True)
    assert ANSI.sub("", plain) == page


@table(
    "count rows table_",
    ("few where there is no terminal", 6, None, False),
    ("many where there is none", 20, None, True),
    ("less than a screen", 3, 40, False),
    ("more than a screen", 5, 24, True),
    ("one, on a low screen", 1, 3, False),
)
def test_when_it_is_a_table(count: int, rows: int | None, table_: bool) -> None:
    page = render([hub([peer(f"b{at}") for at in range(count)])], NOW, rows=rows)
    assert ("  PEER " in page) is table_
    assert ("  peer: " in page) is not table_


@table(
    "transport tls said",
    ("http", "http", None, "over HTTP,"),
    ("https", "http", "TLS 1.3", "over HTTPS (TLS 1.3),"),
    ("a WebSocket", "websocket", None, "over a WebSocket,"),
    ("a WebSocket over TLS", "websocket", "TLS 1.2", "over a WebSocket (TLS 1.2),"),
)
def test_over_what(transport: str, tls: str | None, said: str) -> None:
    assert said in render([hub([peer("b", transport=transport, tls=tls)])], NOW)


@table(
    "tls encrypted said",
    ("a client's TLS", "TLS 1.3", True, "over HTTPS (TLS 1.3), extended\n"),
    ("a proxy's word", None, True, "over HTTP, extended, encrypted up to its proxy\n"),
    ("none", None, False, "over HTTP, extended, not encrypted\n"),
    ("not known", None, None, "over HTTP, extended\n"),
)
def test_whether_it_is_encrypted(tls: str | None, encrypted: bool | None, said: str) -> None:
    shown = peer("b", endpoint="192.0.2.2:4711", agent=None, extended=True, tls=tls, encrypted=encrypted)
    assert said in render([hub([shown])], NOW)


@table(
    "addresses ipv6 said",
    ("agreed on", ["10.50.0.2", "fd00:50::2"], True, "extended, carries IPv6\n"),
    ("its server", [], True, "extended, carries IPv6\n"),
    ("it has an address for it", ["fd00:50::2"], False, "extended, without IPv6\n"),
    ("it does not need it", ["10.50.0.2"], False, "extended\n"),
    ("not known", ["fd00:50::2"], None, "extended\n"),
)
def test_whether_it_carries_ipv6(addresses: list[str], ipv6: bool | None, said: str) -> None:
    shown = peer("b", endpoint="192.0.2.2:4711", agent=None, extended=True, ipv6=ipv6, addresses=addresses)
    assert said in render([hub([shown])], NOW)


def test_why_an_interface_is_not_up() -> None:
    interface = InterfaceStatus(
        name="tun0",
        kind="client",
        state="connecting",
        since=NOW,
        problem="download: cannot connect to 192.0.2.1",
    )
    process = ProcessStatus(
        version="0.1.0", pid=7, name="7", config_file="/c.json", started_at=NOW, interfaces=[interface]
    )
    assert "  why:        download: cannot connect to 192.0.2.1\n" in render([process], NOW)


def test_a_tap_interface() -> None:
    """What it is, and where it is plugged in; that it has no address is no mistake."""
    mac = "02:00:5e:10:00:01"
    tap = InterfaceStatus(
        name="seg0", kind="client", state="up", since=before(minutes=1), device="tap", mac=mac, bridge="br0",
        mtu_bytes=1500,
    )  # fmt: skip
    lines = render([msgspec.structs.replace(HUB, interfaces=[tap])], NOW).splitlines()
    assert lines[-3:] == [
        "  state:      client, up for 1 min",
        f"  device:     TAP {mac}, port of bridge br0",
        "  addresses:  none, MTU 1500",
    ]
    plain = msgspec.structs.replace(tap, mac=None, bridge=None, mtu_bytes=None)
    lines = render([msgspec.structs.replace(HUB, interfaces=[plain])], NOW).splitlines()
    assert lines[-2:] == ["  state:      client, up for 1 min", "  device:     TAP"]


def test_refused_routes() -> None:
    refused = {f"10.{at}.0.0/16": "File exists" for at in range(10)}
    page = render([hub([peer("b", routes=["10.99.0.0/16"], refused_routes=refused)])], NOW)
    assert "    routes:     10.99.0.0/16\n" in page
    assert "    refused:    10.0.0.0/16, by the kernel of this machine: File exists\n" in page
    assert "and 2 more routes" in page


# ------------------------------------------------------------------ what cannot be seen


@table(
    "text shown",
    ("ASCII", "branch-a", "branch-a"),
    ("letters", "Büro München", "Büro München"),
    ("a combining mark", "e\u0301", "e\u0301"),
    ("Thai, two marks", "ที่", "ที่"),
    ("Hindi", "हिन्दी", "हिन्दी"),
    ("wide", "東京", "東京"),
    ("three marks", "e\u0301\u0302\u0303", "e\u0301\u0302\\u0303"),
    ("a mark alone", "\u0301", "\\u0301"),
    ("a mark on a space", "a \u0301", "a \\u0301"),
    ("an enclosing mark", "a\u20dd", "a\\u20dd"),
    ("Hangul fillers", "\u3164\u115f\u1160\uffa0", "\\u3164\\u115f\\u1160\\uffa0"),
    ("Braille without dots", "\u2800", "\\u2800"),
    ("a joiner", "a\u034fb", "a\\u034fb"),
    ("of many columns", "\ufdfd", "\\ufdfd"),
    ("of many columns, cuneiform", "\U0001242b", "\\U0001242b"),
    ("a tab", "a\tb", "a\\u0009b"),
    ("an override", "\u202e", "\\u202e"),
    ("DEL", "\x7f", "\\u007f"),
    ("a tag", "\U000e0041", "\\U000e0041"),
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown
    assert one_line(shown) == shown


def with_update(*, width: int = 200, **fields: Any) -> str:
    """The lines about updates, with the rest of the page cut off."""
    update = UpdateStatus(**{"mode": "apply", "channel": "stable", "installation": "pyz", **fields})
    page = render([msgspec.structs.replace(HUB, interfaces=[], update=update)], NOW, width=width)
    return page.partition("\n")[2]


def test_updates() -> None:
    assert with_update() == ""
    assert with_update(checked_at=before(hours=2)) == "update:     up to date 2 h ago\n"
    there: dict[str, Any] = {
        "available": "0.3.0",
        "command": "/opt/tapotun.pyz update --install x.json",
        "checked_at": before(hours=2),
    }
    assert with_update(**there) == "update:     0.3.0 is available; /opt/tapotun.pyz update --install x.json\n"
    refused = "update:     0.3.0 is available; it did not start here, and is not installed again\n"
    assert with_update(**there, refused=["0.2.9", "0.3.0"]) == refused
    kept: dict[str, Any] = {"downloaded": "/var/lib/tapotun/tapotun.pyz", "downloaded_version": "0.3.0"}
    assert "0.3.0 is available, and lies in /var/lib/tapotun/tapotun.pyz; /opt" in with_update(**there, **kept)
    assert with_update(**there, width=80) == (
        "update:     0.3.0 is available; /opt/tapotun.pyz update --install x.json\n"
    )
    assert with_update(available="0.3.0", checked_at=NOW) == "update:     0.3.0 is available\n"
    lines = with_update(obstacle="the disk is read-only", error="no answer").splitlines()
    assert lines == ["update:     only reported: the disk is read-only", "update:     the last check failed: no answer"]


@pytest.mark.parametrize("width", [1, 40, 60])
def test_the_command_for_an_update_can_be_copied(width: int) -> None:
    command = "/opt/tapotun/tapotun.pyz update --install '/etc/tapotun/the office.json' # \x1b[2J"
    lines = with_update(width=width, available="0.3.0", command=command).splitlines()
    assert lines == ["update:     0.3.0 is available:", f"  {one_line(command)}"]
    kept: dict[str, Any] = {"downloaded": "/var/lib/tapotun/tapotun.pyz", "downloaded_version": "0.3.0"}
    lines = with_update(width=width, available="0.3.0", command=command, **kept).splitlines()
    assert lines[-1] == f"  {one_line(command)}"
    said = "".join("".join(lines[:-1]).split())  # wrapped within 40 columns
    assert said == "update:0.3.0isavailable,andliesin/var/lib/tapotun/tapotun.pyz:"
