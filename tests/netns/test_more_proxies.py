"""The lines that docs/deploy.md has for proxies beside those of conf/proxies, as they stand there.

What a file of one needs in addition, for its run in a namespace, is here: directories, users, the foreground.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tests.harness import ROOT, Host, Lab, Process, download, upload, wait_for_ping

from .test_status import peer
from .topologies import (
    CLIENT,
    CLIENT_6,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    cable,
    cable_6,
    client_config,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

NAME: Final = "vpn.example.com"
BYTES: Final = 2_000_000
WEBSOCKET: Final = "WebSocket from "
START_S: Final = 60.0
CERTIFICATES: Final = f"/etc/ssl/{NAME}"


def lines_of(language: str) -> str:
    """The block of that language in docs/deploy.md."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)
    assert isinstance(block, str)
    return block


@dataclass(frozen=True)
class Kind:
    """How a proxy is started.

    Attributes:
        language: of its block in the docs.
        file: makes the whole file of the block, given the directory.
        argv: the command, given the file.
        port: where it listens.
        speaks_proxy: it sends a PROXY protocol header, and no X-Forwarded-For.
    """

    language: str
    file: Callable[[str, Path], str]
    argv: Callable[[Path], Sequence[str | Path]]
    port: int = 80
    speaks_proxy: bool = False


def _lighttpd(lines: str, directory: Path) -> str:
    listening = 'server.port = 80\n$SERVER["socket"] == "[::]:80" { }\n'  # as Debian's file does
    return f'server.document-root = "{directory}"\n{listening}server.modules = ()\n{lines}'


def _squid(lines: str, directory: Path) -> str:
    return (
        f"{lines}pid_filename none\naccess_log none\ncache_log stdio:/dev/stderr\n"
        "shutdown_lifetime 0 seconds\npinger_enable off\n"
        f"visible_hostname {NAME}\n"
    )


def _stunnel(lines: str, directory: Path) -> str:
    return f"foreground = yes\npid =\n{lines}"


def _nginx(lines: str, directory: Path) -> str:
    return (
        "load_module modules/ngx_stream_module.so;\nuser root root;\ndaemon off;\nmaster_process off;\n"
        f"pid {directory}/nginx.pid;\nerror_log stderr;\nevents {{ }}\nstream {{\n{lines}}}\n"
    )


def _as_it_is(lines: str, directory: Path) -> str:
    return lines


KINDS: Final[dict[str, Kind]] = {
    "lighttpd": Kind("lighttpd", _lighttpd, lambda file: ["lighttpd", "-D", "-f", file]),
    "varnish": Kind(
        "vcl",
        _as_it_is,
        lambda file: [
            *("varnishd", "-F", "-a", ":80", "-f", file, "-n", file.parent / "varnish", "-s", "malloc,16m"),
            *("-j", "none", "-p", "pipe_timeout=300"),
        ],
    ),
    "squid-accelerator": Kind("squid-accelerator", _squid, lambda file: ["squid", "-N", "-f", file]),
    "squid-forward": Kind("squid-forward", _squid, lambda file: ["squid", "-N", "-f", file], port=3128),
    "stunnel": Kind("stunnel", _stunnel, lambda file: ["stunnel4", file], port=443, speaks_proxy=True),
    "hitch": Kind(
        "hitch",
        lambda lines, directory: f'user = "_hitch"\ngroup = "_hitch"\n{lines}',
        lambda file: ["hitch", "--config", file],
        port=443,
        speaks_proxy=True,
    ),
    "nginx-stream": Kind(
        "nginx-stream", _nginx, lambda file: ["nginx", "-e", "stderr", "-c", file], port=443, speaks_proxy=True
    ),
    "node": Kind("js", _as_it_is, lambda file: ["node", file]),
}
# Those through which a client reaches its server by the name, and what its URL begins with.
SCHEMES: Final = {"stunnel": "https", "hitch": "https", "nginx-stream": "http"}


@contextmanager
def proxy(host: Host, kind: str, *, lines: str | None = None) -> Iterator[Process]:
    """One of them in a host, listening. ``lines``: others than the docs'."""
    made = KINDS[kind]
    directory = host.tmp / kind
    directory.mkdir(mode=0o755)
    text = made.file(lines if lines is not None else lines_of(made.language), directory)
    if CERTIFICATES in text:
        _certificate(directory)
        text = text.replace(CERTIFICATES, str(directory))
    file = directory / "config"
    file.write_text(text, encoding="utf-8")
    if kind.startswith("squid"):
        host.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"])  # its segments there have fixed names
    environment = {"NODE_PATH": "/usr/share/nodejs", "HOME": str(directory)}
    with host.start(made.argv(file), name=kind, env=environment) as process:
        host.wait_for_listener(made.port, START_S, by=process)
        yield process


def _certificate(directory: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    leaf = authority.issue_cert(NAME)
    leaf.private_key_pem.write_to_path(directory / "privkey.pem")
    for chain in leaf.cert_chain_pems:
        chain.write_to_path(directory / "fullchain.pem", append=True)
    leaf.private_key_and_cert_chain_pem.write_to_path(directory / "haproxy.pem")


@contextmanager
def behind(
    lab: Lab, kind: str, *, until: str = UPLOADING, lines: str | None = None, ipv6: bool = False, **fields: Any
) -> Iterator[tuple[Host, Host, Process, Process]]:
    """A server behind one of them, and a client that has come through it: both machines, and both daemons. ``ipv6``:
    the cable has no IPv4."""
    server, client = cable_6(lab) if ipv6 else cable(lab)
    trusting: Config = {"trusted_proxies": ["127.0.0.1", "::1"], "proxy_protocol": KINDS[kind].speaks_proxy}
    entry = client_config(server=f"{SCHEMES.get(kind, 'http')}://{NAME}:{KINDS[kind].port}/ip", **fields)
    if SCHEMES.get(kind) == "https":
        entry["tls"] = {"ca_file": str(server.tmp / kind / "ca.pem")}
    with ExitStack() as stack:
        daemon = stack.enter_context(running(server, server_config(listen="127.0.0.1", **trusting)))
        stack.enter_context(proxy(server, kind, lines=lines))
        at_client = stack.enter_context(running(client, entry, "--log-level", "debug", until=None))
        at_client.wait_for_log(until, START_S)
        yield server, client, daemon, at_client


def assert_traffic(server: Host, client: Host) -> None:
    wait_for_ping(client, TUNNEL_SERVER, START_S)
    wait_for_ping(server, TUNNEL_CLIENT, START_S)
    for move in (upload, download):
        move(client, server, TUNNEL_SERVER, BYTES)


REVERSE: Final = [kind for kind in KINDS if kind != "squid-forward"]


@pytest.mark.parametrize("kind", REVERSE)
def test_get_and_put(lab: Lab, kind: str) -> None:
    with behind(lab, kind) as (server, client, daemon, at_client):
        assert_traffic(server, client)
        port = r":\d+" if KINDS[kind].speaks_proxy else ""
        daemon.wait_for_log(rf"connected from {CLIENT}{port} \(through (127\.0\.0\.1|\[::1\]):\d+\)", START_S)
        assert WEBSOCKET not in at_client.log
        assert "WARNING" not in at_client.log, at_client.tail()
        # A proxy that speaks the PROXY protocol does not say whether it has ended TLS.
        assert peer(server)["encrypted"] is (None if KINDS[kind].speaks_proxy else False)
        # What a visitor says of itself is not believed.
        url = f"{SCHEMES.get(kind, 'http')}://{NAME}:{KINDS[kind].port}/ip"
        forged = ["-H", "X-Forwarded-For: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6", "-H", "X-Api-Key: wrong"]
        client.run(["curl", "-sSk", *forged, url], timeout=START_S)
        daemon.wait_for_log(rf"{CLIENT}{port} \(through .*refused: unknown or missing token", START_S)
        assert "6.6.6.6" not in daemon.log


@pytest.mark.parametrize("kind", REVERSE)
def test_over_ipv6(lab: Lab, kind: str) -> None:
    """To the proxy. Between it and the server is loopback, as in the docs."""
    with behind(lab, kind, ipv6=True) as (server, client, daemon, at_client):
        assert_traffic(server, client)
        name = rf"\[{CLIENT_6}\]:\d+" if KINDS[kind].speaks_proxy else CLIENT_6
        daemon.wait_for_log(rf"connected from {name} \(through (127\.0\.0\.1|\[::1\]):\d+\)", START_S)
        assert WEBSOCKET not in at_client.log
        assert "WARNING" not in at_client.log, at_client.tail()


@pytest.mark.parametrize("kind", REVERSE)
def test_a_websocket(lab: Lab, kind: str) -> None:
    with behind(lab, kind, until=WEBSOCKET, transport="websocket") as (server, client, _, at_client):
        assert_traffic(server, client)
        assert "WARNING" not in at_client.log, at_client.tail()
        assert peer(server)["encrypted"] is (None if KINDS[kind].speaks_proxy else False)


def test_lighttpd_s_defaults_keep_the_answer_to_a_get(lab: Lab) -> None:
    """A client finds out, and uses a WebSocket."""
    lines = re.sub(r"(?m)^server\.stream.*\n", "", lines_of("lighttpd"))
    with behind(lab, "lighttpd", until=WEBSOCKET, lines=lines) as (server, client, _, at_client):
        assert_traffic(server, client)
        at_client.wait_for_log("did not answer within 5 s; using a WebSocket instead", START_S)


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_squid_as_an_outgoing_proxy(lab: Lab, transport: str) -> None:
    """The client's machine knows neither the server's name nor a way to it."""
    server, squid, client = lab.host("server"), lab.host("squid"), lab.host("client")
    lab.link(server, f"{SERVER}/24", squid, "192.0.2.2/24")
    lab.link(squid, "198.51.100.1/24", client, "198.51.100.2/24")
    squid.hosts({NAME: SERVER})
    entry = client_config(
        server=f"http://{NAME}:443/ip", proxy="http://198.51.100.1:3128", transport=transport, rotate_s=[500, 600]
    )
    with running(server, server_config(port=443)), proxy(squid, "squid-forward"):
        with running(client, entry, until=None) as daemon:
            daemon.wait_for_log(WEBSOCKET if transport == "websocket" else UPLOADING, START_S)
            assert_traffic(server, client)
            assert "WARNING" not in daemon.log, daemon.tail()


def test_hitch_with_version_1(lab: Lab) -> None:
    lines = lines_of("hitch").replace("write-proxy-v2", "write-proxy-v1")
    with behind(lab, "hitch", lines=lines) as (_, client, daemon, _at_client):
        wait_for_ping(client, TUNNEL_SERVER, START_S)
        daemon.wait_for_log(rf"connected from {CLIENT}:\d+ \(through 127\.0\.0\.1:\d+\)", START_S)
