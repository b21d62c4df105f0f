"""What crossed an interface: tcpdump's capture as a list of packets."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from .errors import HarnessError, wait_until
from .host import Host
from .process import Process

CATCH_UP_S: Final = 30.0  # no promise of a speed, the machine may be busy

# Bytes before the IP packet, by link type (https://www.tcpdump.org/linktypes.html).
_LINK_HEADER_BYTES: Final = {1: 14, 12: 0, 101: 0, 113: 16, 276: 20}
_IP_ETHERTYPES: Final = (0x0800, 0x86DD)
_ETHERTYPE_OFFSET: Final = {1: 12, 113: 14, 276: 0}
_ETHERNET: Final = 1


@dataclass(frozen=True)
class Packet:
    """An IP packet as the interface saw it: a super-packet before segmentation is one packet.

    `data` begins with the IP header; `time_s` is the kernel's clock.
    """

    time_s: float
    data: bytes = field(repr=False)

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.data[0] >> 4

    @property
    def length(self) -> int:
        """Bytes of the whole IP packet, as captured."""
        return len(self.data)

    @property
    def header_bytes(self) -> int:
        """Where the next layer begins (IPv6 extension headers count as the next layer)."""
        return (self.data[0] & 0x0F) * 4 if self.version == 4 else 40

    @property
    def protocol(self) -> int:
        """1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6 ..."""
        return self.data[9 if self.version == 4 else 6]

    @property
    def source(self) -> IPv4Address | IPv6Address:
        """Source address."""
        return ip_address(self.data[12:16] if self.version == 4 else self.data[8:24])

    @property
    def destination(self) -> IPv4Address | IPv6Address:
        """Destination address."""
        return ip_address(self.data[16:20] if self.version == 4 else self.data[24:40])

    @property
    def is_fragment(self) -> bool:
        """IPv4: more fragments follow, or this is not the first."""
        return self.version == 4 and int.from_bytes(self.data[6:8], "big") & 0x3FFF != 0

    @property
    def dont_fragment(self) -> bool:
        """IPv4: the DF bit."""
        return self.version == 4 and self.data[6] & 0x40 != 0

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination} protocol {self.protocol}, {self.length} bytes"


class Capture:
    """A running or finished capture. Packets may be looked at while it runs."""

    def __init__(self, file: Path, process: Process) -> None:
        """Made by `capture`."""
        self._file = file
        self._process = process

    @property
    def packets(self) -> list[Packet]:
        """All packets that have crossed the interface so far, in order. Raises WaitError."""
        self._catch_up()
        return self._read()

    @property
    def frames(self) -> list[bytes]:
        """All Ethernet frames so far, in order, whatever they carry, with their VLAN tags. Raises WaitError."""
        self._catch_up()
        return self._read_frames()

    def count(self, wanted: Callable[[Packet], bool] = lambda packet: True) -> int:
        """How many packets so far are of that kind."""
        return sum(wanted(packet) for packet in self.packets)

    def wait_for(
        self, number: int = 1, wanted: Callable[[Packet], bool] = lambda packet: True, timeout: float = 5.0
    ) -> list[Packet]:
        """Wait until `number` packets of that kind are there, at most `timeout` seconds; return these.

        Raises WaitError, which lists what was captured instead.
        """

        def probe() -> list[Packet] | None:
            self._process.check_running()
            found = [packet for packet in self._read() if wanted(packet)]
            return found if len(found) >= number else None

        return wait_until(probe, timeout, f"{number} packets in {self._process.name}", self._overview)

    def wait_for_frames(self, wanted: Callable[[bytes], bool], number: int = 1, timeout: float = 5.0) -> list[bytes]:
        """As `wait_for`, for Ethernet frames. Raises WaitError."""

        def probe() -> list[bytes] | None:
            self._process.check_running()
            found = [frame for frame in self._read_frames() if wanted(frame)]
            return found if len(found) >= number else None

        return wait_until(probe, timeout, f"{number} frames in {self._process.name}", self._overview_of_frames)

    def _catch_up(self) -> None:
        """Wait until every packet that has crossed the interface so far is in the file."""
        now_s = time.time()

        def has_caught_up() -> bool:
            # tcpdump sleeps only while the kernel has nothing for it. On a busy interface it may never do.
            return (
                not self._process.running
                or self._process.state == "S"
                or any(packet.time_s > now_s for packet in self._read()[-1:])
            )

        wait_until(has_caught_up, CATCH_UP_S, f"{self._process.name} to catch up", self._process.tail)

    def finish(self) -> None:
        """Stop it when it has all packets. What the kernel still has for tcpdump when that ends is lost."""
        self._catch_up()
        self._process.stop(with_signal=signal.SIGINT)

    def _read(self) -> list[Packet]:
        return list(read_pcap(self._file))

    def _read_frames(self) -> list[bytes]:
        return [bytes(frame) for link_type, _, frame in _records(self._file) if link_type == _ETHERNET]

    def _overview_of_frames(self) -> str:
        frames = self._read_frames()
        lines = (f"  {len(frame)} bytes: {frame[:64].hex()}" for frame in frames[:25])
        return "\n".join([f"{len(frames)} frames were captured:", *lines])

    def _overview(self) -> str:
        packets = self._read()
        return "\n".join([f"{len(packets)} packets were captured:", *(f"  {packet}" for packet in packets[:25])])


@contextmanager
def capture(host: Host, interface: str, expression: str = "", *, snap_bytes: int = 262144) -> Iterator[Capture]:
    """Capture on an interface of a host (``"any"`` for all), with a pcap filter such as ``"tcp port 80"``.

    It runs when the body begins, and its packets stay readable afterwards for as long as the host exists.
    Raises ProcessError with tcpdump's words, e.g. for a bad filter.
    """
    number = len(host.processes)
    file = host.tmp / f"{number}.pcap"
    # Immediate mode and -U: each packet is in the file as soon as it was seen. -Z root: a Debian tcpdump
    # would become a user who may not write there.
    argv = ["tcpdump", "-i", interface, "-n", "-U", "--immediate-mode", "-Z", "root"]
    argv += ["-B", "16384", "-s", str(snap_bytes), "-w", str(file), expression]
    with host.start(argv, name=f"tcpdump-{interface}") as process:
        process.wait_for_log("listening on")
        captured = Capture(file, process)
        yield captured
        captured.finish()
    if lost := _lost(process.log):
        raise HarnessError(f"{process.name} lost {lost} packets, so its capture proves nothing")


def _lost(log: str) -> int:
    """Packets that the kernel could not hand over, from tcpdump's last words."""
    for line in log.splitlines():
        if line.endswith("dropped by kernel"):
            return int(line.split()[0])
    return 0


def read_pcap(file: Path) -> Iterator[Packet]:
    """The IP packets of a capture file in tcpdump's own format; a last one still being written is left out."""
    for link_type, time_s, frame in _records(file):
        if link_type in _ETHERTYPE_OFFSET:
            (ethertype,) = struct.unpack_from("!H", frame, _ETHERTYPE_OFFSET[link_type])
            if ethertype not in _IP_ETHERTYPES:
                continue
        yield Packet(time_s, bytes(frame[_LINK_HEADER_BYTES[link_type] :]))


def _records(file: Path) -> Iterator[tuple[int, float, memoryview]]:
    """Link type, time and frame of what was captured.

    pcap: magic u32, versions 2 x u16, 2 x u32, snap length u32, link type u32; then for each packet
    seconds u32, microseconds u32, captured u32, original u32, bytes. Host byte order.
    """
    content = memoryview(file.read_bytes()) if file.exists() else memoryview(b"")
    if len(content) < 24:
        return
    magic, link_type = struct.unpack_from("=I", content, 0)[0], struct.unpack_from("=I", content, 20)[0]
    if magic != 0xA1B2C3D4 or link_type not in _LINK_HEADER_BYTES:
        raise HarnessError(f"{file}: not a capture that this understands (link type {link_type})")
    position = 24
    while position + 16 <= len(content):
        seconds, microseconds, captured, _original = struct.unpack_from("=4I", content, position)
        frame = content[position + 16 : position + 16 + captured]
        position += 16 + captured
        if len(frame) < captured:
            return
        yield link_type, seconds + microseconds / 1e6, frame
