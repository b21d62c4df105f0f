"""A proxy that answers wrongly, or ends connections, when told to: `python -m tools.soak.relay LISTEN UPSTREAM FIFO`.

LISTEN and UPSTREAM are ADDRESS:PORT. The proxy forwards bytes in both directions. It reads orders from the FIFO, one
per line:

    cut                 close every connection
    wrong METHOD KIND   answer the next request of that method wrongly, once
    age SECONDS         end every connection at this age from now on, older ones at once; "inf": no limit

KIND is one of `ANSWERS`. A client opens a connection for each request, so a limit on connections is also one on
requests. Each order is acknowledged on standard error. Each wrong answer is reported there too, and so is each
connection that is ended because of its age.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from functools import partial
from typing import Final

import trio

ANSWERS: Final = {
    "502": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
    "page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
    "garbage": bytes(range(256)) * 4,
    "half": b"HTTP/1.1 200 OK\r\nx-tun-co",
    "eof": b"",
}
_PIECE_BYTES: Final = 256 * 1024


class Relay:
    """The orders that are not carried out yet, and the open connections."""

    def __init__(self, upstream: str) -> None:
        """``upstream`` is ADDRESS:PORT."""
        self._upstream = _endpoint(upstream)
        self._wrong: dict[str, str] = {}
        self._began: dict[trio.CancelScope, float] = {}  # when each open connection began
        self._age_s = math.inf

    async def handle(self, client: trio.SocketStream) -> None:
        """One connection."""
        began = trio.current_time()
        with trio.CancelScope(deadline=began + self._age_s) as scope:
            self._began[scope] = began
            try:
                async with client:
                    await self._talk(client)
            except OSError as exc:
                _report(f"no upstream: {exc}")
            finally:
                del self._began[scope]
        if scope.cancelled_caught and trio.current_time() >= scope.deadline:
            _report(f"ended at an age of {trio.current_time() - began:.2f} s")

    async def _talk(self, client: trio.SocketStream) -> None:
        try:
            first = bytes(await client.receive_some(_PIECE_BYTES))
        except trio.BrokenResourceError:
            return
        method = first.split(b" ", 1)[0].decode("ascii", "replace")
        kind = self._wrong.pop(method, None)
        if kind is not None:
            with suppress(trio.BrokenResourceError):
                await client.send_all(ANSWERS[kind])
            _report(f"answered {method} with {kind}")
        elif first:
            async with await trio.open_tcp_stream(*self._upstream) as server:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pump, client, server, first, nursery.cancel_scope)
                    nursery.start_soon(_pump, server, client, b"", nursery.cancel_scope)

    async def follow_orders(self, fifo: str) -> None:
        """Follow orders for ever: the process that started us holds the FIFO open, so that it never ends."""
        async with await trio.open_file(fifo) as orders:
            async for line in orders:
                match line.split():
                    case ["cut"]:
                        for scope in list(self._began):
                            scope.cancel()
                    case ["age", seconds]:
                        self._age_s = float(seconds)
                        for scope, began in self._began.items():
                            scope.deadline = began + self._age_s
                    case ["wrong", method, kind]:
                        self._wrong = {method: kind}
                _report(f"ordered: {line.strip()}")


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, first: bytes, scope: trio.CancelScope) -> None:
    """Copy bytes until one end closes or breaks; then close the other end too."""
    with suppress(trio.BrokenResourceError):
        await sink.send_all(first)
        while piece := await source.receive_some(_PIECE_BYTES):
            await sink.send_all(piece)
    scope.cancel()


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address, int(port)


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def main(listen: str, upstream: str, fifo: str) -> None:
    """Runs until it is killed."""
    relay = Relay(upstream)
    address, port = _endpoint(listen)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.follow_orders, fifo)
        await nursery.start(partial(trio.serve_tcp, relay.handle, port, host=address))
        _report("ready")


if __name__ == "__main__":
    _listen, _upstream, _fifo = sys.argv[1:]
    trio.run(main, _listen, _upstream, _fifo)
