"""A stretch of road: what the host routes into a TUN interface comes back out of it after a fixed time.

Run as a script: name of the interface, delay in milliseconds. Prints ``ready`` once the interface is up. It stands
alone, without trio: a packet costs about 10 us, which 20 Mbit/s both ways need.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Final

_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h, as the two flags
_IFF_TUN_NO_PI: Final = 0x1001
# What is due within so long goes now: select would come back too late anyway.
_EARLY_S: Final = 0.0002


def run(name: str, delay_s: float) -> None:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    # The queue of the road itself never drops. Where packets wait and are dropped is the shaper behind it.
    subprocess.run(["ip", "link", "set", name, "txqueuelen", "10000", "up"], check=True)
    with suppress(PermissionError):
        os.nice(-10)
    print("ready", flush=True)
    clock = time.monotonic
    under_way: deque[tuple[float, bytes]] = deque()
    while True:
        wait_s = max(0.0, under_way[0][0] - clock()) if under_way else None
        if wait_s is not None and wait_s <= _EARLY_S:
            with suppress(OSError):  # the kernel does not want it, as any router may drop a packet
                os.write(fd, under_way.popleft()[1])
            continue
        if select.select([fd], [], [], wait_s)[0]:
            due = clock() + delay_s
            with suppress(BlockingIOError):
                for _ in range(64):
                    under_way.append((due, os.read(fd, 65536)))


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]) / 1000)
