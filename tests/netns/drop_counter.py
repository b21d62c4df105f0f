"""A daemon that prints, when it ends, how many packets of the checked stream it dropped on purpose.

The counters of `tapotun status` do not suffice: they count the packets of all flows together. TCP runs next to the
checked stream in these tests, and CoDel drops packets of TCP all the time. A packet of the checked stream may be
missing only if it was dropped on purpose itself.
"""

from __future__ import annotations

from typing import Final

from tests.harness import Process, wait_until

PORT: Final = 7000
"""The destination port of the checked stream."""

DROP_COUNTER: Final = f"""\
import atexit
from tapotun_trio.datapath.tx_queue import TxQueue

dropped = 0


def counting(drop):
    def drop_and_count(queue, *args):
        global dropped
        batch, at = queue.batches[0][2], queue.head_offset
        while at < len(batch):
            ipv4 = batch[at + 14] >> 4 == 4
            protocol, udp = (at + 23, at + 34) if ipv4 else (at + 20, at + 54)
            if batch[protocol] == 17 and batch[udp + 2 : udp + 4] == ({PORT}).to_bytes(2, "big"):
                dropped += 1
            at += 14 + int.from_bytes(batch[at : at + 2], "little")
            if drop is drop_frame:
                break
        drop(queue, *args)
    return drop_and_count


drop_frame = TxQueue.drop_frame
TxQueue.drop_frame, TxQueue.drop_oldest = counting(drop_frame), counting(TxQueue.drop_oldest)
atexit.register(lambda: print("dropped on purpose:", dropped))
"""
"""The sitecustomize module of such a daemon, for `injection`. A quick machine drops nothing for days, so
`tests/unit/test_drop_counter.py` checks that it still fits `TxQueue`."""


def dropped(daemon: Process) -> int:
    """How many packets of the checked stream a daemon with `DROP_COUNTER` has dropped, once it has stopped."""
    wait_until(lambda: "dropped on purpose: " in daemon.log, 10, "the count of dropped packets", daemon.tail)
    return int(daemon.log.rpartition("dropped on purpose: ")[2].split()[0])
