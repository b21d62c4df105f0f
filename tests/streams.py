"""Connections in memory: the test says how much each side takes, and virtual time can pass (`autojump_clock`)."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.host.interfaces import PathState
from tapotun_trio.host.net.sockets import Connection


class _Pipe:
    """One direction: bytes under way, and what became of either end."""

    def __init__(self, capacity_bytes: int) -> None:
        self.data = bytearray()
        self.capacity_bytes = capacity_bytes
        self.ended = False  # the sender sends nothing more
        self.reset = False  # the receiver is gone, or the sender aborted
        self._changed = trio.Event()

    @property
    def room_bytes(self) -> int:
        return max(0, self.capacity_bytes - len(self.data))

    def changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> None:
        await self._changed.wait()


class MemoryConnection(Connection):
    """One end of a pair. Behaves as TCP does, at its least friendly: who closes with unread bytes, or is sent to
    after the close, resets the connection, and a reset destroys whatever the other end had not read yet."""

    def __init__(self, name: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        # Not super().__init__: there is no socket.
        self._fd = -1
        self._tcp = False
        self._busy, self._turns = False, 0
        self.path_state: PathState | None = None  # what the kernel would tell of the path
        self.name = name
        self.closed = False
        self.sends = 0  # calls of try_send that took something
        self._incoming = incoming
        self._outgoing = outgoing

    # -- what Connection does with a socket

    @property
    def remote_address(self) -> None:
        return None

    def try_receive(self, into: memoryview) -> int | None:
        pipe = self._incoming
        self._check(pipe)
        if not pipe.data:
            return 0 if pipe.ended else None
        taken = min(len(into), len(pipe.data))
        into[:taken] = pipe.data[:taken]
        del pipe.data[:taken]
        pipe.changed()
        return taken

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        pipe = self._outgoing
        self._check(pipe)
        data = b"".join(parts)[: pipe.room_bytes]
        if data:
            self.sends += 1
            pipe.data += data
            pipe.changed()
        return len(data)

    async def wait_readable(self) -> None:
        pipe = self._incoming
        await trio.lowlevel.checkpoint()
        while not (self.closed or pipe.data or pipe.ended or pipe.reset):
            await pipe.wait()
        if self.closed:
            raise self._closed()

    async def wait_writable(self) -> None:
        pipe = self._outgoing
        await trio.lowlevel.checkpoint()
        while not (self.closed or pipe.room_bytes or pipe.reset):
            await pipe.wait()
        if self.closed:
            raise self._closed()

    def path(self) -> PathState | None:
        return self.path_state

    @property
    def unacknowledged_bytes(self) -> int:
        """What the other end has not received: a reset destroys all of that here, so nothing less is safe."""
        self._check(self._outgoing)
        return len(self._outgoing.data)

    def shutdown_sending(self) -> None:
        self._outgoing.ended = True
        self._outgoing.changed()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._outgoing.ended = True
        if self._incoming.data:
            self._reset()
        # Whoever sends from now on is answered with a reset.
        self._incoming.reset = True
        self._incoming.changed()
        self._outgoing.changed()

    def abort(self) -> None:
        if not self.closed:
            self._reset()
            self.close()

    def _reset(self) -> None:
        for pipe in (self._incoming, self._outgoing):
            pipe.data.clear()
            pipe.reset = True
            pipe.changed()

    def _check(self, pipe: _Pipe) -> None:
        if self.closed:
            raise self._closed()
        if pipe.reset:
            if pipe is self._outgoing:
                self._reset()
            raise PeerError(f"connection to {self.name} broke: reset", reason=EndReason.BROKEN)

    # -- for the test

    def limit(self, capacity_bytes: int) -> None:
        """Limit how many bytes that we send may be in flight from now on."""
        self._outgoing.capacity_bytes = capacity_bytes
        self._outgoing.changed()

    @property
    def unread(self) -> bytes:
        """What has come and was not received yet."""
        return bytes(self._incoming.data)

    async def read(self, limit_bytes: int = 1 << 20) -> bytes:
        """Receive something; ``b""`` at the end."""
        buffer = bytearray(limit_bytes)
        return bytes(buffer[: await self.receive(memoryview(buffer))])

    async def read_until(self, mark: bytes) -> bytes:
        """Receive up to and with ``mark``, byte for byte, and nothing behind it."""
        data = b""
        while not data.endswith(mark):
            byte = await self.read(1)
            assert byte, f"ended after {data!r}"
            data += byte
        return data

    async def read_all(self) -> bytes:
        """Receive to the end."""
        data = b""
        while piece := await self.read():
            data += piece
        return data


def memory_pair(capacity_bytes: int = 1 << 20) -> tuple[MemoryConnection, MemoryConnection]:
    """Two ends. Each takes that many bytes before the other one has received them."""
    one_way, other_way = _Pipe(capacity_bytes), _Pipe(capacity_bytes)
    return MemoryConnection("left", one_way, other_way), MemoryConnection("right", other_way, one_way)
