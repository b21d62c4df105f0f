"""What a TAP interface wants of the kernel, and the rules for addresses on its bridge."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

import pytest

from tapotun_trio.config.model import Bridge, ServerConfig
from tapotun_trio.cooperative import run_now
from tapotun_trio.host.items import (
    Address,
    AttachedNetwork,
    BridgeAddress,
    BridgePort,
    Item,
    NextHop,
    OwnBridge,
    Route,
    address_of,
    version_of,
)
from tapotun_trio.netconf.desired import desired_for_client, desired_for_server_in_steps
from tapotun_trio.netconf.left_out import leave_out, networks_to_compare
from tapotun_trio.netconf.transport_routes import decide
from tapotun_trio.wire.settings import InterfaceSettings

from ..twins import FAMILIES, twin
from .support import server_config

BRIDGE: Final = Bridge("br0", create=True, isolated=True, learning=False, bpdu_guard=True)


def tap_config(version: int, bridge: Bridge | None) -> ServerConfig:
    config = server_config(80)
    return replace(
        config,
        device="tap",
        bridge=bridge,
        nets=(ip_interface(twin("10.50.0.1/24", version)),),
        ips=(ip_address(twin("10.50.0.2", version)), ip_address(twin("10.60.0.1", version))),
        mtu=1400,
    )


@pytest.mark.parametrize("version", FAMILIES)
def test_a_servers_tap_has_addresses_and_no_routes(version: int) -> None:
    desired = run_now(desired_for_server_in_steps(tap_config(version, None)))
    interfaces = [ip_interface(twin(each, version)) for each in ("10.50.0.1/24", "10.50.0.2/24", "10.60.0.1/32")]
    assert desired.items == tuple(map(Address, interfaces))
    assert desired.mtu == 1400
    assert not desired.pushed
    desired = run_now(desired_for_server_in_steps(tap_config(version, BRIDGE)))
    assert desired.items == (
        OwnBridge("br0"),
        BridgePort("br0", isolated=True, learning=False, bpdu_guard=True),
        *(BridgeAddress("br0", each) for each in interfaces),
    )
    desired = run_now(desired_for_server_in_steps(tap_config(version, Bridge("br0"))))
    assert desired.items[0] == BridgePort("br0")


def test_a_tap_without_addresses_wants_its_bridge_or_nothing() -> None:
    config = replace(tap_config(4, None), nets=(), ips=())
    assert run_now(desired_for_server_in_steps(config)).items == ()
    config = replace(config, bridge=Bridge("br0"))
    assert run_now(desired_for_server_in_steps(config)).items == (BridgePort("br0"),)
    assert desired_for_client(InterfaceSettings(1500, ()), None).items == ()
    assert desired_for_client(InterfaceSettings(1500, ()), None, Bridge("br1")).items == (BridgePort("br1"),)


@pytest.mark.parametrize("version", FAMILIES)
def test_a_clients_addresses_are_on_its_bridge_and_routes_are_not_made(version: int) -> None:
    address, route = ip_interface(twin("10.50.0.9/24", version)), ip_network(twin("10.61.0.0/24", version))
    conf = InterfaceSettings(1400, (address,), (route,))
    assert desired_for_client(conf, None).items == (Address(address), Route(route))
    desired = desired_for_client(conf, None, BRIDGE)
    assert desired.items == (
        OwnBridge("br0"),
        BridgePort("br0", isolated=True, learning=False, bpdu_guard=True),
        BridgeAddress("br0", address),
    )
    assert [version_of(item) for item in desired.items] == [0, 0, version]
    assert [address_of(item) for item in desired.items] == [None, None, address]


@pytest.mark.parametrize("version", FAMILIES)
def test_an_address_on_a_bridge_loses_its_network_as_one_on_the_interface_does(version: int) -> None:
    """To the transport, to an attached network, and to the server's own address."""
    interface = ip_interface(twin("10.50.0.9/24", version))
    alone = ip_interface(f"{interface.ip}/{interface.max_prefixlen}")
    port = BridgePort("br0")
    server, gateway = ip_address(twin("10.50.0.77", version)), ip_address(twin("192.0.2.1", version))
    default = ip_network("0.0.0.0/0" if version == 4 else "::/0")
    for address, narrowed in (
        (Address(interface), Address(alone)),
        (BridgeAddress("br0", interface), BridgeAddress("br0", alone)),
    ):
        items: list[Item] = [port, address]
        next_hop = NextHop(default, index=3, device="br0", gateway=gateway)
        excepted = decide(items, {server: next_hop}, None)
        assert [each.address for each in excepted.exceptions] == [server]
        assert excepted.items == (*excepted.exceptions, port, address)
        assert decide(items, {server: replace(next_hop, usable=False)}, None).items == (port, narrowed)
        assert decide(items, {interface.ip: next_hop}, None).items == (port,)
        assert decide(items, {server: replace(next_hop, gateway=interface.ip)}, None).items == (port,)

        assert networks_to_compare(items, ())[1] == {interface.network}
        attached = AttachedNetwork(ip_network(twin("10.50.0.0/16", version)), "eth0")
        remaining, left_out = leave_out(items, (), [attached])
        assert remaining == (port, narrowed)
        assert [each.reason for each in left_out] == ["tunnel-network", "tunnel-address"]
        assert leave_out(items, (), [replace(attached, is_tunnel=True)]) == ((port, address), ())


@pytest.mark.parametrize("version", FAMILIES)
def test_the_bridge_is_in_the_network_of_the_tunnel_already(version: int) -> None:
    """As at two sites of one segment. The route that it has leads to both, so nothing is missing; no other is made,
    which would outlive the one that is there, or lead the transport."""
    interface = ip_interface(twin("10.50.0.9/24", version))
    address = BridgeAddress("br0", interface)
    alone = replace(address, interface=ip_interface(f"{interface.ip}/{interface.max_prefixlen}"))
    for network in ("10.50.0.0/24", "10.50.0.0/16"):
        same = AttachedNetwork(ip_network(twin(network, version)), "br0")
        assert leave_out([address], (), [same]) == ((alone,), ())
        _, left_out = leave_out([address], (), [same, replace(same, device="eth0")])
        assert {each.reason for each in left_out} == {"tunnel-network", "tunnel-address"}
        assert {each.attached and each.attached.device for each in left_out} == {"eth0"}
    part = AttachedNetwork(ip_network(twin("10.50.0.0/28", version)), "br0")
    assert leave_out([address], (), [part]) == ((address,), ())
    assert leave_out([alone], (), [AttachedNetwork(interface.network, "br0")]) == ((alone,), ())
