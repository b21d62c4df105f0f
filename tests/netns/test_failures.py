"""What goes wrong between two machines: tokens, HTTP that is not as it should be, TLS that does not fit."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike

import pytest

from tests.basepeer.wire import decode_conf
from tests.harness import Host, Lab, Process, capture, nginx_proxy, no_leaks, ping, wait_for_ping

from .topologies import (
    RETRY_S,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    cable,
    client_config,
    flood,
    has_interface,
    index,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

PING = bytes(2)  # a base download begins with one
KEY = f"x-api-key: {token('laptop')}\r\n"
HOST = "Host: vpn.example.com\r\n"
PATIENCE_S = 5.0


@pytest.fixture
def ends(lab: Lab) -> tuple[Host, Host]:
    """A server that runs, and a machine to talk to it from."""
    return cable(lab)


@pytest.fixture
def daemon(ends: tuple[Host, Host]) -> Iterator[Process]:
    """The server's daemon."""
    with running(ends[0], server_config()) as process:
        yield process


# By curl, as an administrator would look


def _curl(client: Host, *options: str, body: str | PathLike[str] = "/dev/null") -> tuple[int, str]:
    """What curl was answered: the status, and everything that it saw of both directions' heads."""
    url = f"http://{SERVER}:8080/ip"
    argv = ["curl", "-sS", "-v", "-m", "2", "-o", body, "-w", "%{http_code}\n", *options, url]
    done = client.run(argv, check=False)
    return int(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("options", "status", "head"),
    [
        (["-H", "x-api-key: wrong"], 403, r"connection: close"),
        ([], 403, r"connection: close"),
        (["-H", "x-api-key: wrong", "-T", "/dev/zero"], 403, r"connection: close"),
        (["-T", "/dev/zero", "-H", "Expect: 100-continue"], 403, r"connection: close"),
        (["-H", "x-api-key: wrong", "-X", "POST"], 403, r"connection: close"),
        (["-H", KEY.strip(), "-X", "POST"], 405, r"allow: GET, PUT"),
        (["-H", KEY.strip(), "-X", "DELETE"], 405, r"allow: GET, PUT"),
        (["-H", KEY.strip(), "-I"], 405, r"allow: GET, PUT"),
    ],
)
def test_curl_is_refused(ends: tuple[Host, Host], daemon: Process, options: list[str], status: int, head: str) -> None:
    with no_leaks(*ends, fds_of=[daemon]):
        answered, seen = _curl(ends[1], *options)
    assert answered == status
    assert re.search(rf"^< {head}", seen, re.MULTILINE | re.IGNORECASE), seen
    assert "100 Continue" not in seen


def test_curl_streams_a_download(ends: tuple[Host, Host], daemon: Process) -> None:
    """An endless one: curl gives up after its two seconds, with a 200 and what was sent until then."""
    server, client = ends
    file = client.tmp / "body"
    with server.start(["ping", "-i", "0.1", TUNNEL_CLIENT]) as keepalive:
        status, seen = _curl(client, "-H", KEY.strip(), body=file)
        keepalive.stop()
    assert status == 200
    conf = re.search(r"^< x-tun-conf: (\S+)", seen, re.MULTILINE | re.IGNORECASE)
    assert conf is not None, seen
    generation, told = decode_conf(conf[1])
    assert (generation, told.mtu, told.prefix, told.ips) == (1, 1500, 24, (TUNNEL_CLIENT,))
    assert "x-tun-features" not in seen
    assert file.read_bytes()[:4] == PING + (84).to_bytes(2, "little")
    daemon.wait_for_log("download from .* ended")


# Byte by byte


@contextmanager
def _connected(client: Host, *parts: str | bytes) -> Iterator[socket.socket]:
    """A connection to the server on which these parts were sent."""
    with client.socket() as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((SERVER, 8080))
        for part in parts:
            sock.sendall(part.encode("ascii") if isinstance(part, str) else part)
        yield sock


def _head(sock: socket.socket) -> str:
    """The next head on the connection, and no byte more."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, f"the connection ended within {data!r}"
        data += byte
    return data.decode("ascii")


def _rest(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


GET = f"GET /ip HTTP/1.1\r\n{HOST}{KEY}\r\n"
CHUNKED_PUT = f"PUT /ip HTTP/1.1\r\n{HOST}{KEY}Transfer-Encoding: chunked\r\n"


def test_a_wrong_token_is_refused_before_any_body(ends: tuple[Host, Host], daemon: Process) -> None:
    """Of the body not a byte was sent, and none is awaited."""
    head = f"PUT /ip HTTP/1.1\r\n{HOST}x-api-key: raw-token-of-nobody\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _connected(ends[1], head) as sock:
        answer = _head(sock)
        assert answer.startswith("HTTP/1.1 403 Forbidden\r\n")
        assert "Connection: close\r\n" in answer
        assert len(_rest(sock)) < 100
    daemon.wait_for_log("refused: unknown or missing token")


def test_one_connection_carries_request_after_request(ends: tuple[Host, Host], daemon: Process) -> None:
    """PUT, PUT with a length, PUT after Expect, and at last a GET: as deployed clients reuse theirs."""
    ping_frame = b"2\r\n\0\0\r\n"
    end = b"0\r\n\r\n"
    with _connected(ends[1], CHUNKED_PUT + "\r\n", ping_frame, end) as sock:
        assert _final(sock)
        sock.sendall(CHUNKED_PUT.encode() + b"\r\n" + ping_frame + end)  # all at once
        assert _final(sock)
        sock.sendall(f"PUT /ip HTTP/1.1\r\n{HOST}{KEY}Content-Length: 4\r\n\r\n".encode() + bytes(4))
        assert _final(sock)
        sock.sendall(f"{CHUNKED_PUT}Expect: 100-continue\r\n\r\n".encode())
        assert _head(sock) == "HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(ping_frame)
        time.sleep(0.05)  # the end comes in a segment of its own
        sock.sendall(end)
        assert _final(sock)
        sock.sendall(GET.encode())
        answer = _head(sock)
        assert answer.startswith("HTTP/1.1 200 OK\r\n")
        assert "transfer-encoding: chunked" in answer.lower()
    assert "refused" not in daemon.log


def _final(sock: socket.socket) -> bool:
    """Read the short 200 that ends a PUT."""
    answer = _head(sock)
    length = re.search(r"content-length: (\d+)", answer, re.IGNORECASE)
    assert length is not None, answer
    body = sock.recv(int(length[1]), socket.MSG_WAITALL)
    return answer.startswith("HTTP/1.1 200 OK\r\n") and len(body) == int(length[1]) and "close" not in answer.lower()


def test_a_put_is_not_answered_before_its_end(ends: tuple[Host, Host], daemon: Process) -> None:
    """An early 200 would make a deployed client PUT again every second."""
    assert daemon.running
    with _connected(ends[1], CHUNKED_PUT + "\r\n", b"2\r\n\0\0\r\n") as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_http_1_0(ends: tuple[Host, Host], daemon: Process) -> None:
    """As nginx talks by default: the body is not chunked and ends with the connection, and so do refusals."""
    server, client = ends
    with _connected(client, f"GET /ip HTTP/1.0\r\n{KEY}\r\n") as sock:
        answer = _head(sock)
        assert answer.startswith("HTTP/1.1 200 OK\r\n")
        assert "transfer-encoding" not in answer.lower()
        ping(server, TUNNEL_CLIENT, count=1, wait=0.05)
        assert sock.recv(4, socket.MSG_WAITALL) == PING + (84).to_bytes(2, "little")
        sock.recv(12 + 84, socket.MSG_WAITALL)
        daemon.stop()
        # After a clean end a deployed client would stay away for minutes, see test_generation_2.
        with pytest.raises(ConnectionResetError):
            _rest(sock)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (f"GET /ip HTTP/1.1\r\n{HOST}{KEY}cookie: {'x' * 15_000}\r\n\r\n", 200),
        (f"GET /ip HTTP/1.1\r\n{HOST}{KEY}cookie: {'x' * 16_384}\r\n\r\n", 431),
        (f"GET /ip HTTP/1.1\r\n{HOST}{KEY}cookie: {'x' * 20_000}", 431),  # not even complete
        (f"GET /{'x' * 20_000} HTTP/1.1\r\n{HOST}{KEY}\r\n", 431),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS at the plain port
        ("GET /ip HTTP/1.1 and so on\r\n\r\n", 400),
        (f"PUT /ip HTTP/1.1\r\n{HOST}{KEY}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
    ],
)
def test_a_bad_request_is_answered(ends: tuple[Host, Host], daemon: Process, request_head: str, status: int) -> None:
    with no_leaks(fds_of=[daemon]), _connected(ends[1], request_head.encode("latin-1")) as sock:
        assert _head(sock).startswith(f"HTTP/1.1 {status} ")
        if status != 200:
            assert len(_rest(sock)) < 100
    assert " ERROR " not in daemon.log


@pytest.mark.parametrize(
    "body",
    [
        b"not a size\r\n",
        b"3\r\n\x05\0x\r\n",  # a frame of 5 bytes
        b"7\r\n\x01\0\x02\0\0\0\0\r\n",  # a control frame, though none were agreed
        b"10\r\n\x14\0" + bytes(12) + b"\xf0\0\r\n",  # no IP packet
        b"2\r\n\x14\0\r\n0\r\n\r\n",  # the end, within a frame
        b"",  # the connection's end, within a body
    ],
)
def test_a_bad_upload_ends_itself_and_nothing_else(ends: tuple[Host, Host], daemon: Process, body: bytes) -> None:
    """No answer that a deployed client could take for the good end of its upload; its download goes on."""
    client = ends[1]
    with no_leaks(fds_of=[daemon]), _connected(client, GET) as download:
        assert _head(download).startswith("HTTP/1.1 200 OK\r\n")
        with _connected(client, f"{CHUNKED_PUT}\r\n".encode() + body) as upload:
            if not body:
                upload.shutdown(socket.SHUT_WR)
            else:
                # The rest of a frame that had only begun.
                upload.sendall(b"12\r\n" + b"\xff" * 18 + b"\r\n")
            assert b"200 OK" not in _answer_or_reset(upload)
        ping(ends[0], TUNNEL_CLIENT, count=1, wait=0.05)
        first = b"2\r\n" + PING + b"\r\n"
        assert download.recv(len(first) + 4, socket.MSG_WAITALL) == first + b"62\r\n"
    assert " ERROR " not in daemon.log


def _answer_or_reset(sock: socket.socket) -> bytes:
    try:
        return _rest(sock)
    except ConnectionResetError:
        return b""


def test_slow_and_many_strangers(ends: tuple[Host, Host], daemon: Process) -> None:
    """Who never completes a head is dropped after 10 s, whether it sends nothing or a byte now and then; who
    opens hundreds of connections pushes out the oldest of them, and no honest client."""
    client = ends[1]
    with no_leaks(fds_of=[daemon], settle_s=5), ExitStack() as stack:
        first = stack.enter_context(_connected(client))
        for _ in range(300):
            stack.enter_context(_connected(client))
        assert _is_closed(first, PATIENCE_S)
        assert daemon.fds()["socket"] < 300
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok

        begun = time.monotonic()
        silent = stack.enter_context(_connected(client))
        slow = stack.enter_context(_connected(client, "GET /ip HTTP/1.1\r\n"))
        while not _is_closed(slow, 0.5):
            assert time.monotonic() - begun < 60
            slow.send(b"x")
        assert time.monotonic() - begun > 8
        assert _is_closed(silent, PATIENCE_S)


def _is_closed(sock: socket.socket, timeout_s: float) -> bool:
    """Whether the server ends the connection within that time, whatever it says before."""
    sock.settimeout(timeout_s)
    try:
        _answer_or_reset(sock)
    except TimeoutError:
        return False
    return True


# The client's words


def test_a_client_with_a_wrong_token_says_so_once_and_keeps_trying(ends: tuple[Host, Host], daemon: Process) -> None:
    server, client = ends
    with (
        capture(server, "eth0", "tcp dst port 8080 and tcp[tcpflags] & tcp-syn != 0") as attempts,
        running(client, client_config("nobody")) as stranger,
    ):
        attempts.wait_for(3, timeout=2 * RETRY_S)
        (complaint,) = [line for line in stranger.log.splitlines() if " WARNING " in line]
        assert "does not know this token" in complaint
        assert not has_interface(client, "tun0")
    assert "unknown or missing token" in daemon.log


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://no-such-name.invalid/ip", "no-such-name.invalid does not resolve"),
        (f"http://{SERVER}:9/ip", "Connection refused"),
        ("http://198.51.100.1/ip", "unreachable"),
        (f"http://{SERVER}:8081/ip", "502 Bad Gateway: the proxy does not reach"),
        (f"http://{SERVER}:8082/", "answered without x-tun-conf: no tapotun server"),
        (f"http://{SERVER}:8082/nothing-there", "404 .*path"),
        (f"https://{SERVER}:8082/", "(?i)tls"),
    ],
)
def test_a_client_says_what_is_wrong_with_its_url(lab: Lab, url: str, words: str) -> None:
    server, client = cable(lab)
    with (
        nginx_proxy(server, "127.0.0.1:9", listen=8081),
        server.start(["python3", "-m", "http.server", "8082", "-d", server.tmp]) as web,
    ):
        server.wait_for_listener(8082, by=web)
        with running(client, client_config(server=url), until=" WARNING .*trying again") as daemon:
            (line,) = (line for line in daemon.log.splitlines() if " WARNING " in line)
            assert re.search(words, line), line


def test_a_proxy_that_buffers_uploads_is_told(lab: Lab) -> None:
    """The first thing to go wrong in the field: ping goes out and never arrives.

    It is told without waiting for a PING of the server."""
    server, client = cable(lab)
    with (
        running(server, server_config(keepalive=50)),
        nginx_proxy(server, f"{SERVER}:8080", request_buffering=True),
        running(client, client_config(server="http://vpn.example.com/ip"), until="(?i) WARNING .*buffer"),
    ):
        pass


def test_broken_connections_are_mended(lab: Lab) -> None:
    """The proxy is killed in the midst of traffic, and another one comes in its place: the interface stays, both
    streams come back, and neither end keeps more than it had."""
    server, client = cable(lab)
    config = client_config(server="http://vpn.example.com/ip")
    with (
        running(server, server_config()) as daemon,
        nginx_proxy(server, f"{SERVER}:8080") as first,
        ExitStack() as later,
        running(client, config, until=UPLOADING) as peer,
    ):
        wait_for_ping(client, TUNNEL_SERVER)  # so the server has both streams, whose descriptors count
        number, until_now = index(client, "tun0"), peer.log_end
        with no_leaks(client, fds_of=[daemon, peer], settle_s=RETRY_S):
            with flood(server, TUNNEL_CLIENT), flood(client, TUNNEL_SERVER):
                first.kill()
            later.enter_context(nginx_proxy(server, f"{SERVER}:8080"))
            peer.wait_for_log(UPLOADING, RETRY_S, after=until_now)
            wait_for_ping(client, TUNNEL_SERVER)
            assert ping(server, TUNNEL_CLIENT).ok
            assert index(client, "tun0") == number
