"""wire.tunconf: both generations there and back, and nothing but PeerError for what is neither."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.tunconf import TunConf, decode, encode_generation_1, encode_generation_2

usable_addresses = st.ip_addresses(v=4).filter(
    lambda ip: int(ip) >> 24 not in (0, 127, *range(224, 240)) and int(ip) != 0xFFFFFFFF
)
mtus = st.integers(68, 65535)
prefixes = st.integers(0, 32)
networks = st.builds(lambda ip, prefix: IPv4Network((ip, prefix), strict=False), st.ip_addresses(v=4), prefixes)


@st.composite
def confs(draw: st.DrawFn) -> TunConf:
    prefix = draw(prefixes)
    addresses = draw(st.lists(usable_addresses, min_size=1, max_size=5, unique=True))
    routes = draw(st.lists(networks, max_size=5, unique=True))
    return TunConf(draw(mtus), tuple(IPv4Interface((ip, prefix)) for ip in addresses), tuple(routes))


@settings(deadline=None)
@given(mtus, usable_addresses, prefixes)
def test_generation_1_there_and_back(mtu: int, ip: IPv4Address, prefix: int) -> None:
    address = IPv4Interface((ip, prefix))
    assert decode(encode_generation_1(mtu, address)) == TunConf(mtu, (address,))


@settings(deadline=None)
@given(confs())
def test_generation_2_there_and_back(conf: TunConf) -> None:
    assert decode(encode_generation_2(conf)) == conf


def test_generation_2_at_its_largest() -> None:
    conf = TunConf(
        1500,
        tuple(IPv4Interface((0x0A000001 + n, 8)) for n in range(255)),
        tuple(IPv4Network((n << 24, 8)) for n in range(255)),
    )
    assert decode(encode_generation_2(conf)) == conf


def packed(text: str) -> str:
    """Base64 of bytes in hexadecimal, with blanks between the fields."""
    return base64.b64encode(bytes.fromhex(text)).decode()


@pytest.mark.parametrize(
    ("value", "conf"),
    [
        # mtu 1500 = 05dc, little-endian; prefix 24; address in network order
        (packed("dc05 18 0a0a0002"), TunConf(1500, (IPv4Interface("10.10.0.2/24"),))),
        ("3AUYCgoAAg==", TunConf(1500, (IPv4Interface("10.10.0.2/24"),))),
        (packed("dc05 18 01 0a0a0002 00"), TunConf(1500, (IPv4Interface("10.10.0.2/24"),))),
        (
            packed("7805 20 02 0a0a0002 0a0a0003 02 0a3c0000 10 00000000 00"),
            TunConf(
                1400,
                (IPv4Interface("10.10.0.2/32"), IPv4Interface("10.10.0.3/32")),
                (IPv4Network("10.60.0.0/16"), IPv4Network("0.0.0.0/0")),
            ),
        ),
        # A deployed server's route with host bits, and one that it pushes twice.
        (
            packed("dc05 18 01 0a0a0002 02 0a3c0009 10 0a3c0000 10"),
            TunConf(1500, (IPv4Interface("10.10.0.2/24"),), (IPv4Network("10.60.0.0/16"),)),
        ),
        (packed("4400 00 0a0a0002"), TunConf(68, (IPv4Interface("10.10.0.2/0"),))),
    ],
)
def test_layout(value: str, conf: TunConf) -> None:
    assert decode(value) == conf


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "has 0 bytes"),
        ("!!!", "not base64"),
        ("3AUYCgoAAg", "not base64"),  # without its padding
        (" 3AUYCgoAAg==", "not base64"),
        ("3AUYCgoAAg==\n", "not base64"),
        ("3AUYCgoAAg==, 3AUYCgoAAg==", "not base64"),  # the header twice, as an HTTP parser joins it
        ("3AUYCgoAA\u00e9==", "not base64"),
        (packed("dc05 18 0a0a00"), "has 6 bytes"),
        (packed("dc05 18 0a0a0002 00"), "neither generation"),
        (packed("4300 18 0a0a0002"), "MTU 67"),
        (packed("dc05 21 0a0a0002"), "prefix length 33"),
        (packed("dc05 18 00 00 00 00"), "address 0.0.0.0"),
        (packed("dc05 18 00 01 02 03"), "address 0.1.2.3"),
        (packed("dc05 18 7f000001"), "address 127.0.0.1"),
        (packed("dc05 18 e0000001"), "address 224.0.0.1"),
        (packed("dc05 18 ffffffff"), "address 255.255.255.255"),
        (packed("dc05 18 00 00 0a0a0002 0a"), "neither generation"),  # no address
        (packed("dc05 18 01 0a0a0002 01 0a3c0000 21"), "prefix length 33"),
        (packed("dc05 18 01 0a0a0002 01 0a3c0000"), "neither generation"),
        (packed("dc05 18 01 0a0a0002 00 00"), "neither generation"),
        (packed("dc05 18 ff 0a0a0002 00"), "neither generation"),
        (packed("dc05 18 02 0a0a0002 0a0a0002 00"), "an address twice"),
    ],
)
def test_refused(value: str, says: str) -> None:
    with pytest.raises(PeerError, match=says) as caught:
        decode(value)
    assert caught.value.reason == "bad-conf"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=60))
def test_any_value_raises_peer_error_at_most(value: str) -> None:
    try:
        conf = decode(value)
    except PeerError:
        return
    assert conf.addresses
    assert 68 <= conf.mtu <= 65535
