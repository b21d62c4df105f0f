"""An interface's name has one owner: the lock on real abstract sockets, and what interfaces do with it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError, ShortageError, leaves
from tapotun_trio.host import ownership
from tapotun_trio.host.ownership import PATIENCE_S, Holder, has_link, holder_of, own_name
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.restart import RESTART_S
from tapotun_trio.lifecycle.supervisor import require_names, run_interfaces

from ..descriptors import descriptors_left
from ..fakes import MemoryHost
from .support import allowed, client_config, free_port, server_config

CONFIG: Final = "/etc/tapotun/office.json"
_numbers: Final = count()

T = TypeVar("T")


@pytest.fixture
def name() -> str:
    """One that nobody else on this machine has."""
    return f"t{os.getpid()}x{next(_numbers)}"


async def refusal(name: str, *, trusted: frozenset[int] | None = None) -> str:
    with pytest.raises(HostError) as caught:
        async with own_name(name, trusted=trusted):
            raise AssertionError("it must not come to that")
    return str(caught.value)


async def test_the_second_hears_who_has_it(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with own_name(name, CONFIG) as owned:
        assert owned.doubt is None
        owned.require_free()
        text = await refusal(name)
        assert text.startswith(f"the name is taken: process {os.getpid()} (")
        assert os.path.basename(sys.orig_argv[0]) in text
        assert f"config {CONFIG}" in text
        assert text.endswith(f"runs an interface {name}; stop that process, or choose another name")
        assert "\n" not in text
        async with own_name(f"{name}y"):  # another one is free
            pass
    async with own_name(name):
        pass


async def test_one_that_is_just_being_given_up_is_waited_for(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async def have_it(*, task_status: trio.TaskStatus[None]) -> None:
        async with own_name(name):
            task_status.started()
            await trio.sleep(PATIENCE_S - 0.2)

    async with trio.open_nursery() as nursery:
        await nursery.start(have_it)
        async with own_name(name) as owned:
            assert owned.doubt is None
            assert trio.current_time() >= PATIENCE_S - 0.2


async def test_of_two_at_once_one_has_it(name: str, autojump_clock: trio.testing.MockClock) -> None:
    outcomes: list[str] = []

    async def start() -> None:
        try:
            async with own_name(name):
                outcomes.append("has it")
                await trio.sleep(3 * PATIENCE_S)
        except HostError as exc:
            outcomes.append(str(exc).partition(":")[0])

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(start)
    assert sorted(outcomes) == ["has it", "the name is taken", "the name is taken"]


@pytest.mark.parametrize("ending", ["left", "cancelled", "raised"])
async def test_nothing_is_left(name: str, ending: str) -> None:
    before, admin_up = set(os.listdir("/proc/self/fd")), False
    with trio.CancelScope() as scope:
        try:
            async with own_name(name):
                if ending == "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
                if ending == "raised":
                    raise HostError("the device is gone")
        except* HostError:
            admin_up = True
    assert (scope.cancelled_caught, admin_up) == (ending == "cancelled", ending == "raised")
    assert set(os.listdir("/proc/self/fd")) == before
    assert holder_of(name) is None


async def test_cancelled_while_it_waits_it_leaves_nothing(name: str) -> None:
    async with own_name(name):
        before = set(os.listdir("/proc/self/fd"))
        with trio.move_on_after(0.1) as scope:
            async with own_name(name):
                raise AssertionError("it must not come to that")
        assert scope.cancelled_caught
        assert set(os.listdir("/proc/self/fd")) == before


async def test_no_child_inherits_it(name: str) -> None:
    before = set(map(int, os.listdir("/proc/self/fd")))
    async with own_name(name):
        new = set(map(int, os.listdir("/proc/self/fd"))) - before
        kept = [fd for fd in new if _is_open(fd) and os.get_inheritable(fd)]
        assert new
        assert kept == []


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def stranger(name: str, *, listens: bool = True, backlog: int = 8, waiting: int = 0) -> Iterator[None]:
    """Somebody who takes the name and answers nobody; ``waiting`` connections are in its queue."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.bind(ownership.abstract_address(name))
        if listens:
            sock.listen(backlog)
        for _ in range(waiting):
            other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            other.connect(ownership.abstract_address(name))
        yield


async def test_a_stranger_keeps_nobody_from_starting(name: str, autojump_clock: trio.testing.MockClock) -> None:
    with stranger(name):
        async with own_name(name, trusted=frozenset()) as owned:
            assert owned.doubt is not None
            assert owned.doubt.startswith(f"the name {name} is reserved by process {os.getpid()} of user {os.getuid()}")
            assert trio.current_time() < 0.1  # it is known at once
            owned.require_free()


@pytest.mark.parametrize(("listens", "waiting"), [(False, 0), (True, 9)])
async def test_nor_does_one_that_hides(
    name: str, listens: bool, waiting: int, autojump_clock: trio.testing.MockClock
) -> None:
    """It does not listen, or has its queue full, so that nobody hears who it is."""
    with stranger(name, listens=listens, waiting=waiting):
        async with own_name(name) as owned:
            assert owned.doubt == f"the name {name} is reserved by a process that does not answer"
            assert PATIENCE_S <= trio.current_time() < PATIENCE_S + 1


async def test_one_of_ours_that_is_suspended_is_named_by_proc(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    with stranger(name, backlog=4):  # of our own user
        for _ in range(2):
            text = await refusal(name)  # what asked before is in its queue still
        assert f"process {os.getpid()} (" in text
        assert "config" not in text
        holder = holder_of(name)
        assert holder is not None
        assert holder.trusted
        assert holder.command


_STATUS: Final = {"Name": "x: y", "Uid": "{uid} {uid} {uid} {uid}", "CapEff": f"{1 << 12:016x}", "NoNewPrivs": "1"}


@pytest.mark.parametrize(
    ("changed", "uid_map", "trusted"),
    [
        ({}, None, True),
        ({"CapEff": f"{1 << 13:016x}"}, None, False),
        ({"NoNewPrivs": "0"}, None, False),  # as of a set-user-ID program
        ({"Uid": "{uid} 4711 4711 4711"}, None, False),  # likewise
        ({"CapEff": "?"}, None, False),
        ({"Uid": ""}, None, False),
        ({}, "         0       1001          1\n", False),  # a user namespace of his own
    ],
)
def test_another_user_s_is_trusted_if_it_has_the_capability_for_good(
    name: str,
    changed: dict[str, str],
    uid_map: str | None,
    trusted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {**_STATUS, **changed}.items()
    status = "".join(f"{key}:\t{value.format(uid=os.geteuid())}\n" for key, value in fields)
    directory = tmp_path / str(os.getpid())
    directory.mkdir()
    (directory / "status").write_text(status, encoding="ascii")
    (directory / "uid_map").write_text(uid_map or Path("/proc/self/uid_map").read_text("ascii"), encoding="ascii")
    monkeypatch.setattr(ownership, "PROC", str(tmp_path))
    with stranger(name):
        found = ownership.connect_to_owner(name, frozenset())
        assert found is not None
        found[0].close()
        assert found[1].trusted == trusted


async def test_a_stranger_who_asks_hears_nothing(name: str) -> None:
    async with own_name(name, CONFIG, trusted=frozenset()):
        found = ownership.connect_to_owner(name, frozenset())
        assert found is not None
        sock, _ = found
        with sock, trio.fail_after(10):
            await trio.lowlevel.wait_readable(sock)
            assert sock.recv(1000) == b""


async def soon(look: Callable[[], T | None]) -> T:
    """What it gives as soon as it gives anything."""
    while True:
        if found := look():
            return found
        await trio.sleep(0.01)


async def test_many_who_ask_cost_a_bounded_time(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """Two hundred looks of strangers take their pauses, and the owner answers still."""
    async with own_name(name, CONFIG):
        for _ in range(200):
            with trio.fail_after(10):
                found = await soon(lambda: ownership.connect_to_owner(name, frozenset()))  # its queue may be full
            found[0].close()
        assert trio.current_time() >= (200 - ownership.BACKLOG - 2) * ownership.PAUSE_S
        assert CONFIG in await refusal(name)


@asynccontextmanager
async def owner_that_answers(name: str, answer: bytes) -> AsyncIterator[None]:
    """A process of this user that owns the name, with another answer than ours to those who ask."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        await sock.bind(ownership.abstract_address(name))
        sock.listen()

        async def serve() -> None:
            while True:
                connection, _ = await sock.accept()
                with connection:
                    await connection.send(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield
            nursery.cancel_scope.cancel()


async def test_what_a_holder_tells_is_one_bounded_line(name: str) -> None:
    hostile = b'{"pid":1,"command":"a\\nb\\u202e' + b"c" * 4000 + b'","config":"/x\\u001b[2J"}'
    async with owner_that_answers(name, hostile):
        holder = await trio.to_thread.run_sync(holder_of, name)
    text = str(holder)
    assert text.isprintable()
    assert len(text) < 400
    assert "/x\\u001b[2J" in text


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"pid":"x"}', b"\xff", b'{"command":{}}'])
async def test_nonsense_from_a_holder(name: str, answer: bytes) -> None:
    async with owner_that_answers(name, answer):
        holder = await trio.to_thread.run_sync(holder_of, name)
    assert holder is not None
    assert (holder.pid, holder.config) == (os.getpid(), "")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EAFNOSUPPORT])
async def test_where_there_is_no_such_socket_the_interface_runs(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    def refuse(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_UNIX:
            raise OSError(number, os.strerror(number))
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", refuse)
    async with own_name(name) as owned:
        assert owned.doubt == f"the name {name} cannot be reserved: {os.strerror(number)}"
    assert holder_of(name) is None


async def test_an_interface_that_is_there(autojump_clock: trio.testing.MockClock) -> None:
    assert has_link("lo")
    assert not has_link("no-such-link")
    assert not has_link("a-name-that-is-longer-than-any")
    text = await refusal("lo")
    assert text.startswith("cannot create interface lo: the name is taken, by ")
    assert trio.current_time() >= PATIENCE_S
    assert holder_of("lo") is None  # given back


async def test_without_a_descriptor_nobody_says_that_there_is_no_interface(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A client that took the name for free would connect, and end the tunnel of the process that has it."""
    async with own_name(name) as owned:
        with descriptors_left(0):
            for ask in (lambda: has_link("lo"), lambda: has_link("no-such-link"), owned.require_free):
                with pytest.raises(
                    ShortageError, match=r"^cannot look for an interface named \S+: Too many open files; "
                ):
                    ask()
        owned.require_free()
    for interface in ("lo", f"{name}y"):
        began = trio.current_time()
        with descriptors_left(0), pytest.raises(ShortageError, match="Too many open files"):
            async with own_name(interface):
                raise AssertionError("it must not come to that")
        assert trio.current_time() >= began + PATIENCE_S


@pytest.mark.parametrize("exists", [True, False])
async def test_a_shortage_that_passes_is_waited_for(
    name: str, exists: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def shortly() -> None:
        with descriptors_left(0):
            await trio.sleep(PATIENCE_S / 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shortly)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        if exists:
            assert "lo: the name is taken, by " in await refusal("lo")
        else:
            async with own_name(name) as owned:
                assert owned.doubt is None
                assert trio.current_time() >= began + PATIENCE_S / 2


def test_a_process_that_is_not_to_be_seen() -> None:
    assert str(Holder(0, 0, True)) == "a process of another PID namespace"
    assert str(Holder(7, 1001, False)) == "process 7 of user 1001"


# ------------------------------------------------------------------ interfaces


async def test_two_interfaces_on_one_host() -> None:
    """The second does not start, and the first does not notice."""
    host, port = MemoryHost(), free_port()
    config = server_config(port, allowed("a", "10.10.0.2"))
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        await nursery.start(run_interface, config, host, listeners)
        device = host.devices["hub"]
        with pytest.raises(HostError, match="the name is taken"):
            await run_interface(config, host, listeners)
        assert host.devices["hub"] is device
        assert not device.closed
        nursery.cancel_scope.cancel()
    assert host.owned == set()


@contextmanager
def counting_server() -> Iterator[tuple[int, socket.socket]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        yield listener.getsockname()[1], listener


def connections(listener: socket.socket) -> int:
    """How many have come; each is refused without an answer."""
    found = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return found
        found += 1


async def test_a_client_whose_name_is_taken_does_not_connect(autojump_clock: trio.testing.MockClock) -> None:
    host = MemoryHost()
    host.taken["tun0"] = "the name is taken: process 7 runs an interface tun0"
    with counting_server() as (port, listener):
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_interfaces, [client_config("tun0", port)], host)
        assert [str(it) for it in leaves(caught.value)] == [f"tun0: {host.taken['tun0']}"]
        assert connections(listener) == 0


async def test_nor_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    """Its server cannot be reached; somebody else makes such an interface; and takes it away again."""
    logging.getLogger("tapotun").propagate = True
    host = MemoryHost()
    with counting_server() as (port, listener):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_interfaces, [client_config("tun0", port)], host)
            with trio.fail_after(30):
                await soon(lambda: connections(listener))
                host.taken["tun0"] = "cannot create interface tun0: the name is taken"
                await soon(lambda: "cannot create interface tun0" in caplog.text)
                connections(listener)
                await trio.sleep(2 * RESTART_S[0])  # it starts again, or tries to
                assert connections(listener) == 0
                host.taken.clear()
                await soon(lambda: connections(listener))
            nursery.cancel_scope.cancel()
    assert host.owned == set()


async def test_a_doubt_is_logged_once(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("tapotun").propagate = True
    host = MemoryHost()
    host.doubt = "the name hub is reserved by process 7 of user 1001"
    async with trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, [server_config(free_port(), allowed("a", "10.10.0.2"))], host)
        host.devices["hub"].fault = HostError("hub is gone")
        host.devices["hub"].send(b"")
        await trio.sleep(10)
        assert "hub is gone" in caplog.text
        assert "hub" in host.devices
        nursery.cancel_scope.cancel()
    assert caplog.text.count("is reserved by process 7") == 1


async def test_the_first_name_that_is_taken_is_named() -> None:
    host = MemoryHost()
    await require_names(host, ["tun0", "tun1"])
    host.taken["tun1"] = "taken"
    with pytest.raises(HostError, match=r"^tun1: taken$"):
        await require_names(host, ["tun0", "tun1"])
    assert host.owned == set()
