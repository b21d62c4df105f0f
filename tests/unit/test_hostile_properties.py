"""The parsers of what our own two ends say to each other, under any bytes at all: an answer or a PeerError, within
their limits, and the same however the bytes were cut."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.rtt import MAX_S, RoundTrip
from tapotun_trio.errors import PeerError
from tapotun_trio.http.heads import RequestParser
from tapotun_trio.server.session import ClientHello
from tapotun_trio.wire import control, params
from tapotun_trio.wire.body import CloseBody
from tapotun_trio.wire.frames import BASE_PING, FrameReader, each

from ..chunkings import cut, cuts, every_chunking
from ..packets import frame

FEW: Final = settings(max_examples=150, deadline=None)

# -- control frames

payloads = st.binary(max_size=40)
controls = st.tuples(st.integers(0, 255), payloads)
packets = st.binary(min_size=20, max_size=60).map(frame)
pieces = st.lists(st.one_of(controls.map(lambda c: control.encode(*c)), packets, st.just(BASE_PING)), max_size=12)


def read(data: list[bytes], *, agreed: bool = True) -> tuple[list[bytes], list[tuple[int, bytes]]]:
    """Frames and control frames of a body that is received in these pieces."""
    reader = FrameReader(CloseBody(), control=agreed)
    frames: list[bytes] = []
    for part in data:
        reader.space()[: len(part)] = part
        frames += [bytes(reader.view[start:stop]) for start, stop in each(reader.feed(len(part)))]
        while reader.pending:
            frames += [bytes(reader.view[start:stop]) for start, stop in each(reader.feed(0))]
    reader.eof()
    return frames, reader.controls


@FEW
@given(st.lists(controls, max_size=12), st.lists(packets, max_size=12), st.randoms(use_true_random=False), cuts)
def test_control_frames_among_frames_under_every_split(
    sent: list[tuple[int, bytes]], frames: list[bytes], mix: Any, places: list[int]
) -> None:
    rest = [[control.encode(*it) for it in sent], list(frames), [BASE_PING] * 3]
    wire = b""
    while any(rest):
        wire += mix.choice([queue for queue in rest if queue]).pop(0)
    for parts in every_chunking(wire, places):
        assert read(parts) == (frames, sent)


@FEW
@given(st.one_of(st.binary(max_size=300), pieces.map(b"".join)), st.binary(max_size=8), cuts, st.booleans())
@example(b"\1\0\x02\xff\xff\xff\xff", b"", [], True)
@example(b"\1\0", b"", [], True)
def test_any_bytes_are_frames_or_a_peer_error(data: bytes, tail: bytes, places: list[int], agreed: bool) -> None:
    def outcome(parts: list[bytes]) -> object:
        try:
            return read(parts, agreed=agreed)
        except PeerError as exc:
            return exc.reason

    outcomes = [outcome(parts) for parts in every_chunking(data + tail, places)]
    assert all(it == outcomes[0] for it in outcomes)


@FEW
@given(st.binary(max_size=12), st.integers(0, 2**64 - 1))
def test_any_clock_makes_a_sane_round_trip_or_none(payload: bytes, now_ns: int) -> None:
    rtt = RoundTrip()
    try:
        rtt.sample(control.echoed_clock(payload), now_ns)
    except PeerError:
        assert len(payload) != 8
    assert rtt.last_s is None or 0 <= rtt.last_s <= MAX_S
    assert str(rtt)


# -- PARAMS

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
addresses = st.one_of(
    st.ip_addresses().map(str), st.sampled_from(["10.10.0.2/24", "224.0.0.1/4", "0.0.0.0/0", "1/1", ""])
)
almost = st.fixed_dictionaries(
    {"mtu": st.one_of(st.integers(0, 70_000), json_values)},
    optional={
        "addresses": st.one_of(st.lists(addresses, max_size=3), json_values),
        "routes": st.one_of(st.lists(addresses, max_size=3), json_values),
        "keepalive": st.one_of(st.floats(), st.integers(-5, 60), json_values),
        "more": json_values,
    },
)


def assert_sound(payload: bytes) -> None:
    told: params.Params | None
    try:
        told = params.decode(payload)
    except PeerError as exc:
        told, text, reason = None, str(exc), exc.reason
    if told is None:
        assert reason == "bad-params"
        assert text.isprintable()
        assert len(text) < 200
    else:
        assert 68 <= told.mtu <= 65535
        assert params.KEEPALIVE_S[0] <= told.keepalive <= params.KEEPALIVE_S[1]
        assert 0 < len(told.addresses) == len(set(told.addresses))
        assert not any(it.ip.is_multicast or it.ip.is_unspecified or it.ip.is_loopback for it in told.addresses)
        assert params.decode(params.encode(told)) == told


@FEW
@given(st.one_of(almost, json_values).map(lambda it: json.dumps(it).encode()))
@example(b'{"mtu":1500,"addresses":["10.0.0.2/24"],"keepalive":1e999}')
@example(b'{"mtu":1500,"addresses":["10.0.0.2/24"],"routes":["0.0.0.0/0","0.0.0.0/0"]}')
@example(b'{"mtu":1500,"addresses":["10.0.0.2/' + b"9" * 5000 + b'"]}')
def test_any_json_is_parameters_or_a_peer_error(payload: bytes) -> None:
    assert_sound(payload)


@FEW
@given(st.binary(max_size=100))
@example(b"[" * 48_000)
@example(b'{"x":' * 8000)
@example(b'{"mtu":' + b"9" * 48_000)
@example(b'"\\ud800"')
def test_any_bytes_are_parameters_or_a_peer_error(payload: bytes) -> None:
    assert_sound(payload)


@FEW
@given(almost, st.integers(0, 400), st.integers(0, 255))
def test_parameters_with_a_byte_changed(fields: dict[str, object], at: int, byte: int) -> None:
    payload = bytearray(msgspec.json.encode({"mtu": 1500, "addresses": ["10.10.0.2/24"], "keepalive": 10.0}))
    payload[at % len(payload)] = byte
    assert_sound(bytes(payload))


# -- x-tun-features, x-tun-session, x-tun-yield

header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=80)
session_ids = st.text("0123456789abcdefABg\n", min_size=31, max_size=33)
feature_lists = st.lists(st.sampled_from(["ctl", "CTL", " ctl ", "uso", "", "ct l", "c,tl"]), max_size=6).map(",".join)


@FEW
@given(st.one_of(header_values, feature_lists))
def test_any_offer_agrees_on_what_we_have_and_the_agreement_is_stable(value: str) -> None:
    agreed = control.agree(value)
    assert agreed <= control.SUPPORTED
    assert control.agree(control.offer(agreed)) == agreed


@FEW
@given(
    st.one_of(
        header_values,
        st.text("0123456789abcdef", min_size=31, max_size=33),
        st.text("0123456789ABCDEFg\n", max_size=34),
    )
)
@example("0" * 32 + "\n")
@example("\u0660" * 32)
def test_a_session_id_is_32_hexadecimal_digits(value: str) -> None:
    assert (control.session_id(value) is not None) == (len(value) == 32 and set(value) <= set("0123456789abcdef"))


@FEW
@given(header_values, header_values, header_values, cuts)
def test_any_headers_make_a_visit(features: str, session: str, yields: str, places: list[int]) -> None:
    """Through the head's parser, which may find fault with it, too."""
    fields = (("x-tun-features", features), ("x-tun-session", session), ("x-tun-yield", yields))
    lines = ["GET /ip HTTP/1.1", "Host: h", *(f"{name}: {value}" for name, value in fields), "", ""]
    parser, read_head = RequestParser(), None
    try:
        for part in cut("\r\n".join(lines).encode("latin-1"), places):
            read_head = parser.feed(part)
    except PeerError:
        return
    assert read_head is not None
    hello = ClientHello.of(read_head[0].headers)
    assert hello.features <= control.SUPPORTED
    assert hello.yields
    assert hello.session_id in (None, session.strip(" \t"))
