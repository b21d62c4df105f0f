"""wire.control and wire.params: what extended ends tell each other, there and back, and any bytes in between."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire import control, params
from tapotun_trio.wire.body import CloseBody
from tapotun_trio.wire.frames import FrameReader
from tapotun_trio.wire.params import KEEPALIVE_S, Params
from tapotun_trio.wire.settings import MIN_IPV6_MTU_BYTES, TAP_MTU_BYTES, InterfaceSettings

from ..tables import table

# ------------------------------------------------------------------ frames


@table(
    "encoded layout",
    # length 1, kind, len: u32, payload; all little-endian
    ("an unknown kind", control.encode(200, b"abc"), "0100 c8 03000000 616263"),
    ("no payload", control.encode(control.UPLOAD_SEEN), "0100 04 00000000"),
    ("PING", control.ping(0x1122334455667788), "0100 02 08000000 8877665544332211"),
    ("BYE", control.bye("é"), "0100 05 02000000 c3a9"),
)
def test_layout(encoded: bytes, layout: str) -> None:
    assert encoded == bytes.fromhex(layout)


def test_kinds_are_those_of_the_protocol() -> None:
    kinds = (control.PARAMS, control.PING, control.PONG, control.UPLOAD_SEEN, control.BYE)
    assert kinds == (1, 2, 3, 4, 5)


def test_the_longest_frame_fits_a_reader() -> None:
    longest = control.encode(9, bytes(control.MAX_PAYLOAD_BYTES))
    reader = FrameReader(CloseBody(), control=True)
    assert reader.prime(longest) == []
    assert reader.controls == [(9, bytes(control.MAX_PAYLOAD_BYTES))]


@given(st.integers(0, 2**64 - 1))
def test_a_pong_brings_the_clock_back(clock_ns: int) -> None:
    reader = FrameReader(CloseBody(), control=True)
    reader.prime(control.ping(clock_ns))
    [(kind, payload)] = reader.controls
    assert kind == control.PING
    assert control.echoed_clock(payload) == clock_ns


@given(st.binary(max_size=20))
def test_a_pong_of_another_length_is_refused(payload: bytes) -> None:
    if len(payload) == 8:
        assert control.echoed_clock(payload) >= 0
        return
    with pytest.raises(PeerError):
        control.echoed_clock(payload)


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text().map(str.encode))
@example(b"\x1b[2J\n\xe2\x80\xa8\xe2\x80\xae\x85")
@example(b"\xc3")
@example(bytes(3000))
def test_a_bye_is_fit_for_a_log_line(payload: bytes) -> None:
    text = control.bye_reason(payload)
    assert text
    assert text.isprintable()
    assert len(text) <= 2000  # 200 characters, each of them escaped at worst


def test_the_reason_of_a_bye() -> None:
    assert control.bye_reason("größer".encode()) == "größer"
    assert control.bye_reason(b"") == "no reason given"


# ------------------------------------------------------------------ headers


@table(
    "value features",
    ("no header: a base peer", None, set()),
    ("empty", "", set()),
    ("the one", "ctl", {"ctl"}),
    ("among others", "uso, ctl,inet6 ,,tap", {"ctl", "inet6", "tap"}),
    ("in capitals", " CTL ", {"ctl"}),
    ("unknown", "ctl2, xctl, c t l", set()),
)
def test_agree(value: str | None, features: set[str]) -> None:
    assert control.agree(value) == features


def test_an_offer_is_agreed_to() -> None:
    assert control.agree(control.offer()) == control.SUPPORTED


@table(
    "value accepted",
    ("a session id", "0123456789abcdef" * 2, True),
    ("none", None, False),
    ("empty", "", False),
    ("in capitals", "0123456789ABCDEF" * 2, False),
    ("too short", "0" * 31, False),
    ("too long", "0" * 33, False),
    ("with a line end, which $ would let pass", "0" * 32 + "\n", False),
    ("with digits of another script", "\u0661" * 32, False),
    ("given twice, as an HTTP parser joins it", "0" * 32 + ", " + "0" * 32, False),
)
def test_session_id(value: str | None, accepted: bool) -> None:
    assert control.session_id(value) == (value if accepted else None)


# ------------------------------------------------------------------ PARAMS

interfaces = st.one_of(
    st.builds(lambda ip, prefix: IPv4Interface((ip, prefix)), st.integers(0x0A000000, 0x0AFFFFFF), st.integers(0, 32)),
    st.builds(
        lambda ip, prefix: IPv6Interface((ip, prefix)), st.integers(0x2001 << 112, 0x2002 << 112), st.integers(0, 128)
    ),
)
networks = st.one_of(
    st.builds(lambda ip, prefix: IPv4Network((ip, prefix), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda ip, prefix: IPv6Network((ip, prefix), strict=False), st.ip_addresses(v=6), st.integers(0, 128)),
)


@settings(deadline=None)
@given(
    st.builds(
        Params,
        mtu=st.integers(68, 65535),
        addresses=st.lists(interfaces, max_size=4, unique_by=lambda it: it.ip).map(tuple),
        routes=st.lists(networks, max_size=4, unique=True).map(tuple),
        dns=st.lists(st.ip_addresses(), max_size=3, unique=True).map(tuple),
        device=st.sampled_from(["tun", "tap"]),
        keepalive=st.floats(*KEEPALIVE_S),
    )
    .filter(lambda told: told.mtu >= MIN_IPV6_MTU_BYTES or all(it.version == 4 for it in told.addresses))
    .filter(lambda told: told.addresses or told.device == "tap")
    .filter(lambda told: told.device == "tun" or TAP_MTU_BYTES[0] <= told.mtu <= TAP_MTU_BYTES[1])
)
def test_params_there_and_back(told: Params) -> None:
    assert params.decode(params.encode(told)) == told


def payload(**changes: object) -> bytes:
    """PARAMS in JSON; a field that is changed to None is left out."""
    fields = {"mtu": 1500, "addresses": ["10.0.0.2/24"], **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_params_of_a_newer_server() -> None:
    told = Params(mtu=1500, addresses=(IPv4Interface("10.0.0.2/24"),))
    assert params.decode(payload(search=["example.com"], addresses7=["2001:db8::2/64"])) == told


def test_params_of_both_families() -> None:
    told = params.decode(
        payload(
            addresses=["2001:db8::2/64", "10.0.0.2/24"],
            routes=["10.1.0.0/16", "2001:db8:1::/48", "10.1.0.0/16"],
            dns=["10.0.0.1", "2001:db8::1"],
            device="tap",
        )
    )
    assert told.addresses == (IPv6Interface("2001:db8::2/64"), IPv4Interface("10.0.0.2/24"))
    assert told.routes == (IPv4Network("10.1.0.0/16"), IPv6Network("2001:db8:1::/48"))
    assert told.dns == (IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1"))
    assert told.device == "tap"


def test_params_of_a_tap_interface_may_have_no_address() -> None:
    told = params.decode(payload(addresses=[], device="tap"))
    assert (told.device, told.settings) == ("tap", InterfaceSettings(1500, ()))
    told = params.decode(payload(addresses=["fd00::2/64"], device="tap"), ipv6=False)
    assert told.addresses == ()


def test_a_tap_interface_gets_no_routes() -> None:
    told = params.decode(payload(routes=["10.1.0.0/16"], device="tap"))
    assert told.settings == InterfaceSettings(1500, (IPv4Interface("10.0.0.2/24"),))


@table(
    "data",
    ("nothing", b""),
    ("no JSON", b"{"),
    ("no object", b"[]"),
    ("not UTF-8", b'{"mtu":1500,"addresses":["\xff"]}'),
    ("half a surrogate", b'{"mtu":1500,"addresses":["\\ud800"]}'),
    ("no MTU", payload(mtu=None)),
    ("an MTU below what every link carries", payload(mtu=67)),
    ("an MTU above what a frame carries", payload(mtu=65536)),
    ("a negative MTU", payload(mtu=-1)),
    ("an MTU of many digits", payload(mtu=int("9" * 4000))),
    ("an MTU as text", payload(mtu="1500")),
    ("no address", payload(addresses=[])),
    ("no address, and a TUN interface", payload(addresses=[], device="tun")),
    ("an address twice on a TAP interface", payload(addresses=["10.0.0.2/24", "10.0.0.2/8"], device="tap")),
    ("a multicast address on a TAP interface", payload(addresses=["224.0.0.1/4"], device="tap")),
    ("a link-local address of IPv6 on a TAP interface", payload(addresses=["fe80::1/64"], device="tap")),
    ("no list of addresses on a TAP interface", payload(addresses=None, device="tap")),
    ("an MTU on a TAP interface that takes IPv6 away from its bridge", payload(addresses=[], device="tap", mtu=1279)),
    ("an MTU on a TAP interface that leaves no room for the header", payload(addresses=[], device="tap", mtu=65522)),
    ("a long keepalive on a TAP interface", payload(addresses=[], device="tap", keepalive=51)),
    ("an address that is none", payload(addresses=["10.0.0.300/24"])),
    ("a link-local address of IPv6", payload(addresses=["fe80::1/64"])),
    ("a multicast address of IPv6", payload(addresses=["ff02::1/64"])),
    ("the unspecified address of IPv6", payload(addresses=["::/0"])),
    ("the loopback address of IPv6", payload(addresses=["::1/128"])),
    ("an IPv4-mapped address", payload(addresses=["::ffff:10.0.0.2/120"])),
    ("an IPv6 address twice", payload(addresses=["fd00::2/64", "fd00:0::2/64"])),
    ("an address with a zone", payload(addresses=["fd00::2%eth0/64"])),
    ("a route with a zone", payload(routes=["fd00::%eth0/64"])),
    ("a name server with a zone", payload(dns=["fe80::1%eth0"])),
    ("a route of IPv6 with host bits", payload(routes=["fd00::1/64"])),
    ("an MTU below what IPv6 needs", payload(mtu=1279, addresses=["10.0.0.2/24", "fd00::2/64"])),
    ("a loopback address, as in x-tun-conf", payload(addresses=["127.0.0.1/8"])),
    ("the unspecified address", payload(addresses=["0.0.0.0/0"])),
    ("a multicast address", payload(addresses=["224.0.0.1/4"])),
    ("the broadcast address", payload(addresses=["255.255.255.255/32"])),
    ("an address twice", payload(addresses=["10.0.0.2/24", "10.0.0.2/24"])),
    ("a route that is none", payload(routes=["10.0.0.0/33"])),
    ("a name server that is none", payload(dns=["ns.example.com"])),
    ("a name server with a prefix", payload(dns=["10.0.0.1/24"])),
    ("an unknown kind of device", payload(device="can")),
    ("a device that is a number", payload(device=1)),
    ("a keepalive that never ends", payload(keepalive=51)),
    ("a keepalive that floods", payload(keepalive=0)),
    ("infinity", b'{"mtu":1500,"addresses":["10.0.0.2/24"],"keepalive":1e999}'),
    ("NaN", b'{"mtu":1500,"addresses":["10.0.0.2/24"],"keepalive":NaN}'),
    ("arrays in arrays, within a field that is skipped", payload()[:-1] + b',"x":' + b"[" * 20_000),
    ("objects in objects", payload()[:-1] + b',"x":' + b'{"a":' * 9_000),
)
def test_params_refused(data: bytes) -> None:
    assert len(data) <= control.MAX_PAYLOAD_BYTES
    with pytest.raises(PeerError) as caught:
        params.decode(data)
    assert caught.value.reason == "bad-params"


def test_params_of_ipv6_without_an_agreement_are_ignored() -> None:
    """A server that names them all the same is not believed, whatever else is wrong with them."""
    data = payload(
        mtu=1000,
        addresses=["fd00::2/64", "10.0.0.2/24", "ff02::1/8"],
        routes=["10.1.0.0/16", "::/0"],
        dns=["fd00::1", "10.0.0.1"],
    )
    told = params.decode(data, ipv6=False)
    assert told.dns == (IPv4Address("10.0.0.1"),)
    assert told.settings == InterfaceSettings(1000, (IPv4Interface("10.0.0.2/24"),), (IPv4Network("10.1.0.0/16"),))
    with pytest.raises(PeerError, match="no address"):
        params.decode(payload(addresses=["fd00::2/64"]), ipv6=False)


@pytest.mark.parametrize("mtu", TAP_MTU_BYTES)
def test_params_of_a_tap_interface_with_the_smallest_and_the_largest_mtu(mtu: int) -> None:
    assert params.decode(payload(addresses=[], device="tap", mtu=mtu)).mtu == mtu
    for wrong in (68, 1279, 65522, 65535):
        with pytest.raises(PeerError, match=f"MTU {wrong}, and a TAP interface needs 1280 to 65513"):
            params.decode(payload(addresses=[], device="tap", mtu=wrong))


def test_the_text_of_a_refusal_is_short() -> None:
    with pytest.raises(PeerError) as caught:
        params.decode(payload(addresses=["z" * 40_000]))
    assert len(str(caught.value)) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("10.0.0.2/24"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
nearly_params = st.fixed_dictionaries(
    {},
    optional={
        "mtu": st.just(1500) | json_values,
        "addresses": st.sampled_from([["10.0.0.2/24"], ["fd00::2/64", "10.0.0.2/24"], ["fe80::1%x/64"]]) | json_values,
        "routes": st.lists(st.sampled_from(["10.0.0.0/8", "::/0", "x", "10.0.0.1/8", "fd00::%x/8"]), max_size=2)
        | json_values,
        "dns": st.lists(st.sampled_from(["10.0.0.1", "::1", "x", "::1%eth0"]), max_size=2) | json_values,
        "device": st.sampled_from(["tun", "tap", "can"]) | json_values,
        "keepalive": st.just(10) | json_values,
        "more": json_values,
    },
)


@settings(max_examples=200, deadline=None)
@given(nearly_params.map(lambda fields: json.dumps(fields).encode()) | st.binary(max_size=100))
def test_any_params_raise_peer_error_at_most(data: bytes) -> None:
    try:
        told = params.decode(data)
    except PeerError:
        return
    assert 68 <= told.mtu <= 65535
    assert told.addresses or told.device == "tap"
    assert KEEPALIVE_S[0] <= told.keepalive <= KEEPALIVE_S[1]


@given(st.integers(0, 999_999_999))
def test_an_upload_s_number_comes_back(number: int) -> None:
    assert control.upload_number(str(number)) == number
    kind, payload = control.CONTROL.unpack_from(control.upload_seen(number))[1], control.upload_seen(number)[7:]
    assert kind == control.UPLOAD_SEEN
    assert control.seen_number(payload) == number


def test_an_upload_without_a_number() -> None:
    assert control.upload_seen(None) == control.encode(control.UPLOAD_SEEN)
    assert control.seen_number(b"") is None


@given(st.text(max_size=12))
def test_what_is_no_number(text: str) -> None:
    number = control.upload_number(text)
    assert number is None or (0 <= number <= 999_999_999 and text.isascii() and text.isdigit())


@given(st.binary(max_size=12))
def test_any_payload_of_an_upload_seen(payload: bytes) -> None:
    assert (control.seen_number(payload) is None) == (len(payload) != 4)
