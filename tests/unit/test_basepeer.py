"""The two roles of the test peer joined to each other: neither has a complaint."""

import itertools
import random
import socket
import time
from dataclasses import replace

import pytest

from tests.basepeer import BaseClient, BaseServer, Chunking, ClientSpec, Conf, Frame, Router, packets
from tests.basepeer.nginx import NGINX, nginx
from tests.basepeer.pair import FAST, connect, down, exchange, joined, serve, up


@pytest.mark.parametrize("generation", [1, 2])
def test_frames_cross_both_ways(generation: int) -> None:
    with joined({"generation": generation}, generation=generation) as (server, client):
        exchange(server, client)
        big = packets.tcp_super("10.10.0.2", "10.10.0.1", random.Random(1).randbytes(65000))
        client.send(big, Frame(packets.ipv4("10.10.0.2", "10.10.0.1")))
        assert server["test"].recv() == big
        assert len(server["test"].recv().packet) == 20
    routes = ("192.168.7.0/24",) if generation == 2 else ()
    assert client.conf == Conf(1500, 24, ("10.10.0.2",), routes)


@pytest.mark.parametrize(
    ("served", "known", "words"), [(1, 2, "can't read uint variable"), (2, 1, "7 bytes were not parsed")]
)
def test_a_client_of_the_other_generation_exits(served: int, known: int, words: str) -> None:
    with serve(generation=served) as server, connect(server, generation=known) as client:
        client.wait("exit")
        assert client.stopping.is_set()
    assert client.exited == words  # one pushed route is five bytes more than the two of none
    assert any("a deployed client exits" in text for text in client.violations)


def test_requests_are_those_of_a_deployed_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with BaseClient(f"http://127.0.0.1:{port}/ip", "test", timers=FAST):
            link, _ = listener.accept()
            with link:
                assert (
                    link.recv(4096)
                    == (
                        f"GET /ip HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n"
                        "Accept-Encoding: deflate, gzip, br, zstd\r\nx-api-key:test\r\n\r\n"
                    ).encode()
                )
                conf = Conf(1500, 24, ("10.10.0.2",)).encode(1)
                link.sendall(f"HTTP/1.1 200 OK\r\nx-tun-conf: {conf}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
                upload, _ = listener.accept()
                with upload:
                    assert (
                        upload.recv(4096)
                        == (
                            f"PUT /ip HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n"
                            "Accept-Encoding: deflate, gzip, br, zstd\r\nx-api-key:test\r\n"
                            "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
                        ).encode()
                    )


@pytest.mark.parametrize(
    "chunking",
    [
        Chunking(itertools.repeat(1).__next__),
        Chunking(itertools.cycle([3, 1, 40, 7]).__next__, segment=1),
        Chunking(itertools.cycle([1, 29, 1000]).__next__, segment=3),
    ],
)
def test_any_rechunking(chunking: Chunking) -> None:
    with joined({"chunking": chunking}, chunking=chunking) as (server, client):
        exchange(server, client, 20)


def test_rotation_and_swap_of_roles() -> None:
    with joined() as (server, client):
        exchange(server, client)
        client.rotate_get()
        client.wait("get-open", 2)
        client.wait("get-end", 1)
        exchange(server, client)
        client.rotate_put()
        client.wait("put-end", 1)
        client.wait("swap", 1)
        exchange(server, client)
        client.rotate_get()
        client.wait("get-end", 2)
        client.wait("swap", 2)
        exchange(server, client)
        client.end_put()
        client.wait("put-open", 3)
        exchange(server, client)
    assert client.journal.count("get-broken") == 0


def test_no_frame_is_lost_while_streams_are_replaced() -> None:
    with joined() as (server, client):
        for number in range(300):
            client.send(up(number))
            server["test"].send(down(number))
            if number % 60 == 30:
                client.rotate_put()
            if number % 60 == 50:
                client.rotate_get()
        seen_up = {server["test"].recv().packet for _ in range(300)}
        seen_down = {client.recv().packet for _ in range(300)}
    assert seen_up == {up(number).packet for number in range(300)}
    assert seen_down == {down(number).packet for number in range(300)}


def test_the_server_ends_a_get_and_its_follow_up_comes_at_once() -> None:
    with joined({"get_lifetime_s": 0.1}) as (server, client):
        client.wait("get-end", 3)
        client.wait("get-open", 4)
        exchange(server, client)


@pytest.mark.parametrize("generation", [1, 2])
def test_pings_both_ways(generation: int) -> None:
    timers = replace(FAST, ping_s=0.05, give_up_s=5.0)
    options = {"generation": generation, "timers": timers}
    with joined(options, generation=generation, timers=timers) as (server, client):
        server.wait("ping-sent", 3)
        if generation == 1:
            server.wait("ping", 2)
            client.wait("ping", 2)
        else:
            server["test"].ping()
            server.wait("echo", 3)
            assert server.journal.count("ping") == 0
            assert client.journal.count("ping-sent") == 0
    assert client.received.empty()


def test_a_generation_2_server_pings_a_busy_client_too() -> None:
    timers = replace(FAST, ping_s=0.2, give_up_s=5.0)
    options = {"generation": 2, "timers": timers}
    with joined(options, generation=2, timers=timers) as (server, client):
        for number in range(40):
            server["test"].send(down(number))
            time.sleep(0.02)
        assert server.journal.count("ping-sent") >= 2
        server.wait("echo", 3)
    assert client.received.qsize() == 40


def test_a_generation_2_client_replaces_its_get_by_itself() -> None:
    timers = replace(FAST, rotate_2_s=(0.1, 0.2))
    with joined({"generation": 2}, generation=2, timers=timers) as (server, client):
        client.wait("get-open", 4)
        exchange(server, client)
    assert client.journal.count("away") == 0


def test_a_wrong_token_is_refused() -> None:
    with serve() as server, connect(server, "wrong") as client:
        client.wait("refused", 2)
        assert client.conf is None
    assert client.violations == []
    assert server.violations == []


def test_a_silent_get_is_given_up() -> None:
    timers = replace(FAST, give_up_s=0.2)
    with serve() as server, connect(server, timers=timers) as client:
        client.wait("get-broken", 1)
        client.wait("get-open", 2)
    assert "without a byte" in client.violations[0]


def test_two_clients_with_one_token_flap() -> None:
    with joined() as (server, client), connect(server) as second:
        second.wait("get-end", 2)
        client.wait("get-end", 2)


@pytest.mark.parametrize("keepalive", [True, False])
def test_http10_forms(keepalive: bool) -> None:
    with joined({"proxied": True}, http10=True, put_whole=True, expect_continue=False, keepalive=keepalive) as (
        server,
        client,
    ):
        exchange(server, client)
        server["test"].end_get()
        client.wait("get-open", 2)
        exchange(server, client)


def test_a_put_with_content_length_and_a_server_that_answers_in_http10() -> None:
    options = {"proxied": True, "http10": True}
    with joined(options, put_whole=True, proxied=True) as (server, client):
        exchange(server, client)
        client.rotate_get()
        client.wait("get-end", 1)
        exchange(server, client)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_through_nginx(version: str) -> None:
    with serve(proxied=True) as server, nginx(server.port, version) as port:
        url = f"http://127.0.0.1:{port}/any/path?x=1"
        with BaseClient(url, "test", proxied=True, timers=FAST) as client:
            client.wait_connected()
            for turn in range(2):
                client.wait("put-open", turn + 1 if version == "1.0" else 1)
                client.send(up(1), up(2))
                server["test"].send(down(1), down(2))
                assert [client.recv(), client.recv()] == [down(1), down(2)]
                if version == "1.0":
                    client.end_put()  # nginx before 1.29.7 passes a PUT on when it has ended
                assert [server["test"].recv(), server["test"].recv()] == [up(1), up(2)]
                client.rotate_get()
                client.wait("get-end", 1)
        assert client.violations == []
    assert server.violations == []


def test_base_routing() -> None:
    a = ClientSpec.of("a", "10.50.0.2", routes=["10.60.0.0/24", "10.60.1.0/24"], sources=["192.168.100.10"])
    b = ClientSpec.of("b", "10.50.0.3", routes=["10.60.0.0/16"])
    router = Router(("10.50.0.1",), ("172.20.0.0/16",), (a, b))

    def by(source: str, to: str) -> bytes:
        return packets.ipv4(source, to)

    assert router.from_client(by("10.50.0.3", "10.60.0.9"), b) is a
    assert router.from_client(by("10.50.0.2", "10.60.0.9"), a) is b  # "every *other* client's"
    assert router.from_client(by("10.50.0.3", "10.60.9.9"), b) is None
    assert router.from_client(by("192.168.100.10", "8.8.8.8"), b) is a
    assert router.from_client(by("192.168.100.10", "10.50.0.1"), b) is None
    assert router.from_client(by("192.168.100.10", "172.20.1.1"), b) is None
    assert router.from_tun(by("192.168.100.10", "172.20.1.1")) is a
    assert router.from_tun(by("10.50.0.1", "10.50.0.3")) is b
    assert router.from_tun(by("10.50.0.1", "8.8.8.8")) is None


def test_clients_talk_through_the_router() -> None:
    specs = (ClientSpec.of("a", "10.10.0.2"), ClientSpec.of("b", "10.10.0.3"))
    router = Router(("10.10.0.1",), (), specs)
    with BaseServer(specs, router=router, max_age_s=None, timers=FAST) as server:
        with connect(server, "a") as a, connect(server, "b") as b:
            a.wait_connected()
            b.wait_connected()
            a.send_packet(packets.udp("10.10.0.2", "10.10.0.3", b"to b"))
            a.send_packet(packets.udp("10.10.0.2", "10.10.0.1", b"to the server"))
            assert b.recv().packet.endswith(b"to b")
            assert server.local.get(timeout=5).packet.endswith(b"to the server")
            server.inject(Frame(packets.udp("10.10.0.1", "10.10.0.2", b"to a")))
            assert a.recv().packet.endswith(b"to a")
        assert a.violations == b.violations == []
    assert server.violations == []
