"""A panel without a browser: follows /api/live and prints each message as it comes, a line of JSON each.

    python -m tests.netns.live_panel URL HEADER...

Prints ``refused STATUS`` if it gets none, and ``closed CODE`` at the end; then it waits to be stopped.
"""

from __future__ import annotations

import sys

import trio
import trio_websocket

from tapotun_trio.errors import leaves


async def main(url: str, headers: list[str]) -> None:
    pairs = [tuple(part.strip().encode() for part in header.split(":", 1)) for header in headers]
    try:
        async with trio_websocket.open_websocket_url(url, extra_headers=pairs) as socket:
            while True:
                print(await socket.get_message(), flush=True)
    except* trio_websocket.ConnectionRejected as group:
        print("refused", *(exc.status_code for exc in leaves(group)), flush=True)
    except* trio_websocket.ConnectionClosed as group:
        print("closed", *(exc.reason.code for exc in leaves(group)), flush=True)
    await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2:])
