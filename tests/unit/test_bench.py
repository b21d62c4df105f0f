"""The parts of the bench that only compute: what it says must be what was seen."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.compare.results import COLUMNS, Comparison, markdown
from bench.compare.results import text as comparison_text
from bench.compare.tools import TOOLS
from bench.congestion import Socket, of_the_tunnel, parse, senders
from bench.errors import BenchError
from bench.load import evp_name
from bench.markdown import check, fill
from bench.metrics import METRICS
from bench.native import compiled
from bench.plan import (
    ALL,
    FULL,
    PLANE_OFF,
    PLANS,
    QUICK,
    SEARCH_HIGH,
    SEARCH_LOW,
    TAP,
    TUNNELS,
    VARIANTS,
    Budget,
    Plan,
)
from bench.plane import NOT_TOLD, told
from bench.report import as_json, columns, ratios, table, targets, text, value
from bench.results import LOAD, Results, measured_by
from bench.scaling.crowd import POINTS, Point
from bench.scaling.fakeclients import PER_CHUNK, packets_chunk
from bench.scaling.reloads import config_of, largest_gap_ms
from bench.search import LOSS, Probe, lossless_rate
from bench.stats import Spread, jain, paired, percentile
from bench.targets import Verdict, further, verdicts
from bench.variants import echo_request, installed
from tapotun_trio.config.diff import changes
from tapotun_trio.config.load import check_content
from tests.harness import ROOT, CommandError

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


BOTH = {f"{name}, both": plan.with_plane_off() for name, plan in PLANS.items()}


@pytest.mark.parametrize("plan", [*PLANS.values(), *BOTH.values()], ids=[*PLANS, *BOTH])
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
    steps = {metric.measured_in for metric in METRICS}
    for step in QUICK.steps:
        assert step.name in steps
    assert steps == {step.name for step in QUICK.steps}
    assert measured_by("tcp_up", QUICK) == VARIANTS
    assert measured_by("cpu_up", QUICK) == VARIANTS[1:], "no tunnel has no process"
    assert measured_by("cpu_up_machine", QUICK) == VARIANTS
    assert measured_by("ping_up_p99", QUICK) == TUNNELS
    assert [step.name for step in QUICK.steps if TAP in step.variants] == ["tcp_up", "tcp_down"]
    assert measured_by("jain_up", QUICK) == ("http",)
    assert measured_by("curl", QUICK) == ("https",)
    assert measured_by("tcp_up_6", QUICK) == ("http",), "the relay has no IPv6"


def test_what_has_no_target_is_measured_in_every_second_round() -> None:
    first, second = ([step.name for step in FULL.steps_of(number)] for number in (0, 1))
    assert first == [step.name for step in FULL.steps]
    assert [step.name for step in FULL.steps_of(2)] == first
    extras = {"ping_down", "udp64_8", "udp1400", "udp1400_blast", "udp64_8_blast", "forward_gro", "forward_plain"}
    assert [name for name in first if name not in extras] == second
    assert second[-1] == "start", "memory is asked at the end of each round"


def test_the_plane_is_switched_off_in_the_same_rounds() -> None:
    both = FULL.with_plane_off()
    assert both.variants == ALL
    for step in both.steps:
        (before,) = (it for it in FULL.steps if it.name == step.name)
        assert step.variants[: len(before.variants)] == before.variants
        assert set(step.variants) - set(before.variants) <= set(PLANE_OFF.values())
    assert measured_by("jain_down", both) == ("http", "http-off")
    assert measured_by("tcp_up", both) == ALL


def test_a_relay_too_many_is_left_out() -> None:
    plan = QUICK.without("relay-default")
    assert plan.variants == ("veth", "relay", "http", "https", "tap")
    assert not any("relay-default" in step.variants for step in plan.steps)
    assert [step.name for step in plan.steps] == [step.name for step in QUICK.steps]
    assert plan.round_s < QUICK.round_s


# Results, table, targets


def _results() -> Results:
    """Two rounds in which the second ran at half the speed: ratios do not see it."""
    results = Results(machine={"kernel": "6", "python": "3", "cores": 2, "load_before": 0.0, "date": "2026"})
    results.default_congestion = "bbr"
    for number, speed in enumerate((1.0, 0.5)):
        rates = {"veth": 20.0, "relay": 10.0, "relay-default": 7.5, "http": 9.0, "https": 6.0, "tap": 8.1}
        for way, rate in rates.items():
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
    missing = _results().missing(QUICK)
    assert "tcp_down of veth" in missing
    assert "tcp_up of veth" not in missing
    assert not any(it.startswith("rss_client of veth") for it in missing), "there is nothing to measure"
    assert "tcp_up of http-off" not in missing, "that is not in the plan"
    assert len(missing) == sum(len(measured_by(metric.key, QUICK)) for metric in METRICS) - 12


def test_the_table() -> None:
    lines = table(_results(), QUICK).splitlines()
    assert len(lines) == 1 + len(METRICS)
    head, first = lines[0].split(), lines[1]
    assert head == ["unit", *VARIANTS]
    assert first.startswith("TCP, one stream, up")
    assert "6.75 (4.50-9.00)" in first
    # Columns: whatever stands in them, they end at the same place.
    assert first.index("9.00)") + 5 == lines[0].index("http ") + 4


def test_the_ratios() -> None:
    head, up, *rest = ratios(_results(), QUICK).splitlines()
    pairs = ["http/relay", "https/relay", "http/relay-default", "relay/relay-default", "tap/http"]
    pairs += ["http/veth", "https/veth"]
    assert head.split() == ["ratio", *pairs]
    assert up.split()[-7:] == ["0.90", "0.60", "1.20", "1.33", "0.90", "0.45", "0.30"]
    assert len(rest) == 1, "only the idle ping has ratios besides"


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
    assert Verdict("x", 1.0, 1.0, at_least=True).mark == "met"
    assert Verdict("x", 0.99, 1.0, at_least=True).mark == "missed"
    assert Verdict("x", 1.01, 1.0, at_least=False).mark == "missed"
    assert Verdict("x", None, 1.0, at_least=False).mark == "-"


def _verdict(results: Results, words: str) -> Verdict:
    (found,) = (it for it in [*verdicts(results), *further(results)] if words in it.what)
    return found


def test_targets_of_some_results() -> None:
    results = _results()
    up = _verdict(results, "TCP, one stream up")
    assert up.mark == "missed"
    assert up.seen == pytest.approx(0.9)
    assert up.to_default == pytest.approx(1.2)
    assert up.plane_off is None
    assert _verdict(results, "idle ping, added").seen == pytest.approx(1.5)
    assert _verdict(results, "idle ping, added").mark == "missed"
    assert _verdict(results, "TCP, 8 streams").mark == "-"
    over_tap = _verdict(results, "TCP over TAP, one stream up")
    assert over_tap.seen == pytest.approx(0.9)
    assert over_tap.plane_off is None, "it was not measured"
    assert _verdict(results, "TCP over TAP, one stream down").mark == "-"


# Every target that was set for the program: words of its line, and its bound.
LINES = [
    ("TCP, one stream up", ">= 0.95"),
    ("TCP, one stream down", ">= 0.95"),
    ("TCP, 8 streams", ">= 0.95"),
    ("CPU s/GB up", "<= 1.15"),
    ("CPU s/GB down", "<= 1.15"),
    ("idle ping, added", "<= 1.20"),
    ("ping beside an upload", "<= 1.50"),
    ("one flow, < 1 % loss", ">= 1.20"),
    ("one flow, blast", ">= 1.50"),
    ("over IPv6, one stream up", ">= 0.95"),
    ("over IPv6, one stream down", ">= 0.95"),
    ("over IPv6, 8 streams", ">= 0.95"),
    ("over IPv6, blast", ">= 0.95"),
    ("TCP over TAP, one stream up", ">= 0.90"),
    ("TCP over TAP, one stream down", ">= 0.90"),
    ("eight clients up, Jain", ">= 0.97"),
    ("eight clients down, Jain", ">= 0.97"),
    ("beside a ninth", ">= 0.95"),
    ("beside a slow ninth", ">= 0.95"),
    ("https down, of curl", ">= 0.90"),
    ("client's CPU s/GB down, https", "<= 1.30"),
    ("RSS of a client, http", "<= 36.00 MB"),
    ("RSS of a client, https", "<= 36.00 MB"),
    ("RSS of a server", "<= 36.00 MB"),
    ("TCP, of the deployed D program", ">= 1.80"),
    ("CPU, of the deployed D program", "<= 0.50"),
    ("ping, of the deployed D program", "<= 1.00"),
]


def _everything() -> Results:
    """Every metric of every variant, in two rounds: 8 in the first, 4 in the second; the relay has a half of it."""
    results = Results(machine={"kernel": "6", "python": "3", "cores": 2, "load_before": 0.0, "date": "2026"})
    results.default_congestion, results.cipher = "bbr", "aes-256-gcm"
    plan = FULL.with_plane_off()
    shares = {"veth": 0.25, "relay": 0.5, "relay-default": 1.0, "http-off": 0.75, "https-off": 0.75}
    for metric in METRICS:
        for number, size in enumerate((8.0, 4.0)):
            for variant in measured_by(metric.key, plan):
                results.add(metric.key, variant, number, size * shares.get(variant, 1.0))
    return results


@pytest.mark.parametrize("line", range(len(LINES)), ids=[words for words, _ in LINES])
def test_every_line_of_the_targets_is_printed_with_its_bound(line: int) -> None:
    printed = targets("targets", verdicts(_everything()), "bbr")
    assert len(printed) == 1 + len(LINES)
    words, bound = LINES[line]
    assert words in printed[1 + line]
    assert f"{bound} " in printed[1 + line]
    mark = printed[1 + line].split(bound)[1].split()[0]
    assert mark == "-" if "D program" in words else mark in ("met", "missed")


def test_no_line_of_the_targets_is_missing_where_nothing_was_measured() -> None:
    printed = targets("targets", verdicts(Results()), "bbr")
    assert len(printed) == 1 + len(LINES)
    for (words, bound), line in zip(LINES, printed[1:], strict=True):
        assert words in line
        assert line.split(bound)[1].split()[0] == "-"


def test_the_targets_without_the_plane_and_beside_the_other_relay() -> None:
    head, up, *_ = targets("targets", verdicts(_everything()), "bbr")
    assert head.split() == ["targets", "seen", "target", "plane", "off", "relay", "on", "bbr"]
    assert up.split()[-6:] == ["2.00", ">=", "0.95", "met", "1.50", "1.00"]


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    head, *_ = targets("targets", verdicts(Results()), "bbr")
    assert head.split() == ["targets", "seen", "target"]


def test_a_ninth_is_compared_with_the_eight_alone_in_the_same_round() -> None:
    results = Results()
    for number, (alone, slow) in enumerate(((8.0, 8.0), (4.0, 2.0), (2.0, 1.8))):
        results.add("eight_alone", "http", number, alone)
        results.add("eight_slow", "http", number, slow)
    results.add("eight_fast", "http", 3, 8.0)
    assert _verdict(results, "beside a slow ninth").seen == pytest.approx(0.9)
    assert _verdict(results, "beside a ninth").seen is None, "no round has both"


def test_the_arithmetic_of_tls() -> None:
    results = Results()
    words = "client's CPU s/GB down"
    assert _verdict(results, words).mark == "-"
    for number, speed in enumerate((1.0, 2.0, 4.0)):
        results.add("openssl", "https", number, 0.4 * speed)
        results.add("cpu_down_client", "http", number, 0.6 * speed)
        results.add("cpu_down_client", "https", number, 1.2 * speed)
        results.add("tcp_down", "https", number, 1.9 / speed)
        results.add("curl", "https", number, 2.0 / speed)
    # A round in which something was not measured does not count.
    results.add("cpu_down_client", "https", 3, 9.0)
    assert _verdict(results, words).seen == pytest.approx(1.2)
    assert _verdict(results, words).mark == "met"
    assert _verdict(results, "https down, of curl").seen == pytest.approx(0.95)


def test_a_report_and_its_json() -> None:
    results = _results()
    results.failures.append("round 1, tcp_8 of http: it broke")
    printed = text(results, QUICK)
    assert "FAILED:\n  round 1, tcp_8 of http: it broke" in printed
    assert "TCP, one stream up, of the C relay" in printed
    assert "  missed  " in printed
    found = json.loads(json.dumps(as_json(results, QUICK)))
    assert found["plan"] == "quick"
    assert found["metrics"]["tcp_up"]["http"]["samples"] == [9.0, 4.5]
    assert found["metrics"]["tcp_up"]["http"]["to_relay"]["median"] == pytest.approx(0.9)
    assert found["metrics"]["tcp_up"]["http"]["to_relay-default"]["median"] == pytest.approx(1.2)
    assert found["metrics"]["tcp_down"]["http"]["samples"] == [None, 4.0]
    assert found["failures"] == results.failures
    assert [it["what"] for it in found["targets"]] == [it.what for it in verdicts(results)]


# Congestion control

# As iproute2 6.1 prints them, a socket a line.
SS = """\
0      0      192.0.2.2:60566 192.0.2.1:7000  cubic wscale:10,10 rto:204 rtt:0.1/0.04 bytes_sent:2050830748 segs_out:9
0      0      192.0.2.2:60574 192.0.2.1:7000  bbr wscale:10,10 rto:204 bytes_sent:1 bbr:(bw:15bps,mrtt:0.003) cwnd:11
0      12     [fd00::2]:60576 [fd00::1]:8080  ts sack ecn reno rto:204 rtt:0.005/0.002 bytes_received:1286401
0      0      127.0.0.1:5201  127.0.0.1:40000 ts sack dctcp wscale:7,7 bytes_sent:99999999
"""


def test_sockets_are_read_from_ss() -> None:
    assert parse(SS) == [
        Socket(60566, 7000, "cubic", 2050830748),
        Socket(60574, 7000, "bbr", 1),
        Socket(60576, 8080, "reno", 0),
        Socket(5201, 40000, "dctcp", 99999999),
    ]
    assert parse("\n") == []


@pytest.mark.parametrize(
    "line",
    ["0 0 192.0.2.2:1 192.0.2.1:7000", "0 0 192.0.2.2:x 192.0.2.1:7000 cubic", "0 0 1:1 1:2 ts sack rto:204", "ESTAB"],
)
def test_what_ss_should_not_print_is_no_congestion_control(line: str) -> None:
    with pytest.raises(CommandError, match="ss -ti"):
        parse(line)


def test_only_who_sends_counts() -> None:
    """A connection that has carried a head only is what it began with, whatever that says."""
    assert senders(parse(SS), on_client=True) == {"client": Counter(cubic=2050830748)}
    server = [
        Socket(8080, 40000, "cubic", 50_000),
        Socket(443, 40001, "bbr", 60_000),
        Socket(40002, 8080, "bbr", 70_000),
    ]
    found = senders(server, on_client=False)
    assert found == {"server": Counter(cubic=50_000), "nginx": Counter(bbr=130_000)}
    assert of_the_tunnel({**found, "client": Counter(reno=1)}) == Counter(cubic=50_000, reno=1)


def _seen(tunnel: str, relay: str) -> str:
    results = _results()
    for variant, name in (("http", tunnel), ("relay", relay), ("relay-default", "bbr")):
        for who in ("client", "server"):
            results.saw_congestion(variant, who, name)
    results.saw_congestion("https", "nginx", "bbr")
    results.saw_congestion("https", "nginx", "cubic")
    results.saw_congestion("https", "nginx", "bbr")
    results.saw_congestion(LOAD, "iperf3", "bbr")
    return text(results, QUICK)


def test_what_was_really_used_is_printed() -> None:
    printed = _seen("cubic", "cubic")
    assert "the default here: bbr\n" in printed
    assert "  http: client cubic; server cubic\n" in printed
    assert "  relay-default: client bbr; server bbr\n" in printed
    assert "  https: nginx bbr 2 x, cubic 1 x\n" in printed
    assert "  what goes through: bbr\n" in printed
    assert "NOT LIKE WITH LIKE" not in printed


def test_two_that_used_different_ones_are_not_compared_in_silence() -> None:
    assert "NOT LIKE WITH LIKE: http used cubic, the relay bbr\n" in _seen("cubic", "bbr")


# The data path


def test_a_version_without_a_plane_says_nothing_of_it() -> None:
    status = json.dumps({"schema": 1, "processes": [{"name": "plain", "interfaces": [{"name": "tun0"}]}]})
    assert told(status, "tapotun 0.1.0") == NOT_TOLD
    assert told(status, "tapotun 0.2.0 (plane: native)\n") == "tapotun 0.2.0 (plane: native)"


def test_whatever_is_said_of_a_plane_is_shown_once() -> None:
    interface = {"name": "tun0", "plane": {"kind": "native", "share": 0.99871, "since": None}}
    status = json.dumps({"processes": [{"plane_s": 7, "interfaces": [interface, interface]}]})
    assert told(status, "tapotun 0.2.0, plane native") == "plane_s 7, plane kind native, plane share 0.9987"
    with pytest.raises(CommandError, match="no JSON"):
        told("tun0 is up", "tapotun 0.2.0")


def test_the_share_that_the_plane_moved_is_of_all_packets() -> None:
    peers = [
        {"plane_packets": 90, "rx_packets": 60, "tx_packets": 40},
        {"plane_packets": 0, "rx_packets": 0, "tx_packets": 20},
    ]
    process = {"plane": {"kind": "native", "why": None}, "interfaces": [{"peers": peers}]}
    assert told(json.dumps({"processes": [process]}), "") == "plane kind native, 75.0% of the packets"
    idle = {"plane_packets": 0, "rx_packets": 0, "tx_packets": 0}
    off = {"plane": {"kind": "off", "why": "TAPOTUN_PLANE=off is set"}, "interfaces": [{"peers": [idle]}]}
    assert told(json.dumps({"processes": [off]}), "") == "plane kind off, plane why TAPOTUN_PLANE=off is set"


def test_both_ends_are_shown_where_they_differ() -> None:
    results = _results()
    results.planes = {
        "http": {"client": "plane native", "server": "plane native"},
        "https": {"client": "plane off", "server": "plane native"},
    }
    printed = text(results, QUICK)
    assert "  http: plane native\n" in printed
    assert "  https: client: plane off; server: plane native\n" in printed


# Documents and the comparison with other tools


BEGIN, END = "<!-- here: by make -->", "<!-- end of here -->"


def test_a_table_goes_between_its_two_lines_and_replaces_the_one_before() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    once = fill(document, "here", ["| new |"])
    assert once == f"# Title\n\n{BEGIN}\n\n| new |\n\n{END}\n\nmore\n"
    assert fill(once, "here", ["| new |"]) == once


@pytest.mark.parametrize(
    "document",
    [
        "",
        "<!-- here: -->",
        "<!-- end of here -->\n<!-- here: -->",
        "<!-- here: -->\n<!-- here: -->\n<!-- end of here -->",
    ],
)
def test_a_document_without_a_place_is_left_alone(document: str) -> None:
    with pytest.raises(BenchError, match="no place for here"):
        fill(document, "here", [])


def test_a_document_that_cannot_be_filled_is_told_before_the_bench(tmp_path: Path) -> None:
    """A bench takes ten minutes."""
    with pytest.raises(BenchError, match=r"absent\.md: .*No such file"):
        check(tmp_path / "absent.md", "here")
    (tmp_path / "page.md").write_text("no place\n")
    with pytest.raises(BenchError, match="no place for here"):
        check(tmp_path / "page.md", "here")
    (tmp_path / "page.md").write_text(f"{BEGIN}\nold\n{END}\n")
    check(tmp_path / "page.md", "here")
    assert "old" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(("page", "name"), [("performance.md", "bench"), ("comparison.md", "bench-compare")])
def test_the_document_has_a_place_for_each_bench(page: str, name: str) -> None:
    document = (ROOT / "docs" / page).read_text("utf-8")
    assert "| of a test |" in fill(document, name, ["| of a test |"])


def test_the_targets_in_a_document() -> None:
    results = _everything()
    results.saw_congestion("http", "client", "cubic")
    lines = report.markdown(results, FULL, "The machine had other work.")
    assert lines[0] == "|  | seen | target |  | plane off | relay on bbr |"
    assert lines[2] == "| TCP, one stream up, of the C relay | 2.00 | >= 0.95 | met | 1.50 | 1.00 |"
    table_lines = lines[: lines.index("")]
    assert len(table_lines) == 2 + len(verdicts(results)) + len(further(results))
    assert {line.count("|") for line in table_lines} == {7}
    assert "2026, full bench, Linux 6, 2 cores, load 0 before, 2 rounds. The machine had other work." in lines
    assert "  http: client cubic" in lines


def _comparison() -> Comparison:
    found = Comparison(machine={"kernel": "6", "cores": 2, "load_before": 3.0, "date": "2026-11-30T01:02:03Z"})
    found.default_congestion = "bbr"
    for name in ("https", "veth", "websocat"):
        for speed in (1.0, 3.0, 2.0):
            found.add(name, {"tcp_up": speed})
    found.add("https", {"ping": 123.4})
    found.versions["https"] = "tapotun 9"
    found.congestion["https"] = {"cubic", "bbr"}
    found.absent["wireguard"] = "wg is not installed: apt-get install wireguard-tools"
    found.failures.append("round 1, ping of veth: it broke")
    return found


def test_a_comparison_has_medians_in_the_order_of_its_tools() -> None:
    found = _comparison()
    assert found.rounds == 3
    assert found.measured == ["veth", "https", "websocat"]
    printed = comparison_text(found)
    assert "no tunnel " in printed
    assert "2.00 (1.00-3.00)" in printed
    assert "tapotun 9; bbr, cubic" in printed
    assert "  WireGuard: wg is not installed" in printed
    assert "FAILED:\n  round 1, ping of veth: it broke" in printed


def test_a_comparison_in_a_document_says_what_each_tool_is() -> None:
    lines = markdown(_comparison(), "The machine had other work.")
    assert lines[0].startswith("|  | over | encrypts | behind a reverse proxy | TCP up, Gbit/s |")
    assert lines[0].count("|") == lines[1].count("|") == lines[3].count("|")
    assert lines[3].startswith("| tapotun-trio, https through nginx | HTTPS | yes | yes | 2.00 | - | - | - | 123 | - |")
    said = "\n".join(lines[5:])
    assert "2026-11-30, Linux 6, 2 cores, load 3 before, medians of 3 rounds. The machine had other work." in said
    assert "WireGuard was not measured: wg is not installed" in said


def test_a_reader_is_told_which_wireguard_it_was() -> None:
    found = Comparison(versions={"wireguard": "wireguard-go v0.0.20220316"})
    found.add("wireguard", {"tcp_up": 1.0})
    assert found.label("wireguard") == "WireGuard, wireguard-go"
    assert markdown(found)[2].startswith("| WireGuard, wireguard-go | UDP |")
    found.versions["wireguard"] = "the kernel's"
    assert found.label("wireguard") == "WireGuard"


def test_what_a_tool_cannot_have_is_not_missing() -> None:
    found = _comparison()
    missing = found.missing(["veth", "https", "websocat", "wireguard"])
    assert "TCP down of https" in missing
    assert "TCP up of https" not in missing
    assert "ping, idle of websocat" not in missing
    assert "CPU up, both ends of veth" not in missing
    assert not any("wireguard" in what for what in missing), "it is not here"
    assert len({about.label for _, about in TOOLS.values()}) == len(TOOLS)
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


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


def test_the_program_is_compiled_as_a_users_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the environment says of writing: else each start compiles the program."""
    monkeypatch.setattr("sys.pycache_prefix", str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    modules = sorted((ROOT / "tapotun_trio").rglob("*.py"))
    assert installed().name == "tapotun"
    assert [module for module in modules if not Path(importlib.util.cache_from_source(str(module))).exists()] == []
