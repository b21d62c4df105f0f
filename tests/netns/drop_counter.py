"""A daemon that says at its end what it dropped on purpose: what may be missing of a checked stream, and no more."""

from __future__ import annotations

from typing import Final

from tests.harness import Process, wait_until

# The checked stream's port. Beside it CoDel may drop what it likes.
PORT: Final = 7000

TELLING: Final = f"""\
import atexit
from tapotun_trio.datapath.tx_queue import TxQueue

dropped = 0


def watching(drop):
    def dropping(queue, *args):
        global dropped
        batch, at = queue.batches[0][2], queue._head_offset
        while at < len(batch):
            dropped += batch[at + 23] == 17 and batch[at + 36 : at + 38] == ({PORT}).to_bytes(2, "big")
            at += 14 + int.from_bytes(batch[at : at + 2], "little")
            if drop is one:
                break
        drop(queue, *args)
    return dropping


one = TxQueue._drop_frame
TxQueue._drop_frame, TxQueue._drop_oldest = watching(one), watching(TxQueue._drop_oldest)
atexit.register(lambda: print("dropped on purpose:", dropped))
"""
"""For `injection`. A quick machine drops nothing for days: whether this still fits the queue is for
`tests/unit/test_drop_counter.py` to say."""


def dropped(daemon: Process) -> int:
    """How many packets of the checked stream a daemon that is `TELLING` has dropped, once it has stopped."""
    wait_until(lambda: "dropped on purpose: " in daemon.log, 10, "the daemon's last words", daemon.tail)
    return int(daemon.log.rpartition("dropped on purpose: ")[2].split()[0])
