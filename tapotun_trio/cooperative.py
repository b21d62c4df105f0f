"""Long work in the event loop, cut into steps of about a millisecond, so that packets pass in between.

Work of this kind is written as a generator that yields between two steps. It knows no event loop, so pure code can be
written like this too, and a test can count the steps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Final, TypeAlias, TypeVar

import trio

PART: Final = 100  # items of a few microseconds each in one step

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]


def run_now(steps: Steps[T]) -> T:
    """The result, without a pause. For small work, and for callers without an event loop."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def run_cooperatively(steps: Steps[T]) -> T:
    """The result; other tasks run between the steps. A checkpoint; cancelled, the steps that were not made are left."""
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
    """Collects what ``items`` makes; a step is ``size`` of them."""
    found: list[T] = []
    for item in items:
        found.append(item)
        if len(found) % size == 0:
            yield
    return found
