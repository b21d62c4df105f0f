"""Long computations in the event loop, cut into steps of about a millisecond so that packets pass in between.

Such a computation is a generator that yields between two steps. It does not depend on an event loop, so pure code can
use it, too, and a test can count the steps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Final, TypeAlias, TypeVar

import trio

PART: Final = 100  # items in one step, at a few microseconds each

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]


def run_now(steps: Steps[T]) -> T:
    """Run all steps without a pause, and return the result. For short work, and for callers without an event loop."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def run_cooperatively(steps: Steps[T]) -> T:
    """Run all steps, with other tasks in between, and return the result.

    A checkpoint. If it is cancelled, the remaining steps are left out.
    """
    with closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                await trio.lowlevel.cancel_shielded_checkpoint()
                return result
            await trio.lowlevel.checkpoint()


def collect_in_steps(items: Iterable[T], size: int = PART) -> Generator[None, None, list[T]]:
    """Collect ``items`` in a list, ``size`` of them in a step."""
    found: list[T] = []
    for item in items:
        found.append(item)
        if len(found) % size == 0:
            yield
    return found
