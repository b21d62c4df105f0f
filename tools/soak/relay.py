"""A proxy that answers wrongly on order: `python -m tools.soak.relay LISTEN UPSTREAM FIFO`, the first two ADDRESS:PORT.

Forwards bytes in both directions. It reads orders from the FIFO, one a line:

    cut                 close every connection
    wrong METHOD KIND   answer the next request of that method wrongly, once

KIND is one of `ANSWERS`. Each order is acknowledged on standard error, and so is each wrong answer.
"""

from __future__ import annotations

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
        self._scopes: set[trio.CancelScope] = set()

    async def handle(self, client: trio.SocketStream) -> None:
        """One connection."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with client:
                    await self._talk(client)
            except OSError as exc:
                _report(f"no upstream: {exc}")
            finally:
                self._scopes.discard(scope)

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
                        for scope in list(self._scopes):
                            scope.cancel()
                    case ["wrong", method, kind]:
                        self._wrong = {method: kind}
                _report(f"ordered: {line.strip()}")


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, first: bytes, scope: trio.CancelScope) -> None:
    """Bytes until one end closes or breaks; then the other one is closed too."""
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
