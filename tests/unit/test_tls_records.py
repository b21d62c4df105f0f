"""TLS 1.3 records in C, against an oracle in Python, and against openssl's server."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import tls_records as fuzz_tls_records
from tapotun_trio.config.model import TlsConfig
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net import tls_records
from tapotun_trio.host.net.sockets import TLS_RECORDS_WANTED, Connection
from tapotun_trio.host.net.tls import TlsClient
from tapotun_trio.host.net.tls_files import client_context
from tapotun_trio.host.net.tls_records import MAX_OTHERS, RAW_BYTES, RecordConnection
from tapotun_trio.native import PUMP, Tls
from tests.chunkings import cut

from .tls_oracle import ALERT, DATA, HANDSHAKE, RECORD_BYTES, SUITES, Direction, Reader, key_update

pytestmark = pytest.mark.skipif(
    not tls_records.can_open_records(), reason="the native part is not built, or finds no libcrypto"
)
suites = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
# RFC 8448 section 3: the traffic secrets, and the records with the bytes 0 to 49 of the client and the server.
RFC_8448_CLIENT: Final = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"
RFC_8448_SERVER: Final = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"
RFC_8448_RECORD: Final = (
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292"
    "a2977014bd1e3deae63aeebb21694915e4"
)


def ends(suite: int, **options: Any) -> tuple[Tls, Direction, Direction]:
    """A `Tls`, and the other end's sending and receiving direction."""
    assert PUMP is not None
    size = 48 if suite == 0x1302 else 32
    ours, theirs = os.urandom(size), os.urandom(size)
    tls = PUMP.Tls(suite, ours.hex().encode(), theirs.hex().encode(), *options.values())
    return tls, Direction(suite, theirs), Direction(suite, ours)


def buffer(data: bytes) -> mmap:
    raw = mmap(-1, max(len(data), 1))
    raw[: len(data)] = data
    return raw


# -- sealing


def test_the_records_of_rfc_8448() -> None:
    assert PUMP is not None
    tls = PUMP.Tls(0x1301, RFC_8448_CLIENT.encode(), RFC_8448_SERVER.encode())
    assert tls.seal(bytes(range(50))).hex() == RFC_8448_RECORD


@suites
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 16383, 16384, 16385, 3 * 16384, 100_000])
def test_what_is_sealed_can_be_opened(suite: int, size: int) -> None:
    tls, _, receives = ends(suite)
    data = os.urandom(size)
    for _ in range(3):
        records = list(receives.open_all(tls.seal(data)))
        assert all(kind == DATA for kind, _ in records)
        assert b"".join(content for _, content in records) == data
        assert len(records) == -(-size // RECORD_BYTES)


@suites
def test_keys_change_before_too_many_records(suite: int) -> None:
    tls, _, receives = ends(suite, most=3)
    data = os.urandom(10 * RECORD_BYTES)
    opened = list(receives.open_all(tls.seal(data)))
    assert b"".join(content for kind, content in opened if kind == DATA) == data
    # After three records a KeyUpdate is the fourth under its key.
    assert [kind for kind, _ in opened] == [*(3 * [DATA, DATA, DATA, HANDSHAKE]), DATA]
    assert [content for kind, content in opened if kind == HANDSHAKE] == 3 * [key_update(0)]


def test_other_content_can_be_sealed() -> None:
    tls, _, receives = ends(0x1302)
    assert list(receives.open_all(tls.seal(b"\1\0", ALERT))) == [(ALERT, b"\1\0")]


# A libcrypto whose HMAC fails after so many calls, as it does when there is no memory.
FAILING: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
int left = 1 << 30;
typedef void *Hmac(const void *, const void *, int, const void *, size_t, void *, unsigned *);
void *HMAC(const void *hash, const void *key, int n, const void *in, size_t size, void *out, unsigned *written)
{
	return left-- > 0 ? ((Hmac *)dlsym(RTLD_NEXT, "HMAC"))(hash, key, n, in, size, out, written) : NULL;
}
"""
USES_IT: Final = """
import ctypes, mmap, sys, _ssl
from tapotun_trio.datapath import _pump
left = ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "left")
assert _pump.load_crypto(sys.argv[1])
out, back = b"11" * 32, b"22" * 32
for fails in (2, 1, 0):  # the next IV, the next key, the next secret
    tls, peer = _pump.Tls(0x1301, out, back, 2), _pump.Tls(0x1301, back, out)
    sealed = {tls.seal(b"the same"), tls.seal(b"the same")}
    record = peer.seal(b"received")
    raw = mmap.mmap(-1, len(record))
    raw[:] = record
    left.value = fails
    for _ in range(3):
        try:
            sealed.add(tls.seal(b"the same"))
        except ValueError:
            left.value = 1 << 30
        else:
            sys.exit(f"{fails}: sealed after a failure" + ", with a nonce that was used" * (len(sealed) < 3))
    left.value = fails
    try:
        tls.update(False)
    except ValueError:
        left.value = 1 << 30
    else:
        sys.exit(f"{fails}: the failure is not seen")
    if tls.open(raw, 0, len(raw), memoryview(bytearray(100)))[1]:
        sys.exit(f"{fails}: opened by keys that are not known")
"""


def test_nothing_is_sealed_or_opened_after_libcrypto_has_failed(tmp_path: Path) -> None:
    """Not even later: a key whose numbers began anew would use its nonces twice."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    libcrypto = next(line.split()[-1] for line in maps.splitlines() if "libcrypto" in line and "_ssl" not in line)
    source, shim = tmp_path / "failing.c", tmp_path / "failing.so"
    source.write_text(FAILING, encoding="ascii")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-Wl,--no-as-needed", libcrypto, "-ldl"], check=True)
    done = subprocess.run([sys.executable, "-c", USES_IT, shim], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_nonce_is_used_twice() -> None:
    """Equal plaintexts have different records, also across a change of keys."""
    tls, _, _ = ends(0x1301, most=5)
    records = {tls.seal(b"the same") for _ in range(1000)}
    assert len(records) == 1000


# -- opening


def open_in_pieces(tls: Tls, pieces: list[bytes], room: int) -> bytes:
    """What the records in these pieces say, with a buffer for so many bytes of content."""
    assert PUMP is not None
    raw, start, stop = mmap(-1, sum(map(len, pieces)) + 1), 0, 0
    into = memoryview(bytearray(room))
    content = b""
    for piece in pieces:
        raw[stop : stop + len(piece)] = piece
        stop += len(piece)
        while True:
            start, size, why = tls.open(raw, start, stop, into)
            content += into[:size]
            if why == PUMP.OTHER:  # an empty record is the only one here that is not for the plane
                start, kind, nothing = tls.take(raw, start, stop)
                assert (kind, nothing) == (DATA, b"")
                continue
            if why == PUMP.WANTS_MORE:
                break
            assert size, "a record has no room in a buffer that is large enough"
    assert start == stop
    return content


contents = st.lists(st.tuples(st.integers(0, 3000) | st.just(RECORD_BYTES), st.integers(0, 255)), max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.data_too_large])  # each cut is drawn
@given(st.sampled_from(sorted(SUITES.values())), contents, st.randoms(use_true_random=False), st.integers(1, 40))
def test_records_cut_anywhere(suite: int, records: list[tuple[int, int]], rng: random.Random, pieces: int) -> None:
    tls, sends, _ = ends(suite)
    expected, sealed = b"", b""
    for size, padding in records:
        content = rng.randbytes(size)
        expected += content
        sealed += sends.seal(content, padding=padding)
    at = sorted(rng.randrange(len(sealed) + 1) for _ in range(pieces))
    assert open_in_pieces(tls, cut(sealed, at), 17_000) == expected


def test_records_byte_by_byte() -> None:
    tls, sends, _ = ends(0x1302)
    sealed = sends.seal(b"one") + sends.seal(b"") + sends.seal(b"two", padding=9)
    assert open_in_pieces(tls, [bytes((byte,)) for byte in sealed], 17_000) == b"onetwo"


@suites
def test_a_changed_byte_is_found_and_nothing_is_shown(suite: int) -> None:
    assert PUMP is not None
    tls, sends, _ = ends(suite)
    good = sends.seal(b"something secret")
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x40
        raw, into = buffer(bytes(bad) + bytes(17_000)), bytearray(20_000)
        start, size, why = tls.open(raw, 0, len(raw) - 1, memoryview(into))
        assert (start, size) == (0, 0)
        assert why == PUMP.OTHER
        assert not any(into), f"byte {at}: decrypted bytes are left behind"
        with pytest.raises(ValueError, match=r"^[A-Z_]+$"):
            tls.take(raw, 0, len(raw) - 1)
    # Nothing was counted, and the good record is still the next.
    assert open_in_pieces(tls, [good], 17_000) == b"something secret"


def test_a_record_again_or_out_of_order() -> None:
    assert PUMP is not None
    tls, sends, _ = ends(0x1303)
    first, second = sends.seal(b"first"), sends.seal(b"second")
    into = memoryview(bytearray(100))
    assert tls.open(buffer(second), 0, len(second), into) == (0, 0, PUMP.OTHER)
    assert tls.open(buffer(first), 0, len(first), into) == (len(first), 5, PUMP.WANTS_MORE)
    assert tls.open(buffer(first), 0, len(first), into) == (0, 0, PUMP.OTHER)
    assert tls.open(buffer(second), 0, len(second), into) == (len(second), 6, PUMP.WANTS_MORE)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\x16\x03\x03\0\x20" + bytes(32), "UNEXPECTED_MESSAGE"),
        (b"\x15\x03\x03\0\x02\x02\x28", "UNEXPECTED_MESSAGE"),
        (b"\x17\x03\x01\0\x20" + bytes(32), "WRONG_VERSION_NUMBER"),
        (b"\x17\x03\x03\0\x10" + bytes(16), "LENGTH_TOO_SHORT"),
        (b"\x17\x03\x03\x41\x01" + bytes(16641), "PACKET_LENGTH_TOO_LONG"),
        (b"\x17\x03\x03\x41\0" + bytes(16640), "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
    ],
)
def test_what_is_no_record(record: bytes, reason: str) -> None:
    assert PUMP is not None
    tls, _, _ = ends(0x1301)
    assert tls.open(buffer(record), 0, len(record), memoryview(bytearray(20_000))) == (0, 0, PUMP.OTHER)
    with pytest.raises(ValueError, match=reason):
        tls.take(buffer(record), 0, len(record))


def test_content_of_no_type_and_too_much_content() -> None:
    tls, sends, _ = ends(0x1301)
    for bad, reason in (
        (sends.seal(b"", kind=0, padding=50), "BAD_RECORD_TYPE"),
        (Direction(0x1301, sends.secret).seal(bytes(RECORD_BYTES + 1)), "DATA_LENGTH_TOO_LONG"),
    ):
        with pytest.raises(ValueError, match=reason):
            tls.take(buffer(bad), 0, len(bad))


def test_bounds() -> None:
    assert PUMP is not None
    tls, _, _ = ends(0x1301)
    raw, into = buffer(bytes(40)), memoryview(bytearray(40))
    for start, stop in ((-1, 4), (0, 41), (5, 4)):
        with pytest.raises(ValueError, match="not within the buffer"):
            tls.open(raw, start, stop, into)
    for start, stop in ((-1, 30), (0, 41), (38, 40), (50, 60)):
        with pytest.raises(ValueError, match="not within the buffer"):
            tls.take(raw, start, stop)
    with pytest.raises(ValueError, match="not within the buffer"):
        tls.take(buffer(b"\x17\x03\x03\0\x30" + bytes(40)), 0, 45)
    secret = b"0" * 64
    for wrong in (
        (0x1300, secret, secret),
        (0x1304, secret, secret),
        (0x1302, secret, secret),
        (0x1301, b"z" * 64, secret),
    ):
        with pytest.raises(ValueError, match=r"suite|secret"):
            PUMP.Tls(*wrong)
    with pytest.raises(TypeError):
        PUMP.Tls.__new__(PUMP.Tls)


@suites
def test_both_directions_change_their_keys(suite: int) -> None:
    tls, sends, receives = ends(suite)
    sealed = sends.seal(key_update(1), HANDSHAKE)
    start, kind, content = tls.take(buffer(sealed), 0, len(sealed))
    assert (start, kind, content) == (len(sealed), HANDSHAKE, key_update(1))
    tls.update(True)
    sends.update()
    assert open_in_pieces(tls, [sends.seal(b"new")], 100) == b"new"
    # Ours change with the next that is sent, and not again with the one after.
    assert list(receives.open_all(tls.seal(b"a") + tls.seal(b"b"))) == [
        (HANDSHAKE, key_update(0)),
        (DATA, b"a"),
        (DATA, b"b"),
    ]
    tls.update(False)
    sends.update()
    assert open_in_pieces(tls, [sends.seal(b"newer")], 100) == b"newer"
    assert list(receives.open_all(tls.seal(b"c"))) == [(DATA, b"c")]


# -- a connection, as its handshake leaves it


class Pair:
    """A connection and its other end."""

    def __init__(self, suite: int = 0x1301, **options: Any) -> None:
        ours, self.far = socket.socketpair()
        self.far.settimeout(5)
        self.tls, self.sends, receives = ends(suite, **options)
        self.reader = Reader(receives)
        self.connection = RecordConnection(ours, "server", client_context(TlsConfig(insecure=True)), b"h", None)
        self.connection._records, self.connection._finished = self.tls, True
        self.connection._shown = -1  # OpenSSL has done no handshake here, so it is shown nothing

    def send(self, *records: bytes) -> None:
        self.far.sendall(b"".join(records))

    def receive(self, size: int = 64 * 1024) -> bytes | None:
        into = memoryview(bytearray(size))
        received = self.connection.try_receive(into)
        return None if received is None else bytes(into[:received])

    def arrived(self) -> bytes:
        self.far.setblocking(False)
        data = b""
        try:
            while piece := self.far.recv(1 << 20):
                data += self.reader.feed(piece)
        except BlockingIOError:
            pass
        return data


@pytest.fixture
async def pair() -> Any:
    made = Pair()
    yield made
    made.connection.close()
    made.far.close()


async def test_a_connection_receives_what_comes_however_small_the_buffer_is(pair: Pair) -> None:
    data = os.urandom(50_000)
    pair.send(pair.sends.seal_all(data))
    received = b""
    for size in (1, 3, 1000, 20_000, 7, 100_000, 100_000):
        received += pair.receive(size) or b""
    assert received == data
    assert pair.receive() is None


async def test_data_before_an_error_is_delivered_and_the_error_stays(pair: Pair) -> None:
    good = pair.sends.seal(b"good")
    bad = bytearray(pair.sends.seal(b"bad"))
    bad[-1] ^= 1
    pair.send(good, bytes(bad), pair.sends.seal(b"never"))
    assert pair.receive() == b"good"
    for _ in range(2):
        with pytest.raises(PeerError, match="TLS connection to server broke: DECRYPTION_FAILED_OR_BAD_RECORD_MAC"):
            pair.receive()
    assert not pair.connection.can_lend_receiving


async def test_close_notify_is_the_end_and_stays_it(pair: Pair) -> None:
    pair.send(pair.sends.seal(b"last"), pair.sends.seal(b"\1\0", ALERT), pair.sends.seal(b"ignored"))
    assert [pair.receive() for _ in range(3)] == [b"last", b"", b""]
    assert not pair.connection.can_lend_receiving


async def test_an_alert_is_no_data_however_small_the_buffer_is(pair: Pair) -> None:
    pair.send(pair.sends.seal(key_update(0), HANDSHAKE))
    pair.sends.update()
    pair.send(pair.sends.seal(b"ab"), pair.sends.seal(b"\2\x50", ALERT))
    assert [pair.receive(1), pair.receive(1)] == [b"a", b"b"]
    with pytest.raises(PeerError, match="TLSV1_ALERT_INTERNAL_ERROR"):
        pair.receive(1)


@pytest.mark.parametrize(
    ("make", "alert"),
    [
        (lambda sends: sends.seal(b"x")[:-1] + b"\0", 20),
        (lambda sends: b"\x17\x03\x03\0\x10" + bytes(16), 20),
        (lambda sends: b"\x17\x03\x03\x41\x01" + bytes(16641), 22),
        (lambda sends: sends.seal(bytes(RECORD_BYTES + 1)), 22),
        (lambda sends: sends.seal(b"", kind=0, padding=9), 10),
        (lambda sends: b"\x15\x03\x03\0\x02\x02\x28", 10),
        (lambda sends: sends.seal(b"\1\0\0\0", HANDSHAKE), 10),
        (lambda sends: sends.seal(key_update(2), HANDSHAKE), 47),
    ],
)
async def test_a_bad_record_is_answered_by_an_alert(pair: Pair, make: Callable[[Direction], bytes], alert: int) -> None:
    """RFC 8446 sections 5 and 6.2. Nothing is sent after it."""
    pair.connection.try_send([b"before"])
    pair.send(pair.sends.seal(b"data") + make(pair.sends))
    assert pair.receive() == b"data"
    for _ in range(2):
        with pytest.raises(PeerError):
            pair.receive()
    with pytest.raises(PeerError, match="broke"):
        pair.connection.try_send([b"after"])
    assert not pair.connection.can_lend_sending
    pair.connection.close()
    assert pair.arrived() == b"before"
    assert pair.reader.others == [(ALERT, bytes((2, alert)))]


@pytest.mark.parametrize("rest", [b"", b"half of a record"])
async def test_the_plane_stops_sending_before_an_alert(pair: Pair, rest: bytes) -> None:
    """If it has sent half of a record, there can be none."""
    loans = [rest]
    pair.connection.borrowers.append(lambda: pair.connection.take_back_sending(loans.pop()))  # type: ignore[arg-type]
    pair.send(b"\x15\x03\x03\0\x02\x02\x28")
    with pytest.raises(PeerError):
        pair.receive()
    assert not loans
    assert pair.arrived() == b""
    assert pair.reader.others == ([] if rest else [(ALERT, b"\2\x0a")])
    pair.connection.borrowers.clear()


async def test_close_notify_is_sent_at_every_orderly_end() -> None:
    for end, expected in (
        (RecordConnection.close, [(ALERT, b"\1\0")]),
        (RecordConnection.shutdown_sending, [(ALERT, b"\1\0")]),
        (RecordConnection.abort, []),
    ):
        made = Pair()
        made.connection.try_send([b"all"])
        end(made.connection)
        made.connection.close()
        assert made.arrived() == b"all"
        assert made.reader.others == expected
        made.far.close()


async def test_a_fatal_alert_is_not_answered(pair: Pair) -> None:
    pair.send(pair.sends.seal(b"\2\x28", ALERT))
    with pytest.raises(PeerError, match="SSLV3_ALERT_HANDSHAKE_FAILURE"):
        pair.receive()
    with pytest.raises(PeerError, match="SSLV3_ALERT_HANDSHAKE_FAILURE"):
        pair.connection.try_send([b"after"])
    pair.connection.close()
    assert pair.arrived() == b""
    assert pair.reader.others == []


async def test_user_canceled_is_no_error(pair: Pair) -> None:
    """RFC 8446 section 6.1: it only says that a close_notify follows. Java's servers send it."""
    pair.send(pair.sends.seal(b"last"), pair.sends.seal(b"\1\x5a", ALERT), pair.sends.seal(b"\1\0", ALERT))
    assert [pair.receive() for _ in range(2)] == [b"last", b""]


async def test_nothing_but_empty_records_ends_the_connection(pair: Pair) -> None:
    pair.send(*(pair.sends.seal(b"", padding=number % 3) for number in range(MAX_OTHERS)))
    assert pair.receive() is None
    pair.send(pair.sends.seal(b"data"), pair.sends.seal(b""))
    assert pair.receive() == b"data"
    pair.send(*(pair.sends.seal(b"") for _ in range(MAX_OTHERS + 1)))
    with pytest.raises(PeerError, match="TOO_MANY_KEY_UPDATES"):
        pair.receive()


@pytest.mark.parametrize("other", ["empty", "key update"])
async def test_one_receive_takes_a_bounded_number_of_other_records(pair: Pair, other: str) -> None:
    """Otherwise a server keeps all other tasks waiting by a byte of data now and then."""
    records = b""
    for _ in range(5):
        for _ in range(MAX_OTHERS):
            if other == "empty":
                records += pair.sends.seal(b"")
            else:
                records += pair.sends.seal(key_update(1), HANDSHAKE)
                pair.sends.update()
        records += pair.sends.seal(b"a")
    pair.send(records)
    assert [pair.receive() for _ in range(6)] == [*(5 * [b"a"]), None]


async def test_a_head_that_is_wrong_is_enough(pair: Pair) -> None:
    pair.send(b"\x17\x03\x03\x47\0")
    with pytest.raises(PeerError, match="PACKET_LENGTH_TOO_LONG"):
        pair.receive()


async def test_what_the_plane_receives_is_not_touched_when_a_send_fails(pair: Pair) -> None:
    record = pair.sends.seal(b"halved")
    pair.send(record[:9])
    assert pair.receive() is None
    lent = pair.connection.lend_receiving()
    pair.send(record[9:])
    pair.far.close()
    with pytest.raises(PeerError, match="Broken pipe"):
        pair.connection.try_send([b"x"])
    assert lent is not None
    assert pair.connection.lend_receiving() == lent


async def test_the_end_within_a_record_is_an_end(pair: Pair) -> None:
    """As with OpenSSL and suppress_ragged_eofs: what is above TLS knows whether it was complete."""
    pair.send(pair.sends.seal(b"whole"), pair.sends.seal(b"cut")[:-1])
    pair.far.shutdown(socket.SHUT_WR)
    assert [pair.receive() for _ in range(3)] == [b"whole", b"", b""]


async def test_alerts_and_tickets_behind_data(pair: Pair) -> None:
    ticket = bytes((4, 0, 0, 200)) + bytes(200)
    pair.send(
        pair.sends.seal(b"data"),
        pair.sends.seal(ticket[:50], HANDSHAKE),
        pair.sends.seal(ticket[50:] + ticket, HANDSHAKE),
    )
    pair.send(pair.sends.seal(b"more"), pair.sends.seal(b"\2\x50", ALERT))
    assert pair.receive() == b"datamore"
    with pytest.raises(PeerError, match="TLSV1_ALERT_INTERNAL_ERROR"):
        pair.receive()


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"\1\0\0\0", HANDSHAKE, "UNEXPECTED_MESSAGE"),
        (b"", HANDSHAKE, "UNEXPECTED_MESSAGE"),
        (b"\2", ALERT, "UNEXPECTED_MESSAGE"),
        (b"x", 99, "UNEXPECTED_MESSAGE"),
        (key_update(2), HANDSHAKE, "BAD_KEY_UPDATE"),
        (bytes((24, 0, 0, 0)), HANDSHAKE, "BAD_KEY_UPDATE"),
        (key_update(0) + key_update(0), HANDSHAKE, "NOT_ON_RECORD_BOUNDARY"),
        (b"\4\xff\xff\xff", HANDSHAKE, "EXCESSIVE_MESSAGE_SIZE"),
    ],
)
async def test_what_a_server_must_not_send(pair: Pair, content: bytes, kind: int, reason: str) -> None:
    pair.send(pair.sends.seal(content, kind))
    with pytest.raises(PeerError, match=reason):
        pair.receive()


async def test_data_within_a_handshake_message(pair: Pair) -> None:
    pair.send(pair.sends.seal(b"\4\0\1", HANDSHAKE))
    assert pair.receive() is None
    assert not pair.connection.can_lend_receiving
    pair.send(pair.sends.seal(b"data"))
    with pytest.raises(PeerError, match="UNEXPECTED_MESSAGE"):
        pair.receive()


async def test_key_updates_are_followed_and_answered(pair: Pair) -> None:
    for number in range(3 * MAX_OTHERS):
        pair.send(pair.sends.seal(key_update(number % 2), HANDSHAKE))
        pair.sends.update()
        pair.send(pair.sends.seal(b"%d" % number))
        assert pair.receive() == b"%d" % number
        assert pair.connection.try_send([b"re", b"%d" % number]) == 2 + len(str(number))
        assert pair.arrived() == b"re%d" % number
    assert pair.reader.updates == 3 * MAX_OTHERS // 2


async def test_nothing_but_key_updates_ends_the_connection(pair: Pair) -> None:
    for _ in range(MAX_OTHERS + 1):
        pair.send(pair.sends.seal(key_update(0), HANDSHAKE))
        pair.sends.update()
    with pytest.raises(PeerError, match="TOO_MANY_KEY_UPDATES"):
        pair.receive()


async def test_a_full_socket_gets_the_sealed_bytes_first(pair: Pair) -> None:
    """Nothing is sealed twice, and nothing counts as sent that was not."""
    data = os.urandom(3_000_000)
    sent, arrived = 0, b""
    while sent < len(data):
        taken = pair.connection.try_send([memoryview(data)[sent : sent + 300_000]])
        if not taken:
            assert not pair.connection.can_lend_sending
            arrived += pair.arrived()
        sent += taken
    assert arrived + pair.arrived() == data
    assert pair.connection.can_lend_sending


async def test_what_the_plane_has_sealed_goes_first(pair: Pair) -> None:
    rest = pair.tls.seal(b"sealed below")
    pair.far.setblocking(False)
    placeholder = pair.connection.take_back_sending(rest)
    assert len(placeholder) == 1
    assert pair.connection.try_send([placeholder, b", and above"]) == 1 + len(b", and above")
    assert pair.arrived() == b"sealed below, and above"
    assert pair.connection.take_back_sending(b"") == b""


async def test_what_python_could_not_send_survives_the_end_of_a_loan(pair: Pair) -> None:
    """Python may send while the socket is lent, too. If that fills the socket, it takes the socket back."""
    data = os.urandom(5_000_000)
    sent = pair.connection.try_send([data])
    assert 0 < sent < len(data)
    assert pair.connection.take_back_sending(b"") == b""
    arrived = pair.arrived()
    while sent < len(data):
        sent += pair.connection.try_send([memoryview(data)[sent:]])
        arrived += pair.arrived()
    assert arrived == data


async def test_a_buffer_of_records_is_compacted(pair: Pair) -> None:
    """More than the buffer holds, in pieces that end within records."""
    data = os.urandom(3 * RAW_BYTES)
    sealed = pair.sends.seal_all(data)
    received = b""
    for at in range(0, len(sealed), 50_001):
        pair.send(sealed[at : at + 50_001])
        while piece := pair.receive():
            received += piece
    assert received == data


@pytest.mark.parametrize("seed", fuzz_tls_records.SEEDS, ids=range(len(fuzz_tls_records.SEEDS)))
def test_what_the_fuzzer_begins_with(seed: bytes) -> None:
    fuzz_tls_records.check(seed)


# -- against openssl


@contextmanager
def openssl_server(directory: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes], str]]:
    """`openssl s_server`: its port, its process, and the authority's file. What it gets on stdin it sends."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    with subprocess.Popen(
        ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", directory / "server.pem", "-naccept", "1", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        try:
            assert process.stdout is not None
            line = b""
            while not line.startswith(b"ACCEPT"):
                line = read_line(process)
            yield int(line.rpartition(b":")[2]), process, str(directory / "ca.pem")
        finally:
            process.kill()


def read_to(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Read what openssl prints, up to this line."""
    while read_line(process) != text:
        pass


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        byte = process.stdout.read(1)
        assert byte, f"openssl has ended: {line!r}"
        line += byte
    return line


@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"])
async def test_openssl_s_server(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cipher, both directions, and key updates that the server asks for (K) or only does (k)."""
    monkeypatch.setattr(tls_records, "wanted", lambda context: True)
    with openssl_server(tmp_path, "-tls1_3", "-ciphersuites", suite) as (port, process, ca_file):
        assert process.stdin is not None
        sock = socket.create_connection(("127.0.0.1", port))
        with trio.fail_after(30):
            connection = await TlsClient(TlsConfig(ca_file=ca_file)).handshake(Connection(sock, "openssl"), "localhost")
            assert isinstance(connection, RecordConnection)
            assert connection._records is not None
            buffer = memoryview(bytearray(64 * 1024))

            async def expect(text: bytes) -> None:
                got = b""
                while len(got) < len(text):
                    received = await connection.receive(buffer)
                    assert received, f"ended after {got!r}"
                    got += buffer[:received]
                assert got == text

            for number in range(4):
                for command in (b"", b"K\n", b"k\n"):
                    if command:
                        process.stdin.write(command)
                    await trio.sleep(0.05)  # a command has to be a read of its own
                    text = b"line %d behind %s" % (number, command or b"nothing\n")
                    process.stdin.write(text)
                    await expect(text)
                    await connection.send_all(b"answer " + text)
                    await trio.to_thread.run_sync(read_to, process, b"answer " + text)
            assert connection.session() is not None
            connection.close()


async def test_secrets_that_do_not_come_leave_it_to_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example without /proc."""
    monkeypatch.setattr(tls_records, "wanted", lambda context: True)
    monkeypatch.setattr(os, "pipe2", lambda flags: (_ for _ in ()).throw(OSError(24, "no descriptor")))
    with openssl_server(tmp_path, "-tls1_3") as (port, process, ca_file):
        assert process.stdin is not None
        sock = socket.create_connection(("127.0.0.1", port))
        with trio.fail_after(30):
            connection = await TlsClient(TlsConfig(ca_file=ca_file)).handshake(Connection(sock, "openssl"), "localhost")
            assert isinstance(connection, RecordConnection)
            assert not connection.can_lend_receiving
            assert not connection.can_lend_sending
            await connection.send_all(b"up\n")
            await trio.to_thread.run_sync(read_to, process, b"up\n")
            process.stdin.write(b"down\n")
            buffer = memoryview(bytearray(64 * 1024))
            assert bytes(buffer[: await connection.receive(buffer)]) == b"down\n"
            connection.close()


def test_a_key_log_of_a_person_is_left_alone(tmp_path: Path) -> None:
    context = ssl.create_default_context()
    context.keylog_filename = str(tmp_path / "log")

    async def main() -> bool:
        TLS_RECORDS_WANTED.set(True)
        return tls_records.wanted(context)

    assert not trio.run(main)
    context.keylog_filename = None  # type: ignore[assignment]
    assert trio.run(main)
