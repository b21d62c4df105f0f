"""Sites that are one Ethernet segment: real bridges with a machine behind each, and the daemon between them.

::

    machine --- eth0 [br0 of the hub] seg0 ===== seg0 [br0 of a branch] eth0 --- machine
    10.30.0.1                                                                    10.30.0.2
    fd00:30::1                                                                   fd00:30::2

Neither bridge has an address. The hub reaches the branch with the number N at 172.30.N.2, by a cable of its own.
"""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from tests.harness import Host, Lab, Process, command, wait_until

from .topologies import UPLOADING, Config, running, token

INTERFACE: Final = "seg0"
BRIDGE: Final = "br0"
LAN: Final = "eth0"  # the bridge's port to the machine, and the machine's only interface
HUB: Final = "hub"
PATIENCE_S: Final = 60.0  # for conditions: no promise of a speed, the machine may be busy

BROADCAST: Final = b"\xff" * 6
EXPERIMENT: Final = b"\x88\xb5"  # the EtherType for experiments (IEEE 802, clause 9)
ARP: Final = b"\x08\x06"
IPV6: Final = b"\x86\xdd"


class Site:
    """A gateway with the bridge ``br0``, and a machine that is plugged into it."""

    def __init__(self, lab: Lab, name: str, number: int, mtu: int = 1500) -> None:
        """``number``: the last one of the machine's addresses. ``mtu``: of the cable to the machine."""
        self.name, self.number = name, number
        self.gateway, self.machine = lab.host(name), lab.host(f"machine-{name}")
        self.addresses = (f"10.30.0.{number}", f"fd00:30::{number}")
        lab.link(self.gateway, [], self.machine, [f"{self.addresses[0]}/24", f"{self.addresses[1]}/64"], mtu=mtu)
        make_bridge(self.gateway, LAN)

    @property
    def mac(self) -> bytes:
        """The machine's."""
        return mac_of(self.machine, LAN)

    def ports(self) -> dict[str, str]:
        """The ports of its bridge, each with what the bridge does there."""
        return ports(self.gateway)


class Segment:
    """The hub's site and those of its clients. Nothing of ours runs before `connected`."""

    def __init__(self, lab: Lab, *branches: str, site_mtu: int = 1500) -> None:
        """``site_mtu``: at all sites. Between them are 1,500 bytes."""
        self.hub = Site(lab, HUB, 1, site_mtu)
        self.branches = {name: Site(lab, name, number, site_mtu) for number, name in enumerate(branches, 2)}
        for site in self.branches.values():
            lab.link(self.hub.gateway, f"172.30.{site.number}.1/24", site.gateway, f"172.30.{site.number}.2/24")

    @property
    def sites(self) -> list[Site]:
        """All of them, the hub first."""
        return [self.hub, *self.branches.values()]

    def server(self, *members: Config, **fields: Any) -> Config:
        """The hub's config; its clients are the branches, unless there are ``members``. What is None is left out."""
        return _without_none(
            {
                "name": INTERFACE,
                "device": "tap",
                "listen": "0.0.0.0",
                "port": 8080,
                "bridge": BRIDGE,
                "clients": list(members) or [member(name) for name in self.branches],
                **fields,
            }
        )

    def client(self, name: str, **fields: Any) -> Config:
        """A branch's config. What is None is left out."""
        return _without_none(
            {
                "name": INTERFACE,
                "device": "tap",
                "server": self.url(name),
                "token": token(name),
                "bridge": BRIDGE,
                **fields,
            }
        )

    def url(self, name: str, port: int = 8080) -> str:
        """Where a branch reaches the hub."""
        return f"http://172.30.{self.branches[name].number}.1:{port}/ip"

    @contextmanager
    def connected(
        self, *members: Config, clients: Mapping[str, Config] | None = None, **fields: Any
    ) -> Iterator[dict[str, Process]]:
        """The daemons of all sites by the sites' names, all connected.

        ``members`` and ``fields``: see `server`. ``clients``: fields of the branches' configs, by name.
        """
        with ExitStack() as stack:
            file = write_config(self.hub.gateway, self.server(*members, **fields))
            daemons = {HUB: stack.enter_context(running(self.hub.gateway, file, name="tapotun-hub"))}
            for name, site in self.branches.items():
                config = self.client(name, **(clients or {}).get(name, {}))
                daemon = running(site.gateway, config, until=UPLOADING, name=f"tapotun-{name}")
                daemons[name] = stack.enter_context(daemon)
            yield daemons

    # What the hub says

    def status(self) -> Config:
        """Of the hub's interface."""
        (interface,) = process_status(self.hub.gateway)["interfaces"]
        return dict(interface)

    def drops(self, name: str) -> dict[str, int]:
        """What the hub has dropped of a client, or for it, by reason."""
        (peer,) = (peer for peer in self.status()["peers"] if peer["name"] == name)
        return dict(peer["drops"])

    def wait_for_drops(self, name: str, reason: str, number: int) -> None:
        """Wait until the hub has dropped exactly so many of a client for that reason. Raises WaitError."""
        wait_until(
            lambda: self.drops(name).get(reason, 0) == number,
            PATIENCE_S,
            f"{number} drops of {name} for {reason}",
            lambda: str(self.drops(name)),
        )

    def macs(self) -> dict[str, str | None]:
        """The hub's table: where each address is. None: on the hub's side."""
        return {row["mac"]: row["client"] for row in self.mac_rows()}

    def mac_rows(self) -> list[dict[str, Any]]:
        """The hub's table, as `tapotun status --macs` has it."""
        done = self.hub.gateway.run([*command(), "status", "--macs", "--json"], timeout=PATIENCE_S)
        (process,) = json.loads(done.stdout)["processes"]
        (interface,) = process["interfaces"]
        assert interface["total"] == len(interface["macs"])
        return list(interface["macs"])

    def wait_for_mac(self, mac: bytes, where: str | None) -> None:
        """Wait until the hub's table has the address there. Raises WaitError."""
        text, found = mac.hex(":"), dict[str, str | None]()

        def probe() -> bool:
            found.clear()
            found.update(self.macs())
            return text in found and found[text] == where

        wait_until(probe, PATIENCE_S, f"{text} at {where or 'the hub'}", lambda: str(found))

    # What the hub is told

    def reload(self, daemon: Process, *members: Config, **fields: Any) -> None:
        """Replace the hub's config, until it is in effect."""
        write_config(self.hub.gateway, self.server(*members, **fields))
        before = daemon.log.count("reload: done")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: daemon.log.count("reload: done") > before, PATIENCE_S, "the reload", daemon.tail)


def member(name: str, **fields: Any) -> Config:
    """An entry of the hub's `clients`."""
    return {"name": name, "token": hashlib.sha1(token(name).encode()).hexdigest(), **fields}


def _without_none(config: Config) -> Config:
    return {key: value for key, value in config.items() if value is not None}


def write_config(host: Host, config: Config) -> str:
    """Make or replace the file of a daemon of this host."""
    file = host.tmp / "segment.json"
    newer = file.with_suffix(".new")
    newer.touch(mode=0o600)
    newer.write_text(json.dumps([config]), encoding="utf-8")
    newer.replace(file)
    return str(file)


def process_status(host: Host) -> dict[str, Any]:
    """What the one process of this host says of itself."""
    done = host.run([*command(), "status", "--json"], timeout=PATIENCE_S)
    (process,) = json.loads(done.stdout)["processes"]
    return dict(process)


# Bridges


def make_bridge(host: Host, *ports: str) -> None:
    """A bridge as an operator sets one up, without any address of its own."""
    host.ip(f"link add {BRIDGE} type bridge")
    host.ip(f"link set {BRIDGE} addrgenmode none")
    for port in ports:
        host.ip(f"link set {port} master {BRIDGE}")
    host.ip(f"link set {BRIDGE} up")
    # With the carrier the kernel makes a route, in its own time. A leak check would take it for ours.
    wait_until(lambda: host.ip(f"-6 route show table local dev {BRIDGE}"), PATIENCE_S, f"{BRIDGE} of {host.name}")


def ports(host: Host) -> dict[str, str]:
    """The ports of all bridges of a host, each with its state there: forwarding, blocking, disabled ..."""
    done = host.run(["bridge", "-j", "link", "show"])
    return {port["ifname"]: port["state"] for port in json.loads(done.stdout or "[]")}


def has_carrier(host: Host, interface: str = INTERFACE) -> bool:
    """Whether the kernel sees one. The interface must be there."""
    return "LOWER_UP" in host.ip(f"link show {interface}")[0]["flags"]


def mac_of(host: Host, interface: str) -> bytes:
    """Its MAC address."""
    return bytes.fromhex(host.ip(f"link show {interface}")[0]["address"].replace(":", ""))


def neighbour(host: Host, address: str) -> bytes | None:
    """The MAC address that ARP or neighbour discovery has found; None: none was found."""
    found = [entry.get("lladdr") for entry in host.ip("neigh show") if entry["dst"] == address]
    return bytes.fromhex(found[0].replace(":", "")) if found and found[0] is not None else None


def leased(host: Host, subnet: str) -> list[str]:
    """The addresses of a machine's interface that begin so."""
    (link,) = host.ip(f"address show {LAN}")
    return [str(info["local"]) for info in link["addr_info"] if str(info["local"]).startswith(subnet)]


# Frames made by hand


@contextmanager
def raw_socket(host: Host, interface: str = LAN, kind: bytes = b"\0\0") -> Iterator[socket.socket]:
    """A packet socket (packet(7)) on an interface. It sends any frame, and receives those with the EtherType ``kind``;
    none by default."""
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(1.0)
        sock.bind((interface, int.from_bytes(kind, "big")))
        yield sock


def arp_reply(mac: bytes, address: str, to: bytes = BROADCAST, tags: bytes = b"") -> bytes:
    """An unsolicited ARP reply (RFC 826, 5227): the address is at this MAC address."""
    packed = IPv4Address(address).packed
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + packed + to + packed
    return to + mac + tags + ARP + body


def advertisement(mac: bytes, address: str, options: bytes = b"") -> bytes:
    """An unsolicited neighbour advertisement to all nodes (RFC 4861 section 4.4), which overrides what they know.
    ``options``: a hop-by-hop header, from its length on."""
    packed, all_nodes = IPv6Address(address).packed, IPv6Address("ff02::1").packed
    body = struct.pack("!BBHI", 136, 0, 0, 0x2000_0000) + packed + struct.pack("!BB", 2, 1) + mac
    extensions = b"\x3a" + options if options else b""
    pseudo = packed + all_nodes + struct.pack("!IxxxB", len(body), 58)
    body = body[:2] + checksum(pseudo + body) + body[4:]
    head = struct.pack("!IHBB", 0x6000_0000, len(extensions) + len(body), 0 if options else 58, 255)
    return bytes.fromhex("333300000001") + mac + IPV6 + head + packed + all_nodes + extensions + body


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
