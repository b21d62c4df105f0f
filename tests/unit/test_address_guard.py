"""Protection against spoofed ARP and neighbour discovery: what a client may claim, and that nothing hides a claim."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.macs import BROADCAST, parse_mac
from tapotun_trio.routing.address_guard import AddressGuard, is_ordinary, learn_from_device
from tapotun_trio.routing.link_local import LinkLocalTable

MAC: Final = parse_mac("02:00:00:00:00:0a")
OTHER_MAC: Final = parse_mac("02:00:00:00:00:0b")
ARP, IPV4, IPV6, C_TAG, S_TAG = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8


def packed(text: str) -> bytes:
    return ip_address(text).packed


HUB4, A4, B4, FREE4 = map(packed, ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.99"))
HUB6, A6, B6, FREE6 = map(packed, ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::99"))
LINK_LOCAL, ALL_NODES, NOBODY = map(packed, ("fe80::a", "ff02::1", "::"))
NONE4: Final = bytes(4)
# Ports 0 and 1 have addresses; 2 has none.
A_PORT, B_PORT, PLAIN_PORT = 0, 1, 2
GUARD: Final = AddressGuard({A_PORT: frozenset({A4, A6}), B_PORT: frozenset({B4})}, frozenset({HUB4, HUB6}))


def nobodys(mac: bytes) -> int | None:
    """No MAC address is pinned."""
    return None


def ethernet(kind: int, payload: bytes, *tags: int) -> bytes:
    """A frame with these tags, the outer one first."""
    types = [*tags, kind]
    head = BROADCAST + MAC + types[0].to_bytes(2, "big")
    for inner in types[1:]:
        head += b"\0\x05" + inner.to_bytes(2, "big")
    return head + payload


def arp(sender: bytes, target: bytes, operation: int = 1, mac: bytes = MAC) -> bytes:
    return b"\0\1\x08\0\6\4" + operation.to_bytes(2, "big") + mac + sender + bytes(6) + target


def ipv6(source: bytes, destination: bytes, chain: bytes, first: int) -> bytes:
    return b"\x60\0\0\0" + len(chain).to_bytes(2, "big") + bytes([first, 255]) + source + destination + chain


def icmp(kind: int, target: bytes = b"") -> bytes:
    return bytes([kind, 0, 0, 0]) + bytes(4) + target


RS, RA, NS, NA, REDIRECT, ECHO = 133, 134, 135, 136, 137, 128


def refuses(port: int, frame: bytes) -> bool:
    """Also checks that nothing depends on what is behind the frame in the buffer, nor on the claim being looked at."""
    refused = GUARD.refuses(port, memoryview(frame), LinkLocalTable(nobodys), 0.0)
    if refused:
        assert not is_ordinary(memoryview(frame + bytes(64)), 0, len(frame)), "a frame that nobody would look into"
    return refused


WRAPS: Final = {
    "plain": (),
    "tagged": (C_TAG,),
    "service": (S_TAG,),
    "old": (0x9100,),
    "two": (S_TAG, C_TAG),
}


@pytest.mark.parametrize("tags", WRAPS.values(), ids=WRAPS.keys())
@pytest.mark.parametrize("operation", [1, 2])
def test_arp(tags: tuple[int, ...], operation: int) -> None:
    def claims(port: int, sender: bytes, target: bytes = FREE4) -> bool:
        return refuses(port, ethernet(ARP, arp(sender, target, operation), *tags))

    assert not claims(A_PORT, A4)
    for address in (B4, HUB4, FREE4):
        assert claims(A_PORT, address)
    # A client without an address may claim what nobody has.
    assert not claims(PLAIN_PORT, FREE4)
    for address in (A4, B4, HUB4):
        assert claims(PLAIN_PORT, address)
    # Probes: RFC 5227.
    assert not claims(A_PORT, NONE4, A4)
    assert claims(A_PORT, NONE4, B4)


@pytest.mark.parametrize("size", range(28))
def test_short_arp_hides_a_claim(size: int) -> None:
    assert refuses(A_PORT, ethernet(ARP, arp(A4, B4)[:size]))


@pytest.mark.parametrize("at", range(6))
def test_arp_of_another_kind_is_not_understood(at: int) -> None:
    packet = bytearray(arp(A4, B4))
    packet[at] ^= 1
    assert refuses(A_PORT, ethernet(ARP, bytes(packet)))


def test_arp_behind_snap_is_found() -> None:
    for organisation in (b"\0\0\0", b"\0\0\xf8"):
        snap = b"\xaa\xaa\3" + organisation + b"\x08\x06"
        frame = ethernet(len(snap) + 28, snap + arp(B4, A4))
        assert refuses(A_PORT, frame)
        assert not refuses(A_PORT, frame.replace(B4, A4))


def test_a_spanning_trees_frame_claims_nothing() -> None:
    assert not refuses(A_PORT, ethernet(38, b"\x42\x42\x03" + bytes(35)))


@pytest.mark.parametrize("tags", [(C_TAG,) * 3, (S_TAG, C_TAG, C_TAG), (S_TAG, S_TAG, S_TAG, C_TAG)])
def test_too_many_tags(tags: tuple[int, ...]) -> None:
    assert refuses(A_PORT, ethernet(ARP, arp(A4, B4), *tags))
    assert refuses(A_PORT, ethernet(IPV4, bytes(40), *tags))


# -- neighbour discovery


def discovers(port: int, kind: int, source: bytes, target: bytes = b"", *tags: int) -> bool:
    return refuses(port, ethernet(IPV6, ipv6(source, ALL_NODES, icmp(kind, target), 58), *tags))


@pytest.mark.parametrize("tags", WRAPS.values(), ids=WRAPS.keys())
def test_neighbours(tags: tuple[int, ...]) -> None:
    # An advertisement claims its target, and by its source where the answer goes.
    assert not discovers(A_PORT, NA, A6, A6, *tags)
    assert not discovers(A_PORT, NA, LINK_LOCAL, LINK_LOCAL, *tags)
    assert not discovers(A_PORT, NA, LINK_LOCAL, A6, *tags)
    for address in (B6, HUB6, FREE6):
        assert discovers(A_PORT, NA, A6, address, *tags)
        assert discovers(A_PORT, NA, address, A6, *tags)
    # A solicitation asks for its target, and claims its source.
    assert not discovers(A_PORT, NS, A6, HUB6, *tags)
    assert not discovers(A_PORT, NS, LINK_LOCAL, HUB6, *tags)
    assert discovers(A_PORT, NS, HUB6, A6, *tags)
    # Without a source it says which address it is about to use: RFC 4862.
    assert not discovers(A_PORT, NS, NOBODY, A6, *tags)
    assert discovers(A_PORT, NS, NOBODY, HUB6, *tags)
    assert not discovers(A_PORT, RS, NOBODY, b"", *tags)
    assert not discovers(A_PORT, RS, LINK_LOCAL, b"", *tags)
    assert discovers(A_PORT, RS, HUB6, b"", *tags)
    # Who was given an address is no router.
    for kind in (RA, REDIRECT):
        assert discovers(A_PORT, kind, LINK_LOCAL, FREE6, *tags)
        assert not discovers(PLAIN_PORT, kind, LINK_LOCAL, FREE6, *tags)
    # A redirect says at which MAC address its target is, whoever that is.
    assert not discovers(PLAIN_PORT, REDIRECT, LINK_LOCAL, LINK_LOCAL, *tags)
    for address in (A6, HUB6, A6[:-1]):
        assert discovers(PLAIN_PORT, REDIRECT, LINK_LOCAL, address, *tags)
        assert discovers(PLAIN_PORT, REDIRECT, HUB6, FREE6, *tags)
    assert not discovers(A_PORT, ECHO, HUB6, b"", *tags)
    # A client without an address may claim what nobody has.
    assert not discovers(PLAIN_PORT, NA, FREE6, FREE6, *tags)
    assert discovers(PLAIN_PORT, NA, FREE6, A6, *tags)


def test_a_client_with_ipv4_only_claims_no_address_of_ipv6_but_its_link_local() -> None:
    assert discovers(B_PORT, NA, FREE6, FREE6)
    assert not discovers(B_PORT, NA, LINK_LOCAL, LINK_LOCAL)


def extension(next_header: int, units: int = 0) -> bytes:
    return bytes([next_header, units]) + bytes(6 + 8 * units)


SPOOF: Final = icmp(NA, B6)


@given(st.lists(st.tuples(st.sampled_from([0, 43, 60, 135, 139, 140, 51]), st.integers(0, 3)), max_size=12))
def test_behind_any_extension_headers(kinds: list[tuple[int, int]]) -> None:
    """It is found, or there are more headers than anybody needs; an own claim is let through or dropped."""
    chain, header = b"", 58
    for kind, units in reversed(kinds):
        if kind == 51:
            chain = bytes([header, 2 * units]) + bytes(4 * (2 * units + 2) - 2) + chain
        else:
            chain = extension(header, units) + chain
        header = kind
    assert refuses(A_PORT, ethernet(IPV6, ipv6(A6, ALL_NODES, chain + SPOOF, header)))
    own = refuses(A_PORT, ethernet(IPV6, ipv6(A6, ALL_NODES, chain + icmp(NA, A6), header)))
    assert own == (len(kinds) >= 8)


@pytest.mark.parametrize("size", range(40 + 8 + 24))
def test_a_short_packet_hides_no_claim(size: int) -> None:
    packet = ipv6(A6, ALL_NODES, extension(58) + SPOOF, 0)
    assert refuses(A_PORT, ethernet(IPV6, packet[:size]))


def fragment(next_header: int, offset: int = 0, *, more: bool = True) -> bytes:
    return bytes([next_header, 0]) + (offset << 3 | more).to_bytes(2, "big") + bytes(4)


def test_fragments() -> None:
    def passes(chain: bytes) -> bool:
        return not refuses(A_PORT, ethernet(IPV6, ipv6(A6, ALL_NODES, chain, 44)))

    assert not passes(fragment(58) + icmp(NA, A6)), "RFC 6980: even an own one is not fragmented"
    assert not passes(fragment(58, more=False) + SPOOF)
    assert not passes(fragment(60) + extension(58) + SPOOF)
    assert not passes(fragment(58)), "the first fragment has no type"
    assert not passes(fragment(60) + extension(58)), "nor has this one"
    assert passes(fragment(58) + icmp(ECHO)), "a large ping"
    assert passes(fragment(58, offset=100) + bytes(64)), "and the rest of it"
    assert passes(fragment(17) + bytes(64))


# -- what needs no look


def test_ordinary_frames() -> None:
    def ordinary(frame: bytes) -> bool:
        return is_ordinary(memoryview(b"xx" + frame + b"\x06" * 64), 2, 2 + len(frame))

    for tags in ((), (C_TAG,)):
        assert ordinary(ethernet(IPV4, bytes(20), *tags))
        for header in (6, 17, 50, 132):
            assert ordinary(ethernet(IPV6, ipv6(A6, B6, bytes(20), header), *tags))
        for header in (0, 43, 44, 51, 58, 60, 135):
            assert not ordinary(ethernet(IPV6, ipv6(A6, B6, bytes(20), header), *tags))
        assert not ordinary(ethernet(ARP, arp(A4, B4), *tags))
        for size in range(7):
            short = ethernet(IPV6, ipv6(A6, B6, b"", 6)[:size], *tags)
            assert not ordinary(short), "what lies behind the frame is another's"
    for others in ((S_TAG,), (0x9100,), (C_TAG, C_TAG), (S_TAG, C_TAG)):
        assert not ordinary(ethernet(IPV4, bytes(40), *others)), "the plane's key has one tag of 802.1Q"
    for size in range(4):
        tag = (b"\0\5" + IPV4.to_bytes(2, "big"))[:size]
        frame = BROADCAST + MAC + C_TAG.to_bytes(2, "big") + tag
        assert not is_ordinary(memoryview(frame + b"\x08\0" * 9), 0, len(frame)), "half a tag"


@given(st.binary(min_size=14, max_size=120), st.sampled_from([A_PORT, PLAIN_PORT]))
def test_whatever_comes(frame: bytes, port: int) -> None:
    GUARD.refuses(port, memoryview(frame), LinkLocalTable(nobodys), 0.0)
    learn_from_device(memoryview(frame), LinkLocalTable(nobodys), 0.0)
    is_ordinary(memoryview(frame), 0, len(frame))


@given(st.binary(min_size=12, max_size=12), st.binary(max_size=100), st.sampled_from([ARP, IPV6, C_TAG, S_TAG]))
def test_whatever_comes_of_a_kind_that_is_looked_into(macs: bytes, rest: bytes, kind: int) -> None:
    frame = macs + kind.to_bytes(2, "big") + rest
    GUARD.refuses(A_PORT, memoryview(frame), LinkLocalTable(nobodys), 0.0)
    learn_from_device(memoryview(frame), LinkLocalTable(nobodys), 0.0)
