"""The native part of the data path: `pump_harness.c`, which says what is checked. This compiles it, and has its seeds.

It is a program of its own, of clang's libFuzzer with ASan and UBSan; the other targets are modules for atheris.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tapotun_trio.wire.body import chunk_head
from tapotun_trio.wire.frames import BASE_PING

HERE: Final = Path(__file__).resolve().parent
# Whole frames whose destinations the harness sends everywhere: see its `way_of`.
_ADDRESSES: Final = bytes((10, 0, 0, 2, 10, 0, 0))


def _frame(to: int, size: int = 20, vnet: bytes = bytes(12)) -> bytes:
    packet = b"\x45" + bytes(8) + b"\x06\0\0" + _ADDRESSES + bytes((to,)) + bytes(size - 20)
    return struct.pack("<H", size) + vnet + packet


def _frame6(to: int, size: int = 40, vnet: bytes = bytes(12), next_header: int = 6) -> bytes:
    packet = b"\x60" + bytes(5) + bytes((next_header,)) + bytes(12) + bytes((to,)) + bytes(20)
    return struct.pack("<H", size) + vnet + (packet + bytes(max(0, size - 40)))[:size]


def _sum(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF or 0xFFFF


def _segment(to: int, number: int, size: int, *, tcp: bool, port: int = 1, flags: int = 0x10) -> bytes:
    """A packet that may be merged with those of the numbers before."""
    body, protocol = bytes((number & 0xFF,)) * size, 6 if tcp else 17
    addresses = _ADDRESSES + bytes((to,))
    below = 20 + size if tcp else 8 + size
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + below, number, 0x4000, 64, protocol, 0) + addresses
    ip = ip[:10] + struct.pack("!H", _sum(ip) ^ 0xFFFF) + ip[12:]
    pseudo = _sum(addresses + struct.pack("!HH", protocol, below))
    if tcp:
        above = struct.pack("!HHIIBBHHH", port, 9, number * 64, 1, 5 << 4, flags, 500, pseudo, 0)
    else:
        above = struct.pack("!HHHH", port, 9, below, pseudo)
    return struct.pack("<HBBHHHHH", 20 + below, 1, 0, 0, 0, 20, 16 if tcp else 6, 0) + ip + above + body


def _segments(*, tcp: bool) -> bytes:
    """Of six flows in turn, whose destinations are _KNOWN; and what ends a run."""
    flows = [_segment(port & 4, number, 64, tcp=tcp, port=port) for number in range(20) for port in range(6)]
    ends = [_segment(4, 20, 9, tcp=tcp, port=5, flags=0x18), _frame(4), _segment(4, 0, 0, tcp=tcp, port=4)]
    return b"".join((*flows, *ends, *flows[:50]))


def _in_ethernet(frame: bytes, to: int, tagged: bool = False) -> bytes:
    """The packet of a frame in an Ethernet frame, maybe behind a tag."""
    size, flags, gso, header, mss, start, offset, _ = struct.unpack_from("<HBBHHHHH", frame)
    packet = frame[14:]
    head = b"\2\0\0\0\0" + bytes((to,)) + b"\2\0\0\0\0\x09" + (b"\x81\0\0\7" if tagged else b"")
    head += b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0"
    more = len(head)
    vnet = (flags, gso, header and header + more, mss, start and start + more, offset, 0)
    return struct.pack("<HBBHHHHH", size + more, *vnet) + head + packet


def _chunks(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(chunk_head(len(piece)) + piece + b"\r\n" for piece in pieces)


def _input(program: bytes, stream: bytes, *, ethernet: bool = False, tls: bytes = b"") -> bytes:
    """``tls``: how often the keys to each peer change, the size of records, which are other than data, which one is
    damaged, and when a cipher fails."""
    kind = (0x8000 if ethernet else 0) | (0x4000 if tls else 0)
    return struct.pack("<H", len(tls + program) | kind) + tls + program + stream


_TSO: Final = struct.pack("<BBHHHHH", 1, 1, 40, 1400, 20, 16, 0)
_TSO6: Final = struct.pack("<BBHHHHH", 1, 4, 60, 1400, 40, 16, 0)
_ALL: Final = b"".join(_frame(to, size) for to in range(8) for size in (20, 41, 100)) + BASE_PING
# As many frames as one turn takes, so that the harness has learned their destinations before what follows.
_KNOWN: Final = _frame(0) + _frame(4) * 1023
_STREAMS: Final = (
    _chunks(_ALL * 3, 5000),
    _chunks(_ALL, 7),
    _chunks(_frame(1) * 2000 + _frame(3) * 50 + _frame(0) * 100 + _frame(2) * 100, 1 << 17),
    _chunks((_frame(0, 9000, _TSO) + _frame(2, 60_000, _TSO)) * 4 + _ALL * 2, 70_000),
    _chunks(_ALL, 500) + b"1;x\r\nx\r\n0\r\n\r\n",
    _chunks(
        b"".join(_frame6(to, size) for to in range(8) for size in (39, 40, 41, 100)) * 3
        + (_frame6(0, 9000, _TSO6) + _frame6(2, 60_000, _TSO6)) * 3
        + _frame6(6, 9000, struct.pack("<BBHHHHH", 1, 4, 68, 1400, 48, 16, 0), 0) * 2
        + _ALL,
        70_000,
    ),
    _chunks(_KNOWN + _segments(tcp=False) + _segments(tcp=True), 70_000),
    _chunks(_KNOWN + _segments(tcp=True) + _frame(1) * 3 + _segments(tcp=False), 900),
    _chunks(_frame(0, 1400) * 20 + b"\1\0\2\x08\0\0\0" + bytes(8), 3000),
)
# Each step waits, with everything ready (stream, device, peers), and all calls take all; or with what is odd.
_PROGRAMS: Final = (
    bytes((0, 0, 0, 0, 0, 0, 0, 8, 8)) + bytes((15, 1, 0x02, 0)) * 60,
    bytes((0, 0, 0, 0, 0, 0, 0, 99, 99)) + bytes((15, 1, 0x3E, 0, 4, 0x45, 0x85, 0xC4)) * 50,
    bytes((0, 0, 0, 0, 0, 0, 0, 2, 2)) + bytes((15, 9, 0x36, 65, 40, 0xC8, 0x44, 0x80)) * 60,
    bytes(n * 37 & 0xFF for n in range(600)),
)
# Full records alone; short ones, with a KeyUpdate now and then; empty ones and a damaged one; a cipher that fails.
_TLS: Final = (
    bytes((31, 31, 0, 0, 0, 0)),
    bytes((1, 4, 7, 5, 0, 0)),
    bytes((3, 0, 40, 4, 5, 0)),
    bytes((9, 9, 1, 0, 0, 9)),
)
# Whatever it is read as: wait, the stream is ready, and brings all that it has.
_ALWAYS: Final = bytes((0, 0, 0, 0, 0, 0, 0, 8, 8)) + b"\x0a" * 200
# More small frames than one turn takes, so many that the buffer has to be cleared for what has come meanwhile.
_MANY: Final = _chunks(_frame(3) * 6020, 1 << 18) + _chunks(_frame(7) * 10_000, 1 << 18)
_ARP: Final = struct.pack("<H", 42) + bytes(12) + b"\xff" * 6 + b"\2\0\0\0\0\x09\x08\x06" + bytes(28)
_ETHERNET_ALL: Final = b"".join(
    _in_ethernet(make(to, size), to, tagged) + _ARP
    for make in (_frame, _frame6)
    for to in range(8)
    for size in (40, 60)
    for tagged in (False, True)
)
_ETHERNET_KNOWN: Final = _in_ethernet(_frame(0), 0) + _in_ethernet(_frame(4), 4) * 1023
_RUNT: Final = struct.pack("<H", 14) + bytes(26)


def _ethernet_segments(*, tcp: bool) -> bytes:
    """Of four flows in turn, two of them behind a tag; and what ends a run."""
    flows = [
        _in_ethernet(_segment(port & 4, number, 64, tcp=tcp, port=port), port & 4, tagged=port > 1)
        for number in range(20)
        for port in range(4)
    ]
    return b"".join((*flows, _ARP, *flows[:20], _in_ethernet(_segment(0, 5, 9, tcp=tcp), 0), *flows))


_ETHERNET_STREAMS: Final = (
    _chunks(_ETHERNET_ALL * 2, 5000),
    _chunks(_ETHERNET_ALL + _RUNT * 9, 7),
    _chunks(_ETHERNET_KNOWN + _ethernet_segments(tcp=False) + _ethernet_segments(tcp=True), 70_000),
    _chunks(_ETHERNET_KNOWN + _ethernet_segments(tcp=True) + _ARP * 3 + _ethernet_segments(tcp=False), 900),
    _chunks(
        b"".join(
            _in_ethernet(make(to, size, vnet), to, tagged)
            for make, vnet in ((_frame, _TSO), (_frame6, _TSO6))
            for to in (0, 2)
            for size in (9000, 60_000)
            for tagged in (False, True)
        )
        + _ETHERNET_ALL,
        70_000,
    ),
    _chunks(_in_ethernet(_frame(0, 1400), 0) * 20 + _RUNT + b"\x0d\0" + bytes(30), 3000),
)
# Found here: there was no memory for the rest of a chunk, and Python, which had not heard of it, sent behind its half.
_HALF_A_CHUNK: Final = bytes.fromhex("99010f0100040000000000050085c485c40f85c485c40085c485000f3e04c40ffafa85c4")
SEEDS: Final = [
    *[_input(program, stream) for program in _PROGRAMS for stream in _STREAMS],
    *[_input(program, stream, ethernet=True) for program in _PROGRAMS for stream in _ETHERNET_STREAMS],
    *[_input(program, stream, tls=tls) for program in _PROGRAMS for stream in _STREAMS for tls in _TLS],
    *[_input(_PROGRAMS[0], stream, ethernet=True, tls=_TLS[0]) for stream in _ETHERNET_STREAMS],
    _input(_ALWAYS, _MANY),
    _HALF_A_CHUNK,
    _input(_ALWAYS, _chunks(_frame(0, 60_000, _TSO) * 9, 1 << 18), tls=_TLS[0]),
]


def build(to: Path) -> None:
    """Compile it with clang. Raises CalledProcessError, FileNotFoundError."""
    to.parent.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_config_var("LIBDIR"))
    command = ["clang", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-I{sysconfig.get_path('include')}", str(HERE / "pump_harness.c"), "-o", str(to)]
    command += [f"-L{library}", f"-Wl,-rpath,{library}", f"-lpython{sysconfig.get_config_var('LDVERSION')}", "-lm"]
    subprocess.run(command, check=True)


def environment(of: dict[str, str]) -> dict[str, str]:
    """For the program: Python's own allocator would hide from ASan what is read behind an object."""
    return {**of, "PYTHONMALLOC": "malloc", "PYTHONHOME": sys.base_prefix}
