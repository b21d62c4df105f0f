"""Authenticated garbage on an upload: that stream ends with a counted reason; the same client's download, and
everybody else, go on."""

from __future__ import annotations

import struct
import time
from typing import Final

import pytest

from tapotun_trio.wire import control
from tapotun_trio.wire.frames import encode_echo

from ..packets import frame, ipv4, ipv6
from ..tables import table
from ..twins import twin
from .hostile import CHUNKED, HUB, Siege, besieged, chunk, extended, honest_ip, request, until

pytestmark = pytest.mark.usefixtures("each_plane")

ME: Final = "10.10.0.2"
TO_HUB: Final = ipv4(ME, HUB, b"x" * 100)
TO_CLIENT: Final = ipv4(ME, honest_ip(0), bytes(100))
TCP: Final = ipv4(ME, honest_ip(0), bytes(100), protocol=6)
# Of IPv6.
TO_HUB_6: Final = ipv6(twin(ME), twin(HUB), b"x" * 100)
TO_CLIENT_6: Final = ipv6(twin(ME), twin(honest_ip(0)), bytes(100))
TCP_6: Final = ipv6(twin(ME), twin(honest_ip(0)), bytes(100), 6)


def vnet(flags: int = 0, gso: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr_len, gso_size, start, offset, 0)


def control_head(kind: int, length: int) -> bytes:
    return control.CONTROL.pack(control.CONTROL_LENGTH, kind, length)


async def assert_others_go_on(siege: Siege) -> None:
    """A new upload of the same client carries packets, its download still does, and so do the honest ones'."""
    upload = await siege.upload()
    await upload.send(chunk(frame(TO_HUB)))
    assert await siege.hub.receive_packet() == TO_HUB
    await upload.send(b"0\r\n\r\n")
    assert await upload.status() == 200
    await siege.assert_honest_traffic()


GARBAGE: Final = table(
    "body reason",
    *((f"L={length}", chunk(struct.pack("<H", length) + bytes(40)), "bad-frame") for length in (1, 2, 13, 14, 19)),
    ("L=20, no IP", chunk(frame(bytes(20))), "bad-frame"),
    ("IP version 5", chunk(frame(b"\x55" * 20)), "bad-frame"),
    ("version 1, not a ping", chunk(frame(b"\x10" + bytes(48))), "bad-frame"),
    ("control frame", chunk(control.encode(control.PING, bytes(8))), "bad-frame"),
    ("not our source, wrong length", chunk(frame(ipv4("9.9.9.9", HUB) + b"behind")), "bad-frame"),
    ("end within a length", chunk(b"\x14") + b"0\r\n\r\n", "bad-frame"),
    ("end within a frame", chunk(frame(TO_HUB)[:-1]) + b"0\r\n\r\n", "bad-frame"),
    ("good frames, then a bad one", chunk(frame(TO_CLIENT) * 3 + b"\x05\0"), "bad-frame"),
    ("no size", b"\r\n", "bad-chunk"),
    ("negative size", b"-1\r\n", "bad-chunk"),
    ("signed size", b"+4\r\n", "bad-chunk"),
    ("0x size", b"0x4\r\n", "bad-chunk"),
    ("size with an underscore", b"1_0\r\n", "bad-chunk"),
    ("size after a space", b" 4\r\n", "bad-chunk"),
    ("size of 17 digits", b"1" + b"0" * 16 + b"\r\n", "bad-chunk"),
    ("bare LF after the size", b"2\n\0\0\r\n", "bad-chunk"),
    ("bare LF after the chunk", b"2\r\n\0\0\n", "bad-chunk"),
    ("chunk longer than its size", b"2\r\n\0\0\0\r\n", "bad-chunk"),
    ("endless size line", b"2;" + b"x" * 2000, "bad-chunk"),
    ("endless zeros", b"0" * 2000, "bad-chunk"),
    ("a request as trailer", b"0\r\n" + request("GET", "mallory"), "bad-chunk"),
    ("endless trailer", b"0\r\n" + b"a: b\r\n" * 3000, "bad-chunk"),
)


@GARBAGE
async def test_garbage_ends_the_upload_alone(body: bytes, reason: str) -> None:
    async with besieged() as siege:
        download = await siege.download()
        upload = await siege.upload()
        await upload.send(body)
        assert b"200" not in await upload.rest()
        assert siege.mallory.counters.ends == {reason: 1}
        siege.hub.send(down := ipv4(HUB, ME, b"still there"))
        await until(lambda: not siege.hub.unread, "the device to be read")
        assert await download.exactly(len(chunk(frame(down)))) == chunk(frame(down))
        if reason != "bad-frame" or b"\x05\0" not in body:
            await assert_others_go_on(siege)
        else:  # what stood before the bad frame may have been delivered, or not
            await siege.pass_over()


@table(
    "body reason",
    *(
        (f"L={length}", chunk(struct.pack("<H", length) + bytes(12) + b"\x60" * length), "bad-frame")
        for length in (20, 39)
    ),
    ("not our source, wrong length", chunk(frame(ipv6(twin("9.9.9.9"), twin(HUB)) + b"behind")), "bad-frame"),
    ("end within a frame", chunk(frame(TO_HUB_6)[:-1]) + b"0\r\n\r\n", "bad-frame"),
    ("good frames, then a bad one", chunk(frame(TO_CLIENT_6) * 3 + b"\x05\0"), "bad-frame"),
    ("good frames, then a short one", chunk(frame(TO_CLIENT_6) * 3 + frame(TO_HUB_6[:39])), "bad-frame"),
)
async def test_garbage_of_ipv6_ends_the_upload_alone(body: bytes, reason: str) -> None:
    async with besieged() as siege:
        upload = await siege.upload_of(6)
        await upload.send(body)
        assert b"200" not in await upload.rest()
        assert siege.mallory.counters.ends == {reason: 1}
        await siege.pass_over()  # what stood before the bad frame may have been delivered, or not
        upload = await siege.upload_of(6)
        await upload.send(chunk(frame(TO_HUB_6)))
        assert await siege.hub.receive_packet() == TO_HUB_6


@table(
    "packet header",
    ("unknown flag", TO_CLIENT, vnet(flags=0x80)),
    ("hdr_len beyond the packet", TO_CLIENT, vnet(hdr_len=65535)),
    ("csum_start in the IP header", TO_CLIENT, vnet(flags=1, start=4, offset=6)),
    ("csum_start beyond", TO_CLIENT, vnet(flags=1, start=65535, offset=0)),
    ("csum_offset beyond", TO_CLIENT, vnet(flags=1, start=20, offset=65535)),
    ("csum on the last byte", TO_CLIENT, vnet(flags=1, start=20, offset=99)),
    ("csum sum wraps 16 bits", TO_CLIENT, vnet(flags=1, start=40, offset=65530)),
    ("gso_size 0", TCP, vnet(flags=1, gso=1, gso_size=0, start=20, offset=16)),
    ("gso_size by frags", TCP, vnet(flags=1, gso=1, gso_size=65535, start=20, offset=16)),
    ("gso without a checksum", TCP, vnet(gso=1, gso_size=1000)),
    ("gso of TCP that is not", TO_CLIENT, vnet(flags=1, gso=1, gso_size=1000, start=20, offset=16)),
    ("gso of TCPv6", TCP, vnet(flags=1, gso=4, gso_size=1000, start=20, offset=16)),
    ("UFO", TO_CLIENT, vnet(flags=1, gso=3, gso_size=1000, start=20, offset=6)),
    ("USO", TO_CLIENT, vnet(flags=1, gso=5, gso_size=1000, start=20, offset=6)),
    ("unknown gso_type", TCP, vnet(flags=1, gso=0x7F, gso_size=1000, start=20, offset=16)),
    ("ECN alone", TCP, vnet(gso=0x80)),
    ("an unknown flag for the device", TO_HUB, vnet(flags=0x80)),
    ("of IPv6, unknown flag", TO_CLIENT_6, vnet(flags=0x80)),
    ("of IPv6, hdr_len beyond the packet", TO_CLIENT_6, vnet(hdr_len=65535)),
    ("of IPv6, csum_start in the IP header", TO_CLIENT_6, vnet(flags=1, start=24, offset=6)),
    ("of IPv6, csum_start beyond", TO_CLIENT_6, vnet(flags=1, start=65535, offset=0)),
    ("of IPv6, csum on the last byte", TO_CLIENT_6, vnet(flags=1, start=40, offset=99)),
    ("of IPv6, gso_size 0", TCP_6, vnet(flags=1, gso=4, gso_size=0, start=40, offset=16)),
    ("of IPv6, gso without a checksum", TCP_6, vnet(gso=4, gso_size=1000)),
    ("of IPv6, gso of TCP that is not", TO_CLIENT_6, vnet(flags=1, gso=4, gso_size=1000, start=40, offset=16)),
    ("of IPv6, gso of TCPv4", TCP_6, vnet(flags=1, gso=1, gso_size=1000, start=40, offset=16)),
    ("of IPv6, UFO", TO_CLIENT_6, vnet(flags=1, gso=3, gso_size=1000, start=40, offset=6)),
    ("of IPv6, unknown gso_type", TCP_6, vnet(flags=1, gso=0x7F, gso_size=1000, start=40, offset=16)),
    ("of IPv6, for the device", TO_HUB_6, vnet(flags=0x80)),
)
async def test_an_impossible_vnet_header_reaches_nobody(packet: bytes, header: bytes) -> None:
    async with besieged() as siege:
        upload = await siege.upload_of(packet[0] >> 4)
        await upload.send(chunk(frame(packet, header)))
        await upload.rest()
        assert siege.mallory.counters.ends == {"bad-vnet": 1}
        await assert_others_go_on(siege)  # and gets nothing but its own packets


@table(
    "body reason",
    ("4 GiB control frame", control_head(control.PING, 2**32 - 1) + bytes(100_000), "bad-frame"),
    ("one byte too long", control_head(77, control.MAX_PAYLOAD_BYTES + 1), "bad-frame"),
    ("empty PONG", control.encode(control.PONG), "bad-frame"),
    ("long PONG", control.encode(control.PONG, bytes(9)), "bad-frame"),
    ("L=2", b"\x02\0" + bytes(40), "bad-frame"),
    ("a bad frame behind good controls", control.encode(99, b"?") * 100 + b"\x13\0", "bad-frame"),
)
async def test_garbage_in_control_frames(body: bytes, reason: str) -> None:
    async with besieged() as siege:
        await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        await upload.send(chunk(body))
        assert b"200" not in await upload.rest()
        assert siege.mallory.counters.ends == {reason: 1}
        await siege.assert_honest_traffic()


async def test_a_control_frame_that_never_comes_to_its_end() -> None:
    async with besieged() as siege:
        await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        await upload.send(chunk(control_head(77, control.MAX_PAYLOAD_BYTES) + bytes(control.MAX_PAYLOAD_BYTES - 1)))
        await siege.assert_honest_traffic()
        upload.shut()
        assert await upload.rest() == b""
        assert siege.mallory.counters.ends == {"closed": 1}


async def test_unknown_control_frames_and_clocks_that_nobody_has_are_no_error() -> None:
    async with besieged() as siege:
        await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        kinds = (control.encode(kind, bytes(kind)) for kind in range(256) if kind not in (control.PONG, control.BYE))
        soon = time.monotonic_ns() + 3600 * 10**9  # 0 may be ours, on a machine that has just started
        clocks = (control.encode(control.PONG, struct.pack("<Q", clock)) for clock in (soon, 2**63, 2**64 - 1))
        await upload.send(chunk(b"".join([*kinds, *clocks, encode_echo(2**64 - 1), frame(TO_HUB)])), b"0\r\n\r\n")
        assert await upload.status() == 200
        assert await siege.hub.receive_packet() == TO_HUB
        assert siege.mallory.rtt.last_s is None
        assert not siege.mallory.counters.ends


async def test_a_flood_of_goodbyes_is_not_a_flood_of_log_lines() -> None:
    """Whoever has a token must not be able to fill the disk."""
    async with besieged() as siege:
        await siege.download(*extended("mallory"))
        upload = await siege.upload(*extended("mallory"))
        await upload.send(chunk(control.bye("I am off") * 2000), b"0\r\n\r\n")
        await upload.status()
        goodbyes = [r for r in siege.log if "goodbye" in r.getMessage()]
        assert len(goodbyes) <= 5


@table(
    "fields",
    ("no download at all", extended("mallory")),
    ("another session's", extended("somebody else")),
)
async def test_an_upload_of_no_session_is_refused(fields: tuple[str, ...]) -> None:
    async with besieged() as siege:
        if fields == extended("somebody else"):
            await siege.download(*extended("mallory"))
        upload = await siege.connect(request("PUT", "mallory", CHUNKED, *fields), chunk(frame(TO_HUB)))
        assert await upload.status() == 409
        await upload.rest()
        assert not siege.hub.take()


@table(
    "value",
    ("empty", ""),
    ("short", "00"),
    ("uppercase", "A" * 32),
    ("long", "a" * 33),
    ("twice", "a" * 32 + "\r\nx-tun-session: " + "b" * 32),
    ("high bytes", "\xff" * 32),
    ("huge", "a" * 10_000),
)
async def test_a_session_id_that_is_none_makes_a_base_client(value: str) -> None:
    async with besieged() as siege:
        await siege.download(f"x-tun-session: {value}")
        upload = await siege.upload(f"x-tun-session: {value}")
        await upload.send(chunk(frame(TO_HUB)))
        assert await siege.hub.receive_packet() == TO_HUB
        await upload.send(chunk(control.bye("x")))
        await upload.rest()
        assert siege.mallory.counters.ends == {"bad-frame": 1}


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_an_upload_that_dies_at_every_position(reset: bool) -> None:
    """Within the head, a size line, a frame, its chunk's end, the last chunk: each costs that connection alone."""
    head = request("PUT", "mallory", CHUNKED)
    body = b"".join(chunk(part) for part in (b"\0", b"\0" + frame(TO_HUB)[:60], frame(TO_HUB)[60:])) + b"0\r\n\r\n"
    wire = head + body
    async with besieged() as siege:
        for length in range(len(wire)):
            raw = await siege.connect(wire[:length])
            if length >= len(head):  # else the reset may overtake the head
                begun = siege.mallory.counters.ends.total()
                await until(lambda: siege.mallory.uploads, "the upload")
                raw.reset() if reset else raw.shut()
                await until(lambda begun=begun: siege.mallory.counters.ends.total() > begun, "its end")  # type: ignore[misc]
            raw.reset() if reset else raw.close()
        assert siege.mallory.counters.ends.total() == len(body)
        assert set(siege.mallory.counters.ends) <= {"closed", "broken"}
        assert not siege.mallory.uploads
        assert {frame[12:] for frame in siege.hub.take()} <= {TO_HUB}


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_download_that_dies_at_every_position_of_its_head_and_after(reset: bool) -> None:
    head = request("GET", "mallory", *extended("mallory"))
    async with besieged() as siege:
        for length in range(1, len(head) + 1):
            raw = await siege.connect(head[:length])
            if length == len(head):
                assert await raw.status() == 200
            raw.reset() if reset else raw.close()
        await until(lambda: not siege.mallory.sender.streaming, "the end of the last download")
        assert set(siege.mallory.counters.ends) <= {"closed", "broken"}
