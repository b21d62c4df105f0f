"""client.large_ping; and what a client forgets when its path changes."""

from __future__ import annotations

import logging

from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.large_ping import LargePing
from tapotun_trio.wire import control

from .support import client_config


def test_one_for_each_download_until_one_is_answered() -> None:
    large, first, second = LargePing(), object(), object()
    assert large.take(first, 1) is None, "nothing fell silent"
    large.fell_silent()
    frame = large.take(first, 7)
    assert frame is not None
    assert large.take(first, 8) is None
    assert large.take(second, 9) is not None, "the first was not answered"
    assert not large.answered(bytes(8)), "of an ordinary PING"
    assert large.answered(bytes(3000))
    assert large.take(object(), 10) is None
    large.fell_silent()
    assert large.take(second, 11) is not None


def test_it_fills_segments() -> None:
    """And leaves a rest that is smaller than what is lost."""
    large = LargePing()
    large.fell_silent()
    frame = large.take(object(), 7)
    assert frame is not None
    assert 2 * 1448 < len(frame) < 2 * 1448 + 536
    assert len(frame) < control.MAX_PAYLOAD_BYTES


async def test_another_path_may_pass_more() -> None:
    client = TunnelClient(client_config("a", 1), logging.LoggerAdapter(logging.getLogger("tapotun"), {}))
    client.path_mtu.limits.reduce("192.0.2.1", 1448)
    assert client.path_mtu.limits.limit("192.0.2.1") is not None
    client.path_changed("the default route changed")
    assert client.path_mtu.limits.limit("192.0.2.1") is None
