"""Programs that take away what they did not make: who runs, and whether its settings keep it from that."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.host.network_managers import managers_running, remedy, taken_by


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def test_programs_are_found_by_their_processes_and_services(tmp_path: Path) -> None:
    assert managers_running(str(tmp_path)) == []
    write(tmp_path, "proc/17/comm", "systemd-network\n")
    write(tmp_path, "proc/self/comm", "dhcpcd\n")
    assert managers_running(str(tmp_path)) == ["systemd-networkd"]
    (tmp_path / "sys/fs/cgroup/system.slice/NetworkManager.service").mkdir(parents=True)
    assert managers_running(str(tmp_path)) == ["systemd-networkd", "NetworkManager"]


NETWORKD: Final = "etc/systemd/networkd.conf"


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ({}, {"rule"}),
        ({NETWORKD: "[Network]\n#ManageForeignRoutingPolicyRules=no\n"}, {"rule"}),
        ({NETWORKD: "[Network]\nManageForeignRoutingPolicyRules=no\n"}, set()),
        ({NETWORKD: "[Network]\nManageForeignRoutes = No\nManageForeignRoutingPolicyRules=0\n"}, set()),
        ({NETWORKD: "[DHCPv4]\nManageForeignRoutes=no\n"}, {"rule"}),
        (
            {
                NETWORKD: "[Network]\nManageForeignRoutes=no\n",
                "usr/lib/systemd/networkd.conf.d/50-a.conf": "[Network]\nManageForeignRoutes=yes\n",
                "etc/systemd/networkd.conf.d/60-b.conf": "[Network]\nManageForeignRoutingPolicyRules=off\n",
            },
            set(),
        ),
        (
            {
                "usr/lib/systemd/networkd.conf.d/50-a.conf": "[Network]\nManageForeignRoutes=yes\n",
                "etc/systemd/networkd.conf.d/50-a.conf": "[Network]\nManageForeignRoutes=no\n",
            },
            {"rule"},
        ),
        (
            {
                NETWORKD: "[Network]\nManageForeignRoutes=no\n",
                "etc/systemd/network/10-all.network": "[Match]\nName=*\n",
            },
            {"rule", "address", "link"},
        ),
        ({"etc/systemd/network/10-all.network": "[Match]\nName=*\n"}, {"rule", "route", "address", "link"}),
        ({"etc/systemd/network/10-all.network": "[Match]\nName=!tun* lo\n"}, {"rule"}),
        ({"etc/systemd/network/10-eth.network": "[Match]\nName=eth* en*\n"}, {"rule"}),
        ({"etc/systemd/network/10-mac.network": "[Match]\nName=*\nMACAddress=02:00:00:00:00:01\n"}, {"rule"}),
        (
            {
                "etc/systemd/network/05-tun0.network": "[Match]\nName=tun0\n[Link]\nUnmanaged=yes\n",
                "etc/systemd/network/10-all.network": "[Match]\nKind=tun\n",
            },
            {"rule"},
        ),
    ],
)
def test_settings_of_networkd(files: dict[str, str], taken: set[str], tmp_path: Path) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    assert taken_by("systemd-networkd", "tun0", str(tmp_path)) == taken


@pytest.mark.parametrize(
    ("text", "managed"),
    [
        ("", True),
        ("[keyfile]\nunmanaged-devices=interface-name:tun0\n", False),
        ("[keyfile]\nunmanaged-devices=mac:02:00:00:00:00:01;interface-name:tun*\n", False),
        ("[keyfile]\nunmanaged-devices=*,except:interface-name:tun0\n", True),
        ("[keyfile]\nunmanaged-devices=*,except:interface-name:eth0\n", False),
        ("[keyfile]\nunmanaged-devices=interface-name:=tun0\n", False),
        ("[keyfile]\nunmanaged-devices=interface-name:tun1\nunmanaged-devices+=type:tun\n", False),
        ("[main]\nunmanaged-devices=interface-name:tun0\n", True),
    ],
)
def test_settings_of_networkmanager(text: str, managed: bool, tmp_path: Path) -> None:
    write(tmp_path, "etc/NetworkManager/conf.d/tapotun.conf", text)
    assert bool(taken_by("NetworkManager", "tun0", str(tmp_path))) == managed


@pytest.mark.parametrize(
    ("text", "managed"),
    [
        ("", True),
        ("denyinterfaces tun0\n", False),
        ("# denyinterfaces tun0\ndenyinterfaces veth* tun*\n", False),
        ("allowinterfaces eth0\n", False),
        ("allowinterfaces eth0 tun0\n", True),
    ],
)
def test_settings_of_dhcpcd(text: str, managed: bool, tmp_path: Path) -> None:
    write(tmp_path, "etc/dhcpcd.conf", text)
    assert bool(taken_by("dhcpcd", "tun0", str(tmp_path))) == managed


def test_remedies_are_the_settings_that_are_read() -> None:
    assert remedy("systemd-networkd", {"rule"}, "tun0") == (
        "set ManageForeignRoutingPolicyRules=no in [Network] of /etc/systemd/networkd.conf"
    )
    text = remedy("systemd-networkd", {"route", "address"}, "tun0")
    assert "ManageForeignRoutes=no" in text
    assert "Unmanaged=yes" in text
    assert "unmanaged-devices=interface-name:tun0" in remedy("NetworkManager", {"route"}, "tun0")
    assert "denyinterfaces tun0" in remedy("dhcpcd", {"route"}, "tun0")
