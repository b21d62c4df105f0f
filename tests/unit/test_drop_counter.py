"""The drop counter of the rotation tests counts what a transmit queue drops of one UDP port, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from tapotun_trio.datapath.tx_queue import MAX_AGE_S
from tests.netns.drop_counter import DROP_COUNTER, PORT
from tests.packets import frame, ip

UDP: Final = 17
TCP: Final = 6


ADDRESSES: Final = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}


def batch(version: int) -> bytes:
    """Four packets; the first and the third are of that port."""

    def packet(protocol: int, port: int) -> bytes:
        rest = bytes(1000 if version == 4 else 980)  # so that frames are of one size
        return frame(ip(*ADDRESSES[version], bytes(2) + port.to_bytes(2, "big") + rest, protocol))

    return packet(UDP, PORT) + packet(UDP, PORT + 1) + packet(UDP, PORT) + packet(TCP, PORT)


DROPS: Final = {
    "one frame, as CoDel does": ("queue.put(batch, 4, 0)\nqueue.drop_frame('')", 1),
    "a batch too old": (f"queue.put(batch, 4, 0)\nqueue.expire({MAX_AGE_S + 1})", 2),
    "the rest of a batch": (f"queue.put(batch, 4, 0)\nqueue.take(0, 2500)\nqueue.expire({MAX_AGE_S + 1})", 1),
    "no room": ("[queue.put(batch * 1000, 4000, 0) for _ in range(4)]", 2000),
    "nothing": ("queue.put(batch, 4, 0)\nqueue.take(0, 100_000)", 0),
}


@pytest.mark.parametrize("version", ADDRESSES)
@pytest.mark.parametrize(("does", "count"), DROPS.values(), ids=DROPS)
def test_it_counts_what_is_dropped(does: str, count: int, version: int) -> None:
    made = f"batch, queue = {batch(version)!r}, TxQueue(Counter())"
    code = f"{DROP_COUNTER}\nfrom collections import Counter\n{made}\n{does}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    assert done.stdout == f"dropped on purpose: {count}\n"
