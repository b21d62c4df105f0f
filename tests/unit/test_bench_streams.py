"""What `make bench-streams` computes and prints."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.streams import beside
from bench.streams.measure import Delays, Run
from bench.streams.plan import PAIRS, PLANS, Cell, Load, Plan, loads_of
from bench.streams.results import CellResults, delays, text
from bench.streams.world import ends, interfaces

CELL = Cell(40, 0.3, "cubic", proxy=False)
FAST = Delays(40.0, 50.0, 60.0, 0.0, 800)


def run(mbit_s: float, every: Delays = FAST, beside: Delays | None = None) -> Run:
    return Run(mbit_s, 0.5, every, beside, 1)


def test_delays_count_what_was_lost_as_the_slowest() -> None:
    found = Delays.of([math.inf] * 2 + [float(number) for number in range(1, 99)])
    assert found == Delays(50.0, 95.0, math.inf, 2.0, 100)
    with pytest.raises(ValueError, match="no samples"):
        Delays.of([])


def test_all_lost() -> None:
    assert Delays.of([math.inf, math.inf]) == Delays(math.inf, math.inf, math.inf, 100.0, 2)


def test_a_gain_is_the_median_of_the_rounds_own_ratios() -> None:
    """A round in which one of both failed has none."""
    found = CellResults(CELL)
    for one, four in ((10.0, 20.0), (1.0, 3.0), (100.0, 110.0)):
        found.add(Load(1, 8, True), run(one))
        found.add(Load(PAIRS, 8, True), run(four))
    found.add(Load(1, 8, True), None)
    found.add(Load(PAIRS, 8, True), run(1000.0))
    assert found.gain(8, down=True) == 2.0
    assert found.median(Load(1, 8, True), lambda it: it.mbit_s) == 10.0
    assert found.gain(8, down=False) is None
    assert found.median(Load(1, 1, True), lambda it: it.mbit_s) is None


def test_there_is_no_gain_over_what_was_not_measured() -> None:
    found = CellResults(CELL)
    found.add(Load(1, 1, False), run(10.0))
    assert found.gain(1, down=False) is None
    assert "10.0 / -  x -" in text([found])


def test_delays_are_medians_of_the_runs() -> None:
    lossy = Delays(90.0, math.inf, math.inf, 6.0, 800)
    assert delays([FAST, FAST, lossy]) == "40 / 50 / 60"
    assert delays([FAST, lossy, lossy]) == "90 / lost / lost"
    assert delays([]) == "-"


def test_the_text_has_every_number_and_every_failure() -> None:
    found = CellResults(CELL, road={"up": {"packets": 200, "late": 3}, "down": {"packets": 100, "late": 0}})
    found.add(Load(0, 8, False), run(46.25))
    found.add(Load(1, 8, False), run(4.0))
    found.add(Load(PAIRS, 8, False), run(16.0, FAST, Delays(41.0, 42.0, 43.0, 0.0, 100)))
    found.failures.append("round 1: it broke")
    printed = text([CellResults(Cell(80, 1.0, "bbr", proxy=True)), found])
    assert "46.2 / 4.0 / 16.0  x 4.00" in printed
    assert "41 / 42 / 43" in printed
    assert "at most 1.00 %" in printed
    assert "http, cubic, 40 ms, 0.3 %: round 1: it broke" in printed
    assert printed.index("http, cubic") < printed.index("nginx, bbr"), "sorted"


def test_the_json_is_json() -> None:
    """Python would write Infinity, which no other reader takes."""
    found = CellResults(CELL)
    found.add(Load(1, 1, False), run(4.0, Delays(90.0, math.inf, math.inf, 6.0, 800)))
    found.add(Load(1, 1, False), None)
    written = json.dumps(found.as_json(), allow_nan=False)
    (load,) = json.loads(written)["loads"]
    assert load["pairs"] == 1
    assert load["runs"][0]["every"]["median"] == 90.0
    assert load["runs"][0]["every"]["p95"] is None
    assert load["runs"][1] is None


@given(st.sampled_from([False, True]), st.integers(0, 5))
def test_each_round_has_each_load_once_next_to_what_it_is_compared_with(proxy: bool, turn: int) -> None:
    loads = loads_of(Cell(40, 0.1, "cubic", proxy), turn)
    assert len(set(loads)) == len(loads)
    assert sum(load.pairs == 0 for load in loads) == (4 if turn == 0 and not proxy else 0)
    for number, load in enumerate(loads):
        if load.pairs == 1:
            other = Load(PAIRS, load.flows, load.down)
            assert other in loads[max(0, number - 1) : number + 2]


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_plans_measure_each_cell_once(plan: Plan) -> None:
    assert len(set(plan.cells)) == len(plan.cells)
    assert plan.total_s > 0


def test_the_pairs_have_addresses_and_interfaces_of_their_own() -> None:
    assert len({address for pairs in (0, 1, PAIRS) for address in ends(pairs)}) == 6
    assert not set(interfaces(1)) & set(interfaces(PAIRS))
    assert len(interfaces(PAIRS)) == PAIRS


def test_the_shares_of_a_link_are_medians_of_the_rounds() -> None:
    ways = {way: [beside.Shares(10.0 + turn, 5.0 - turn) for turn in range(3)] for way in beside.WAYS}
    head, row = beside.text({CELL: ways}).splitlines()
    assert head.split()[-3:] == ["cubic", "rule", "bbr"]
    assert row.startswith(str(CELL))
    assert row.count("11.0 / 4.0 (5.0, 4.0, 3.0)") == 3


def test_a_cell_says_what_is_unusual() -> None:
    assert str(CELL) == "http, cubic, 40 ms, 0.3 %"
    assert str(Cell(80, 1.0, "bbr", proxy=True, burst=8.0, mbit_s=20, queue_ms=4)) == (
        "nginx, bbr, 80 ms, 1 %, bursts of 8, 20 Mbit/s, a queue of 4 ms"
    )
    assert CELL.queue_bytes == 100e6 / 8 * 0.05
