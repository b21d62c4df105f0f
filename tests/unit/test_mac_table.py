"""`tapotun status --macs`: the table of a switch, as text and as JSON, at the control socket and in the API."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from tapotun_trio import exit_codes
from tapotun_trio.admin.api import SHOWN_MACS
from tapotun_trio.control.protocol import MAX_MACS, MacsArguments, MacsReport, decode_arguments
from tapotun_trio.cooperative import run_now
from tapotun_trio.errors import PeerError
from tapotun_trio.lifecycle.interface import mac_of_server
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.lifecycle.snapshot import snapshot_in_steps
from tapotun_trio.macs import BROADCAST, is_station, mac_text
from tapotun_trio.status.mac_table import render_macs
from tapotun_trio.status.macs import MacStatus, MacTableStatus
from tapotun_trio.status.model import InterfaceStatus, PeerStatus
from tapotun_trio.status.render import columns, render

from . import admin
from .support import client_config
from .test_render import HUB, NOW
from .test_segment import CLIENTS, OWN, A, B, World, ether, mac, tap, world
from .test_subcommands import asked, call
from .test_subcommands import run_directory as run_directory  # a fixture

TABLE = MacTableStatus(
    interface="corp0",
    total=4,
    macs=[
        MacStatus(mac="02:aa:00:00:00:03", client="branch-b", age_s=75.4),
        MacStatus(mac="02:aa:00:00:00:02", client="branch-a", pinned=True),
        MacStatus(mac="02:aa:00:00:00:01", client="branch-a", age_s=3.0, pinned=True),
        MacStatus(mac="02:00:00:00:00:01", pinned=True),
    ],
)


def test_the_text() -> None:
    assert render_macs([TABLE]) == (
        "interface: corp0, 4 MAC addresses\n"
        "  02:00:00:00:00:01  (the server's side)                    this server\n"
        "  02:aa:00:00:00:01  branch-a                               pinned, 3 s ago\n"
        "  02:aa:00:00:00:02  branch-a                               pinned\n"
        "  02:aa:00:00:00:03  branch-b                               1 min 15 s ago\n"
    )


def test_an_age_is_never_cut() -> None:
    """The server's bridge, and a pinned address, are the rows with the most to say."""
    bridge = MacStatus(mac="02:00:00:00:00:02", age_s=83025.0, pinned=True)
    pinned = MacStatus(mac="02:aa:00:00:00:01", client="branch-a" * 10, age_s=3599.0, pinned=True)
    text = render_macs([msgspec.structs.replace(TABLE, macs=[bridge, pinned])])
    assert text.splitlines()[1:3] == [
        "  02:00:00:00:00:02  (the server's side)             this server, 23 h 3 min ago",
        "  02:aa:00:00:00:01  branch-abranch-abranch-abranc…  pinned, 59 min 59 s ago",
    ]


def test_a_part_of_a_large_table() -> None:
    text = render_macs([msgspec.structs.replace(TABLE, total=2000), msgspec.structs.replace(TABLE, interface="corp1")])
    assert "corp0, 2000 MAC addresses" in text
    assert "  and 1996 more\n\ninterface: corp1" in text
    assert render_macs([]) == ""
    assert render_macs([MacTableStatus(interface="x", total=1)]).startswith("interface: x, 1 MAC address\n")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_too_wide_and_nothing_reaches_the_terminal_raw(width: int) -> None:
    hostile = MacStatus(mac="\x1b[2J" * 20, client="\x1b]0;x\x07" + "名" * 100, age_s=1e12)
    text = render_macs([MacTableStatus(interface="\x1b[31m" * 50, total=1, macs=[hostile])], width=width)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert all(columns(line) <= width for line in text.splitlines())


def test_the_arguments_are_bounded() -> None:
    assert decode_arguments(msgspec.Raw(b"{}"), MacsArguments).limit == MAX_MACS
    for limit in (0, MAX_MACS + 1, -5):
        with pytest.raises(PeerError):
            decode_arguments(msgspec.Raw(json.dumps({"limit": limit}).encode()), MacsArguments)


def test_the_status_has_the_size_of_the_table() -> None:
    peer = PeerStatus(name="branch-a", state="connected", endpoint="branch-a.example:5", transport="http", macs=3)
    server = InterfaceStatus(
        name="corp0",
        kind="server",
        state="up",
        since=HUB.started_at,
        device="tap",
        macs=4,
        flooded_packets=1,
        peers=[peer],
    )
    text = render([msgspec.structs.replace(HUB, interfaces=[server])], NOW)
    assert "  switch:     4 MAC addresses, 1 packet flooded\n" in text
    assert "    switch:     3 MAC addresses\n" in text
    assert "switch" not in render([HUB], NOW)


# ------------------------------------------------------------------ of a running server


def registry_of(it: World) -> Registry:
    registry = Registry()
    registry._records["hub"] = it.record
    return registry


class Running:
    """What `asked` needs of a world."""

    def __init__(self, it: World) -> None:
        self.registry = registry_of(it)


async def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    clients = CLIENTS[0], replace(CLIENTS[1], macs=(B,))
    async with world(*clients) as it, asked(Running(it)):  # type: ignore[arg-type]
        a = await it.join("a")
        await a.send(ether(BROADCAST, A))
        await it.hub.receive()
        assert await call("status", "--macs") == exit_codes.OK
        out, err = capsys.readouterr()
        assert err == ""
        head, *lines = out.splitlines()
        assert head == "interface: hub, 3 MAC addresses"
        assert [line.split()[0] for line in lines] == [mac_text(OWN), mac_text(A), mac_text(B)]
        assert [line.split()[-1] for line in lines] == ["server", "ago", "pinned"]

        assert await call("status", "--macs", "--json", "hub") == exit_codes.OK
        report = msgspec.json.decode(capsys.readouterr().out, type=MacsReport, strict=True)
        [process] = report.processes
        assert process.name == "office"
        [one] = process.interfaces
        assert (one.interface, one.total, len(one.macs)) == ("hub", 3, 3)
        assert {(it.mac, it.client, it.pinned) for it in one.macs} == {
            (mac_text(OWN), None, True),
            (mac_text(A), "a", False),
            (mac_text(B), "b", True),
        }

        assert await call("status", "--macs", "nope") == exit_codes.FAILED
        assert "there is no server nope with a TAP interface; running: hub" in capsys.readouterr().err


async def test_the_command_where_there_is_no_such_interface(capsys: pytest.CaptureFixture[str]) -> None:
    class Client:
        registry = Registry()

    Client.registry.add(client_config("a", 1))
    async with asked(Client()):  # type: ignore[arg-type]
        assert await call("status", "--macs") == exit_codes.FAILED
        assert 'no server with a TAP interface ("device": "tap") runs here' in capsys.readouterr().err


async def test_status_and_api() -> None:
    async with world(storm_limit=1_000_000) as it, admin.opened(lambda: admin.World(registry=registry_of(it))) as page:
        a = await it.join("a")
        for part in range(3):
            await a.send(*(ether(BROADCAST, mac(1000 * part + n)) for n in range(500)))
        for _ in range(1500):
            await it.hub.receive()
        [interface] = run_now(snapshot_in_steps([it.record]))
        assert (interface.device, interface.macs, interface.flooded_packets) == ("tap", 1025, 0)
        assert [(peer.macs, peer.flooded_packets) for peer in interface.peers] == [(1024, 1500), (0, 0), (0, 0)]
        for status in (interface, interface.peers[0]):
            assert (status.macs_learned, status.macs_moved, status.macs_evicted) == (1500, 0, 476)
        assert (await page.ask("GET", "/api/macs")).status == 401
        answer = await page.ask("GET", "/api/macs", admin.BEARER)
        [table] = answer.json["interfaces"]
        assert (table["interface"], table["total"], len(table["macs"])) == ("hub", 1025, SHOWN_MACS)
        metrics = (await page.ask("GET", "/metrics", admin.BEARER)).body.decode()
        assert 'tapotun_interface_macs{interface="hub",kind="server"} 1025.0' in metrics
        flooded = [line for line in metrics.splitlines() if line.startswith("tapotun_client_flooded_packets_total{")]
        assert [line.split()[-1] for line in flooded if 'client="a"' in line] == ["1500.0"]


async def test_the_table_goes_with_the_interface() -> None:
    async with world() as it:
        assert it.record.mac_table is not None
        it.record.failed("gone")
        assert it.record.mac_table is None


# ------------------------------------------------------------------ the interface's own


def test_the_address_of_the_interface() -> None:
    config = replace(tap(1, *CLIENTS), mac=None)
    derived = mac_of_server(config)
    assert derived is not None
    assert is_station(derived)
    assert derived == mac_of_server(config), "the same at each start"
    other = replace(CLIENTS[0], token=CLIENTS[1].token)
    assert derived != mac_of_server(replace(config, clients=(other,))), "a copy of the machine with another token"
    assert derived != mac_of_server(replace(config, name="hub2"))
    assert derived == mac_of_server(replace(config, clients=CLIENTS[:1])), "further clients do not change it"
    assert mac_of_server(replace(config, mac=OWN)) == OWN
    assert mac_of_server(replace(config, device="tun")) is None
