"""A probe on loopback: against our own server, a base server, peers of no use, and with wrong options."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio import cli, exit_codes
from tapotun_trio.cli import main
from tapotun_trio.config.model import NO_PROXY, ClientConfig, DeviceKind, Proxy, TlsConfig
from tapotun_trio.host.net import dial
from tapotun_trio.http.heads import encode_request
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.probe import path, steps, traffic
from tapotun_trio.probe import run as probe_run
from tapotun_trio.probe.measured import Dns, Measured, Tcp
from tapotun_trio.probe.report import report_json, report_text
from tapotun_trio.probe.run import Misused, measure_until_stopped, parse_headers
from tapotun_trio.probe.steps import measure
from tapotun_trio.probe.verdict import Verdict, judge
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire import control
from tests.basepeer import BaseServer, ClientSpec
from tests.basepeer.pair import FAST

from ..fakes import MemoryHost
from ..packets import ipv4
from ..tables import table
from .support import allowed, client_config, free_port, running, server_config
from .test_refused_streams import Front, status

OWN_MAC = b"\x02\0\0\0\0\1"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less load than is worth measuring."""
    monkeypatch.setattr(traffic, "LOAD_S", 0.1)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def measured(port: int, who: str = "a", idle_s: float = 0.0) -> tuple[Measured, Verdict]:
    it = Measured(f"http://127.0.0.1:{port}/ip")
    with trio.fail_after(60):
        assert await measure_until_stopped(client_config(who, port), idle_s, it) is None
    return it, judge(it)


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ECONNREFUSED])
async def test_an_address_of_a_family_that_this_machine_lacks(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_socket = dial.connect_socket

    async def without_ipv6(sock: socket.socket, address: Any) -> None:
        if sock.family == socket.AF_INET6:
            raise OSError(error, os.strerror(error))
        await connect_socket(sock, address)

    monkeypatch.setattr(dial, "connect_socket", without_ipv6)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        tcp = Tcp()
        await path._reach(tcp, Dns("x", addresses=["2001:db8::1", "127.0.0.1"]), port, None)
        assert (tcp.address, tcp.error) == ("127.0.0.1", None)
        refused = {"2001:db8::1": os.strerror(error)} if error == errno.ECONNREFUSED else {}
        assert (tcp.unreachable, tcp.no_route) == (refused, [] if refused else ["2001:db8::1"])
    # Where nothing answers, that is what is said.
    tcp = Tcp()
    await path._reach(tcp, Dns("x", addresses=["2001:db8::1"]), port, None)
    assert os.strerror(error) in (tcp.error or "")
    assert tcp.no_route == []


async def test_our_server() -> None:
    """Everything is measured, nothing reaches the server's interface, and nothing stays."""
    port, host = free_port(), MemoryHost()
    async with running(host, server_config(port, allowed("a", "10.10.0.2"))):
        hub = await host.device("hub")
        it, verdict = await measured(port, idle_s=1.0)
        assert (verdict.usable, verdict.selector, verdict.findings) == (True, "http", [])
        assert it.http is not None
        assert (it.http.server, it.http.proxy, it.http.keepalive_s) == ("extended", "none", 10.0)
        assert (it.download.state, it.upload.state, it.websocket.ok) == ("streams", "streams", True)
        assert it.rtt is not None
        assert it.rtt.samples == traffic.PINGS
        assert it.throughput is not None
        assert it.throughput.up_mbit_s is not None
        assert it.throughput.down_mbit_s is not None
        assert it.idle is not None
        assert (it.idle.download_s, it.idle.upload_s) == (None, None)
        assert it.idle.download_tested_s >= 0.9
        assert not hub.outbound


async def test_a_server_with_ipv6_only() -> None:
    """Its answers have no x-tun-conf."""
    port, host = free_port(), MemoryHost()
    client = replace(allowed("a", "10.10.0.2"), addresses=(IPv6Address("fd00::2"),))
    config = replace(server_config(port, client), nets=(IPv6Interface("fd00::1/64"),))
    async with running(host, config):
        it, verdict = await measured(port, idle_s=1.0)
    assert (verdict.usable, verdict.selector, verdict.findings) == (True, "http", [])
    assert it.http is not None
    assert it.http.server == "extended"


@pytest.mark.parametrize(
    ("nets", "carries"),
    [
        (["10.10.0.1/24"], None),
        (["10.10.0.1/24", "fd00:10::1/64"], "carries IPv4 and IPv6"),
        (["fd00:10::1/64"], "carries IPv6 only"),
    ],
)
@pytest.mark.parametrize("has_ipv6", [True, False])
async def test_the_families_that_a_server_carries(nets: list[str], carries: str | None, has_ipv6: bool) -> None:
    """A client on a machine without IPv6 is refused if there is nothing else for it."""
    port, host = free_port(), MemoryHost()
    own = [ip_interface(net) for net in nets]
    client = replace(allowed("a", "10.10.0.2"), addresses=tuple(net.ip + 1 for net in own))
    config = replace(server_config(port, client), nets=tuple(own))
    it = Measured(f"http://127.0.0.1:{port}/ip", has_ipv6=has_ipv6, ipv6_remedy="sysctl it")
    async with running(host, config):
        await host.device("hub")
        await measure(client_config("a", port), 1.0, it)
    assert it.http is not None
    assert (it.http.ipv4, it.http.ipv6) == ("10.10.0.1/24" in nets, "fd00:10::1/64" in nets)
    verdict, text = judge(it), report_text(it, judge(it))
    assert ("carries" in text.split("\n\n")[0]) == (carries is not None)
    assert carries is None or carries in text
    lacking = "this machine has no IPv6, or it is switched off (disable_ipv6)"
    found = [(each.severity, each.text) for each in verdict.findings if each.code == "no-ipv6"]
    if has_ipv6 or carries is None:
        assert (verdict.usable, found) == (True, [])
    elif len(nets) == 2:
        told = f"{lacking}: the tunnel carries IPv4 only, and the server offers IPv6 too"
        assert (verdict.usable, found) == (True, [("note", told)])
    else:
        told = f"the server has only IPv6 addresses for this client, and {lacking}"
        assert (verdict.usable, found) == (False, [("fault", told)])
        assert told in verdict.text
        assert "sysctl it" in text


@pytest.mark.parametrize(("wanted", "fits"), [(None, True), ("tap", True), ("tun", False)])
async def test_a_server_whose_frames_carry_ethernet(wanted: DeviceKind | None, fits: bool) -> None:
    """Frames to all clients, of any size, do not disturb the probe. None of its own reaches the server's interface, and
    it makes no request that such a server refuses."""
    port, host, records = free_port(), MemoryHost(), dict[str, Record]()
    config = replace(server_config(port, replace(allowed("a", "10.10.0.2"), addresses=())), device="tap", mac=OWN_MAC)
    async with running(host, config, records=records), trio.open_nursery() as nursery:
        hub, server = await host.device("hub"), records["hub"].tunnel
        assert isinstance(server, TunnelServer)

        async def talk() -> None:
            while True:
                for size in (14, 19, 60, 1514, 9000):
                    hub.send(b"\xff" * 6 + OWN_MAC + bytes(size - 12))
                await trio.sleep(0.01)

        nursery.start_soon(talk)
        it = Measured(f"http://127.0.0.1:{port}/ip", device=wanted)
        await measure(replace(client_config("a", port), device=wanted), 1.0, it)
        nursery.cancel_scope.cancel()
        assert not hub.outbound
        assert not server.refusals
    verdict = judge(it)
    assert it.http is not None
    assert (it.http.server, it.http.device) == ("extended", "tap")
    assert (it.download.state, it.upload.state, it.websocket.ok) == ("streams", "streams", True)
    assert it.rtt is not None
    assert it.idle is None
    assert any(each.startswith("idle timeouts: this server serves extended clients only") for each in it.not_tested)
    assert (verdict.usable, [each.code for each in verdict.findings]) == (fits, [] if fits else ["wrong-device"])
    assert "carries Ethernet frames" in report_text(it, verdict)


async def test_packets_for_the_client_are_thrown_away() -> None:
    """They come while the token is the probe's."""
    port, host, records = free_port(), MemoryHost(), dict[str, Record]()
    config = server_config(port, allowed("a", "10.10.0.2"))
    async with running(host, config, records=records) as nursery:
        hub, server = await host.device("hub"), records["hub"].tunnel
        assert isinstance(server, TunnelServer)

        async def flood() -> None:
            while True:
                hub.send(ipv4("10.10.0.1", "10.10.0.2", bytes(1000)))
                await trio.sleep(0.001)

        nursery.start_soon(flood)
        _, verdict = await measured(port)
        assert verdict.usable
        assert server.sessions[0].counters.tx_packets > 20, "hardly any of the packets were sent to the probe"


async def test_a_running_client_is_left_alone() -> None:
    port, hub, laptop = free_port(), MemoryHost(), MemoryHost()
    async with running(hub, server_config(port, allowed("a", "10.10.0.2"))):
        async with running(laptop, client_config("a", port)):
            device, far = await laptop.device("a"), await hub.device("hub")
            packet = ipv4("10.10.0.2", "10.10.0.1", b"before")
            device.send(packet)
            assert await far.receive_packet() == packet
            it, verdict = await measured(port)
            assert it.token_in_use
            assert verdict.usable
            assert it.upload.state == "streams"
            assert (it.rtt, it.throughput, it.idle, it.websocket.ok) == (None, None, None, None)
            for source, sink, way in ((device, far, "up"), (far, device, "down")):
                ends = ("10.10.0.2", "10.10.0.1") if way == "up" else ("10.10.0.1", "10.10.0.2")
                packet = ipv4(*ends, way.encode())
                source.send(packet)
                assert await sink.receive_packet() == packet


async def test_a_client_comes_while_the_probe_is_at_work() -> None:
    """The client wins, as from any other machine with its token, and the probe goes."""
    port, hub, laptop = free_port(), MemoryHost(), MemoryHost()
    async with running(hub, server_config(port, allowed("a", "10.10.0.2"))):
        far = await hub.device("hub")
        results: list[Measured] = []
        done = trio.Event()

        async def probe() -> None:
            results.append((await measured(port, idle_s=20.0))[0])
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe)
            await trio.sleep(1.5)
            async with running(laptop, client_config("a", port)):
                device = await laptop.device("a")
                packet = ipv4("10.10.0.2", "10.10.0.1", b"here I am")
                device.send(packet)
                assert await far.receive_packet() == packet
                with trio.fail_after(40):
                    await done.wait()
        assert results[0].token_in_use
        assert any("a client with this token connected" in it for it in results[0].not_tested)


@pytest.mark.parametrize("generation", [1, 2])
async def test_a_base_server(generation: Literal[1, 2]) -> None:
    """It gets nothing that the base protocol does not have but a header in the first request, before we know it, that
    it leaves the token to whoever uses it; and it has nothing else to complain of."""
    spec = ClientSpec.of("a", "10.10.0.2")
    server = BaseServer([spec], port=0, generation=generation, timers=FAST, max_age_s=None)
    await trio.to_thread.run_sync(server.start)
    try:
        it, verdict = await measured(int(server.url.split(":")[2].split("/")[0]), idle_s=0.3)
        assert verdict.usable
        assert it.http is not None
        assert it.http.server == "base"
        assert (it.download.state, it.upload.state) == ("streams", "streams")
        assert (it.rtt, it.throughput, it.websocket.ok) == (None, None, None)
        assert any("base protocol" in text for text in it.not_tested)
    finally:
        await trio.to_thread.run_sync(server.stop)
    assert [re.sub(".*header ", "", it) for it in server.violations] == ["x-tun-yield: 1 reached a base peer"]


async def test_an_unknown_token() -> None:
    port = free_port()
    async with running(MemoryHost(), server_config(port, allowed("a", "10.10.0.2"))):
        it, verdict = await measured(port, "somebody")
        assert not verdict.usable
        assert it.http is not None
        assert (it.http.status, it.http.own) == (403, True)


async def test_another_path() -> None:
    port = free_port()
    config = replace(server_config(port, allowed("a", "10.10.0.2")), path="/else")
    async with running(MemoryHost(), config):
        _, verdict = await measured(port)
        assert [it.code for it in verdict.findings] == ["http-404"]
        assert "has a different path" in verdict.text


# ------------------------------------------------------------------ peers of no use

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def peer(serve: Serve) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def handle(stream: trio.SocketStream) -> None:
            try:
                await serve(stream)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                await trio.aclose_forcefully(stream)

        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def _saying(data: bytes) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)

    return serve


_OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"
_CONF = b"HTTP/1.1 200 OK\r\nx-tun-conf: 3AUYCgoAAg==\r\nx-tun-features: ctl\r\nTransfer-Encoding: chunked\r\n\r\n"


@table(
    "data codes",
    ("closes at once", b"", {"no-answer"}),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n", {"no-answer"}),
    ("TLS", b"\x15\x03\x01\x00\x02\x02\x46", {"no-answer"}),
    ("a web page", _OK, {"not-tapotun"}),
    ("half a head", b"HTTP/1.1 200 O", {"no-answer"}),
    ("a download that ends", _CONF + b"0\r\n\r\n", {"download-broken"}),
    ("a download that breaks", _CONF, {"download-broken"}),
    ("no frames", _CONF + b"5\r\n\x02\x00abc\r\n", {"download-broken"}),
    ("bad chunks", _CONF + b"what?\r\n", {"download-broken"}),
    ("PARAMS that are none", _CONF + b"9\r\n" + control.encode(control.PARAMS, b"{}") + b"\r\n", {"download-broken"}),
    ("moved", b"HTTP/1.1 301 Moved\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n", {"http-301"}),
)
async def test_peers_of_no_use(data: bytes, codes: set[str]) -> None:
    async with peer(_saying(data)) as port:
        _, verdict = await measured(port)
    assert not verdict.usable
    assert {it.code for it in verdict.findings if it.severity == "fault"} == codes


def _holding(hub_port: int, *, head_passes: bool = True) -> Serve:
    """Passes everything on to a server, and a download's body only when there are 4 KiB of it. ``head_passes``: and its
    head at once."""

    async def serve(stream: trio.SocketStream) -> None:
        upstream = await trio.open_tcp_stream("127.0.0.1", hub_port)

        async def up() -> None:
            async for data in stream:
                await upstream.send_all(data)
            nursery.cancel_scope.cancel()

        async with upstream, trio.open_nursery() as nursery:
            nursery.start_soon(up)
            kept, is_download = b"", None
            async for data in upstream:
                kept += data
                head, end, body = kept.partition(b"\r\n\r\n")
                if end and is_download is None:
                    is_download = b"application/octet-stream" in head
                    if is_download and head_passes:
                        await stream.send_all(head + end)
                        kept = body
                if is_download is False or len(kept) > 4096:
                    await stream.send_all(kept)
                    kept = b""
            nursery.cancel_scope.cancel()

    return serve


@pytest.mark.parametrize("device", ["tun", "tap"])
@pytest.mark.parametrize("head_passes", [True, False])
async def test_a_download_of_which_the_head_comes_at_most(
    head_passes: bool, device: DeviceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the frames carry is known from the head, or from the WebSocket. The upload has to say it."""
    monkeypatch.setattr(steps, "HEAD_S", 4.0)  # of real time: a handshake on a busy machine has to fit
    hub_port = free_port()
    config = server_config(hub_port, allowed("a", "10.10.0.2"))
    if device == "tap":
        config = replace(config, device="tap", mac=OWN_MAC)
    async with running(MemoryHost(), config):
        async with peer(_holding(hub_port, head_passes=head_passes)) as port:
            it, verdict = await measured(port)
    assert it.http is not None
    assert it.http.device == device
    assert it.download.state == "held-back"
    assert it.download.held_bytes is not None
    assert 2048 <= it.download.held_bytes <= 8192
    assert [it.code for it in verdict.findings if it.severity == "fault"] == ["download-held"]


def _connecting(asked: list[bytes]) -> Serve:
    """An outgoing proxy."""

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        asked.append(head.split()[1])
        host, _, port = head.split()[1].decode().partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as upstream, trio.open_nursery() as nursery:
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                async for data in source:
                    await sink.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, stream, upstream)
            nursery.start_soon(pump, upstream, stream)

    return serve


@pytest.mark.parametrize("by", ["option", "environment"])
async def test_through_an_outgoing_proxy(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    hub_port = free_port()
    async with running(MemoryHost(), server_config(hub_port, allowed("a", "10.10.0.2"))):
        async with peer(_connecting(asked)) as port:
            it, config = Measured(f"http://127.0.0.1:{hub_port}/ip"), client_config("a", hub_port)
            if by == "option":
                config = replace(config, proxy=Proxy("127.0.0.1", port))
            else:
                monkeypatch.setenv("http_proxy", f"http://user:raw-token@127.0.0.1:{port}")
            with trio.fail_after(60):
                await measure_until_stopped(config, 0.0, it)
            assert judge(it).usable
            assert it.outgoing_proxy == f"127.0.0.1:{port}"
            assert set(asked) == {f"127.0.0.1:{hub_port}".encode()}
            assert "raw-token" not in report_json(it, judge(it))


async def test_nobody_is_there() -> None:
    it, verdict = await measured(free_port())
    assert [finding.code for finding in verdict.findings] == ["tcp"]
    assert "refused" in verdict.text
    assert it.http is None


# ------------------------------------------------------------------ options


def token_file(directory: Path, content: bytes = b"raw-token-of-mine\n", mode: int = 0o600) -> str:
    file = directory / "token"
    file.write_bytes(content)
    file.chmod(mode)
    return str(file)


def run(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["probe", *argv])
    out, err = capsys.readouterr()
    assert "raw-token" not in out + err
    assert "Traceback" not in out + err
    return code, out, err


@table(
    "argv words",
    ("no scheme", ["vpn.example.com/ip"], "http"),
    ("a password in the URL", ["https://u:raw-token@vpn.example.com/"], "--user and --password-file"),
    ("a user without a password", ["https://127.0.0.1/", "--user", "u"], "belong together"),
    ("a proxy that is none", ["http://127.0.0.1/", "--proxy", "socks5://x:1"], "--proxy"),
    ("a name that is none", ["https://127.0.0.1/", "--server-name", "a b"], "--server-name"),
    ("a key without its certificate", ["https://127.0.0.1/", "--key-file", "x"], "--cert-file"),
    ("no such CA", ["https://127.0.0.1/", "--ca-file", "/nonexistent"], "/nonexistent cannot be read"),
    ("too long a silence", ["http://127.0.0.1/", "--idle-limit", "1000"], "between 0 and 80"),
    ("less than none", ["http://127.0.0.1/", "--idle-limit", "-1"], "between 0 and 80"),
    ("no number", ["http://127.0.0.1/", "--idle-limit", "nan"], "between 0 and 80"),
)
def test_wrong_options(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(*argv, "--token-file", token_file(tmp_path), capsys=capsys)
    assert (code, out) == (exit_codes.USAGE, "")
    assert words in err
    assert len(err.splitlines()) == 1


@table(
    "content words",
    ("no colon", b"x-a 1\n", "line 1 has no colon"),
    ("a space before the colon", b"\nx-a : secret\n", "line 2 is not the name of a header"),
    ("nothing behind it", b"x-a:\r\n", "line 1 is empty"),
    ("ours", b"x-a: 1\nHost: secret\n", "line 2 is a header that cannot be set here"),
    ("twice", b"x-a: secret\nX-A: secret\n", "line 2 has a header that an earlier line has too"),
    ("a control character", b"x-a: secret\x85x\n", "line 1 has characters"),
)
def test_headers_files_that_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(Misused, match=re.escape(words)) as caught:
        parse_headers("F", content)
    assert "secret" not in str(caught.value)


def test_a_headers_file() -> None:
    found = parse_headers("F", b"X-A: one\r\n\nx-b:\ttwo three \nx-c:\xe4\n")
    assert [(name, value.reveal()) for name, value in found] == [("X-A", "one"), ("x-b", "two three"), ("x-c", "ä")]


PIECES = st.lists(st.sampled_from([b"x-a", b":", b" v", b"\r", b"\n", b"\x85", b"Host"])).map(b"".join)


@given(st.binary(max_size=60) | PIECES)
def test_any_headers_file(content: bytes) -> None:
    headers, refusal = [("Host", "h")], ""
    try:
        headers += [(name, value.reveal()) for name, value in parse_headers("F", content)]
    except Misused as exc:
        refusal = str(exc)
    assert refusal == "" or refusal.isprintable()
    assert encode_request("GET", "/", headers)


@table(
    "content words",
    ("empty", b"", "holds a token that"),
    ("UTF-16", "raw-token".encode("utf-16"), "is UTF-16"),
    ("two lines", b"raw-token-a\nraw-token-b\n", "holds a token that"),
    ("not ASCII", b"raw-token-\xff\n", "holds a token that"),
    ("long", b"raw-token" * 10_000, "longer than"),
)
def test_token_files(content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("http://127.0.0.1/", "--token-file", token_file(tmp_path, content), capsys=capsys)
    assert code == exit_codes.USAGE
    assert words in err


def test_no_token_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("http://127.0.0.1/", "--token-file", str(tmp_path / "none"), capsys=capsys)
    assert code == exit_codes.USAGE
    assert "No such file" in err
    code, _, err = run("http://127.0.0.1/", capsys=capsys)
    assert code == exit_codes.USAGE
    assert "a URL needs --token-file" in err


def test_warnings_and_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that others may read, and that holds a hash; the report is on standard output alone."""
    file = token_file(tmp_path, b"a94a8fe5ccb19ba61c4c0873d391e987982fbbd3\n", 0o644)
    url = f"http://127.0.0.1:{free_port()}/ip?key=raw-token"
    code, out, err = run(url, "--token-file", file, "--json", capsys=capsys)
    assert code == exit_codes.FAILED
    assert re.search(r"mode 0644.*chmod o-rwx", err)
    assert "looks like a hash" in err
    report = json.loads(out)
    assert (report["usable"], report["findings"][0]["code"]) == (False, "tcp")
    assert report["url"].endswith("/ip?***")


# ------------------------------------------------------------------ a config file


def config(directory: Path, *entries: dict[str, object]) -> str:
    file = directory / "client.json"
    file.write_text(json.dumps(entries))
    file.chmod(0o600)
    return str(file)


def client(name: str = "tun0", **fields: object) -> dict[str, object]:
    return {"name": name, "server": f"http://127.0.0.1:{free_port()}/ip", "token": "raw-token-of-mine", **fields}


def test_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A client's server, token and settings; an option wins over its setting."""
    file = config(tmp_path, client("tun0"), client("tun1", transport="websocket"), HUB)
    for name in ("tun0", "tun1"):
        code, out, _ = run(file, "--interface", name, "--json", capsys=capsys)
        assert code == exit_codes.FAILED  # nothing listens there
        report = json.loads(out)
        assert report["url"] == next(
            entry["server"] for entry in json.loads(Path(file).read_text()) if entry["name"] == name
        )
        assert report["findings"][0]["code"] == "tcp"


def resulting(*argv: str) -> ClientConfig:
    return probe_run.client_config(cli.build_parser().parse_args(["probe", *argv]))


def test_the_settings_of_a_config_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("a").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    (tmp_path / "both.pem").chmod(0o600)
    tls = {"ca_file": "ca.pem", "cert_file": "both.pem", "server_name": "a.example", "min_version": "1.3"}
    settings = {"transport": "http", "auth_header": "both", "proxy": "none"}
    file = config(tmp_path, client(server="https://127.0.0.1/ip", tls=tls, **settings))
    ours = resulting(file)
    assert (ours.token.reveal(), ours.transport, ours.auth_header, ours.proxy) == (
        "raw-token-of-mine",
        "http",
        "both",
        NO_PROXY,
    )
    assert ours.tls == TlsConfig(
        ca_file=str(tmp_path / "ca.pem"),
        cert_file=str(tmp_path / "both.pem"),
        server_name="a.example",
        min_version="1.3",
    )
    other = token_file(tmp_path, b"\xef\xbb\xbfraw-token-2\r\n\n")
    options = "--transport auto --auth-header x-api-key --min-version 1.2 --server-name b.example --insecure"
    theirs = resulting(
        file, "--token-file", other, "--cert-file", "c", "--key-file", "k", "--proxy", "http://p:1", *options.split()
    )
    assert (theirs.token.reveal(), theirs.transport, theirs.auth_header) == ("raw-token-2", "auto", "x-api-key")
    assert theirs.proxy == Proxy("p", 1)
    assert theirs.tls == TlsConfig(
        ca_file=str(tmp_path / "ca.pem"), cert_file="c", key_file="k", server_name="b.example", insecure=True
    )


HUB = {"name": "hub", "port": 8080, "net": "10.10.0.1/24"}


@table(
    "entries options words",
    ("several clients", [client("a"), client("b")], [], "has 2 clients, a, b; choose one with --interface NAME"),
    ("none of that name", [client("a")], ["--interface", "b"], '--interface "b" is no client of'),
    ("a server", [HUB], [], "has no client"),
    ("an error", [client("a", mtu=1)], [], "[0].mtu"),
    ("two errors", [client("a", mtu=1, ip=2)], [], "tapotun validate-config"),
)
def test_config_files_of_no_use(
    entries: list[dict[str, object]],
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(config(tmp_path, *entries), *options, capsys=capsys)
    assert (code, out) == (exit_codes.USAGE, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["./missing", "missing.json", "/nonexistent/missing"])
def test_no_such_config_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(name, capsys=capsys)
    assert code == exit_codes.USAGE
    assert f"{name}: cannot be read: No such file or directory" in err


def test_an_interface_of_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("http://127.0.0.1/", "--interface", "a", "--token-file", token_file(tmp_path), capsys=capsys)
    assert code == exit_codes.USAGE
    assert "--interface chooses a client of a config file" in err


def test_the_mark_of_a_config_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_nobody: Callable[[], None]
) -> None:
    """The probe takes the way of the client's own connections, or says why it cannot."""
    file = config(tmp_path, client(transport_mark=5))
    Path(file).chmod(0o644)
    as_nobody()
    code, out, err = run(file, capsys=capsys)
    assert (code, out) == (exit_codes.USAGE, "")
    assert "transport_mark 5: Operation not permitted; it needs CAP_NET_ADMIN" in err


# ------------------------------------------------------------------ uploads that something in front refuses


@asynccontextmanager
async def in_front(refuse: Callable[[str], bytes | None]) -> AsyncIterator[int]:
    """The port of a `Front`, and behind it a server that has a client a."""
    port = free_port()
    async with running(MemoryHost(), server_config(port, allowed("a", "10.10.0.2"))), trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, Front(port, refuse).serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [403, 405, 411, 413, 429, 501, 503], ids=str)
async def test_a_refused_upload_leaves_a_websocket(answer: int) -> None:
    """As for a client. A refusal says nothing about timeouts, which are looked for, too."""
    async with in_front(lambda kind: status(answer) if kind == "PUT" else None) as port:
        it, verdict = await measured(port, idle_s=1.0)
    assert (verdict.usable, verdict.selector) == (True, "websocket"), verdict
    (fault,) = [finding for finding in verdict.findings if finding.severity == "fault"]
    assert fault.code == ("upload-limit" if answer == 413 else "upload-broken")
    assert "held back" not in verdict.text
    assert str(answer) in fault.text
    if answer == 405:
        assert "nginx: limit_except" in fault.text
    assert it.idle is None
    assert "idle timeouts: uploads are refused" in it.not_tested


async def test_uploads_that_are_refused_in_turn_are_not_silent_for_too_long() -> None:
    """The proxy has several servers."""
    page = b"HTTP/1.1 409 Conflict\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n409\n"
    puts = 0

    def refuse(kind: str) -> bytes | None:
        nonlocal puts
        puts += kind == "PUT"
        return page if kind == "PUT" and puts % 2 == 0 else None

    async with in_front(refuse) as port:
        it, verdict = await measured(port, idle_s=1.0)
    assert verdict.usable
    (warning,) = [finding for finding in verdict.findings if finding.severity == "warning"]
    assert warning.code == "upload-refused"
    assert "hash $http_x_api_key consistent;" in warning.text
    assert it.idle is not None
    assert it.idle.upload_s is None


async def test_a_web_page_may_be_a_captive_portal() -> None:
    async with in_front(lambda kind: status(200)) as port:
        _, verdict = await measured(port)
    assert not verdict.usable
    assert "a captive portal: log in to this network with a browser" in verdict.text
