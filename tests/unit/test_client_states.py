"""Every pair of state and event of a client and of its transport choice: the next state, or that it is impossible."""

from __future__ import annotations

import logging
from itertools import product
from typing import Final

import pytest
import trio
import trio.testing

from tapotun_trio.client import states
from tapotun_trio.client.states import ClientEvent, ClientState, ClientStateMachine
from tapotun_trio.client.transport_choice import (
    RETRY_S,
    UPLOAD_SEEN_S,
    TransportEvent,
    TransportSelector,
    TransportState,
)
from tapotun_trio.config.model import TransportChoice
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.log import interface_logger

C, E = ClientState, ClientEvent

# By state and event the next state and whether uploads may begin then. A pair that is not here is impossible.
EXPECTED: Final[dict[ClientState, dict[ClientEvent, tuple[ClientState, bool]]]] = {
    # No stream is open, so none can be replaced; and there is no WebSocket during which HTTP could be probed.
    C.CONNECTING: {
        E.HTTP_OPENED: (C.HTTP, True),
        E.WEBSOCKET_OPENED: (C.WEBSOCKET, False),
        E.LOST: (C.CONNECTING, False),
        E.TOKEN_TAKEN: (C.TAKEN_OVER, False),
        E.STOP: (C.STOPPED, False),
    },
    # A probe begins on a WebSocket only. It ends here if it succeeded.
    C.HTTP: {
        E.HTTP_OPENED: (C.HTTP, True),
        E.WEBSOCKET_OPENED: (C.WEBSOCKET, False),
        E.PROBE_ENDED: (C.HTTP, True),
        E.REPLACEMENT_FAILED: (C.HTTP, True),
        E.LOST: (C.CONNECTING, False),
        E.TOKEN_TAKEN: (C.TAKEN_OVER, False),
        E.STOP: (C.STOPPED, True),
    },
    C.WEBSOCKET: {
        E.HTTP_OPENED: (C.HTTP, True),
        E.WEBSOCKET_OPENED: (C.WEBSOCKET, False),
        E.PROBE_BEGAN: (C.PROBING_HTTP, False),
        E.REPLACEMENT_FAILED: (C.WEBSOCKET, False),
        E.LOST: (C.CONNECTING, False),
        E.TOKEN_TAKEN: (C.TAKEN_OVER, False),
        E.STOP: (C.STOPPED, False),
    },
    # The probe is a part of one attempt. Its end comes before the attempt fails, opens a WebSocket, or is stopped.
    C.PROBING_HTTP: {
        E.HTTP_OPENED: (C.HTTP, True),
        E.PROBE_ENDED: (C.WEBSOCKET, False),
        E.TOKEN_TAKEN: (C.TAKEN_OVER, False),
    },
    # No probe begins, but one that had begun ends.
    C.TAKEN_OVER: {
        E.HTTP_OPENED: (C.HTTP, True),
        E.WEBSOCKET_OPENED: (C.WEBSOCKET, False),
        E.PROBE_ENDED: (C.TAKEN_OVER, False),
        E.REPLACEMENT_FAILED: (C.TAKEN_OVER, False),
        E.LOST: (C.TAKEN_OVER, False),
        E.TOKEN_TAKEN: (C.TAKEN_OVER, False),
        E.STOP: (C.STOPPED, False),
    },
    # All tasks that fire events have ended.
    C.STOPPED: {},
}
# The events that lead from the first state to each.
PATHS: Final[dict[ClientState, tuple[ClientEvent, ...]]] = {
    C.CONNECTING: (),
    C.HTTP: (E.HTTP_OPENED,),
    C.WEBSOCKET: (E.WEBSOCKET_OPENED,),
    C.PROBING_HTTP: (E.WEBSOCKET_OPENED, E.PROBE_BEGAN),
    C.TAKEN_OVER: (E.HTTP_OPENED, E.TOKEN_TAKEN),
    C.STOPPED: (E.STOP,),
}
HOLD_UPLOADS: Final = {E.WEBSOCKET_OPENED, E.LOST, E.TOKEN_TAKEN}


def machine_in(state: ClientState) -> tuple[ClientStateMachine, list[ClientEvent]]:
    """A machine in that state; and a list that grows whenever it makes uploads wait."""
    held: list[ClientEvent] = []
    machine = ClientStateMachine(interface_logger("tun0"), lambda: held.append(E.LOST))
    for event in PATHS[state]:
        machine.fire(event)
    assert machine.state is state
    held.clear()
    return machine, held


@pytest.mark.parametrize(("state", "event"), [*product(ClientState, ClientEvent)], ids=lambda it: it.name)
def test_every_state_and_event(state: ClientState, event: ClientEvent, caplog: pytest.LogCaptureFixture) -> None:
    machine, held = machine_in(state)
    caplog.set_level(logging.DEBUG, "tapotun")
    caplog.clear()
    if event not in EXPECTED[state]:
        with pytest.raises(KeyError):
            machine.fire(event)
        assert machine.state is state
        assert not held
        assert not caplog.messages
        return
    following, uploads_allowed = EXPECTED[state][event]
    machine.fire(event)
    assert machine.state is following
    assert machine.uploads_allowed == uploads_allowed
    assert bool(held) == (event in HOLD_UPLOADS)
    line = f"state: {state.value} -> {following.value} ({event.value})"
    assert caplog.messages == ([] if following is state else [line])


def test_each_state_has_a_way_out_but_the_last() -> None:
    assert states.TRANSITIONS.keys() == {(state, event) for state, row in EXPECTED.items() for event in row}
    for state in ClientState:
        leaves = {following for following, _ in EXPECTED[state].values()} - {state}
        assert bool(leaves) == (state is not C.STOPPED)


async def test_an_upload_that_waits_begins_with_the_next_download(autojump_clock: trio.testing.MockClock) -> None:
    """Also if the state changed several times while it waited."""
    machine, _ = machine_in(C.TAKEN_OVER)
    began: list[float] = []

    async def upload() -> None:
        await machine.wait_uploads_allowed()
        began.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        for event in (E.LOST, E.WEBSOCKET_OPENED, E.PROBE_BEGAN, E.PROBE_ENDED, E.LOST, E.LOST):
            await trio.sleep(1)
            machine.fire(event)
        assert began == []
        await trio.sleep(1)
        machine.fire(E.HTTP_OPENED)
        machine.fire(E.LOST)  # before the upload's task has run
    assert began == [trio.current_time()]


# ------------------------------------------------------------------ the choice of transport

T, V = TransportState, TransportEvent
RULED_OUT: Final = PeerError("answered 426 to a WebSocket", reason=EndReason.NO_WEBSOCKET)
UNANSWERED: Final = PeerError("h:80 did not answer within 5 s", reason=EndReason.SILENT)
DOWN: Final = PeerError("no connection", reason=EndReason.CONNECT)
SEEN_LATE: Final = UPLOAD_SEEN_S + 1

# By state the next one after each event; where an event is not named, the state stays.
NEXT: Final[dict[TransportState, dict[TransportEvent, TransportState]]] = {
    T.HTTP: {V.HELD_BACK: T.TRYING_WEBSOCKET, V.GET_FAILS: T.TRYING_WEBSOCKET},
    T.TRYING_WEBSOCKET: {
        V.WEBSOCKET_OPENED: T.WEBSOCKET,
        V.WEBSOCKET_RULED_OUT: T.WEBSOCKET_BLOCKED,
        V.WEBSOCKET_FAILED: T.HTTP,
        V.PATH_CHANGED: T.HTTP,
    },
    T.WEBSOCKET: {V.WEBSOCKET_RULED_OUT: T.WEBSOCKET_BLOCKED, V.HTTP_WORKS: T.HTTP, V.PATH_CHANGED: T.HTTP},
    T.WEBSOCKET_BLOCKED: {
        V.HELD_BACK: T.TRYING_WEBSOCKET,
        V.GET_FAILS: T.TRYING_WEBSOCKET,
        V.HTTP_WORKS: T.HTTP,
        V.PATH_CHANGED: T.HTTP,
    },
    T.HTTP_ONLY: {},
    T.WEBSOCKET_ONLY: {},
}


def selector_in(state: TransportState) -> TransportSelector:
    """A selector in that state, which was brought there by what happens to a client."""
    choice: dict[TransportState, TransportChoice] = {
        T.HTTP_ONLY: "http",
        T.WEBSOCKET_ONLY: "websocket",
    }
    selector = TransportSelector(choice.get(state, "auto"), "h:80", interface_logger("tun0"))
    selector.offered = True
    if state in (T.TRYING_WEBSOCKET, T.WEBSOCKET, T.WEBSOCKET_BLOCKED):
        selector.upload_began(selector.next_upload_number(), 0.0)
        assert selector.try_websocket(SEEN_LATE)
    if state is T.WEBSOCKET:
        selector.websocket_opened(0.0)
    elif state is T.WEBSOCKET_BLOCKED:
        assert selector.websocket_failed(RULED_OUT, SEEN_LATE)
    assert selector.state is state
    return selector


def cause(selector: TransportSelector, event: TransportEvent) -> None:
    """What a client does when this happens."""
    now = 2 * RETRY_S
    match event:
        case V.HELD_BACK:
            if selector.held_back(now):
                selector.download_ended()  # its upload of before
            selector.upload_began(selector.next_upload_number(), now)
            selector.try_websocket(now + SEEN_LATE)
        case V.GET_FAILS:
            selector.get_failed(UNANSWERED, now)
        case V.WEBSOCKET_OPENED:
            selector.websocket_opened(0.0)
        case V.WEBSOCKET_RULED_OUT:
            selector.websocket_failed(RULED_OUT, now)
        case V.WEBSOCKET_FAILED:
            selector.websocket_failed(DOWN, now)
        case V.HTTP_WORKS:
            selector.http_works()
        case V.PATH_CHANGED:
            selector.path_changed()


@pytest.mark.parametrize(("state", "event"), [*product(TransportState, TransportEvent)], ids=lambda it: it.name)
def test_every_transport_and_event(state: TransportState, event: TransportEvent) -> None:
    selector = selector_in(state)
    cause(selector, event)
    following = NEXT[state].get(event, state)
    assert selector.state is following
    assert selector.websocket == (following in (T.TRYING_WEBSOCKET, T.WEBSOCKET, T.WEBSOCKET_ONLY))
    assert selector.automatic == (following not in (T.HTTP_ONLY, T.WEBSOCKET_ONLY))


@pytest.mark.parametrize("state", [*TransportState], ids=lambda it: it.name)
def test_a_websocket_that_the_server_does_not_offer_is_not_tried(state: TransportState) -> None:
    selector = selector_in(state)
    selector.offered = False
    cause(selector, V.HELD_BACK)
    assert selector.state is state
