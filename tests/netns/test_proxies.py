"""conf/proxies, as they are shipped: what docs/deploy.md promises of each proxy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Payload, Process, command, download, ping, upload
from tests.harness.recipes import NAME, RECIPES, Proxy
from tests.integrity import CheckedTcp, CheckedUdp

from .topologies import (
    CLIENT,
    CLIENT_6,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    cable_6,
    client_config,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

CONNECTED: Final = f"{UPLOADING}|WebSocket from "
EACH: Final = pytest.mark.parametrize("kind", RECIPES)
HALF_GIB: Final = 512 * 1024 * 1024

# The recipes' timeouts, lowered. Caddy has none by default; these are the ones that do no harm.
TIMEOUT_S: Final = 3
SHORT: Final[dict[str, dict[str, str]]] = {
    "nginx": {" 5m;": f" {TIMEOUT_S}s;"},
    "caddy": {
        "{\n\tlog": "{\n\tservers {\n\t\ttimeouts {\n\t\t\tidle 3s\n\t\t\tread_header 3s\n\t\t}\n\t}\n\tlog",
        "header_up ": "transport http {\n\t\t\t\twrite_timeout 3s\n\t\t\t}\n\t\t\theader_up ",
    },
    "haproxy": {" 5m": f" {TIMEOUT_S}s", "http-request 10s": f"http-request {TIMEOUT_S}s"},
    "apache": {"=300": f"={TIMEOUT_S}", "Timeout 300": f"Timeout {TIMEOUT_S}"},
}

# A stall of the kernel's or a proxy's making is 40 or 200 ms long. Fewer pings than this may take longer than that
# by way of a machine that is busy.
STALL_MS: Final = 35.0
FEW: Final = 0.02


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemons run at their own speed: what of them is covered here is covered elsewhere."""
    monkeypatch.delenv("TAPOTUN_COVERAGE", raising=False)


@dataclass(frozen=True)
class World:
    """A server behind a proxy, and its client."""

    server: Host
    client: Host
    server_daemon: Process
    client_daemon: Process
    proxy: Proxy


@contextmanager
def behind(
    lab: Lab,
    kind: str,
    *,
    replace: Mapping[str, str] | None = None,
    server_fields: Config | None = None,
    client_fields: Config | None = None,
    ipv6: bool = False,
) -> Iterator[World]:
    """A tunnel through a recipe, connected. ``ipv6``: the cable to the proxy has no IPv4."""
    server, client = cable_6(lab) if ipv6 else cable(lab)
    config = server_config(**(server_fields or {}))
    del config["listen"]  # the default, loopback, which the recipes have
    with running(server, config) as server_daemon, RECIPES[kind](server, replace=replace) as proxy:
        entry = _https_client(proxy, **(client_fields or {}))
        with running(client, entry, "--log-level", "debug", until=CONNECTED) as client_daemon:
            yield World(server, client, server_daemon, client_daemon, proxy)


def _https_client(proxy: Proxy, **fields: Any) -> Config:
    """A client that comes through a proxy, and knows its authority."""
    return client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)}, **fields)


def stalls(host: Host, address: str) -> float:
    """Which part of 200 pings took as long as a stall or got lost: one at a time, then several under way."""
    slow, count = 0, 100
    for interval in (0.02, 0.002):
        output = ping(host, address, count=count, interval=interval).output
        times = [float(it) for it in re.findall(r"time=([\d.]+) ms", output)]
        slow += count - sum(it < STALL_MS for it in times)
    return slow / (2 * count)


@EACH
def test_a_gibibyte_and_small_packets(lab: Lab, kind: str) -> None:
    """Half of it each way, with its checksum, and then no packet waits for others."""
    with behind(lab, kind) as world:
        with Payload(HALF_GIB) as payload:
            for move in (upload, download):
                done = move(world.client, world.server, TUNNEL_SERVER, payload)
                print(f"{kind}: {move.__name__} {done.gbit_s:.2f} Gbit/s")
        # What a proxy or the kernel holds back it holds back each time; a busy machine does so now and then.
        measured = [stalls(world.client, TUNNEL_SERVER)]
        while measured[-1] >= FEW and len(measured) < 3:
            measured.append(stalls(world.client, TUNNEL_SERVER))
        assert min(measured) < FEW, measured


@EACH
def test_streams_outlive_the_timeouts(lab: Lab, kind: str) -> None:
    """An idle tunnel, with a keepalive below the proxy's timeouts, keeps its streams for longer than these."""
    fields: Config = {"keepalive": 1}
    with behind(lab, kind, replace=SHORT[kind], server_fields=fields) as world:
        before = world.client_daemon.log_end
        time.sleep(1.5 * TIMEOUT_S)
        assert re.search("download|upload", world.client_daemon.log[before:]) is None, world.client_daemon.tail()
        assert ping(world.client, TUNNEL_SERVER).ok


# Timeouts that end a stream, and the keepalive in spite of which they do. Caddy's are not those above: one counts the
# whole of an upload, whatever flows.
ENDING: Final[dict[str, tuple[dict[str, str], int]]] = {
    **{kind: (SHORT[kind], 30) for kind in ("nginx", "haproxy", "apache")},
    "caddy": ({"{\n\tlog": "{\n\tservers {\n\t\ttimeouts {\n\t\t\tread_body 3s\n\t\t}\n\t}\n\tlog"}, 1),
}


@EACH
def test_the_timeouts_are_the_ones_that_matter(lab: Lab, kind: str) -> None:
    """Those that the test above lowers do end streams, where the keepalive is above them."""
    replace, keepalive = ENDING[kind]
    with behind(lab, kind, replace=replace, server_fields={"keepalive": keepalive}) as world:
        before = world.client_daemon.log_end
        world.client_daemon.wait_for_log("(download|upload)(:| to | from )", 12, after=before)


@EACH
def test_reload_and_restart_under_load(lab: Lab, kind: str) -> None:
    """A reload costs nothing. A restart costs what was under way; TCP within the tunnel does not break."""
    with behind(lab, kind, client_fields={"rotate_s": [1.0, 2.0]}) as world:
        with (
            CheckedUdp(world.client, TUNNEL_CLIENT, world.server, TUNNEL_SERVER, rate=300) as udp,
            CheckedTcp(world.client, world.server, TUNNEL_SERVER, rate=2e6) as tcp,
        ):
            tcp.wait_for_flow()
            udp.wait_for_flow()
            world.proxy.reload()
            mark = world.client_daemon.log_end
            for stream in ("download from ", "upload to "):  # each is replaced once by one that came after the reload
                world.client_daemon.wait_for_log(stream, 10, after=mark)
            udp.wait_for_flow()
            restarted_ns = time.monotonic_ns()
            world.proxy.restart()
            back_s = udp.wait_for_flow(timeout=20)
            tcp.wait_for_flow(20)
            recovered_ns = time.monotonic_ns()
            time.sleep(1)
            ways = udp.finish()
            assert all(count > 0 for count in tcp.finish())
        for way in ways:
            print(f"{kind}: back {back_s:.2f} s after the restart was done; {way}")
            assert (way.duplicated, way.corrupted) == (0, 0)
            in_restart = way.lost_between(restarted_ns - 100_000_000, recovered_ns)
            assert way.lost == in_restart, f"{way.lost - in_restart} lost without a restart: {way.losses()}"


@EACH
def test_a_disconnect_is_no_failure_of_the_proxy(lab: Lab, kind: str) -> None:
    """The operator ends a session. The client says that, comes back, and blames nobody."""
    server, client = cable(lab)
    config = server_config()
    del config["listen"]
    with (
        RECIPES[kind](server) as proxy,  # first, since it has its own /run
        running(server, config),
        running(client, _https_client(proxy), until=CONNECTED) as daemon,
    ):
        before = daemon.log_end
        server.run([*command(), "disconnect", "laptop"])
        daemon.wait_for_log("the server ends the session: disconnected by the operator", after=before)
        daemon.wait_for_log(UPLOADING, after=before)
        said = daemon.log[before:]
        assert " WARNING " not in said, said


HELD_BACK: Final = "(?i) WARNING .*proxy_request_buffering"
TOO_LARGE: Final = "upload: .*413 "

# What docs/deploy.md calls a trap: the recipe's line, what is in its place by default or by a common mistake, and what
# the client then has to say.
TRAPS: Final[dict[str, tuple[str, dict[str, str], str]]] = {
    "HTTP/1.0 to the upstream": ("nginx", {"proxy_http_version 1.1;": "proxy_http_version 1.0;"}, HELD_BACK),
    "proxy_request_buffering": ("nginx", {"proxy_request_buffering off;": ""}, HELD_BACK),
    "client_max_body_size": ("nginx", {"client_max_body_size 0;": ""}, TOO_LARGE),
    "buffer_requests": ("caddy", {"header_up -Forwarded": "buffer_requests"}, HELD_BACK),
    "http-buffer-request": ("haproxy", {"option http-no-delay": "option http-buffer-request"}, HELD_BACK),
    "prefetch": ("apache", {"SetEnv proxy-prefetch-nonblocking 1": ""}, HELD_BACK),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_the_lines_are_for(lab: Lab, trap: str) -> None:
    """Without it a recipe does not work, and the client says why."""
    kind, replace, words = TRAPS[trap]
    with behind(lab, kind, replace=replace) as world:
        if words == TOO_LARGE:
            with CheckedTcp(world.client, world.server, TUNNEL_SERVER, both_ways=False, rate=5e6):
                world.client_daemon.wait_for_log(words, 15)
        else:
            world.client_daemon.wait_for_log(words, 8)


def test_haproxys_delay(lab: Lab) -> None:
    """One more line without which there is a stall, which our own test of stalls sees."""
    with behind(lab, "haproxy", replace={"option http-no-delay": ""}) as world:
        assert stalls(world.client, TUNNEL_SERVER) > 0.5


@EACH
def test_a_websocket(lab: Lab, kind: str) -> None:
    """The recipes let it pass, for paths that hold uploads back elsewhere; idle for longer than the timeouts, too."""
    fields: Config = {"keepalive": 1}
    websocket: Config = {"transport": "websocket"}
    with behind(lab, kind, replace=SHORT[kind], server_fields=fields, client_fields=websocket) as world:
        before = world.client_daemon.log_end
        with Payload(20_000_000) as payload:
            for move in (upload, download):
                move(world.client, world.server, TUNNEL_SERVER, payload)
        time.sleep(1.5 * TIMEOUT_S)
        assert not re.search("trying again|broke", world.client_daemon.log[before:]), world.client_daemon.tail()


@EACH
def test_no_token_in_its_logs(lab: Lab, kind: str) -> None:
    """Nor in those of requests that failed; whichever header it travels in."""
    both: Config = {"auth_header": "both"}
    with behind(lab, kind, client_fields=both) as world:
        world.client_daemon.stop(STOP_S)
        world.server_daemon.stop(STOP_S)
        entry = _https_client(world.proxy, **both)
        with running(world.client, entry, until="50[234] "):
            pass
        world.proxy.stop()
        log = world.proxy.access_log()
        for words in ("PUT", "GET", "/ip", "192.0.2.2"):
            assert words in log, log
        assert token("laptop") not in log
        assert not re.search("(?i)x-api-key", log)
        world.proxy.start()


@EACH
def test_who_a_visitor_is(lab: Lab, kind: str) -> None:
    """The upstream is told the address that the proxy sees, and nothing that the visitor says of itself."""
    server, client = cable(lab)
    with RECIPES[kind](server) as proxy, server.socket() as ears, ThreadPoolExecutor(1) as pool:
        ears.bind(("127.0.0.1", 8080))
        ears.listen()
        ears.settimeout(10)
        head = pool.submit(_answer_once, ears)
        forged = ["-H", "X-Forwarded-For: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6", "-H", "X-Api-Key: a"]
        forged += ["-H", "X-Forwarded-Proto: http"]
        client.run(["curl", "-sS", "--fail", "--cacert", proxy.ca_file, *forged, f"https://{NAME}/ip"])
        fields = dict(re.findall(r"(?m)^([\w-]+): *(.*?)\r$", head.result(10).lower()))
    assert fields["x-forwarded-for"] == CLIENT
    assert fields["x-forwarded-proto"] == "https"
    assert "forwarded" not in fields
    assert fields["host"] == NAME
    assert fields["x-api-key"] == "a"


@EACH
def test_the_server_logs_who_a_visitor_is(lab: Lab, kind: str) -> None:
    """With `trusted_proxies` as docs/deploy.md has it; what a visitor says of itself is in no line."""
    trusting: Config = {"trusted_proxies": ["127.0.0.1", "::1"]}
    with behind(lab, kind, server_fields=trusting) as world:
        world.server_daemon.wait_for_log(rf"connected from {CLIENT} \(through 127\.0\.0\.1:\d+\)")
        forged = ["-H", "X-Forwarded-For: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6", "-H", "X-Api-Key: wrong"]
        world.client.run(["curl", "-sS", "--cacert", world.proxy.ca_file, *forged, f"https://{NAME}/ip"])
        world.server_daemon.wait_for_log(rf"{CLIENT} \(through 127\.0\.0\.1:\d+\) refused: unknown or missing token")
        assert "6.6.6.6" not in world.server_daemon.log


# In the recipes the way to the server is IPv4's loopback. Here it is IPv6's, on which a server listens by default, too.
TO_LOOPBACK_6: Final = {"127.0.0.1:8080": "[::1]:8080"}


@EACH
def test_over_ipv6(lab: Lab, kind: str) -> None:
    """To the proxy and behind it, with both transports. The server learns who the visitor is."""
    trusting: Config = {"trusted_proxies": ["127.0.0.1", "::1"]}
    with behind(lab, kind, replace=TO_LOOPBACK_6, server_fields=trusting, ipv6=True) as world:
        words = rf"from {CLIENT_6} \(through \[::1\]:\d+\)"
        world.server_daemon.wait_for_log(f"connected {words}")
        with Payload(5_000_000) as payload:
            for move in (upload, download):
                move(world.client, world.server, TUNNEL_SERVER, payload)
        forged = ["-H", "X-Forwarded-For: 2001:db8::6666", "-H", 'Forwarded: for="[2001:db8::6666]"']
        url = f"https://{NAME}/ip"
        world.client.run(["curl", "-sS", "--cacert", world.proxy.ca_file, *forged, "-H", "X-Api-Key: wrong", url])
        world.server_daemon.wait_for_log(rf"{words[5:]} refused: unknown or missing token")
        assert "6666" not in world.server_daemon.log
        world.client_daemon.stop(STOP_S)
        entry = _https_client(world.proxy, transport="websocket")
        with running(world.client, entry, "--log-level", "debug", until="WebSocket from "):
            assert ping(world.client, TUNNEL_SERVER).ok


SITES: Final = {"nginx": "site.conf", "caddy": "site.Caddyfile", "haproxy": "site.cfg", "apache": "site.conf"}
SOCKET: Final = "/run/tapotun-proxy/office.sock"


@EACH
def test_a_site_with_pages_and_two_interfaces(lab: Lab, kind: str) -> None:
    """A static page on /, one interface by port and one by Unix socket, all under one name."""
    server, client = cable(lab)
    pages = server.tmp / "html"
    pages.mkdir(mode=0o755)
    (pages / "index.html").write_text("<h1>Nothing to see here</h1>", encoding="ascii")
    server.run(["mount", "--bind", pages, "/var/www/html"])
    home = server_config(allowed("home"))
    del home["listen"]
    office = server_config(
        allowed("office", "10.20.0.2"),
        name="tun1",
        listen=f"unix:{SOCKET}",
        listen_mode="0666",
        trusted_proxies=["unix"],
        net="10.20.0.1/24",
    )
    del office["port"]
    with RECIPES[kind](server, SITES[kind]) as proxy:
        server.run(["mkdir", "/run/tapotun-proxy"])
        with running(server, [home, office]) as server_daemon:
            entries = [
                client_config(who, name=name, server=f"https://{NAME}/{who}", tls={"ca_file": str(proxy.ca_file)})
                for who, name in (("home", "tun0"), ("office", "tun1"))
            ]
            with running(client, entries, until="tun0: upload to ") as daemon, Payload(20_000_000) as payload:
                daemon.wait_for_log("tun1: upload to ")
                server_daemon.wait_for_log(rf"office: connected from {CLIENT} \(through unix socket\)")
                for address in (TUNNEL_SERVER, "10.20.0.1"):
                    for move in (upload, download):
                        move(client, server, address, payload)
                    assert ping(client, address).ok
                for path, status, body in (("", "200", "Nothing to see here"), ("elsewhere", "404", "")):
                    fetch = [
                        "curl",
                        "-sS",
                        "-w",
                        "%{http_code}",
                        "--cacert",
                        str(proxy.ca_file),
                        f"https://{NAME}/{path}",
                    ]
                    answer = client.run(fetch).stdout
                    assert answer.endswith(status)
                    assert body in answer


def _answer_once(ears: Any) -> str:
    sock, _ = ears.accept()
    with sock:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return head.decode("latin-1")
