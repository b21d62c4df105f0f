"""The process that reads what comes from a repository: one fetches it, and another one, without a network, verifies it.

Both give up all privileges before they read anything foreign (`confine`). Everything that they need later is imported
before that: the program's files may be readable by root only.

The second one is what the parent believes. The first has spoken with servers through OpenSSL, h11 and the resolver; a
fault in one of these may let a server take it over. Then it can hand over any bytes, and no more than a machine on the
path could: the second, a fresh process without a descriptor to spare, verifies all of them.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
from typing import TYPE_CHECKING, Final

from ..errors import HostError, InternalError, PeerError, failure_of
from . import answers, bundle, task
from .confine import become_nobody, confine, seal_off
from .task import TASK_BYTES, Task

if TYPE_CHECKING:
    from .trust import Target

_STDIN: Final = 0
_STDOUT: Final = 1
_SPARE_S: Final = 30  # after its deadlines, a worker whose parent is gone is killed by its alarm
_PIECE_BYTES: Final = 1 << 20

# What the C library, OpenSSL and Python read when a name is resolved and a certificate is verified.
_READABLE: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"),
    *("/etc/protocols", "/etc/ld.so.cache", "/run/systemd/resolve", "/run/nscd"),
    *("/etc/ssl", "/etc/pki", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"),
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64"),
)


def main() -> int:
    """Do what the task on standard input says, and answer on standard output. Returns the exit code."""
    # The parent may ignore or block these, which is inherited.
    for number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    given = _read_task()
    signal.alarm(int(given.metadata_s + given.target_s) + _SPARE_S)
    # python-tuf would verify with it where it is installed. So the same code runs on every machine, all of it Python.
    sys.modules["cryptography"] = None  # type: ignore[assignment]
    from .trust import UntrustedError

    try:
        answer = _fetch(given) if given.kind == "fetch" else _verify(given)
    except InternalError:
        raise
    except (UntrustedError, PeerError, HostError) as exc:
        answer = answers.Failed(str(exc))
    line = answers.encode(answer)
    while line:
        line = line[os.write(_STDOUT, line) :]
    return 0


def _read_task() -> Task:
    """Raises EOFError: the parent has gone."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(_STDIN, TASK_BYTES)
        if not piece:
            raise EOFError("no task")
        line += piece
    return task.decode(line)


def _fetch(given: Task) -> answers.Answer:
    import traceback  # noqa: F401 - this and others would be imported at first use

    import trio

    from ..config.model import Secret
    from ..host.net import tls_errors, tls_records  # noqa: F401
    from ..host.net.tls import TlsClient
    from ..http import connect  # noqa: F401
    from .fetch import Repository, fetch
    from .trust import Refresh, UntrustedError

    source = given.source
    assert source is not None, "a fetch has a source"
    tls = TlsClient(source.tls) if source.url.scheme == "https" else None  # reads files that only root may read
    become_nobody(max(bundle.BUNDLE_BYTES, answers.TARGET_BYTES))
    paths = ssl.get_default_verify_paths()
    trusted = [path for path in (paths.cafile, paths.capath, paths.openssl_cafile, paths.openssl_capath) if path]
    confine([*_READABLE, *trusted, *sys.path], connects=True)
    refresh = Refresh(_input(given.root), _kept(given.kept) or {})
    files: dict[str, bytes] = {}
    repository = Repository(
        source.url,
        login=None if source.login is None else Secret(source.login),
        proxy=source.proxy_config(),
        tls=tls,
        stall_s=given.stall_s,
    )

    failure: Exception | None = None

    async def work() -> None:
        nonlocal failure
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_with_parent)
            try:
                await fetch(repository, refresh, files, given)
            except UntrustedError as exc:
                failure = exc
            except Exception as exc:  # noqa: BLE001 - a bug is named, and its traceback is below
                failure = failure_of(exc, "cannot fetch")
            nursery.cancel_scope.cancel()

    trio.run(work)
    _output(given.bundle, bundle.encode(files))
    if failure is not None:
        raise failure
    return answers.Fetched()


async def _end_with_parent() -> None:
    """The parent keeps our standard input open, and never writes more: when it can be read, the parent is gone."""
    import trio

    await trio.lowlevel.wait_readable(_STDIN)
    os._exit(1)


def _verify(given: Task) -> answers.Answer:
    import traceback  # noqa: F401 - it would be imported at first use

    from .trust import Refresh

    become_nobody(bundle.BUNDLE_BYTES)
    confine((), connects=False)
    seal_off()
    kept = _kept(given.kept)
    refresh = Refresh(_input(given.root), kept or {})
    try:
        files = bundle.decode(_input(given.bundle))
    except ValueError as exc:
        raise HostError(f"what was fetched is not usable: {exc}") from exc
    steps = refresh.run()
    data: bytes | None = None
    try:
        while True:
            data = files.get(steps.send(data).name)
    except StopIteration:
        pass
    finally:
        assert given.result is not None, "verification has a place for its result"
        _output(given.result, bundle.encode(refresh.kept))
    target = refresh.target(given.channel)
    python = "" if target.python is None else f"{target.python[0]}.{target.python[1]}"
    whole = None if given.target is None else _is_whole(given.target, target)
    discarded = refresh.discarded or kept is None
    return answers.Verified(target.version, target.sha256, target.length, discarded, python, whole)


def _is_whole(fd: int, target: Target) -> bool:
    """Whether the file is the one that the keys vouch for."""
    import hashlib  # tuf has imported it

    digest = hashlib.sha256()
    length = 0
    while piece := os.pread(fd, _PIECE_BYTES, length):
        length += len(piece)
        digest.update(piece)
    return length == target.length and digest.hexdigest() == target.sha256


def _kept(fd: int) -> dict[str, bytes] | None:
    """The metadata that the last run has kept. None: it is damaged."""
    data = _input(fd)
    try:
        return bundle.decode(data) if data else {}
    except ValueError:
        return None


def _input(fd: int) -> bytes:
    """The whole file. Its offset is shared with the parent, so it is not used."""
    pieces: list[bytes] = []
    length = 0
    while piece := os.pread(fd, _PIECE_BYTES, length):
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)


def _output(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
