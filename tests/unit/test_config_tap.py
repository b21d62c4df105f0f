"""TAP interfaces in the config: what they become, what is refused where, and what a reload does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.diff import changes
from tapotun_trio.config.load import check_content
from tapotun_trio.config.model import Bridge, ClientConfig, InterfaceConfig, ServerConfig, UnixAddress
from tapotun_trio.config.parsers import parse_mac
from tapotun_trio.config.schema import schema
from tapotun_trio.macs import is_station, mac_text

from ..twins import both_families
from .test_config_load import Json, accept, accept_client, accept_server, allowed, client, load_entries, server, sha1
from .test_config_properties import patient

Family = Callable[[Any], Any]  # see `tests.twins`

B: Final = sha1("b")
MAC: Final = "02:00:5e:10:00:01"
OTHER_MAC: Final = "02:00:5e:10:00:02"
ADD_NET: Final = 'add one to "net", as in ["10.10.0.1/24", "fd00:10::1/64"]'


def tap(**changes: Any) -> Json:
    """A TAP server without addresses, with these changes; a field given as ... is left out."""
    return server(**{"name": "tap0", "device": "tap", "net": ..., "clients": [allowed(ip=...)], **changes})


def tap_client(**changes: Any) -> Json:
    """A client that insists on a TAP interface, with these changes."""
    return client(**{"name": "tap1", "device": "tap", **changes})


def two(first: Json | None = None, /, **changes: Any) -> Json:
    """A TAP server whose two clients have no address and these changes."""
    return tap(clients=[allowed(ip=..., **(first or {})), allowed(**{"token": B, "ip": ..., **changes})])


# ------------------------------------------------------------------ values


def test_a_segment_needs_no_address() -> None:
    found = accept(tap())
    assert isinstance(found, ServerConfig)
    assert (found.device, found.nets, found.own_addresses) == ("tap", (), ())
    assert (found.bridge, found.mac, found.isolate, found.arp_guard) == (None, None, False, False)
    assert (found.bpdu, found.storm_limit) == ("drop", 2000)
    [one] = found.clients
    assert (one.name, one.addresses, one.macs) == ("client 1", (), ())


@both_families
def test_a_server_with_every_field_of_a_segment(family: Family) -> None:
    options = {"name": "br0", "create": True, "isolated": True, "learning": False, "bpdu_guard": True}
    addresses = family({"net": "10.10.0.1/24", "ips": ["10.10.0.9"], "push_dns": ["10.10.0.1"]})
    found = accept(
        tap(
            **addresses,
            mtu=65513,
            bridge=options,
            mac="02-00-5E-10-00-0A",
            macs=["02-00-5E-10-00-0B"],
            isolate=True,
            arp_guard=True,
            bpdu="drop",
            storm_limit=1_000_000,
            clients=[allowed(ip=family("10.10.0.2"), macs=[MAC, "02-00-5E-10-00-02"])],
        )
    )
    assert isinstance(found, ServerConfig)
    assert found.nets == (ip_interface(family("10.10.0.1/24")),)
    assert found.bridge == Bridge("br0", create=True, isolated=True, learning=False, bpdu_guard=True)
    assert (found.mac, found.macs) == (bytes.fromhex("02005e10000a"), (bytes.fromhex("02005e10000b"),))
    assert (found.isolate, found.arp_guard, found.bpdu, found.storm_limit) == (True, True, "drop", 1_000_000)
    assert found.clients[0].addresses == (ip_address(family("10.10.0.2")),)
    assert found.clients[0].macs == (bytes.fromhex("02005e100001"), bytes.fromhex("02005e100002"))
    assert found.mtu == 65513


def test_a_server_on_a_unix_socket_needs_neither_port_nor_net() -> None:
    found = accept(tap(port=..., listen="unix:/run/t.sock"))
    assert isinstance(found, ServerConfig)
    assert found.listen == (UnixAddress("/run/t.sock"),)


def test_a_name_of_a_bridge_is_a_bridge_with_the_defaults() -> None:
    for bridge in ("br0", {"name": "br0"}):
        found = accept(tap(bridge=bridge))
        assert isinstance(found, ServerConfig)
        assert found.bridge == Bridge("br0", create=False, isolated=False, learning=True, bpdu_guard=False)


def test_a_client_that_insists() -> None:
    found = accept(tap_client(bridge={"name": "br0", "create": True}, mac=MAC, transport_mark=3))
    assert isinstance(found, ClientConfig)
    assert (found.device, found.bridge) == ("tap", Bridge("br0", create=True))
    assert (found.mac, found.transport_mark) == (bytes.fromhex("02005e100001"), 3)
    assert accept_client().device is None
    assert accept_client(device="tun", mark={"value": 1, "table": 101}).device == "tun"


def test_what_has_no_use_for_the_kind_may_be_an_empty_list() -> None:
    """Templates write them."""
    empty: Json = {"routes": [], "push_routes": []}
    assert accept(tap(**empty, clients=[allowed(ip=..., routes=[], sources=[])])) == accept(tap())
    assert accept_server(clients=[allowed(macs=[])]) == accept_server()
    assert accept_server(device="tun") == accept_server()


@both_families
def test_how_a_client_without_a_name_is_called(family: Family) -> None:
    clients = [
        allowed(ip=family("10.10.0.2"), macs=[MAC]),
        allowed(token=B, ip=..., macs=[OTHER_MAC]),
        allowed(token=sha1("c"), ip=...),
        allowed(token=sha1("d"), ip=..., name="d", macs=["02:00:5e:10:00:04"]),
    ]
    found = accept(tap(net=family("10.10.0.1/24"), clients=clients))
    assert isinstance(found, ServerConfig)
    assert [each.name for each in found.clients] == [family("10.10.0.2"), OTHER_MAC, "client 3", "d"]


def test_two_interfaces_may_have_one_bridge() -> None:
    """One of them may make it."""
    first, second = tap(bridge={"name": "br0", "create": True}), tap_client(bridge="br0")
    assert load_entries(first, second)[1] == []
    assert load_entries(tap(bridge="br0"), second)[1] == []


def test_both_ends_in_one_file() -> None:
    """The MAC address that is pinned at the server is the client's own."""
    assert load_entries(two(macs=[MAC]), tap_client(mac=MAC))[1] == []


def test_two_servers_may_know_the_same_mac() -> None:
    assert load_entries(two(macs=[MAC]), {**two(macs=[MAC]), "name": "tap2", "port": 81})[1] == []


def test_a_thousand_pinned_macs() -> None:
    macs = [mac_text(bytes.fromhex(f"02005e10{n:04x}")) for n in range(1024)]
    found = accept(two(macs=macs))
    assert isinstance(found, ServerConfig)
    assert list(map(mac_text, found.clients[1].macs)) == macs


# ------------------------------------------------------------------ findings

NOT_ROUTED: Final = "is not for a TAP interface: Ethernet frames are forwarded by their MAC addresses, not routed"
TAP_ONLY: Final = 'is for a TAP interface only; set "device": "tap", or remove it'
OWN_ROUTES: Final = "remove it; the machines in the segment have routes of their own"
OWN_MARK: Final = "remove it; a rule and a route of your own can send marked packets to a gateway in the segment"
MARK: Final = {"value": 1, "table": 101}
NO_MAC: Final = f'is not a MAC address; write one such as "{MAC}"'
ONE_STATION: Final = f'write the address of one station, such as "{MAC}"'

ONE_FINDING: Final[list[tuple[Sequence[object], str]]] = [
    # --- device ---
    ([tap(device="tab")], '[0].device: "tab" is not one of the choices; write "tap" or "tun"'),
    ([server(device=5)], '[0].device: 5 is not one of the choices; write "tap" or "tun"'),
    ([tap_client(device="TAP")], '[0].device: "TAP" is not one of the choices; write "tap" or "tun"'),
    ([tap_client(device=None, bridge="br0")], '[0].device: null is not one of the choices; write "tap" or "tun"'),
    # --- what only one kind has ---
    ([server(net=...)], '[0].net: is missing; add "net": "10.10.0.1/24"'),
    ([server(device="tun", net=...)], '[0].net: is missing; add "net": "10.10.0.1/24"'),
    ([server(clients=[allowed(ip=...)])], '[0].clients[0].ip: is missing; add "ip": "10.10.0.2"'),
    ([{"name": "tun0", "listen": "unix:/a", "clients": [allowed()]}], '[0].net: is missing; add "net": "10.10.0.1/24"'),
    *(
        ([server(**{field: value})], f"[0].{field}: {TAP_ONLY}")
        for field, value in (("bridge", "br0"), ("bridge", {"name": "br 0"}), ("mac", MAC), ("mac", "wrong"),
                             ("isolate", True), ("isolate", False), ("arp_guard", True), ("bpdu", "forward"),
                             ("storm_limit", 100), ("macs", [MAC]), ("macs", ["wrong"]))
    ),
    ([server(device="tun", mac=MAC)], f"[0].mac: {TAP_ONLY}"),
    ([server(clients=[allowed(macs=[MAC])])], f"[0].clients[0].macs: {TAP_ONLY}"),
    ([server(clients=[allowed(macs=["wrong"])])], f"[0].clients[0].macs: {TAP_ONLY}"),
    ([client(bridge="br0")], f"[0].bridge: {TAP_ONLY}"),
    ([client(mac=MAC)], f"[0].mac: {TAP_ONLY}"),
    ([client(device="tun", mac=MAC)], f"[0].mac: {TAP_ONLY}"),
    ([tap(routes=["10.60.0.0/24"])], f"[0].routes: {NOT_ROUTED}; {OWN_ROUTES}"),
    ([tap(routes=["fd00:60::/64", "no network"])], f"[0].routes: {NOT_ROUTED}; {OWN_ROUTES}"),
    ([tap(push_routes=["10.60.0.0/24"])], f"[0].push_routes: {NOT_ROUTED}; {OWN_ROUTES}, by DHCP for example"),
    ([tap(push_routes=["fd00:60::/64"])], f"[0].push_routes: {NOT_ROUTED}; {OWN_ROUTES}, by DHCP for example"),
    ([tap(mark=MARK)], f"[0].mark: {NOT_ROUTED}; {OWN_MARK}"),
    ([tap(mark={"value": 0, "table": 254})], f"[0].mark: {NOT_ROUTED}; {OWN_MARK}"),
    *(([tap(install_routes=value)], f"[0].install_routes: {NOT_ROUTED}; remove it") for value in (True, False)),
    *(
        ([tap(source_check=value)], f'[0].source_check: {NOT_ROUTED}; remove it; "arp_guard" and the "macs" of a '
         "client say what a client may claim")
        for value in ("strict", "loose", "off")
    ),
    *(
        ([two(**{field: [value]})], f"[0].clients[1].{field}: {NOT_ROUTED}; {OWN_ROUTES}")
        for field, value in (("routes", "10.60.0.0/24"), ("routes", "fd00:60::/64"), ("sources", "10.60.0.1"),
                             ("sources", "fd00:60::1"), ("routes", "wrong"))
    ),
    ([tap_client(mark=MARK)], f"[0].mark: {NOT_ROUTED}; {OWN_MARK}"),
    # --- addresses ---
    *(
        ([two(ip=ip)], f'[0].clients[1].ip: "{ip}" is {family}, and "net" has no {family} network; {ADD_NET}')
        for ip, family in (("10.10.0.3", "IPv4"), ("fd00:10::3", "IPv6"))
    ),
    *(
        ([tap(**{field: [ip]})], f'[0].{field}[0]: "{ip}" is {family}, and "net" has no {family} network; {ADD_NET}')
        for field in ("ips", "push_dns")
        for ip, family in (("10.10.0.3", "IPv4"), ("fd00:10::3", "IPv6"))
    ),
    ([two(ip="10.10.0")], '[0].clients[1].ip: "10.10.0" is not an IP address; write one such as "10.10.0.2" or '
     '"fd00:10::2"'),
    ([tap(net="10.10.0.1")], '[0].net: "10.10.0.1" has no prefix length; write it, as in "10.10.0.1/24"'),
    ([tap(net="fd00::1")], '[0].net: "fd00::1" has no prefix length; write it, as in "fd00::1/64"'),
    ([tap(net=[])], '[0].net: [] has 0 elements; write "10.10.0.1/24"'),
    ([tap(mtu=65522)], "[0].mtu: 65522 is too large for a TAP interface, whose frames have an Ethernet header too; "
     "write at most 65513"),
    *(
        ([tap(mtu=1279, **fields)], "[0].mtu: 1279 is too small for a TAP interface: a bridge has the smallest MTU of "
         "its ports, and below 1280 it loses IPv6; write at least 1280")
        for fields in ({}, {"net": "10.10.0.1/24"}, {"net": "fd00:10::1/64"})
    ),
    # --- bridge ---
    ([tap(bridge=5)], '[0].bridge: 5 is a number, not text or an object; write "br0"'),
    ([tap(bridge=["br0"])], '[0].bridge: [...] is a list, not text or an object; write "br0"'),
    ([tap(bridge=None)], '[0].bridge: null is not text or an object; write "br0"'),
    ([tap(bridge="\ud800")], '[0].bridge: "\\ud800" holds half of a surrogate pair; write the character itself instead '
     "of its \\u escape"),
    ([tap(bridge={})], '[0].bridge.name: is missing; add "name": "br0"'),
    ([tap(bridge={"create": True})], '[0].bridge.name: is missing; add "name": "br0"'),
    ([tap(bridge={"name": "br0", "isolate": True})], '[0].bridge.isolate: "isolate" is an unknown field in "bridge"; '
     'it belongs in a server, or did you mean "isolated"?'),
    ([tap(bridge={"name": "br0", "create": "yes"})], '[0].bridge.create: "yes" is text, not true or false; write true '
     "or false, without quotes"),
    ([tap_client(bridge={"name": "br0", "bpdu_guard": 1})], '[0].bridge.bpdu_guard: 1 is a number, not true or false; '
     "write true or false, without quotes"),
    ([tap(bridge="")], '[0].bridge: "" is empty; write a name such as "br0"'),
    ([tap(bridge="all")], '[0].bridge: "all" is a name that Linux reserves; choose another, such as "br0"'),
    ([tap(bridge={"name": "1234567890123456"})], '[0].bridge.name: "1234567890123456" has 16 bytes; choose a name of '
     "at most 15 bytes"),
    ([tap(bridge="br%d")], '[0].bridge: "br%d" has "%" in it; use letters, digits, - and _ only'),
    ([tap(bridge="tap0")], '[0].bridge: "tap0" is the name of the interface at [0].name, which is no bridge; write the '
     'name of a bridge, such as "br0"'),
    ([tap(bridge={"name": "tap1"}), tap_client()], '[0].bridge.name: "tap1" is the name of the interface at [1].name, '
     'which is no bridge; write the name of a bridge, such as "br0"'),
    ([tap(bridge={"name": "br0", "create": True}), tap_client(bridge={"name": "br0", "create": True})],
     "[1].bridge.create: true makes the bridge that [0].bridge.create makes; leave it with one of them"),
    ([server(create=True)], '[0].create: "create" is an unknown field in a server; it belongs in "bridge"'),
    # --- MAC addresses ---
    *(
        ([tap(mac=mac)], f'[0].mac: "{mac}" {problem}')
        for mac, problem in {
            "": NO_MAC,
            "02:00:5e:10:00": NO_MAC,
            "02:00:5e:10:00:0g": NO_MAC,
            "2:0:5e:10:0:1": NO_MAC,
            "02:00:5e:10:00:01:02:03": NO_MAC,
            "02:00:5e:10:00:\u0660\u0661": NO_MAC,
            f" {MAC}": f'has white space at its ends; write "{MAC}"',
            "0200.5E10.0001": f'is not in the form of a MAC address; write "{MAC}"',
            "02005e100001": f'is not in the form of a MAC address; write "{MAC}"',
            "02:00-5e:10:00:01": f'is not in the form of a MAC address; write "{MAC}"',
            "00:00:00:00:00:00": f"is no address, because all its bits are 0; {ONE_STATION}",
            "ff:ff:ff:ff:ff:ff": f"is the broadcast address; {ONE_STATION}",
            "01:80:c2:00:00:00": f"is a multicast address; {ONE_STATION}",
            "33:33:00:00:00:01": f"is a multicast address; {ONE_STATION}",
        }.items()
    ),
    ([tap(mac=5)], f'[0].mac: 5 is a number, not text; write "{MAC}"'),
    ([tap_client(mac="03:00:00:00:00:01")], f'[0].mac: "03:00:00:00:00:01" is a multicast address; {ONE_STATION}'),
    ([two(macs=MAC)], f'[0].clients[1].macs: "{MAC}" is text, not a list; write ["{MAC}"]'),
    ([two(macs=[5])], f'[0].clients[1].macs[0]: 5 is a number, not text; write "{MAC}"'),
    ([two(macs=[MAC, "FF-FF-FF-FF-FF-FF"])], f'[0].clients[1].macs[1]: "FF-FF-FF-FF-FF-FF" is the broadcast address; '
     f"{ONE_STATION}"),
    ([two(macs=[mac_text(bytes.fromhex(f"02005e10{n:04x}")) for n in range(1025)])], "[0].clients[1].macs: [...] has "
     "1025 elements; write at most 1024"),
    ([two({"macs": [MAC]}, macs=["02-00-5E-10-00-01"])], f'[0].clients[1].macs[0]: "{MAC}" is already used at '
     "[0].clients[0].macs[0]; leave it with one"),
    ([{**two(macs=[MAC]), "mac": MAC}], f'[0].clients[1].macs[0]: "{MAC}" is already used at [0].mac; leave it with '
     "one"),
    ([tap(mac=MAC), tap_client(mac=MAC)], f'[1].mac: "{MAC}" is already used at [0].mac; give each interface an '
     "address of its own"),
    ([{**two(macs=[MAC]), "macs": [OTHER_MAC, MAC]}], f'[0].clients[1].macs[0]: "{MAC}" is already used at '
     "[0].macs[1]; leave it with one"),
    ([tap(mac=MAC, macs=[MAC])], f'warning: [0].macs[0]: "{MAC}" is already used at [0].mac; remove one'),
    ([tap(macs=[5])], f'[0].macs[0]: 5 is a number, not text; write "{MAC}"'),
    ([tap(macs=["FF-FF-FF-FF-FF-FF"])], f'[0].macs[0]: "FF-FF-FF-FF-FF-FF" is the broadcast address; {ONE_STATION}'),
    ([client(macs=[MAC])], '[0].macs: "macs" is an unknown field in a client; it belongs in a server or an entry of '
     '"clients", or did you mean "mac"?'),
    ([two(macs=[MAC, MAC])], f'warning: [0].clients[1].macs[1]: "{MAC}" is already used at [0].clients[1].macs[0]; '
     "remove one"),
    # --- names ---
    ([two(name="client 1")], '[0].clients[1].name: "client 1" already names the client of [0].clients[0]; choose '
     "another"),
    ([two({"macs": [MAC]}, name=MAC)], f'[0].clients[1].name: "{MAC}" already names the client of '
     "[0].clients[0].macs[0]; choose another"),
    # --- the switch ---
    ([tap(isolate=1)], "[0].isolate: 1 is a number, not true or false; write true or false, without quotes"),
    ([tap(arp_guard="on")], '[0].arp_guard: "on" is text, not true or false; write true or false, without quotes'),
    ([tap(bpdu=True)], '[0].bpdu: true is not one of the choices; write "drop" or "forward"'),
    ([tap(bpdu="pass")], '[0].bpdu: "pass" is not one of the choices; write "drop" or "forward"'),
    *(
        ([tap(storm_limit=value)], f"[0].storm_limit: {value} is out of range; write a whole number from 1 to 1000000")
        for value in (0, -1, 1_000_001)
    ),
    ([tap(storm_limit=1.5)], "[0].storm_limit: 1.5 is not a whole number; write a whole number from 1 to 1000000"),
    ([tap(storm_limit="2000")], '[0].storm_limit: "2000" is text, not a number; write a whole number from 1 to '
     "1000000, without quotes"),
    ([client(storm_limit=5)], '[0].storm_limit: "storm_limit" is an unknown field in a client; it belongs in a server'),
    # --- warnings ---
    ([tap(peers=2)], "warning: [0].peers: has no effect on a TAP interface, which base clients cannot use; remove it"),
    ([tap(bridge={"name": "br0", "bpdu_guard": True}, bpdu="forward")], 'warning: [0].bpdu: "forward" lets any client '
     'switch the port off that bpdu_guard protects in bridge br0; remove one, or set "bpdu": "drop"'),
    ([tap(clients=[])], "warning: [0].clients: [] lists no client, so none can connect; add one"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "line"), ONE_FINDING, ids=[line[:60] for _, line in ONE_FINDING])
def test_one_finding(entries: Sequence[object], line: str) -> None:
    config, texts = load_entries(*entries)
    assert texts == [f"F: {line}"]
    assert (config is None) == (not line.startswith("warning: "))


@both_families
def test_an_address_of_a_client_is_checked_as_on_a_tun_interface(family: Family) -> None:
    net, ip = family("10.10.0.1/24"), family("10.11.0.3")
    config, texts = load_entries(tap(net=net, clients=[allowed(ip=ip)]))
    assert config is None
    assert texts == [f'F: [0].clients[0].ip: "{ip}" is outside net {family("10.10.0.0/24")}; choose an address in it']
    clients = [allowed(ip=family("10.10.0.2")), allowed(token=B, ip=family("10.10.0.2"))]
    assert load_entries(tap(net=net, clients=clients))[1] == [
        f'F: [0].clients[1].ip: "{family("10.10.0.2")}" is already used at [0].clients[0].ip; choose another address'
    ]


@both_families
def test_a_guard_is_no_warning(family: Family) -> None:
    """The server's own addresses are protected, those that its bridge has, and link-local ones."""
    assert load_entries(tap(arp_guard=True))[1] == []
    assert load_entries(tap(net=family("10.10.0.1/24"), arp_guard=True))[1] == []
    clients = [allowed(ip=family("10.10.0.2")), allowed(token=B, ip=...)]
    assert load_entries(tap(net=family("10.10.0.1/24"), arp_guard=True, clients=clients))[1] == []


def test_a_wrong_kind_is_one_finding() -> None:
    """Nobody knows which of the other fields belong to what was meant."""
    fields = {"bridge": "br0", "mac": MAC, "routes": [], "net": ..., "clients": [allowed(ip=..., macs=[OTHER_MAC])]}
    assert load_entries(server(device="tep", **fields))[1] == [
        'F: [0].device: "tep" is not one of the choices; write "tap" or "tun"'
    ]


# ------------------------------------------------------------------ the schema

VALIDATOR: Final = Draft202012Validator(schema())


@both_families
def test_editors_know_what_each_kind_needs(family: Family) -> None:
    for content in (tap(), family(server(device="tun")), tap(port=..., listen="unix:/a"), tap_client(bridge="br0")):
        assert list(VALIDATOR.iter_errors([content])) == []
    for wrong in (server(net=...), family(server(clients=[allowed(ip=...)])), tap(net=[]), tap(bridge=["br0"])):
        assert list(VALIDATOR.iter_errors([wrong])) != []


# ------------------------------------------------------------------ reload


def loaded(entry: Json) -> InterfaceConfig:
    config, findings = check_content(json.dumps([entry]).encode(), "F")
    assert config is not None, findings
    return config.interfaces[0]


ADDRESSED: Final = {"net": "10.10.0.1/24", "clients": [allowed()]}
MOVED: Final = {"net": "10.10.0.1/24", "clients": [allowed(macs=[MAC])]}


@pytest.mark.parametrize(
    ("before", "after", "kind", "lines"),
    [
        (tap(), tap(isolate=True), "live", ["tap0: isolate changed (false -> true)"]),
        (tap(), tap(storm_limit=5), "live", ["tap0: storm_limit changed (2000 -> 5)"]),
        (tap(), tap(bpdu="forward"), "live", ["tap0: bpdu changed (drop -> forward)"]),
        (tap(), tap(arp_guard=True), "live", ["tap0: arp_guard changed (false -> true)"]),
        (tap(), tap(**ADDRESSED), "live", [
            "tap0: net changed (none -> 10.10.0.1/24)",
            "tap0 client 1: name, ip changed (name client 1 -> 10.10.0.2, ip none -> 10.10.0.2)",
        ]),
        (tap(), tap(net="fd00:10::1/64"), "live", ["tap0: net changed (none -> fd00:10::1/64)"]),
        (tap(**ADDRESSED), tap(**MOVED), "live", [f"tap0 10.10.0.2: macs changed (+{MAC})"]),
        (tap(), tap(macs=[MAC]), "live", [f"tap0: macs changed (+{MAC})"]),
        (two(macs=[MAC], name="b"), two(macs=[OTHER_MAC], name="b"), "live",
         [f"tap0 b: macs changed (+{OTHER_MAC} -{MAC})"]),
        (server(name="tap0"), tap(), "restart", ["tap0: device changed, so it starts again (tun -> tap)"]),
        (tap(), tap(bridge="br0"), "restart", ["tap0: bridge changed, so it starts again (none -> br0)"]),
        (tap(bridge="br0"), tap(bridge={"name": "br1", "create": True, "learning": False}), "restart",
         ["tap0: bridge changed, so it starts again (br0 -> br1 (create, no learning))"]),
        (tap(), tap(mac=MAC, isolate=True), "restart", [f"tap0: mac changed, so it starts again (none -> {MAC})"]),
        (client(), client(device="tap"), "restart", ["tun1: device changed, so it starts again (none -> tap)"]),
        (client(device="tap"), client(device="tap", bridge="br0", mac=MAC), "restart",
         [f"tun1: bridge, mac changed, so it starts again (bridge none -> br0, mac none -> {MAC})"]),
    ],
)  # fmt: skip
def test_what_a_reload_does(before: Json, after: Json, kind: str, lines: list[str]) -> None:
    [change] = changes([loaded(before)], [loaded(after)])
    assert (change.kind, list(change.lines)) == (kind, lines)


def test_each_field_of_the_model_is_restarted_or_changed_on_purpose() -> None:
    """A field that this test does not know has to be put into one of the two kinds."""
    config = loaded(tap())
    assert isinstance(config, ServerConfig)
    live: Json = {"macs": (b"\2\0\0\0\0\1",), "isolate": True, "arp_guard": True, "bpdu": "forward", "storm_limit": 1}
    restart: Json = {"device": "tun", "bridge": Bridge("br0"), "mac": b"\2\0\0\0\0\1"}
    for kind, fields in (("live", live), ("restart", restart)):
        for name, value in fields.items():
            [change] = changes([config], [replace(config, **{name: value})])
            assert (change.kind, name) == (kind, name)
            assert "->" in change.lines[0] or "+" in change.lines[0]


# ------------------------------------------------------------------ any text


@patient
@given(
    st.binary(min_size=6, max_size=6),
    st.sampled_from([":", "-"]),
    st.sampled_from([str.lower, str.upper]),
)
def test_a_mac_is_accepted_if_a_station_can_have_it(mac: bytes, separator: str, case: Callable[[str], str]) -> None:
    text = case(mac.hex(separator))
    try:
        assert parse_mac(text) == mac
    except InvalidValue:
        assert not is_station(mac)
    else:
        assert is_station(mac)
        assert parse_mac(mac_text(mac)) == mac


@patient
@given(st.text(alphabet="0123456789abcdefABCDEF:-. \n\u0660", max_size=20) | st.text(max_size=20))
def test_any_other_text_is_refused_with_a_remedy(text: str) -> None:
    try:
        mac = parse_mac(text)
    except InvalidValue as exc:
        refused = exc
    else:
        assert is_station(mac)
        assert text.lower().replace("-", ":") == mac_text(mac)
        return
    assert refused.problem
    assert refused.remedy
