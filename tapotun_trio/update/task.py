"""What a worker is told to do: one line of JSON on its standard input, which then stays open while it works.

The parent writes it, so a worker may believe it. Files are passed as descriptors, with the same number in the worker.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

from ..config.model import Proxy, Secret, TlsConfig, UpdateConfig, Url

TASK_BYTES: Final = 64 * 1024
WORKER: Final = "update-worker"
"""The only argument of a worker's process; `tapotun_trio.__main__` knows it."""


class Source(Struct, frozen=True):
    """From where to fetch, and how to connect. Logins are ``user:pass``."""

    url: Url
    login: str | None
    proxy: tuple[str, int, str | None] | None
    tls: TlsConfig

    @classmethod
    def of(cls, config: UpdateConfig, proxy: Proxy | None) -> Source:
        """``proxy``: the one to connect through, whether config or environment name it."""
        through = None
        if proxy is not None:
            through = proxy.host, proxy.port, None if proxy.login is None else proxy.login.reveal()
        return cls(config.url, None if config.login is None else config.login.reveal(), through, config.tls)

    def proxy_config(self) -> Proxy | None:
        if self.proxy is None:
            return None
        host, port, login = self.proxy
        return Proxy(host, port, None if login is None else Secret(login))


class Task(Struct, frozen=True):
    """Attributes:
    kind: fetch from ``source``, or verify what was fetched, without any network.
    root, kept: descriptors of the trusted root metadata, and of the `bundle` that the last run has kept.
    bundle: descriptor of the `bundle` of metadata that is fetched, or was.
    result: verify: descriptor for the `bundle` to keep for the next run.
    target: descriptor of the file that is fetched, or was. None: it is not asked for.
    installed: only a file that is newer than this version is fetched.
    metadata_s, target_s: the most time for all metadata, and for the file.
    stall_s: the most time without a byte.
    """

    kind: Literal["fetch", "verify"]
    channel: str
    installed: str
    root: int
    kept: int
    bundle: int
    result: int | None
    target: int | None
    source: Source | None
    metadata_s: float
    target_s: float
    stall_s: float

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that the worker inherits."""
        given = self.root, self.kept, self.bundle, self.result, self.target
        return tuple(fd for fd in given if fd is not None)


def encode(task: Task) -> bytes:
    return msgspec.json.encode(task) + b"\n"


def decode(line: bytes) -> Task:
    return msgspec.json.decode(line, type=Task)
