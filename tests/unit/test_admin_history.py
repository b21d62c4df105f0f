"""The history that the daemon keeps for the plots: what is in it, and that it stays small."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from math import nan
from typing import Any

import pytest
import trio
import trio.testing

from tapotun_trio.admin import history
from tapotun_trio.admin.history import KEPT, MAX_PEERS, STEP_S, History, Sample, keep_history, sample_in_steps
from tapotun_trio.cooperative import run_now
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.log import interface_logger
from tapotun_trio.peer.boottime import BootTime, boottime
from tapotun_trio.server.server import TunnelServer

from .support import allowed, server_config

SHOWN = KEPT - 1


def shown(kept: History) -> Any:
    return json.loads(b"".join(kept.document()))


def registry_of(*counts: int) -> Registry:
    """An interface for each number of clients, none of which is connected."""
    registry = Registry()
    for number, clients in enumerate(counts):
        names = [allowed(f"c{n}", f"10.10.{1 + n // 200}.{1 + n % 200}") for n in range(clients)]
        config = server_config(8080, *names)
        record = registry.add(config if number == 0 else replace(config, name=f"tun{number}"))
        record.tunnel = TunnelServer(config, interface_logger(record.config.name))
    return registry


def test_it_keeps_a_quarter_of_an_hour_and_no_more() -> None:
    kept, now = History(), boottime()
    for number in range(3 * KEPT):
        at = BootTime(now - (3 * KEPT - 1 - number) * STEP_S)
        kept.add(at, {("tun0", None): Sample(number, 2 * number, 1.5, 2.5)})
    found = shown(kept)
    assert found["step_s"] == STEP_S
    assert len(found["times_ms"]) == SHOWN == 15 * 60 / STEP_S
    assert abs(found["times_ms"][-1] - time.time() * 1e3) < 60_000
    steps = {late - early for early, late in zip(found["times_ms"], found["times_ms"][1:], strict=False)}
    assert all(abs(step - STEP_S * 1e3) <= 1 for step in steps)
    [series] = found["series"]
    assert (series["interface"], series["peer"]) == ("tun0", None)
    assert series["rx_bits_per_s"] == list(range(3 * KEPT - SHOWN, 3 * KEPT))
    assert series["tx_bits_per_s"][-1] == 2 * (3 * KEPT - 1)
    assert (series["rtt_ms"][-1], series["rtt_high_ms"][-1]) == (1.5, 2.5)


def test_a_gap_is_one_and_who_is_gone_long_enough_is_forgotten() -> None:
    kept = History()
    kept.add(boottime(), {("tun0", None): Sample(1, 1), ("tun1", None): Sample(7, 7)})
    for number in range(SHOWN):
        kept.add(boottime(), {("tun0", None): Sample(2, 2)} if number else {})
    by_name = {series["interface"]: series for series in shown(kept)["series"]}
    assert by_name["tun0"]["rx_bits_per_s"][:3] == [None, 2.0, 2.0]
    assert by_name["tun0"]["rtt_ms"] == [None] * SHOWN
    assert set(by_name["tun1"]["rx_bits_per_s"]) == {None}
    kept.add(boottime(), {("tun0", None): Sample(nan, 2)})
    assert [series["interface"] for series in shown(kept)["series"]] == ["tun0"]


def test_names_that_come_and_go_do_not_add_up() -> None:
    kept = History()
    for number in range(20 * KEPT):
        kept.add(boottime(), {(f"tun{number}", None): Sample(1, 1)})
    assert len(shown(kept)["series"]) <= KEPT


@pytest.mark.parametrize(("counts", "of_peers"), [((3,), 3), ((MAX_PEERS - 1, 1), MAX_PEERS), ((MAX_PEERS, 1), 0)])
def test_peers_have_a_series_while_they_are_few(counts: tuple[int, ...], of_peers: int) -> None:
    samples = run_now(sample_in_steps(registry_of(*counts)))
    names = ["hub", "tun1"][: len(counts)]
    assert {key for key in samples if key[1] is None} == {(None, None), *((name, None) for name in names)}
    assert len(samples) - 1 - len(counts) == of_peers


def test_thousands_of_peers_are_sampled_in_steps() -> None:
    steps = sum(1 for _ in sample_in_steps(registry_of(5000)))
    assert steps >= 5000 / history.PEERS_PER_STEP


async def test_it_samples_again_after_a_bug(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kept, registry = History(), registry_of(2)
    [record] = registry
    good, record.tunnel = record.tunnel, object()  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_history, kept, registry)
            await trio.sleep(2.5 * STEP_S)
            assert shown(kept)["times_ms"] == []
            record.tunnel = good
            await trio.sleep(3 * STEP_S)
            nursery.cancel_scope.cancel()
    assert len(shown(kept)["times_ms"]) == 3
    assert "history sample left out" in caplog.text
