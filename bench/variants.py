"""The variants from client to server that are compared. The package has a picture.

Each has three machines of its own with the same addresses. `start` brings both ends up and waits for the first ping.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import trustme

import tapotun_trio
from tests.harness import Host, Lab, Process, WaitError, wait_until

from .errors import BenchError

SERVER: Final = "192.0.2.1"
CLIENT: Final = "192.0.2.2"
TUNNEL_SERVER: Final = "10.10.0.1"
TUNNEL_CLIENT: Final = "10.10.0.2"
TUNNEL_SERVER_6: Final = "fd00:10::1"
TUNNEL_CLIENT_6: Final = "fd00:10::2"
BEHIND: Final = "10.77.0.2"
BEHIND_NET: Final = "10.77.0.0/24"
NAME: Final = "vpn.example.com"
TOKEN: Final = "of-the-bench"
STATIC_BYTES: Final = 512 << 20

# What turns the native data path off in the daemons of a variant; any other value is the user's own.
PLANE: Final = "TAPOTUN_PLANE"
WITHOUT_PLANE: Final = {PLANE: "off"}

_START_S: Final = 15.0
_PROBE_S: Final = 0.002

_NGINX: Final = """
user root root;
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 443 ssl;
        ssl_protocols TLSv1.2 TLSv1.3;
        server_name {name};
        ssl_certificate {directory}/server.pem;
        ssl_certificate_key {directory}/server.pem;
        location = /static {{ alias {directory}/static; }}
        location /ip {{
            proxy_pass http://127.0.0.1:8080;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_request_buffering off;
            client_max_body_size 0;
            client_body_buffer_size 64k;
            proxy_buffer_size 64k;
            proxy_buffers 4 64k;
            proxy_read_timeout 5m;
            client_body_timeout 5m;
            proxy_send_timeout 5m;
        }}
    }}
}}
"""


def installed() -> Path:
    """The program as a user has it, in the directory of the interpreter that runs this. Raises BenchError.

    A user's has compiled modules: pip and the deb make them. An editable installation would make them at its first run,
    but not where PYTHONDONTWRITEBYTECODE is set. To compile at each start takes as long as the rest of it, and 1.5 MB.
    """
    program = Path(sys.executable).with_name("tapotun")
    if not program.exists():
        raise BenchError(f"{program} is not there: `make venv` installs it")
    if not compileall.compile_dir(Path(tapotun_trio.__file__).parent, quiet=1):
        raise BenchError("the program's modules cannot be compiled: may this user write beside them?")
    return program


class Variant:
    """No tunnel, and what all variants have."""

    name = "veth"
    address = SERVER

    def __init__(self, lab: Lab, *, name: str | None = None) -> None:
        """Builds the machines; starts nothing yet. `name` is for a second one of a kind."""
        self.name = name or type(self).name
        self.server, self.client, self.behind = (
            lab.host(f"{self.name}-{name}") for name in ("server", "client", "behind")
        )
        lab.link(self.server, f"{SERVER}/24", self.client, f"{CLIENT}/24")
        lab.link(self.client, "10.77.0.1/24", self.behind, f"{BEHIND}/24")
        self.client.sysctl("net.ipv4.ip_forward", 1)
        self.client.hosts({NAME: SERVER})
        self.behind.ip("route add default via 10.77.0.1")
        for host in (self.server, self.client, self.behind):
            # What one transfer has learned of the path is not handed to the next one.
            host.sysctl("net.ipv4.tcp_no_metrics_save", 1)
        self._undo = ExitStack()
        self.client_end: Process | None = None
        self.server_end: Process | None = None
        self.proxy: Process | None = None

    def prepare(self) -> None:
        """Once: what stays up for the whole bench."""
        self.server.ip(f"route add {BEHIND_NET} via {CLIENT}")

    def start(self) -> float:
        """Bring it up. Seconds from the client's start to the first ping answered. Raises HarnessError."""
        return first_ping_s(self.client, self.address, time.monotonic())

    def stop(self) -> None:
        """The client's end; `start` brings it up again."""

    def close(self) -> None:
        """Everything that `prepare` and `start` have started."""
        self.stop()
        self._undo.close()

    def check(self) -> None:
        """Raises ProcessError with the log of an end that has died."""
        for process in (self.client_end, self.server_end, self.proxy):
            if process is not None:
                process.check_running()

    @property
    def pids(self) -> tuple[int, ...]:
        """Client's end, server's end, proxy: as many of them as there are."""
        return tuple(process.pid for process in (self.client_end, self.server_end, self.proxy) if process is not None)


class Relay(Variant):
    """crelay.c with its default options, but for the congestion control of its connections."""

    name = "relay"
    address = TUNNEL_SERVER

    def __init__(self, lab: Lab, program: Path, *, name: str | None = None) -> None:
        """`program` is the compiled relay."""
        super().__init__(lab, name=name)
        self._program = program
        self.congestion: str | None = None
        """Set it before `start`; None is the machine's default."""

    def prepare(self) -> None:
        """Its server ends with its client, so nothing stays."""

    def start(self) -> float:
        endpoint = f"{SERVER}:7000"
        options = ["-C", self.congestion] if self.congestion is not None else []
        self.server_end = self.server.start([self._program, "-i", "tun0", "-l", endpoint, *options])
        self.server.wait_for_listener(7000, by=self.server_end)
        self._configure(self.server, TUNNEL_SERVER)
        self.server.ip(f"route add {BEHIND_NET} dev tun0")
        begun = time.monotonic()
        self.client_end = self.client.start([self._program, "-i", "tun0", "-c", endpoint, *options])
        self._configure(self.client, TUNNEL_CLIENT)
        return first_ping_s(self.client, self.address, begun)

    def _configure(self, host: Host, address: str) -> None:
        wait_until(lambda: any(link["ifname"] == "tun0" for link in host.ip("link show")), _START_S, "tun0")
        host.ip(f"address add {address}/24 dev tun0")
        host.ip("link set tun0 up")

    def stop(self) -> None:
        for process in (self.client_end, self.server_end):
            if process is not None:
                process.signal(signal.SIGTERM)
        for process in (self.client_end, self.server_end):
            if process is not None:
                process.wait()
        self.client_end = self.server_end = None


class Tapotun(Variant):
    """The installed program at both ends, over http."""

    name = "http"
    address = TUNNEL_SERVER
    listen = SERVER

    def __init__(self, lab: Lab, *, name: str | None = None, env: Mapping[str, str] | None = None) -> None:
        """`env` is added to the environment of both daemons."""
        super().__init__(lab, name=name)
        self._program = installed()
        self.env = dict(env or {})

    def prepare(self) -> None:
        self.server_end = self._undo.enter_context(self._daemon(self.server, self._config()))
        self.server.wait_for_listener(8080, by=self.server_end)

    def start(self) -> float:
        config = {"name": "tun0", "token": TOKEN, **self._connect()}
        begun = time.monotonic()
        self.client_end = self._daemon(self.client, config)
        return first_ping_s(self.client, self.address, begun, by=self.client_end)

    def _connect(self) -> dict[str, Any]:
        """The client's `server` and what belongs to it."""
        return {"server": f"http://{SERVER}:8080/ip"}

    def _config(self) -> dict[str, Any]:
        """The server's."""
        digest = hashlib.sha1(TOKEN.encode()).hexdigest()
        return {
            "name": "tun0",
            "listen": self.listen,
            "port": 8080,
            "net": [f"{TUNNEL_SERVER}/24", f"{TUNNEL_SERVER_6}/64"],
            "clients": [
                {"name": "bench", "token": digest, "ip": [TUNNEL_CLIENT, TUNNEL_CLIENT_6], "routes": [BEHIND_NET]}
            ],
        }

    def _daemon(self, host: Host, config: Mapping[str, Any]) -> Process:
        file = host.tmp / "tapotun.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps([config]), encoding="utf-8")
        return host.start([self._program, file], env=self.env)

    def stop(self) -> None:
        if self.client_end is not None:
            self.client_end.stop()
            self.client_end = None


class TapotunTap(Tapotun):
    """The same with TAP interfaces, which have the addresses that the TUN interfaces have, and no bridge."""

    name = "tap"

    def _config(self) -> dict[str, Any]:
        config = super()._config() | {"device": "tap"}
        for client in config["clients"]:
            del client["routes"]  # the server routes no Ethernet frames
        return config


class TapotunTls(Tapotun):
    """The same through nginx, which ends TLS, on the server's machine, with what conf/proxies/nginx has in its
    location. It has a large static file, too."""

    name = "https"
    listen = "127.0.0.1"

    def prepare(self) -> None:
        super().prepare()
        directory = self.server.tmp / "nginx"
        directory.mkdir()
        authority = trustme.CA()
        authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
        self.ca_file = self.client.tmp / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        with (directory / "static").open("wb") as file:
            file.truncate(STATIC_BYTES)  # a hole: to be encrypted like anything else, but read from no disk
        config = directory / "nginx.conf"
        config.write_text(_NGINX.format(directory=directory, name=NAME), encoding="ascii")
        self.proxy = self._undo.enter_context(
            self.server.start(["nginx", "-e", "stderr", "-p", directory, "-c", config])
        )
        self.server.wait_for_listener(443, by=self.proxy)

    def _connect(self) -> dict[str, Any]:
        return {"server": f"https://{NAME}/ip", "tls": {"ca_file": str(self.ca_file)}}


def first_ping_s(host: Host, address: str, begun: float, *, by: Process | None = None) -> float:
    """Ping every 2 ms until one is answered; seconds since `begun` (monotonic clock).

    Raises WaitError; ProcessError if `by` ends meanwhile.
    """
    identifier = os.getpid() & 0xFFFF
    with host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(_PROBE_S)
        for number in range(1 << 16):
            if by is not None:
                by.check_running()
            if time.monotonic() - begun > _START_S:
                break
            try:
                sock.sendto(echo_request(identifier, number), (address, 0))
                while True:
                    answer = sock.recv(256)
                    if answer[20] == 0 and answer[24:26] == identifier.to_bytes(2, "big"):
                        return time.monotonic() - begun
            except TimeoutError:
                continue
            except OSError:  # no interface, no route yet
                time.sleep(_PROBE_S)
    raise WaitError(f"waited {_START_S:g} s for {address} to answer {host.name}\n{by.tail() if by else ''}".rstrip())


def echo_request(identifier: int, number: int) -> bytes:
    """An ICMP echo request without payload: RFC 792."""
    total = (8 << 8) + identifier + number
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = ~total & 0xFFFF
    return struct.pack("!BBHHH", 8, 0, checksum, identifier, number)
