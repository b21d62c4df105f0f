"""Bridges for tests of the host adapter, each in the network namespace of its test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from typing import Any, Final

import pytest
import trio

from tapotun_trio.families import IPInterface
from tapotun_trio.host.items import BridgeAddress, BridgePort, Item, OwnBridge
from tapotun_trio.host.netlink.network import Netlink, open_netlink
from tapotun_trio.host.tun import TunDevice, open_tun

from .fresh_namespace import ip

MAC: Final = bytes.fromhex("02005e100001")
PATIENCE_S: Final = 10.0
OWN: Final[list[Item]] = [OwnBridge("br0"), BridgePort("br0")]


def bridge_link(name: str) -> dict[str, Any]:
    """As `bridge -d link` shows the port."""
    command = ["bridge", "-j", "-d", "link", "show", "dev", name]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
    assert isinstance(found[0], dict)
    return found[0]


def on_bridge(interface: str) -> BridgeAddress:
    return BridgeAddress("br0", ip_interface(interface))


def set_option(option: str, value: str) -> None:
    subprocess.run(["bridge", "link", "set", "dev", "tap0", option, value], check=True)


def names() -> set[str]:
    return {link["ifname"] for link in ip("link", "show")}


def master(name: str) -> str | None:
    [link] = ip("link", "show", name)
    found = link.get("master")
    assert found is None or isinstance(found, str)
    return found


def addresses(name: str) -> set[IPInterface]:
    """Without link-local ones."""
    [link] = ip("addr", "show", "dev", name)
    found = (ip_interface(f"{each['local']}/{each['prefixlen']}") for each in link["addr_info"])
    return {each for each in found if not each.is_link_local}


def port_options(name: str) -> tuple[bool, bool, bool]:
    """Isolated, learning and BPDU guard, as two programs show them."""
    [link] = ip("link", "show", name)
    data, shown = link["linkinfo"]["info_slave_data"], bridge_link(name)
    options = data["isolated"], data["learning"], data["guard"]
    assert options == (shown["isolated"], shown["learning"], shown["guard"])
    return options


def make_bridge(name: str = "br0") -> None:
    ip("link", "add", name, "type", "bridge")
    ip("link", "set", name, "up")


def plug(name: str) -> None:
    """Give br0 a port with a carrier."""
    ip("link", "add", name, "type", "veth", "peer", "name", f"far-{name}")
    for each in (name, f"far-{name}"):
        ip("link", "set", each, "up")
    ip("link", "set", name, "master", "br0")


@asynccontextmanager
async def tap(name: str = "tap0", mac: bytes = MAC) -> AsyncIterator[tuple[TunDevice, Netlink]]:
    async with open_netlink() as network:
        with open_tun(name, mac=mac) as device:
            await network.link_up(name, 1400)
            yield device, network


async def until(what: str, holds: Any) -> None:
    try:
        with trio.fail_after(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 - the kernel and the reconciler tell this test nothing
                await trio.sleep(0.02)
    except trio.TooSlowError:
        pytest.fail(f"{what} did not happen: {ip('addr', 'show')}")


LEAVER: Final = """
import os, signal, sys, trio
from ipaddress import ip_interface
from tapotun_trio.host.items import BridgeAddress, BridgePort, OwnBridge
from tapotun_trio.host.netlink.network import open_netlink
from tapotun_trio.host.tun import open_tun

async def main():
    name, *given = sys.argv[1:]
    items: list[Item] = [BridgePort("br0"), *(BridgeAddress("br0", ip_interface(each)) for each in given)]
    async with open_netlink() as network:
        with open_tun(name, mac=bytes.fromhex("02005e100007")):
            await network.link_up(name, 1400)
            await network.add(name, [OwnBridge("br0"), *items] if OWN else items)
            os.kill(os.getpid(), signal.SIGKILL)

OWN = @
trio.run(main)
"""


def leave(name: str, *given: str, own: bool) -> None:
    """A run that is killed while its interface is a port of br0."""
    script = LEAVER.replace("@", str(own))
    done = subprocess.run([sys.executable, "-c", script, name, *given], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
