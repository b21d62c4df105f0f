"""The parts of the bench that only compute: what it says must be what was seen."""

from __future__ import annotations

import json
import struct
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.load import evp_name
from bench.metrics import METRICS
from bench.native import compiled
from bench.plan import FULL, PLANS, QUICK, SEARCH_HIGH, SEARCH_LOW, VARIANTS, Budget, Plan
from bench.report import as_json, columns, table, text, value
from bench.results import Results, measured_by
from bench.scaling.crowd import POINTS, Point
from bench.scaling.fakeclients import PER_CHUNK, packets_chunk
from bench.scaling.reloads import config_of, largest_gap_ms
from bench.search import LOSS, Probe, lossless_rate
from bench.stats import Spread, jain, paired, percentile
from bench.targets import Verdict, verdicts
from bench.variants import echo_request
from tapotun_trio.config.diff import changes
from tapotun_trio.config.load import check_content
from tests.harness import CommandError

# Statistics


def test_a_spread_has_the_median_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    with pytest.raises(ValueError, match="no samples"):
        Spread.of([])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= percent / 100 * len(samples) - 1e-9
    assert sum(sample < found for sample in samples) < percent / 100 * len(samples) + 1e-9


def test_the_99_percent_of_500() -> None:
    assert percentile([float(it) for it in range(1, 501)], 99) == 495


def test_ratios_are_of_the_same_round_and_of_what_is_there() -> None:
    assert paired([2.0, None, 6.0, 8.0], [1.0, 1.0, None, 4.0]) == [2.0, 2.0]
    assert paired([1.0], [0.0]) == []


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_jains_index_is_between_one_nth_and_one(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= jain(shares) <= 1 + 1e-9
    assert jain([shares[0]] * len(shares)) == pytest.approx(1)


def test_jains_index_of_one_who_takes_all() -> None:
    assert jain([5.0, 0, 0, 0]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="zero"):
        jain([0.0, 0.0])


# The search


@given(st.floats(SEARCH_LOW * 1.01, SEARCH_HIGH * 0.99), st.integers(1, 10))
def test_a_search_ends_beside_the_capacity(capacity: float, probes: int) -> None:
    """A path that loses what goes beyond a rate is found within the resolution of so many halvings."""
    asked: list[float] = []

    def probe(rate: float) -> Probe:
        asked.append(rate)
        return Probe(rate, rate, max(0.0, 1 - capacity / rate))

    found = lossless_rate(probe, SEARCH_LOW, SEARCH_HIGH, probes)
    limit = capacity / (1 - LOSS)  # less than 1 % is allowed to be lost
    resolution = (SEARCH_HIGH / SEARCH_LOW) ** (0.5**probes)
    assert found.rate <= limit * 1.000001
    if found.rate:
        assert found.rate * resolution >= limit * 0.999999
    else:
        assert min(asked) >= limit * 0.999999
    assert len(asked) <= 2 * probes
    assert found.probes == [Probe(rate, rate, max(0.0, 1 - capacity / rate)) for rate in asked]


def test_a_doubtful_loss_gets_a_second_try_and_a_clear_one_does_not() -> None:
    hiccups = [0.02, 0.0]
    asked: list[float] = []

    def hiccup(rate: float) -> Probe:
        asked.append(rate)
        return Probe(rate, rate, hiccups.pop(0))

    found = lossless_rate(hiccup, 100, 400, 1)
    assert asked == [200, 200]
    assert found.rate == pytest.approx(200)

    asked.clear()
    hiccups[:] = [0.5]
    assert lossless_rate(hiccup, 100, 400, 1).rate == 0
    assert len(asked) == 1


def test_a_slow_sender_counts_at_what_it_reached() -> None:
    found = lossless_rate(lambda rate: Probe(rate, min(rate, 150.0), 0.0), 100, 400, 4)
    assert found.rate == 150
    assert found.sender_bound
    refused = lossless_rate(lambda rate: Probe(rate, rate, 0.0 if rate < 150 else 1.0), 100, 400, 4)
    assert not refused.sender_bound


# The plan


@pytest.mark.parametrize("plan", PLANS.values(), ids=str)
def test_a_plan_fits_at_least_one_round_into_its_time(plan: Plan) -> None:
    assert plan.rounds >= 1
    assert plan.setup_s + plan.round_s <= plan.budget_s
    assert f"{plan.budget_s:.0f} s" in str(plan)
    assert all(step.name in str(plan) for step in plan.steps)


def test_the_bounds_that_were_promised() -> None:
    assert FULL.budget_s <= 600
    assert QUICK.budget_s <= 120
    assert all(plan.pings >= 250 for plan in PLANS.values())


def test_a_budget_asks_the_clock() -> None:
    now = [1000.0]
    budget = Budget(QUICK, lambda: now[0])
    assert budget.allows(QUICK.budget_s)
    now[0] += 10
    assert budget.spent_s == 10
    assert budget.allows(QUICK.budget_s - 10)
    assert not budget.allows(QUICK.budget_s - 9.9)


def test_every_step_gives_a_metric_that_is_reported() -> None:
    keys = {metric.key for metric in METRICS}
    for step in QUICK.steps:
        assert step.name in keys
        assert set(measured_by(step.name)) == set(step.variants)


# Results, table, targets


def _results() -> Results:
    """Two rounds in which the second ran at half the speed: ratios do not see it."""
    results = Results(machine={"kernel": "6", "python": "3", "cores": 2, "load_before": 0.0, "date": "2026"})
    for number, speed in enumerate((1.0, 0.5)):
        for way, rate in (("veth", 20.0), ("relay", 10.0), ("http", 9.0), ("https", 6.0)):
            results.add("tcp_up", way, number, rate * speed)
        for way, us in (("veth", 20.0), ("relay", 120.0), ("http", 170.0), ("https", 220.0)):
            results.add("ping_idle", way, number, us / speed)
    results.add("tcp_down", "http", 1, 4.0)
    results.add("tcp_down", "relay", 0, 4.0)
    return results


def test_ratios_are_the_rounds_own() -> None:
    results = _results()
    assert results.rounds == 2
    assert results.ratio("tcp_up", "http", "relay") == Spread(0.9, 0.9, 0.9, 2)
    assert results.ratio("tcp_down", "http", "relay") is None, "no round has both"
    added = results.ratio("ping_idle", "http", "relay", above="veth")
    assert added is not None
    assert added.median == pytest.approx(1.5)
    assert results.spread("tcp_up", "relay") == Spread(7.5, 5.0, 10.0, 2)
    assert results.median("tcp_8", "http") is None


def test_what_was_not_measured_is_said() -> None:
    missing = _results().missing()
    assert "tcp_down of veth" in missing
    assert "tcp_up of veth" not in missing
    assert not any(it.startswith("rss_client of veth") for it in missing), "there is nothing to measure"
    assert len(missing) == sum(len(measured_by(metric.key)) for metric in METRICS) - 10


def test_the_table() -> None:
    lines = table(_results()).splitlines()
    assert len(lines) == 1 + len(METRICS)
    head, first = lines[0].split(), lines[1]
    assert head[:5] == ["unit", *VARIANTS]
    assert first.startswith("TCP, one stream, up")
    assert "6.75 (4.50-9.00)" in first
    assert first.split()[-4:] == ["0.90", "0.60", "0.45", "0.30"]
    # Columns: whatever stands in them, they end at the same place.
    assert first.index("9.00)") + 5 == lines[0].index("http ") + 4


@given(st.lists(st.lists(st.text("abc", max_size=9), min_size=3, max_size=3), min_size=1))
def test_columns_stand_one_below_the_other(rows: list[list[str]]) -> None:
    lines = columns(rows)
    widths = [max(len(row[it]) for row in rows) for it in range(3)]
    for row, line in zip(rows, lines, strict=True):
        full = line.ljust(sum(widths) + 4)
        assert full[: widths[0]].rstrip() == row[0]
        assert full[widths[0] + 2 : widths[0] + 2 + widths[1]].lstrip() == row[1]
        assert full[widths[0] + widths[1] + 4 :].lstrip() == row[2]


def test_a_value_alone_has_no_spread() -> None:
    assert value(Spread(1.234, 1.234, 1.234, 1), 2) == "1.23"
    assert value(Spread(1.234, 1, 2, 2), 1) == "1.2 (1.0-2.0)"
    assert value(None, 2) == "-"


def test_targets_have_a_side() -> None:
    assert Verdict("x", 1.0, 1.0, at_least=True).mark == "pass"
    assert Verdict("x", 0.99, 1.0, at_least=True).mark == "MISS"
    assert Verdict("x", 1.01, 1.0, at_least=False).mark == "MISS"
    assert Verdict("x", None, 1.0, at_least=False).mark == "-"


def _verdict(results: Results, words: str) -> Verdict:
    (found,) = (it for it in verdicts(results) if words in it.what)
    return found


def test_targets_of_some_results() -> None:
    results = _results()
    assert _verdict(results, "TCP one stream up").mark == "MISS"
    assert _verdict(results, "idle ping").seen == pytest.approx(1.5)
    assert _verdict(results, "idle ping").mark == "pass"
    assert _verdict(results, "TCP 8 streams").mark == "-"


def test_the_arithmetic_of_tls() -> None:
    results = _results()
    words = "client's CPU per GB down"
    assert _verdict(results, words).mark == "-"
    results.cipher, results.openssl_s_per_gb = "aes-256-gcm", 0.4
    results.add("cpu_down_client", "http", 0, 0.6)
    results.add("cpu_down_client", "https", 0, 1.2)
    found = _verdict(results, words)
    assert found.seen == pytest.approx(1.2)
    assert found.mark == "pass"
    assert found.how == "1.200 s/GB, of aes-256-gcm 0.400 + http 0.600 = 1.000 s/GB"


def test_a_report_and_its_json() -> None:
    results = _results()
    results.failures.append("round 1, tcp_8 of http: it broke")
    printed = text(results, QUICK)
    assert "FAILED:\n  round 1, tcp_8 of http: it broke" in printed
    assert "MISS  TCP one stream up" in printed
    found = json.loads(json.dumps(as_json(results, QUICK)))
    assert found["plan"] == "quick"
    assert found["metrics"]["tcp_up"]["http"]["samples"] == [9.0, 4.5]
    assert found["metrics"]["tcp_up"]["http"]["to_relay"]["median"] == pytest.approx(0.9)
    assert found["metrics"]["tcp_down"]["http"]["samples"] == [None, 4.0]
    assert found["failures"] == results.failures
    assert [it["what"] for it in found["targets"]] == [it.what for it in verdicts(results)]


# Bytes and names


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_an_echo_request_has_its_checksum(identifier: int, number: int) -> None:
    packet = echo_request(identifier, number)
    total = sum(struct.unpack("!4H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF  # RFC 1071: with its checksum, a sum is all ones
    assert packet[4:] == struct.pack("!HH", identifier, number)


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("TLS_AES_256_GCM_SHA384", "aes-256-gcm"),
        ("TLS_AES_128_GCM_SHA256", "aes-128-gcm"),
        ("ECDHE-RSA-AES256-GCM-SHA384", "aes-256-gcm"),
        ("TLS_CHACHA20_POLY1305_SHA256", "chacha20-poly1305"),
    ],
)
def test_a_cipher_as_openssl_speed_calls_it(suite: str, name: str) -> None:
    assert evp_name(suite) == name


def test_a_cipher_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="TLS_SOMETHING"):
        evp_name("TLS_SOMETHING")


def test_a_relay_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"nowhere\.c is not there.*CRELAY=") as caught:
        compiled(tmp_path / "nowhere.c", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("point", POINTS, ids=lambda it: it.name)
def test_a_point_of_the_curve_has_what_it_says(point: Point) -> None:
    entries = [point.client(number) for number in range(point.clients)]
    networks = [IPv4Network(net) for entry in entries for net in entry.get("routes", [])]
    assert len(networks) == point.routes
    assert len({entry["ip"] for entry in entries} | {entry["token"] for entry in entries}) == 2 * point.clients
    assert not any(a.overlaps(b) for a, b in pairwise(sorted(networks)))
    for number in (0, point.clients - 1):
        own = set(point.networks(number)) if point.routes else {f"{entries[number]['ip']}/32"}
        lengths = {int(net.split("/")[1]) for net in own}
        for address in point.addresses(number):
            assert any(str(IPv4Network((address, length), strict=False)) in own for length in lengths)


def test_points_of_one_curve_differ_in_their_tables_only() -> None:
    few, many = (point for point in POINTS if point.routes)
    assert [few.addresses(it) for it in range(few.clients)] == [many.addresses(it) for it in range(many.clients)]


def test_a_chunk_of_packets() -> None:
    chunk = packets_chunk(["10.0.0.1", "10.0.0.2"], "10.0.0.9")
    head, body = chunk.split(b"\r\n", 1)
    assert body.endswith(b"\r\n")
    assert int(head, 16) == len(body) - 2
    size = 2 + 12 + 20 + 8 + 64
    frames = [body[it : it + size] for it in range(0, len(body) - 2, size)]
    assert len(frames) == PER_CHUNK
    assert {int.from_bytes(it[:2], "little") for it in frames} == {size - 14}
    assert {str(IPv4Address(it[26:30])) for it in frames} == {"10.0.0.1", "10.0.0.2"}
    assert {str(IPv4Address(it[30:34])) for it in frames} == {"10.0.0.9"}


# Reloads


def test_the_largest_gap_is_between_two_answers() -> None:
    lines = [
        f"[{at:.6f}] 64 bytes from 10.10.0.1: icmp_seq=1 ttl=64 time=0.4 ms" for at in (10.0, 10.005, 10.105, 10.11)
    ]
    output = "PING 10.10.0.1 (10.10.0.1) 56(84) bytes of data.\n" + "\n".join(lines)
    assert largest_gap_ms(output) == pytest.approx(100)
    with pytest.raises(CommandError, match="had 1 answers"):
        largest_gap_ms(lines[0])


def test_the_configs_of_the_reloads_are_valid_and_differ_as_they_say() -> None:
    few, many, changed = (
        check_content(content.encode(), "test.json")[0]
        for content in (config_of(20), config_of(500), config_of(500, "192.168.77.0/24"))
    )
    assert few is not None
    assert many is not None
    assert changed is not None
    [come] = changes(few.interfaces, many.interfaces)
    assert len(come.lines) == 480
    [one] = changes(many.interfaces, changed.interfaces)
    assert one.lines == ("tun0 c0: routes changed (+192.168.77.0/24)",)
