"""A tunnel over a slow link that TCP fills: others' packets still get through in time.

What is asserted is queueing, which the link causes: tens of milliseconds, whatever the machine has to do besides.
Run with ``-s`` for the table.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Lab

from .slow_link import PAYLOAD_SHARE, UnderLoad, plain_relay, slow_link, under_load
from .worlds import UPLOADING, client_config, running, server_config

pytestmark = pytest.mark.netns

LINK_MBIT_S = 20


def measure(lab: Lab, name: str, congestion: str, *, relay: bool = False) -> dict[str, UnderLoad]:
    """Both directions, each printed as a row of the table."""
    server, client = slow_link(lab, mbit_s=LINK_MBIT_S, congestion=congestion)
    rows: dict[str, UnderLoad] = {}
    with ExitStack() as stack:
        if relay:
            stack.enter_context(plain_relay(server, client, congestion))
        else:
            stack.enter_context(running(server, server_config()))
            stack.enter_context(running(client, client_config(), until=UPLOADING))
        for way in ("up", "down"):
            rows[way] = under_load(server, client, down=way == "down")
            print(f"{name:28} {way:4} {rows[way]}")
    return rows


def test_a_full_link_keeps_its_latency(lab: Lab) -> None:
    print(f"\n{LINK_MBIT_S} Mbit/s, 40 ms, 128 KiB queue: median, 95 %, max added to a ping; lost; one TCP stream")
    relay = measure(lab, "plain relay, cubic", "cubic", relay=True)
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text("ascii").split()
    for congestion in (it for it in ("cubic", "bbr") if it in available):
        for way, row in measure(lab, f"tapotun, host has {congestion}", congestion).items():
            assert row.median_ms < 30, (congestion, way, row)
            assert row.p95_ms < 60, (congestion, way, row)
            # Without a tunnel TCP gets PAYLOAD_SHARE of the link; a tunnel has headers within headers.
            assert row.mbit_s > 0.9 * PAYLOAD_SHARE * LINK_MBIT_S, (congestion, way, row)
            assert row.median_ms < relay[way].median_ms / 4, (congestion, way, row, relay[way])
            assert row.mbit_s > 0.9 * relay[way].mbit_s, (congestion, way, row, relay[way])
