"""http.lobby: a bounded number of strangers."""

from __future__ import annotations

from tapotun_trio.http.pending import Lobby

from ..streams import MemoryConnection, memory_pair


def connection() -> MemoryConnection:
    return memory_pair()[1]


async def test_the_oldest_goes_for_the_newest() -> None:
    lobby = Lobby(limit=2)
    first, second, third, fourth = (connection() for _ in range(4))
    lobby.enter(first)
    lobby.enter(second)
    assert (first.closed, lobby.evicted) == (False, 0)
    lobby.enter(third)
    assert [it.closed for it in (first, second, third)] == [True, False, False]
    lobby.enter(fourth)
    assert [it.closed for it in (second, third, fourth)] == [True, False, False]
    assert lobby.evicted == 2


async def test_who_showed_a_token_is_not_counted_and_not_thrown_out() -> None:
    lobby = Lobby(limit=1)
    known, *strangers = (connection() for _ in range(4))
    lobby.enter(known)
    lobby.leave(known)
    lobby.leave(known)
    for stranger in strangers:
        lobby.enter(stranger)
    assert not known.closed
    assert [it.closed for it in strangers] == [True, True, False]


async def test_who_left_makes_room() -> None:
    lobby = Lobby(limit=2)
    first, second, third = (connection() for _ in range(3))
    lobby.enter(first)
    lobby.enter(second)
    lobby.leave(second)
    lobby.enter(third)
    assert not first.closed
    lobby.leave(third)  # one that was evicted, or never entered, may leave too
    lobby.leave(third)
