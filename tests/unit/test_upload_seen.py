"""What a server says of an upload that has arrived, to a client that is driven byte by byte."""

from __future__ import annotations

import pytest

from tapotun_trio.wire import control

from .hostile import Raw, besieged, chunk, extended, until

PING = chunk(control.ping(1))


async def first_chunk(download: Raw) -> list[bytes]:
    """The control frames of it, without the payload of PARAMS."""
    size = b""
    while not size.endswith(b"\r\n"):
        size += await download.exactly(1)
    data, frames = await download.exactly(int(size, 16)), []
    while data:
        _, kind, length = control.CONTROL.unpack_from(data)
        end = control.CONTROL.size + length
        frames.append(b"PARAMS" if kind == control.PARAMS else data[:end])
        data = data[end:]
    return frames


async def assert_told(download: Raw, frame: bytes) -> None:
    """It comes sooner or later."""
    read = b""
    while not read.endswith(frame):
        read += await download.exactly(1)


@pytest.mark.parametrize("number", [7, None])
async def test_each_download_of_the_session_begins_with_it(number: int | None) -> None:
    """The one that was sent may be lost with the download before, whose path has gone."""
    fields = () if number is None else (f"{control.UPLOAD_HEADER}: {number}",)
    async with besieged() as siege:
        down = await siege.download(*extended("one machine"))
        assert await first_chunk(down) == [b"PARAMS"]
        up = await siege.upload(*extended("one machine"), *fields)
        down = await siege.download(*extended("one machine"))
        assert await first_chunk(down) == [b"PARAMS"]  # nothing of it has arrived
        await up.send(PING)
        await assert_told(down, control.upload_seen(number))
        for _ in range(2):
            down = await siege.download(*extended("one machine"))
            assert await first_chunk(down) == [b"PARAMS", control.upload_seen(number)]
        up.close()
        await until(lambda: not siege.mallory.uploads, "the end of the upload")
        assert await first_chunk(await siege.download(*extended("one machine"))) == [b"PARAMS"]


async def test_another_machine_s_upload_is_not_meant() -> None:
    """Both number their uploads from 1 on."""
    async with besieged() as siege:
        down = await siege.download(*extended("one machine"))
        up = await siege.upload(*extended("one machine"), f"{control.UPLOAD_HEADER}: 1")
        await up.send(PING)
        await assert_told(down, control.upload_seen(1))
        down = await siege.download(*extended("another machine"))
        assert await first_chunk(down) == [b"PARAMS"]
        down = await siege.download(*extended("another machine"))
        assert await first_chunk(down) == [b"PARAMS"]
