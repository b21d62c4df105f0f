"""Everything about one cell, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.harness import HarnessError, Lab

from .measure import measure
from .plan import Cell, Plan, loads_of
from .results import CellResults
from .world import World, counts

ROAD: Final = Path(__file__).with_name("road.c")


def measure_cell(cell: Cell, plan: Plan, program: Path, seed: int) -> CellResults:
    """All rounds of a cell. What goes wrong in a run costs that run; what goes wrong before, the cell."""
    found = CellResults(cell)
    try:
        with Lab() as lab, World(lab, cell, program, seed) as world:
            number = 0
            for turn in range(plan.rounds):
                for load in loads_of(cell, turn):
                    number += 1
                    try:
                        found.add(load, measure(world, load, plan, number))
                    except HarnessError as exc:
                        found.add(load, None)
                        found.failures.append(f"round {turn + 1}, {load}: {exc}")
            found.road = counts(world.road)
    except HarnessError as exc:
        found.failures.append(str(exc))
    return found
