"""The harness itself: everything that an integration test relies on, shown once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.harness
from tests.harness import (
    ROOT,
    CommandError,
    Host,
    Lab,
    LeakError,
    ProcessError,
    TransferError,
    WaitError,
    capture,
    changes,
    download,
    iperf3,
    nginx_proxy,
    no_leaks,
    ping,
    snapshot,
    tcp_echo,
    udp_echo,
    udp_exchange,
    upload,
    wait_for_ping,
    wait_until,
)

pytestmark = pytest.mark.netns

A, B = "192.0.2.1", "192.0.2.2"
A6, B6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def pair(lab: Lab) -> tuple[Host, Host]:
    """Two hosts joined by a cable, with addresses of both families."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, [f"{A}/24", f"{A6}/64"], b, [f"{B}/24", f"{B6}/64"])
    return a, b


# Hosts and links


@pytest.mark.parametrize("address", [B, B6])
def test_two_hosts_ping_at_once(pair: tuple[Host, Host], address: str) -> None:
    a, _ = pair
    result = ping(a, address, count=3)
    assert result.ok
    assert (result.sent, result.received) == (3, 3)
    assert result.avg_ms is not None
    assert 0 < result.avg_ms < 1000


def test_no_route_and_no_answer_are_results(pair: tuple[Host, Host]) -> None:
    a, _ = pair
    assert ping(a, "198.51.100.1", count=1).received == 0
    assert not ping(a, "192.0.2.77", count=1, wait=0.1).ok
    with pytest.raises(CommandError, match="no-such-name"):
        ping(a, "no-such-name.invalid")
    with pytest.raises(WaitError, match=r"192\.0\.2\.77 to answer a"):
        wait_for_ping(a, "192.0.2.77", timeout=0.2)


def test_hosts_are_separate_machines(lab: Lab) -> None:
    outside = os.readlink("/proc/self/ns/net")
    a, b = lab.host("a"), lab.host("b")
    spaces = {
        kind: {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (os.getpid(), a.pid, b.pid)}
        for kind in ("net", "pid", "mnt")
    }
    assert {kind: len(found) for kind, found in spaces.items()} == {"net": 3, "pid": 3, "mnt": 3}
    assert a.run(["sh", "-c", "cat /proc/1/comm; ls /sys/class/net"]).stdout.split() == ["cat", "lo"]
    assert ping(a, "127.0.0.1", count=1).ok
    # We have not moved ourselves.
    assert Path.cwd() != Path("/")
    assert os.readlink("/proc/thread-self/ns/net") == outside


def test_a_link_can_be_removed(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    with no_leaks(a, b):
        link = lab.link(a, f"{A}/24", b, f"{B}/24", mtu=1400)
        assert a.ip("link show eth0")[0]["mtu"] == 1400
        link.remove()


def test_names_can_be_overridden_per_host(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    outside = Path("/etc/hosts").read_bytes()
    a.hosts({"vpn.example.com": A})
    b.hosts({"vpn.example.com": B})
    b.hosts({"vpn.example.com": B6})
    assert a.run(["getent", "ahosts", "vpn.example.com"]).stdout.startswith(A)
    assert b.run(["getent", "ahosts", "vpn.example.com"]).stdout.startswith(B6)
    assert Path("/etc/hosts").read_bytes() == outside


def test_commands_report_what_failed(lab: Lab) -> None:
    a = lab.host("a")
    with pytest.raises(CommandError, match=r"`sh -c echo oops >&2; exit 3` on a failed with 3: oops"):
        a.run(["sh", "-c", "echo oops >&2; exit 3"])
    with pytest.raises(CommandError, match="no-such-program"):
        a.run(["no-such-program"])
    with pytest.raises(CommandError, match="Cannot find device"):
        a.ip("link set nothing0 up")
    with pytest.raises(WaitError, match=r"waited 0\.1 s for `sleep 60` on a"):
        a.run(["sleep", "60"], timeout=0.1)


# Daemons


def test_waiting_for_a_log_line(lab: Lab) -> None:
    a = lab.host("a")
    script = "echo getting ready; echo port 8080 open; sleep 60"
    with a.start(["sh", "-c", script], name="daemon") as daemon:
        assert daemon.wait_for_log(r"^port (\d+) open$")[1] == "8080"
        assert daemon.log == "getting ready\nport 8080 open\n"
        with pytest.raises(WaitError, match=r"(?s)'never' in the log of a/daemon.*\| port 8080 open"):
            daemon.wait_for_log("never", timeout=0.1)
        with pytest.raises(WaitError):
            daemon.wait_for_log("port", timeout=0.1, after=daemon.log_end)
    assert daemon.exit_code == -signal.SIGTERM
    assert daemon.log.startswith("getting ready")  # still readable


def test_a_daemon_that_dies_is_told_with_its_last_words(lab: Lab) -> None:
    a = lab.host("a")
    with pytest.raises(ProcessError, match=r"(?s)a/sh ended without logging 'ready'.*\| no such luck"):
        with a.start(["sh", "-c", "echo no such luck; exit 4"]) as daemon:
            daemon.wait_for_log("ready")
    assert daemon.exit_code == 4
    with pytest.raises(ProcessError, match="ended by itself"), a.start(["false"]) as daemon:
        wait_until(lambda: not daemon.running, 5, "the end of false")


def test_signals_reach_the_process_itself(lab: Lab) -> None:
    a = lab.host("a")
    script = "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    daemon = a.start(["sh", "-c", script])
    daemon.wait_for_log("ready")
    daemon.pause()
    daemon.signal(signal.SIGTERM)
    with pytest.raises(WaitError):
        daemon.wait(0.05)
    daemon.resume()
    assert daemon.wait() == 7
    assert daemon.log == "ready\ngot it\n"
    assert a.start(["sleep", "60"]).kill() == -signal.SIGKILL


def test_a_daemon_deaf_to_sigterm_is_killed_and_told(lab: Lab) -> None:
    a = lab.host("a")
    daemon = a.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"])
    daemon.wait_for_log("ready")
    with pytest.raises(WaitError, match=r"waited 0\.1 s for the end of a/sh"):
        daemon.stop(0.1)
    assert daemon.exit_code == -signal.SIGKILL


def test_waiting_for_a_port(lab: Lab) -> None:
    a = lab.host("a")
    with a.start([sys.executable, "-m", "http.server", "8080", "--bind", "127.0.0.1"]) as daemon:
        a.wait_for_listener(8080, by=daemon)
        assert a.listening() == {"tcp 127.0.0.1:8080"}
    with pytest.raises(WaitError, match="TCP port 8080 of a"):
        a.wait_for_listener(8080, timeout=0.05)
    failing = a.start(["sh", "-c", "echo address in use; exit 1"])
    with pytest.raises(ProcessError, match="address in use"):
        a.wait_for_listener(8080, by=failing)


def test_file_descriptors_are_counted_by_kind(lab: Lab) -> None:
    a = lab.host("a")
    script = "import socket, time; s = [socket.socket() for _ in range(3)]; print('ready', flush=True)"
    with a.start([sys.executable, "-c", f"{script}; time.sleep(60)"]) as daemon:
        daemon.wait_for_log("ready")
        assert daemon.fds()["socket"] == 3
        assert daemon.cpu_seconds() >= 0


# The leak check


def _listen(host: Host) -> None:
    host.start([sys.executable, "-m", "http.server", "9"])
    host.wait_for_listener(9)


LEAKS: dict[str, Callable[[Host], object]] = {
    r"\+ address .*203\.0\.113\.1": lambda a: a.ip("address add 203.0.113.1/32 dev lo"),
    r"\+ route -4 dst 203\.0\.113\.0/24 dev eth0 table 100": lambda a: a.ip(
        "route add 203.0.113.0/24 dev eth0 table 100"
    ),
    r"\+ route -6 dst 2001:db8:1::/48 dev eth0": lambda a: a.ip("-6 route add 2001:db8:1::/48 dev eth0"),
    r"- route -4 dst 192\.0\.2\.0/24": lambda a: a.ip("route del 192.0.2.0/24 dev eth0"),
    r"\+ rule -4 .*fwmark 0x64 table 100": lambda a: a.ip("rule add fwmark 100 table 100"),
    r"\+ rule -6 .*fwmark 0x64 table 100": lambda a: a.ip("-6 rule add fwmark 100 table 100"),
    r"\+ interface tun9 mtu 1500 down": lambda a: a.ip("tuntap add dev tun9 mode tun"),
    r"- interface eth0 mtu 1500 up": lambda a: a.ip("link set eth0 mtu 1400"),
    r"\+ listener tcp 0\.0\.0\.0:9": _listen,
    r"\+ process sleep 60": lambda a: a.start(["sleep", "60"]),
}


@pytest.mark.parametrize("line", LEAKS)
def test_a_leak_is_found(pair: tuple[Host, Host], line: str) -> None:
    a, b = pair
    with pytest.raises(LeakError, match=f"a: {line}"), no_leaks(a, b, settle_s=0.1):
        LEAKS[line](a)


def test_a_leaked_file_descriptor_is_found(lab: Lab) -> None:
    a = lab.host("a")
    script = "import sys, time, socket; print('ready', flush=True); input(); s = socket.socket()"
    fifo = a.tmp / "fifo"
    os.mkfifo(fifo)
    script += "; print('open', flush=True); time.sleep(60)"
    daemon = a.start(["sh", "-c", 'exec "$0" -c "$1" <>"$2"', sys.executable, script, fifo])
    daemon.wait_for_log("ready")

    def go_on() -> None:
        fifo.write_text("\n", encoding="ascii")
        daemon.wait_for_log("open")

    with pytest.raises(LeakError, match=r"\+ fd of a/sh: socket"), no_leaks(fds_of=[daemon], settle_s=0.1):
        go_on()


def test_what_is_undone_is_no_leak(pair: tuple[Host, Host]) -> None:
    a, b = pair
    with no_leaks(a, b, None), a.start(["sleep", "60"]):
        a.ip("address add 203.0.113.1/32 dev lo")
        a.ip("rule add fwmark 100 table 100")
        a.ip("rule del fwmark 100 table 100")
        a.ip("address del 203.0.113.1/32 dev lo")
    assert changes(snapshot(a), snapshot(a)) == []


# Traffic


@pytest.mark.parametrize("address", [B, B6])
def test_checked_transfers(pair: tuple[Host, Host], address: str) -> None:
    a, b = pair
    seen: list[int] = []
    up = upload(a, b, address, 3_000_001, progress=seen.append)
    assert (up.size, seen[-1]) == (3_000_001, 3_000_001)
    assert up.gbit_s > 0
    assert download(a, b, address, 2_000_000).sha256 != up.sha256
    assert upload(a, b, address, 0).size == 0


def test_a_transfer_that_cannot_be_made(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.ip("link set eth0 down")
    with pytest.raises(TransferError, match=r"a -> b at 192\.0\.2\.2"):
        upload(a, b, B, 1000)


def test_a_transfer_that_stalls(pair: tuple[Host, Host]) -> None:
    a, b = pair

    def cut(received: int) -> None:
        if received > 10_000_000:
            b.ip("link set eth0 down")

    with pytest.raises(TransferError, match="timed out"):
        upload(a, b, B, 500_000_000, timeout=1, progress=cut)


def test_echoes(pair: tuple[Host, Host]) -> None:
    a, b = pair
    with tcp_echo(b, B) as port, a.socket() as sock:
        sock.settimeout(5)
        sock.connect((B, port))
        sock.sendall(b"hello")
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
    with udp_echo(b, B6) as port:
        assert udp_exchange(a, B6, port, b"x") == b"x"
    with b.socket(kind=socket.SOCK_DGRAM) as silent:
        silent.bind((B, 0))
        assert udp_exchange(a, B, silent.getsockname()[1], b"x", timeout=0.05) is None


def test_iperf3(pair: tuple[Host, Host]) -> None:
    a, b = pair
    result = iperf3(a, b, B, "-R", seconds=1)
    assert result.received_gbit_s > 0
    assert result.retransmits is not None
    udp = iperf3(a, b, B, "-u", "-b", "1M", seconds=1)
    assert udp.lost_percent is not None
    with pytest.raises(CommandError, match="iperf3"):
        iperf3(a, b, B, "--no-such-option")


def test_capture(pair: tuple[Host, Host]) -> None:
    a, b = pair
    with capture(b, "eth0", "icmp") as packets:
        assert ping(a, B, count=2, size=100, dont_fragment=True).ok
        requests = packets.wait_for(2, lambda it: str(it.source) == A)
    assert [it.length for it in requests] == [128, 128]
    assert requests[0].protocol == 1
    assert requests[0].dont_fragment
    assert not requests[0].is_fragment
    assert packets.count() == 4  # the last answer, too
    assert str(packets.packets[-1]) == f"{B} -> {A} protocol 1, 128 bytes"


def test_a_capture_that_is_late_has_everything_at_its_end(pair: tuple[Host, Host]) -> None:
    """On a busy machine tcpdump may get no processor before the body ends."""
    a, b = pair
    with capture(b, "eth0", "icmp") as packets:
        tcpdump = b.processes[-1]
        tcpdump.pause()
        assert ping(a, B, count=5).received == 5
        tcpdump.resume()
        assert packets.count() == 10
        tcpdump.pause()
        assert ping(a, B, count=5).received == 5
        tcpdump.resume()
    assert packets.count() == 20


def test_capture_of_any_interface_and_either_family(pair: tuple[Host, Host]) -> None:
    a, b = pair
    with capture(b, "any", "icmp6") as packets:
        assert ping(a, B6, count=1, size=3000).ok
        assert packets.wait_for(1, lambda it: str(it.destination) == B6)[0].version == 6
    with pytest.raises(ProcessError, match="syntax error"), capture(b, "eth0", "no such filter"):
        pass
    with pytest.raises(WaitError, match="0 packets were captured"), capture(b, "lo") as packets:
        packets.wait_for(1, timeout=0.05)


def test_frames_are_captured_whole_with_their_tags(pair: tuple[Host, Host]) -> None:
    """The kernel takes a tag out of a frame that it receives; a capture has it where it was."""
    a, b = pair
    frame = b"\xff" * 6 + bytes.fromhex("025e00000001") + b"\x81\0\0\7" + b"\x88\xb5" + bytes(46)
    with capture(b, "eth0") as seen:
        with a.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            sock.send(frame)
        assert seen.wait_for_frames(lambda found: found[6:12] == frame[6:12]) == [frame]
        with pytest.raises(WaitError, match=r"(?s)1 frames in .*  64 bytes: ffffffffffff025e"):
            seen.wait_for_frames(lambda found: found == b"", timeout=0.1)
    assert not [packet for packet in seen.packets if packet.version not in (4, 6)]


def test_super_packets_are_captured_whole(pair: tuple[Host, Host]) -> None:
    a, b = pair
    with capture(b, "eth0", f"tcp and src {A}") as packets:
        upload(a, b, B, 5_000_000)
        assert packets.wait_for(1, lambda it: it.length > 20_000)[0].protocol == 6


# A proxy


@pytest.mark.parametrize("http_version", ["1.0", "1.1"])
def test_nginx_in_front(pair: tuple[Host, Host], http_version: str) -> None:
    a, b = pair
    a.hosts({"vpn.example.com": B})
    with no_leaks(a, b):
        server = [sys.executable, "-m", "http.server", "8080", "--bind", "127.0.0.1"]
        with b.start(server) as daemon, nginx_proxy(b, http_version=http_version):
            b.wait_for_listener(8080, by=daemon)
            assert "200 OK" in a.run(["curl", "-sSI", "http://vpn.example.com/"]).stdout
            daemon.wait_for_log(f'"HEAD / HTTP/{http_version}" 200')


# The front page


def test_the_example_in_the_docstring_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = tests.harness.__doc__ or ""
    code = text[text.index("    from tests.harness") : text.index("What to know")]
    exec(textwrap.dedent(code), {})
    assert capsys.readouterr().out.endswith("Gbit/s, checksum right\n")


# The worst end

KILLED = """
import json, os, sys, time
from tests.harness import Lab

with Lab() as lab:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, "192.0.2.1/24", b, "192.0.2.2/24")
    a.ip("tuntap add dev tun9 mode tun")
    # One that ignores everything that can be ignored, and has a child that outlives it.
    daemon = a.start(["sh", "-c", "trap '' TERM HUP INT; setsid sleep 4711 & echo ready; wait"])
    daemon.wait_for_log("ready")
    spaces = [os.readlink(f"/proc/{host.pid}/ns/{kind}") for host in (a, b) for kind in ("net", "pid", "mnt")]
    print(json.dumps({"pids": [a.pid, b.pid, daemon.pid], "spaces": spaces}), flush=True)
    time.sleep(60)
"""


def _holders(spaces: set[str]) -> list[str]:
    """Everything in /proc that keeps one of these namespaces: processes, mounts, file descriptors."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(space in (process / "mountinfo").read_text(encoding="utf-8") for space in spaces):
                found.append(f"{process}/mountinfo")
            links = [*(process / "ns").iterdir(), *(process / "fd").iterdir()]
        except OSError:  # it ended meanwhile
            continue
        for link in links:
            try:
                if os.readlink(link) in spaces:
                    found.append(str(link))
            except OSError:
                continue
    return found


def _lives(pid: int) -> bool:
    """Whether it is more than an entry that the machine's PID 1 has yet to reap."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nothing_outlives_a_test_run_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, cwd=ROOT) as victim:
        assert victim.stdout is not None
        told = json.loads(victim.stdout.readline())
        spaces = set(told["spaces"])
        assert _holders(spaces)
        victim.kill()
    wait_until(lambda: not _holders(spaces), 5, "the namespaces to vanish", lambda: str(_holders(spaces)))
    wait_until(lambda: not any(map(_lives, told["pids"])), 5, "the processes to end")


def test_leaving_the_lab_ends_everything() -> None:
    with no_leaks(None), Lab() as lab:
        a = lab.host("a")
        a.hosts({"vpn.example.com": A})
        daemon = a.start(["sh", "-c", "setsid sleep 4711 & echo ready; wait"])
        daemon.wait_for_log("ready")
        space = os.readlink(f"/proc/{a.pid}/ns/pid")
        tmp = a.tmp
    assert _holders({space}) == []
    assert not tmp.exists()
    assert daemon.log == "ready\n"
