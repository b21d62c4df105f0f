"""A whole check for updates: real workers, a real web server, a real repository, real keys."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import trio
import trustme

from tapotun_trio.config.model import Proxy, Secret, TlsConfig, UpdateConfig, Url
from tapotun_trio.update import bundle, worker
from tapotun_trio.update import check as check_module
from tapotun_trio.update.check import check
from tapotun_trio.update.outcome import Found, Outcome, UpdateError, UpToDate
from tapotun_trio.update.state import FILE, LOCK, locked
from tapotun_trio.update.task import WORKER, Source, Task
from tests.harness import wait_until
from tests.harness.updates import Repository, Server, send, serving

from .test_proxy import a_proxy

PROGRAM: Final = os.urandom(300_000)
NOBODY: Final = 65534

T = TypeVar("T")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.add("0.2.0", PROGRAM)
    return made


@pytest.fixture
def server(repository: Repository) -> Iterator[Server]:
    with serving(repository.directory) as found:
        yield found


@pytest.fixture
def config(repository: Repository, server: Server) -> UpdateConfig:
    return UpdateConfig(Url("http", "127.0.0.1", server.port, "/updates/"), root_file=str(repository.root_file))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _nothing_left(state: Path) -> Iterator[None]:
    """No descriptor, no process and no file is left behind, whatever happens."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert workers() == []
    # The server answers in threads of this process, which may still be closing the last connection.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, 10, "no descriptor more than before")
    if state.is_dir():
        assert {file.name for file in state.iterdir()} <= {FILE, LOCK}


def workers(parent: int | None = None) -> list[int]:
    """The PIDs of the workers of a process, by default of this one."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (directory / "status").read_text(), (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if f"\nPPid:\t{parent or os.getpid()}\n" in status and WORKER.encode() in command:
            found.append(int(directory.name))
    return found


def content(found: Outcome) -> bytes:
    """Of the file, which is closed."""
    assert isinstance(found, Found)
    assert found.memfd is not None
    with open(found.memfd, "rb") as file:
        return file.read()


async def test_a_new_version_is_found_and_fetched(config: UpdateConfig, state: Path, server: Server) -> None:
    sha256 = hashlib.sha256(PROGRAM).hexdigest()
    assert await check(config, "0.1.0", state, download=False) == Found("0.2.0", sha256, len(PROGRAM), None)
    assert not any(request.startswith("targets/") for request in server.requests)

    found = await check(config, "0.1.0", state, download=True)
    assert isinstance(found, Found)
    assert found.memfd is not None
    assert (found.version, found.sha256, found.length, found.warnings) == ("0.2.0", sha256, len(PROGRAM), ())
    everything = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert fcntl.fcntl(found.memfd, fcntl.F_GET_SEALS) == everything
    assert not os.get_inheritable(found.memfd)
    with pytest.raises(PermissionError):
        os.write(found.memfd, b"x")
    assert content(found) == PROGRAM

    server.requests.clear()
    assert await check(config, "0.2.0", state, download=True) == UpToDate("0.2.0")
    assert not any(request.startswith("targets/") for request in server.requests), "what is not newer is not fetched"
    assert server.headers["user-agent"].startswith("tapotun-trio/")


async def test_old_metadata_is_recognised_by_the_next_check(
    config: UpdateConfig, state: Path, repository: Repository
) -> None:
    old = repository.metadata()["timestamp.json"]
    repository.add("0.3.0", PROGRAM)
    await check(config, "0.1.0", state, download=False)
    kept = (state / FILE).read_bytes()
    (repository.directory / "metadata" / "timestamp.json").write_bytes(old)
    with pytest.raises(UpdateError, match=r"timestamp\.json is older than what this machine has seen"):
        await check(config, "0.1.0", state, download=False)
    assert (state / FILE).read_bytes() == kept


async def test_keys_are_replaced(config: UpdateConfig, state: Path, repository: Repository) -> None:
    """And the root file of the first days stays good."""
    await check(config, "0.1.0", state, download=False)
    for role in repository.signers:
        repository.rotate(role)
    repository.add("0.3.0", PROGRAM)
    found = await check(config, "0.1.0", state, download=False)
    assert isinstance(found, Found)
    assert (found.version, found.warnings) == ("0.3.0", ())


def swapped(handler: BaseHTTPRequestHandler) -> None:
    send(handler, bytes(reversed(PROGRAM)))


async def test_a_swapped_file(config: UpdateConfig, state: Path, server: Server) -> None:
    server.answers[f"targets/stable/{hashlib.sha256(PROGRAM).hexdigest()}.tapotun.pyz"] = swapped
    with pytest.raises(UpdateError, match="its SHA-256 differs"):
        await check(config, "0.1.0", state, download=True)


async def test_a_python_that_is_too_old(config: UpdateConfig, state: Path, repository: Repository) -> None:
    repository.add("0.4.0", PROGRAM, custom={"python": "3.99"})
    with pytest.raises(UpdateError, match=r"version 0\.4\.0 is there, and needs Python 3\.99 or newer; this is 3\."):
        await check(config, "0.1.0", state, download=True)


async def test_no_server(config: UpdateConfig, state: Path, server: Server) -> None:
    with serving(server.directory) as gone:
        pass
    lost = UpdateConfig(Url("http", "127.0.0.1", gone.port, "/"), root_file=config.root_file)
    with pytest.raises(UpdateError, match="Connection refused"):
        await check(lost, "0.1.0", state, download=True)
    assert not (state / FILE).exists()


async def test_a_root_file_that_is_gone(state: Path) -> None:
    config = UpdateConfig(Url("http", "127.0.0.1", 1, "/"), root_file="/nonexistent/root.json")
    with pytest.raises(UpdateError, match=r"root_file /nonexistent/root\.json cannot be read: No such file"):
        await check(config, "0.1.0", state, download=True)
    with pytest.raises(UpdateError, match="root_file is not given"):
        await check(UpdateConfig(config.url), "0.1.0", state, download=True)


# ------------------------------------------------------------------ what a worker is

HELD: Final = "metadata/timestamp.json"


class Hold:
    """An answer that the server gives only at the end of the block.

    Attributes:
        asked: it was asked for it.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.set()
        self.go_on.wait()
        send(handler, (self._server.directory / HELD).read_bytes())

    def __enter__(self) -> Hold:
        self._server.answers[HELD] = self._answer
        return self

    def __exit__(self, *_: object) -> None:
        del self._server.answers[HELD]
        self.go_on.set()

    async def wait(self) -> None:
        await trio.to_thread.run_sync(self.asked.wait)


async def until(found: Callable[[], T | None]) -> T:
    while not (it := found()):  # noqa: ASYNC110 - other processes tell no event
        await trio.sleep(0.002)
    return it


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def assert_without_rights(pid: int) -> None:
    status = status_of(pid)
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert set(status["Uid"].split()) == {str(uid)}
    assert set(status["Gid"].split()) == {str(NOBODY if os.geteuid() == 0 else os.getegid())}
    if os.geteuid() == 0:
        assert status["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max cpu time +120 +120 ", limits)
    assert re.search(r"Max address space +1073741824 +1073741824 ", limits)
    # Pipes, sockets, memory. Nothing of this machine's files is open.
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert [link for link in links if not link.startswith(("pipe:", "socket:", "anon_inode:", "/memfd:tapotun"))] == []


async def test_a_worker_has_no_rights(config: UpdateConfig, state: Path, server: Server) -> None:
    """Before it has read much that came from elsewhere."""
    async with trio.open_nursery() as nursery:
        with Hold(server) as hold:
            nursery.start_soon(check_and_find, config, state)
            await hold.wait()
            (pid,) = workers()
            assert_without_rights(pid)


async def check_and_find(config: UpdateConfig, state: Path) -> None:
    assert isinstance(await check(config, "0.1.0", state, download=False), Found)


SCRIPT: Final = """
import os, socket, sys, threading
sys.path[:] = {path!r}
from tapotun_trio.update.confine import become_nobody, confine, seal_off
{setup}
def attempt(name, work):
    try:
        work()
    except BaseException as exc:
        print(name, type(exc).__name__)
    else:
        print(name, "done")
def fork():
    if os.fork() == 0:
        os._exit(0)
attempt("write", lambda: open({file!r}, "w"))
attempt("read", lambda: open({file!r}).read())
attempt("list", lambda: os.listdir("/"))
attempt("allowed", lambda: open({allowed!r}).read())
attempt("socket", lambda: socket.socket())
attempt("connect", lambda: socket.create_connection(("127.0.0.1", {port})))
attempt("bind", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("kill", lambda: os.kill({parent}, 0))
attempt("root", lambda: os.setuid(0))
attempt("dup", lambda: os.dup(1))
attempt("fork", fork)
attempt("thread", lambda: threading.Thread(target=int).start())
attempt("large", lambda: os.write(memfd, b"x" * 5000) < 5000 and 1 / 0)
sys.stdout.flush()
attempt("run", lambda: os.execv("/bin/echo", ["echo", "run", "done"]))
"""


def attempts(setup: str, tmp_path: Path, port: int) -> dict[str, str]:
    file, allowed = tmp_path / "file", tmp_path / "allowed"
    for each in (file, allowed):
        each.write_text("x")
        each.chmod(0o666)
    for directory in (tmp_path, *tmp_path.parents):
        if directory == tmp_path or directory.name.startswith(("pytest-", "popen-")):
            directory.chmod(0o755)
    setup = f"allowed = {str(allowed)!r}\nmemfd = os.memfd_create('test')\nimport encodings.idna\n{setup}"
    path = list(map(os.path.abspath, sys.path))
    script = SCRIPT.format(path=path, setup=setup, file=str(file), allowed=str(allowed), port=port, parent=os.getpid())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    # 127: another program was started, and could not load its libraries, as it got no descriptor.
    assert done.returncode in (0, 127), done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("kind", ["fetch", "verify"])
def test_what_an_earlier_check_has_kept_is_parsed_without_privileges(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came from the network, too."""

    class Reached(Exception):
        pass

    def give_up(file_bytes: int) -> None:
        assert file_bytes > 0
        raise Reached

    monkeypatch.setattr(worker, "become_nobody", give_up)
    monkeypatch.setattr(bundle, "decode", pytest.fail)
    source = Source(Url("http", "127.0.0.1", 1, "/"), None, None, TlsConfig())
    fd = os.memfd_create("kept")
    try:
        os.write(fd, b'{"timestamp.json": ""}')
        given = Task(kind, "stable", "1.0", fd, fd, fd, fd, None, source, 1.0, 0.0, 1.0)
        with pytest.raises(Reached):
            (worker._fetch if kind == "fetch" else worker._verify)(given)
    finally:
        os.close(fd)


def test_what_a_fetching_worker_may_do(tmp_path: Path, server: Server) -> None:
    found = attempts("become_nobody(4096)\nassert confine([allowed], connects=True)", tmp_path, server.port)
    assert found == {
        "write": "PermissionError",
        "read": "PermissionError",
        "list": "PermissionError",
        "allowed": "done",
        "run": "PermissionError",
        "socket": "done",
        "connect": "done",
        "bind": "PermissionError",
        "kill": "PermissionError",
        "root": "PermissionError",
        "dup": "done",
        "fork": "done",
        "thread": "done",
        "large": "ZeroDivisionError",
    }


def test_what_a_verifying_worker_may_do(tmp_path: Path, server: Server) -> None:
    setup = "become_nobody(4096)\nassert confine((), connects=False)\nseal_off()"
    found = attempts(setup, tmp_path, server.port)
    assert found.pop("run") == "PermissionError"
    assert found.pop("kill") == found.pop("root") == "PermissionError"
    assert found.pop("large") == "ZeroDivisionError"
    assert found.pop("fork") == "BlockingIOError"
    assert found.pop("thread") == "RuntimeError"
    assert set(found.values()) <= {"OSError", "PermissionError"}, "no descriptor is to be had"


def test_without_landlock_the_other_walls_stand(tmp_path: Path, server: Server) -> None:
    """A kernel before 5.13, or one that has it switched off."""
    found = attempts("become_nobody(4096)\nseal_off()", tmp_path, server.port)
    assert "done" not in found.values(), found
    assert len(found) >= 13


# ------------------------------------------------------------------ a worker that ends early


async def test_a_fetching_worker_is_killed(config: UpdateConfig, state: Path, server: Server) -> None:
    await check(config, "0.1.0", state, download=False)
    kept = (state / FILE).read_bytes()

    async def kill() -> None:
        await hold.wait()
        (pid,) = workers()
        os.kill(pid, signal.SIGKILL)

    with Hold(server) as hold:
        await ended_by_signal(config, state, kill)
    assert (state / FILE).read_bytes() == kept
    assert content(await check(config, "0.1.0", state, download=True)) == PROGRAM


@pytest.mark.parametrize("confined", [False, True])
async def test_a_verifying_worker_is_killed(confined: bool, config: UpdateConfig, state: Path) -> None:
    """As soon as it is there, and when it is about to verify."""

    async def kill() -> None:
        (first,) = await until(workers)
        (second,) = await until(lambda: [pid for pid in workers() if pid != first])
        with suppress(FileNotFoundError, ProcessLookupError):  # it is done before we see it
            if confined:
                await until(lambda: status_of(second)["NoNewPrivs"] == "1")
            os.kill(second, signal.SIGKILL)

    await ended_by_signal(config, state, kill)
    assert content(await check(config, "0.1.0", state, download=True)) == PROGRAM


async def ended_by_signal(config: UpdateConfig, state: Path, kill: Callable[[], Awaitable[None]]) -> None:
    """A check during which a worker is killed; one that is done before is right."""
    outcome: Outcome | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        try:
            outcome = await check(config, "0.1.0", state, download=True)
        except UpdateError as exc:
            assert "was ended by signal 9" in str(exc)  # noqa: PT017
    if outcome is not None:
        assert content(outcome) == PROGRAM


async def test_a_check_is_cancelled(config: UpdateConfig, state: Path, server: Server) -> None:
    with Hold(server) as hold:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_and_find, config, state)
            await hold.wait()
            nursery.cancel_scope.cancel()
        assert workers() == []


async def test_a_worker_takes_too_long(
    config: UpdateConfig, state: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "_SPARE_S", -check_module.METADATA_S + 0.2)
    with Hold(server), pytest.raises(UpdateError, match=r"took more than 0\.2 s"):
        await check(config, "0.1.0", state, download=False)


def program(config: UpdateConfig, state: Path, before: str = "") -> list[str]:
    """A process of its own that checks for updates and prints the version, or the error."""
    text = (
        f"import sys, trio; sys.path[:] = {list(map(os.path.abspath, sys.path))!r}\n"
        "from pathlib import Path\n"
        "from tapotun_trio.config.model import Config, UpdateConfig, Url\n"
        "from tapotun_trio.errors import HostError\n"
        "from tapotun_trio.host.process.privileges import drop_privileges, needed_capabilities\n"
        "from tapotun_trio.update.check import check\n"
        f"url = Url('http', '127.0.0.1', {config.url.port}, '/updates/')\n"
        f"config = UpdateConfig(url, root_file={config.root_file!r})\n"
        f"{before}\n"
        f"try: print(trio.run(lambda: check(config, '0.1.0', Path({str(state)!r}), download=True)).version)\n"
        "except HostError as exc: print(exc)\n"
    )
    return [sys.executable, "-c", text]


async def test_a_worker_whose_parent_is_gone_ends(config: UpdateConfig, state: Path, server: Server) -> None:
    """kill -9 of the program, while a server does not answer."""
    with Hold(server) as hold:
        process = await trio.lowlevel.open_process(program(config, state))
        await hold.wait()
        (pid,) = workers(process.pid)
        process.kill()
        await process.wait()
        await until(lambda: is_gone(pid))


def printed(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_daemon_of_root(config: UpdateConfig, state: Path) -> None:
    """It has given up privileges that it does not need. One whose config had no ``update`` then has to start again."""
    assert printed(program(config, state, "drop_privileges(needed_capabilities(Config((), update=config)))")) == "0.2.0"
    if os.geteuid() == 0:
        found = printed(program(config, state, "drop_privileges(needed_capabilities(Config(())))"))
        assert found.endswith("this process has given up CAP_SETUID and CAP_SETGID: restart it")


async def test_the_daemon_of_root_ends_a_worker(config: UpdateConfig, state: Path, server: Server) -> None:
    """Which is another user's by then, so that it may be killed only with CAP_KILL."""
    before = (
        "drop_privileges(needed_capabilities(Config((), update=config)))\n"
        "import tapotun_trio.update.check as module; module._SPARE_S = 3 - module.METADATA_S - module.TARGET_S"
    )
    with Hold(server) as hold:
        async with trio.open_nursery() as nursery:
            found: list[str] = []

            async def run() -> None:
                command = program(config, state, before)
                done = await trio.run_process(command, capture_stdout=True)
                found.append(done.stdout.decode())

            nursery.start_soon(run)
            await hold.wait()
    assert found == [
        "looking for updates took more than 3 s: the repository or this machine is too slow; try again later\n"
    ]


def test_the_daemon_of_a_user(config: UpdateConfig, state: Path, repository: Repository, tmp_path: Path) -> None:
    """Its worker stays that user, and loses the capability that the service manager has given to the daemon."""
    if os.geteuid() == 0:
        state.mkdir()
        os.chown(state, NOBODY, NOBODY)
        # With this one capability it can read this program, wherever root has installed it.
        rights = "+dac_read_search"
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command = [*become, f"--inh-caps={rights}", f"--ambient-caps={rights}", *program(config, state)]
    else:
        command = program(config, state)
    assert printed(command) == "0.2.0"


def is_gone(pid: int) -> bool:
    try:
        return status_of(pid)["State"].startswith("Z")  # nobody may be there to wait for it
    except OSError:
        return True


# ------------------------------------------------------------------ the state directory


def leave(state: Path, name: str, data: bytes) -> None:
    state.mkdir()
    (state / name).write_bytes(data)


async def test_a_state_that_is_damaged(config: UpdateConfig, state: Path, repository: Repository) -> None:
    repository.publish_root()
    leave(state, FILE, b"[" * 100_000)
    found = await check(config, "0.1.0", state, download=False)
    assert isinstance(found, Found)
    (warning,) = found.warnings
    assert "damaged, and was not used" in warning
    assert await check(config, "0.2.0", state, download=False) == UpToDate("0.2.0")


async def test_a_state_directory_that_cannot_be_used(config: UpdateConfig, tmp_path: Path, server: Server) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below", Path("/proc/tapotun"), Path("/sys")):
        with pytest.raises(UpdateError, match=r"the state directory .* cannot be used: .*; let this user write to it"):
            await check(config, "0.1.0", place, download=False)
    assert server.requests == [], "nothing is fetched in vain"


def test_a_lock_that_cannot_be_opened_is_named(state: Path) -> None:
    """Only the directory was: people removed it, and what the check remembers with it."""
    state.mkdir(parents=True, exist_ok=True)
    (state / LOCK).symlink_to("/dev/null")
    with pytest.raises(UpdateError) as caught, locked(state):
        pass
    text = f"the state directory {state} cannot be used: {state / LOCK}: Too many levels of symbolic links; let this "
    assert str(caught.value).startswith(text)


async def test_two_checks_at_once(config: UpdateConfig, state: Path) -> None:
    with locked(state), pytest.raises(UpdateError, match="another process looks for updates now"):
        await check(config, "0.1.0", state, download=False)


async def test_another_user_cannot_keep_checks_from_being_made(config: UpdateConfig, state: Path) -> None:
    """Everybody may read the directory, and so lock it."""
    with locked(state):  # makes the file that is locked instead
        assert stat.S_IMODE(os.stat(state / LOCK).st_mode) == 0o600
    theirs = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert isinstance(await check(config, "0.1.0", state, download=False), Found)
    finally:
        os.close(theirs)


async def test_the_lock_is_held_while_anything_is_written(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is cancelled while the disk is slow: the next one would write to the same file. The process does not
    wait for such a disk either."""

    def slow(descriptor: int) -> None:
        began.set()
        assert go_on.wait(60)
        fsync(descriptor)

    fsync, began, go_on = os.fsync, threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fsync", slow)
    result = os.memfd_create("result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(result, b"new")
        with locked(state) as directory:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(check_module._store, directory, result)
                assert await trio.to_thread.run_sync(began.wait, 60)
                nursery.cancel_scope.cancel()
            assert not go_on.is_set()
        with pytest.raises(UpdateError, match="another process looks for updates now"), locked(state):
            pass
        go_on.set()
        lock = os.open(state / LOCK, os.O_RDWR)
        try:
            with trio.fail_after(60):
                await trio.to_thread.run_sync(fcntl.flock, lock, fcntl.LOCK_EX, abandon_on_cancel=True)
        finally:
            os.close(lock)
        with locked(state) as directory:
            assert directory.read() == b"new"
    finally:
        go_on.set()
        os.close(result)


async def test_a_write_that_is_cancelled_before_it_begins_gives_up_the_lock(state: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with locked(state) as directory:
        with trio.CancelScope() as scope:
            scope.cancel()
            await directory.store(b"new")
        assert directory.read() == b""
    with locked(state):
        pass
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_a_killed_process_left_is_removed(state: Path) -> None:
    leave(state, f".{FILE}.new", b"half of it")
    with locked(state) as directory:
        assert directory.read() == b""
        directory.write(b"new")
        assert directory.read() == b"new"
        assert (state / FILE).stat().st_mode & 0o777 == 0o644


def test_a_full_disk(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with locked(state) as directory:
        directory.write(b"old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UpdateError, match=r"cannot be used: No space left on device; make room there$"):
            directory.write(b"new")
        assert directory.read() == b"old"
    assert sorted(os.listdir(state)) == [FILE, LOCK]


# ------------------------------------------------------------------ the way to the repository


async def test_https_through_a_proxy_with_logins(repository: Repository, state: Path, tmp_path: Path) -> None:
    """With files that only this user can read, as root's are: the worker reads them before it becomes another one."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("updates.example.com").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    ca.cert_pem.write_to_path(secret / "ca.pem")
    own = ca.issue_cert("client.example.com")
    own.private_key_and_cert_chain_pem.write_to_path(secret / "own.pem")
    tls = TlsConfig(
        ca_file=str(secret / "ca.pem"), cert_file=str(secret / "own.pem"), server_name="updates.example.com"
    )
    heads: list[bytes] = []
    with serving(repository.directory, context) as server:
        async with a_proxy(server.port, heads) as port:
            url = Url("https", "somewhere.example.com", 443, "/updates/")
            proxy = Proxy("127.0.0.1", port, Secret("p:q"))
            config = UpdateConfig(url, Secret("me:secret"), root_file=str(repository.root_file), proxy=proxy, tls=tls)
            assert content(await check(config, "0.1.0", state, download=True)) == PROGRAM
        assert heads
        assert all(head.startswith(b"CONNECT somewhere.example.com:443 ") for head in heads)
        assert all(b"Proxy-Authorization: Basic cDpx" in head for head in heads)
        assert server.headers["authorization"] == "Basic bWU6c2VjcmV0"
        url = Url("https", "127.0.0.1", server.port, "/updates/")
        other = UpdateConfig(url, root_file=str(repository.root_file), tls=TlsConfig(ca_file=tls.ca_file))
        with pytest.raises(UpdateError, match=r"certificate|TLS"):
            await check(other, "0.1.0", state, download=True)


def test_the_daemon_loads_nothing_of_it() -> None:
    """Neither what parses metadata, nor what verifies signatures: memory, and code that root would run."""
    program = (
        f"import sys; sys.path[:] = {list(map(os.path.abspath, sys.path))!r}\n"
        "import json, tapotun_trio.app, tapotun_trio.cli, tapotun_trio.update.check; print(json.dumps([*sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"tuf", "securesystemslib", "urllib3", "requests", "cryptography"}
    modules = json.loads(done.stdout)
    for name in ("trust", "fetch", "worker", "confine"):
        assert f"tapotun_trio.update.{name}" not in modules
