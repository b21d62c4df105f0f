"""The daemon and deployed base peers, each way round, and what reaches such a peer byte by byte.

`tests.basepeer` stands for the deployed peer: an independent program, written from docs/protocol.md alone, that
complains of every deviation. Here it runs as a process of its own with a TUN of its own.
"""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import pytest

from tests.basepeer import Conf, Frame, packets, sha1
from tests.basepeer.http1 import Body, ChunkedBody, Head, body_of, parse_head
from tests.basepeer.wire import FrameReader, echo_ping
from tests.harness import (
    ROOT,
    Host,
    Lab,
    Process,
    capture,
    download,
    nginx_proxy,
    no_leaks,
    ping,
    udp_echo,
    upload,
    wait_for_ping,
    wait_until,
)

from .topologies import (
    RETRY_S,
    SERVER,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    addresses,
    allowed,
    cable,
    client_config,
    flood,
    mtu,
    numbers,
    routes,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

PATIENCE_S = 5.0


# Processes


@contextmanager
def _base_peer(host: Host, role: str, *arguments: str) -> Iterator[Process]:
    """A base peer, stopped at the end, when it has had nothing to complain of."""
    argv = [sys.executable, "-m", "tests.basepeer", role, *arguments]
    with host.start(argv, name=f"base-{role}", cwd=ROOT) as peer:
        peer.wait_for_log("READY", RETRY_S)
        yield peer
        if peer.running:
            peer.stop(10)
        assert "VIOLATION" not in peer.log, peer.tail()
        assert peer.exit_code == 0, peer.tail()


def _base_client(host: Host, url: str, generation: int, *options: str) -> AbstractContextManager[Process]:
    arguments = [url, token("laptop"), "--tun", "tun0", "--generation", str(generation), *options]
    return _base_peer(host, "client", *arguments)


def _base_server(host: Host, generation: int, *options: str) -> AbstractContextManager[Process]:
    client = f"{sha1(token('laptop'))}:{TUNNEL_CLIENT}"
    arguments = ["--net", f"{TUNNEL_SERVER}/24", "--tun", "tun0", "--client", client]
    return _base_peer(host, "server", *arguments, "--generation", str(generation), *options)


def _proxy(server: Host, http_version: str | None) -> tuple[AbstractContextManager[object], str, list[str]]:
    """nginx that speaks this version to port 8080, or none; the URL; and what a base peer has to know of it."""
    if http_version is None:
        return nullcontext(), f"http://{SERVER}:8080/ip", []
    proxy = nginx_proxy(server, f"{SERVER}:8080", http_version=http_version)
    return proxy, f"http://{SERVER}/ip", ["--proxied"]


@dataclass
class Conversation:
    """Numbered datagrams from a host to an echo and back, a few hundred a second."""

    sent: int = 0
    received: set[int] = field(default_factory=set)

    @property
    def lost(self) -> int:
        """How many are missing."""
        return self.sent - len(self.received)


@contextmanager
def _conversation(client: Host, server: Host, address: str) -> Iterator[Conversation]:
    """One that goes on while the body runs. Its answers have arrived, as far as they will, when this returns."""
    talk = Conversation()
    ended = threading.Event()
    with udp_echo(server, address) as port, client.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.settimeout(0.002)

        def receive() -> None:
            with suppress(TimeoutError):
                while True:
                    talk.received.add(int.from_bytes(sock.recv(100), "big"))

        def speak() -> None:
            while not ended.is_set():
                sock.send(talk.sent.to_bytes(4, "big"))
                talk.sent += 1
                receive()

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            yield talk
        finally:
            ended.set()
            thread.join()
            sock.settimeout(0.5)
            receive()


def _wait_for_answers(talk: Conversation, number: int = 50) -> None:
    """Until so many more have come back."""
    goal = len(talk.received) + number
    wait_until(lambda: len(talk.received) >= goal, PATIENCE_S, f"{number} more answers")


@pytest.mark.parametrize("http_version", [None, "1.1"])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_base_client_at_our_server(lab: Lab, generation: int, http_version: str | None) -> None:
    server, client = cable(lab)
    proxy, url, options = _proxy(server, http_version)
    with (
        no_leaks(server, client),
        running(server, server_config(mtu=1400, peers=generation), "--log-level", "debug") as daemon,
        proxy,
        _base_client(client, url, generation, *options) as peer,
    ):
        wait_for_ping(client, TUNNEL_SERVER)
        assert (addresses(client, "tun0"), mtu(client, "tun0")) == ([f"{TUNNEL_CLIENT}/24"], 1400)
        assert ping(server, TUNNEL_CLIENT, size=1372, dont_fragment=True).ok
        for move in (upload, download):
            move(client, server, TUNNEL_SERVER, 20_000_000)
        # "A client replaces each stream now and then, opening the new one before the old one ends."
        with _conversation(client, server, TUNNEL_SERVER) as talk:
            for order, stream in ((signal.SIGUSR1, "download"), (signal.SIGUSR2, "upload")) * 2:
                _wait_for_answers(talk)
                mark = daemon.log_end
                peer.signal(order)
                daemon.wait_for_log(f"{stream} from .* begins", PATIENCE_S, after=mark)
            _wait_for_answers(talk)
        assert talk.lost == 0
        # Our side ends first.
        assert daemon.stop(STOP_S) == 0


@pytest.mark.parametrize("http_version", [None, "1.1"])
@pytest.mark.parametrize("generation", [1, 2])
def test_our_client_at_a_base_server(lab: Lab, generation: int, http_version: str | None) -> None:
    server, client = cable(lab)
    proxy, url, options = _proxy(server, http_version)
    with (
        no_leaks(server, client),
        _base_server(server, generation, "--mtu", "1400", *options) as peer,
        proxy,
        running(client, client_config(server=url), "--log-level", "debug", until=UPLOADING) as daemon,
    ):
        assert (addresses(client, "tun0"), mtu(client, "tun0")) == ([f"{TUNNEL_CLIENT}/24"], 1400)
        wait_for_ping(client, TUNNEL_SERVER)
        assert ping(server, TUNNEL_CLIENT, size=1372, dont_fragment=True).ok
        for move in (upload, download):
            move(client, server, TUNNEL_SERVER, 20_000_000)
        with _conversation(client, server, TUNNEL_SERVER) as talk:
            _wait_for_answers(talk)
            peer.signal(signal.SIGUSR2)  # pings, of its generation
            _wait_for_answers(talk)
        assert talk.lost == 0
        with _conversation(client, server, TUNNEL_SERVER) as talk:
            mark = daemon.log_end
            peer.signal(signal.SIGUSR1)  # ends every GET, cleanly
            daemon.wait_for_log("download from ", PATIENCE_S, after=mark)
            _wait_for_answers(talk)
        assert daemon.stop(STOP_S) == 0


@pytest.mark.parametrize("generation", [1, 2])
def test_a_base_client_behind_a_proxy_that_speaks_http_1_0(lab: Lab, generation: int) -> None:
    """Its download is not chunked, and its upload comes when it has ended, with a Content-Length: everything in
    between was kept by the proxy."""
    server, client = cable(lab)
    proxy, url, options = _proxy(server, "1.0")
    with (
        running(server, server_config(peers=generation)),
        proxy,
        _base_client(client, url, generation, *options) as peer,
        capture(server, "tun0", "icmp") as at_server,
    ):
        ping(server, TUNNEL_CLIENT, count=5, wait=0.1)
        at_server.wait_for(5)
        assert at_server.count(lambda packet: str(packet.source) == TUNNEL_CLIENT) == 0
        peer.signal(signal.SIGUSR2)
        at_server.wait_for(5, lambda packet: str(packet.source) == TUNNEL_CLIENT)


def test_our_client_behind_a_proxy_that_speaks_http_1_0(lab: Lab) -> None:
    """It takes a download that is not chunked. (An upload without an end is not for such a proxy.)"""
    server, client = cable(lab)
    proxy, url, options = _proxy(server, "1.0")
    with (
        _base_server(server, 1, *options),
        proxy,
        running(client, client_config(server=url), until=UPLOADING),
        capture(client, "tun0", "icmp") as at_client,
    ):
        ping(server, TUNNEL_CLIENT, count=5, wait=0.1)
        at_client.wait_for(10)


def test_our_client_at_a_base_server_that_speaks_http_1_0(lab: Lab) -> None:
    server, client = cable(lab)
    with (
        _base_server(server, 1, "--http10"),
        running(client, client_config(), until=UPLOADING),
    ):
        wait_for_ping(client, TUNNEL_SERVER)
        for move in (upload, download):
            move(client, server, TUNNEL_SERVER, 5_000_000)


def test_our_server_with_peers_of_both_kinds(lab: Lab) -> None:
    """A base client and one of ours at one server, talking to each other, super-packets and all."""
    hub, base, ours = (lab.host(name) for name in ("hub", "base", "ours"))
    lab.link(hub, f"{SERVER}/24", base, "192.0.2.2/24")
    lab.link(hub, "203.0.113.1/24", ours, "203.0.113.2/24")
    config = server_config(allowed("laptop"), allowed("ours", "10.10.0.3"), listen="0.0.0.0")
    ours_config = client_config("ours", server="http://203.0.113.1:8080/")
    with (
        running(hub, config),
        _base_client(base, f"http://{SERVER}:8080/ip", 1),
        running(ours, ours_config, until=UPLOADING),
        capture(base, "tun0", "tcp", snap_bytes=100) as at_base,
    ):
        wait_for_ping(ours, TUNNEL_CLIENT)
        for move in (upload, download):
            move(ours, base, TUNNEL_CLIENT, 10_000_000)
        assert at_base.count(lambda packet: int.from_bytes(packet.data[2:4], "big") > 10_000) > 0


# Byte by byte


class Talk:
    """One connection as a base peer has it, in the test's own hands."""

    def __init__(self, sock: socket.socket) -> None:
        """Owns the socket, which is connected."""
        sock.settimeout(PATIENCE_S)
        self.sock = sock
        self.data = b""  # received, and no part of a head

    def head(self) -> Head:
        """The next head."""
        while b"\r\n\r\n" not in self.data:
            more = self.sock.recv(65536)
            assert more, f"the connection ended within the head {self.data!r}"
            self.data += more
        raw, _, self.data = self.data.partition(b"\r\n\r\n")
        return parse_head(raw)

    def send(self, *parts: str | bytes) -> None:
        """Send them in one go."""
        self.sock.sendall(b"".join(part.encode("ascii") if isinstance(part, str) else part for part in parts))


def _odd(text: str) -> None:
    pytest.fail(text)


class Frames:
    """The frames in the body that comes next on a connection."""

    def __init__(self, talk: Talk, body: Body) -> None:
        """Both belong to this from now on."""
        self._talk = talk
        self._body = body
        self._reader = FrameReader()

    def next(self, number: int) -> list[Frame]:
        """So many at least."""
        found: list[Frame] = []
        while len(found) < number:
            more = self._read()
            assert more is not None, "the body has ended"
            found += more
        return found

    def to_the_end(self) -> list[Frame]:
        """All that are left, up to the body's end: a clean one, on a frame boundary, with nothing behind it."""
        found: list[Frame] = []
        while (more := self._read()) is not None:
            found += more
        assert self._reader.rest == b"", "the body ended within a frame"
        assert self._body.rest == b""
        return found

    def to_the_break(self, *, reset: bool) -> None:
        """To where the body breaks off: on a frame boundary, by a reset or by the connection's end."""
        was_reset = False
        try:
            while data := self._talk.data or self._talk.sock.recv(65536):
                self._talk.data = b""
                for _ in self._reader.feed(self._body.feed(data)):
                    pass
        except ConnectionResetError:
            was_reset = True
        assert was_reset == reset
        assert not self._body.done
        assert self._reader.rest == b"", "the body broke off within a frame"

    def _read(self) -> list[Frame] | None:
        """What comes next; None where the body is over."""
        if self._body.done:
            return None
        data, self._talk.data = self._talk.data or self._talk.sock.recv(65536), b""
        if not data:
            assert not isinstance(self._body, ChunkedBody), "the connection ended, but not the body"
            return None
        return list(self._reader.feed(self._body.feed(data)))


def _get(client: Host, version: str = "1.1") -> tuple[Talk, Frames]:
    """A base client's GET, answered as it must be."""
    sock = client.socket()
    sock.connect((SERVER, 8080))
    talk = Talk(sock)
    talk.send(f"GET /ip HTTP/{version}\r\nHost: x\r\nx-api-key:{token('laptop')}\r\n\r\n")
    head = talk.head()
    assert head.status()[1] == 200
    assert not head.every("x-tun-features")
    assert Conf(1500, 24, (TUNNEL_CLIENT,)).encode(1) in head.every("x-tun-conf")
    assert head.every("transfer-encoding") == (["chunked"] if version == "1.1" else [])
    return talk, Frames(talk, body_of(head, "1.1", _odd))


def _numbers(frames: list[Frame]) -> list[int]:
    return numbers(frame.packet for frame in frames)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_our_server_ends_a_download_on_a_frame_boundary(lab: Lab, version: str) -> None:
    """SIGTERM in full flight: behind the last whole frame the body breaks off, which for HTTP/1.0 takes a reset. (A
    clean end would keep a generation 2 client away for minutes.)"""
    server, client = cable(lab)
    with running(server, server_config()) as daemon:
        talk, frames = _get(client, version)
        with talk.sock, flood(server, TUNNEL_CLIENT):
            frames.next(100)
            daemon.signal(signal.SIGTERM)
            frames.to_the_break(reset=version == "1.0")
            assert daemon.wait(STOP_S) == 0


def test_the_newest_download_gets_everything_from_then_on(lab: Lab) -> None:
    """In full flight: the older one ends cleanly, and between its last packet and the newer one's first there is
    no gap."""
    server, client = cable(lab)
    with running(server, server_config()) as daemon, no_leaks(fds_of=[daemon], settle_s=PATIENCE_S):
        first, older = _get(client)
        with first.sock, flood(server, TUNNEL_CLIENT):
            before = older.next(100)
            second, newer = _get(client)
            with second.sock:
                before += older.to_the_end()
                after = newer.next(100)
                # The first connection serves on, and takes over again.
                first.send(f"GET /ip HTTP/1.1\r\nHost: x\r\nx-api-key:{token('laptop')}\r\n\r\n")
                assert first.head().status()[1] == 200
                newer.to_the_end()
        assert _numbers(before)[-1] + 1 == _numbers(after)[0]


class FakeServer:
    """A base server in the test's own hands, for a client of ours that is about to connect."""

    def __init__(self, host: Host) -> None:
        """Listens from now on."""
        self.ears = host.socket()
        self.ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.ears.bind((SERVER, 8080))
        self.ears.listen()
        self.ears.settimeout(RETRY_S)

    def request(self, method: str) -> tuple[Talk, Head]:
        """The next connection and its first request, which is of this method and a base client's."""
        talk = Talk(self.ears.accept()[0])
        head = talk.head()
        assert head.request() == (method, "/ip", "1.1")
        assert head.every("host") == [f"{SERVER}:8080"]
        assert head.every("x-api-key") == [token("laptop")]
        assert head.every("expect") in ([], ["100-continue"])
        framing = (head.every("transfer-encoding"), head.every("content-length"))
        assert framing == ((["chunked"], []) if method == "PUT" else ([], []))
        return talk, head

    def both(self, conf: Conf, generation: int) -> tuple[Talk, Talk]:
        """Answer a GET with a configuration, and await the PUT."""
        get, _ = self.request("GET")
        get.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", f"x-tun-conf: {conf.encode(generation)}\r\n\r\n")
        put, head = self.request("PUT")
        # To a base server nothing extended is sent beyond the offer on the GET.
        assert [name for name, _ in head.headers if name.startswith("x-tun-")] == []
        return get, put


def _chunk(*frames: Frame) -> bytes:
    data = b"".join(frame.encode() for frame in frames)
    return b"%x\r\n%s\r\n" % (len(data), data)


CONF = Conf(1500, 24, (TUNNEL_CLIENT,))


def test_our_client_ends_its_upload_on_a_frame_boundary(lab: Lab) -> None:
    """SIGTERM in full flight: behind the last whole frame comes 0 CRLF CRLF."""
    server, client = cable(lab)
    fake = FakeServer(server)
    with fake.ears, running(client, client_config()) as daemon:
        get, put = fake.both(CONF, 1)
        frames = Frames(put, ChunkedBody(_odd))
        with get.sock, put.sock, flood(client, TUNNEL_SERVER):
            sent = _numbers(frames.next(100))
            daemon.signal(signal.SIGTERM)
            sent += _numbers(frames.to_the_end())
            assert daemon.wait(STOP_S) == 0
        assert sent == sorted(sent)


def test_our_client_takes_all_of_generation_2(lab: Lab) -> None:
    """Two addresses, pushed routes, and pings that come back as the very same frame."""
    server, client = cable(lab)
    fake = FakeServer(server)
    conf = Conf(1380, 24, (TUNNEL_CLIENT, "10.10.0.77"), ("10.99.0.0/16", "192.168.7.0/24"))
    with fake.ears, running(client, client_config()) as daemon:
        get, put = fake.both(conf, 2)
        with get.sock, put.sock, capture(client, "tun0") as on_tun0:
            assert addresses(client, "tun0") == [f"{TUNNEL_CLIENT}/24", "10.10.0.77/24"]
            assert mtu(client, "tun0") == 1380
            through = {network for network, device, _ in routes(client) if device == "tun0"}
            assert through == {"10.10.0.0/24", "10.99.0.0/16", "192.168.7.0/24"}
            pings = [echo_ping(), echo_ping()]
            packet = Frame(packets.udp(TUNNEL_SERVER, TUNNEL_CLIENT, b"hello"))
            get.send(_chunk(pings[0], packet, Frame(b"")), _chunk(pings[1]))
            assert Frames(put, ChunkedBody(_odd)).next(2)[:2] == pings
            on_tun0.wait_for(1, lambda it: it.data == packet.packet)
            daemon.check_running()
        assert on_tun0.count(lambda it: it.version == 1) == 0


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_our_client_takes_frames_however_they_are_cut(lab: Lab, size: int) -> None:
    """A proxy may cut chunks, and a network segments, anywhere."""
    server, client = cable(lab)
    fake = FakeServer(server)
    data = [b"%d" % number * 40 for number in range(30)]
    with (
        fake.ears,
        running(client, client_config()),
        client.socket(kind=socket.SOCK_DGRAM) as sock,
    ):
        get, put = fake.both(CONF, 1)
        sock.settimeout(PATIENCE_S)
        sock.bind((TUNNEL_CLIENT, 4000))
        with get.sock, put.sock:
            stream = b"".join(Frame(packets.udp(TUNNEL_SERVER, TUNNEL_CLIENT, it, dport=4000)).encode() for it in data)
            for at in range(0, len(stream), size):
                piece = stream[at : at + size]
                get.send(b"%x\r\n" % len(piece), piece, b"\r\n")
            assert [sock.recv(2000) for _ in data] == data


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"5\r\n\x05\0\0\0\0\r\n", "frame"),
        (b"no size\r\n", "chunk"),
        (b"10\r\n\x14\0" + bytes(12) + b"\xf0\0\r\n" + b"12\r\n" + bytes(18) + b"\r\n", "IP packet"),
        (b"2\r\n\x14\0\r\n0\r\n\r\n", "frame"),
    ],
)
def test_a_bad_download_ends_itself_and_not_the_interface(lab: Lab, broken: bytes, words: str) -> None:
    server, client = cable(lab)
    fake = FakeServer(server)
    with fake.ears, running(client, client_config()) as daemon:
        get, put = fake.both(CONF, 1)
        with put.sock, no_leaks(client):
            with get.sock:
                get.send(broken)
                daemon.wait_for_log(rf" WARNING .*{words}", RETRY_S)
                with suppress(ConnectionResetError):
                    assert get.sock.recv(1) == b""
            again, _ = fake.request("GET")
            with again.sock:
                again.send(f"HTTP/1.1 200 OK\r\nx-tun-conf: {CONF.encode(1)}\r\nTransfer-Encoding: chunked\r\n\r\n")
                daemon.wait_for_log("(?s)download from.*download from", RETRY_S)


def test_nothing_is_made_before_the_server_has_spoken(lab: Lab) -> None:
    """Only the answer to the GET tells the address, so until then there is no interface."""
    server, client = cable(lab)
    fake = FakeServer(server)
    with fake.ears, running(client, client_config()), no_leaks(client):
        get, _ = fake.request("GET")
        with get.sock:
            assert re.search("tun0", client.run(["ip", "link"]).stdout) is None
