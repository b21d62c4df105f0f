"""Fetches the repository's files over HTTP, with the tunnel's own client: its proxies, its TLS, its errors.

Every file has a limit, all together have a deadline, and a server that sends nothing is given up. Redirects are not
followed: who may publish here is decided in the config. Untrusted input; raises PeerError, HostError and
`trust.UntrustedError`. Only a worker imports this module, because it imports tuf.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import trio

from .. import AGENT
from ..config.model import Proxy, Secret, Url
from ..errors import EndReason, PeerError
from ..host.net.resolver import Resolver
from ..host.net.sockets import Connection
from ..host.net.tls import TlsClient
from ..http.client import open_connection, read_response, send_request
from ..http.heads import ResponseHead, basic
from ..text import one_line, shorten
from .task import Task
from .trust import Refresh, Target, UntrustedError, Wanted
from .version import is_newer

_BUFFER_BYTES: Final = 64 * 1024
_SHOWN_CHARS: Final = 200
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MISSING: Final = (403, 404)  # object stores answer 403 for what is not there
_REMEDIES: Final = {
    401: "; write its login into update.url, as https://USER:PASSWORD@HOST/",
    **dict.fromkeys(_MISSING, "; is update.url the repository's directory?"),
    511: "; this network wants a login first",  # RFC 6585, section 6
}


class Repository:
    """The files below one URL, each fetched with a connection of its own."""

    def __init__(
        self,
        url: Url,
        *,
        login: Secret | None = None,
        proxy: Proxy | None = None,
        tls: TlsClient | None = None,
        stall_s: float,
    ) -> None:
        """``tls``: needed if the URL is https. ``stall_s``: see `task.Task`."""
        self._url = url
        self._proxy = proxy
        self._tls = tls
        self._stall_s = stall_s
        self._resolver = Resolver()
        self._headers = [
            ("User-Agent", AGENT),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        if login is not None:
            self._headers.append(("Authorization", basic(login)))

    async def metadata(self, wanted: Wanted) -> bytes | None:
        """The whole file; None: it may lack, and does."""
        pieces: list[bytes] = []
        there = await self._get(f"metadata/{wanted.name}", wanted.limit_bytes, pieces.append, may_lack=wanted.may_lack)
        return b"".join(pieces) if there else None

    async def target(self, target: Target, fd: int) -> None:
        """Write the file to a descriptor. Raises UntrustedError if it is another one."""
        digest = hashlib.sha256()
        length = 0

        def write(piece: bytes) -> None:
            nonlocal length
            length += len(piece)
            digest.update(piece)
            left = memoryview(piece)
            while left:
                left = left[os.write(fd, left) :]

        folder, _, name = target.path.rpartition("/")
        path = f"targets/{folder}/{target.sha256}.{name}"
        await self._get(path, target.length, write)
        if length != target.length:
            raise UntrustedError(f"{path} has {length} bytes, and the signed list says {target.length}")
        if digest.hexdigest() != target.sha256:
            raise UntrustedError(f"{path} is not the file that the signed list names: its SHA-256 differs")

    async def _get(
        self, path: str, limit_bytes: int, write: Callable[[bytes], None], *, may_lack: bool = False
    ) -> bool:
        """Pass the file's pieces to ``write``. Returns whether there is such a file."""
        url = replace(self._url, target=f"{self._url.target}{path}")
        try:
            connection = await open_connection(url, self._tls, proxy=self._proxy, resolver=self._resolver)
            try:
                with trio.fail_after(self._stall_s):
                    await send_request(connection, "GET", url, self._headers)
                    head, rest = await read_response(connection, "GET")
                if may_lack and head.status in _MISSING:
                    return False
                _check_head(head, limit_bytes)
                await self._receive(connection, head, rest, limit_bytes, write)
            finally:
                connection.close()
        except trio.TooSlowError as exc:
            text = f"{url.shown}: nothing came for {self._stall_s:g} s"
            raise PeerError(text, reason=EndReason.SILENT) from exc
        except PeerError as exc:
            raise PeerError(f"{url.shown}: {exc}", reason=exc.reason) from exc
        return True

    async def _receive(
        self, connection: Connection, head: ResponseHead, rest: bytes, limit_bytes: int, write: Callable[[bytes], None]
    ) -> None:
        body = head.body()
        buffer = bytearray(max(_BUFFER_BYTES, len(rest)))
        buffer[: len(rest)] = rest
        end, total = len(rest), 0
        while True:
            pos = 0
            while pos < end and not body.ended:
                start, pos = body.span(buffer, pos, end)
                total += pos - start
                if total > limit_bytes:
                    raise _too_long(limit_bytes)
                write(bytes(buffer[start:pos]))
            if body.ended:
                return
            with trio.fail_after(self._stall_s):
                end = await connection.receive(memoryview(buffer))
            if not end:
                body.eof()
                return


async def fetch(repository: Repository, refresh: Refresh, files: dict[str, bytes], task: Task) -> None:
    """Fetch what a `Refresh` asks for, and the channel's file if the task wants it and it is newer.

    ``files``: gets the metadata by name, also of a fetch that fails later.
    """
    with _deadline(task.metadata_s):
        await _metadata(repository, refresh, files)
    target = refresh.target(task.channel)
    if task.target is not None and is_newer(target.version, task.installed):
        with _deadline(task.target_s):
            await repository.target(target, task.target)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as exc:
        text = f"the repository's server, or the path to it, is too slow: not done within {seconds:g} s"
        raise PeerError(text, reason=EndReason.SILENT) from exc


async def _metadata(repository: Repository, refresh: Refresh, files: dict[str, bytes]) -> None:
    steps = refresh.run()
    data: bytes | None = None
    while True:
        try:
            wanted = steps.send(data)
        except StopIteration:
            return
        data = await repository.metadata(wanted)
        if data is not None:
            files[wanted.name] = data


def _check_head(head: ResponseHead, limit_bytes: int) -> None:
    """Raises PeerError unless the body is the file."""
    if head.status in _REDIRECTS:
        place = one_line(shorten(head.headers.get("location", "nowhere"), _SHOWN_CHARS))
        text = f"answers with a redirect to {place}, which is not followed; if that is right, write it as update.url"
        raise PeerError(text, reason=EndReason.http(head.status))
    if head.status != 200:
        reason = one_line(shorten(head.reason, _SHOWN_CHARS))
        raise PeerError(
            f"answers {head.status} {reason}{_REMEDIES.get(head.status, '')}", reason=EndReason.http(head.status)
        )
    if head.headers.get("content-encoding", "identity").lower() != "identity":
        raise PeerError("answers in a content coding that was not asked for", reason=EndReason.BAD_RESPONSE)
    if int(head.headers.get("content-length", "0")) > limit_bytes:
        raise _too_long(limit_bytes)


def _too_long(limit_bytes: int) -> PeerError:
    return PeerError(f"is longer than {limit_bytes} bytes, and nothing like it", reason=EndReason.TOO_LONG)
