"""The control socket: its protocol in every split, its place, and that nobody who asks can hold the process up."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import tempfile
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.control import client as asking
from tapotun_trio.control.client import NobodyThereError, ask
from tapotun_trio.control.protocol import (
    BUSY,
    ERROR_CHARS,
    LONGEST_WAIT_S,
    MAX_REQUEST_BYTES,
    DisconnectArguments,
    LineReader,
    StatusArguments,
    WaitArguments,
    decode_answer,
    decode_arguments,
    decode_request,
    encode_error,
    encode_request,
    encode_result,
)
from tapotun_trio.control.server import MAX_CONNECTIONS, MAX_WAITING, REQUEST_S, Command, serve_control
from tapotun_trio.control.socket_path import PATH_BYTES, ControlDirectory, control_directories, find, listening, name_of
from tapotun_trio.errors import HostError, PeerError, TapotunError
from tapotun_trio.log import process_logger

from ..chunkings import cuts, every_chunking
from ..tables import table

# ------------------------------------------------------------------ protocol


LIMIT_BYTES: Final = 64


def read(pieces: list[bytes]) -> bytes | str | None:
    """The line, None if it is not complete, or why it was refused."""
    reader = LineReader(LIMIT_BYTES)
    try:
        for piece in pieces:
            if piece and (line := reader.feed(piece)) is not None:
                return line
    except PeerError as exc:
        return exc.reason
    return None


@given(st.binary(max_size=150) | st.binary(max_size=70).map(lambda it: it + b"\n" + it), cuts)
def test_a_line_in_every_split(stream: bytes, control_directories: list[int]) -> None:
    whole = read([stream])
    if isinstance(whole, bytes):
        assert whole == stream.partition(b"\n")[0]
        assert len(whole) <= LIMIT_BYTES
    for pieces in every_chunking(stream, control_directories):
        assert read(pieces) == whole


def test_an_end_within_a_line() -> None:
    reader = LineReader(10)
    assert reader.feed(b"{") is None
    with pytest.raises(PeerError, match="closed within a line"):
        reader.feed(b"")


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
LINES: Final = st.binary(max_size=100) | st.fixed_dictionaries(
    {},
    optional={"command": JSON | st.sampled_from(["status", "wait"]), "arguments": JSON, "result": JSON, "error": JSON},
).map(msgspec.json.encode)


@given(LINES)
def test_no_line_raises_anything_else(line: bytes) -> None:
    said: list[str] = []
    for kind in (StatusArguments, WaitArguments, DisconnectArguments):
        try:
            assert isinstance(decode_arguments(decode_request(line).arguments, kind), kind)
        except PeerError as exc:
            said.append(str(exc))
        try:
            assert isinstance(decode_answer(line, kind), kind)
        except PeerError as exc:
            said.append(str(exc))
    assert all(text.isprintable() for text in said)


def test_deeply_nested() -> None:
    deep = b'{"command":' + b"[" * 100_000
    with pytest.raises(PeerError):
        decode_request(deep)


@given(st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3))
def test_what_is_encoded_is_decoded(command: str, interfaces: list[str]) -> None:
    try:
        line = encode_request(command, StatusArguments(interfaces))
    except UnicodeEncodeError:
        return  # a lone surrogate: an argument of the command line that is no text
    assert line.count(b"\n") == 1
    request = decode_request(line[:-1])
    assert request.command == command
    assert decode_arguments(request.arguments, StatusArguments) == StatusArguments(interfaces)
    assert decode_answer(encode_result(interfaces)[:-1], list[str]) == interfaces


def test_an_error_is_one_line_of_some_length() -> None:
    with pytest.raises(PeerError) as caught:
        decode_answer(encode_error("\x1b[2J\n" + "x" * 5000)[:-1], str)
    assert caught.value.reason == "refused"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < ERROR_CHARS + 50


def test_another_server_at_the_socket() -> None:
    with pytest.raises(PeerError) as caught:
        decode_answer(b"HTTP/1.1 400 Bad Request\r", str)
    assert caught.value.reason == "foreign"


# ------------------------------------------------------------------ its place


def test_the_places(tmp_path: Path) -> None:
    assert control_directories({}) == [ControlDirectory("/run/tapotun", 0o755)]
    environ = {"RUNTIME_DIRECTORY": "/run/tapotun/office:/run/other", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert [place.directory for place in control_directories(environ)] == [
        "/run/tapotun",
        "/run/tapotun/office",
        "/run/user/1000/tapotun",
    ]
    assert [place.directory for place in control_directories(environ, "tapotun")] == [
        "/run/tapotun",
        "/run/tapotun/tapotun",
        "/run/tapotun/office",
        "/run/user/1000/tapotun",
    ]
    assert control_directories({"RUNTIME_DIRECTORY": "relative", "XDG_RUNTIME_DIR": ""}) == [
        ControlDirectory("/run/tapotun", 0o755)
    ]


def here(directory: Path) -> list[ControlDirectory]:
    return [ControlDirectory(str(directory / "run"), 0o755)]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
def test_it_is_ours_alone_and_leaves_nothing(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask & 0o077)
    try:
        with listening("office", here(tmp_path)) as sock:
            path = tmp_path / "run" / "office.sock"
            mode = path.lstat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert find(here(tmp_path)) == [str(path)]
            assert name_of(str(path)) == "office"
            assert sock.getblocking() is False
            assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["office.sock"]
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with listening("office", here(tmp_path)):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def leave_stale(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def test_stale_sockets_are_removed_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    leave_stale(directory / "office.sock")
    leave_stale(directory / "4711.sock")
    leave_stale(directory / "other")
    (directory / "text.sock").write_text("somebody's")
    with listening("living", here(tmp_path)), listening("office", here(tmp_path)):
        names = {entry.name for entry in directory.iterdir()}
        assert names == {"office.sock", "living.sock", "other", "text.sock"}
    assert {entry.name for entry in directory.iterdir()} == {"other", "text.sock"}


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    with listening("office", here(tmp_path)):
        with pytest.raises(OSError, match="another process of this name runs"), listening("office", here(tmp_path)):
            pass
        assert len(find(here(tmp_path))) == 1


def test_the_next_place_if_one_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    long = tmp_path / ("x" * PATH_BYTES)
    where = [
        ControlDirectory(str(tmp_path / "file" / "run"), 0o755),
        ControlDirectory(str(tmp_path / "missing"), None),
        ControlDirectory(str(long), 0o755),
    ]
    with listening("office", [*where, *here(tmp_path)]):
        assert find([*where, *here(tmp_path)]) == [str(tmp_path / "run" / "office.sock")]
    with pytest.raises(OSError) as caught, listening("office", where):
        pass
    assert caught.value.errno == errno.ENAMETOOLONG
    assert not long.exists(), "what was made for nothing is unmade"


def test_an_interface_of_another_owner_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "office.sock"
    with listening("office", here(tmp_path)):
        path.unlink()
        leave_stale(path)
    assert path.exists(), "it is another process's by now"


def test_those_one_directory_deeper_are_found(tmp_path: Path) -> None:
    with listening("b", [ControlDirectory(str(tmp_path / "run"), 0o755)]):
        (tmp_path / "run" / "unit").mkdir()
        with listening("a", [ControlDirectory(str(tmp_path / "run" / "unit"), None)]):
            assert [name_of(path) for path in find(here(tmp_path))] == ["a", "b"]
        (tmp_path / "run" / "unit").rmdir()


# ------------------------------------------------------------------ the server


class Refused(TapotunError):
    pass


async def echo(arguments: StatusArguments) -> list[str]:
    return arguments.interfaces


async def refuse(arguments: StatusArguments) -> None:
    raise Refused("no, for a reason")


async def break_down(arguments: StatusArguments) -> None:
    raise ZeroDivisionError


async def much(arguments: StatusArguments) -> str:
    return "x" * 5_000_000


async def linger(_: StatusArguments) -> None:
    await trio.sleep_forever()


COMMANDS: Final = {
    "echo": Command(StatusArguments, echo),
    "refuse": Command(StatusArguments, refuse),
    "break": Command(StatusArguments, break_down),
    "much": Command(StatusArguments, much),
    "wait": Command(StatusArguments, linger, waits=True),
}


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[str]:
    with listening("office", here(tmp_path)) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_control, sock, COMMANDS, process_logger())
            yield str(tmp_path / "run" / "office.sock")
            nursery.cancel_scope.cancel()


async def exchange(path: str, data: bytes) -> bytes:
    """Everything that is answered to these bytes."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(data)
        return b"".join([piece async for piece in stream])


@table(
    "data answer",
    ("a command", encode_request("echo", StatusArguments(["a"])), b'{"result":["a"]}\n'),
    ("without arguments", b'{"command":"echo"}\n', b'{"result":[]}\n'),
    ("more behind it", b'{"command":"echo"}\n{"command":"refuse"}\n', b'{"result":[]}\n'),
    ("refused", encode_request("refuse"), b'{"error":"no, for a reason"}\n'),
    ("a bug", encode_request("break"), b'{"error":"internal error; the log of the process has its traceback"}\n'),
    (
        "unknown",
        encode_request("shutdown"),
        b'{"error":"no such command; this process has break, echo, much, refuse, wait"}\n',
    ),
    (
        "unknown argument",
        b'{"command":"echo","arguments":{"interface":"a"}}\n',
        b'{"error":"not understood: arguments: Object contains unknown field `interface`"}\n',
    ),
    (
        "no JSON",
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"error":"not understood: request: JSON is malformed: invalid character (byte 0)"}\n',
    ),
    ("too long", b" " * (MAX_REQUEST_BYTES + 1) + b"\n", b'{"error":"the request is too long"}\n'),
    ("without an end", b"x" * (MAX_REQUEST_BYTES + 5000), b'{"error":"the request is too long"}\n'),
    ("an end within it", b"", b""),
)
async def test_what_is_answered(data: bytes, answer: bytes, tmp_path: Path) -> None:
    async with served(tmp_path) as path, await trio.open_unix_socket(path) as stream:
        await stream.send_all(data)
        if not data:
            stream.socket.shutdown(socket.SHUT_WR)
        received = b""
        try:
            async for piece in stream:
                received += piece
        except trio.BrokenResourceError:
            assert received == answer  # it was closed with some of the request unread
        assert received == answer
        assert await exchange(path, encode_request("echo")) == b'{"result":[]}\n', "the next one is served"


async def test_in_pieces(tmp_path: Path) -> None:
    async with served(tmp_path) as path, await trio.open_unix_socket(path) as stream:
        for byte in encode_request("echo", StatusArguments(["in", "pieces"])):
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert await stream.receive_some() == b'{"result":["in","pieces"]}\n'


async def test_who_says_nothing_and_who_reads_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with served(tmp_path) as path:
        async with await trio.open_unix_socket(path) as silent, await trio.open_unix_socket(path) as deaf:
            await deaf.send_all(encode_request("much"))
            await silent.send_all(b"{")
            begun = trio.current_time()
            assert await silent.receive_some() == b""
            assert trio.current_time() - begun == pytest.approx(REQUEST_S)
            await trio.sleep(60)
            received = b""
            while piece := await deaf.receive_some(1 << 20):
                received += piece
            assert 0 < len(received) < 5_000_000


async def test_too_many(tmp_path: Path) -> None:
    async with served(tmp_path) as path:
        held = [await trio.open_unix_socket(path) for _ in range(MAX_CONNECTIONS)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await exchange(path, b"") == BUSY
        with pytest.raises(PeerError, match="too many requests at the same time; try again") as caught:
            decode_answer(BUSY, str)
        assert caught.value.reason == "busy"
        for stream in held:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await exchange(path, encode_request("echo")) == b'{"result":[]}\n'


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.EPERM])
async def test_an_accept_that_fails_is_no_end(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(number, os.strerror(number))]
    accept = socket.socket.accept

    def failing(self: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    async with served(tmp_path) as path:
        assert await exchange(path, encode_request("echo")) == b'{"result":[]}\n'
    assert failures == []


async def test_those_that_wait_keep_nobody_from_asking(tmp_path: Path) -> None:
    """As when forty services wait for one tunnel. Their number has a limit of its own."""
    async with served(tmp_path) as path:
        async with AsyncExitStack() as stack:
            for _ in range(MAX_WAITING):
                waiting = await stack.enter_async_context(await trio.open_unix_socket(path))
                await waiting.send_all(encode_request("wait"))
                await trio.testing.wait_all_tasks_blocked()
            assert await exchange(path, encode_request("echo")) == b'{"result":[]}\n'
            assert await exchange(path, encode_request("wait")) == BUSY


# ------------------------------------------------------------------ the client


async def test_ask(tmp_path: Path) -> None:
    async with served(tmp_path) as path:
        run = trio.to_thread.run_sync
        assert await run(lambda: ask(path, "echo", StatusArguments(["a"]), list[str])) == ["a"]
        assert len(await run(lambda: ask(path, "much", None, str))) == 5_000_000
        with pytest.raises(PeerError, match="no, for a reason"):
            await run(lambda: ask(path, "refuse", None, str))
        with pytest.raises(PeerError, match="not understood: answer: Expected `int`"):
            await run(lambda: ask(path, "much", None, int))
    with pytest.raises(NobodyThereError):
        ask(path, "echo", None, str)


@contextmanager
def answering(tmp_path: Path, answer: bytes | None) -> Iterator[str]:
    """A process that answers this to whom comes first (None: nothing), and hangs up unless there is no answer."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        over = threading.Event()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                if answer is None:
                    over.wait(30)
                else:
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        over.set()
        thread.join()


@table(
    "answer error said",
    ("it ends", b'{"result"', NobodyThereError, "ended before it answered"),
    ("HTTP", b"HTTP/1.1 400 Bad Request\r\n", PeerError, "not tapotun's control socket"),
    ("rubbish", b'{"\x1b[2J\n', PeerError, "not understood: answer"),
    ("neither", b"{}\n", PeerError, "neither a result nor an error"),
    ("an endless line", b"{" + b"x" * 5000, PeerError, "a line of more than 4000 bytes"),
    ("nothing", None, HostError, "no answer within 0 s"),
)
def test_ask_somebody_strange(
    answer: bytes | None, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MAX_ANSWER_BYTES", 4000)
    with answering(tmp_path, answer) as path, pytest.raises(error, match=said):
        ask(path, "status", None, str, timeout_s=0.1 if answer is None else 30)


def test_wait_is_bounded() -> None:
    with pytest.raises(PeerError):
        decode_arguments(msgspec.Raw(b'{"timeout_s":1e9}'), WaitArguments)
    assert WaitArguments().timeout_s == LONGEST_WAIT_S


# ------------------------------------------------------------------ several processes at a time


@contextmanager
def strange(path: Path, answer: Iterable[bytes] | None, clients: int = 1) -> Iterator[None]:
    """A process that listens there: with None it is stopped, and accepts nothing; else it sends these pieces."""
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            for _ in range(clients):
                sock, _ = listener.accept()
                with sock, suppress(OSError):
                    for piece in answer or ():
                        if over.is_set():
                            return
                        sock.sendall(piece)
                    over.wait(60)

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if answer is not None:
                thread.join()


def slowly(pieces: Iterable[bytes], pause_s: float) -> Iterator[bytes]:
    for piece in pieces:
        time.sleep(pause_s)
        yield piece


def test_one_that_hangs_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a moment once another has answered, also if it trickles."""
    monkeypatch.setattr(asking, "PATIENCE_S", 0.2)
    good, hung, full, slow = (tmp_path / name for name in ("good", "hung", "full", "slow"))
    trickle = slowly(itertools.repeat(b" ", 10_000), 0.05)
    with (
        strange(good, [b'{"result":"fine"}\n']),
        strange(hung, None),
        strange(full, None),
        strange(slow, itertools.chain([b'{"result":"'], trickle)),
        ExitStack() as stack,
    ):
        for _ in range(2):  # its backlog is full: another connect(2) would block
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(str(full))
        paths = [str(path) for path in (hung, good, full, slow, tmp_path / "none")]
        begun = time.monotonic()
        outcomes = asking.ask_all(paths, "status", None, str, timeout_s=600, patience_s=asking.PATIENCE_S)
        assert time.monotonic() - begun < 300, "not until the time is over"
    assert [path for path, _ in outcomes] == paths
    assert outcomes[1][1] == "fine"
    assert isinstance(outcomes[4][1], NobodyThereError)
    for at in (0, 2, 3):
        assert "no answer within" in str(outcomes[at][1])


def test_without_an_answer_the_others_have_their_time(tmp_path: Path) -> None:
    late, hung = tmp_path / "late", tmp_path / "hung"
    pieces = slowly([b'{"result":', b'"fine"}\n'], 0.5)
    with strange(late, pieces), strange(hung, None):
        (_, outcome), (_, other) = asking.ask_all(
            [str(late), str(hung)], "status", None, str, timeout_s=60, patience_s=0.01
        )
    assert outcome == "fine"
    assert isinstance(other, HostError)


def test_one_that_hangs_alone_is_not_waited_for_long(tmp_path: Path) -> None:
    hung = tmp_path / "hung"
    with strange(hung, None):
        begun = time.monotonic()
        [(_, outcome)] = asking.ask_all([str(hung)], "status", None, str, timeout_s=600, first_s=0.2, patience_s=2.0)
        assert time.monotonic() - begun < 300, "not until the time is over"
    assert "no answer within" in str(outcome)


def test_a_long_answer_has_more_patience(tmp_path: Path) -> None:
    """It is on its way, and a quick process has answered long ago."""
    quick, long = tmp_path / "quick", tmp_path / "long"
    piece = b"x" * (512 * 1024)
    pieces = itertools.chain([b'{"result":"'], slowly([piece] * 20, 0.1), [b'"}\n'])
    with strange(quick, [b'{"result":"fine"}\n']), strange(long, pieces):
        outcomes = asking.ask_all([str(quick), str(long)], "status", None, str, timeout_s=600, patience_s=1.5)
    assert len(str(outcomes[1][1])) == 20 * len(piece)


def test_endless_answers_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_ANSWER_BYTES", 2_000_000)
    places = [tmp_path / f"endless{number}" for number in range(3)]
    good = tmp_path / "good"
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(strange(place, itertools.chain([b'{"result":"'], itertools.repeat(b"x" * 65536))))
        stack.enter_context(strange(good, [b'{"result":"fine"}\n']))
        tracemalloc.start()
        try:
            outcomes = asking.ask_all([*map(str, places), str(good)], "status", None, str, timeout_s=600)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert outcomes[3][1] == "fine"
    assert [type(outcome) for _, outcome in outcomes[:3]] == [PeerError] * 3
    assert peak < 8_000_000


def test_what_is_no_answer_from_its_first_byte_is_not_read_on(tmp_path: Path) -> None:
    with strange(tmp_path / "s", itertools.repeat(b"x" * 65536)), pytest.raises(PeerError, match="not tapotun"):
        ask(str(tmp_path / "s"), "status", None, str, timeout_s=60)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_any_answers(answers: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        paths = [Path(directory) / str(number) for number in range(len(answers))]
        for path, answer in zip(paths, answers, strict=True):
            stack.enter_context(answering_once(path, answer))
        for _, outcome in asking.ask_all(map(str, paths), "status", None, object, timeout_s=30):
            if isinstance(outcome, Exception):
                assert isinstance(outcome, HostError | PeerError)


@contextmanager
def answering_once(path: Path, answer: bytes) -> Iterator[None]:
    """A process that sends this, and ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
