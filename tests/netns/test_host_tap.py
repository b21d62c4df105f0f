"""TunDevice as a TAP interface on the real kernel: MAC address, carrier, queues, and what it says of its own."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final

import pytest
import trio

from tapotun_trio.errors import HostError
from tapotun_trio.host import ipv6
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.mac import derive_mac, machine_id
from tapotun_trio.host.netlink.network import open_netlink
from tapotun_trio.host.tun import MAX_FRAME_BYTES, VNET_HEADER_BYTES, TunDevice, open_tun
from tapotun_trio.host.tun_queues import TunQueues
from tapotun_trio.macs import BROADCAST, NO_MAC, is_station, mac_text
from tapotun_trio.wire.frames import LENGTH_BYTES

from .fresh_namespace import in_fresh_namespace, ip, sysctl

pytestmark = pytest.mark.netns

MAC: Final = bytes.fromhex("02005e100001")
OTHER: Final = bytes.fromhex("02005e100002")
NO_VNET: Final = bytes(VNET_HEADER_BYTES)
EXPERIMENT: Final = b"\x88\xb5"
QUIET_S: Final = 3.0  # router solicitations begin within a second, group reports within three


def link(name: str = "tap0") -> dict[str, object]:
    [found] = ip("link", "show", name)
    assert isinstance(found, dict)
    return found


def has_carrier(name: str = "tap0") -> bool:
    return "LOWER_UP" in link(name)["flags"]  # type: ignore[operator]


def read_all(device: TunDevice | TunQueues) -> list[bytes]:
    """The Ethernet frames that wait."""
    slab = memoryview(bytearray(8 * (LENGTH_BYTES + MAX_FRAME_BYTES)))
    frames: list[bytes] = []
    more = True
    while more:
        lengths, more = device.read_burst(slab, 4 * MAX_FRAME_BYTES, 64)
        at = 0
        for length in lengths:
            frames.append(bytes(slab[at + LENGTH_BYTES + VNET_HEADER_BYTES : at + LENGTH_BYTES + length]))
            at += LENGTH_BYTES + length
    return frames


async def read_until(device: TunDevice | TunQueues, ether_type: bytes) -> bytes:
    with trio.fail_after(10):
        while True:
            for frame in read_all(device):
                if frame[12:14] == ether_type:
                    return frame
            await device.wait_readable()


def frame(destination: bytes, source: bytes, payload: bytes = b"") -> bytes:
    """An Ethernet frame of the type for local experiments (IEEE 802)."""
    return destination + source + EXPERIMENT + payload.ljust(46, b"\0")


@in_fresh_namespace
async def test_a_tap_has_its_mac_address_and_no_carrier_and_is_gone_at_exit() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with open_tun("tap0", mac=MAC) as device:
        found = link()
        assert found["address"] == mac_text(MAC)
        assert found["gso_max_size"] == 65527, "with two tags it fits into a frame"
        assert found["linkinfo"]["info_data"]["type"] == "tap"  # type: ignore[index]
        assert found["linkinfo"]["info_data"]["vnet_hdr"] is True  # type: ignore[index]
        assert found["link_type"] == "ether"
        assert found["txqlen"] == 2000
        assert found["inet6_addr_gen_mode"] == "none"
        assert "UP" not in found["flags"]  # type: ignore[operator]
        assert sysctl("ipv6/conf/tap0/accept_ra") == 0
        ip("link", "set", "tap0", "up")
        assert not has_carrier()
        for up in (True, True, False, True):
            device.set_carrier(up=up)
            assert has_carrier() == up
    assert [each["ifname"] for each in ip("link", "show")] == ["lo"]
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(trio.ClosedResourceError, match="TAP interface tap0"):
        device.set_carrier(up=True)


@in_fresh_namespace
async def test_the_carrier_of_a_tun_is_not_touched() -> None:
    with open_tun("tun0") as device:
        ip("link", "set", "tun0", "up")
        device.set_carrier(up=False)
        assert has_carrier("tun0")
        assert sysctl("ipv6/conf/tun0/accept_ra") == 1


@in_fresh_namespace
async def test_several_queues_share_a_mac_address_and_a_carrier() -> None:
    with RealHost().open_device("tap0", 4, MAC) as device:
        assert isinstance(device, TunQueues)
        assert len(device.queues) == 4
        assert link()["address"] == mac_text(MAC)
        ip("link", "set", "tap0", "up")
        assert not has_carrier()  # a queue that joins does not switch it on
        device.set_carrier(up=True)
        assert has_carrier()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as sock:
            sock.bind(("tap0", 0x88B5))
            sock.settimeout(5)
            for number, queue in enumerate(device.queues):
                there = frame(MAC, OTHER, bytes([number]))
                assert queue.write(NO_VNET + there) is True
                assert sock.recv(2048) == there
                back = frame(OTHER, MAC, bytes([number]))
                sock.send(back)
                assert await read_until(device, EXPERIMENT) == back
        device.set_carrier(up=False)
        assert not has_carrier()


@in_fresh_namespace
async def test_a_tap_that_is_gone_says_that_it_is_a_tap() -> None:
    with open_tun("tap0", mac=MAC) as device:
        ip("link", "del", "tap0")
        with pytest.raises(HostError, match="TAP interface tap0 is gone: another program deleted it"):
            device.set_carrier(up=True)
        with pytest.raises(HostError, match="TAP interface tap0 is gone"):
            device.write(NO_VNET + frame(MAC, OTHER))


@pytest.mark.parametrize("mac", [NO_MAC, BROADCAST, bytes.fromhex("01005e000001")])
@in_fresh_namespace
async def test_a_mac_address_that_no_interface_can_have_is_refused_and_leaves_nothing(mac: bytes) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(HostError, match=f"cannot create TAP interface tap0: .*{os.strerror(errno.EADDRNOTAVAIL)}"),
        open_tun("tap0", mac=mac),
    ):
        pass
    assert [each["ifname"] for each in ip("link", "show")] == ["lo"]
    assert set(os.listdir("/proc/self/fd")) == before


@in_fresh_namespace
async def test_nothing_is_sent_of_our_own() -> None:
    """Neither while it has no address, nor by IPv6 when it has one of IPv4. The test hears what is sent: the control
    is an interface with the kernel's defaults."""
    async with open_netlink() as network:
        with open_tun("tap0", mac=MAC) as ours, open_tun("tap1", mac=OTHER) as theirs:
            await network.link_up("tap0", 1500)
            ip("link", "set", "tap1", "addrgenmode", "eui64")
            ip("link", "set", "tap1", "up")
            for device in (ours, theirs):
                device.set_carrier(up=True)
            await read_until(theirs, b"\x86\xdd")
            await trio.sleep(QUIET_S)
            assert read_all(ours) == []
            assert read_all(theirs)


@in_fresh_namespace
async def test_no_router_of_the_segment_gives_this_machine_an_address_or_a_route() -> None:
    router = "fe80::5eff:fe10:2"
    async with open_netlink() as network:
        with open_tun("tap0", mac=MAC) as device:
            await network.link_up("tap0", 1500)
            device.set_carrier(up=True)
            for accepts in (0, 1):  # the second shows that the advertisement is one that counts
                sysctl("ipv6/conf/tap0/accept_ra", accepts or sysctl("ipv6/conf/tap0/accept_ra"))
                assert device.write(NO_VNET + router_advertisement(router)) is True
                with trio.move_on_after(5 if accepts else 0.5):
                    while not ip("-6", "route", "show", "default"):  # noqa: ASYNC110 - it is what we are testing
                        await trio.sleep(0.05)
                assert bool(ip("-6", "route", "show", "default")) == bool(accepts)


@in_fresh_namespace
async def test_no_router_is_believed_after_the_mtu_was_too_small_for_ipv6() -> None:
    """The kernel discards the IPv6 settings of an interface with such an MTU. A TUN interface hears no router."""
    async with open_netlink() as network:
        with open_tun("tap0", mac=MAC) as device, open_tun("tun0"):
            for name in ("tap0", "tun0"):
                await network.link_up(name, 1500)
            device.set_carrier(up=True)
            for name, accepts in (("tap0", 0), ("tun0", 1)):
                ip("link", "set", name, "mtu", "1000")  # another program; the repairer sets the wanted one again
                assert name not in os.listdir("/proc/sys/net/ipv6/conf")
                await network.link_up(name, 1500)
                assert sysctl(f"ipv6/conf/{name}/accept_ra") == accepts
                assert ip("link", "show", name)[0]["inet6_addr_gen_mode"] == "none"


@pytest.mark.parametrize("queues", [1, 2])
@in_fresh_namespace
async def test_of_a_port_it_is_not_told(
    queues: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A container's /proc/sys is read-only. A port of a bridge hears no routers, whatever its setting is."""
    (tmp_path / "ipv6/conf/tap0/accept_ra").mkdir(parents=True)
    monkeypatch.setattr(ipv6, "_SETTINGS", tmp_path)
    for is_port, lines in ((True, 0), (False, 1)):
        with RealHost().open_device("tap0", queues, MAC, is_port=is_port) as device:
            assert len(device.queues) == queues
        assert len([each for each in caplog.messages if "accept_ra" in each]) == lines


def test_it_is_told_if_router_advertisements_cannot_be_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(ipv6, "_SETTINGS", tmp_path)
    ipv6.refuse_router_advertisements("tap0")  # no IPv6, so there is nothing to refuse
    assert not caplog.records
    setting = tmp_path / "ipv6/conf/tap0/accept_ra"
    setting.parent.mkdir(parents=True)
    setting.write_text("1\n", encoding="ascii")
    ipv6.refuse_router_advertisements("tap0")
    assert setting.read_text(encoding="ascii") == "0"
    assert not caplog.records
    setting.unlink()
    setting.mkdir()  # it cannot be written to
    ipv6.refuse_router_advertisements("tap0", is_port=True)  # a port hears no routers
    assert not caplog.records
    ipv6.refuse_router_advertisements("tap0")
    assert caplog.messages == [
        f"cannot write {setting} (Is a directory), so any machine of the segment may give this one an IPv6 default "
        "route: `sysctl -w net.ipv6.conf.tap0.accept_ra=0`"
    ]


def router_advertisement(source: str) -> bytes:
    """RFC 4861 section 4.2, to all nodes."""
    everyone = socket.inet_pton(socket.AF_INET6, "ff02::1")
    own = socket.inet_pton(socket.AF_INET6, source)
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    pseudo = own + everyone + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", total ^ 0xFFFF) + body[4:]
    packet = struct.pack("!IHBB", 0x6000_0000, len(body), 58, 255) + own + everyone + body
    return bytes.fromhex("333300000001") + OTHER + b"\x86\xdd" + packet


def test_a_derived_mac_address_is_a_stations_stays_and_differs() -> None:
    secret, machine = b"hash of a token", b"a machine"
    mac = derive_mac("tap0", "server", secret, machine)
    assert mac == derive_mac("tap0", "server", secret, machine) == bytes.fromhex("fee5682855c1")
    others = [
        derive_mac("tap1", "server", secret, machine),
        derive_mac("tap0", "client", secret, machine),
        derive_mac("tap0", "server", b"hash of another", machine),
        derive_mac("tap0", "server", secret, b"another machine"),
        derive_mac("tap0s", "server", secret, machine),
    ]
    assert len({mac, *others}) == 6
    for each in [derive_mac(f"tap{number}", "client", secret, machine) for number in range(64)]:
        assert is_station(each)
        assert each[0] & 2
        assert each > bytes.fromhex("fe540fffffff"), "libvirt's ports of a bridge are fe:54:00"


def test_the_machine_id_is_the_installations_or_lasts_until_the_next_boot(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    assert machine_id(tmp_path) == b""
    write("proc/sys/kernel/random/boot_id", "0f0e0d0c-0b0a-0908-0706-050403020100\n")
    assert machine_id(tmp_path) == bytes(range(15, -1, -1))
    for useless in ("", "uninitialized\n", "0" * 32, "\xe4" * 32, "12"):
        write("etc/machine-id", useless)
        assert machine_id(tmp_path) == bytes(range(15, -1, -1)), useless
    write("var/lib/dbus/machine-id", "11" * 16 + "\n")
    assert machine_id(tmp_path) == b"\x11" * 16
    write("etc/machine-id", "22" * 16 + "\n")
    assert machine_id(tmp_path) == b"\x22" * 16
    assert len(machine_id()) in (0, 16)
