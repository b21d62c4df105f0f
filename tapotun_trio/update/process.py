"""Starts a worker (`worker`), and hears its answer. Whatever it does, it is gone when this returns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from typing import Final

import trio

from ..errors import passing_shortages
from ..text import one_line, shorten
from . import answers, task
from .outcome import UpdateError
from .task import WORKER, Task

_KILL_S: Final = 10.0
_STDERR_BYTES: Final = 2048  # the end of it is shown if a worker gave no answer
_SHOWN_CHARS: Final = 300
_PYZ: Final = "_tapotun_pyz"  # the loader of tapotun.pyz, which packaging/pyz has
_HELD: Final = re.compile(r"/proc/self/fd/([0-9]+)")

# The same modules as this process has, wherever they come from. -I: no environment variable changes anything.
_START: Final = (
    f"import sys; sys.path[:] = sys.argv[1:]; sys.argv[1:] = [{WORKER!r}]; "
    "from tapotun_trio.__main__ import main; sys.exit(main())"
)
# Where OpenSSL looks for the certificates that this machine trusts (SSL_CTX_set_default_verify_paths(3)), and where the
# loader finds an unusual Python's libraries.
_ENVIRONMENT: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")


def command() -> tuple[list[str], tuple[int, ...]]:
    """How to start this same program as a worker, and the descriptors that this needs."""
    if _PYZ in sys.modules:
        # Its loader holds the file open, so a newer one in its place does not matter.
        program = sys.path[0]
        held = _HELD.fullmatch(program)
        return [sys.executable, "-I", program, WORKER], () if held is None else (int(held[1]),)
    return [sys.executable, "-I", "-c", _START, *map(os.path.abspath, sys.path)], ()


async def run_worker(given: Task, deadline_s: float) -> answers.Answer:
    """Let a worker do its task.

    If this is cancelled, the worker is killed. Raises UpdateError: it gave no answer, or not in time; ShortageError.
    """
    arguments, descriptors = command()
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with passing_shortages("cannot look for updates"):
        try:
            process = await trio.lowlevel.open_process(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(*descriptors, *given.descriptors),
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError as exc:
            raise UpdateError(f"cannot look for updates: {sys.executable} is gone; restart this process") from exc
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()
    try:
        with trio.fail_after(deadline_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, process.stderr, errors, _STDERR_BYTES)
                await _tell(process.stdin, task.encode(given))
                await _collect(process.stdout, output, answers.ANSWER_BYTES + 1)
                await process.wait()
                nursery.cancel_scope.cancel()
    except trio.TooSlowError as exc:
        raise UpdateError(
            f"looking for updates took more than {deadline_s:g} s: the repository or this machine is too slow; "
            "try again later"
        ) from exc
    finally:
        await _end(process)
    if process.returncode != 0:
        raise UpdateError(f"the process that looks for updates {_how(process.returncode, bytes(errors))}")
    return answers.decode(bytes(output))


async def _tell(stdin: trio.abc.SendStream, line: bytes) -> None:
    """Send the task. The stream stays open: its end would tell the worker that we are gone."""
    with suppress(trio.BrokenResourceError):  # it has ended already; its exit code and its last words tell more
        await stdin.send_all(line)


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray, limit_bytes: int) -> None:
    """Receive to the end, and keep the last bytes. So a worker that writes without end is ended by the deadline, or by
    its limit of CPU time."""
    async for piece in stream:
        into += piece
        del into[:-limit_bytes]


async def _end(process: trio.Process) -> None:
    """Kill the worker if it still runs, and close its pipes."""
    with trio.move_on_after(_KILL_S, shield=True):
        if process.returncode is None:
            process.kill()
            await process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with trio.move_on_after(0, shield=True):
                await stream.aclose()


def _how(returncode: int | None, errors: bytes) -> str:
    """How it has ended, for people, with its last line."""
    assert returncode is not None, "it was waited for"
    how = f"was ended by signal {-returncode}" if returncode < 0 else f"has failed with exit code {returncode}"
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return f"{how}: {one_line(shorten(lines[-1], _SHOWN_CHARS))}" if lines else how
