"""`http.pending`: a bounded number of connections that have not yet shown who they are."""

from __future__ import annotations

from tapotun_trio.http.pending import PendingConnections

from ..streams import MemoryConnection, memory_pair


def connection() -> MemoryConnection:
    return memory_pair()[1]


async def test_the_oldest_goes_for_the_newest() -> None:
    pending = PendingConnections(limit=2)
    first, second, third, fourth = (connection() for _ in range(4))
    pending.add(first)
    pending.add(second)
    assert (first.closed, pending.evicted) == (False, 0)
    pending.add(third)
    assert [it.closed for it in (first, second, third)] == [True, False, False]
    pending.add(fourth)
    assert [it.closed for it in (second, third, fourth)] == [True, False, False]
    assert pending.evicted == 2


async def test_who_showed_a_token_is_not_counted_and_not_thrown_out() -> None:
    pending = PendingConnections(limit=1)
    known, *strangers = (connection() for _ in range(4))
    pending.add(known)
    pending.remove(known)
    pending.remove(known)
    for stranger in strangers:
        pending.add(stranger)
    assert not known.closed
    assert [it.closed for it in strangers] == [True, True, False]


async def test_who_left_makes_room() -> None:
    pending = PendingConnections(limit=2)
    first, second, third = (connection() for _ in range(3))
    pending.add(first)
    pending.add(second)
    pending.remove(second)
    pending.add(third)
    assert not first.closed
    pending.remove(third)  # one that was evicted, or never added, may be removed too
    pending.remove(third)
