"""A TCP relay that ends each connection at a fixed age, as some proxies end every request, or that lets each one wait.

Run as a script: port to listen at, port of 127.0.0.1 to connect to, age in seconds, and how long a connection waits
before anything of it goes on. Prints ``ready`` once it listens.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def run(port: int, upstream: int, age_s: float, wait_s: float) -> None:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(wait_s)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream)
        both = asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        with suppress(TimeoutError):
            await asyncio.wait_for(both, age_s)
        for end in (writer, far_writer):
            end.close()

    async with await asyncio.start_server(serve, "0.0.0.0", port) as server:
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
