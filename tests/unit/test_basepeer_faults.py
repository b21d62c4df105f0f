"""Each role of the test peer catches the other when it misbehaves, and behaves as PROTOCOL says it would."""

import socket
import time
from dataclasses import replace

import pytest

from tests.basepeer import BaseClient, Conf, Frame, packets, vnet
from tests.basepeer.pair import FAST, connect, down, exchange, serve, up
from tests.basepeer.wire import FrameReader, WireError, decode_conf, frame_fault


def test_a_get_200_without_conf_ends_a_deployed_client() -> None:
    with serve() as server, connect(server) as client:
        client.wait("get-open", 1)
        server.script("GET", "no-conf")
        server["test"].end_get()
        client.wait("exit")
    assert client.exited == "GET 200 without x-tun-conf"
    assert any("without x-tun-conf" in text for text in client.violations)


def test_half_a_frame_makes_a_deployed_client_deaf() -> None:
    with serve() as server, connect(server) as client:
        client.wait_connected()
        server["test"].drop_get(mid_frame=True)
        client.wait("get-open", 2)
        # The 57 bytes that fill the half frame, and then what looks like L = 5.
        server["test"].send_raw(bytes(57) + b"\x05\x00")
        client.wait("deaf")
        server["test"].send(down(1))
    assert any("ended inside a frame, 57 bytes into it" in text for text in client.violations)


def test_an_early_200_makes_a_client_put_again_every_second() -> None:
    with serve() as server:
        server.script("PUT", "early", "early")
        with connect(server) as client:
            client.wait("put-early", 2)
            client.wait("put-open", 1)
            exchange(server, client)
    assert [text for text in client.violations if "final 200 before" in text] == client.violations
    assert len(client.violations) == 2


def test_a_proxy_error_and_a_lost_answer_are_retried() -> None:
    with serve() as server:
        server.script("GET", "502 Bad Gateway", "drop")
        server.script("PUT", "502 Bad Gateway", "drop")
        with connect(server) as client:
            client.wait_connected()
            exchange(server, client)
    assert client.violations == []
    assert client.journal.count("get-status") == 1
    assert client.journal.count("get-broken") == 1


def test_a_put_resumes_with_the_tail_of_a_frame() -> None:
    with serve() as server, connect(server, resume_tail=True) as client:
        client.wait_connected()
        client.break_put(Frame(bytes([0x45]) + bytes(25) + b"\x05\x00" * 30), 40)
        server.wait("put-broken")
        client.wait("resume")
        server.wait("exit")
    assert server.exited == "PUT of 10.10.0.2: bad frame: L = 5"
    assert any("broke off inside a frame, 40 bytes into it" in text for text in server.violations)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x01\x00\x02" + bytes(11), "control frame"),
        (b"\x13\x00" + bytes(31), "L = 19"),
        (Frame(b"\x60" + bytes(47)).encode(), "IPv6"),
        (Frame(bytes(30)).encode(), "no IP packet"),
        (replace(up(), header=vnet.LAYOUT.pack(1, 5, 28, 8, 20, 6, 0)).encode(), "UDP-GSO"),
    ],
    ids=["control", "short", "inet6", "junk", "uso"],
)
def test_frames_that_no_base_peer_may_get(data: bytes, why: str) -> None:
    with serve() as server, connect(server) as client:
        client.wait_connected()
        server["test"].send_raw(data)
        client.wait("violation")
        client.send_raw(data)
        server.wait("exit")
    assert any(why in text for text in server.violations)
    assert any(why in text for text in client.violations)
    assert server.exited is not None


def test_an_echo_must_be_the_very_same_frame() -> None:
    with serve(generation=2) as server, connect(server, generation=2) as client:
        client.wait_connected()
        client.send(Frame(b"\x10" + bytes(47)))
        server.wait("echo")
    assert any("never sent" in text for text in server.violations)
    assert client.violations == []


def times(client: BaseClient, kind: str) -> list[float]:
    """When such events were."""
    return [at for at, seen, _ in client.journal.events if seen == kind]


def test_a_clean_end_keeps_a_generation_2_client_away() -> None:
    timers = replace(FAST, rotate_2_s=(1.5, 1.6))
    with serve(generation=2) as server, connect(server, generation=2, timers=timers) as client:
        client.wait_connected()
        server["test"].end_get()
        client.wait("get-open", 2)
    first, second = times(client, "get-open")
    assert second - first >= 1.4  # at its next rotation
    assert client.journal.count("away") == 1
    assert any("ended cleanly, and no newer one" in text for text in client.violations)


def test_a_break_has_a_generation_2_client_back_after_an_error_s_pause() -> None:
    timers = replace(FAST, retry_2_s=(0.5, 0.6))
    with serve(generation=2) as server, connect(server, generation=2, timers=timers) as client:
        client.wait_connected()
        server["test"].drop_get()
        client.wait("get-open", 2)
    assert times(client, "get-open")[1] - times(client, "get-broken")[0] >= 0.4
    assert client.violations == []


def test_a_generation_2_client_gives_up_a_put_without_a_byte() -> None:
    timers = replace(FAST, give_up_s=0.5)
    with serve(generation=2) as server, connect(server, generation=2, timers=timers) as client:
        client.wait_connected()
        for number in range(50):  # its GET is busy
            server["test"].send(down(number))
            time.sleep(0.02)
        client.wait("put-broken")
        client.wait("put-open", 2)
    assert any("PUT without a byte" in text for text in client.violations)


def test_an_empty_frame_ends_a_put_at_a_generation_2_server() -> None:
    with serve(generation=2) as server, connect(server, generation=2) as client:
        client.wait_connected()
        client.send(up(1), Frame(b""), up(2))
        server.wait("put-broken")
        assert server["test"].recv() == up(1)
        client.wait("put-open", 2)
    assert server.exited is None
    assert any("L = 0" in text for text in server.violations)


def test_extended_headers_and_sloppy_chunks_are_noticed() -> None:
    with serve() as server:
        request = (
            "PUT /ip HTTP/1.1\r\nHost: x\r\nx-api-key: test\r\nx-tun-ctl: 1\r\n"
            "Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\n\0\0\r\n0\r\nTrailer: 1\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            link.sendall(request.encode())
            assert link.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        server.wait("put-end")
    found = " ".join(server.violations)
    assert all(word in found for word in ("x-tun-ctl", "chunk extension", "trailer"))


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_server_may_not_close_a_kept_connection_unless_it_stops(goes_on: bool) -> None:
    conf = Conf(1500, 24, ("10.10.0.2",)).encode(1)
    answer = f"HTTP/1.1 200 OK\r\nx-tun-conf: {conf}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with BaseClient(f"http://127.0.0.1:{listener.getsockname()[1]}/", "test", timers=FAST) as client:
            link, _ = listener.accept()
            with link:
                assert link.recv(4096).startswith(b"GET / ")
                link.sendall(answer)
                upload, _ = listener.accept()
                if not goes_on:
                    listener.close()
                link.sendall(b"0\r\n\r\n")
            with upload:
                if goes_on:
                    again, _ = listener.accept()
                    with again:
                        again.sendall(answer)
                        client.wait("get-open", 2)
                else:
                    client.wait("get-broken")
    assert len([text for text in client.violations if "kept-alive" in text]) == goes_on
    assert len([text for text in client.remarks if "kept-alive" in text]) != goes_on


def test_old_frames_are_dropped() -> None:
    with serve(max_age_s=0.001) as server:
        server["test"].send(down(1))
        time.sleep(0.01)
        server["test"].send(down(2))
    assert server["test"].outbox.dropped == 1


def test_conf_layouts() -> None:
    conf = Conf(1400, 16, ("10.0.0.1", "10.0.0.2"), ("192.168.0.0/16",))
    assert decode_conf(conf.encode(2)) == (2, conf)
    assert decode_conf(conf.encode(1)) == (1, Conf(1400, 16, ("10.0.0.1",)))
    assert decode_conf("3AUYCgoAAg==") == (1, Conf(1500, 24, ("10.10.0.2",)))
    for bad in ("", "3AUYCgoAAg", "3AUYCgoAAgA=", "AAAYCgoAAg==", "3AUYAAA="):
        with pytest.raises(WireError):
            decode_conf(bad)


def test_frames_split_anywhere() -> None:
    frames = [up(1), Frame(b""), down(2, 400), packets.tcp_super("10.1.1.1", "10.1.1.2", bytes(3000))]
    data = b"".join(frame.encode() for frame in frames)
    for step in (1, 2, 3, 13, 14, 15, len(data)):
        reader = FrameReader()
        got = [f for at in range(0, len(data), step) for f in reader.feed(data[at : at + step])]
        assert got == frames
        assert reader.rest == b""


TCP = packets.tcp_super("10.1.1.1", "10.1.1.2", bytes(3000)).packet


@pytest.mark.parametrize(
    ("fields", "packet", "why"),
    [
        ((0, 0, 0, 0, 0, 0), TCP, None),
        ((1, 1, 40, 1448, 20, 16), TCP, None),
        ((1, 0x81, 40, 1448, 20, 16), TCP, None),
        ((0, 1, 40, 1448, 0, 0), TCP, None),
        ((1, 0, 0, 0, 20, 6), up().packet, None),
        ((2, 0, 0, 0, 0, 0), up().packet, None),
        ((1, 1, 40, 0, 20, 16), TCP, "gso_size 0"),
        ((1, 1, 40, 0xFFFF, 20, 16), TCP, "gso_size 65535"),
        ((1, 5, 28, 1448, 20, 6), TCP, "UDP-GSO"),
        ((1, 4, 40, 1448, 20, 16), TCP, "TCPV6"),
        ((0, 3, 40, 1448, 20, 16), TCP, "not one of"),
        ((0, 0, 3041, 0, 0, 0), TCP, "hdr_len"),
        ((1, 0, 0, 0, 3030, 9), TCP, "beyond"),
        ((1, 1, 40, 1448, 20, 6), TCP, "csum_offset"),
        ((1, 0, 0, 0, 10, 6), TCP, "inside the IP header"),
        ((0, 1, 40, 1448, 0, 0), packets.ipv4("10.1.1.1", "10.1.1.2", 17, bytes(99)), "not TCP"),
    ],
)
def test_virtio_headers(fields: tuple[int, ...], packet: bytes, why: str | None) -> None:
    fault = frame_fault(Frame(packet, vnet.LAYOUT.pack(*fields, 0)))
    assert (fault is None) if why is None else (fault is not None and why in fault)
