"""host.socketfile: a privileged process's sockets in a directory whose owner replaces things between its system calls.

The owner acts in an audit hook, which Python calls right before each system call, or in a process that swaps without a
pause.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.config.model import UnixAddress
from tapotun_trio.control.socket_path import ControlDirectory, find, listening
from tapotun_trio.errors import HostError
from tapotun_trio.host.net.listen import Listener, listen
from tapotun_trio.host.net.socketfile import SocketDirectory

from .test_control import leave_stale

NOBODY: Final = 65534
TRIES: Final = 300
_spies: list[Callable[[str, tuple[object, ...]], None]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    for spy in _spies:
        spy(event, arguments)


sys.addaudithook(_hook)  # it cannot be removed, so it stays, and does nothing without a spy


@contextmanager
def spying(spy: Callable[[str, tuple[object, ...]], None]) -> Iterator[None]:
    """``spy`` is called before each system call that Python tells of, in this thread only, and not for its own."""
    thread, busy = threading.get_ident(), False

    def guarded(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal busy
        if busy or threading.get_ident() != thread:
            return
        busy = True
        try:
            spy(event, arguments)
        finally:
            busy = False

    _spies.append(guarded)
    try:
        yield
    finally:
        _spies.remove(guarded)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that another user owns and that every user reaches, where this process may make one; else ours."""
    directory = Path(tempfile.mkdtemp(prefix="tapotun-shared-"))
    directory.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file that must stay as it is, out of the other user's reach."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "secret")
        path.write_text("kept")
        path.chmod(0o600)
        Path(directory).chmod(0o755)
        yield path
        assert path.read_text() == "kept"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.geteuid()


def opened(path: Path, mode: int = 0o666) -> Listener:
    listener = listen(UnixAddress(str(path)), mode)
    assert listener is not None
    return listener


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def names(directory: Path) -> list[str]:
    return sorted(it.name for it in directory.iterdir())


SWAPPER: Final = """
import ctypes, os, sys
path, link, user = sys.argv[1].encode(), sys.argv[2].encode(), int(sys.argv[3])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
libc, here, exchange = ctypes.CDLL(None), -100, 2
parent = os.getppid()
print("swapping", flush=True)
while os.getppid() == parent:
    if libc.renameat2(here, path, here, link, exchange) == 0:
        while os.path.lexists(path):  # the test takes it away
            pass
"""


@contextmanager
def swapping(path: Path, link: Path) -> Iterator[None]:
    """A process of the other user exchanges the two whenever both are there, for as long as the block."""
    argv = [sys.executable, "-I", "-S", "-c", SWAPPER, str(path), str(link), str(NOBODY)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"swapping\n"
            yield
            assert swapper.poll() is None
        finally:
            swapper.kill()


async def test_a_link_in_the_place_of_a_socket_that_was_just_bound(shared: Path, secret: Path) -> None:
    """Before every single call of ours, the directory's owner puts a link in the place of our socket."""
    path = shared / "x.sock"
    for attack_at in range(40):
        number = 0

        def swap(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal number
            number += 1
            if number == attack_at + 1 and path.is_socket():  # noqa: B023
                path.unlink()
                path.symlink_to(secret)

        with spying(swap), suppress(HostError):
            opened(path).close()
        path.unlink(missing_ok=True)
        if number <= attack_at:
            break
    else:
        pytest.fail("there were more calls than this test looks at")
    assert attack_at > 5
    assert names(shared) == []


async def test_no_mode_is_set_by_a_path_that_another_user_controls(shared: Path) -> None:
    """Also not of a path that leads to the socket at the moment."""
    found: list[tuple[object, ...]] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.chmod", "os.chown", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            found.append((event, *arguments))

    leave_stale(shared / "x.sock")
    with spying(note):
        listener = opened(shared / "x.sock")
        assert stat.S_IMODE((shared / "x.sock").lstat().st_mode) == 0o666
        listener.close()
    assert {call[0] for call in found} == {"os.chmod", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
    for event, *arguments in found:
        names = [it for it in arguments if isinstance(it, str)]
        descriptors = [it for it in arguments if isinstance(it, int) and it >= 0]
        assert names, event
        assert not any("/" in name for name in names), (event, names)
        assert len(descriptors) >= len(names), (event, arguments)


async def test_the_directory_of_our_own_is_replaced(shared: Path) -> None:
    """By one that its owner may write to."""
    path = shared / "x.sock"

    def swap(event: str, arguments: tuple[object, ...]) -> None:
        name = str(arguments[0]) if arguments else ""
        if event == "open" and name.startswith(".tapotun-"):
            (shared / name).rename(shared / "moved")
            (shared / name).mkdir()
            (shared / name).chmod(0o777)

    with spying(swap), pytest.raises(HostError, match="another process replaces"):
        opened(path)
    assert not path.exists()


async def test_a_swapper_without_a_pause(shared: Path, secret: Path) -> None:
    """Another process of the directory's owner exchanges the socket for a link as fast as it can."""
    path, link = shared / "x.sock", shared / "link"
    link.symlink_to(secret)
    with swapping(path, link):
        had = 0
        for _ in range(TRIES):
            with suppress(HostError):  # the name was taken, by the link
                opened(path).close()
                had += 1
            path.unlink(missing_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(secret)
    assert had


def test_a_part_of_the_path_is_replaced_before_a_stale_socket_is_removed(shared: Path) -> None:
    """What is stale in the directory that we looked into may be somebody's in the other one."""
    for attack_at in ("socket.connect", "os.rename", "os.remove"):
        run, other = shared / "run", shared / "other"
        run.mkdir()
        other.mkdir()
        leave_stale(run / "office.sock")
        (other / "office.sock").write_text("somebody's")
        attacked = False

        def swap(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal attacked
            if event == attack_at and not attacked:  # noqa: B023
                attacked = True
                run.rename(shared / "moved")  # noqa: B023
                run.symlink_to(other)  # noqa: B023

        with spying(swap), suppress(OSError), listening("new", [ControlDirectory(str(run), None)]):
            pass
        assert attacked
        assert (other / "office.sock").read_text() == "somebody's"
        assert [it.name for it in other.iterdir()] == ["office.sock"]
        run.unlink()
        shutil.rmtree(other)
        shutil.rmtree(shared / "moved")


def test_a_living_socket_comes_in_the_place_of_a_stale_one(shared: Path) -> None:
    """After we have looked. It is put back, and answers."""
    path = shared / "x.sock"
    leave_stale(path)
    living: list[socket.socket] = []

    def replace(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and not living:
            path.unlink()
            living.append(socket.socket(socket.AF_UNIX))
            living[0].bind(str(path))
            living[0].listen()

    sock = socket.socket(socket.AF_UNIX)
    with sock, SocketDirectory(str(shared)) as directory:
        with spying(replace), pytest.raises(OSError, match="just taken that name"):
            directory.listen(sock, "x.sock", 0o600, 1)
        assert listens(path)
        living[0].close()
        assert names(shared) == ["x.sock"]


def test_a_directory_comes_in_the_place_of_a_stale_one(shared: Path) -> None:
    path = shared / "x.sock"
    leave_stale(path)

    def replace(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and path.is_socket():
            path.unlink()
            path.mkdir()
            (path / "file").write_text("somebody's")

    sock = socket.socket(socket.AF_UNIX)
    with sock, SocketDirectory(str(shared)) as directory:
        with spying(replace), pytest.raises(OSError, match="just taken that name"):
            directory.listen(sock, "x.sock", 0o600, 1)
    assert (path / "file").read_text() == "somebody's"


def test_somebody_comes_first(shared: Path) -> None:
    """Two look at a time when neither has the name."""
    path = shared / "x.sock"

    def come(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.link":
            path.write_text("somebody's")

    sock = socket.socket(socket.AF_UNIX)
    with sock, SocketDirectory(str(shared)) as directory:
        with spying(come), pytest.raises(OSError, match="just taken that name"):
            directory.listen(sock, "x.sock", 0o600, 1)
    assert path.read_text() == "somebody's"
    assert names(shared) == ["x.sock"]


def test_a_socket_is_found_only_when_it_listens(shared: Path) -> None:
    """At no moment before that do those who look see it, nor one of its names twice."""
    where = [ControlDirectory(str(shared), None)]
    seen: list[int] = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        found = find(where)
        assert all(listens(Path(path)) for path in found)
        seen.append(len(found))

    with spying(look), listening("office", where):
        pass
    assert set(seen) == {0, 1}


async def test_without_proc(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers have none."""
    monkeypatch.setattr("tapotun_trio.host.net.socketfile.path_by_descriptor", lambda fd: None)
    path = shared / "x.sock"
    leave_stale(path)
    listener = opened(path, 0o606)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o606
    assert listens(path)
    with pytest.raises(HostError, match="another process listens there"):
        opened(path)
    listener.close()
    assert names(shared) == []


async def test_no_descriptor_is_left_over(shared: Path) -> None:
    path = shared / "x.sock"
    leave_stale(path)
    before = len(os.listdir("/proc/self/fd"))
    opened(path).close()
    path.write_text("somebody's")
    with pytest.raises(HostError, match="not a socket"):
        opened(path)
    with pytest.raises(HostError, match="no directory"):
        opened(shared / "none" / "x.sock")
    with socket.socket(socket.AF_UNIX) as sock, SocketDirectory(str(shared)) as directory:
        directory.listen(sock, "y.sock", 0o600, 1).remove()
    assert len(os.listdir("/proc/self/fd")) == before
    assert names(shared) == ["x.sock"]


def test_the_mode_is_exact_whatever_the_umask_of_a_user(shared: Path) -> None:
    """A umask that takes the owner's own bits away, too."""
    before = os.umask(0o777)
    try:
        with socket.socket(socket.AF_UNIX) as sock, SocketDirectory(str(shared)) as directory:
            file = directory.listen(sock, "x.sock", 0o640, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / "x.sock").lstat().st_mode) == 0o640
    file.remove()
    assert names(shared) == []
