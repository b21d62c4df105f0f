"""What a peer can have written into a log is bounded, in lines and in bytes, at both ends."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.client.backoff import Backoff
from tapotun_trio.errors import PEER_ERROR_CHARS, PeerError
from tapotun_trio.host.items import Item, ItemsRefused, Route
from tapotun_trio.log import (
    DEBUG_BURST,
    LINE_CHARS,
    MAX_SOURCES,
    SOURCE_BURST,
    JournalFormatter,
    JsonFormatter,
    SourceLimit,
    TextFormatter,
)
from tapotun_trio.text import listed, one_line, one_line_json, shorten_escaped
from tapotun_trio.wire import control

from ..fakes import MemoryHost, MemoryNetwork
from ..tables import table
from .hostile import PATIENCE_S, Raw, chunk, extended, hostile_host, logged, request
from .support import allowed, client_config, free_port, running, server_config
from .test_hostile_server import EXTENDED, ME, Answer, Server, ok, params, says

FRAMES: Final = 100  # a real attacker sends as many in a moment; each is applied here
MOST_LINES: Final = 120
MOST_BYTES: Final = 30_000

HOSTILE: Final = "\x1b[2J\u2028\u202e" * 1000
ROUTES: Final = [f"10.{a}.{b}.0/24" for a in range(20, 22) for b in range(50)]


def written(records: list[logging.LogRecord], level: int = logging.INFO) -> list[str]:
    """The lines as they go to the log."""
    return [TextFormatter().format(record) for record in records if record.levelno >= level]


def sends(make: Callable[[int], bytes], first: bytes = EXTENDED, count: int = FRAMES) -> Answer:
    """An answer of ``count`` parts, each made for its number, and then silence."""

    async def answer(raw: Raw) -> None:
        await raw.send(first)
        for number in range(count):
            await raw.send(make(number))
        done.set()
        await trio.sleep_forever()

    done = trio.Event()
    return answer


async def lines_of_a_client(
    answer: Answer, is_over: Callable[[Server], bool], host: MemoryHost | None = None
) -> list[str]:
    """What a client writes that always gets this answer."""
    server = Server([answer])
    with logged() as records:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, server.serve, listeners)
            async with running(host or hostile_host(), client_config("a", port)):
                with trio.fail_after(6 * PATIENCE_S):  # a busy machine takes its time to apply each
                    while not is_over(server):  # noqa: ASYNC110 - what is waited for tells no event
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    return written(records)


def alternating(one: bytes, other: bytes) -> Callable[[int], bytes]:
    return lambda number: chunk(other if number % 2 else one)


@pytest.mark.usefixtures("each_plane")
@table(
    "make",
    ("MTU and 100 routes", alternating(params(mtu=1400, routes=ROUTES), params(mtu=1500))),
    ("name servers", alternating(params(dns=[f"10.9.{n}.1" for n in range(250)]), params(dns=["10.9.9.9"]))),
    ("addresses", alternating(params(addresses=[f"{ME}/24"]), params(addresses=[f"{ME}/24", "10.10.0.77/24"]))),
    ("goodbyes", lambda number: chunk(control.bye(f"{number} {HOSTILE}"))),
    ("goodbyes of another machine", lambda number: chunk(control.bye(f"{control.REPLACED}{number} {HOSTILE}"))),
    ("agents", lambda number: chunk(control.encode(control.AGENT, f"{number}{HOSTILE}".encode()))),
    ("uploads seen", lambda number: chunk(control.upload_seen(number % 3))),
    ("answers to no ping", lambda number: chunk(control.encode(control.PONG, bytes(8)))),
)
async def test_what_a_server_sends(make: Callable[[int], bytes]) -> None:
    """One stream of many frames, each of which says something else."""
    sent = 0

    def counting(number: int) -> bytes:
        nonlocal sent
        sent = number
        return make(number)

    lines = await lines_of_a_client(sends(counting), lambda server: sent == FRAMES - 1 or server.gets > 30)
    assert len(lines) < MOST_LINES / 2
    assert sum(len(line.encode()) for line in lines) < MOST_BYTES


NUMBERS: Final = itertools.count()


@table(
    "answer",
    ("status lines", lambda: says(f"HTTP/1.1 {next(NUMBERS)} {'x' * 15000}\r\n\r\n".encode())),
    ("reasons", lambda: says(f"HTTP/1.1 503 {next(NUMBERS)}{'y' * 9000}\r\n\r\n".encode())),
    ("redirects", lambda: says(f"HTTP/1.1 302 x\r\nLocation: http://h/{next(NUMBERS)}{'z' * 9000}\r\n\r\n".encode())),
    ("challenges", lambda: says(f"HTTP/1.1 401 x\r\nWWW-Authenticate: Basic {next(NUMBERS)}\r\n\r\n".encode())),
    ("no conf", lambda: says(ok(f"{next(NUMBERS)}{'q' * 9000}"))),
    ("agents", lambda: says(ok("x", f"x-tun-agent: {next(NUMBERS)}{'q' * 9000}"), then="closes")),
    ("chunks", lambda: says(ok() + f"{next(NUMBERS)}zz\r\n".encode() + b"w" * 9000)),
    ("parameters", lambda: says(EXTENDED, chunk(params(device=f"{next(NUMBERS)}{'v' * 900}")))),
    ("nothing", lambda: says(then="closes")),
)
async def test_how_a_server_refuses(answer: Callable[[], Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempt after attempt, each of which fails in a way of its own."""
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.0)

    async def another(raw: Raw) -> None:
        await answer()(raw)

    async def closes(raw: Raw) -> None:
        with trio.move_on_after(0.01):
            await another(raw)

    lines = await lines_of_a_client(closes, lambda server: server.gets > 100)
    assert len(lines) < MOST_LINES
    assert max(len(line) for line in lines) < 1500
    assert sum(len(line.encode()) for line in lines) < 3 * MOST_BYTES


async def test_routes_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each PARAMS pushes others."""

    class Network(MemoryNetwork):
        async def add(self, name: str, items: list[Item]) -> None:  # type: ignore[override]
            refused: dict[Item, str] = {item: f"{item}: no" for item in items if isinstance(item, Route)}
            await super().add(name, [item for item in items if item not in refused])
            if refused:
                raise ItemsRefused(refused)

    monkeypatch.setattr("tests.fakes.MemoryNetwork", Network)
    sent = 0

    def make(number: int) -> bytes:
        nonlocal sent
        sent = number
        return chunk(params(routes=[f"10.{number % 200 + 20}.{n}.0/24" for n in range(20)]))

    lines = await lines_of_a_client(sends(make, count=100), lambda server: sent == 99 or server.gets > 30)
    assert any("continuing without what the server pushed" in line for line in lines)
    assert len(lines) < MOST_LINES


@pytest.mark.usefixtures("each_plane")
@table(
    "lines",
    ("no request", lambda number: b"\x16\x03\x01 rubbish \x1b[2J %d\r\n\r\n" % number),
    ("no token", lambda number: request("GET", None)),
    ("tokens", lambda number: request("GET", f"guess-{number}")),
    ("methods with a token", lambda number: request(f"X{number}", "a")),
    ("sessions with a token", lambda number: request("GET", "a", *extended(str(number)))),
    ("forged addresses", lambda number: request("GET", "guess", f"X-Forwarded-For: {number}{'f' * 9000}")),
    ("paths", lambda number: request("GET", "guess").replace(b"/ip", b"/%d" % number)),
)
async def test_what_clients_send(lines: Callable[[int], bytes]) -> None:
    port = free_port()
    with logged() as records:
        async with running(hostile_host(), server_config(port, allowed("a", "10.10.0.2"))):
            with trio.move_on_after(PATIENCE_S * 6):
                for number in range(150):
                    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                        await stream.send_all(lines(number))
                        with trio.move_on_after(1.0):
                            await stream.receive_some()
    written_lines = written(records)
    assert len(written_lines) < MOST_LINES
    assert sum(len(line.encode()) for line in written_lines) < MOST_BYTES


# ------------------------------------------------------------------ the backstop


def a_record(
    level: int, interface: str | None = "tun0", client: str | None = None, text: str = "x"
) -> logging.LogRecord:
    record = logging.LogRecord("tapotun", level, "", 0, "%s", (text,), None)
    record.__dict__.update({"interface": interface, "client": client})
    return record


def test_a_source_that_writes_without_end() -> None:
    now = 0.0
    limit = SourceLimit(lambda: now)
    passed = sum(limit.filter(a_record(logging.INFO)) for _ in range(10_000))
    assert passed == SOURCE_BURST
    assert limit.filter(a_record(logging.INFO, client="other"))
    assert limit.filter(a_record(logging.INFO, interface="tun1"))
    assert limit.filter(a_record(logging.DEBUG))
    assert all(limit.filter(a_record(logging.INFO, interface=None)) for _ in range(10_000))  # a reload's lines
    now = 1.5
    record = a_record(logging.INFO, text="%s fine")
    assert limit.filter(record)
    assert record.getMessage() == f"%s fine ({10_000 - SOURCE_BURST} lines before this were left out)"
    assert not limit.filter(a_record(logging.INFO))


def test_debug_lines_of_any_source_are_limited() -> None:
    limit = SourceLimit(lambda: 0.0)
    for interface in ("tun0", None):
        assert sum(limit.filter(a_record(logging.DEBUG, interface)) for _ in range(10_000)) == DEBUG_BURST


def test_its_memory_is_bounded() -> None:
    limit = SourceLimit(lambda: 0.0)
    for number in range(3 * MAX_SOURCES):
        limit.filter(a_record(logging.INFO, client=str(number)))
    assert len(limit._buckets) == MAX_SOURCES


# ------------------------------------------------------------------ lengths


@given(st.text(st.characters(codec=None), max_size=60) | st.just(HOSTILE), st.integers(20, 60))
def test_a_shortened_text_fits_once_it_is_escaped(text: str, limit: int) -> None:
    short = shorten_escaped(text, limit)
    assert len(one_line(short)) <= limit
    assert len(one_line_json(short)) <= limit
    if len(one_line_json(text)) < limit and text.isprintable():
        assert short == text


@pytest.mark.parametrize(
    "formatter", [TextFormatter(), JsonFormatter(), JournalFormatter("text"), JournalFormatter("json")]
)
@pytest.mark.parametrize("text", [HOSTILE * 100, "x" * 1_000_000, "\U000e0001" * 100_000, "ä" * 100_000])
def test_no_line_is_longer_than_its_limit(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(a_record(logging.INFO, text=text))
    assert line.isprintable()
    assert len(line) < LINE_CHARS + 200
    if "json" in type(formatter).__name__.lower():
        json.loads(line)


def test_the_text_of_a_peer_s_failure_is_one_short_line() -> None:
    exc = PeerError(f"the answer is {HOSTILE * 10}")
    assert str(exc).isprintable()
    assert len(str(exc)) < 10 * PEER_ERROR_CHARS
    assert exc.key == str(exc)


def test_a_list_is_shortened() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert listed(range(250), 2) == "0, 1 and 248 more"


@pytest.fixture(autouse=True)
def _no_filter() -> Iterator[None]:
    """Each kind of line is bounded by its own limit, without the backstop."""
    root = logging.getLogger("tapotun")
    before, root.filters[:] = list(root.filters), []
    yield
    root.filters[:] = before
