"""Tunnels whose connections go over IPv6: networks without IPv4, link-local addresses, NAT64, broken IPv6.

::

    client 2001:db8::2 --- 2001:db8::1 server
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.client.path_watch import ROUTE_CHECK_S
from tests.harness import (
    Host,
    Lab,
    Payload,
    Process,
    command,
    download,
    no_leaks,
    ping,
    upload,
    wait_for_ping,
    wait_until,
)

from .test_admin import PORT, Session, admin, write
from .test_roaming import RENEWED
from .test_status import peer
from .topologies import (
    CLIENT_6,
    SERVER,
    SERVER_6,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    allowed,
    cable,
    cable_6,
    client_config,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

NAME: Final = "vpn.example.com"
BACK_S: Final = 60.0  # for a slow machine
BYTES: Final = 1_000_000


def without_ipv4(lab: Lab) -> tuple[Host, Host]:
    """As `cable_6`. Not even loopback has an IPv4 address."""
    server, client = cable_6(lab)
    for host in (server, client):
        host.ip("address del 127.0.0.1/8 dev lo")
    return server, client


def link_local(host: Host, interface: str = "eth0") -> str:
    (link,) = host.ip(f"address show {interface}")
    (address,) = (each["local"] for each in link["addr_info"] if each["family"] == "inet6" and each["scope"] == "link")
    return str(address)


def assert_traffic(server: Host, client: Host) -> None:
    assert ping(client, TUNNEL_SERVER).ok
    assert ping(server, TUNNEL_CLIENT).ok
    with Payload(BYTES) as payload:
        for move in (upload, download):
            move(client, server, TUNNEL_SERVER, payload)


@pytest.mark.parametrize(("listen", "host"), [("::", f"[{SERVER_6}]"), (SERVER_6, NAME)])
def test_no_ipv4_at_all(lab: Lab, listen: str, host: str) -> None:
    """Nor on loopback. All subcommands and the admin listener work."""
    server, client = without_ipv4(lab)
    file = write(client, client_config(server=f"http://{host}:8080/ip"))
    served = write(server, server_config(listen=listen), admin=admin(listen=f"[::1]:{PORT}"))
    with (
        no_leaks(server),
        no_leaks(client),
        running(
            server,
            served,
        ) as at_server,
        running(client, file, until=UPLOADING) as at_client,
    ):
        assert_traffic(server, client)
        at_server.wait_for_log(rf"connected from \[{CLIENT_6}\]:\d+")
        assert re.fullmatch(rf"\[{CLIENT_6}\]:\d+", peer(server)["endpoint"])
        assert f"{host}:8080" in client.run([*command(), "status"]).stdout
        session = Session(server, f"http://[::1]:{PORT}")
        assert f"[{CLIENT_6}]:" in session.get("/api/status").body
        doctor = client.run([*command(), "doctor", file], check=False)
        assert "failure" not in doctor.stdout, doctor.stdout
        before = at_client.log_end
        server.run([*command(), "disconnect", "laptop"])
        at_client.wait_for_log(UPLOADING, BACK_S, after=before)
        assert at_client.stop(10) == 0
        probe = client.run([*command(), "probe", "--idle-limit", "0", file], timeout=BACK_S, check=False)
        assert SERVER_6 in probe.stdout, probe.stdout
        assert probe.returncode == 0, probe.stdout


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_link_local_address(lab: Lab, transport: str) -> None:
    """Both ends show on which link the other one is. Later streams find their way, too."""
    server, client = without_ipv4(lab)
    there, here = link_local(server), link_local(client)
    config = client_config(server=f"http://[{there}%25eth0]:8080/ip", transport=transport, rotate_s=[1, 2])
    until = UPLOADING if transport == "http" else "WebSocket from "
    with (
        running(server, server_config(listen="::")) as at_server,
        running(client, config, "--log-level", "debug", until=until) as at_client,
    ):
        assert_traffic(server, client)
        at_server.wait_for_log(rf"connected from \[{here}%eth0\]:\d+")
        assert re.fullmatch(rf"\[{here}%eth0\]:\d+", peer(server)["endpoint"])
        assert f"[{there}%eth0]:8080" in client.run([*command(), "status"]).stdout
        mark = at_client.log_end
        at_client.wait_for_log(until.rstrip(), BACK_S, after=mark)
        assert "WARNING" not in at_client.log, at_client.tail()
        assert at_client.stop(10) == 0
        file = write(client, config)
        probe = client.run([*command(), "probe", "--idle-limit", "0", file], timeout=60, check=False)
        assert f"{there}%eth0" in probe.stdout, probe.stdout
        assert probe.returncode == 0, probe.stdout


def test_a_zone_that_is_not_there_yet(lab: Lab) -> None:
    """The interface appears later; until then the log says what is missing."""
    server, client = lab.host("server"), lab.host("client")
    url = "http://[fe80::1%25eth0]:8080/ip"
    with running(client, client_config(server=url), until="this machine has no interface eth0") as at_client:
        lab.link(server, "2001:db8::1/64", client, "2001:db8::2/64")
        server.ip("address add fe80::1/64 dev eth0 nodad")
        with running(server, server_config(listen="::")):
            at_client.wait_for_log(UPLOADING, BACK_S)
            wait_for_ping(client, TUNNEL_SERVER, BACK_S)


# ------------------------------------------------------------------ broken IPv6


@pytest.mark.parametrize(
    "fault",
    [
        "2001:db8::77 dev eth0",  # no host: no neighbour answers
        "2001:db8:1::77 dev eth0",  # no route
        "2001:db8::1 dev eth0 drop",  # the SYNs vanish
    ],
)
def test_broken_ipv6(lab: Lab, fault: str) -> None:
    """A name with an AAAA that leads nowhere: the very first attempt gets through, over IPv4."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, ["192.0.2.1/24", f"{SERVER_6}/64"], client, ["192.0.2.2/24", f"{CLIENT_6}/64"])
    address = fault.split()[0]
    if fault.endswith("drop"):
        server.run(["nft", "add table ip6 t; add chain ip6 t i { type filter hook input priority 0; }"])
        server.run(["nft", "add rule ip6 t i tcp dport 8080 drop"])
    file = client.tmp / "hosts"
    client.hosts({})
    file.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n192.0.2.1 {NAME}\n", encoding="ascii")
    with running(server, server_config(listen=["::", "0.0.0.0"])):
        with running(client, client_config(server=f"http://{NAME}:8080/ip"), until=UPLOADING) as at_client:
            assert ping(client, TUNNEL_SERVER).ok
            assert "WARNING" not in at_client.log, at_client.tail()
            assert re.fullmatch(r"192\.0\.2\.2:\d+", peer(server)["endpoint"])


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_ipv6_only_through_the_tunnel_itself(lab: Lab, transport: str) -> None:
    """The client's machine has no IPv6 but that of the tunnel, which leads to the server's AAAA, too."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "192.0.2.1/24", client, "192.0.2.2/24")
    inside, own = "fd00:10::1", "fd00:20::1"
    server.ip(f"address add {own}/128 dev lo")
    file = client.tmp / "hosts"
    client.hosts({})
    file.write_text(f"127.0.0.1 localhost\n{own} {NAME}\n192.0.2.1 {NAME}\n", encoding="ascii")
    hub = server_config(
        {**allowed("laptop"), "ip": [TUNNEL_CLIENT, "fd00:10::2"]},
        net=[f"{TUNNEL_SERVER}/24", f"{inside}/64"],
        push_routes=["fd00:20::/64"],
        listen=["::", "0.0.0.0"],
    )
    config = client_config(server=f"http://{NAME}:8080/ip", transport=transport, rotate_s=[0.5, 1.0])
    with running(server, hub) as at_server, running(client, config, until=None) as at_client:
        wait_until(lambda: ping(client, own).ok, BACK_S, "the way inside", at_client.tail)
        time.sleep(5)  # some rotations
        assert ping(client, own).ok
        assert "connected from [" not in at_server.log, at_server.tail()
        assert re.fullmatch(r"192\.0\.2\.2:\d+", peer(server)["endpoint"])


# Accepts connections at the address, which is its argument, and never says a word.
_MUTE: Final = """
import socket, sys
ears = socket.create_server((sys.argv[1], 8080), family=socket.AF_INET6)
kept = []
while True:
    kept.append(ears.accept())
"""


def test_ipv6_that_connects_and_no_more(lab: Lab) -> None:
    """Somebody else's machine, or a path that passes a SYN only. The next attempt is at the other address, for HTTP or
    for a WebSocket."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, ["192.0.2.1/24", f"{SERVER_6}/64"], client, ["192.0.2.2/24", f"{CLIENT_6}/64"])
    file = client.tmp / "hosts"
    client.hosts({})
    file.write_text(f"127.0.0.1 localhost\n{SERVER_6} {NAME}\n192.0.2.1 {NAME}\n", encoding="ascii")
    config = client_config(server=f"http://{NAME}:8080/ip")
    with running(server, server_config()), server.start([sys.executable, "-c", _MUTE, SERVER_6], name="mute") as mute:
        wait_until(lambda: f"tcp [{SERVER_6}]:8080" in server.listening(), BACK_S, "the mute one", mute.tail)
        with running(client, config, until=None) as at_client:
            at_client.wait_for_log(r"(upload to|WebSocket from) 192\.0\.2\.1:8080", BACK_S)
            assert ping(client, TUNNEL_SERVER).ok
            assert re.fullmatch(r"192\.0\.2\.2:\d+", peer(server)["endpoint"])


# Answers for A with the address of its argument, and never for anything else, as some old name servers do (RFC 4074
# section 4.1).
_IPV4_ONLY_NAME_SERVER: Final = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 53))
while True:
    query, client = sock.recvfrom(4096)
    end = query.index(0, 12) + 5
    if query[end - 4:end - 2] == b"\\0\\x01":
        record = b"\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\0\\0\\x04" + socket.inet_aton(sys.argv[1])
        sock.sendto(query[:2] + b"\\x81\\x80\\0\\x01\\0\\x01\\0\\0\\0\\0" + query[12:end] + record, client)
"""


def test_a_name_server_that_is_silent_about_ipv6(lab: Lab) -> None:
    """The C library would wait for longer than an attempt lasts."""
    server, client = cable(lab)
    client.hosts({})
    file = client.tmp / "resolv.conf"
    file.write_text(f"nameserver {SERVER}\n", encoding="ascii")
    client.run(["mount", "--bind", file, "/etc/resolv.conf"])
    with (
        server.start([sys.executable, "-c", _IPV4_ONLY_NAME_SERVER, SERVER], name="nameserver") as names,
        running(server, server_config()),
    ):
        wait_until(lambda: "udp 0.0.0.0:53" in server.listening(), BACK_S, "the name server", names.tail)
        with running(client, client_config(server=f"http://{NAME}:8080/ip"), until=UPLOADING) as at_client:
            assert ping(client, TUNNEL_SERVER).ok
            assert "WARNING" not in at_client.log, at_client.tail()


def test_a_name_server_that_is_gone(lab: Lab) -> None:
    """The IPv6 address of the name is remembered."""
    server, client = cable_6(lab)
    with running(server, server_config(listen="::"), name="first") as first:
        with running(client, client_config(server=f"http://{NAME}:8080/ip"), until=UPLOADING) as at_client:
            client.hosts({})
            assert first.stop(BACK_S) == 0
            at_client.wait_for_log(f"WARNING .*{NAME} does not resolve", BACK_S)
            with running(server, server_config(listen="::"), name="second"):
                wait_for_ping(client, TUNNEL_SERVER, BACK_S)


# ------------------------------------------------------------------ NAT64

# Answers AAAA from a file of lines `name address`; every other name and type has no answer. Its argument is the file.
_NAME_SERVER: Final = """
import pathlib, socket, sys
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", 53))
while True:
    query, client = sock.recvfrom(4096)
    end = query.index(0, 12) + 5
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    known = [line.split() for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
    is_aaaa = query[end - 4:end - 2] == b"\\0\\x1c"
    found = [address for name, address in known if is_aaaa and name == ".".join(labels)]
    head = b"\\xc0\\x0c\\0\\x1c\\0\\x01\\0\\0\\0\\0\\0\\x10"
    records = b"".join(head + socket.inet_pton(socket.AF_INET6, address) for address in found)
    counts = b"\\0\\x01\\0" + bytes([len(found)]) + bytes(4)
    sock.sendto(query[:2] + b"\\x81\\x80" + counts + query[12:end] + records, client)
"""
# A NAT64 for TCP to port 8080, for the prefixes of /96 and /64 that are local on its machine.
_NAT64: Final = """
import socket, threading
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        a.close()
        b.close()
ears = socket.create_server(("::", 8080), family=socket.AF_INET6)
while True:
    near, _ = ears.accept()
    packed = socket.inet_pton(socket.AF_INET6, near.getsockname()[0])
    target = packed[12:] if packed[:4] == b"\\0\\x64\\xff\\x9b" else packed[9:13]
    try:
        far = socket.create_connection((socket.inet_ntop(socket.AF_INET, target), 8080))
    except OSError:
        near.close()
        continue
    for ends in ((near, far), (far, near)):
        threading.Thread(target=pump, args=ends, daemon=True).start()
"""
WELL_KNOWN: Final = "64:ff9b::"  # /96
OWN: Final = "2001:db8:64:64::"  # /64: bytes 9 to 12
SYNTHESIZED: Final = {WELL_KNOWN: "64:ff9b::c000:201", OWN: "2001:db8:64:64:c0:2:100:0"}  # of 192.0.2.1
OF_THE_WELL_KNOWN_NAME: Final = {
    WELL_KNOWN: ["64:ff9b::c000:aa", "64:ff9b::c000:ab"],
    OWN: ["2001:db8:64:64:c0:0:aa00:0", "2001:db8:64:64:c0:0:ab00:0"],
}


@contextmanager
def nat64(lab: Lab, *lines: str) -> Iterator[tuple[Host, Host, Path]]:
    """A server with IPv4 only and a client with IPv6 only, with a NAT64 and a name server that says ``lines`` between
    them. Yields server, client and the file of the name server."""
    server, router, client = lab.host("server"), lab.host("router"), lab.host("client")
    lab.link(server, "192.0.2.1/24", router, "192.0.2.254/24")
    lab.link(router, "2001:db8:9::1/64", client, "2001:db8:9::2/64")
    client.ip("-6 route add default via 2001:db8:9::1")
    for prefix in (f"{WELL_KNOWN}/96", f"{OWN}/64"):
        router.ip(f"-6 route add local {prefix} dev lo")
    client.hosts({})
    file, says = client.tmp / "resolv.conf", router.tmp / "says"
    file.write_text("nameserver 2001:db8:9::1\noptions timeout:1\n", encoding="ascii")
    client.run(["mount", "--bind", file, "/etc/resolv.conf"])
    says.write_text("\n".join(lines), encoding="ascii")
    with (
        router.start([sys.executable, "-c", _NAME_SERVER, says], name="nameserver") as names,
        router.start([sys.executable, "-c", _NAT64], name="nat64") as translator,
    ):
        wait_until(
            lambda: any(each.endswith(":53") for each in router.listening()), BACK_S, "the name server", names.tail
        )
        router.wait_for_listener(8080, BACK_S, by=translator)
        yield server, client, says


def test_a_name_that_only_dns64_resolves(lab: Lab) -> None:
    with (
        nat64(lab, f"{NAME} {SYNTHESIZED[WELL_KNOWN]}") as (server, client, _),
        running(server, server_config()),
        running(client, client_config(server=f"http://{NAME}:8080/ip"), until=UPLOADING) as at_client,
    ):
        assert_traffic(server, client)
        assert "WARNING" not in at_client.log, at_client.tail()


@pytest.mark.parametrize("prefix", [WELL_KNOWN, OWN])
def test_an_ipv4_address_behind_a_nat64(lab: Lab, prefix: str) -> None:
    """RFC 8305 section 7.1. The prefix is remembered, so a client comes back without a name server."""
    told = [f"ipv4only.arpa {address}" for address in OF_THE_WELL_KNOWN_NAME[prefix]]
    with nat64(lab, *told) as (server, client, says), running(server, server_config(), name="first") as first:
        with running(client, client_config(rotate_s=[1, 2]), "--log-level", "debug", until=UPLOADING) as at_client:
            assert_traffic(server, client)
            mark = at_client.log_end
            at_client.wait_for_log(UPLOADING, BACK_S, after=mark)
            assert "WARNING" not in at_client.log, at_client.tail()
            assert SYNTHESIZED[prefix] in client.run(["ss", "-tnH", "state", "established"]).stdout
            says.write_text("", encoding="ascii")
            client.hosts({})
            client.run(["umount", "/etc/resolv.conf"])
            assert first.stop(BACK_S) == 0
            with running(server, server_config(), name="second"):
                wait_for_ping(client, TUNNEL_SERVER, BACK_S)


def test_an_ipv4_address_without_a_nat64(lab: Lab) -> None:
    """The log says why it cannot be reached, and what to do."""
    with nat64(lab) as (_, client, _):
        words = r"WARNING .*192\.0\.2\.1 .*Network is unreachable; this machine has IPv6 only, .*no NAT64: use a name"
        with running(client, client_config(), until=words):
            pass


# ------------------------------------------------------------------ an outgoing proxy


@pytest.mark.parametrize("literal", [True, False])
def test_an_outgoing_proxy(lab: Lab, literal: bool) -> None:
    """The server's and the proxy's addresses are IPv6 literals, with a zone at the proxy where it is link-local."""
    server, proxy, client = lab.host("server"), lab.host("proxy"), lab.host("client")
    lab.link(server, f"{SERVER_6}/64", proxy, f"{CLIENT_6}/64")
    lab.link(proxy, "2001:db8:9::1/64", client, "2001:db8:9::2/64")
    config = proxy.tmp / "tinyproxy.conf"
    config.write_text("Port 3128\nListen ::\nTimeout 600\nMaxClients 20\nConnectPort 8080\n", encoding="ascii")
    place = "2001:db8:9::1" if literal else f"{link_local(proxy, 'eth1')}%25eth0"
    entry = client_config(server=f"http://[{SERVER_6}]:8080/ip", proxy=f"http://[{place}]:3128")
    with (
        running(server, server_config(listen=SERVER_6)),
        proxy.start(["tinyproxy", "-d", "-c", config], name="tinyproxy") as process,
    ):
        proxy.wait_for_listener(3128, by=process)
        with running(client, entry, "--log-level", "debug", until=UPLOADING) as at_client:
            assert_traffic(server, client)
            shown = place.replace("%25", "%")
            assert f"[{SERVER_6}]:8080 through [{shown}]:3128" in at_client.log, at_client.tail()


# ------------------------------------------------------------------ addresses and routers that change


def local_ends(client: Host) -> set[str]:
    """The client's addresses of its connections to the server."""
    lines = client.run(["ss", "-tnH", "state", "established", "dport = :8080"]).stdout.splitlines()
    return {line.split()[2].rpartition(":")[0].strip("[]") for line in lines}


def test_a_temporary_address_comes_to_its_end(lab: Lab) -> None:
    """RFC 8981: for new connections the kernel takes the next one, and later removes the old one. A rotation moves the
    streams in between, so the end of the old address concerns none of them."""
    server, client = cable_6(lab)
    config = client_config(server=f"http://[{SERVER_6}]:8080/ip", rotate_s=[1, 2])
    client.ip("-6 route add 2001:db8::/64 dev eth0 metric 100")  # a router's; that of an address shares its lifetime
    with (
        running(server, server_config(listen="::")),
        running(client, config, "--log-level", "debug", until=UPLOADING) as daemon,
    ):
        assert local_ends(client) == {CLIENT_6}
        client.ip("address add 2001:db8::3/64 dev eth0 nodad")
        client.ip(f"address change {CLIENT_6}/64 dev eth0 valid_lft 100 preferred_lft 0")
        wait_until(lambda: local_ends(client) == {"2001:db8::3"}, BACK_S, "the streams to move", daemon.tail)
        client.ip(f"address del {CLIENT_6}/64 dev eth0")
        daemon.wait_for_log(f"address {CLIENT_6} removed: that concerns no stream", BACK_S)
        assert ping(client, TUNNEL_SERVER).ok
        assert "WARNING" not in daemon.log, daemon.tail()
        assert RENEWED not in daemon.log, daemon.tail()


_RADVD: Final = """
interface eth0 {
    AdvSendAdvert on;
    MinRtrAdvInterval 3;
    MaxRtrAdvInterval 4;
    prefix 2001:db8:c::/64 { };
};
"""


def advertise(router: Host) -> Process:
    """Be a router for everybody on the link. It says so when it ceases to be one."""
    config = router.tmp / "radvd.conf"
    config.write_text(_RADVD, encoding="ascii")
    return router.start(["radvd", "-n", "-C", config, "-p", router.tmp / "pid", "-m", "stderr"], name="radvd")


def test_another_router(lab: Lab) -> None:
    """Two routers advertise the prefix. As long as both do the streams stay. When one ceases, they are renewed."""
    lan, client, server = lab.host("lan"), lab.host("client"), lab.host("server")
    routers = [lab.host("one"), lab.host("two")]
    lan.ip("link add br0 type bridge")
    lan.ip("link set br0 up")
    for host in (client, *routers):
        link = lab.link(host, [], lan, [])
        lan.ip(f"link set {link.b_interface} master br0")
    server.ip("address add 2001:db8:ff::1/128 dev lo")
    for number, router in enumerate(routers, 1):
        router.sysctl("net.ipv6.conf.all.forwarding", 1)
        router.ip(f"address add 2001:db8:c::{number}/64 dev eth0 nodad")
        lab.link(router, f"2001:db8:{number}::1/64", server, f"2001:db8:{number}::2/64")
        router.ip(f"-6 route add 2001:db8:ff::1 via 2001:db8:{number}::2")
        server.ip(f"-6 route add 2001:db8:c::/64 via 2001:db8:{number}::1 metric {number}")
    client.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    with ExitStack() as stack:
        advertisers = {link_local(router): stack.enter_context(advertise(router)) for router in routers}

        def gateways() -> list[str]:
            return [route.get("gateway", "") for route in client.ip("-6 route show default")]

        wait_until(lambda: set(gateways()) == set(advertisers), BACK_S, "both routers")
        stack.enter_context(running(server, server_config(listen="::")))
        config = client_config(server="http://[2001:db8:ff::1]:8080/ip")
        daemon = stack.enter_context(running(client, config, until=UPLOADING))
        time.sleep(3 * ROUTE_CHECK_S)
        assert RENEWED not in daemon.log, daemon.tail()
        (route,) = client.ip("-6 route get 2001:db8:ff::1")
        advertisers[route["gateway"]].stop(BACK_S)
        daemon.wait_for_log(RENEWED, BACK_S)
        assert ping(client, TUNNEL_SERVER).ok
        assert "WARNING" not in daemon.log, daemon.tail()
